"""RewardMATH (Kim et al., 2024, arXiv:2410.01729): is the right solution of a problem the best of ten?

As in `RewardMATHEvaluation` of kimsh0507/RewardMATH_official (`src/evaluation/eval.py`): a problem has one right
solution and several wrong ones. Accuracy is the share of problems whose right solution has the highest reward, without
a tie; MRR is the mean of 1 / rank of the right solution, the last one among equal rewards. A row is one solution, a
list of steps, which are joined by line breaks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from hafrm.errors import BadRowError, BadRowReason
from hafrm.evaluation.suites.items import Item, ListScore, Observation, Score, Scored, Stratum, Suite, response_list
from hafrm.pairs import Prompt
from hafrm.rows import Row

_SUBSET = "all"
_KINDS = ("chosen", "rejected")


def _gather(rows: Iterable[Row]) -> Iterator[Row]:
    """Merge the solutions of each problem, the right one first; bad rows are passed on with their fault."""
    groups: dict[str, list[tuple[Row, dict[str, Any]]]] = {}
    for row in rows:
        try:
            solution = {"kind": row.one_of("solution_type", _KINDS), "text": _solution(row)}
            named = {"solution_reference": row.fields.get("solution_reference")}
            groups.setdefault(row.string("problem"), []).append((row, solution | named))
        except BadRowError as error:
            yield replace(row, value=None, fault=error)
    for problem, group in groups.items():
        first, found = group[0][0], sorted((each for _, each in group), key=lambda each: _KINDS.index(each["kind"]))
        value: dict[str, Any] = {"problem": problem}
        value |= {kind: [each["text"] for each in found if each["kind"] == kind] for kind in _KINDS}
        value["solution_reference"] = [each["solution_reference"] for each in found]
        yield replace(first, value=value, merged=len(group))


def _solution(row: Row) -> str:
    steps = row.fields.get("eval_solution")
    if isinstance(steps, str):
        return row.string("eval_solution")
    steps = row.sequence("eval_solution")
    named = replace(row, value={f"eval_solution[{place}]": step for place, step in enumerate(steps)})
    return "\n".join(named.string(name) for name in named.fields)


def _parse(reader: Row, part: str) -> Item:
    turns = reader.complete_prompt(reader.messages("problem", "user"))
    for kind in _KINDS:
        if not reader.fields[kind]:
            problem = f"is not {kind} in any row of the problem"
            raise reader.error(BadRowReason.WRONG_TYPE, "solution_type", problem, "Give right and wrong solutions.")
    right, wrong = response_list(reader, "chosen"), response_list(reader, "rejected")
    return Item(prompt=Prompt(turns), responses=right + wrong, correct=len(right), subset=_SUBSET, key="")


def _observe(scores: Sequence[ListScore]) -> list[Observation]:
    found = []
    for score in scores:
        rank = 1 + sum(reward >= max(score.right) for reward in score.wrong)
        found.append(Observation((_SUBSET, "accuracy"), score.group, float(min(score.right) > max(score.wrong))))
        found.append(Observation((_SUBSET, "MRR"), score.group, 1 / rank))
    return found


def _chance(scores: Sequence[ListScore]) -> list[Observation]:
    """Return what random rewards give if one solution is right."""
    found = []
    for score in scores:
        size = len(score.lengths)
        found.append(Observation((_SUBSET, "accuracy"), score.group, 1 / size))
        found.append(Observation((_SUBSET, "MRR"), score.group, sum(1 / rank for rank in range(1, size + 1)) / size))
    return found


def _scores(strata: Mapping[Stratum, int]) -> tuple[list[Score], list[str]]:
    accuracy = Score("overall", "overall", {(_SUBSET, "accuracy"): 1.0})
    return ([accuracy, Score("sections", "MRR", {(_SUBSET, "MRR"): 1.0})] if strata else []), []


def _submission(run: Mapping[str, str], scored: Scored) -> dict[str, Any]:
    """Return what `src/inference_reward.py` saves: the rewards of each problem's solutions, by their references."""
    rows = [
        {
            "problem": item.fields["problem"],
            "solution_reference": item.fields["solution_reference"],
            "score": score.rewards,
        }
        for item, score in scored
    ]
    return {f"{run['model'].rpartition('/')[2]}_reward.json": rows}


SUITE = Suite(
    name="rewardmath",
    title="RewardMATH",
    path="RewardMATH/RewardMATH",
    split="test",
    files=("test", "RewardMATH_direct"),
    homepage="https://huggingface.co/datasets/RewardMATH/RewardMATH",
    licence="see the homepage",
    citation=("Kim et al. (2024), Evaluating Robustness of Reward Models for Mathematical Reasoning, arXiv:2410.01729"),
    parse=_parse,
    gather=_gather,
    observe=_observe,
    chance=_chance,
    scores=_scores,
    submission=_submission,
)
