"""All experiments by name: what each needs and reports. To add one, add a line to `EXPERIMENTS`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from hafrm.paper import (
    claims,
    figure2,
    figure3,
    figure4,
    figure5,
    figure6,
    figure7,
    ppo,
    table2,
    table3,
    table4,
    table6,
)
from hafrm.paper.plans import Job, Plan, described, execute
from hafrm.paper.study import planning, work
from hafrm.paper.study import results as study_results
from hafrm.paper.study.telling import findings_of
from hafrm.report.findings import Findings


@dataclass(frozen=True)
class Experiment:
    """A table or figure of the paper, a check of our own, or the study that combines the comparisons."""

    summary: str
    plan: Callable[[Job], Plan]
    """Return what must be trained and evaluated. Cheap; raises if the job's options don't suit the experiment."""
    find: Callable[[Job], Findings]
    """Return the findings, once the plan is complete."""
    execute: Callable[[Job, Plan, Callable[[str], None]], None] = execute
    """Do what is missing of the plan."""
    describe: Callable[[Job, Plan], Iterable[str]] = described
    """Return the plan as lines of text."""
    trains: bool = True
    """Whether the experiment uses the seeds and the training options."""
    one: tuple[str, ...] = ()
    """Options of which the experiment uses a single value: `seeds`, `sets`."""


def _find_study(job: Job) -> Findings:
    """Collect all available results into tables, figures and sentences."""
    return findings_of(study_results.collect(job))


EXPERIMENTS: Mapping[str, Experiment] = {
    "table2": Experiment("accuracy in domain, five sets by three methods", table2.plan, table2.find),
    "figure3": Experiment("training on a mixture of all sets", figure3.plan, figure3.find),
    "table3": Experiment("accuracy on sets that were not trained on", table3.plan, table3.find),
    "figure6": Experiment("a sweep of the policy loss's weight", figure6.plan, figure6.find, one=("sets",)),
    "figure7": Experiment("a reward model's margins against a DPO model's", figure7.plan, figure7.find, one=("seeds",)),
    "table6": Experiment("how widely perplexities spread", table6.plan, table6.find, trains=False),
    "table7": Experiment("what that foretells of DPO", table6.plan_correlation, table6.find_correlation),
    "figure2": Experiment("whether HAF favours its own responses", figure2.plan, figure2.find, one=("seeds", "sets")),
    "figure4": Experiment("whose selection of several responses is best", figure4.plan, figure4.find),
    "table4": Experiment("recall of a judge's best responses, on average", table4.plan, table4.find),
    "table11": Experiment("recall of a judge's best responses, set by set", table4.plan, table4.find_by_set),
    "study": Experiment(
        "all comparisons with seeds and tests", planning.plan, _find_study, work.execute, planning.described
    ),
    "figure5": Experiment("policies trained on HAF's rewards against the baseline's", figure5.plan, figure5.find),
    "ppo": Experiment("whether PPO learns: the true reward over its steps", ppo.plan, ppo.find, one=("sets",)),
    "claims": Experiment("the inequality of Appendix D", claims.plan, claims.find, one=("sets",)),
}
