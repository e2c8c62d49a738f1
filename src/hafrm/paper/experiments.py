"""All experiments by name: what each needs and reports. To add one, add an entry to `EXPERIMENTS`."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hafrm.paper.plans import Plan
    from hafrm.paper.scales import Job
    from hafrm.report.findings import Findings


def _late(path: str, *more: str) -> Callable[..., Any]:
    """Return a function of this package, given as MODULE.FUNCTION, that is imported when it is first called.

    It gets `more` after its own arguments. This way, the names of experiments can be listed without loading torch.
    """
    module, _, name = path.rpartition(".")

    def call(*arguments: Any) -> Any:
        return getattr(importlib.import_module(f"hafrm.paper.{module}"), name)(*arguments, *more)

    call.__doc__ = f"Call `hafrm.paper.{path}`."
    return call


_EXECUTE, _DESCRIBE = _late("executor.execute"), _late("executor.described")


@dataclass(frozen=True)
class Experiment:
    """A table or figure of the paper, a check of our own, or the study that combines the comparisons."""

    summary: str
    plan: Callable[[Job], Plan]
    """Return what must be trained and evaluated. Cheap; raises if the job's options don't suit the experiment."""
    find: Callable[[Job], Findings]
    """Return the findings, once the plan is complete."""
    execute: Callable[[Job, Plan, Callable[[str], None]], None] = _EXECUTE
    """Carry out the unfinished parts of the plan."""
    describe: Callable[[Job, Plan], Iterable[str]] = _DESCRIBE
    """Return the plan as lines of text."""
    trains: bool = True
    """Whether the experiment uses the seeds and the training options."""
    one: tuple[str, ...] = ()
    """Options of which the experiment uses a single value: `seeds`, `sets`, `backbones`."""


def _experiment(summary: str, plan: str, find: str, *more: str, **options: Any) -> Experiment:
    """Return an experiment by the paths of its functions; see `_late`."""
    return Experiment(summary, _late(plan, *more), _late(find, *more), **options)


EXPERIMENTS: Mapping[str, Experiment] = {
    "table1": _experiment(
        "sizes of the sets, before and after drawing validation pairs",
        "settings.plan_sets",
        "settings.find_sets",
        trains=False,
    ),
    "table2": _experiment(
        "accuracy in domain, five sets by three methods", "plans.single_sets", "accuracy.find_in_domain"
    ),
    "figure3": _experiment("training on a mixture of all sets", "accuracy.plan_mixture", "accuracy.find_mixture"),
    "table3": _experiment(
        "accuracy on sets that were not trained on", "accuracy.plan_transfer", "accuracy.find_transfer"
    ),
    "figure6": _experiment("a sweep of the policy loss's weight", "ratios.plan", "ratios.find", one=("sets",)),
    "figure7": _experiment(
        "a reward model's margins against a DPO model's",
        "probes.agreement.plan",
        "probes.agreement.find",
        one=("seeds",),
    ),
    "table5": _experiment(
        "settings of the runs, beside the paper's", "plans.nothing", "settings.find_setup", trains=False
    ),
    "table6": _experiment("how widely perplexities spread", "plans.nothing", "probes.perplexity.find", trains=False),
    "table7": _experiment(
        "whether that predicts where DPO falls behind",
        "probes.perplexity.plan_correlation",
        "probes.perplexity.find_correlation",
    ),
    "figure2": _experiment(
        "whether HAF favours its own responses",
        "probes.consistency.plan",
        "probes.consistency.find",
        one=("seeds", "sets"),
    ),
    "figure4": _experiment(
        "whose selection of several responses is best", "selections.plan", "best.find_best", "figure4"
    ),
    "table4": _experiment(
        "recall of a judge's best responses, on average", "selections.plan", "best.find_recall", "table4"
    ),
    "figure8": _experiment(
        "whose selection of several responses is best, set by set", "selections.plan", "best.find_best", "figure8"
    ),
    "figure9": _experiment(
        "the selections of figure8, judged by a reward model", "selections.plan", "best.find_best", "figure9"
    ),
    "table8": _experiment(
        "what it costs to rank responses", "plans.nothing", "settings.find_ranking_costs", trains=False
    ),
    "table9": _experiment(
        "the judge's prompt for two responses", "plans.nothing", "settings.find_prompt", "table9", trains=False
    ),
    "table10": _experiment(
        "the judge's prompt for four responses", "plans.nothing", "settings.find_prompt", "table10", trains=False
    ),
    "figure10": _experiment(
        "the three questions that find the best two of eight", "plans.nothing", "settings.find_tournament", trains=False
    ),
    "table11": _experiment(
        "recall of a judge's best responses, set by set", "selections.plan", "best.find_recall", "table11"
    ),
    "study": _experiment(
        "all comparisons with seeds and tests",
        "stages.plan_study",
        "study_page.find",
        execute=_late("executor.execute_study"),
        describe=_late("stages.described_study"),
    ),
    "figure5": _experiment("policies trained on HAF's rewards against the baseline's", "duels.plan", "duels.find"),
    "ppo": _experiment(
        "whether PPO learns: the true reward over its steps",
        "policies.plan_check",
        "policies.find_check",
        one=("sets",),
    ),
    **{
        name: _experiment(summary, "rewarding.plan", "rewarding.find", name, one=("sets", "backbones"))
        for name, summary in {
            "dense": "policies paid by token against those paid at the end",
            "bounds": "policies rewarded by lower confidence bounds",
        }.items()
    },
    "generators": _experiment(
        "what HAF's policy head writes against DPO's, at equal KL",
        "generators.plan",
        "generators.find",
        one=("sets", "backbones"),
    ),
    "pessimism": _experiment(
        "over-optimisation by best-of-n, and lower confidence bounds",
        "pessimism.plan",
        "pessimism.find",
        one=("sets", "backbones"),
    ),
    **{
        name: _experiment(summary, "beyond.plan", "beyond.find", name, one=("sets", "backbones"))
        for name, summary in {
            "calibration": "whether true errors of rewards are as large as stated",
            "consistency": "a consistency loss on prefixes, beside HAF and SFT",
            "rankings": "rankings by Plackett-Luce and by all pairs",
            "length": "length control, trained on labels that like length",
        }.items()
    },
    "gradients": _experiment(
        "how the two losses pull on the backbone", "probes.gradients.plan", "probes.gradients.find", one=("sets",)
    ),
    "claims": _experiment("the inequality of Appendix D", "probes.claims.plan", "probes.claims.find", one=("sets",)),
}
