"""`hafrm.json`, the description of a run's folder: training, scoring, and checksums of its files."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from hafrm import atomic
from hafrm.encoding import Overlong
from hafrm.errors import ConfigError, DamagedError, ModelError, first_line
from hafrm.losses import loss_terms
from hafrm.models.checksums import (
    ADAPTER_FILE,
    ADAPTER_FOLDER,
    CARD_FILE,
    CARD_MARK,
    CHECKSUMS_FILE,
    INDEX_FILE,
    WHOLE_FILE,
    list_problem,
    require_checksums,
    require_listed,
)
from hafrm.models.options import Head, LoraOptions, Method
from hafrm.options import Rule, problem, types_of
from hafrm.store import read_json

RUN_FILE = "hafrm.json"
MANIFEST_FILE = "manifest.json"
_FORMAT = 1
_version = cache(version)
_REMEDY = "Restore it from a copy, or use another checkpoint"


def versions(*names: str) -> dict[str, str]:
    """Return the versions of installed programs."""
    return {name: _version(name) for name in names}


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """Content of `hafrm.json`: how a model was trained and how it scores."""

    method: Method
    base_model: str
    """Model from which training started: the reference policy of the implicit reward."""
    reward_weight: float
    policy_ratio: float
    policy_loss: str
    beta: float
    max_length: int
    overlong: Overlong
    pad_token: str
    scored_position: Literal["last_token"] = "last_token"
    """Token whose state gives the reward: the conversation's last, as in stock classifiers."""
    reward_loss: str = "bradley_terry"
    """The reward loss, which defines the meaning of reward differences."""
    heads: int = 1
    """Number of reward heads, whose mean is the reward."""
    base_digest: str = ""
    """`weights_digest` of the initial model in the run's dtype; empty if neither a reference nor adapters depend on it.
    """
    dtype: str = ""
    """Dtype in which training loaded the weights, such as `bfloat16`; filled in when a checkpoint is saved."""
    lora: dict[str, Any] | None = None
    combined_weight: float | None = None
    """w of the combined score r + w * beta * log-ratio, fitted on validation pairs; None if not fitted."""
    sha256: dict[str, str] = field(default_factory=dict)
    """Checksums of the model's files, by relative path. Other files in the folder are not part of the model."""
    training_sha256: dict[str, str] = field(default_factory=dict)
    """Checksums of the files from which training resumes; only in completely written checkpoints."""
    versions: dict[str, str] = field(default_factory=lambda: versions("hafrm", "torch", "transformers", "peft"))

    @property
    def whole(self) -> bool:
        """Whether the folder contains all weights, not just adapters."""
        return WHOLE_FILE in self.sha256 or INDEX_FILE in self.sha256

    @property
    def with_adapters(self) -> bool:
        """Whether the folder contains adapters."""
        return f"{ADAPTER_FOLDER}/{ADAPTER_FILE}" in self.sha256

    @property
    def quantized(self) -> bool:
        """Whether the run was trained on a quantized base (QLoRA)."""
        return self.lora is not None and self.lora.get("quantize") == "4bit"

    @property
    def default_head(self) -> Head:
        """The head that was trained to score."""
        return "reward" if self.reward_weight else "policy"

    def save(self, folder: Path) -> None:
        """Write `hafrm.json` into a folder."""
        atomic.write_json(folder / RUN_FILE, {"format": _FORMAT} | asdict(self))

    @classmethod
    def load(cls, folder: Path) -> RunInfo:
        """Read a run's `hafrm.json`.

        Raises:
            ModelError: the file is missing or was not written by a run.
        """
        path = folder / RUN_FILE
        require_finished(folder)
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ModelError(f"{folder} is not a run of hafrm: it has no {RUN_FILE}.") from None
        except (OSError, ValueError, RecursionError) as error:
            raise ModelError(
                f"{path} can't be read ({first_line(error)}). It is damaged: restore it from a copy."
            ) from error
        if problem := _problem(values):
            raise ModelError(f"{path}: {problem}. It is damaged or from another version: restore it from a copy.")
        return cls(**{name: value for name, value in values.items() if name != "format"})


def is_run(model: str | Path) -> bool:
    """Return whether a model is the folder of a run, or one of its checkpoints."""
    return (Path(model) / RUN_FILE).is_file()


def checkpoint_folders(run: Path) -> dict[int, Path]:
    """Return a run's checkpoints by step, in order."""
    found = {path.name.removeprefix("checkpoint-"): path for path in run.glob("checkpoint-*") if path.is_dir()}
    return {int(step): found[step] for step in sorted(filter(str.isdecimal, found), key=int)}


