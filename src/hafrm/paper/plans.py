"""What to run, as data: which models an experiment trains, on which sets, and where they are scored.

A `Part` compares rows (methods, losses, heads, ...) over columns (test sets). Tables 2 and 3 and Figure 3 are parts
whose three methods are scored together; in the study every run of a part is scored separately, so that runs may fail or
be missing. To add a comparison, add an entry to `PARTS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from hafrm.evaluation.options import EvaluateConfig
from hafrm.evaluation.run import evaluate
from hafrm.evaluation.scoring import RESULTS_FILE
from hafrm.models.options import Head
from hafrm.options import command_line
from hafrm.paper.numbers import CATEGORIES, SETS, category_of
from hafrm.paper.runs import Policy, Run
from hafrm.paper.scales import METHODS, Job

WORDS = "words"
"""Row, and model name, of the bag-of-words baseline."""

FROZEN = "frozen"
"""Row, and model name, of the frozen backbone, of which only the reward head is fitted."""

RATIOS = (-0.2, 0.0, 0.1, 0.2, 0.5, 1.0, 2.0)
"""Policy-loss weights of Figure 6; 0 is the baseline, 0.2 the HAF of all other experiments."""


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """The scores of one run, or of several that are compared with each other, on test sets."""

    runs: tuple[Run, ...]
    tested_on: tuple[str, ...]
    """Paper names of the test sets."""
    head: Head | None = None
    """Head to score with; None: the one trained to score."""

    @property
    def name(self) -> str:
        """Folder of a comparison, relative to `evaluations`."""
        first = self.runs[0]
        return f"{first.backbone}/{'+'.join(first.sets)}-seed{first.seed}/on-{'+'.join(self.tested_on)}"

    def folder(self, job: Job) -> Path:
        """Return the folder of the scores; for a single run it mirrors the run's, so each rate has a separate one."""
        if len(self.runs) > 1:
            return job.root / "evaluations" / self.name
        run = self.runs[0].folder(job).relative_to(job.root / "runs")
        head = "" if self.head is None else f"-{self.head}"
        return job.root / "study" / "scores" / run / f"{'+'.join(self.tested_on)}{head}"

    def config(self, job: Job) -> EvaluateConfig:
        """Return the evaluation's options."""
        config = EvaluateConfig(
            models=[str(run.folder(job)) for run in self.runs],
            data=[job.scale.sets[name].test for name in self.tested_on],
            out=str(self.folder(job)),
            head=self.head,
        )
        return config if len(self.runs) > 1 else replace(config, token_log_ratios=0)  # the study has no use for them

    def state(self, job: Job) -> str:
        """Return "finished" or "missing"."""
        return "finished" if (self.folder(job) / RESULTS_FILE).exists() else "missing"

    def make(self, job: Job, say: Callable[[str], None] = lambda line: None) -> Path:
        """Return the folder, after scoring what is missing."""
        evaluate(self.config(job), say=say, wait=True)
        return self.folder(job)

    def command(self, job: Job) -> str:
        """Return the equivalent `hafrm evaluate` command."""
        return command_line("hafrm evaluate", EvaluateConfig, asdict(self.config(job)), positional="models")


@dataclass(frozen=True, kw_only=True)
class Responses:
    """Responses to sample, score and judge while the findings are built; used to estimate the time."""

    made: str
    """A file that exists once this is done: a glob pattern, relative to the job's root."""
    backbone: str
    sets: tuple[str, ...]
    """Paper names of the sets whose test prompts are answered."""
    prompts: int
    """Maximum number of prompts of all sets together."""
    draws: int
    """Responses per prompt."""
    new_tokens: int
    """Maximum tokens of a response."""
    readers: int
    """Models that read each response to score it."""
    questions: int = 0
    """Maximum number of questions per prompt to a judge at an endpoint."""


@dataclass(frozen=True)
class Plan:
    """Distinct runs, comparisons of their scores, and policies, in the order of execution."""

    runs: tuple[Run, ...] = ()
    scorings: tuple[Scoring, ...] = ()
    policies: tuple[Policy, ...] = ()
    commands: tuple[str, ...] = ()
    """Further commands whose work is done when the findings are built."""
    responses: tuple[Responses, ...] = ()

    def __add__(self, other: Plan) -> Plan:
        both = ((*getattr(self, each.name), *getattr(other, each.name)) for each in fields(self))
        return Plan(*(tuple(dict.fromkeys(works)) for works in both))

    @property
    def backbones(self) -> list[str]:
        """Backbones of the runs and policies."""
        return list(dict.fromkeys(each.backbone for each in (*self.runs, *self.policies)))


