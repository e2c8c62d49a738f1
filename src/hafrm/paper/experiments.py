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

    It gets `more` after its own arguments. So the names of experiments can be listed without torch.
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
    """Do what is missing of the plan."""
    describe: Callable[[Job, Plan], Iterable[str]] = _DESCRIBE
    """Return the plan as lines of text."""
    trains: bool = True
    """Whether the experiment uses the seeds and the training options."""
    one: tuple[str, ...] = ()
    """Options of which the experiment uses a single value: `seeds`, `sets`, `backbones`."""


def _plan_nothing(job: Job) -> Plan:
    """Plan nothing: no model is trained."""
    from hafrm.paper.plans import Plan

    return Plan()


def _find_study(job: Job) -> Findings:
    """Collect all available results into tables, figures and sentences."""
    from hafrm.paper.study import collect
    from hafrm.paper.study_page import findings_of

    return findings_of(collect(job))


EXPERIMENTS: Mapping[str, Experiment] = {
    "table1": Experiment(
        "sizes of the sets, before and after drawing validation pairs",
        _late("settings.plan_sets"),
        _late("settings.find_sets"),
        trains=False,
    ),
    "table2": Experiment(
        "accuracy in domain, five sets by three methods", _late("plans.single_sets"), _late("accuracy.find_in_domain")
    ),
    "figure3": Experiment(
        "training on a mixture of all sets", _late("accuracy.plan_mixture"), _late("accuracy.find_mixture")
    ),
    "table3": Experiment(
        "accuracy on sets that were not trained on", _late("accuracy.plan_transfer"), _late("accuracy.find_transfer")
    ),
    "figure6": Experiment(
        "a sweep of the policy loss's weight", _late("ratios.plan"), _late("ratios.find"), one=("sets",)
    ),
    "figure7": Experiment(
        "a reward model's margins against a DPO model's",
        _late("probes.agreement.plan"),
        _late("probes.agreement.find"),
        one=("seeds",),
    ),
    "table5": Experiment(
        "settings of the runs, beside the paper's", _plan_nothing, _late("settings.find_setup"), trains=False
    ),
    "table6": Experiment(
        "how widely perplexities spread", _plan_nothing, _late("probes.perplexity.find"), trains=False
    ),
    "table7": Experiment(
        "whether that predicts where DPO falls behind",
        _late("probes.perplexity.plan_correlation"),
        _late("probes.perplexity.find_correlation"),
    ),
    "figure2": Experiment(
        "whether HAF favours its own responses",
        _late("probes.consistency.plan"),
        _late("probes.consistency.find"),
        one=("seeds", "sets"),
    ),
    "figure4": Experiment(
        "whose selection of several responses is best", _late("selections.plan"), _late("best.find_best")
    ),
    "table4": Experiment(
        "recall of a judge's best responses, on average", _late("selections.plan"), _late("recall.find_recall")
    ),
    "figure8": Experiment(
        "whose selection of several responses is best, set by set",
        _late("selections.plan"),
        _late("best.find_best_by_set"),
    ),
    "figure9": Experiment(
        "the selections of figure8, judged by a reward model",
        _late("selections.plan_rewards"),
        _late("best.find_best_by_rewards"),
    ),
    "table8": Experiment(
        "what it costs to rank responses", _plan_nothing, _late("settings.find_ranking_costs"), trains=False
    ),
    "table9": Experiment(
        "the judge's prompt for two responses", _plan_nothing, _late("settings.find_pair_prompt"), trains=False
    ),
    "table10": Experiment(
        "the judge's prompt for four responses", _plan_nothing, _late("settings.find_ranking_prompt"), trains=False
    ),
    "figure10": Experiment(
        "the three questions that find the best two of eight",
        _plan_nothing,
        _late("settings.find_tournament"),
        trains=False,
    ),
    "table11": Experiment(
        "recall of a judge's best responses, set by set",
        _late("selections.plan"),
        _late("recall.find_recall_by_set"),
    ),
    "study": Experiment(
        "all comparisons with seeds and tests",
        _late("stages.plan_study"),
        _find_study,
        _late("executor.execute_study"),
        _late("stages.described_study"),
    ),
    "figure5": Experiment(
        "policies trained on HAF's rewards against the baseline's",
        _late("duels.plan"),
        _late("duels.find"),
    ),
    "ppo": Experiment(
        "whether PPO learns: the true reward over its steps",
        _late("policies.plan_check"),
        _late("policies.find_check"),
        one=("sets",),
    ),
    **{
        name: Experiment(
            summary, _late("rewarding.plan", name), _late("rewarding.find", name), one=("sets", "backbones")
        )
        for name, summary in {
            "dense": "policies paid by token against those paid at the end",
            "bounds": "policies rewarded by lower confidence bounds",
        }.items()
    },
    "generators": Experiment(
        "what HAF's policy head writes against DPO's, at equal KL",
        _late("generators.plan"),
        _late("generators.find"),
        one=("sets", "backbones"),
    ),
    "pessimism": Experiment(
        "over-optimisation by best-of-n, and lower confidence bounds",
        _late("pessimism.plan"),
        _late("pessimism.find"),
        one=("sets", "backbones"),
    ),
    **{
        name: Experiment(summary, _late("beyond.plan", name), _late("beyond.find", name), one=("sets", "backbones"))
        for name, summary in {
            "calibration": "whether true errors of rewards are as large as stated",
            "consistency": "a consistency loss on prefixes, beside HAF and SFT",
            "rankings": "rankings by Plackett-Luce and by all pairs",
            "length": "length control, trained on labels that like length",
        }.items()
    },
    "gradients": Experiment(
        "how the two losses pull on the backbone",
        _late("probes.gradients.plan"),
        _late("probes.gradients.find"),
        one=("sets",),
    ),
    "claims": Experiment(
        "the inequality of Appendix D", _late("probes.claims.plan"), _late("probes.claims.find"), one=("sets",)
    ),
}
