"""The policy to train, with its value head and its reference, and the sampling of responses.

The policy is a `HybridModel`: its causal LM draws responses, and its second head, `Linear(H, 1)`, gives the value of
the state before each response token instead of a reward. Works on token ids, groups and batches, independent of
rewards. Shape letters: T response tokens of a batch, H hidden, V vocabulary.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hafrm.encoding import TokenGroup
from hafrm.errors import ConfigError
from hafrm.logprobs import LogitTransform, linear_log_probs
from hafrm.models.generating import continuations, stop_tokens
from hafrm.models.hybrid import HybridModel, max_positions
from hafrm.models.layout import Layout, choose_layout, random_groups
from hafrm.models.modules import evaluating
from hafrm.models.runinfo import require_finished
from hafrm.models.starts import new_model
from hafrm.packing import SequenceBatch, pad_rows
from hafrm.rlhf.options import RlhfConfig, SamplingOptions

_LOGITS = 2**24
"""Maximum logits in memory at once when the whole distribution is needed: 64 MiB."""


@dataclass(frozen=True)
class Measured:
    """Measurements of drawn tokens before learning from them, each [T], in the groups' order."""

    log_probs: Tensor
    """Log-probs under the policy that drew the tokens, of its whole distribution at its temperature."""
    reference: Tensor
    """Log-probs of the same tokens under the reference."""
    values: Tensor
    """Output of the value head before each token."""
    entropies: Tensor
    """Entropies of the distributions from which the tokens were drawn, before top-p truncation, in nats."""


