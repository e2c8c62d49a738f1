"""Modules that the server from which tests fork imports: everything that a command needs."""

from __future__ import annotations

import importlib
import pkgutil

import accelerate  # noqa: F401
import peft  # noqa: F401
import transformers.models.llama.modeling_llama  # noqa: F401

import hafrm

_NEEDED = {"cli", "training", "evaluation", "judging", "models", "report", "data"}

for module in pkgutil.walk_packages(hafrm.__path__, "hafrm."):
    if module.name.split(".")[1] in _NEEDED and not module.name.endswith("__main__"):
        importlib.import_module(module.name)
