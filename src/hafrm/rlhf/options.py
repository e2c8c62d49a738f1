"""Options of `hafrm rlhf`, with the paper's settings as defaults.

Appendix A gives batch size, new tokens, learning rate, top-p and the number of episodes, and refers to LLaMA-Factory
for the rest. The other defaults are LLaMA-Factory's, and those of TRL 0.9's PPO on which it builds. An option that has
no effect on the algorithm is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from hafrm.data import ReadOptions
from hafrm.data.simulated import is_simulated
from hafrm.errors import ConfigError
from hafrm.models.options import LoraOptions, ScoreOptions, ScorerChoice, require_server_options
from hafrm.models.remote import is_server
from hafrm.options import check, option, refuse_unread

if not TYPE_CHECKING:  # jsonargparse runs the block of a plain `if TYPE_CHECKING`, which would load torch
    pass
else:
    import torch

    from hafrm.rlhf.objectives import KlController

Algorithm = Literal["ppo", "grpo", "rloo"]

KlEstimator = Literal["k1", "k3"]
"""Estimator of KL(policy || reference) from a token, with the names of Schulman's note (2020): `k1` is the log-ratio,
unbiased and sometimes negative; `k3` is (r - 1) - log r with r = reference / policy, unbiased, never negative, with
less variance near the reference and much more far from it.
"""


ScoreScale = Literal["raw", "centred", "normalised"]
"""The scores to learn from: unchanged, minus the mean of all so far, or also divided by their standard deviation."""


Dense = Literal["none", "token", "line", "sentence"]
"""Where a score is paid: at the response's end, or its parts at the tokens, lines or sentences that they come from."""


_PPO: tuple[Algorithm, ...] = ("ppo",)
_GROUPS: tuple[Algorithm, ...] = ("grpo", "rloo")
_KL_PRICES: Mapping[Algorithm, float] = {"ppo": 0.2, "grpo": 0.04, "rloo": 0.05}


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """Options for sampling responses."""

    max_new_tokens: int = option(256, least=1)
    """Maximum tokens of a response (Appendix A: 256)."""

    top_p: float = option(0.9, above=0, most=1)
    """Nucleus sampling: draw from the most probable tokens that together have at least this probability (Appendix A:
    0.9). Log-probs still use the whole distribution; docs/rlhf.md explains the consequences.
    """

    temperature: float = option(1.0, above=0)
    """Temperature that divides logits, in sampling and in every log-prob."""

    def __post_init__(self) -> None:
        check(self, "sampling.")


@dataclass(frozen=True, kw_only=True)
class KlOptions:
    """KL penalty that keeps the policy close to the reference."""

    coefficient: float | None = option(None, least=0)
    """KL coefficient, the penalty per nat of KL(policy || reference). PPO starts with it (0.2); GRPO (0.04) and RLOO
    (0.05) keep it fixed.
    """

    target: float | None = option(6.0, above=0, only=_PPO)
    """PPO: target KL per response, in nats, to which the coefficient adapts; null keeps the coefficient."""

    horizon: int = option(10_000, least=1, only=_PPO)
    """PPO: responses over which a KL of twice the target raises the coefficient by about a fifth."""

    estimator: KlEstimator = option("k1", only=_PPO)
    """PPO: `k1`, log pi - log pi_ref of the drawn token; or `k3`, which is never negative."""

    def __post_init__(self) -> None:
        check(self, "kl.")


@dataclass(frozen=True, kw_only=True)
class PpoOptions:
    """Options for PPO's learning from a batch of responses."""

    epochs: int = option(4, least=1, only=_PPO)
    """Number of passes over each batch."""

    minibatches: int = option(1, least=1, only=_PPO)
    """Optimizer steps per epoch; the batch's responses are split evenly, and reshuffled for each epoch."""

    gamma: float = option(1.0, least=0, most=1, only=_PPO)
    """Discount of later rewards."""

    gae_lambda: float = option(0.95, least=0, most=1, only=_PPO)
    """Lambda of generalised advantage estimation."""

    clip: float = option(0.2, above=0, only=_PPO)
    """Maximum distance of a token's probability ratio from 1."""

    value_clip: float = option(0.2, above=0, only=_PPO)
    """Maximum change of a value per batch."""

    scores: ScoreScale = option("normalised", only=_PPO)
    """`normalised` subtracts the mean of all scores so far and divides by their standard deviation, since a reward
    model's zero and unit are arbitrary, and values begin at zero. `centred` only subtracts the mean; `raw` uses scores
    unchanged, as LLaMA-Factory does.
    """

    value_weight: float = option(0.1, least=0, only=_PPO)
    """Weight of the value loss relative to the policy loss."""

    def __post_init__(self) -> None:
        check(self, "ppo.")


