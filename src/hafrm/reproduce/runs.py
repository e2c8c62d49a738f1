"""Training runs that experiments share: each is named by what it is, trained once, and found again.

A run's folder is OUT/SCALE/runs/BACKBONE/SETS/METHOD-seedN. A finished run with the same options is used as it is, an
unfinished one goes on from its last checkpoint, and one with other options is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
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

__all__ = ["Run", "RunState", "command", "require_same_options", "state_of", "train_config", "train_missing", "trained"]

RunState = Literal["finished", "unfinished", "missing"]

Say = Callable[[str], None]


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
    keep_checkpoints: bool = False
    """Whether every checkpoint stays, for experiments that compare them."""

    @property
    def name(self) -> str:
        """The run's folder below `runs`."""
        ratio = "" if self.policy_ratio is None else f"-ratio{self.policy_ratio:g}"
        kept = "-checkpoints" if self.keep_checkpoints else ""
        return f"{self.backbone}/{'+'.join(self.sets)}/{self.method}{ratio}-seed{self.seed}{kept}"

    def folder(self, scale: Scale, out: Path) -> Path:
        """Where the run lies."""
        return out / scale.name / "runs" / self.name


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
        _write_mixture(scale, run.sets, out)
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
        data=_data(scale, run.sets, "train", out),
        eval_data=_data(scale, run.sets, "validation", out),
        out=str(run.folder(scale, out)),
        method=run.method,
        loss=LossConfig() if run.policy_ratio is None else LossConfig(policy_ratio=run.policy_ratio),
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


def require_same_options(config: TrainConfig | RlhfConfig) -> None:
    """Refuse to show the run of another scale, length or rate as this one's.

    Raises:
        ConfigError: the folder holds a run with other options.
    """
    manifest = read_manifest(Path(config.out))
    changed = changed_options(manifest, config) if manifest is not None else ""
    if changed:
        raise ConfigError(f"{config.out} holds a run with other options: {changed}. Choose another --out.")


def state_of(folder: Path) -> RunState:
    """Whether a run's folder holds a finished run, a part of one, or none."""
    if is_finished(folder):
        return "finished"
    return "missing" if read_manifest(folder) is None else "unfinished"


def command(config: TrainConfig) -> list[str]:
    """The words of the `hafrm train` that does the same; values that are the defaults are left out."""
    words = ["hafrm", "train", "--model", config.model, "--data", *config.data, "--eval_data", *config.eval_data]
    words += ["--method", config.method]
    if config.loss.policy_ratio != LossConfig().policy_ratio:
        words += [f"--loss.policy_ratio={config.loss.policy_ratio:g}"]  # "=": a negative value is no option
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
        return [f"{getattr(scale.sets[name], split)}[:{scale.mixed[split]}]" for name in sets]
    return [str(path) for path in _mixture_files(scale, sets, split, out).values()]


def _mixture_files(scale: Scale, sets: Sequence[str], split: str, out: Path) -> dict[str, Path]:
    folder = out / scale.name / "mixtures" / "+".join(sets)
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
        for name, path in files.items():
            with atomic.new_file(path) as file:
                file.writelines(_sampled_lines(loaded[name], size))


def _sampled_lines(pair_set: PairSet, size: int) -> Iterator[bytes]:
    places = np.random.default_rng(0).permutation(len(pair_set.pairs))[:size]
    return (atomic.json_line(pair_set.pairs[place].as_row()) for place in sorted(places))
