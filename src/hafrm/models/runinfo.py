"""`hafrm.json`, the description of a run's folder: training, scoring, and checksums of its files."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Set
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

from hafrm import atomic
from hafrm.encoding import Overlong
from hafrm.errors import DamagedError, ModelError
from hafrm.losses import POLICY_LOSSES
from hafrm.models.checksums import (
    ADAPTER_FILE,
    ADAPTER_FOLDER,
    CARD_FILE,
    CARD_MARK,
    CHECKSUMS_FILE,
    list_problem,
    require_checksums,
    require_listed,
    weight_files,
)

Method = Literal["haf", "baseline", "dpo"]
"""`haf` trains both heads (Eq. 5), `baseline` only the reward head (Eq. 2), `dpo` only the policy head (Eq. 4)."""


def description_problem(values: Any, *, fields: Set[str], optional: Set[str], format: int) -> str:
    """Return what is wrong with the values of a `hafrm.json`, naming the field, as a clause; empty if they are valid.

    Args:
        values: Content of the file.
        fields: Allowed names.
        optional: Names that may be missing.
        format: Number of the format.
    """
    if not isinstance(values, dict):
        return "it is not a JSON object"
    if type(values.get("format")) is not int or values["format"] != format:
        return f"`format` is {values.get('format')!r}, but this version of hafrm reads {format}"
    if missing := sorted(fields - values.keys() - optional):
        return f"`{missing[0]}` is missing"
    for name, value in values.items():
        if name != "format" and name not in fields:
            return f"`{name}` is not a field that this version of hafrm knows"
        check = _CHECKS.get(name)
        if check is not None and not check[0](value):
            return f"`{name}` must be {check[1]}, got {_short(value)}"
    for name in ("sha256", "training_sha256"):
        if problem := list_problem(values.get(name, {})):
            return f"`{name}` {problem}"
    if not values["reward_weight"] and not values["policy_ratio"]:
        return "`reward_weight` and `policy_ratio` are both 0, so no head was trained"
    untrained = {"baseline": "policy_ratio", "dpo": "reward_weight"}.get(values["method"])
    if untrained and values[untrained]:
        return f"`{untrained}` must be 0 if `method` is {values['method']}, got {values[untrained]}"
    return ""


def manifest_problem(values: Any) -> str:
    """Return what is wrong with the values of a run's `manifest.json`, naming the field, as a clause; empty if nothing.

    Files of that name from other programs are wrong, too: they have other fields.
    """
    if not isinstance(values, dict):
        return "it is not a JSON object"
    for name, check in _OF_A_MANIFEST.items():
        if name not in values and name in ("effective", "resumed", "eval_metrics"):
            continue
        if not check(values.get(name)):
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


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _number(low: float, *, above: bool = False) -> Callable[[Any], bool]:
    """Create a check for finite numbers of at least `low`, or above it."""

    def check(value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return abs(value) < 1e300 and math.isfinite(value) and (value > low if above else value >= low)

    return check


def _text(pattern: str = r"(?s).+") -> Callable[[Any], bool]:
    """Create a check for strings that match a pattern."""
    return lambda value: isinstance(value, str) and re.fullmatch(pattern, value) is not None


def _one_of(*choices: str) -> tuple[Callable[[Any], bool], str]:
    return lambda value: isinstance(value, str) and value in choices, f"one of {', '.join(choices)}"


def _whole_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value < 2**31


_LORA: dict[str, Callable[[Any], bool]] = {
    "rank": _whole_number,
    "alpha": _whole_number,
    "dropout": lambda value: _number(0)(value) and value < 1,
    "targets": lambda value: isinstance(value, list) and all(map(_text(), value)),
    "quantize": lambda value: value in ("none", "4bit"),
}


def _is_lora(value: Any) -> bool:
    """Return whether a value is None or valid adapter options."""
    if value is None:
        return True
    if not isinstance(value, dict) or "rank" not in value:
        return False
    return all(name in _LORA and _LORA[name](each) for name, each in value.items())


_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "method": _one_of(*get_args(Method)),
    "base_model": (_text(), "a folder or a hub id"),
    "reward_weight": (_number(0), "a number of at least 0"),
    "policy_ratio": (_number(-math.inf), "a finite number"),
    "policy_loss": _one_of(*POLICY_LOSSES),
    "beta": (_number(0, above=True), "a number above 0"),
    "max_length": (_whole_number, "a whole number of tokens above 0"),
    "overlong": _one_of(*get_args(Overlong)),
    "pad_token": (_text(), "a token"),
    "scored_position": _one_of("last_token"),
    "reward_loss": (_text(r"[A-Za-z_]\w*"), "the name of a reward loss"),
    "base_digest": (_text("[0-9a-f]*"), "hexadecimal digits"),
    "dtype": (_text("|float32|float64|bfloat16|float16"), "a type of weights such as bfloat16"),
    "lora": (_is_lora, "null or the options of adapters (rank, alpha, dropout, targets, quantize)"),
    "combined_weight": (lambda value: value is None or _number(0)(value), "null or a number of at least 0"),
    "versions": (
        lambda value: isinstance(value, dict) and all(map(_text(), value.values())),
        "the versions of programs by their names",
    ),
}


RUN_FILE = "hafrm.json"
_FORMAT = 1
_ADDED_LATER = {"reward_loss", "base_digest", "dtype", "sha256", "training_sha256"}

Head = Literal["reward", "policy", "combined"]
"""Source of a model's score: its reward head, its implicit DPO reward, or the sum of both."""


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """Content of `hafrm.json`: how a model was trained and how it scores."""

    method: str
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
    base_digest: str = ""
    """`weights_digest` of the model at the start, in the run's dtype; empty if neither a reference nor adapters depend
    on it.
    """
    dtype: str = ""
    """Dtype in which training loaded the weights, such as `bfloat16`; empty in older runs."""
    lora: dict[str, Any] | None = None
    combined_weight: float | None = None
    """w of the combined score r + w * beta * log-ratio, fitted on validation pairs; None if not fitted."""
    sha256: dict[str, str] = field(default_factory=dict)
    """Checksums of the model's files, by relative path. Other files in the folder are not part of the model."""
    training_sha256: dict[str, str] = field(default_factory=dict)
    """Checksums of the files from which training resumes; only in completely written checkpoints."""
    versions: dict[str, str] = field(
        default_factory=lambda: {name: version(name) for name in ("hafrm", "torch", "transformers", "peft")}
    )

    @property
    def whole(self) -> bool:
        """Whether the folder contains all weights, not just adapters."""
        return bool(weight_files(self.sha256))

    @property
    def with_adapters(self) -> bool:
        """Whether the folder contains adapters."""
        return f"{ADAPTER_FOLDER}/{ADAPTER_FILE}" in self.sha256

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
            raise ModelError(f"{path} can't be read ({error}). It is damaged: restore it from a copy.") from error
        known = {each.name for each in fields(cls)}
        if problem := description_problem(values, fields=known, optional=_ADDED_LATER, format=_FORMAT):
            raise ModelError(f"{path}: {problem}. It is damaged or from another version: restore it from a copy.")
        return cls(**{name: value for name, value in values.items() if name != "format"})


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return a run's manifest; empty if it is missing, can't be read or lacks fields."""
    manifest = _manifest_values(folder)
    return {} if manifest_problem(manifest) else manifest


def _manifest_values(folder: Path) -> dict[str, Any]:
    """Return the content of a folder's manifest, unchecked; empty if it is not a JSON object."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def require_finished(folder: Path) -> None:
    """Raise if a folder is that of an unfinished run, or of a run whose list of files is lost.

    The weights of an unfinished run are only in its checkpoints. Without its list, a run would be read as a stock
    model, perhaps with another limit of tokens, another template or another head.

    Raises:
        ModelError: names the newest checkpoint.
        DamagedError: names the list, and the file by which the folder is recognised.
    """
    if (folder / RUN_FILE).is_file():
        return
    if _manifest_values(folder).get("status") != "running":
        _require_list(folder)
        return
    steps = [path.parent.name.removeprefix("checkpoint-") for path in folder.glob(f"checkpoint-*/{RUN_FILE}")]
    newest = max((int(step) for step in steps if step.isdecimal()), default=None)
    remedy = (
        f"Use its newest checkpoint, {folder / f'checkpoint-{newest}'}, or" if newest is not None else "To finish it,"
    )
    raise ModelError(f"{folder} contains an unfinished run. {remedy} run the same training command again.")


