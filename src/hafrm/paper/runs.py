"""Training runs shared by experiments: each is named by its settings, trained once, and later found by its name.

A run's folder is OUT/SCALE/runs/BACKBONE/SETS/METHOD-seedN, extended by settings that differ from the method's
defaults. A finished run with the same options is reused, an unfinished one resumes from its last checkpoint, and one
with other options raises an error.
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
from hafrm.store import alone
from hafrm.training.config import LossConfig, Method, TrainConfig
from hafrm.training.manifest import changed_options, is_finished, read_manifest, refuse_other_options
from hafrm.training.run import train

RunState = Literal["finished", "unfinished", "missing"]

Say = Callable[[str], None]

OTHER_OPTIONS = "other options"
"""Prefix of the state shown for a run that would be refused."""

LOSSES: Mapping[str, LossConfig] = {
    "ipo": LossConfig(policy_loss="ipo"),
    "simpo": LossConfig(policy_loss="simpo", beta=2.0),  # per-token log-probs are small: its paper uses 2 and more
    "sft": LossConfig(policy_loss="sft"),
    "probit": LossConfig(reward_loss="probit"),
    "cauchy": LossConfig(reward_loss="cauchy"),
    "hinge": LossConfig(reward_loss="hinge"),
}
"""Losses that can replace DPO or Bradley-Terry in a HAF run, by name."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training run of an experiment."""

    backbone: str
    """Backbone of the scale."""
    sets: tuple[str, ...]
    """Paper names of the training sets; several are sampled evenly."""
    method: Method
    seed: int = 0
    policy_ratio: float | None = None
    """Weight of HAF's policy loss; None is the paper's 0.2."""
    loss: str | None = None
    """Name in `LOSSES` of a loss that replaces one of the paper's; None keeps the paper's losses."""
    share: int = 1
    """Train on 1/share of the pairs."""
    keep_checkpoints: bool = False
    """Whether to keep every checkpoint, for experiments that compare them."""

    @property
    def name(self) -> str:
        """Run folder, relative to `runs`."""
        ratio = "" if self.policy_ratio is None else f"-ratio{self.policy_ratio:g}"
        loss = "" if self.loss is None else f"-{self.loss}"
        share = "" if self.share == 1 else f"-1of{self.share}"
        kept = "-checkpoints" if self.keep_checkpoints else ""
        return f"{self.backbone}/{'+'.join(self.sets)}/{self.method}{ratio}{loss}{share}-seed{self.seed}{kept}"

    def folder(self, scale: Scale, out: Path) -> Path:
        """Return the run's folder; while learning rates are being chosen, its name includes the rate."""
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
    """Return the folder of a finished run, training it first if necessary.

    Args:
        scale: Backbones, pairs and options.
        method: `haf`, `baseline` or `dpo`.
        sets: Paper names of the training sets; several are sampled evenly.
        seed: Seed of the run.
        out: Output root shared by experiments.
        backbone: A backbone of the scale; by default its first.
        policy_ratio: Weight of HAF's policy loss; by default the paper's 0.2.

    Raises:
        ConfigError: the folder contains a run with other options.
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
    """Return the folder of a run, training it first if it is unfinished; see `trained`."""
    config = train_config(scale, run, out, model=scale.backbone(run.backbone).model())
    folder = Path(config.out)
    require_same_options(scale, run, out)
    if is_finished(folder):
        return folder
    with alone(folder, beside=True, wait=True):  # another command may be training it
        require_same_options(scale, run, out)
        if not is_finished(folder):
            write_data(scale, run, out)
            train(config)
    return folder


def train_config(scale: Scale, run: Run, out: Path, *, model: str) -> TrainConfig:
    """Return a run's options.

    Args:
        scale: Backbones, pairs and options.
        run: The run.
        out: Output root shared by experiments.
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
    """Write the files of a mixture or of part of a set, if they are missing or their source has changed."""
    for path, drawn in _drawn_files(scale, run, out).items():
        if not is_as_drawn(path, drawn):
            with atomic.new_file(path) as file:
                file.writelines(atomic.json_line(pair.as_row()) for pair in drawn.pairs())