def nothing(job: Job, *_: str) -> Plan:
    """Plan nothing: no model is trained."""
    return Plan()


Design = Literal["each set", "category", "others", "mixture"]
"""Each set's models are tested on it, on the other sets of its category, or on all others; or a mixture's on all."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A comparison of runs over test sets."""

    title: str
    where: str
    """Start of a sentence about the part."""
    design: Design = "each set"
    rows: Mapping[str, Mapping[str, Any]]
    """For each row the options of its runs, and the head to score with."""
    rivals: tuple[tuple[str, str], ...]
    """Rows to compare, the first with the second."""


_BY_METHOD = {str(method): {"method": method} for method in METHODS}
_HAF_FIRST = (("haf", "baseline"), ("haf", "dpo"))
_SFT: Mapping[str, Any] = {"method": "haf", "loss": "sft"}


def ratio_options(ratio: float) -> dict[str, Any]:
    """Return a ratio's options, such that its run is shared with other experiments."""
    if ratio == 0:
        return {"method": "baseline"}
    return {"method": "haf", "policy_ratio": None if ratio == 0.2 else ratio}


def _losses(names: Iterable[str], first: Mapping[str, Any]) -> dict[str, Any]:
    return {**first, **{name: {"method": "haf", "loss": name} for name in names}}


def shares_part(shares: tuple[int, ...]) -> Part:
    """Compare the methods trained on 1/share of the pairs, for each share; an entry of `PARTS`."""
    return Part(
        title="The share of the training pairs",
        where="By share of the pairs",
        rows={f"{method} 1/{share}": {"method": method, "share": share} for share in shares for method in METHODS},
        rivals=tuple((f"haf 1/{share}", f"{rival} 1/{share}") for share in shares for rival in METHODS[1:]),
    )


def noise_part(percentages: tuple[int, ...]) -> Part:
    """Compare the methods trained with these percentages of flipped labels; an entry of `PARTS`."""
    each = [(method, percent) for percent in percentages for method in METHODS]
    return Part(
        title="Flipped labels in training",
        where="With flipped labels",
        rows={f"{method} {percent}%": {"method": method, "flipped": percent} for method, percent in each},
        rivals=tuple((f"haf {percent}%", f"{rival} {percent}%") for percent in percentages for rival in METHODS[1:]),
    )


PARTS: dict[str, Part] = {
    "table2": Part(
        title="Accuracy in domain",
        where="In domain",
        rows=_BY_METHOD,
        rivals=(*_HAF_FIRST, *((method, WORDS) for method in METHODS), ("haf", FROZEN), ("baseline", FROZEN)),
    ),
    "ood": Part(
        title="Accuracy out of domain: trained on one set, tested on another of its category",
        where="Out of domain",
        design="category",
        rows=_BY_METHOD,
        rivals=_HAF_FIRST,
    ),
    "starts": Part(
        title="How the reward head starts: at random, or fitted to the training pairs on the frozen backbone",
        where="By start",
        rows={
            f"{method}{start}": {"method": method, "head_init": init}
            for start, init in (("", "auto"), (" fitted", "fit"))
            for method in ("haf", "baseline")
        },
        rivals=(("haf fitted", "haf"), ("baseline fitted", "baseline"), ("haf fitted", "baseline fitted")),
    ),
    "sft": Part(
        title="HAF with SFT as its policy loss, at a learning rate of its own",
        where="With SFT",
        rows={"haf": {"method": "haf"}, "sft": _SFT, "baseline": {"method": "baseline"}},
        rivals=(("sft", "baseline"), ("sft", "haf")),
    ),
    "transfer": Part(
        title="Accuracy on every other set",
        where="On other sets",
        design="others",
        rows={**_BY_METHOD, "sft": _SFT},
        rivals=(*_HAF_FIRST, ("sft", "baseline"), ("sft", "haf")),
    ),
    "heads": Part(
        title="The two heads of HAF: the reward, the policy's implicit reward, and both together",
        where="By heads",
        rows={
            "reward head": {"method": "haf"},
            "policy head": {"method": "haf", "head": "policy"},
            "both heads": {"method": "haf", "head": "combined"},
        },
        rivals=(("both heads", "reward head"), ("policy head", "reward head")),
    ),
    "mixed": Part(
        title="Trained on an even mixture of all sets",
        where="After mixed training",
        design="mixture",
        rows=_BY_METHOD,
        rivals=_HAF_FIRST,
    ),
    "losses": Part(
        title="Which policy loss regularises best, at ratio 0.2",
        where="By policy loss",
        rows=_losses(("ipo", "simpo", "sft"), {"none": {"method": "baseline"}, "dpo": {"method": "haf"}}),
        rivals=tuple((loss, "none") for loss in ("dpo", "ipo", "simpo", "sft")),
    ),
    "ratios": Part(
        title="The policy loss's weight",
        where="By policy ratio",
        rows={f"{ratio:g}": ratio_options(ratio) for ratio in RATIOS},
        rivals=tuple((f"{ratio:g}", "0") for ratio in RATIOS if ratio),
    ),
    "sizes": shares_part((16, 8, 4, 2, 1)),
    "noise": noise_part((0, 10, 20, 40)),
    "priors": Part(
        title="Other reward losses than Bradley-Terry",
        where="By reward loss",
        rows=_losses(("probit", "cauchy", "hinge"), {"bradley_terry": {"method": "haf"}}),
        rivals=tuple((prior, "bradley_terry") for prior in ("probit", "cauchy", "hinge")),
    ),
    "trl": Part(
        title="Next to TRL's RewardTrainer, on the same pairs with the same options",
        where="Next to TRL",
        rows={
            "haf": {"method": "haf"},
            "baseline": {"method": "baseline"},
            "trl": {"method": "baseline", "trainer": "trl"},
        },
        rivals=(("baseline", "trl"), ("haf", "trl")),
    ),
}
"""The study's parts by name, in the order in which they run on one backbone."""


