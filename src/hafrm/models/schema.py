"""Valid types and ranges of the fields of `hafrm.json`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Set
from typing import Any, Literal, get_args

from hafrm.encoding import Overlong
from hafrm.losses import POLICY_LOSSES
from hafrm.models.listing import list_problem

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
