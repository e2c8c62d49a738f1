"""Training runs that experiments share: each is named by what it is, trained once, and found again.

A run's folder is OUT/SCALE/runs/BACKBONE/SETS/METHOD-seedN, with what differs from the method's defaults in its name. A
finished run with the same options is used as it is, an unfinished one goes on from its last checkpoint, and one with
other options is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hafrm import atomic
from hafrm.data import DataOptions, PairSet, load_pairs
from hafrm.errors import ConfigError
from hafrm.reproduce.scales import Scale, in_paper_order
from hafrm.rlhf.options import RlhfConfig
from hafrm.training.config import LossConfig, Method, TrainConfig
from hafrm.training.manifest import changed_options, is_finished, read_manifest
from hafrm.training.run import train

__all__ = [
    "LOSSES",
    "OTHER_OPTIONS",
    "Run",
    "RunState",
    "command",
    "other_options",
    "require_same_options",
    "shown_state",
    "state_of",
    "train_config",
    "train_missing",
    "trained",
    "write_data",
]

RunState = Literal["finished", "unfinished", "missing"]

Say = Callable[[str], None]

OTHER_OPTIONS = "other options"
"""How the state begins of a run that a command would refuse."""

LOSSES: Mapping[str, LossConfig] = {
    "ipo": LossConfig(policy_loss="ipo"),
    "simpo": LossConfig(policy_loss="simpo", beta=2.0),  # log-probs a token are small: its source begins at 2
    "sft": LossConfig(policy_loss="sft"),
    "probit": LossConfig(reward_loss="probit"),
    "cauchy": LossConfig(reward_loss="cauchy"),
    "hinge": LossConfig(reward_loss="hinge"),
}
"""Losses that a run of HAF may have instead of DPO and Bradley-Terry, by the one that differs."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training run of an experiment."""

    backbone: str
    """A backbone of the scale."""
    sets: tuple[str, ...]
    """The paper's names of the sets that it is trained on; several are sampled evenly."""
    method: Method
    seed: int = 0
    policy_ratio: float | None = None
    """Weight of HAF's policy loss; None is the paper's 0.2."""
    loss: str | None = None
    """The loss of `LOSSES` that differs from the paper's; None: none does."""
    share: int = 1
    """It is trained on one in so many pairs."""
    keep_checkpoints: bool = False
    """Whether every checkpoint stays, for experiments that compare them."""

    @property
    def name(self) -> str:
        """The run's folder below `runs`."""
        ratio = "" if self.policy_ratio is None else f"-ratio{self.policy_ratio:g}"
        loss = "" if self.loss is None else f"-{self.loss}"
        share = "" if self.share == 1 else f"-1of{self.share}"
        kept = "-checkpoints" if self.keep_checkpoints else ""
        return f"{self.backbone}/{'+'.join(self.sets)}/{self.method}{ratio}{loss}{share}-seed{self.seed}{kept}"

    def folder(self, scale: Scale, out: Path) -> Path:
        """Where the run lies; where rates are being chosen, each rate's run has a folder of its own."""
        rate = f"-lr{scale.backbone(self.backbone).learning_rates[self.method]:g}" if scale.tuned else ""
        return out / scale.name / "runs" / f"{self.name}{rate}"


def trained(
    scale: Scale,
    method: Method,
    sets: Sequence[str],
    seed: int,
    out: Path,
    *,
    backbone: str | None = None,
    policy_ratio: float | None = None,
) -> Path:
    """The folder of a finished run; trains it first where it is missing.

    Args:
        scale: Backbones, pairs and options.
        method: `haf`, `baseline` or `dpo`.
        sets: The paper's names of the sets to train on; several are sampled evenly.
        seed: Seed of the run.
        out: The root that experiments share.
        backbone: A backbone of the scale; by default its first.
        policy_ratio: Weight of HAF's policy loss; by default the paper's 0.2.

    Raises:
        ConfigError: the folder holds a run with other options.
        HafrmError: training failed.
    """
    run = Run(
        backbone=scale.backbone(backbone).name,
        sets=in_paper_order(sets),
        method=method,
        seed=seed,
        policy_ratio=policy_ratio,
    )
    return train_missing(scale, run, out)


def train_missing(scale: Scale, run: Run, out: Path) -> Path:
    """The folder of a run, trained to its end; see `trained`."""
    config = train_config(scale, run, out, model=scale.backbone(run.backbone).model())
    folder = Path(config.out)
    require_same_options(config)
    if not is_finished(folder):
        write_data(scale, run, out)
        train(config)
    return folder


def train_config(scale: Scale, run: Run, out: Path, *, model: str) -> TrainConfig:
    """A run's options.

    Args:
        scale: Backbones, pairs and options.
        run: The run.
        out: The root that experiments share.
        model: The backbone's folder or hub id.
    """
    backbone = scale.backbone(run.backbone)
    return TrainConfig(
        model=model,
        data=[str(_cut_file(scale, run, out))] if _is_cut(scale, run) else _data(scale, run.sets, "train", out),
        eval_data=_data(scale, run.sets, "validation", out),
        out=str(run.folder(scale, out)),
        method=run.method,
        loss=_losses(run),
        lora=backbone.lora,
        data_options=DataOptions(max_length=scale.max_length),
        training={
            **scale.training,
            "learning_rate": backbone.learning_rates[run.method],
            "seed": run.seed,
            **({"save_total_limit": None} if run.keep_checkpoints else {}),
        },
        early_stopping=scale.early_stopping,
    )


def write_data(scale: Scale, run: Run, out: Path) -> None:
    """Write the files of a mixture or of a part of a set, where a run needs them and they are not there yet."""
    _write_mixture(scale, run.sets, out)
    _write_cut(scale, run, out)


