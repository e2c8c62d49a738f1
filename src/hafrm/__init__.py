"""hafrm: reward models trained by hybrid alignment.

The names below are the public Python API. They are imported on first use, which keeps `import hafrm` fast.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

from hafrm.container import allowed_cores

if TYPE_CHECKING:
    from hafrm.api import evaluate, export, score, train
    from hafrm.data import DataOptions, load_pairs
    from hafrm.evaluation.bulk import RowScorer
    from hafrm.evaluation.options import EvaluateConfig
    from hafrm.losses import register_reward_loss
    from hafrm.models.loading import load_scorer
    from hafrm.models.options import ExportConfig, LoraOptions, ScoreOptions
    from hafrm.models.scorers import Scorer
    from hafrm.pairs import Conversation, Message, PreferencePair
    from hafrm.training.config import TrainConfig
    from hafrm.training.loss import LossConfig
    from hafrm.training.objective import register_metric

__version__ = "0.1.0"


def _prepare_torch() -> None:
    """Set what PyTorch reads from the environment, unless the user has set it."""
    for cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        # PyTorch keeps oneDNN's code of products in bfloat16 for the last 1,024 shapes, in two caches. Packed rows
        # seldom have the same length twice, so a run of 135 million parameters grew from 5.5 to 10.4 GB. A pass needs
        # 20 shapes.
        os.environ.setdefault(cache, "32")
    if "torch" in sys.modules:  # it reads the variables below when it is imported
        return
    given = os.environ.keys()
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & given:
        # OpenMP threads that spin while they wait slow down each other and everything else on the machine: next to
        # another process, a run of 40 steps took 372 s, and 56 s with threads that sleep.
        os.environ["OMP_WAIT_POLICY"] = "passive"
    cores = allowed_cores()
    if cores and cores < (os.cpu_count() or 1) and not {"OMP_NUM_THREADS", "MKL_NUM_THREADS"} & given:
        os.environ["OMP_NUM_THREADS"] = str(cores)


_prepare_torch()

__all__ = [
    "Conversation",
    "DataOptions",
    "EvaluateConfig",
    "ExportConfig",
    "LoraOptions",
    "LossConfig",
    "Message",
    "PreferencePair",
    "RowScorer",
    "ScoreOptions",
    "Scorer",
    "TrainConfig",
    "evaluate",
    "export",
    "load_pairs",
    "load_scorer",
    "register_metric",
    "register_reward_loss",
    "score",
    "train",
]

_HOMES = {
    "hafrm.api": ("evaluate", "export", "score", "train"),
    "hafrm.data": ("DataOptions", "load_pairs"),
    "hafrm.evaluation.bulk": ("RowScorer",),
    "hafrm.evaluation.options": ("EvaluateConfig",),
    "hafrm.losses": ("register_reward_loss",),
    "hafrm.models.loading": ("load_scorer",),
    "hafrm.models.options": ("ExportConfig", "LoraOptions", "ScoreOptions"),
    "hafrm.models.scorers": ("Scorer",),
    "hafrm.pairs": ("Conversation", "Message", "PreferencePair"),
    "hafrm.training.config": ("TrainConfig",),
    "hafrm.training.loss": ("LossConfig",),
    "hafrm.training.objective": ("register_metric",),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module 'hafrm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])
