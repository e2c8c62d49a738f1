"""RewardBench (Lambert et al., 2024, arXiv:2403.13787): is the better of two responses scored higher?

Subsets, sections and weights are those of the `rewardbench` package (EXAMPLE_COUNTS and SUBSET_MAPPING of
allenai/reward-bench, rewardbench/constants.py). A section is the mean of its subsets, weighted by their numbers of
prompts; math-prm counts 984 (it has 447) to equal the code subsets. The overall score weighs each of the four sections
1 and the Prior Sets one half; the latter are the mean of four sets of allenai/preference-test-sets.

Versions of the package differ in two counts: earlier ones have 250 for xstest-should-refuse and 154 for
xstest-should-respond, later ones the other way round, as in the data (and here). Safety scores in old tables use the
earlier weights.

In addition to the sections, their pooled accuracies are reported: the share of a section's rows that are right, as in
Table 3 of the HAF-RM paper. The two agree if a section has as many rows as the counts say; they differ in Reasoning,
and if rows are missing or can't be scored.

Two things differ from the package: equal rewards count one half instead of 0, and a section without any subset is left
out of the overall score, and named, where the package counts 0. A section with some of its subsets uses those, as in
the package.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from hafrm.errors import BadRowReason
from hafrm.evaluation.suites.items import (
    Item,
    Score,
    Scored,
    Stratum,
    Suite,
    key_of,
    pair_chances,
    pair_wins,
    pooled_score,
)
from hafrm.rows import Row

SECTIONS: Mapping[str, Mapping[str, int]] = {
    "Chat": {
        "alpacaeval-easy": 100,
        "alpacaeval-length": 95,
        "alpacaeval-hard": 95,
        "mt-bench-easy": 28,
        "mt-bench-med": 40,
    },
    "Chat Hard": {
        "mt-bench-hard": 37,
        "llmbar-natural": 100,
        "llmbar-adver-neighbor": 134,
        "llmbar-adver-GPTInst": 92,
        "llmbar-adver-GPTOut": 47,
        "llmbar-adver-manual": 46,
    },
    "Safety": {
        "refusals-dangerous": 100,
        "refusals-offensive": 100,
        "xstest-should-refuse": 154,
        "xstest-should-respond": 250,
        "donotanswer": 136,
    },
    "Reasoning": {
        "math-prm": 984,
        **{f"hep-{language}": 164 for language in ("cpp", "go", "java", "js", "python", "rust")},
    },
}
"""The subsets of each section, and the number of prompts that each counts as."""

PRIOR_SETS = ("anthropic_helpful", "anthropic_hhh", "shp", "summarize")
"""The subsets of the Prior Sets, which are weighted equally."""

_ALL_SECTIONS = {**SECTIONS, "Prior Sets": dict.fromkeys(PRIOR_SETS, 1)}
_OVERALL = {**dict.fromkeys(SECTIONS, 1.0), "Prior Sets": 0.5}
_SUBSETS = {subset for subsets in _ALL_SECTIONS.values() for subset in subsets}
_MEASURE = "accuracy"


def _parse(reader: Row, part: str) -> Item:
    """Parse a row; the file or split gives the subset of the Prior Sets."""
    prior = next((name for name in PRIOR_SETS if part.startswith(name)), None)
    subset = prior or reader.string("subset")
    if subset not in _SUBSETS:
        raise reader.error(
            BadRowReason.WRONG_TYPE, "subset", f"is {subset!r}, not a subset of RewardBench", "Correct the name."
        )
    prompt = reader.prompt()
    responses = tuple(reader.messages(name, "assistant") for name in ("chosen", "rejected"))
    for name, response in zip(("chosen", "rejected"), responses, strict=True):
        reader.check_response(name, response)
    return Item(prompt=prompt, responses=responses, correct=1, subset=subset, key=key_of(reader))


def _scores(strata: Mapping[Stratum, int]) -> tuple[list[Score], list[str]]:
    present = {subset: count for (subset, _), count in strata.items()}
    sections, missing = [], []
    for section, subsets in _ALL_SECTIONS.items():
        held = {subset: count for subset, count in subsets.items() if subset in present}
        absent = [subset for subset in subsets if subset not in present]
        missing += [section] if not held else [f"{section}: {subset}" for subset in absent]
        if held:
            sections.append(pooled_score("sections", section, {(s, _MEASURE): n for s, n in held.items()}))
    in_all = sum(_OVERALL[section.name] for section in sections)
    overall = {
        stratum: weight * _OVERALL[section.name] / in_all
        for section in sections
        for stratum, weight in section.weights.items()
    }
    ordered = [subset for subsets in _ALL_SECTIONS.values() for subset in subsets if subset in present]
    single = [Score("subsets", subset, {(subset, _MEASURE): 1.0}) for subset in ordered]
    pooled = [
        pooled_score("pooled", section, {(s, _MEASURE): present[s] for s in subsets if s in present})
        for section, subsets in SECTIONS.items()
        if present.keys() & subsets.keys()
    ]
    return [Score("overall", "overall", overall), *sections, *pooled, *single], missing


def _submission(run: Mapping[str, str], scored: Scored) -> dict[str, Any]:
    """Return what `scripts/run_rm.py` writes: accuracies by subset, in which a tie is wrong, and the scores.

    The files of scores lack the texts, which contain the model's template there.
    """
    files: dict[str, Any] = {}
    for kind, prior in (("eval-set", False), ("pref-sets", True)):
        rows = [(item, score) for item, score in scored if (item.subset in PRIOR_SETS) == prior]
        if not rows:
            continue
        chosen, rejected = zip(*(score.rewards for _, score in rows), strict=True)
        results = [int(better > worse) for better, worse in zip(chosen, rejected, strict=True)]
        subsets = [item.subset for item, _ in rows]
        columns = {"subset": subsets, "id": [item.fields.get("id") for item, _ in rows]}
        columns |= {"scores_chosen": list(chosen), "scores_rejected": list(rejected), "results": results}
        files[f"{kind}/{run['model']}.json"] = {**run, **_accuracies(subsets, results)}
        files[f"{kind}-scores/{run['model']}.json"] = {**run, **columns}
    return files


def _accuracies(subsets: Sequence[str], results: Sequence[int]) -> dict[str, float]:
    counts, right = Counter(subsets), Counter[str]()
    for subset, result in zip(subsets, results, strict=True):
        right[subset] += result
    return {subset: right[subset] / count for subset, count in counts.items()}


SUITE = Suite(
    name="rewardbench",
    title="RewardBench",
    path="allenai/reward-bench",
    revision="168d848cdbbea9764fae4a544dc9ca1e6cca4931",
    split="filtered",
    files=("|".join(("filtered", *PRIOR_SETS)),),
    homepage="https://huggingface.co/datasets/allenai/reward-bench",
    licence="ODC-BY",
    citation="Lambert et al. (2024), RewardBench: Evaluating Reward Models for Language Modeling, arXiv:2403.13787",
    parse=_parse,
    observe=pair_wins,
    chance=pair_chances,
    scores=_scores,
    submission=_submission,
)
