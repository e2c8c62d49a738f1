"""Options of the losses, with the paper's defaults. An option without effect is refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from hafrm.errors import ConfigError
from hafrm.losses import (
    PLACKETT_LUCE,
    REWARD_LOSSES,
    PolicyLossOptions,
    RewardLossName,
    loss_terms,
    options_read,
    uses_reference,
)
from hafrm.models.options import Method
from hafrm.options import check, option, problem

_FIXED_LOSSES: dict[Method, dict[str, float | str]] = {
    "haf": {},
    "baseline": {"reward_weight": 1.0, "policy_ratio": 0.0},
    "dpo": {"reward_weight": 0.0, "policy_ratio": 1.0},
    "grm": {"reward_weight": 0.99, "policy_ratio": 0.01, "policy_loss": "grm_sft"},
}

_OF_REWARD_LOSSES = (
    *("reward_loss", "heads", "heads_from", "label_smoothing", "centering", "length_control", "consistency_weight"),
)
"""Fields of `LossConfig` that need a reward loss."""

_OF_POLICY_LOSSES = (
    *("policy_loss", "beta", "policy_label_smoothing", "target_margin", "reference"),
    "consistency_weight",  # untrained, the policy head would not fit the backbone, and p would be noise
)
"""Fields of `LossConfig` that need a policy loss."""


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Losses that train the shared backbone, and their weights."""

    reward_weight: float = option(1.0, least=0)
    """Weight of the reward loss."""

    policy_ratio: float = 0.2
    """Weight of the policy loss: the paper's alpha (Eq. 5). 0 trains only the reward head; may be negative."""

    reward_loss: RewardLossName | str = "bradley_terry"
    """Loss on reward differences. Bradley-Terry is Eq. 2; probit and Cauchy assume other noise distributions.
    Plackett-Luce is the likelihood of whole rankings instead of their pairs (needs `data_options.batch_by: prompt`).
    """

    heads: int = option(1, least=1)
    """Number of reward heads on the backbone. The reward is their mean; their spread is its standard error
    (`score.pessimism`).
    """

    heads_from: Literal["bootstrap", "laplace"] = "bootstrap"
    """Origin of several heads. `bootstrap` trains all of them, which start differently and weigh the pairs at random;
    5 are usual. `laplace` trains one and then draws an even number, such as 64, from its approximate posterior, for
    which it reads the training pairs once more.
    """

    policy_loss: str = "dpo"
    """Loss on response log-probs: dpo (Eq. 4), ipo, slic, simpo, orpo, kto_pair, sft, grm_sft, robust, exo_pair,
    nca_pair, bco_pair, sppo_hard, aot, aot_unpaired, apo_zero, apo_down, discopop or sigmoid_norm, or a sum of them
    such as `dpo+0.2*sft`.
    """

    beta: float = option(0.1, above=0)
    """Sharpness of the policy loss: the paper's tau (section 2.2)."""

    label_smoothing: float = option(0.0, least=0, below=0.5)
    """Label smoothing of the reward loss: assumed fraction of mislabeled pairs."""

    policy_label_smoothing: float = option(0.0, least=0, below=0.5)
    """Label smoothing of the policy loss (conservative DPO): assumed fraction of mislabeled pairs."""

    target_margin: float = option(0.5, least=0)
    """Target margin of SimPO; other losses don't use it."""

    centering: float = option(0.0, least=0)
    """Weight of the penalty (r_chosen + r_rejected)^2, which keeps rewards near zero."""

    length_control: bool = False
    """Keep length out of the reward: before training, estimate from the training pairs how strongly longer responses
    are preferred (log-odds per log of the ratio of tokens), and add that to the reward difference in the reward loss,
    so that the reward learns what length does not explain. Scores leave it out. If better responses really are longer,
    this effect is removed too.
    """

    consistency_weight: float = option(0.0, least=0)
    """Weight of the consistency loss (ICRM, arXiv:2506.09096; .1 there), which keeps the rewards of neighbouring
    prefixes of a response close where the policy head finds the token between them likely.
    """

    reference: Literal["auto", "precomputed", "adapter_off", "frozen_copy"] = "auto"
    """Source of the reference log-probs; `auto` computes them once before training and keeps them on disk."""

    def __post_init__(self) -> None:
        check(self, "loss.")
        if self.heads_from == "laplace" and (self.heads % 2 or self.reward_loss != "bradley_terry"):
            raise ConfigError(
                "loss.heads_from laplace draws an even number of heads around one trained by bradley_terry: set "
                f"loss.heads, such as 64; got {self.heads} and reward_loss {self.reward_loss}."
            )
        if self.reward_weight == 0 and self.policy_ratio == 0:
            raise ConfigError("loss.reward_weight and loss.policy_ratio are both 0, so nothing would be trained.")
        if wrong := problem(self.reward_loss, (*REWARD_LOSSES, PLACKETT_LUCE)):  # includes registered losses
            raise ConfigError(f"loss.reward_loss {wrong}")
        if self.length_control and self.reward_loss not in ("bradley_terry", PLACKETT_LUCE):
            raise ConfigError(
                f"loss.length_control adds log-odds, which {self.reward_loss} does not use: use bradley_terry or "
                f"{PLACKETT_LUCE}."
            )
        try:
            terms = loss_terms(self.policy_loss)
        except ValueError as error:
            raise ConfigError(f"loss.policy_loss {error}") from error
        if "exo_pair" in terms and self.policy_ratio and not self.policy_label_smoothing:
            raise ConfigError(
                "loss.policy_loss exo_pair needs loss.policy_label_smoothing above 0, such as 0.001: its loss is "
                "infinite for labels that are certain."
            )
        for name, reader in self._unread():
            if getattr(self, name) != self.__dataclass_fields__[name].default:
                raise ConfigError(f"loss.{name} has no effect {reader}: leave it out.")

    @property
    def trained_heads(self) -> int:
        """Return the number of reward heads in training."""
        return 1 if self.heads_from == "laplace" else self.heads

    @property
    def policy_options(self) -> PolicyLossOptions:
        """Return the options of the policy loss."""
        return PolicyLossOptions(
            beta=self.beta, label_smoothing=self.policy_label_smoothing, target_margin=self.target_margin
        )

    def _unread(self) -> Iterator[tuple[str, str]]:
        """Yield the fields that have no effect with these weights and losses, each with the reason."""
        if self.reward_weight == 0:
            for name in _OF_REWARD_LOSSES:
                yield name, "without a reward loss (loss.reward_weight is 0, as under --method dpo)"
        elif self.reward_loss == PLACKETT_LUCE:
            yield "label_smoothing", "on plackett_luce"
        if self.policy_ratio == 0:
            for name in _OF_POLICY_LOSSES:
                yield name, "without a policy loss (loss.policy_ratio is 0, as under --method baseline)"
            return
        read = options_read(self.policy_loss)  # beta scales the implicit reward of every policy loss
        for name, argument in (("policy_label_smoothing", "label_smoothing"), ("target_margin", "target_margin")):
            if argument not in read:
                yield name, f"on {self.policy_loss}"
        if not uses_reference(self.policy_loss):
            yield "reference", f"on {self.policy_loss}, which has no reference"

    def for_method(self, method: Method) -> LossConfig:
        """Return the losses as a method fixes them; `haf` leaves them unchanged.

        Raises:
            ConfigError: a weight was set to another value, or an option has no effect on the method's losses.
        """
        for name, value in _FIXED_LOSSES[method].items():
            if getattr(self, name) not in (value, self.__dataclass_fields__[name].default):
                fixed = value if isinstance(value, str) else f"{value:g}"
                raise ConfigError(
                    f"loss.{name} is {getattr(self, name)}, but --method {method} fixes it at {fixed}. Leave it out, "
                    "or train both heads with --method haf."
                )
        return replace(self, **_FIXED_LOSSES[method])  # type: ignore[arg-type]
