"""`hafrm best-of-n`: score candidates with every scorer, run the judge, and write the results of selection."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hafrm import atomic
from hafrm.data.simulated import simulated_reward_name
from hafrm.errors import DataError
from hafrm.evaluation.parts import PARTS, Part
from hafrm.evaluation.scoring import scored_chunks
from hafrm.judging.endpoint import require_askable
from hafrm.judging.judges import ranks_of
from hafrm.judging.options import Budget
from hafrm.models.options import ScoreOptions, ScorerChoice
from hafrm.models.scorers import Scorer
from hafrm.outputs import require_apart, require_results
from hafrm.rewards import load_reward, reward_identity
from hafrm.sampling.analysis import ScoredPrompt, summarise
from hafrm.sampling.candidates import Candidates, CandidateScore, CandidateSet, load_candidates
from hafrm.sampling.judged import JudgeRuns, require_rankable
from hafrm.sampling.options import BestOfNConfig
from hafrm.store import alone

RESULTS_FILE = "results.json"
SELECTIONS_FILE = "selections.jsonl"

_JUDGE = "the judge"
_SAMPLES = "the samples"

Progress = Callable[[str, int], None]


@dataclass(frozen=True)
class BestOfN:
    """Results of best-of-N."""

    results: dict[str, Any]
    """The contents of `results.json`; see `summarise`."""
    prompts: list[ScoredPrompt]
    """The prompts that every scorer scored, in order."""


def best_of_n(
    config: BestOfNConfig,
    *,
    progress: Progress = lambda what, done: None,
    say: Callable[[str], None] = lambda line: None,
    wait: bool = False,
) -> BestOfN:
    """Score candidates and write `selections.jsonl`, a line per prompt, and, last, `results.json`.

    Args:
        config: The scorers, candidates and judge.
        progress: Called with a scorer's name and the number of finished prompts.
        say: Called with a line if earlier scoring is resumed or discarded.
        wait: Wait for another command that is writing to the folder, instead of raising.

    Raises:
        ConfigError: the judge can't rank that many draws, the folder is a model's or in use, or options are
            incompatible.
        MissingExtraError: a library that the judge needs is not installed.
        ModelError: a model does not exist, or can't be scored.
        DataError: there are no candidates, or none with a reward from every scorer.
    """
    require_apart(Path(config.out))
    written = (RESULTS_FILE, SELECTIONS_FILE, "index.html", "table.md")
    require_results(
        Path(config.out), config, written, RESULTS_FILE, ("samples", "judge_runs"), parts=PARTS, by="hafrm best-of-n"
    )
    found = load_candidates(config.samples, config.data_options)
    if config.judge is not None:
        require_rankable(found.rows, config.judge)
    job = _Job(config, found, _judge_runs(config, say), progress, say)
    identities = {name: reward_identity(*scorer) for name, scorer in job.scorers.items()}  # checks all before any loads
    with alone(Path(config.out), wait=wait):
        return job.run(identities)


_Scorer = tuple[str, ScorerChoice, ScoreOptions]
"""What to load, which of its scores, and how to run it."""


@dataclass(frozen=True)
class _Job:
    """One run, which writes scores as they are computed, and then the results."""

    config: BestOfNConfig
    found: CandidateSet
    judge_runs: JudgeRuns | None
    progress: Progress
    say: Callable[[str], None]

    @property
    def scorers(self) -> dict[str, _Scorer]:
        """Return the scorers, among them a judge that gives rewards, by name."""
        config = self.config
        named: dict[str, _Scorer] = {model: (model, config, config.score) for model in config.models}
        if config.judge is not None and config.gold:
            oracle = config.judge.kind == "oracle"
            name = simulated_reward_name(config.judge.model) if oracle else config.judge.model
            choice = ScorerChoice(trust_remote_code=config.trust_remote_code)
            named[_JUDGE] = (name, choice, config.score.without_pessimism())
        return named

    def run(self, identities: Mapping[str, Mapping[str, Any]]) -> BestOfN:
        """Score, judge, and write the results."""
        config, found, folder = self.config, self.found, Path(self.config.out)
        scores = {name: self._scored(name, scorer, identities[name]) for name, scorer in self.scorers.items()}
        gold = scores.pop(_JUDGE, None)
        kept, unscored = _scored_rows(found, [*scores.values(), *([gold] if gold else [])])
        prompts = [_prompt(row, scores, gold) for row in kept]
        prompts, judgements = _judged(self.judge_runs, kept, prompts, config.models)
        results = {
            "samples": config.samples,
            "left_out": dict(found.left_out),
            "unscored": unscored,
            "judge": None if config.judge is None else {"kind": config.judge.kind, "model": config.judge.model},
            **summarise(prompts, config.models),
            "judge_runs": judgements,
        }
        with atomic.new_file(folder / SELECTIONS_FILE) as file:
            file.writelines(
                atomic.json_line(_selection(row, prompt)) for row, prompt in zip(kept, prompts, strict=True)
            )
        atomic.write_json(folder / RESULTS_FILE, results)
        return BestOfN(results, prompts)

    def _scored(self, name: str, scorer: _Scorer, identity: Mapping[str, Any]) -> dict[str, CandidateScore]:
        depends_on = {**identity, "the candidates": self.found.sha256}
        ids = [row.id for row in self.found.rows]
        part = Part(Path(self.config.out), name, _SAMPLES, depends_on, ids, CandidateScore, "prompts")
        scores = part.resume(self.say, on_bad_row=self.config.data_options.on_bad_row)
        if missing := self.found.rows[len(scores) :]:
            if self.config.judge is not None and self.config.judge.kind == "openai":
                require_askable(self.config.judge)  # reports a missing key before hours of scoring
            scores = scores + part.extend(self._score(name, load_reward(*scorer), missing, len(scores)))
        return {score.id: score for score in scores}

    def _score(self, name: str, scorer: Scorer, rows: Sequence[Candidates], before: int) -> Iterator[CandidateScore]:
        on_bad_row = self.config.data_options.on_bad_row

        def progress(done: int) -> None:
            self.progress(name, before + done)

        for row, rewards, unscored in scored_chunks(scorer, rows, on_bad_row=on_bad_row, progress=progress):
            yield CandidateScore(name, row.id, rewards, unscored)


def _scored_rows(
    found: CandidateSet, scores: Sequence[Mapping[str, CandidateScore]]
) -> tuple[list[Candidates], dict[str, int]]:
    """Return the rows whose responses have all rewards, and the number of other rows by reason."""
    unscored: Counter[str] = Counter()
    kept = []
    for row in found.rows:
        reason = next((each[row.id].unscored for each in scores if each[row.id].unscored), "")
        if reason:
            unscored[reason] += 1
        else:
            kept.append(row)
    if not kept:
        lost = ", ".join(f"{count} {reason}" for reason, count in unscored.items())
        raise DataError(
            f"There is no prompt of which every scorer, and the judge, rewards all responses ({lost}). Raise their "
            "max_length, or sample shorter responses."
        )
    return kept, dict(unscored)


def _prompt(
    row: Candidates,
    scores: Mapping[str, Mapping[str, CandidateScore]],
    gold: Mapping[str, CandidateScore] | None,
) -> ScoredPrompt:
    judged = None if gold is None else gold[row.id].complete
    return ScoredPrompt(
        id=row.id,
        group=row.group,
        counts=row.counts,
        lengths=tuple(map(len, row.texts)),
        rewards={model: each[row.id].complete for model, each in scores.items()},
        gold=judged,
        ranks=None if judged is None else ranks_of(judged),
    )


def _judge_runs(config: BestOfNConfig, say: Callable[[str], None]) -> JudgeRuns | None:
    """Prepare the runs of a judge that gives no rewards; None if there is no such judge."""
    if config.judge is None or config.gold:
        return None
    return JudgeRuns(
        judge=config.judge,
        folder=Path(config.out) / "judge",
        score=config.score.without_pessimism(),
        trust_remote_code=config.trust_remote_code,
        seed=config.seed,
        budget=Budget.of(config.judge),
        say=say,
    )


def _judged(
    runs: JudgeRuns | None, rows: Sequence[Candidates], prompts: list[ScoredPrompt], models: Sequence[str]
) -> tuple[list[ScoredPrompt], dict[str, Any]]:
    """Add the verdicts of a judge that gives no rewards to the prompts; also return the results of its runs."""
    if runs is None:
        return prompts, {}
    varied = [row for row in rows if len(row.counts) > 1]
    ranks, results = runs.rank(varied) if runs.judge.kind == "openai" else ({}, {})
    selections = {prompt.id: {prompt.selected(model) for model in models} for prompt in prompts}
    preferred, compared = runs.compare(varied, selections)
    judged = [replace(prompt, ranks=ranks.get(prompt.id), preferred=preferred.get(prompt.id)) for prompt in prompts]
    return judged, {"ranking": results, "comparisons": compared}


def _selection(row: Candidates, prompt: ScoredPrompt) -> dict[str, Any]:
    """Return a line of `selections.jsonl`: each scorer's selection, and all rewards and ranks."""
    return {
        "id": row.id,
        "group": row.group,
        "selected": {model: row.texts[prompt.selected(model)] for model in prompt.rewards},
        "rewards": {model: list(values) for model, values in prompt.rewards.items()},
        "gold": prompt.gold,
        "ranks": prompt.ranks and [None if rank == float("inf") else rank for rank in prompt.ranks],
    }
