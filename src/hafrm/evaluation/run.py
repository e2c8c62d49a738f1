"""Evaluate models on data sets: check, load, score, write raw scores, compute results.

An interrupted evaluation resumes where it stopped, and a repeated one reuses all scores: see `parts`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hafrm import atomic
from hafrm.data import PairSet, SourceReport, load_pairs
from hafrm.data.reports import left_out_words
from hafrm.errors import ConfigError, HafrmError
from hafrm.evaluation.options import EvaluateConfig
from hafrm.evaluation.parts import PARTS, Part
from hafrm.evaluation.results import Results, summarise, uncalibrated
from hafrm.evaluation.scoring import (
    RESULTS_FILE,
    SCORES_FILE,
    Kind,
    PairScore,
    Scorable,
    score_pairs,
    write_or_remove,
    write_scores,
)
from hafrm.evaluation.suites import ItemSet, ListScore, load_suite, summarise_suite
from hafrm.evaluation.suites.scoring import SUITES_FILE, require_submissions, score_items, write_submissions
from hafrm.evaluation.tokens import TOKENS_FILE, token_lines, write_tokens
from hafrm.evaluation.unseen import require_unseen
from hafrm.evaluation.words import cross_fitted
from hafrm.losses import PLACKETT_LUCE
from hafrm.models.identity import model_identity
from hafrm.models.options import Head, ScorerChoice
from hafrm.models.remote import is_server
from hafrm.models.runinfo import RunInfo, run_info
from hafrm.models.scorers import Scorer, special_tokens_met
from hafrm.outputs import require_apart, require_results
from hafrm.store import alone

CALIBRATION_FILE = "calibration.jsonl"

SERVER_NOTE = "These rewards come from a server: its weights can't be fingerprinted, and it tokenizes the texts itself."

Progress = Callable[[str, int], None]


def load_sets(config: EvaluateConfig) -> dict[str, PairSet]:
    """Read the held-out pairs, by data name."""
    return {name: load_pairs(name, split=config.split, options=config.data_options) for name in config.data}


def evaluate(
    config: EvaluateConfig,
    *,
    sets: dict[str, PairSet] | None = None,
    progress: Progress = lambda what, done: None,
    say: Callable[[str], None] = lambda line: None,
    wait: bool = False,
) -> Results:
    """Score every model on every data set and write `scores.jsonl` and, last, `results.json`.

    All models are checked before any is loaded. Scores of an earlier evaluation in the folder are reused if the model,
    the options and the pairs are the same.

    Args:
        config: What to evaluate.
        sets: The result of `load_sets` for these options, if it was called before.
        progress: Called with "MODEL on DATA" and the number of finished pairs.
        say: Called with a line if an earlier evaluation is resumed or discarded, if a model was trained on the pairs of
            a file, or if its tokens can't be shown.
        wait: Wait for another evaluation that is writing to the folder, instead of raising.

    Returns:
        The results, whose `as_dict` is the content of `results.json`.

    Raises:
        ConfigError: a model was trained on pairs of a split, the calibration pairs are evaluated too, or the folder is
            a model's or in use.
        ModelError: a model does not exist, or can't be scored.
    """
    with alone(_own_folder(config), wait=wait):
        return _evaluate(config, sets, progress, say)


def _own_folder(config: EvaluateConfig) -> Path:
    """Return the output folder, after checking that it contains nothing of others."""
    folder = Path(config.out)
    require_apart(folder)
    require_results(
        folder,
        config,
        (RESULTS_FILE, SCORES_FILE, CALIBRATION_FILE, SUITES_FILE, TOKENS_FILE, "index.html", "table.md"),
        RESULTS_FILE,
        ("rows", "models", "sources"),
        parts=PARTS,
        by="hafrm evaluate",
    )
    require_submissions(folder)
    return folder


def _evaluate(
    config: EvaluateConfig, sets: dict[str, PairSet] | None, progress: Progress, say: Callable[[str], None]
) -> Results:
    folder = Path(config.out)
    sets = load_sets(config) if sets is None else sets
    suites = {name: load_suite(name, config.data_options) for name in config.suites}
    calibration = _load_calibration(config, sets)
    identities = {model: _look_up(model, config, sets | calibration, say) for model in config.models}
    scores: list[PairScore] = []
    lists: list[ListScore] = []
    for model, identity in identities.items():
        # Create the job inside the call, so that its model is freed before the next one is loaded.
        of_pairs, of_lists = _score(_Job(model, identity, config, progress, say), sets | calibration, suites)
        scores += of_pairs
        lists += of_lists
    evaluated = [score for score in scores if score.data in sets]
    calibrating = [score for score in scores if score.data in calibration]
    tokens = token_lines(
        folder, evaluated, sets, config, config.score, most=config.token_log_ratios, say=say, progress=progress
    )
    no_log_odds = {model for model in config.models if not _states_log_odds(model, config)}
    write_submissions(folder, suites, lists, {model: _leaderboard_type(model, config) for model in config.models}, say)
    words = {name: cross_fitted(found.pairs, [1] * len(found.pairs)) for name, found in sets.items()}
    results = summarise(evaluated, calibrating, no_log_odds=no_log_odds, words=words)
    for line in uncalibrated([score for score in calibrating if score.model not in no_log_odds]):
        say(line)
    if suites:
        results.suites = {name: _summary(found, lists, name) for name, found in suites.items()}
    for model in filter(is_server, config.models):
        served = identities[model]["the server"][1]
        results.servers[model] = {"model": served, "note": SERVER_NOTE}
    read: dict[str, PairSet | ItemSet] = {**sets, **calibration, **suites}
    results.sources = {name: [report.as_dict() for report in found.reports] for name, found in read.items()}
    (folder / RESULTS_FILE).unlink(missing_ok=True)  # stale results must not appear next to new scores
    write_scores(evaluated, folder / SCORES_FILE)
    write_tokens(folder, tokens)
    write_or_remove(list(map(asdict, calibrating)), folder / CALIBRATION_FILE)
    write_or_remove(list(map(asdict, lists)), folder / SUITES_FILE)
    atomic.write_json(folder / RESULTS_FILE, results.as_dict())
    return results


def readings(sets: Mapping[str, PairSet]) -> Iterator[str]:
    """Yield a line per source: its form, the columns not read, pairs whose scores contradict them, rows left out."""
    for name, found in sets.items():
        for report in found.reports:
            left_out = left_out_words(report.lost)
            form = report.form and f"read as {report.form}"
            parts = (form, report.unread_columns, report.contradictions, left_out)
            if said := "; ".join(filter(None, parts)):
                yield f"{name}: {said}"


def _score(
    job: _Job, sets: Mapping[str, PairSet], suites: Mapping[str, ItemSet]
) -> tuple[list[PairScore], list[ListScore]]:
    scores: list[PairScore] = []
    lists: list[ListScore] = []
    with _naming(job.model):
        for name, found in sets.items():
            scores += job.scores(name, found.reports, found.pairs, score_pairs, PairScore, "pairs")
        for name, items in suites.items():
            lists += job.scores(name, items.reports, items.items, score_items, ListScore, "prompts")
    return scores, lists


def _load_calibration(config: EvaluateConfig, sets: Mapping[str, PairSet]) -> dict[str, PairSet]:
    """Read the calibration pairs, under a separate name; return {} if none are requested."""
    name = config.calibration_data
    if name is None:
        return {}
    found = load_pairs(name, split="validation", options=config.data_options)
    for data, pair_set in sets.items():
        if _digest(pair_set.reports) == _digest(found.reports):
            raise ConfigError(
                f"calibration_data: {name} contains the same pairs as {data}. The calibrated error is meaningful only "
                "on other pairs than those used for the fit: give validation pairs."
            )
    return {f"{name} (calibration)": found}


def _look_up(
    model: str, config: EvaluateConfig, sets: Mapping[str, PairSet], say: Callable[[str], None]
) -> dict[str, Any]:
    """Return what a model's rewards depend on; raise if the model is missing or was trained on the pairs."""
    with _naming(model):
        reports = [report for pair_set in sets.values() for report in pair_set.reports]
        require_unseen(model, reports, config.data_options.split_seed, say)
        return model_identity(model, config, config.score.as_in_training())


