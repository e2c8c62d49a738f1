"""An evaluation keeps the log-ratios of its worst mistakes' tokens, computes none twice, and goes on without them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from hafrm.errors import ConfigError
from hafrm.evaluation import tokens
from hafrm.evaluation.run import EvaluateConfig, evaluate
from hafrm.models.checkpoints import RunInfo
from hafrm.models.scorers import HybridScorer
from tests.tiny import some_pairs
from tests.training.test_run import make_config  # a run of two steps
