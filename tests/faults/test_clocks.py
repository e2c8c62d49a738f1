"""A clock that is set back changes nothing: no command depends on the order of times."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable

import pytest

from tests.faults.processes import Kill
from tests.faults.stages import STAGES, Stage, slow

HOUR = 3600.0


def set_back() -> None:
    """Let the clock go back an hour whenever it is read."""
    now, hours = time.time(), itertools.count(1)
    time.time = lambda: now - HOUR * next(hours)


@pytest.mark.parametrize("name", [*map(slow, STAGES[:-1]), STAGES[-1]])
def test_a_clock_that_goes_back(name: str, stage_of: Callable[[str], Stage]) -> None:
    """Files of a killed run have times in the future when it resumes."""
    stage = stage_of(name)
    stage.run(kill=Kill(change=stage.undisturbed.changes * 2 // 3))
    for path in stage.work.rglob("*"):
        os.utime(path, (time.time() + 24 * HOUR,) * 2)
    assert stage.run(set_back).status == 0
    stage.require_outcome()
