"""After kill -9 at any moment, repeating the command gives the result of an undisturbed one.

The everyday tests kill each command three times in a row, each time in another way; the slow ones kill twenty separate
commands.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hafrm.training.manifest import is_finished
from tests.faults.processes import Kill, draw_kills
from tests.faults.stages import STAGES, Stage, slow


def killed(stage: Stage, kill: Kill) -> bool:
    """Return whether the command was killed before it finished; nothing is left half-written in either case.

    A training that had written everything and only had to exit counts as finished: repeating it is refused.
    """
    ended = stage.run(kill=kill)
    stage.require_no_half_file()
    assert ended.killed or ended.status == 0, ended.said
    return ended.killed and not is_finished(stage.work / "out")


@pytest.mark.parametrize("name", ["train", slow("precompute"), *STAGES[2:]])
def test_killed_thrice_it_goes_on(name: str, stage_of: Callable[[str], Stage]) -> None:
    stage = stage_of(name)
    kills = draw_kills(stage.undisturbed, stage.sizes, 3, seed=name)
    if all(killed(stage, kill) for kill in kills):
        stage.require_resumed()
    stage.require_outcome()


@pytest.mark.slow
@pytest.mark.parametrize("number", range(20))
@pytest.mark.parametrize("name", STAGES)
def test_killed_at_any_moment_it_goes_on(name: str, number: int, stage_of: Callable[[str], Stage]) -> None:
    stage = stage_of(name)
    if killed(stage, draw_kills(stage.undisturbed, stage.sizes, 20, seed=f"{name} at any moment")[number]):
        stage.require_resumed()
    stage.require_outcome()