def _losses(run: Run) -> LossConfig:
    base = LossConfig() if run.loss is None else LOSSES[run.loss]
    return base if run.policy_ratio is None else replace(base, policy_ratio=run.policy_ratio)


def other_options(scale: Scale, run: Run, out: Path, *, shown: bool = False) -> str:
    """Describe the options and data in which the run in the folder differs from the request.

    Args:
        scale: Backbones, pairs and options.
        run: The run.
        out: Output root shared by experiments; it and the data files may have moved since.
        shown: Compare with the backbone's display name instead of making the model.

    Returns:
        The differences in words; empty if there are none or the folder has no run.
    """
    manifest = read_manifest(run.folder(scale, out))
    if manifest is None:
        return ""
    backbone = scale.backbone(run.backbone)
    model = backbone.shown if shown else backbone.model()
    if shown and scale.name == "world":  # world backbones have other names in manifests
        model = manifest["config"]["model"]
    config = train_config(scale, run, out, model=model)
    data = _changed_data(manifest, config, data_prints(scale, run, out))
    held = {name: manifest["config"][name] for name in ("data", "eval_data")}
    return ", ".join(filter(None, (changed_options(manifest, replace(config, **held)), data)))


def require_same_options(scale: Scale, run: Run, out: Path) -> None:
    """Raise if the folder's run has another scale, length or rate, or other pairs.

    Raises:
        ConfigError: the folder contains a run with other options.
    """
    refuse_other_options(other_options(scale, run, out), run.folder(scale, out))


def shown_state(scale: Scale, run: Run, out: Path) -> str:
    """Return the state of a run's folder as shown in a plan."""
    changed = other_options(scale, run, out, shown=True)
    return f"{OTHER_OPTIONS}: {changed}" if changed else state_of(run.folder(scale, out))


def state_of(folder: Path) -> RunState:
    """Return whether a folder contains a finished run, an unfinished one, or none."""
    if is_finished(folder):
        return "finished"
    return "missing" if read_manifest(folder) is None else "unfinished"


def command(config: TrainConfig) -> list[str]:
    """Return the equivalent `hafrm train` command as words, without options that have their default value."""
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
    """Return the data names of a run's pairs: one whole set, or an even share of each of several."""
    if len(sets) == 1:
        return [getattr(scale.sets[sets[0]], split)]
    if scale.mixed is not None:
        size = scale.mixed[split]
        if split == "train" and scale.cap is not None:
            size = min(size, scale.cap)
        return [f"{getattr(scale.sets[name], split)}[:{size}]" for name in sets]
    return [str(path) for path in _mixture_files(scale, sets, split, out).values()]


def _is_cut(scale: Scale, run: Run) -> bool:
    """Return whether a run trains on its own file with part of its set's pairs."""
    return len(run.sets) == 1 and (run.share > 1 or scale.cap is not None)


def _cut_file(scale: Scale, run: Run, out: Path) -> Path:
    return out / scale.name / "cuts" / f"{run.sets[0]}-1of{run.share}{scale.cap_suffix}.jsonl"


def _mixture_files(scale: Scale, sets: Sequence[str], split: str, out: Path) -> dict[str, Path]:
    folder = out / scale.name / "mixtures" / f"{'+'.join(sets)}{scale.cap_suffix}"
    return {name: folder / f"{name}-{split}.jsonl" for name in sets}


def _drawn_files(scale: Scale, run: Run, out: Path) -> dict[Path, Drawn]:
    """Return the files written for a run: part of its set, or from each set as many pairs as the smallest has.

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
    """Return the fingerprints of a run's pairs as they would be read or sampled now, by data name.

    None is used for sets of the world and the hub, which are identified by name only.
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
    """Describe the data that differ from a manifest's.

    Files may have moved if their pairs are the same; names of other data must match.

    Args:
        manifest: Manifest of the folder's run.
        config: The requested options.
        prints: Result of `data_prints`.
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