def _states_log_odds(model: str, choice: ScorerChoice) -> bool:
    """Return whether reward differences are log-odds (assumed if the training loss is unknown)."""
    info = run_info(model)
    return info is None or _head(info, choice) == "policy" or info.reward_loss in ("bradley_terry", PLACKETT_LUCE)


def _summary(found: ItemSet, lists: Sequence[ListScore], name: str) -> dict[str, Any]:
    """Summarise a suite, with a bag of words next to the models."""
    words = cross_fitted(found.items, [item.correct for item in found.items])
    return summarise_suite(found.suite, [each for each in lists if each.data == name], words)


def _leaderboard_type(model: str, choice: ScorerChoice) -> str:
    """Return a model's type on RewardBench's leaderboard."""
    info = run_info(model)
    head = choice.head if info is None else _head(info, choice)
    return "DPO" if head == "policy" else "Seq. Classifier"


def _head(info: RunInfo, choice: ScorerChoice) -> Head:
    return choice.head or info.default_head


@contextmanager
def _naming(model: str) -> Iterator[None]:
    """Prefix errors with the model's name if they lack it, since several models may be evaluated."""
    try:
        yield
    except HafrmError as error:
        if model not in str(error):
            error.args = (f"{model}: {error}",)
        raise


@dataclass
class _Job:
    """A model to evaluate; it is only loaded if scores are missing."""

    model: str
    identity: Mapping[str, Any]
    config: EvaluateConfig
    progress: Progress
    say: Callable[[str], None]

    @cached_property
    def scorer(self) -> Scorer:
        return self.config.load(self.model, self.config.score.as_in_training())

    def scores(
        self,
        name: str,
        reports: Iterable[SourceReport],
        rows: Sequence[Scorable],
        score_rows: Callable[..., Iterator[Kind]],
        kind: type[Kind],
        what: str,
    ) -> list[Kind]:
        """Return the model's scores of one source: those kept from an earlier evaluation, then the missing ones."""
        on_bad_row = self.config.data_options.on_bad_row
        depends_on = {**self.identity, f"the {what}": _digest(reports)}
        part = Part(Path(self.config.out), self.model, name, depends_on, [row.id for row in rows], kind, what)
        kept = part.resume(self.say, on_bad_row=on_bad_row)
        missing = rows[len(kept) :]
        if not missing:
            return list(kept)

        def progress(done: int) -> None:
            self.progress(part.name, len(kept) + done)

        new = score_rows(self.scorer, missing, model=self.model, data=name, on_bad_row=on_bad_row, progress=progress)
        found = part.extend(new)
        if met := special_tokens_met(self.scorer):
            self.say(f"{part.name}: {met}.")
        return [*kept, *found]


def _digest(reports: Iterable[SourceReport]) -> str:
    return " ".join(report.sha256 for report in reports)
