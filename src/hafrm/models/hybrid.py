"""The two-headed model: one backbone, a reward head and a policy head (the paper's section 2.3 and Figure 1).

Uses stock transformers models and `SequenceBatch`; independent of tokenizers, losses and files.
Shape letters: R rows, L columns, S sequences, T response tokens, H hidden, V vocabulary.

Models are not patched: hidden states come from the stock decoder, log-probs from the stock LM head's weight, at
response tokens only. The step from LM-head products to logits (soft caps, scales) is read from the model's config and
checked once at load against the stock model's own logits, so that unsupported architectures are refused instead of
trained wrongly.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from hafrm.errors import ModelError
from hafrm.logprobs import Foresight, LogitTransform, linear_log_probs, sum_by_sequence
from hafrm.models.attention import PACKED_ATTENTION, packed_arguments
from hafrm.models.modules import evaluating, require_finite
from hafrm.packing import SequenceBatch


class SequenceScores(NamedTuple):
    """Result of one forward pass per sequence; None for what was not requested.

    A tuple, so that wrappers for parallel training find the tensors.
    """

    rewards: Tensor | None
    """F(phi(x, y)), [S], float32."""
    log_probs: Tensor | None
    """log pi(y | x), summed over response tokens, [S], float32."""
    token_log_probs: Tensor | None
    """log pi of each response token, [T], float32, in the batch's order."""
    of_heads: Tensor | None = None
    """Rewards by each reward head, [S, K], whose mean `rewards` is; None for a single head."""
    prefixes: Tensor | None = None
    """Rewards of the responses up to each token, [T], float32, in the batch's order; a sequence's last is its reward.
    """