def others_of(name: str) -> tuple[str, ...]:
    """Return the other sets of a set's category, in the paper's order."""
    return tuple(other for other in CATEGORIES[category_of(name)] if other != name)


def groups(design: Design, sets: tuple[str, ...]) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Return (training sets, test sets) of each group of runs."""
    if design == "mixture":
        return [(sets, sets)] if len(sets) > 1 else []
    tested: Mapping[str, Callable[[str], tuple[str, ...]]] = {
        "each set": lambda name: (name,),
        "category": others_of,
        "others": lambda name: tuple(other for other in SETS if other != name),
    }
    return [((name,), tested[design](name)) for name in sets]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One number of a part: a run on a test set, with its row and column."""

    row: str
    column: str
    run: Run
    tested_on: str
    scoring: Scoring


def cells(job: Job, part: str, backbone: str) -> Iterator[Cell]:
    """Yield the cells of a part on one backbone, each run scored separately; a seed's sets precede the next seed."""
    of = PARTS[part]
    for seed in job.seeds:
        for trained_on, tested_on in groups(of.design, job.sets):
            for row, options in of.rows.items():
                head = options.get("head")
                settings = {name: value for name, value in options.items() if name != "head"}
                run = Run(backbone=backbone, sets=trained_on, seed=seed, **settings)
                for name in (name for name in tested_on if name in job.sets):
                    column = f"{trained_on[0]}→{name}" if of.design in ("category", "others") else name
                    scoring = Scoring(runs=(run,), tested_on=(name,), head=head)
                    yield Cell(row=row, column=column, run=run, tested_on=name, scoring=scoring)


def compared_cells(
    job: Job, trained_on: tuple[str, ...], tested_on: tuple[str, ...], *, backbone: str
) -> Iterator[Cell]:
    """Yield the cells of the three methods, scored together, with a column for each test set."""
    for seed in job.seeds:
        runs = {method: Run(backbone=backbone, sets=trained_on, method=method, seed=seed) for method in METHODS}
        scoring = Scoring(runs=tuple(runs.values()), tested_on=tested_on)
        for method, run in runs.items():
            for name in tested_on:
                yield Cell(row=method, column=name, run=run, tested_on=name, scoring=scoring)


def plan_of(cells: Iterable[Cell]) -> Plan:
    """Plan the runs and scorings of cells."""
    found = list(cells)
    return Plan(tuple(dict.fromkeys(c.run for c in found)), tuple(dict.fromkeys(c.scoring for c in found)))


def comparison_plan(job: Job, pairs: Iterable[tuple[tuple[str, ...], tuple[str, ...]]]) -> Plan:
    """Plan the three methods on every backbone and seed, scored together, for each (training sets, test sets)."""
    return plan_of(
        cell
        for trained_on, tested_on in pairs
        for backbone in job.backbones
        for cell in compared_cells(job, trained_on, tested_on, backbone=backbone)
    )


def single_sets(job: Job) -> Plan:
    """Plan the three methods on each set, tested on the same set: the runs of Table 2."""
    return comparison_plan(job, groups("each set", job.sets))
