"""All experiments by name: what each needs and reports. To add one, add an entry to `EXPERIMENTS`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from hafrm.paper import accuracy, policies, ratios, selections
from hafrm.paper.executor import execute, execute_study
from hafrm.paper.plans import Plan, described, single_sets
from hafrm.paper.probes import agreement, claims, consistency, perplexity
from hafrm.paper.scales import Job
from hafrm.paper.stages import described_study, plan_study
from hafrm.paper.study import collect
from hafrm.paper.study_page import findings_of
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


def _plan_nothing(job: Job) -> Plan:
    """Plan nothing: the backbones are used untrained."""
    return Plan()


def _find_study(job: Job) -> Findings:
    """Collect all available results into tables, figures and sentences."""
    return findings_of(collect(job))


EXPERIMENTS: Mapping[str, Experiment] = {
    "table2": Experiment("accuracy in domain, five sets by three methods", single_sets, accuracy.find_in_domain),
    "figure3": Experiment("training on a mixture of all sets", accuracy.plan_mixture, accuracy.find_mixture),
    "table3": Experiment("accuracy on sets that were not trained on", accuracy.plan_transfer, accuracy.find_transfer),
    "figure6": Experiment("a sweep of the policy loss's weight", ratios.plan, ratios.find, one=("sets",)),
    "figure7": Experiment(
        "a reward model's margins against a DPO model's", agreement.plan, agreement.find, one=("seeds",)
    ),
    "table6": Experiment("how widely perplexities spread", _plan_nothing, perplexity.find, trains=False),
    "table7": Experiment("what that foretells of DPO", perplexity.plan_correlation, perplexity.find_correlation),
    "figure2": Experiment(
        "whether HAF favours its own responses", consistency.plan, consistency.find, one=("seeds", "sets")
    ),
    "figure4": Experiment("whose selection of several responses is best", selections.plan, selections.find_best),
    "table4": Experiment("recall of a judge's best responses, on average", selections.plan, selections.find_recall),
    "table11": Experiment(
        "recall of a judge's best responses, set by set", selections.plan, selections.find_recall_by_set
    ),
    "study": Experiment(
        "all comparisons with seeds and tests", plan_study, _find_study, execute_study, described_study
    ),
    "figure5": Experiment(
        "policies trained on HAF's rewards against the baseline's", policies.plan_duels, policies.find_duels
    ),
    "ppo": Experiment(
        "whether PPO learns: the true reward over its steps", policies.plan_check, policies.find_check, one=("sets",)
    ),
    "claims": Experiment("the inequality of Appendix D", claims.plan, claims.find, one=("sets",)),
}
