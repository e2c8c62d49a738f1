"""The learning rate of each method on a backbone: the one whose runs are best on validation pairs.

Every method tries the same rates with the same steps on the same sets and seeds, so each has the same budget. A rate's
mark is the mean over these runs of the kept checkpoint's validation accuracy; equal marks go to the lower rate. A rate
with a run that failed is out.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from hafrm.paper.plans import ALL_METHODS, Job
from hafrm.paper.runs import Run
from hafrm.paper.study.journal import Entry
from hafrm.paper.study.trials import choosing_job, trials
from hafrm.training.config import Method
from hafrm.training.manifest import is_finished, read_manifest

__all__ = ["RateChoice", "at_chosen_rates", "chosen", "search"]


@dataclass(frozen=True)
class RateChoice:
    """What one method's runs said of each rate."""

    marks: Mapping[float, float | None]
    """By rate: the mean validation accuracy over sets and seeds; None where a run is missing or failed."""
    failed: tuple[float, ...]
    """Rates with a run that failed."""

    @property
    def complete(self) -> bool:
        """Whether every rate has its mark, or has failed."""
        return all(mark is not None or rate in self.failed for rate, mark in self.marks.items())

    @property
    def rate(self) -> float | None:
        """The chosen rate; None while none has a mark."""
        marked = {rate: mark for rate, mark in self.marks.items() if mark is not None}
        return min(marked, key=lambda rate: (-marked[rate], rate)) if marked else None


def search(job: Job, backbone: str) -> Iterator[tuple[Job, Run]]:
    """The runs that choose rates, each with the job at its rate, all sets of a rate together; none for a single rate.

    They score nothing: those of the chosen rates are scored with the other seeds.
    """
    if len(job.study.rates) < 2:
        return
    for rate in job.study.rates:
        for run in trials(choosing_job(job), "table2", backbone):
            yield _at(job, backbone, {run.method: rate}), run


def chosen(job: Job, backbone: str, journal: Mapping[str, Entry]) -> dict[Method, RateChoice]:
    """How the search stands.

    Args:
        job: What was asked for.
        backbone: The backbone.
        journal: How each run stands.
    """
    found = {}
    for method in ALL_METHODS:
        runs = [run for run in trials(choosing_job(job), "table2", backbone) if run.method == method]
        marks: dict[float, float | None] = {}
        failed = []
        for rate in job.study.rates:
            folders = [run.folder(_at(job, backbone, {method: rate}).scale, job.out) for run in runs]
            ends = [journal.get(str(folder.relative_to(job.root / "runs"))) for folder in folders]
            if any(end is not None and end.event == "failed" for end in ends):
                failed.append(rate)
            if all(map(is_finished, folders)):
                scores = [
                    (read_manifest(folder) or {})["eval_metrics"]["eval_rewards/accuracies"] for folder in folders
                ]
                marks[rate] = statistics.fmean(scores)
            else:
                marks[rate] = None
        found[method] = RateChoice(marks, tuple(failed))
    return found


def at_chosen_rates(job: Job, backbone: str, journal: Mapping[str, Entry]) -> Job | None:
    """The job with each method's rate on a backbone; None while the choice is not done, or a method has none left.

    Where no rates were given, methods have the scale's own, and share their runs with other experiments.
    """
    rates = job.study.rates
    if len(rates) < 2:
        return _at(job, backbone, dict.fromkeys(ALL_METHODS, rates[0])) if rates else job
    choices = chosen(job, backbone, journal)
    if not all(choice.complete and choice.rate is not None for choice in choices.values()):
        return None
    return _at(job, backbone, {method: choice.rate for method, choice in choices.items() if choice.rate is not None})


def _at(job: Job, backbone: str, rates: Mapping[Method, float]) -> Job:
    return replace(job, scale=job.scale.at_rates(backbone, rates))