def _losses(run: Run) -> LossConfig:
    base = LossConfig() if run.loss is None else LOSSES[run.loss]
    return base if run.policy_ratio is None else replace(base, policy_ratio=run.policy_ratio)


def other_options(config: TrainConfig | RlhfConfig, *, shown: bool = False) -> str:
    """The options in which a folder's run differs from what is asked for; empty where none does, or no run is.

    Args:
        config: What is asked for.
        shown: Whether its model is only how a plan prints it, which can't be compared.
    """
    manifest = read_manifest(Path(config.out))
    if manifest is None:
        return ""
    return changed_options(manifest, replace(config, model=manifest["config"]["model"]) if shown else config)


def require_same_options(config: TrainConfig | RlhfConfig) -> None:
    """Refuse to show the run of another scale, length or rate as this one's.

    Raises:
        ConfigError: the folder holds a run with other options.
    """
    if changed := other_options(config):
        raise ConfigError(f"{config.out} holds a run with other options: {changed}. Choose another --out.")


def shown_state(scale: Scale, config: TrainConfig | RlhfConfig) -> str:
    """What a plan says of a run's folder, where the config's model is the backbone's `shown`."""
    changed = other_options(config, shown=scale.name == "world")  # the world's backbones are made when they are needed
    return f"{OTHER_OPTIONS}: {changed}" if changed else state_of(Path(config.out))


def state_of(folder: Path) -> RunState:
    """Whether a run's folder holds a finished run, a part of one, or none."""
    if is_finished(folder):
        return "finished"
    return "missing" if read_manifest(folder) is None else "unfinished"


def command(config: TrainConfig) -> list[str]:
    """The words of the `hafrm train` that does the same; values that are the defaults are left out."""
    words = ["hafrm", "train", "--model", config.model, "--data", *config.data, "--eval_data", *config.eval_data]
    words += ["--method", config.method]
    defaults = asdict(LossConfig())
    for name, value in asdict(config.loss).items():
        if value != defaults[name]:
            words += [f"--loss.{name}={value:g}" if isinstance(value, float) else f"--loss.{name}={value}"]
    if config.lora.enabled:
        words += ["--lora.rank", str(config.lora.rank), "--lora.alpha", str(config.lora.alpha)]
    words += ["--data_options.max_length", str(config.data_options.max_length)]
    for name, value in config.training.items():
        words += [f"--training.{name}", _yaml(value)]
    if config.early_stopping:
        words += ["--early_stopping", str(config.early_stopping)]
    return [*words, "--out", config.out]


def _yaml(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _data(scale: Scale, sets: Sequence[str], split: Literal["train", "validation"], out: Path) -> list[str]:
    """The data names of a run's pairs: a set whole, or an even share of each of several."""
    if len(sets) == 1:
        return [getattr(scale.sets[sets[0]], split)]
    if scale.mixed is not None:
        size = scale.mixed[split]
        if split == "train" and scale.cap is not None:
            size = min(size, scale.cap)
        return [f"{getattr(scale.sets[name], split)}[:{size}]" for name in sets]
    return [str(path) for path in _mixture_files(scale, sets, split, out).values()]


def _is_cut(scale: Scale, run: Run) -> bool:
    """Whether a run has a file of its own, with a part of its set's pairs."""
    return len(run.sets) == 1 and (run.share > 1 or scale.cap is not None)


def _cut_file(scale: Scale, run: Run, out: Path) -> Path:
    return out / scale.name / "cuts" / f"{run.sets[0]}-1of{run.share}{scale.cap_suffix}.jsonl"


def _write_cut(scale: Scale, run: Run, out: Path) -> None:
    """Write a part of a set's training pairs: a smaller part is always a part of a larger one."""
    if not _is_cut(scale, run) or (path := _cut_file(scale, run, out)).exists():
        return
    loaded = load_pairs(scale.sets[run.sets[0]].train, split="train")
    whole = len(loaded.pairs) if scale.cap is None else min(len(loaded.pairs), scale.cap)
    with atomic.new_file(path) as file:
        file.writelines(_sampled_lines(loaded, max(1, whole // run.share)))


def _mixture_files(scale: Scale, sets: Sequence[str], split: str, out: Path) -> dict[str, Path]:
    folder = out / scale.name / "mixtures" / f"{'+'.join(sets)}{scale.cap_suffix}"
    return {name: folder / f"{name}-{split}.jsonl" for name in sets}


def _write_mixture(scale: Scale, sets: Sequence[str], out: Path) -> None:
    """Write equally many pairs of each set, as many as the smallest has, where data names can't be cut.

    The paper samples "evenly" from its sets (section 4.1.2) and does not say how many pairs.
    """
    if len(sets) == 1 or scale.mixed is not None:
        return
    for split in ("train", "validation"):
        files = _mixture_files(scale, sets, split, out)
        if all(path.exists() for path in files.values()):
            continue
        loaded = {name: load_pairs(getattr(scale.sets[name], split), split=split) for name in sets}
        size = min(len(pair_set.pairs) for pair_set in loaded.values())
        if scale.cap is not None and split == "train":
            size = min(size, scale.cap)
        for name, path in files.items():
            with atomic.new_file(path) as file:
                file.writelines(_sampled_lines(loaded[name], size))


def _sampled_lines(pair_set: PairSet, size: int) -> Iterator[bytes]:
    places = np.random.default_rng(0).permutation(len(pair_set.pairs))[:size]
    return (atomic.json_line(pair_set.pairs[place].as_row()) for place in sorted(places))
