"""Read, write and compare a run's `manifest.json`: its options, data, code versions and results."""

from __future__ import annotations

import json
import math
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedConfig, TrainingArguments

from hafrm import atomic
from hafrm.errors import ConfigError
from hafrm.models.runinfo import manifest_problem, versions
from hafrm.store import changed_values, read_json, was
from hafrm.training.arguments import FREE_ON_RESUME

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from hafrm.training.config import TrainConfig

MANIFEST_FILE = "manifest.json"

_OF_A_START = ("started", "git_revision", "versions")
"""Fields that describe one start of the run: its time and the program versions."""

_FREE_TO_CHANGE = {"overwrite", "out", "trust_remote_code", "data_options.tokens_per_batch"}
"""Options that may differ when a run is resumed, in addition to some of transformers' (`FREE_ON_RESUME`)."""

_SPLIT = ("per_device_train_batch_size", "gradient_accumulation_steps", "world_size")
"""Settings whose product is the number of pairs per step: each may change on resume, the product may not."""

_EFFECTIVE = """
    learning_rate lr_scheduler_type lr_scheduler_kwargs warmup_steps optim optim_args adam_beta1 adam_beta2 adam_epsilon
    weight_decay max_grad_norm per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps
    max_steps num_train_epochs bf16 fp16 tf32 seed data_seed eval_strategy eval_steps save_strategy save_steps
""".split()
"""The fields of TrainingArguments that a manifest records with their resolved values."""


def new_manifest(config: DataclassInstance, data: dict[str, Any], effective: dict[str, Any]) -> dict[str, Any]:
    """Build the manifest of a new run; `data` has the sources and the counts of rows for training and validation."""
    return {
        "format": 1,
        "status": "running",
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": asdict(config),
        "effective": effective,
        "data": data,
        "seed": effective["seed"],
        "git_revision": git_revision(),
        "versions": {
            "python": platform.python_version(),
            **versions("hafrm", "torch", "transformers", "peft", "accelerate", "datasets"),
        },
    }


