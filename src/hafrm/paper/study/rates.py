"""Choose each method's learning rate on a backbone by accuracy on validation pairs.

Every method tries the same rates with the same steps, sets and seeds, so all have the same budget. A rate's mark is
the validation accuracy of the kept checkpoint, averaged over these runs; ties go to the lower rate. A rate with a
failed run is not chosen.
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


@dataclass(frozen=True)
class RateChoice:
    """Results of one method's search over learning rates."""

    marks: Mapping[float, float | None]
    """Mean validation accuracy over sets and seeds by rate; None if a run is missing or failed."""
    failed: tuple[float, ...]
    """Rates with a failed run."""

    @property
    def complete(self) -> bool:
        """Whether every rate has a mark or has failed."""
        return all(mark is not None or rate in self.failed for rate, mark in self.marks.items())

    @property
    def rate(self) -> float | None:
        """The chosen rate; None if no rate has a mark."""
        marked = {rate: mark for rate, mark in self.marks.items() if mark is not None}
        return min(marked, key=lambda rate: (-marked[rate], rate)) if marked else None


def search(job: Job, backbone: str) -> Iterator[tuple[Job, Run]]:
    """Yield the runs that choose rates with the job at their rate, ordered by rate; none if there is only one rate.

    These runs are not scored here: the chosen rates' runs are scored together with the other seeds.
    """
    if len(job.study.rates) < 2:
        return
    for rate in job.study.rates:
        for run in trials(choosing_job(job), "table2", backbone):
            yield _at(job, backbone, {run.method: rate}), run


def chosen(job: Job, backbone: str, journal: Mapping[str, Entry]) -> dict[Method, RateChoice]:
    """Return the state of the search by method.

    Args:
        job: The reproduction job.
        backbone: The backbone.
        journal: Latest entry of each run.
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
    """Return the job with each method's chosen rate on a backbone; None if a method has no rate (yet).

    Without given rates, methods use the scale's own rates and share their runs with other experiments.
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