def _require_list(folder: Path) -> None:
    """Raise if a folder was written by hafrm but has neither a `hafrm.json` nor a `checksums.json`."""
    for name in (RUN_FILE, CHECKSUMS_FILE):
        if os.path.lexists(folder / name) and not (folder / name).is_file():
            raise DamagedError(f"{folder / name} can't be read as a file. {_REMEDY}.")
    if (folder / CHECKSUMS_FILE).is_file() or not (folder / "config.json").is_file():
        return
    if mark := _mark_of_ours(folder):
        name = CHECKSUMS_FILE if mark.name == CARD_FILE else RUN_FILE
        raise DamagedError(
            f"{folder / name} is missing, although {mark} says that hafrm wrote this folder. Restore it from a copy, "
            "or export the model again. If another program wrote the model afterwards, move the model to a folder "
            "without that file."
        )


def _mark_of_ours(folder: Path) -> Path | None:
    """Return a file that shows that hafrm wrote a model's folder; None if there is none.

    A final folder has a manifest, metrics, checkpoints and maybe adapters; a checkpoint is in such a folder; an export
    has a card.
    """
    for run in [folder, folder.absolute().parent] if folder.absolute().name.startswith("checkpoint-") else [folder]:
        if {"status", "config"} <= _manifest_values(run).keys():
            return run / "manifest.json"
    if '"loss/' in _opening(folder / "metrics.jsonl"):
        return folder / "metrics.jsonl"
    for path in (*folder.glob(f"checkpoint-*/{RUN_FILE}"), *folder.glob(f"{ADAPTER_FOLDER}/{CHECKSUMS_FILE}")):
        return path
    card = _opening(folder / CARD_FILE)
    tagged = "\n- hafrm\n" in card.partition("\n---")[0] + "\n"
    return folder / CARD_FILE if CARD_MARK in card or tagged else None


def _opening(path: Path) -> str:
    """Return the first 64 KiB of a text file; empty if there is none."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(65536)
    except OSError:
        return ""


_REMEDY = "Restore it from a copy, or use another checkpoint"


def require_as_saved(model: str) -> None:
    """Raise unless a folder written by hafrm (run, export or policy checkpoint) matches its list of files.

    Args:
        model: Folder or hub id; models without such a list pass.

    Raises:
        DamagedError: names the file.
    """
    folder = Path(model)
    if (folder / RUN_FILE).is_file():
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