def run_info(model: str | Path) -> RunInfo | None:
    """Return the description in the folder of a run or checkpoint; None for other models.

    Raises:
        ModelError: the description was not written by a run.
    """
    return RunInfo.load(Path(model)) if is_run(model) else None


def _problem(values: Any) -> str:
    """Return, as a clause that names the field, what is wrong with the content of a `hafrm.json`; empty if valid."""
    if not isinstance(values, dict):
        return "it is not a JSON object"
    if type(values.get("format")) is not int or values["format"] != _FORMAT:
        return f"`format` is {values.get('format')!r}, but this version of hafrm reads {_FORMAT}"
    known = [each.name for each in fields(RunInfo)]
    for name in [*known, *values]:
        if name not in values:
            return f"`{name}` is missing"
        if name not in known and name != "format":
            return f"`{name}` is not a field that this version of hafrm knows"
        if wrong := _wrong(name, values[name]):
            return f"`{name}` {wrong}"
    for name in ("sha256", "training_sha256"):
        if wrong := list_problem(values[name]):
            return f"`{name}` {wrong}"
    if not values["reward_weight"] and not values["policy_ratio"]:
        return "`reward_weight` and `policy_ratio` are both 0, so no head was trained"
    untrained = {"baseline": "policy_ratio", "dpo": "reward_weight"}.get(values["method"])
    if untrained and values[untrained]:
        return f"`{untrained}` must be 0 if `method` is {values['method']}, got {values[untrained]}"
    return ""


def _wrong(name: str, value: Any) -> str:
    """Return, as a clause, what is wrong with the value of a field; empty if it is valid."""
    if wrong := problem(value, types_of(RunInfo).get(name, Any), _LIMITS.get(name)):
        return wrong
    form, words = _FORMS.get(name, ("(?s).*", ""))
    if isinstance(value, str) and not re.fullmatch(form, value):
        return f"must be {words}, got {value!r:.80}"
    if name == "lora" and not (value is None or _are_adapters(value)):
        return f"must be null or the options of adapters, got {value!r:.80}"
    if name == "policy_loss":
        try:
            loss_terms(value)
        except ValueError as error:
            return str(error)
    return ""


def _are_adapters(value: dict[str, Any]) -> bool:
    try:
        return LoraOptions(**value).enabled
    except (TypeError, ConfigError):
        return False


_LIMITS = {
    **dict.fromkeys(("reward_weight", "combined_weight"), Rule(least=0)),
    **dict.fromkeys(("max_length", "heads"), Rule(least=1, below=2**31)),
    "beta": Rule(above=0),
}
_FORMS = {
    "base_model": ("(?s).+", "a folder or a hub id"),
    "pad_token": ("(?s).+", "a token"),
    "reward_loss": (r"[A-Za-z_]\w*", "the name of a reward loss"),
    "base_digest": ("[0-9a-f]*", "hexadecimal digits"),
    "dtype": ("float32|float64|bfloat16|float16", "float32, float64, bfloat16 or float16"),
}
"""Forms of texts, as regular expressions and in words."""


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return a run's manifest; empty if it is missing, can't be read or lacks fields."""
    manifest = read_json(folder / MANIFEST_FILE) or {}
    return {} if manifest_problem(manifest) else manifest


def manifest_problem(values: dict[str, Any]) -> str:
    """Return, as a clause that names the field, what is wrong with the content of a `manifest.json`; empty if valid.

    Manifests of other programs are invalid, too: they have other fields.
    """
    for name, fits in _OF_A_MANIFEST.items():
        optional = name in ("effective", "resumed", "eval_metrics")
        if not fits(values.get(name)) and not (optional and name not in values):
            return f"`{name}` does not have the form that a run writes"
    return ""


def _is_config(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(name, {}), dict) for name in ("training", "loss"))


def _is_account(value: Any) -> bool:
    """Return whether a value describes a run's data: sources, with their pairs, for training and validation."""
    parts = [value.get(name) or {} for name in ("train", "eval")] if isinstance(value, dict) else [None]
    return all(isinstance(part, dict) and _are_sources(part.get("sources", [])) for part in parts)


def _are_sources(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(source, dict)
        and isinstance(source.get("name"), str)
        and isinstance(source.get("sha256"), str)
        and type(source.get("kept")) is int
        for source in value
    )


def _is_effective(value: Any) -> bool:
    split = ("per_device_train_batch_size", "gradient_accumulation_steps", "world_size")
    return isinstance(value, dict) and all(type(value.get(name, 1)) is int for name in split)


_OF_A_MANIFEST: dict[str, Callable[[Any], bool]] = {
    "format": lambda value: type(value) is int and value == 1,
    "status": lambda value: value in ("running", "finished"),
    "config": _is_config,
    "data": _is_account,
    "effective": _is_effective,
    "resumed": lambda value: isinstance(value, list),
    "eval_metrics": lambda value: isinstance(value, dict),
}


