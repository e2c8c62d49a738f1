"""State what an evaluation shows, in sentences that follow from its corrected paired tests alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from hafrm.report.loading import Evaluation
from hafrm.report.tables import AVERAGE, accuracy_table, marked_best, suite_tables
from hafrm.report.wording import count, listed, p_value, points, short_names

_MOST_PAIRED = 3
"""Maximum number of models that are compared pairwise in words; of more, only the best are named."""


@dataclass(frozen=True)
class _Outcome:
    """A test of two models on one data set or benchmark."""

    place: str
    better: str | None
    figures: str


def title_of(evaluation: Evaluation) -> str:
    """Name the models and the data of an evaluation: "haf and dpo on helpful.jsonl"."""
    models, data = (list(short_names(names).values()) for names in (evaluation.models, evaluation.data))
    places = [*data, *(suite["title"] for suite in evaluation.results.suites.values())]
    where = listed(places) if len(places) < 3 else count(len(data), "data set") if data else count(len(places), "suite")
    return f"{listed(models) if len(models) < 5 else count(len(models), 'model')} on {where}"


def verdicts(evaluation: Evaluation) -> list[str]:
    """Return the conclusions, one sentence each: which models are ahead of which, and where.

    A model is ahead where the p-value of the paired test, corrected by Holm for all comparisons, is below 5%.
    """
    if len(evaluation.models) == 1:
        return list(_alone(evaluation))
    if len(evaluation.models) > _MOST_PAIRED and evaluation.data:
        return list(_leaders(evaluation))
    names = short_names(evaluation.models)
    of_data, of_suites = (
        {pair: found for pair in combinations(evaluation.models, 2) if (found := outcomes(evaluation, *pair))}
        for outcomes in (_outcomes_on_data, _outcomes_on_suites)
    )
    lines = []
    for noun, tested in (("set", of_data), ("benchmark", of_suites)):
        undecided = all(each.better is None for found in tested.values() for each in found)
        if len(tested) > 1 and undecided:
            places = dict.fromkeys(each.place for found in tested.values() for each in found)
            lines.append(f"{listed(list(names.values()))} don't differ significantly {_on_none(list(places), noun)}.")
        else:
            lines += [_sentence(names[a], names[b], a, found, noun) for (a, b), found in tested.items()]
    return lines or ["There are too few prompts to tell the models apart."]


def _alone(evaluation: Evaluation) -> Iterator[str]:
    table = accuracy_table(evaluation)
    cell, longer = table.models[0].cells[:1], table.baselines[0].cells[:1]
    if cell and cell[0] and longer and longer[0]:
        (name,) = short_names(evaluation.models).values()
        average = " on average" if table.columns[0][0] == AVERAGE else ""
        yield (
            f"{name} gives the better response the higher reward in {cell[0].accuracy}% of the pairs{average}; "
            f"always choosing the longer one would be right in {longer[0].accuracy}%."
        )


def _leaders(evaluation: Evaluation) -> Iterator[str]:
    """Name the models that are ahead of all others on a data set."""
    models, data = short_names(evaluation.models), short_names(evaluation.data)
    best = {name: marked_best(evaluation, name) for name in data}
    for model in dict.fromkeys(filter(None, best.values())):
        won = [data[name] for name in best if best[name] == model]
        yield f"{models[model]} is the most accurate model {_on_some(won, len(data), 'set')}."
    if left := [data[name] for name in best if best[name] is None]:
        yield f"The two most accurate models don't differ significantly {_on_some(left, len(data), 'set')}."


def _outcomes_on_data(evaluation: Evaluation, a: str, b: str) -> list[_Outcome]:
    names = short_names(evaluation.data)
    return [
        _Outcome(names[each.data], each.better, _figures(points(each.difference), p_value(each.p_holm)))
        for each in evaluation.results.comparisons
        if {each.a, each.b} == {a, b} and each.ci95
    ]


def _outcomes_on_suites(evaluation: Evaluation, a: str, b: str) -> list[_Outcome]:
    return [
        _Outcome(suite.title, row.better, _figures(row.difference, row.p_holm))
        for suite in suite_tables(evaluation)
        for row in suite.differences
        if row.score == "overall" and {row.a, row.b} == {a, b} and row.interval
    ]


def _figures(difference: str, p: str) -> str:
    return f"{difference.lstrip('+−')} points, p {p if p.startswith('<') else f'= {p}'}"


def _sentence(a: str, b: str, first: str, found: Sequence[_Outcome], noun: str) -> str:
    """State where one model is ahead of another, given their short names and the first one's full name."""
    won = [each.place for each in found if each.better == first]
    lost = [each.place for each in found if each.better not in (None, first)]
    if lost and not won:
        a, b, won, lost = b, a, lost, won
    if len(found) == 1:
        relation = f"{a} is ahead of {b}" if won else f"{a} and {b} don't differ significantly"
        return f"{relation} on {found[0].place} ({found[0].figures})."
    if not won:
        return f"{a} and {b} don't differ significantly {_on_none([each.place for each in found], noun)}."
    behind = f" and behind {_on_some(lost, len(found), noun)}" if lost else ""
    left = len(found) - len(won) - len(lost)
    others = f"; on {'the other' if left == 1 else f'the other {left}'} they don't differ significantly" if left else ""
    return f"{a} is ahead of {b} {_on_some(won, len(found), noun)}{behind}{others}."


def _on_none(places: Sequence[str], noun: str) -> str:
    return f"on {places[0]}" if len(places) == 1 else f"on any of the {len(places)} {noun}s"


def _on_some(places: Sequence[str], total: int, noun: str) -> str:
    if total == 1:
        return f"on {places[0]}"
    if len(places) == total:
        return f"on all {total} {noun}s"
    named = f" ({listed(places)})" if len(places) < 4 else ""
    return f"on {len(places)} of {total} {noun}s{named}"