@dataclass(frozen=True, kw_only=True)
class GroupOptions:
    """Options of GRPO and RLOO, which compare responses to the same prompt."""

    generations: int = option(4, least=2, only=_GROUPS)
    """Responses per prompt, at least 2; the batch is a multiple of it."""

    iterations: int = option(1, least=1, only=_GROUPS)
    """Passes over each batch, each of which is a separate step: `steps` counts them all."""

    clip: float = option(0.2, above=0, only=_GROUPS)
    """Maximum distance of a probability ratio from 1."""

    def __post_init__(self) -> None:
        check(self, "group.")


@dataclass(frozen=True, kw_only=True)
class RlhfConfig(ScorerChoice):
    """Train a policy with a reward model. `--head`, `--reference` and `--combined_weight` apply to the reward model."""

    model: str
    """The causal language model to start from, a folder or a hub id; also the reference."""

    reward: str
    """Source of the reward: anything that `hafrm evaluate` accepts (a run, a stock reward model, a server's address),
    or `world/NAME`, the true reward of that set. It reads text, so its tokenizer may differ from the policy's.
    """

    data: list[str]
    """Prompts: files whose rows have `prompt`, or anything that `hafrm train` accepts, of which the prompts are read.
    """

    out: str
    """The run's folder."""

    algorithm: Algorithm = "ppo"
    """`ppo`; or `grpo` or `rloo` from TRL (pip install 'hafrm[trl]')."""

    dense: Dense = option("none", only=("ppo", "grpo"))
    """Where the score is paid. `token` pays each token of a response its part of the score: tau * log pi / pi_ref of
    the reward model's policy head. `line` and `sentence` pay these parts at the end of each line or sentence. `none`
    pays the whole score at the response's end; there the others only pay the parts that belong to no token, so the sum
    is always the score. Needs `--head policy`, which replaces the reward head's score, or `combined`, which adds to it.
    """

    gold: str | None = option(None, only=_PPO)
    """A second scorer for monitoring only: shows whether the intended reward follows the one that is trained on."""

    steps: int = option(6250, least=1)
    """Number of batches of responses to learn from; 6250 of 16 are the paper's 100,000 episodes. `group.iterations`
    passes over a batch count as that many steps.
    """

    batch_size: int = option(16, least=1)
    """Responses per step (Appendix A: 16)."""

    learning_rate: float = option(2e-5, above=0)
    """Learning rate (Appendix A: 2e-5)."""

    chat_template: str | None = None
    """Chat template that replaces the model's own or a missing one, and is saved with the policy: a file, or `default`
    for hafrm's plain template.
    """

    lr_scheduler_type: str = "linear"
    """Any schedule of transformers that only depends on the step; `linear`, transformers' default, falls to 0."""

    max_grad_norm: float = option(1.0, above=0)

    max_prompt_tokens: int = option(256, least=1)
    """Maximum tokens of a prompt; longer prompts are left out and counted."""

    missing_eos_penalty: float = 0.0
    """Penalty on the score of a response that did not end within `sampling.max_new_tokens`. The reward model can't
    detect this itself: it reads text, to which its template adds the end.
    """

    checkpoints: int = option(10, least=1)
    """Number of checkpoints, at equal intervals (rounded up to whole steps), the last at the end. All are kept. With
    `group.iterations` above 1, a checkpoint waits for the last pass over its batch.
    """

    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    kl: KlOptions = field(default_factory=KlOptions)
    ppo: PpoOptions = field(default_factory=PpoOptions)
    group: GroupOptions = field(default_factory=GroupOptions)
    lora: LoraOptions = field(default_factory=LoraOptions)
    """LoRA adapters. With them, the reference is the model without them; otherwise it is a frozen copy."""

    score: ScoreOptions = field(default_factory=lambda: ScoreOptions(overlong="truncate"))
    """How the reward model runs; `device` also applies to the policy. Options that a server would ignore are refused.
    """

    data_options: ReadOptions = field(default_factory=ReadOptions)

    tokens_per_batch: int = option(8192, least=1, only=_PPO)
    """PPO: maximum tokens per forward pass. Changes no gradient; smaller values save memory."""

    seed: int = option(0, least=0, below=2**32)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Dtype of the policy's weights. `auto`: float32; for LoRA on a GPU, bfloat16. `float16` is only for LoRA."""

    overwrite: bool = False
    """Delete the files that an earlier run wrote in the folder, and only those, and start over. Otherwise an
    interrupted run resumes where it stopped.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.data:
            raise ConfigError("data: name at least one file or data set of prompts.")
        for name, why in self._broken():
            raise ConfigError(f"{name}: {why}")
        refuse_unread(self, self.algorithm, f"--algorithm {self.algorithm}")
        self._refuse_unread_by_scorers()

    def _refuse_unread_by_scorers(self) -> None:
        """Raise for options that a server or a simulated set ignores, unless they apply to the other scorer.

        `head`, `reference`, `combined_weight` and `score.pessimism` only apply to `reward`.
        """
        scorers = [name for name in (self.reward, self.gold) if name is not None]
        options = ScoreOptions()
        if all(is_server(name) or is_simulated(name) for name in scorers):
            # `truncate` is the default of this command; `device` also applies to the policy
            overlong = None if self.score.overlong == "truncate" else self.score.overlong
            options = replace(self.score, device=None, overlong=overlong)
        asked = self.chosen() + ["score.pessimism"] * bool(self.score.pessimism)
        if is_simulated(self.reward) and asked:
            raise ConfigError(
                f"--{' and --'.join(asked)} has no effect on the true reward of {self.reward}: leave it out."
            )
        for name in filter(is_server, scorers):
            # `trust_remote_code` also applies to the policy
            choice = ScorerChoice(head=self.head, reference=self.reference, combined_weight=self.combined_weight)
            if name == self.reward:
                require_server_options(name, choice, replace(options, pessimism=self.score.pessimism))
            else:
                require_server_options(name, ScorerChoice(), options.without_pessimism())

    @property
    def gold_choice(self) -> ScorerChoice:
        """Options that choose a score of `gold`: `head` and `reference` only apply to `reward`."""
        return ScorerChoice(trust_remote_code=self.trust_remote_code)

    @property
    def gold_score(self) -> ScoreOptions:
        """Options to run `gold`: standard errors are only subtracted from `reward`."""
        return self.score.without_pessimism()

    def _broken(self) -> Iterator[tuple[str, str]]:
        """Yield incompatible options, with the reason."""
        if self.lora.quantize != "none":
            yield "lora.quantize", "a quantized policy would generate slowly and inexactly. Leave it out."
        if self.dtype == "float16" and not self.lora.enabled:  # float16 rounds AdamW's epsilon, 1e-8, to 0
            yield "dtype", "float16 weights become NaN in the first step. Use float32 or bfloat16, or set lora.rank."
        if self.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy"):
            yield "lr_scheduler_type", f"{self.lr_scheduler_type} follows a validation loss, but there is none here."
        if self.dense != "none" and (self.head == "reward" or is_server(self.reward) or is_simulated(self.reward)):
            yield (
                "dense",
                f"{self.reward} gives whole rewards only{' with --head reward' * (self.head == 'reward')}. Rewards of "
                "tokens need --head policy or combined, and a run with a policy head.",
            )
        if self.algorithm == "ppo":
            if self.batch_size % self.ppo.minibatches:
                yield (
                    "ppo.minibatches",
                    f"{self.batch_size} responses can't be split into {self.ppo.minibatches} equal parts.",
                )
        elif self.batch_size % self.group.generations:
            yield "group.generations", f"a batch of {self.batch_size} is not a multiple of {self.group.generations}."

    @property
    def kl_coefficient(self) -> float:
        """Return the initial KL coefficient."""
        return _KL_PRICES[self.algorithm] if self.kl.coefficient is None else self.kl.coefficient

    @property
    def controller(self) -> KlController:
        """Return PPO's initial KL controller."""
        from hafrm.rlhf.objectives import KlController

        return KlController(self.kl_coefficient, self.kl.target, self.kl.horizon)

    @property
    def max_length(self) -> int:
        """Return the maximum tokens of a prompt with its response."""
        return self.max_prompt_tokens + self.sampling.max_new_tokens

    @property
    def torch_dtype(self) -> torch.dtype:
        """Return the dtype of the weights; see `dtype`."""
        import torch

        if self.dtype != "auto":
            return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[self.dtype]
        return torch.bfloat16 if self.lora.enabled and torch.cuda.is_available() else torch.float32

    @property
    def mixed(self) -> bool:
        """Return whether to use bfloat16 autocast with float32 weights: on GPUs that support it."""
        import torch

        on_gpu = self.score.torch_device().type == "cuda"
        return on_gpu and self.torch_dtype == torch.float32 and torch.cuda.is_bf16_supported()

    def is_checkpoint(self, step: int) -> bool:
        """Return whether a checkpoint is written after this step, counted from 1.

        Never between two steps that learn from one batch (`group.iterations`), since checkpoints don't contain drawn
        responses.
        """
        if step % self.group.iterations and step != self.steps:
            return False
        before = (step - 1) // self.group.iterations * self.group.iterations
        return step * self.checkpoints // self.steps > before * self.checkpoints // self.steps
