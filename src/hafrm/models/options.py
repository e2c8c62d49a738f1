"""Options for loading, adapting, scoring and exporting models; this module loads neither torch nor transformers."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hafrm.encoding import Overlong
from hafrm.errors import ConfigError, ModelError, first_line
from hafrm.models.remote import endpoint_of
from hafrm.options import check, option
from hafrm.special_tokens import SpecialTokenRule
from hafrm.templates import DEFAULT_CHAT_TEMPLATE

if not TYPE_CHECKING:  # jsonargparse runs the block of a plain `if TYPE_CHECKING`, which would load torch
    pass
else:
    import torch

    from hafrm.models.scorers import Scorer

Method = Literal["haf", "baseline", "dpo", "grm"]
"""`haf` trains both heads (Eq. 5), `baseline` only the reward head (Eq. 2), `dpo` only the policy head (Eq. 4)."""

Head = Literal["reward", "policy", "combined"]
"""Source of a model's score: its reward head, its implicit DPO reward, or the sum of both."""

HeadInit = Literal["auto", "keep", "normal", "zero", "fit"]
"""How the reward head starts.

`keep` uses the model's own head. `normal` draws from N(0, 1 / (H + 1)), as in Stiennon et al. (2020):
rewards of a normalised hidden state then have about unit size. `zero` starts every reward at 0, as in the paper
authors' code; the paper does not specify it. `fit` starts at 0, for training to fit it to the training pairs with the
backbone frozen, before the first step. `auto` is `keep` if the model has a head, else `normal`.
"""


LayoutChoice = Literal["auto", "padded"]
"""`auto` packs if a probe shows that the model computes packed rows correctly; `padded` never does."""


@dataclass(frozen=True, kw_only=True)
class LoraOptions:
    """Options of low-rank adapters on the backbone; the reward head is always trained in full."""

    rank: int = option(0, least=0)
    """Rank of the adapters; 0 trains all weights without adapters. The paper's Mistral runs use 64 (Table 5)."""

    alpha: int = option(16, least=1)
    """LoRA's scaling numerator (16 in Table 5). Not the paper's alpha, which is `loss.policy_ratio`."""

    dropout: float = option(0.0, least=0, below=1)
    """Dropout before the adapters. Not specified in the paper."""

    targets: list[str] = field(default_factory=list)
    """Names of the linear layers that get adapters. Empty: every linear layer of the backbone, including the experts of
    a mixture, but not the heads or parts that text does not reach. Experts with one joint weight, `gate_up_proj`, also
    match `gate_proj` and `up_proj`.
    """

    quantize: Literal["none", "4bit"] = "none"
    """`4bit` freezes the backbone in 4-bit NF4 (QLoRA); needs a GPU and bitsandbytes."""

    def __post_init__(self) -> None:
        check(self, "lora.")
        heads = {"lm_head", "embed_out", "score"} & set(self.targets)
        if heads:
            raise ConfigError(f"lora.targets names a head ({', '.join(heads)}), but only the backbone gets adapters.")
        for each in fields(self) if self.rank == 0 else ():
            default = [] if each.name == "targets" else each.default
            if getattr(self, each.name) != default:
                raise ConfigError(f"lora.{each.name} has no effect without adapters: set lora.rank (64 in the paper).")

    @property
    def enabled(self) -> bool:
        """Whether to train adapters."""
        return self.rank > 0


@dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    """How scorers run.

    The layout of batches changes rewards only by rounding, which depends on `dtype`. `max_length`, `overlong` and
    `chat_template` change the model's input and therefore the rewards.
    """

    batch_size: int = option(32, least=1)
    """Conversations per forward pass with padded rows."""

    tokens_per_batch: int = option(8192, least=1)
    """Tokens per forward pass with packed rows."""

    layout: LayoutChoice = "auto"
    """`auto` encodes a prompt once for all its responses, if a probe shows that the model supports this; else `padded`.
    """

    padding_side: Literal["right", "left"] = "right"
    """Side on which short rows are padded: `right` or `left`. Stock classifiers are always padded on the right, because
    many count positions, or pool, from the left.
    """

    device: str | None = None
    """Device for the computation. Default: a GPU if there is one."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Dtype of the weights, including a reference policy's. `auto`: as the model was saved, or the run trained."""

    chat_template: str | None = None
    """Chat template that replaces the model's own or a missing one: a file, or `default` for hafrm's plain template."""

    max_length: int | None = option(None, least=2)
    """Maximum tokens of a conversation. Default: the run's value, or 512."""

    overlong: Overlong | None = None
    """`drop` gives over-long conversations no reward, `truncate` cuts them. Default: the run's value."""

    objective: int | None = None
    """For a reward model with a custom class and several objectives: the one to score with, counted from 0."""

    pessimism: float = option(0.0, least=0)
    """For a run with several reward heads (`loss.heads`): subtract this many standard errors, the spread of the heads,
    from the reward.
    """

    scored_at: Literal["auto", "template", "stop_token"] = "auto"
    """Where a conversation is scored: at the end of everything the chat template writes, or at the stop token, as in
    OpenRLHF's training. `auto`: `stop_token` for models saved by OpenRLHF, else `template`.
    """

    special_tokens: SpecialTokenRule | None = None
    """Encoding of special tokens in messages, such as </s> or <|im_end|>: `text` as plain characters; `token` as
    special tokens, as in training and other programs; `refuse` gives such conversations no reward. Default: `text`, but
    `token` in `hafrm evaluate`, which encodes pairs as in training.
    """

    def __post_init__(self) -> None:
        check(self, "score.")

    def as_in_training(self) -> ScoreOptions:
        """Return these options with special tokens encoded as in training, unless set otherwise."""
        return replace(self, special_tokens=self.special_tokens or "token")

    def without_pessimism(self) -> ScoreOptions:
        """Return these options for a scorer that judges others, since only they are pessimistic."""
        return replace(self, pessimism=0.0)

    def given(self) -> list[str]:
        """Return the names of the options that differ from their defaults, as users write them."""
        return [f"score.{each.name}" for each in fields(self) if getattr(self, each.name) != each.default]

    def torch_device(self) -> torch.device:
        """Return the device for the computation.

        Raises:
            ConfigError: the device does not exist here.
        """
        import torch

        try:
            device = torch.device(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise ConfigError(f"device {self.device!r} can't be used here: {first_line(error)}") from error
        return device

    def torch_dtype(self) -> torch.dtype | None:
        """Return the dtype of the weights; None: as the model was saved."""
        import torch

        found: torch.dtype | None = None if self.dtype == "auto" else getattr(torch, self.dtype)
        return found

    def template(self) -> str | None:
        """Return the chat template that replaces the model's own; None if not set.

        Raises:
            ConfigError: the file can't be read.
        """
        return chat_template(self.chat_template, "score.chat_template")


def chat_template(name: str | None, setting: str) -> str | None:
    """Return the template that an option names: a file, or `default` for hafrm's plain one; None if it is not set.

    Raises:
        ConfigError: the file can't be read.
    """
    if name in (None, "default"):
        return name and DEFAULT_CHAT_TEMPLATE
    try:
        text = Path(name).read_text(encoding="utf-8")
        if not text.strip():
            raise ValueError("it is empty")
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{setting}: {name} can't be read ({first_line(error)}). Give a text file that contains a Jinja template, "
            "or `default`."
        ) from error
    return text


@dataclass(frozen=True, kw_only=True)
class ScorerChoice:
    """Options of every scoring command that choose one of a model's scores."""

    head: Head | None = None
    """Head of a run that scores: `reward`, `policy` or `combined`. Default: the trained one."""

    reference: str | None = None
    """Reference policy of implicit rewards. Default: the model from which the run was trained."""

    combined_weight: float | None = None
    """w of the combined score, reward + w * tau * log-ratio. Default: the value that the run fitted on its validation
    pairs.
    """

    trust_remote_code: bool = False
    """Run Python code that comes with the model. Such code can do anything that you can: leave this off unless you
    trust it.
    """

    def __post_init__(self) -> None:
        check(self)
        if self.combined_weight is not None and self.head != "combined":
            raise ConfigError("combined_weight only affects the combined score: add --head combined.")
        if self.reference is not None and self.head == "reward":
            raise ConfigError("reference has no effect on the reward head: leave it out, or choose another --head.")

    def chosen(self) -> list[str]:
        """Return the names of the options that are set and choose a score."""
        return [name for name in ("head", "reference", "combined_weight") if getattr(self, name) is not None]

    def load(self, model: str, options: ScoreOptions) -> Scorer:
        """Load a model's scorer with these options; see `load_scorer`."""
        from hafrm.models.loading import load_chosen

        return load_chosen(model, self, options)


def require_plain(server: str, choice: ScorerChoice) -> None:
    """Raise ModelError if options choose one of a server's scores, which depend on how it was started."""
    if asked := choice.chosen():
        raise ModelError(
            f"{server} is a server, which was configured at its start: --{' and --'.join(asked)} has no effect. "
            "Leave it out, or evaluate the other models in a separate command."
        )


def require_server_options(server: str, choice: ScorerChoice, options: ScoreOptions) -> None:
    """Raise ConfigError if options of local models are given although all models are servers."""
    endpoint, _ = endpoint_of(server)  # validated before a message names it: it may contain a password
    asked = choice.chosen() + ["trust_remote_code"] * choice.trust_remote_code
    asked += [name for name in options.given() if name != "score.batch_size"]
    if asked:
        raise ConfigError(
            f"{endpoint} is a server, which was configured at its start: --{' and --'.join(asked)} has no effect. "
            "Leave it out, or restart the server with it."
        )


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Write a run's heads as plain checkpoints for other programs."""

    run: str
    """The run's folder."""

    out: str | None = None
    """Folder for `reward/` and `policy/`; by default `export` in the run's folder."""

    trust_remote_code: bool = False
    """Run Python code that comes with the model. Such code can do anything that you can: leave this off unless you
    trust it.
    """

    def __post_init__(self) -> None:
        check(self)
