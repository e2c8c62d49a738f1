"""The policy that is trained, the values beside it, and the reference that it is held to.

A `HybridModel` serves as it is: the causal LM is the policy, and its second head, `Linear(H, 1)`, tells values in place
of rewards, of the state before each response token. Knows token groups and batches; knows no text and no reward.
Shape letters: T response tokens of a batch, H hidden, V vocabulary.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hafrm.encoding import TokenGroup
from hafrm.logprobs import LogitTransform, linear_log_probs
from hafrm.models.hybrid import HybridModel
from hafrm.models.layout import Layout
from hafrm.models.modes import evaluating
from hafrm.packing import SequenceBatch

__all__ = ["Measured", "Policy"]

_LOGITS = 2**24
"""Logits that are held at once where the whole distribution is looked at: 64 MiB."""


@dataclass(frozen=True)
class Measured:
    """What is known of drawn tokens before learning from them, each [T], in the groups' order."""

    log_probs: Tensor
    """Under the policy that drew them: of its whole distribution, at its temperature."""
    reference: Tensor
    """The same under the reference."""
    values: Tensor
    """What the value head expects before each token."""
    entropies: Tensor
    """Of the distribution that each token was drawn from, before top-p cut it, in nats."""


class Policy:
    """A causal LM with a value head, and its reference: its own self without adapters, or a frozen copy of its start.

    Args:
        model: The model, on its device, in the state that the layout needs.
        layout: How sequences become batches.
        temperature: What logits are divided by, in every distribution.
        tokens_per_batch: The most tokens that go through the model at once.
    """

    def __init__(
        self, model: HybridModel, layout: Layout, *, temperature: float = 1.0, tokens_per_batch: int = 8192
    ) -> None:
        self.model, self.layout, self.tokens_per_batch = model, layout, tokens_per_batch
        own = model.logit_transform
        # Divided after the cap: t tanh(s x / t) with both s and t divided is the same.
        softcap = None if own.softcap is None else own.softcap / temperature
        self.transform = LogitTransform(own.scale / temperature, softcap)
        self._frozen = None if model.adapted else copy.deepcopy(model).requires_grad_(False).eval()

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.model.score.weight.device

    def batches(self, groups: Sequence[TokenGroup]) -> Iterator[tuple[list[int], SequenceBatch]]:
        """Batches of sequences, each with its groups' places."""
        for places in self.layout.plan(groups, sequences=len(groups), tokens=self.tokens_per_batch):
            yield places, self.layout.batch([groups[place] for place in places]).to(self.device)

    def log_probs_and_values(self, batch: SequenceBatch) -> tuple[Tensor, Tensor]:
        """Log-probs of the drawn tokens and values before them, each [T], in float32; differentiable."""
        states = self.model.hidden_states(batch)[batch.predictor_index]
        return self._log_probs(self.model, states, batch), self._values(states)

    @torch.no_grad()
    def measure(self, groups: Sequence[TokenGroup]) -> Measured:
        """Measure drawn responses, each group's one, in evaluation mode."""
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
        """In float32 also under autocast, as rewards are."""
        with torch.autocast(states.device.type, enabled=False):
            return F.linear(states.float(), self.model.score.weight.float()).squeeze(-1)

    def _entropies(self, states: Tensor) -> Tensor:
        head = self.model.policy_head
        entropies = []
        for part in states.split(max(1, _LOGITS // head.weight.shape[0])):
            logits = head(part).float() * self.transform.scale
            if self.transform.softcap is not None:
                logits = self.transform.softcap * torch.tanh(logits / self.transform.softcap)
            log_probs = logits.log_softmax(-1)
            entropies.append(-(log_probs.exp() * log_probs).sum(-1))
        return torch.cat(entropies)