def require_finished(folder: Path) -> None:
    """Raise if a folder contains an unfinished run, or a run whose list of files is missing.

    The weights of an unfinished run are only in its checkpoints. Without its list, a run would be read as a stock
    model, perhaps with another limit of tokens, another template or another head.

    Raises:
        ModelError: names the newest checkpoint.
        DamagedError: names the list, and the file by which the folder is recognised.
    """
    if is_run(folder):
        return
    if (read_json(folder / MANIFEST_FILE) or {}).get("status") != "running":
        _require_list(folder)
        return
    newest = next(filter(is_run, reversed(checkpoint_folders(folder).values())), None)
    remedy = "To finish it," if newest is None else f"Use its newest checkpoint, {newest}, or"
    raise ModelError(f"{folder} contains an unfinished run. {remedy} run the same training command again.")


def _require_list(folder: Path) -> None:
    """Raise if hafrm wrote a folder that has neither a `hafrm.json` nor a `checksums.json`."""
    for name in (RUN_FILE, CHECKSUMS_FILE):
        if os.path.lexists(folder / name) and not (folder / name).is_file():
            raise DamagedError(f"{folder / name} can't be read as a file. {_REMEDY}.")
    if (folder / CHECKSUMS_FILE).is_file() or not (folder / "config.json").is_file():
        return
    if mark := _mark_of_hafrm(folder):
        name = CHECKSUMS_FILE if mark.name == CARD_FILE else RUN_FILE
        raise DamagedError(
            f"{folder / name} is missing, although {mark} says that hafrm wrote this folder. Restore it from a copy, "
            "or export the model again. If another program wrote the model afterwards, move the model to a folder "
            "without that file."
        )


def mark_of_model(folder: Path) -> str:
    """Return the name of a file that only models' folders have, such as their weights; "" if there is none."""
    marks = (RUN_FILE, WHOLE_FILE, INDEX_FILE, ADAPTER_FILE)
    return next((name for name in marks if (folder / name).exists()), "")


def require_outside_models(out: Path) -> None:
    """Raise ConfigError if a folder of results would be inside a model's, where another run may delete it."""
    for folder in out.resolve().parents:
        if name := mark_of_model(folder):
            raise ConfigError(f"out: {out} is inside a model's folder ({folder} has {name}). Choose another --out.")


def _mark_of_hafrm(folder: Path) -> Path | None:
    """Return a file that shows that hafrm wrote a model's folder; None if there is none.

    A run's folder has a manifest, metrics, checkpoints and maybe adapters; a checkpoint is in such a folder; an export
    has a card.
    """
    for run in [folder, folder.absolute().parent] if folder.absolute().name.startswith("checkpoint-") else [folder]:
        if {"status", "config"} <= (read_json(run / MANIFEST_FILE) or {}).keys():
            return run / MANIFEST_FILE
    if '"loss/' in _beginning(folder / "metrics.jsonl"):
        return folder / "metrics.jsonl"
    for path in (*folder.glob(f"checkpoint-*/{RUN_FILE}"), *folder.glob(f"{ADAPTER_FOLDER}/{CHECKSUMS_FILE}")):
        return path
    card = _beginning(folder / CARD_FILE)
    tagged = "\n- hafrm\n" in card.partition("\n---")[0] + "\n"
    return folder / CARD_FILE if CARD_MARK in card or tagged else None


def _beginning(path: Path) -> str:
    """Return the first 64 KiB of a text file; empty if there is none."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(65536)
    except OSError:
        return ""


def require_as_saved(model: str) -> None:
    """Raise unless a folder with hafrm's list of files (run, export, policy checkpoint) matches it; other models pass.

    Raises:
        ModelError: the folder contains an unfinished run.
        DamagedError: names the file.
    """
    folder = Path(model)
    if is_run(folder):
        require_undamaged(folder)
    else:
        require_finished(folder)
        require_listed(folder, remedy=_REMEDY)


def require_undamaged(folder: Path) -> RunInfo:
    """Raise unless the files of a run's folder or checkpoint are those that were saved. Reads all files.

    Returns:
        The folder's description.

    Raises:
        DamagedError: names the file.
        ModelError: `hafrm.json` was not written by a run.
    """
    info = RunInfo.load(folder)
    if "config.json" not in info.sha256 or not (info.whole or info.with_adapters):
        raise DamagedError(f"{folder / RUN_FILE}: `sha256` does not list the model's files. {_REMEDY}.")
    require_checksums(folder, info.sha256, kept_in=RUN_FILE, remedy=_REMEDY)
    return info
