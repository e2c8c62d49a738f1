"""Verdicts on candidates of a judge that gives no rewards: it ranks all draws, and compares what scorers selected.

Both are runs of `hafrm judge` in folders next to the results, so they resume and never ask twice. They share a budget.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hafrm import atomic
from hafrm.errors import ConfigError, ModelError
from hafrm.judging.options import Budget, JudgeConfig, JudgeOptions, Mode
from hafrm.judging.run import judge_rows
from hafrm.judging.verdicts import VERDICTS_FILE, nothing_judged
from hafrm.models.options import ScoreOptions
from hafrm.sampling.candidates import Candidates
from hafrm.store import LineFile

Places = tuple[int, int]


def require_rankable(rows: Sequence[Candidates], judge: JudgeOptions) -> None:
    """Raise ConfigError unless the judge can rank the rows: an endpoint ranks four or eight draws."""
    if judge.kind == "openai":
        wrong = next((row for row in rows if sum(row.counts) not in (4, 8)), None)
        if wrong is not None:
            raise ConfigError(
                f"judge.kind: openai ranks four or eight responses, and {wrong.id} has {sum(wrong.counts)}. Sample "
                "with --n 4 or --n 8, or let a reward model judge with --judge.kind reward."
            )


@dataclass(frozen=True)
class JudgeRuns:
    """Runs of one judge.

    Args:
        seed: Seed for the order in which responses are shown.
        budget: The shared limits at an endpoint.
        say: Called with a line if a stopped run is resumed.
    """

    judge: JudgeOptions
    folder: Path
    score: ScoreOptions
    trust_remote_code: bool
    seed: int
    budget: Budget
    say: Callable[[str], None]

    def rank(self, rows: Sequence[Candidates]) -> tuple[dict[str, tuple[float, ...]], dict[str, Any]]:
        """Return ranks of distinct responses by the row's id, infinity for unranked ones, and the run's `results.json`.

        Every draw is shown, duplicates included. Rows with an empty response are not asked about.
        """
        asked = [row for row in rows if all(map(str.strip, row.texts))]
        verdicts, results = self._run("rank", [_row_of(row, _draws(row)) for row in asked])
        found = {}
        for row, verdict in zip(asked, verdicts, strict=True):
            if verdict:
                best = [math.inf] * len(row.counts)
                for place, rank in zip(_draws(row), verdict, strict=True):
                    best[place] = min(best[place], math.inf if rank is None else rank)
                found[row.id] = tuple(best)
        return found, results

    def compare(
        self, rows: Sequence[Candidates], selections: Mapping[str, set[int]]
    ) -> tuple[dict[str, dict[Places, float]], dict[str, Any]]:
        """Return the judge's preference for each pair of selected responses, whose indices are given by the row's id.

        Returns:
            By the row's id and two indices, the lower one first: 1 if the first wins, 0 if it loses, 1/2 for a tie; a
            row with a missing answer is left out. Also the contents of the run's `results.json`.

        Raises:
            ModelError: the judge gave no verdict.
        """
        pairs = {row.id: [(a, b) for a in selections[row.id] for b in selections[row.id] if a < b] for row in rows}
        shown = [row for row in rows if all(row.texts[place].strip() for place in selections[row.id])]
        asked = [(row, pair) for row in shown for pair in pairs[row.id]]
        verdicts, results = self._run("pair", [_row_of(row, pair) for row, pair in asked])
        found: dict[str, dict[Places, float]] = {row.id: {} for row in rows}
        for (row, pair), verdict in zip(asked, verdicts, strict=True):
            if verdict:
                first, second = verdict
                found[row.id][pair] = 0.5 if first == second else float(first < second)
        return {key: known for key, known in found.items() if len(known) == len(pairs[key])}, results

    def _run(self, mode: Mode, rows: Sequence[Mapping[str, Any]]) -> tuple[list[Any], dict[str, Any]]:
        """Return the judge's ranks in each row, None if it gave none, and the run's results."""
        if not rows:
            return [], {}
        digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:12]
        folder = self.folder / f"{mode}-{digest}"  # other scorers select other rows, which need a run of their own
        data = folder / "rows.jsonl"
        if not data.exists():
            with atomic.new_file(data) as file:
                file.writelines(atomic.json_line(row) for row in rows)
        local = self.judge.kind == "local"  # otherwise these options only apply to the scorers
        config = JudgeConfig(
            data=str(data),
            out=str(folder),
            judge=self.judge,
            mode=mode,
            seed=self.seed,
            score=self.score if local else ScoreOptions(),
            trust_remote_code=self.trust_remote_code and local,
        )
        results = judge_rows(config, budget=self.budget, say=self.say)
        if not results["judged"] and results["run"]["stopped"] is None:  # a stopped run may have no verdict yet
            raise ModelError(f"The judge: {nothing_judged(results)}")
        ranks = dict(LineFile(folder / VERDICTS_FILE).read(lambda line: (line["id"], line["ranks"])))
        return [ranks.get(f"{data}:{number}") for number in range(1, len(rows) + 1)], results


def _draws(row: Candidates) -> list[int]:
    return [place for place, count in enumerate(row.counts) for _ in range(count)]


def _row_of(row: Candidates, places: Sequence[int]) -> dict[str, Any]:
    whole = row.as_row()
    return {name: whole[name] for name in ("prompt", "group")} | {
        "responses": [whole["responses"][place] for place in places]
    }