class HybridModel(nn.Module):
    """A stock causal language model (phi and K) with a reward head (F) next to its LM head.

    Args:
        causal_lm: A stock transformers causal LM, or a PEFT model around one.
        score: The reward head, `Linear(H, 1, bias=False)`: the only shape that stock classes load. A model used only
            for scoring may have a bias. With K outputs it is K heads, whose mean is the reward.
        with_lm_head: Whether the LM head has weights; in a model from a classifier without one they are zero.
        bare: Description of the backbone weights that could not get adapters although all were requested, or None.
        before: Layers that the reward head reads instead of hidden states, in a model used only for scoring.
    """

    def __init__(
        self,
        causal_lm: nn.Module,
        score: nn.Linear,
        *,
        with_lm_head: bool = True,
        bare: str | None = None,
        before: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.causal_lm = causal_lm
        self.score, self.before = score, before
        self.with_lm_head = with_lm_head
        self.bare = bare
        self.logit_transform = logit_transform(self.config)

    @property
    def stock_lm(self) -> PreTrainedModel:
        """The transformers model without a PEFT wrapper (adapters remain in its layers)."""
        unwrap = getattr(self.causal_lm, "get_base_model", None)
        return cast(PreTrainedModel, unwrap() if unwrap else self.causal_lm)

    @property
    def config(self) -> PreTrainedConfig:
        """The stock model's config."""
        return self.stock_lm.config

    @property
    def _no_split_modules(self) -> list[str]:
        """The layers that FSDP shards separately, under the name that accelerate expects.

        Embeddings and both heads stay in the root module, whose weights are complete throughout `forward`: it uses the
        heads' weights without calling their modules, so no hook of theirs would gather them.
        """
        return list(self.stock_lm._no_split_modules or ())

    @property
    def backbone(self) -> nn.Module:
        """Phi: the stock decoder, from token ids to hidden states."""
        return backbone_of(self.stock_lm)

    @property
    def reward_head(self) -> nn.Linear:
        """F: from a hidden state to a reward. The mean over its rows is saved as `score.weight`."""
        return self.score

    @property
    def heads(self) -> int:
        """K, the number of reward heads."""
        return self.score.out_features

    @property
    def policy_head(self) -> nn.Linear:
        """K: the model's own LM head.

        Raises:
            ModelError: the model has no linear LM head.
        """
        head = self.stock_lm.get_output_embeddings()
        if not self.with_lm_head:
            raise ModelError(
                "The model was saved without an LM head, like many classifiers. Use only its reward head "
                "(`--method baseline`, `--head reward`)."
            )
        if not isinstance(head, nn.Linear):
            raise ModelError(f"{type(self.stock_lm).__name__} has no linear LM head, which the policy loss needs.")
        return head

    @property
    def supports_packing(self) -> bool:
        """Whether the model supports packed rows, according to `probe_packing`."""
        return bool(self.config._attn_implementation == PACKED_ATTENTION)

    @property
    def adapted(self) -> bool:
        """Whether the model has LoRA adapters."""
        return self.causal_lm is not self.stock_lm

    def forward(
        self,
        batch: SequenceBatch,
        *,
        rewards: bool = True,
        log_probs: bool = True,
        prefixes: bool = False,
        foresight: Foresight | None = None,
    ) -> SequenceScores:
        """Encode a batch once and score its sequences with either head or both.

        Args:
            batch: The sequences' layout.
            rewards: Whether to compute rewards.
            log_probs: Whether to compute response log-probs (the LM head takes time: skip it if unused).
            prefixes: Whether to compute the reward of every prefix of the responses.
            foresight: Prediction of the loss's gradient in the log-probs, which saves a trained LM head a quarter of
                its work.
        """
        states = self.hidden_states(batch)
        found = self.rewards_of(states[batch.score_index]) if rewards else None
        reward = None if found is None else found.mean(-1)
        of_heads = found if self.heads > 1 else None
        prefix_rewards = self.rewards_of(states[batch.token_index]).mean(-1) if prefixes else None
        if not log_probs:
            return SequenceScores(reward, None, None, of_heads, prefix_rewards)
        tokens = linear_log_probs(
            states[batch.predictor_index],
            self.policy_head.weight,
            batch.target_ids,
            bias=self.policy_head.bias,
            transform=self.logit_transform,
            foresight=foresight,
        )
        total = sum_by_sequence(tokens, batch.sequence_index, batch.num_sequences)
        return SequenceScores(reward, total, tokens, of_heads, prefix_rewards)

    def hidden_states(self, batch: SequenceBatch) -> Tensor:
        """Return the backbone's last hidden states, rows concatenated, [R * L, H].

        Raises:
            ModelError: the batch is packed, and the model is not known to support packed rows.
        """
        if batch.segments is None:
            layout: dict[str, Any] = {"attention_mask": batch.attention_mask}
        elif self.supports_packing:
            layout = packed_arguments(batch.segments, batch.input_ids.device)
        else:
            raise ModelError(
                f"{type(self.stock_lm).__name__} is not known to support packed rows. Use padded rows "
                "(`pad_rows`), or call `probe_packing` first."
            )
        output = self.backbone(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False, **layout)
        return cast(Tensor, output.last_hidden_state).flatten(0, 1)

    def rewards_of(self, states: Tensor) -> Tensor:
        """Compute each head's rewards of states, [n, K], in at least float32, also under autocast: bfloat16 turns
        margins under 0.01 into ties.
        """
        dtype = torch.promote_types(self.score.weight.dtype, torch.float32)
        with torch.autocast(states.device.type, enabled=False):
            bias = None if self.score.bias is None else self.score.bias.to(dtype)
            read = states.to(dtype)
            return F.linear(read if self.before is None else self.before(read), self.score.weight.to(dtype), bias)

    @contextlib.contextmanager
    def adapters_disabled(self) -> Iterator[None]:
        """Disable adapters within the context, which makes the model its own reference policy."""
        disable = getattr(self.causal_lm, "disable_adapter", None)
        if disable is None:
            raise ModelError("The model has no adapters to disable: `loss.reference: adapter_off` needs LoRA.")
        with disable():
            yield

    def activation_checkpointing_enable(self, **kwargs: Any) -> None:
        """Recompute activations in the backward pass (called by transformers' Trainer)."""
        self.stock_lm.activation_checkpointing_enable(**kwargs)
        if self.adapted:  # the outputs of frozen embeddings would cut recomputed blocks off from the gradient
            self.stock_lm.enable_input_require_grads()

    def freeze_unused(self, *, rewards: bool, log_probs: bool) -> None:
        """Freeze a head whose loss has no weight, so that optimizers and DDP do not wait for its gradient.

        A policy head that is tied to the input embeddings stays trainable: the backbone uses it.
        """
        if not rewards:
            self.score.requires_grad_(False)
        head = self.stock_lm.get_output_embeddings()
        tied = head is not None and head.weight is self.stock_lm.get_input_embeddings().weight
        if not log_probs and head is not None and not tied:
            head.requires_grad_(False)

    @torch.no_grad()
    def check_policy_head(self, batch: SequenceBatch, *, tolerance: float | None = None) -> None:
        """Check that our response log-probs match the stock model's own.

        Args:
            batch: A short batch in the padded layout.
            tolerance: Allowed difference, relative to the log-prob's size. Default: 1e-2 for the maximum; in half
                precision 5e-2 for the mean, because a single logit rounded differently by two kernels exceeds the
                former.

        Raises:
            ModelError: the model computes its logits in a way that `logit_transform` does not cover, or they are not
                finite.
        """
        batch = batch.to(self.score.weight.device)
        with evaluating(self):
            ours = self(batch, rewards=False).token_log_probs
            logits = self.stock_lm(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                position_ids=batch.position_ids,
                use_cache=False,
            ).logits
        stock = logits.flatten(0, 1)[batch.predictor_index].float().log_softmax(-1)
        stock = stock.gather(-1, batch.target_ids[:, None]).squeeze(-1)
        errors = (ours - stock).abs() / (1 + stock.abs())
        half = self.policy_head.weight.dtype.itemsize == 2
        error = (errors.mean() if half else errors.max()).item()
        if not math.isfinite(error):
            require_finite(self.named_parameters(), type(self.stock_lm).__name__)
            raise ModelError(
                f"{type(self.stock_lm).__name__} gives log-probs that are not finite, although its weights are: "
                f"{self.policy_head.weight.dtype} is too narrow for it. Use a wider dtype, float32 or bfloat16."
            )
        if not error <= (tolerance or (5e-2 if half else 1e-2)):
            raise ModelError(
                f"{type(self.stock_lm).__name__} computes its logits in a way that hafrm does not support "
                f"(log-probs differ by {error:.2g} from the model's own), so a policy loss would train it "
                "wrongly and an implicit reward would be wrong. Use only the reward head: train with "
                "`--method baseline`, score with `--head reward`."
            )


def backbone_of(causal_lm: PreTrainedModel) -> nn.Module:
    """Return the part of a causal LM that computes the input of its LM head.

    Some classes, such as Llama 4's, do not name a base model: then it is the part that contains the embeddings.

    Raises:
        ModelError: the model has no such part.
    """
    if causal_lm.base_model is not causal_lm:
        return causal_lm.base_model
    embeddings = causal_lm.get_input_embeddings()
    for child in causal_lm.children():
        if child is not embeddings and any(module is embeddings for module in child.modules()):
            return child
    raise ModelError(f"{type(causal_lm).__name__} has no decoder separate from its LM head, which a reward head needs.")


def head_width(causal_lm: PreTrainedModel) -> int:
    """Return H, the width of the states read by both heads: the LM head's input, which can differ from the config's
    hidden size.
    """
    head = causal_lm.get_output_embeddings()
    width: int = head.in_features if isinstance(head, nn.Linear) else causal_lm.config.get_text_config().hidden_size
    return width


def new_reward_head(
    width: int, *, init: Literal["normal", "zero"], seed: int, dtype: torch.dtype, count: int = 1
) -> nn.Linear:
    """Create a reward head F for hidden states of this width, or several; see `hafrm.models.options.HeadInit`."""
    head = nn.Linear(width, count, bias=False, dtype=dtype)
    with torch.no_grad():
        if init == "zero":
            head.weight.zero_()
        else:
            generator = torch.Generator().manual_seed(seed)
            head.weight.copy_(torch.randn(count, width, generator=generator) / (width + 1) ** 0.5)
    return head


def max_positions(config: PreTrainedConfig) -> int | None:
    """Return the maximum number of positions of a model; None if its config sets no limit."""
    try:
        limit: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    except NotImplementedError:  # raised by XLNet, which has no limit
        return None
    return limit


def logit_transform(config: PreTrainedConfig) -> LogitTransform:
    """Derive from its config how a model turns LM-head products into logits."""
    text = config.get_text_config()
    scale = 1.0
    for name in ("logit_scale", "lm_head_multiplier", "output_multiplier"):  # Cohere, Falcon-H1, Muse Glimmer
        scale *= getattr(text, name, None) or 1.0
    scaling = getattr(text, "logits_scaling", None) or 1.0
    scale *= scaling if text.model_type == "hyperclovax" else 1 / scaling  # the others, such as Granite, divide
    scale /= getattr(text, "logits_mup_width_multiplier", None) or 1.0  # Inkling
    caps = (
        getattr(text, name, None) for name in ("final_logit_softcapping", "output_logit_soft_cap")
    )  # the latter for xLSTM
    return LogitTransform(scale=scale, softcap=next((cap for cap in caps if cap), None))
