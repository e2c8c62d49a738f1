"""Training runs that experiments share: each is named by what it is, trained once, and found again.

A run's folder is OUT/SCALE/runs/BACKBONE/SETS/METHOD-seedN, with what differs from the method's defaults in its name. A
finished run with the same options is used as it is, an unfinished one goes on from its last checkpoint, and one with
other options is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from hafrm import atomic
from hafrm.data import DataOptions, local_path
from hafrm.paper.drawing import Drawn, is_as_drawn, print_of_drawn, print_of_pairs
from hafrm.paper.scales import Scale, in_paper_order
from hafrm.training.config import LossConfig, Method, TrainConfig
from hafrm.training.folders import run_lock
from hafrm.training.manifest import changed_options, is_finished, read_manifest, refuse_other_options
from hafrm.training.run import train

__all__ = [
    "LOSSES",
    "OTHER_OPTIONS",
    "Run",
    "RunState",
    "command",
    "data_prints",
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
    require_same_options(scale, run, out)
    if is_finished(folder):
        return folder
    with run_lock(folder):  # another command may be training it
        require_same_options(scale, run, out)
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
    """Write the files of a mixture or of a part of a set, where they are not there yet or their source has changed."""
    for path, drawn in _drawn_files(scale, run, out).items():
        if not is_as_drawn(path, drawn):
            with atomic.new_file(path) as file:
                file.writelines(atomic.json_line(pair.as_row()) for pair in drawn.pairs())


def _losses(run: Run) -> LossConfig:
    base = LossConfig() if run.loss is None else LOSSES[run.loss]
    return base if run.policy_ratio is None else replace(base, policy_ratio=run.policy_ratio)


def other_options(scale: Scale, run: Run, out: Path, *, shown: bool = False) -> str:
    """The options and data in which a folder's run differs from what is asked for; empty where none does, or no run is.

    Args:
        scale: Backbones, pairs and options.
        run: The run.
        out: The root that experiments share; it may have been moved since, and the data files, too.
        shown: Compare with the backbone as a plan prints it, and make no model for that.
    """
    manifest = read_manifest(run.folder(scale, out))
    if manifest is None:
        return ""
    backbone = scale.backbone(run.backbone)
    model = backbone.shown if shown else backbone.model()
    if shown and scale.name == "world":  # its backbones are made when they are needed, and not called as they are shown
        model = manifest["config"]["model"]
    config = train_config(scale, run, out, model=model)
    data = _changed_data(manifest, config, data_prints(scale, run, out))
    held = {name: manifest["config"][name] for name in ("data", "eval_data")}
    return ", ".join(filter(None, (changed_options(manifest, replace(config, **held)), data)))


def require_same_options(scale: Scale, run: Run, out: Path) -> None:
    """Refuse to show the run of another scale, length or rate, or of other pairs, as this one's.

    Raises:
        ConfigError: the folder holds a run with other options.
    """
    refuse_other_options(other_options(scale, run, out), run.folder(scale, out))


def shown_state(scale: Scale, run: Run, out: Path) -> str:
    """What a plan says of a run's folder."""
    changed = other_options(scale, run, out, shown=True)
    return f"{OTHER_OPTIONS}: {changed}" if changed else state_of(run.folder(scale, out))


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


def _mixture_files(scale: Scale, sets: Sequence[str], split: str, out: Path) -> dict[str, Path]:
    folder = out / scale.name / "mixtures" / f"{'+'.join(sets)}{scale.cap_suffix}"
    return {name: folder / f"{name}-{split}.jsonl" for name in sets}


def _drawn_files(scale: Scale, run: Run, out: Path) -> dict[Path, Drawn]:
    """The files of a run's own: a part of its set, or equally many pairs of each, as many as the smallest has.

    The paper samples "evenly" from its sets (section 4.1.2) and does not say how many pairs.
    """
    if _is_cut(scale, run):
        source = scale.sets[run.sets[0]].train
        drawn = Drawn(source=source, split="train", beside=(source,), cap=scale.cap, share=run.share)
        return {_cut_file(scale, run, out): drawn}
    if len(run.sets) == 1 or scale.mixed is not None:
        return {}
    found = {}
    splits: tuple[Literal["train", "validation"], ...] = ("train", "validation")
    for split in splits:
        cap = scale.cap if split == "train" else None
        sources = {name: getattr(scale.sets[name], split) for name in run.sets}
        for name, path in _mixture_files(scale, run.sets, split, out).items():
            found[path] = Drawn(source=sources[name], split=split, beside=tuple(sources.values()), cap=cap)
    return found


def data_prints(scale: Scale, run: Run, out: Path) -> dict[str, str | None]:
    """The fingerprints of a run's pairs as they would be read or drawn now, by data name.

    None stands for sets of the world and the hub, which are known by their names alone.
    """
    drawn = {str(path): each for path, each in _drawn_files(scale, run, out).items()}
    config = train_config(scale, run, out, model="")
    found: dict[str, str | None] = {}
    for split, names in (("train", config.data), ("validation", config.eval_data)):
        for name in names:
            if name in drawn:
                found[name] = print_of_drawn(drawn[name]) if drawn[name].can_change else None
            else:
                found[name] = None if local_path(name) is None else print_of_pairs(name, split)
    return found


def _changed_data(manifest: dict[str, Any], config: TrainConfig, prints: Mapping[str, str | None]) -> str:
    """The data that differ from a manifest's, in words. The same pairs may have moved; names that are no files may not.

    Args:
        manifest: That of the folder's run.
        config: What is asked for.
        prints: What `data_prints` gave.
    """
    changes = []
    for part, option in (("train", "data"), ("eval", "eval_data")):
        before, names = manifest["config"][option], getattr(config, option)
        sources = manifest["data"].get(part, {}).get("sources", [])
        if len(sources) != len(names):
            changes += [] if before == names else [f"{option} (was {before}, now {names})"]
            continue
        for old, name, source in zip(before, names, sources, strict=True):
            now = prints[name]
            if now is None and Path(old).parts[-2:] != Path(name).parts[-2:]:  # a set's name, or CUTS/FILE
                changes.append(f"{option} (was {old}, now {name})")
            elif now is not None and now != source["sha256"]:
                changes.append(f"{option} (was {old}, sha256 {source['sha256'][:8]}, now {name}, sha256 {now[:8]})")
    return ", ".join(changes)
