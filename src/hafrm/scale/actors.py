"""What runs in an actor: the model, loaded once, and a part of the input at a time.

Knows nothing of Ray, which makes an actor of the class.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from hafrm.data import RawRow
from hafrm.errors import ModelError
from hafrm.evaluation.bulk import CHUNK, ScoredRow, reward_names, score_chunk
from hafrm.models.scorers import Scorer, TokenScorer
from hafrm.scale.config import BulkConfig
from hafrm.scale.output import JobFolder
from hafrm.scale.plan import Part, read_part

__all__ = ["NO_REWARD", "PartScorer"]

NO_REWARD = "no_finite_reward"
"""Why a row has no reward at which the model itself fails."""

_TRIES = 4
"""How often a part is given to an actor: Ray would do so for ever, however often actors die of it."""

_HOPELESS = 100
"""So many rows of a part that reach the model, which fails at all of them, stop the job: that is the model's fault, not
the rows'."""


class PartScorer:
    """Scores parts and writes them.

    Args:
        config: The job's options, as `BulkConfig.for_actors` gives them.
        folder: The input's folder.
    """

    def __init__(self, config: BulkConfig, folder: Path) -> None:
        self.config, self.folder = config, folder
        self.out = JobFolder(config.folder)

    @cached_property
    def scorer(self) -> Scorer:
        """The scorer.

        It is loaded by the first part, not by the constructor: what fails there is a task's error, which reaches the
        driver as it is, and not the death of an actor.
        """
        torch.set_num_threads(max(1, int(self.config.cpus)))
        return self.config.load(self.config.model, self.config.score)

    def __call__(self, item: Mapping[str, Any]) -> dict[str, Any]:
        """Score one part, unless that was done before this actor's work was given out again.

        Args:
            item: `part`, a `Part` as JSON.

        Returns:
            `number`, the part's number.

        Raises:
            ModelError: no model loads, or it fails at each of 100 rows or more, all of a part that it was asked about,
                or actors have died of this part too often.
            UnreadableError: the part can't be read.
        """
        part = Part(**json.loads(item["part"]))
        if not self.out.is_done(part):
            source = str(self.folder / part.file)
            self._begin(part, source)
            content = read_part(self.folder, part)
            chunks = (content.rows[start : start + CHUNK] for start in range(0, len(content.rows), CHUNK))
            outcomes = [outcome for chunk in chunks for outcome in self._score(self.scorer, chunk, source)]
            _require_some(outcomes, source)
            self.out.write(part, content, outcomes)
        return {"number": part.number}

    def _begin(self, part: Part, source: str) -> None:
        if self.out.begin(part) >= _TRIES:
            raise ModelError(
                f"{source}: actors died {_TRIES} times of rows {part.first + 1} to {part.first + part.count}. If the "
                "memory ran out, lower --score.tokens_per_batch or --num_actors; the same command then goes on. If a "
                "row is at fault, fewer --rows_per_part in a new --out narrow it down."
            )

    def _score(self, scorer: Scorer, rows: list[RawRow], source: str) -> list[ScoredRow]:
        """Score rows; those at which the model fails are found by halves, so that the others have their rewards."""
        try:
            return list(score_chunk(scorer, rows, source=source, on_bad_row="skip"))
        except ModelError as error:
            if not isinstance(scorer, TokenScorer):  # a server that has gone is no row's fault
                raise
            if len(rows) == 1:
                return [ScoredRow(rows[0], dict.fromkeys(reward_names(rows[0].value)), NO_REWARD, str(error))]
            middle = len(rows) // 2
            return self._score(scorer, rows[:middle], source) + self._score(scorer, rows[middle:], source)


def _require_some(outcomes: list[ScoredRow], source: str) -> None:
    """Stop a model that fails at all that it is asked; rows that never reach it say nothing for it."""
    asked = [outcome for outcome in outcomes if outcome.unscored in (None, NO_REWARD)]
    if len(asked) >= _HOPELESS and all(outcome.unscored == NO_REWARD for outcome in asked):
        raise ModelError(f"{source}: none of {len(asked)} rows that the model read has a reward. {asked[0].detail}")