class Policy:
    """A causal LM with a value head, and its reference: the model without adapters, or a frozen copy of the initial
    model.

    Args:
        model: The model, on its device.
        temperature: Divides logits, in every distribution.
        tokens_per_batch: Maximum number of tokens per forward pass.
    """

    def __init__(
        self, model: HybridModel, layout: Layout, *, temperature: float = 1.0, tokens_per_batch: int = 8192
    ) -> None:
        self.model, self.layout, self.tokens_per_batch = model, layout, tokens_per_batch
        own = model.logit_transform
        # Dividing capped logits t tanh(s x / t) by the temperature is the same as dividing s and t by it.
        softcap = None if own.softcap is None else own.softcap / temperature
        self.transform = LogitTransform(own.scale / temperature, softcap)
        self._frozen = None if model.adapted else copy.deepcopy(model).requires_grad_(False).eval()

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return self.model.score.weight.device

    def batches(self, groups: Sequence[TokenGroup]) -> Iterator[tuple[list[int], SequenceBatch]]:
        """Yield batches of sequences, each with the indices of its groups."""
        for places in self.layout.plan(groups, sequences=len(groups), tokens=self.tokens_per_batch):
            yield places, self.layout.batch([groups[place] for place in places]).to(self.device)

    def log_probs_and_values(self, batch: SequenceBatch) -> tuple[Tensor, Tensor]:
        """Return log-probs of the drawn tokens and values before them, each [T], in float32; differentiable."""
        states = self.model.hidden_states(batch)[batch.predictor_index]
        return self._log_probs(self.model, states, batch), self._values(states)

    @torch.no_grad()
    def measure(self, groups: Sequence[TokenGroup]) -> Measured:
        """Measure drawn responses, one per group, in evaluation mode."""
        parts: dict[int, list[Tensor]] = {}
        for places, batch in self.batches(groups):
            with evaluating(self.model):
                states = self.model.hidden_states(batch)[batch.predictor_index]
                with self._reference() as reference:
                    others = reference.hidden_states(batch)[batch.predictor_index]
                    of_reference = self._log_probs(reference, others, batch)
            found = (
                self._log_probs(self.model, states, batch),
                of_reference,
                self._values(states),
                self._entropies(states),
            )
            for place, *tensors in zip(places, *(each.split(batch.lengths) for each in found), strict=True):
                parts[place] = tensors
        return Measured(*(torch.cat(column) for column in zip(*(parts[i] for i in range(len(groups))), strict=True)))

    @torch.no_grad()
    def divergences(self, groups: Sequence[TokenGroup]) -> list[float]:
        """Return KL(policy || reference) of drawn responses, one per group, in nats, in evaluation mode.

        It is the sum over a response's tokens of the divergence of the two distributions before each. Its mean over
        responses estimates the same as that of log-ratios, with a smaller variance, and is never negative.
        """

        def divergences(batch: SequenceBatch) -> Tensor:
            states = self.model.hidden_states(batch)[batch.predictor_index]
            with self._reference() as reference:
                others = reference.hidden_states(batch)[batch.predictor_index]
            both = zip(self._split(states), self._split(others), strict=True)
            return torch.cat([self._divergences(*parts) for parts in both])

        return self._summed(groups, divergences)

    @torch.no_grad()
    def log_probs(self, groups: Sequence[TokenGroup]) -> list[float]:
        """Return log pi(y | x) of responses, one per group, in evaluation mode."""
        return self._summed(groups, lambda batch: self.log_probs_and_values(batch)[0])

    def _summed(self, groups: Sequence[TokenGroup], of_tokens: Callable[[SequenceBatch], Tensor]) -> list[float]:
        """Sum a quantity of response tokens, which `of_tokens` computes for a batch as [T], over each response."""
        found: dict[int, float] = {}
        for places, batch in self.batches(groups):
            with evaluating(self.model):
                parts = of_tokens(batch).split(batch.lengths)
            found |= dict(zip(places, (each.sum().item() for each in parts), strict=True))
        return [found[place] for place in range(len(groups))]

    def _divergences(self, states: Tensor, others: Tensor) -> Tensor:
        """Return the divergence after each state, [T], from the reference's states."""
        log_probs = self._log_softmax(self.model, states)
        with self._reference() as reference:
            return (log_probs.exp() * (log_probs - self._log_softmax(reference, others))).sum(-1)

    @contextlib.contextmanager
    def _reference(self) -> Iterator[HybridModel]:
        if self._frozen is not None:
            yield self._frozen
        else:
            with self.model.adapters_disabled():
                yield self.model

    def _log_probs(self, model: HybridModel, states: Tensor, batch: SequenceBatch) -> Tensor:
        head = model.policy_head
        log_probs: Tensor = linear_log_probs(
            states, head.weight, batch.target_ids, bias=head.bias, transform=self.transform
        )
        return log_probs

    def _values(self, states: Tensor) -> Tensor:
        """Compute values in float32, also under autocast."""
        with torch.autocast(states.device.type, enabled=False):
            return F.linear(states.float(), self.model.score.weight.float()).squeeze(-1)

    def _entropies(self, states: Tensor) -> Tensor:
        parts = (self._log_softmax(self.model, part) for part in self._split(states))
        return torch.cat([-(log_probs.exp() * log_probs).sum(-1) for log_probs in parts])

    def _split(self, states: Tensor) -> Sequence[Tensor]:
        """Split states so that the logits of each part fit into memory."""
        parts: Sequence[Tensor] = states.split(max(1, _LOGITS // self.model.policy_head.weight.shape[0]))
        return parts

    def _log_softmax(self, model: HybridModel, states: Tensor) -> Tensor:
        """Return log-probs of the whole vocabulary after each state, [T, V], in float32."""
        logits: Tensor = model.policy_head(states).float() * self.transform.scale
        if self.transform.softcap is not None:
            logits = self.transform.softcap * torch.tanh(logits / self.transform.softcap)
        return logits.log_softmax(-1)


def new_policy(config: RlhfConfig, tokenizer: Any) -> HybridModel:
    """Load the initial model, with adapters if any.

    Raises:
        ModelError: no causal LM can be loaded from there.
        ConfigError: prompts with responses do not fit the model.
    """
    require_finished(Path(config.model))
    model = new_model(
        config.model,
        tokenizer,
        lora=config.lora,
        head_init="zero",
        dtype=config.torch_dtype,
        trust_remote_code=config.trust_remote_code,
    )
    positions = max_positions(model.config)
    if positions is not None and config.max_length > positions:
        raise ConfigError(
            f"max_prompt_tokens {config.max_prompt_tokens} and sampling.max_new_tokens "
            f"{config.sampling.max_new_tokens} add up to {config.max_length}, but {config.model} has {positions} "
            "positions. Lower one of the two."
        )
    return model


def ready_policy(
    config: RlhfConfig, model: HybridModel, tokenizer: Any, *, report: Callable[[str], None] = lambda reason: None
) -> Policy:
    """Return the policy of `new_policy` on its device, with its current weights as the reference.

    Raises:
        ModelError: hafrm does not support how the model computes logits.
    """
    model.to(config.score.torch_device())
    pad = tokenizer.pad_token_id
    model.check_policy_head(pad_rows(random_groups(model), pad_token_id=pad))
    layout = choose_layout(model, pad, max_length=config.max_length, report=report)
    return Policy(model, layout, temperature=config.sampling.temperature, tokens_per_batch=config.tokens_per_batch)


@dataclass(frozen=True, slots=True)
class Response:
    """A policy's response."""

    ids: tuple[int, ...]
    """The drawn tokens, including the one that ends the response."""
    text: str
    """The text without special tokens and surrounding white space."""
    ended: bool
    """Whether it ended within the limit."""


def sample_responses(
    causal_lm: nn.Module, tokenizer: Any, prompts: Sequence[Sequence[int]], sampling: SamplingOptions
) -> list[Response]:
    """Sample one response to each prompt, in order, with the global random generator.

    Only `sampling` shapes the distribution, so that its log-probs are those of the drawn tokens.

    Args:
        causal_lm: A stock causal LM, or a PEFT model around one.
        tokenizer: Its prepared tokenizer.
        prompts: Token ids.
    """
    rows = continuations(causal_lm, tokenizer, prompts, do_sample=True, top_k=0, **asdict(sampling))
    ends = stop_tokens(causal_lm, tokenizer)
    return [_response(row, ends, tokenizer) for row in rows.tolist()]


def _response(row: Sequence[int], ends: Sequence[int], tokenizer: Any) -> Response:
    """Cut a row of generated tokens after the first that ends it."""
    stop = next((place for place, token in enumerate(row) if token in ends), None)
    ids = row if stop is None else row[: stop + 1]
    text = tokenizer.decode(row[:stop], skip_special_tokens=True)
    return Response(tuple(ids), text.strip(), stop is not None)
