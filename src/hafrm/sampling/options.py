"""Options of `hafrm sample` and `hafrm best-of-n`. They load neither torch nor transformers."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from hafrm.data import ReadOptions
from hafrm.errors import ConfigError
from hafrm.judging.options import JudgeOptions
from hafrm.models.options import ScoreOptions, ScorerChoice
from hafrm.models.remote import is_server
from hafrm.options import check, option


@dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """Options for drawing responses."""

    top_p: float = option(0.9, above=0, most=1)
    """Nucleus sampling: draw from the most probable tokens that together have at least this probability."""

    temperature: float = option(1.0, above=0)
    max_new_tokens: int = option(256, least=1)
    """Maximum tokens of a response (256 in the paper's RLHF; not given for best-of-N)."""

    batch_size: int = option(32, least=1)
    """Responses drawn at a time; those of one prompt stay together. vLLM makes its own batches."""

    seed: int = 0
    """Random seed. The responses to a prompt do not depend on the other prompts."""

    def __post_init__(self) -> None:
        check(self, "sampling.")


Engine = Literal["auto", "transformers", "vllm"]


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """Sample responses to prompts from a causal language model."""

    model: str
    """A run, whose policy head generates, or a folder or hub id of a causal language model."""

    data: list[str]
    """Prompts: files whose rows have `prompt` or are pairs, or names of data sets."""

    out: str
    """The folder for samples.jsonl and manifest.json. If it contains a stopped run, that run is resumed."""

    n: int = option(8, least=1)
    """Responses per prompt (the paper: 8, and 4 for Phi-2). Equal ones are written once, with their count."""

    prompts: int | None = option(None, least=1)
    """Maximum number of distinct prompts; the first ones are used. Default: all."""

    split: str = "test"
    """Split to use of named data sets; a file is used whole."""

    sampling: SampleOptions = field(default_factory=SampleOptions)

    engine: Engine = "auto"
    """Sampling engine. `auto`: vLLM if it is installed, there is a GPU, no device is named, and the model is neither a
    run nor adapters, which vLLM can't load; else transformers.
    """

    chat_template: str | None = None
    """Chat template that replaces the model's own or a missing one: a file, or `default` for hafrm's plain template."""

    max_length: int | None = option(None, least=2)
    """Maximum tokens of a prompt with its response, by default the model's own limit. Longer prompts get no response.
    """

    device: str | None = None
    """Device for transformers, by default a GPU if there is one."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Dtype of the weights. `auto`: the one that the model was saved in."""

    trust_remote_code: bool = False
    """Run Python code that comes with the model. Such code can do anything that you can: leave this off unless you
    trust it.
    """

    data_options: ReadOptions = field(default_factory=ReadOptions)

    def __post_init__(self) -> None:
        check(self)
        if self.engine == "vllm" and self.device is not None:
            raise ConfigError("device has no effect with --engine vllm, which chooses its own: leave it out.")
        if is_server(self.model):
            raise ConfigError(f"{self.model} is a reward server, which generates no responses. Give a causal model.")

    @property
    def chosen_engine(self) -> Literal["transformers", "vllm"]:
        """Return the engine that is used on this machine; see `engine`."""
        if self.engine != "auto":
            return self.engine
        if self.device is not None or find_spec("vllm") is None:
            return "transformers"
        import torch

        from hafrm.models.runinfo import is_run

        whole = not (is_run(self.model) or (Path(self.model) / "adapter_config.json").exists())
        return "vllm" if whole and torch.cuda.is_available() else "transformers"

    @property
    def score_options(self) -> ScoreOptions:
        """Return the device, dtype and limit with which models are loaded."""
        return ScoreOptions(device=self.device, dtype=self.dtype, max_length=self.max_length)


@dataclass(frozen=True, kw_only=True)
class BestOfNConfig(ScorerChoice):
    """Let scorers choose the best of several responses, and measure the gain from their choice."""

    models: list[str]
    """Scorers: runs, stock reward models, causal models with their reference, addresses of reward servers, or
    `world/NAME`, the true reward of a set of the simulated world.
    """

    samples: str
    """The folder of a `hafrm sample`, or a file of rows with `prompt` and `responses`."""

    out: str
    """The folder for results.json, selections.jsonl and the page. Scores of an earlier run in it are reused."""

    judge: JudgeOptions | None = None
    """The judge of the responses. `reward` and `oracle` give rewards, needed for the curve over n; `openai` ranks the
    draws and compares what scorers selected; `local` only compares. Without a judge, only agreement is computed.
    """

    seed: int = 0
    """Seed for the order in which a judge is shown responses."""

    data_options: ReadOptions = field(default_factory=ReadOptions)
    score: ScoreOptions = field(default_factory=ScoreOptions)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.models:
            raise ConfigError("models: name at least one.")
        if len(set(self.models)) < len(self.models):
            raise ConfigError(f"models: {', '.join(self.models)} contains a name twice.")

    @property
    def gold(self) -> bool:
        """Whether the judge gives rewards."""
        return self.judge is not None and self.judge.kind in ("reward", "oracle")
