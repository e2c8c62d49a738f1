"""Check the machine's requirements for a run before data or a model are read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

import torch
from accelerate.utils import str_to_bool
from transformers import TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations

from hafrm.errors import ConfigError
from hafrm.training.arguments import launched_processes

_UNLISTED = {"flyte"}
"""Trackers whose presence transformers can't check."""


def check_machine(training: Mapping[str, Any]) -> None:
    """Raise ConfigError if a tracker in `training` is not installed, or the processes would not find each other."""
    _require_trackers(training.get("report_to"))
    on_cpu = training.get("use_cpu") or str_to_bool(os.environ.get("ACCELERATE_USE_CPU", "false"))
    if launched_processes() > 1 and not on_cpu and not torch.accelerator.is_available():
        raise _apart(1)


def require_all_processes(args: TrainingArguments) -> None:
    """Raise ConfigError unless accelerate sees as many processes as the launcher started."""
    if launched_processes() != args.world_size:
        raise _apart(args.world_size)


def _apart(seen: int) -> ConfigError:
    return ConfigError(
        f"The launcher started {launched_processes()} processes (WORLD_SIZE), but accelerate sees {seen}: each would "
        "train separately, all in one folder. Without a GPU, set training.use_cpu true; if you don't use a launcher, "
        "unset WORLD_SIZE."
    )


def _require_trackers(report_to: Any) -> None:
    names = [report_to] if isinstance(report_to, str) else list(report_to or [])
    there = {*get_available_reporting_integrations(), *_UNLISTED}
    for name in names:
        if name in ("all", "none"):
            continue
        if name not in INTEGRATION_TO_CALLBACK:
            near = get_close_matches(str(name), INTEGRATION_TO_CALLBACK, n=1)
            known = f"Did you mean {near[0]}?" if near else f"There are {', '.join(INTEGRATION_TO_CALLBACK)}."
            raise ConfigError(f"training.report_to: {name} is not a tracker. {known}")
        if name not in there:
            raise ConfigError(
                f"training.report_to: {name} is not installed here. Install it (pip install {name}), or leave it out."
            )