def resumed_manifest(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """Build a resumed run's manifest: the settings of `now`, the start of `before`, and this start under "resumed"."""
    beginning = {name: before[name] for name in _OF_A_START if name in before}
    going_on = {name: now[name] for name in _OF_A_START}
    return now | beginning | {"resumed": [*before.get("resumed", []), going_on]}


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Return the manifest of a run's folder; None if there is no readable one.

    Raises:
        ConfigError: the manifest is a run's, but damaged.
    """
    path = folder / MANIFEST_FILE
    value = read_json(path)
    # Other programs have manifests too: a web app's must not make its folder a run that may be overwritten.
    if value is None or value.get("format") != 1 or not {"status", "config", "data"} <= value.keys():
        return None
    if problem := manifest_problem(value):
        raise ConfigError(f"{path}: {problem}. It is damaged: restore it from a copy, or choose another --out.")
    return value


def is_finished(folder: Path) -> bool:
    """Return whether a folder contains a finished run."""
    return (read_manifest(folder) or {}).get("status") == "finished"


def save_manifest(manifest: dict[str, Any], folder: Path) -> None:
    """Write the manifest."""
    atomic.write_json(folder / MANIFEST_FILE, manifest)


def effective_settings(
    args: TrainingArguments, config: TrainConfig, model: PreTrainedConfig, sharding: str | None
) -> dict[str, Any]:
    """Resolve the options on this machine, defaults included, with the hub revision that the model's config records."""
    resolved = args.to_dict()
    return {name: resolved[name] for name in _EFFECTIVE} | {
        "dtype": str(config.torch_dtype).removeprefix("torch."),
        "device": str(args.device),
        "world_size": args.world_size,
        "sharding": sharding,
        "model_revision": getattr(model, "_commit_hash", None),
    }


def changed_options(manifest: dict[str, Any], config: DataclassInstance) -> str:
    """Describe the options in which a run's manifest differs from a config, with both values; empty if none does."""
    before, now = _compared(manifest, config)
    return changed_values(before, now, free=_is_free)


def _compared(manifest: dict[str, Any], config: DataclassInstance) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the options of a manifest and of a config, to compare.

    An option that the manifest lacks, because it was added later, counts as its default, which keeps the earlier
    behaviour.
    """
    before, now = (json.dumps(held) for held in (_with_defaults(manifest["config"], config), asdict(config)))
    return json.loads(before), json.loads(now)


def _with_defaults(values: Mapping[str, Any], config: DataclassInstance) -> dict[str, Any]:
    """Return values, with defaults for the config's fields that they lack."""
    found = dict(values)
    for each in fields(config):
        now, held = getattr(config, each.name), values.get(each.name, {})
        if is_dataclass(now) and not isinstance(now, type) and isinstance(held, dict):
            found[each.name] = _with_defaults(held, now)
        elif each.default is not MISSING:
            found.setdefault(each.name, each.default)
        elif each.default_factory is not MISSING:
            found.setdefault(each.name, each.default_factory())
    return found


def refuse_other_options(changed: str, folder: Path) -> None:
    """Raise ConfigError if the finished run in the folder has other options, as `changed_options` describes them."""
    if changed:
        raise ConfigError(f"{folder} contains a run with other options: {changed}. Choose another --out.")


def require_same_config(manifest: dict[str, Any], config: DataclassInstance, folder: Path) -> None:
    """Raise ConfigError unless a run is resumed with the options that it started with."""
    before, now = _compared(manifest, config)
    for held in (before, now):
        for name in _SPLIT:  # `require_same_settings` checks their product
            held.get("training", {}).pop(name, None)
    _require_none(changed_values(before, now, free=_is_free), "with other options", folder)


def require_same_data(manifest: dict[str, Any], data: dict[str, Any], folder: Path) -> None:
    """Raise ConfigError unless a run is resumed on the pairs that it started with."""
    for part in ("train", "eval"):
        before, now = (held.get(part, {}) for held in (manifest["data"], data))
        for old, new in zip(before.get("sources", []), now.get("sources", []), strict=False):
            kept = [f"{source['kept']} pairs, sha256 {source['sha256'][:12]}" for source in (old, new)]
            _require_none("" if kept[0] == kept[1] else was(new["name"], *kept), "on other data", folder)
        pairs = before.get("pairs"), now.get("pairs")
        what = f"pairs of {part} data within the limit, as this tokenizer encodes them"
        _require_none("" if pairs[0] == pairs[1] else was(what, *pairs), "on other data", folder)


def require_same_settings(manifest: dict[str, Any], effective: dict[str, Any], folder: Path) -> None:
    """Raise ConfigError if weights, precision, pairs per step or sharding differ from the run's start.

    Settings that an older version did not record may differ. The device may differ too (the precision shows its kind),
    and so may the number of processes at the same number of pairs per step, except under ZeRO, which keeps the
    optimizer per process.
    """
    if before := manifest.get("effective"):
        now = json.loads(json.dumps(effective))
        changes = changed_values(_resumable(now | before), _resumable(now), free=_is_free)
        _require_none(changes, "with other settings", folder)


def _resumable(effective: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a run that must not change when it is resumed."""
    kept = {name: value for name, value in effective.items() if name not in (*_SPLIT, "device")}
    kept["pairs of a step"] = math.prod(effective[name] for name in _SPLIT)
    if str(effective.get("sharding")).startswith("zero"):
        kept["world_size"] = effective["world_size"]
    return kept


def _is_free(name: str) -> bool:
    first, _, rest = name.partition(".")
    return not _FREE_TO_CHANGE.isdisjoint({first, name}) or (
        first == "training" and rest.split(".")[0] in FREE_ON_RESUME
    )


def _require_none(changes: str, what: str, folder: Path) -> None:
    if changes:
        raise ConfigError(
            f"{folder} contains an unfinished run {what}: {changes}. Choose another --out, or --overwrite true."
        )


@cache
def git_revision() -> str | None:
    """Return the revision of hafrm's source if it runs from a git checkout; "+changes" marks modified files."""

    def git(*words: str) -> str:
        argv = ["git", "-C", str(Path(__file__).parent), *words]
        return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", __file__)  # fails if hafrm is installed inside another project's checkout
        return git("describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+changes")
    except (OSError, subprocess.SubprocessError):
        return None


def environment() -> dict[str, Any]:
    """Return what results were computed with: program versions, the code's revision and the machine."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {
        "versions": {"python": platform.python_version()} | versions("hafrm", "torch", "transformers"),
        "git_revision": git_revision(),
        "machine": {"device": device, "processor": processor(), "threads": torch.get_num_threads()},
    }


def processor() -> str:
    """Return the processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())
