"""A judge that gives no rewards on candidates: its ranking of all draws, and its word on what scorers selected.

Both go through `hafrm judge`'s own runs, in folders beside the results, so that they resume and ask nothing twice. They
share one budget.
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
from hafrm.judging.budget import Budget
from hafrm.judging.endpoint import require_askable
from hafrm.judging.options import JudgeOptions
from hafrm.judging.results import nothing_judged
from hafrm.judging.rows import Mode
from hafrm.judging.run import JudgeConfig, judge_rows
from hafrm.judging.verdicts import VERDICTS_FILE
from hafrm.models.scorers import ScoreOptions
from hafrm.sampling.candidates import Candidates

__all__ = ["JudgeRuns", "require_rankable"]

Places = tuple[int, int]


def require_rankable(rows: Sequence[Candidates], judge: JudgeOptions) -> None:
    """Refuse to ask a judge that reads prompts for a ranking that it can't give.

    Raises:
        ConfigError: a row has neither four nor eight draws.
    """
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
        judge: Which judge.
        folder: Where the runs lie.
        score: How a local judge runs.
        trust_remote_code: Run modelling code that comes with a local judge.
        seed: Seed of the order in which responses are shown.
        budget: What all of them together may spend at an endpoint.
        say: Called with a line where a stopped run goes on.
    """

    judge: JudgeOptions
    folder: Path
    score: ScoreOptions
    trust_remote_code: bool
    seed: int
    budget: Budget
    say: Callable[[str], None]

    def require_askable(self) -> None:
        """Look up what the judge can't be asked without, before other work is done.

        Raises:
            MissingExtraError: a library is not installed.
            ConfigError: there is no API key.
        """
        if self.judge.kind == "openai":
            require_askable(self.judge)

    def rank(self, rows: Sequence[Candidates]) -> tuple[dict[str, tuple[float, ...]], dict[str, Any]]:
        """The ranks of each row's distinct responses, infinity where the judge left them unranked.

        Every draw is shown, as often as it came. Rows with an empty response are not asked about.

        Returns:
            Ranks by the row's id, and the contents of the run's `results.json`.
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
        """The judge's word on each two of the responses that scorers selected.

        Args:
            rows: The candidates.
            selections: The selected places, by the row's id.

        Returns:
            By the row's id, for two places, the lower one first: 1 where the first wins, 0 where it loses, 1/2 for a
            tie; a row with a missing answer is left out. And the contents of the run's `results.json`.

        Raises:
            ModelError: the judge gave no verdict at all.
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
        """The ranks that the judge gave in each row, None where it gave none, and the run's results."""
        if not rows:
            return [], {}
        digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:12]
        folder = self.folder / f"{mode}-{digest}"  # other rows, of another scorer for one, are another run
        data = folder / "rows.jsonl"
        if not data.exists():
            with atomic.new_file(data) as file:
                file.writelines(atomic.json_line(row) for row in rows)
        local = self.judge.kind == "local"  # with another judge these options are for the scorers alone
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
        if not results["judged"] and results["run"]["stopped"] is None:  # a run that stopped is given again
            raise ModelError(f"The judge: {nothing_judged(results)}")
        lines = [json.loads(line) for line in (folder / VERDICTS_FILE).read_bytes().split(b"\n") if line]
        ranks = {line["id"]: line["ranks"] for line in lines}
        return [ranks.get(f"{data}:{number}") for number in range(1, len(rows) + 1)], results


def _draws(row: Candidates) -> list[int]:
    """The place of each draw's response."""
    return [place for place, count in enumerate(row.counts) for _ in range(count)]


def _row_of(row: Candidates, places: Sequence[int]) -> dict[str, Any]:
    whole = row.as_row()
    return {name: whole[name] for name in ("prompt", "group")} | {
        "responses": [whole["responses"][place] for place in places]
    }
