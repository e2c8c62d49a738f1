"""Tournaments over a scripted judge, against brute force; Table 8 by counting."""

from __future__ import annotations

from collections import Counter
from itertools import permutations, product

import pytest

from hafrm.judging.judges import Answer, Question, Unscored
from hafrm.judging.tournament import compare, play, rank_at_once, top_two_of_eight
from hafrm.pairs import Prompt
from hafrm.paper.numbers import TABLE_8
from tests.judging.costs import (
    best_by_comparisons,
    order_by_comparisons,
    order_eight_by_fours,
    top_two_by_comparisons,
)
from tests.judging.scripts import PROMPT, ScriptedJudge, by_number, honest, numbers

EIGHT = list(permutations(range(8)))[::23]
"""1754 of the 40320 orders of eight; in some of them every position has every rank."""

WAYS = {
    ("binary comparison", "top-1"): best_by_comparisons,
    ("binary comparison", "top-2"): top_two_by_comparisons,
    ("binary comparison", "complete"): order_by_comparisons,
    ("rank 4 responses", "top-1", 8): top_two_of_eight,
    ("rank 4 responses", "top-2", 8): top_two_of_eight,
    ("rank 4 responses", "complete", 8): order_eight_by_fours,
}
"""Ranking all responses at once is tested elsewhere."""


@pytest.mark.parametrize("cell", [(way, *aim) for way, costs in TABLE_8.items() for aim in costs], ids=str)
def test_table_8_by_counting(cell: tuple[str, str, int]) -> None:
    """Each way finds the correct result in any order; its worst case costs what the paper prints."""
    way, aim, count = cell
    plan = WAYS.get((way, aim)) or WAYS.get(cell, rank_at_once)
    orders = list(permutations(range(4))) if count == 4 else EIGHT
    outcomes = play(honest(), [plan(PROMPT, numbers(order)) for order in orders])
    wanted = {"top-1": 1, "top-2": 2, "complete": count}[aim]
    for order, outcome in zip(orders, outcomes, strict=True):
        ranks = outcome.ranking.ranks
        assert ranks is not None
        found = {rank: order[place] for place, rank in enumerate(ranks) if rank is not None}
        assert [found[rank] for rank in range(1, wanted + 1)] == sorted(order, reverse=True)[:wanted]
    cost = TABLE_8[way][aim, count]
    dearest = max(outcomes, key=lambda outcome: outcome.requests)
    assert (dearest.requests, dearest.shown) == (cost.queries, cost.printed)


@pytest.mark.parametrize("plan", [best_by_comparisons, order_by_comparisons])
@pytest.mark.parametrize("count", [1, 2, 3, 5, 6, 7])
def test_comparisons_for_other_counts(plan, count: int) -> None:
    orders = list(permutations(range(count)))[:: 1 if count < 7 else 11]
    for order, outcome in zip(orders, play(honest(), [plan(PROMPT, numbers(order)) for order in orders]), strict=True):
        ranks = outcome.ranking.ranks
        assert ranks is not None
        assert all(rank in (None, count - value) for rank, value in zip(ranks, order, strict=True))
        assert 1 in ranks


def test_figure_10_asks_two_groups_then_a_final() -> None:
    judge = honest()
    values = [3, 8, 1, 7, 6, 2, 5, 4]
    (outcome,) = play(judge, [top_two_of_eight(PROMPT, numbers(values))])
    assert outcome.ranking.ranks == (None, 1, None, 2, None, None, None, None)
    asked = [[int(response[0].content) for response in question.responses] for question in judge.asked]
    assert asked == [[3, 8, 1, 7], [6, 2, 5, 4], [8, 7, 6, 5]]
    assert (outcome.requests, outcome.shown) == (3, 12)


VERDICTS = {"first": (1, 2), "second": (2, 1), "tie": (1, 1)}


@pytest.mark.parametrize(("forward", "backward"), list(product(VERDICTS, VERDICTS)), ids=str)
def test_a_pair_counts_where_both_orders_agree(forward: str, backward: str) -> None:
    """`forward` and `backward` say which response wins, by its position in the question."""
    replies = iter([VERDICTS[forward], VERDICTS[backward]])
    judge = ScriptedJudge(lambda question: Answer(ranks=next(replies)))
    (outcome,) = play(judge, [compare(PROMPT, numbers([1, 2]))])
    same = {("first", "second"): (1, 2), ("second", "first"): (2, 1), ("tie", "tie"): (1, 1)}
    assert outcome.ranking.ranks == same.get((forward, backward), (1, 1))
    assert outcome.ranking.flipped == ((forward, backward) not in same)
    assert judge.asked[0].responses == judge.asked[1].responses[::-1]
    assert (outcome.requests, outcome.shown) == (2, 4)


def test_equal_responses_tie_unasked() -> None:
    judge = honest()
    (outcome,) = play(judge, [compare(PROMPT, numbers([1, 1]))])
    assert outcome.ranking.ranks == (1, 1)
    assert outcome.ranking.flipped is None
    assert not judge.asked


def test_a_judge_that_sees_no_order_is_asked_once() -> None:
    judge = ScriptedJudge(by_number, order_matters=False)
    (outcome,) = play(judge, [compare(PROMPT, numbers([1, 2]), both_orders=judge.order_matters)])
    assert outcome.ranking.ranks == (2, 1)
    assert outcome.ranking.flipped is None
    assert outcome.requests == 1


@pytest.mark.parametrize("failing", range(3))
def test_an_unscored_answer_unscores_its_plan_alone(failing: int) -> None:
    """Questions that were asked still count; the other plan is not affected."""
    seen: Counter[str] = Counter()

    def answer(question: Question) -> Answer:
        if question.prompt != PROMPT:
            return by_number(question)
        seen["asked"] += 1
        if seen["asked"] == failing + 1:
            return Answer(unscored=Unscored.NOT_JSON, prompt_tokens=5)
        return by_number(question)

    values = [3, 8, 1, 7, 6, 2, 5, 4]
    spoilt, whole = play(
        ScriptedJudge(answer),
        [top_two_of_eight(PROMPT, numbers(values)), top_two_of_eight(Prompt(PROMPT.turns * 2), numbers(values))],
    )
    assert spoilt.ranking.unscored is Unscored.NOT_JSON
    assert spoilt.ranking.ranks is None
    assert spoilt.prompt_tokens == 5
    assert spoilt.requests == (3 if failing == 2 else 2)
    assert whole.ranking.ranks == (None, 1, None, 2, None, None, None, None)


def test_a_tied_final_has_two_firsts() -> None:
    (outcome,) = play(honest(), [top_two_of_eight(PROMPT, numbers([9, 1, 1, 1, 9, 1, 1, 1]))])
    assert outcome.ranking.ranks == (1, None, None, None, 1, None, None, None)


def test_what_was_not_asked_costs_nothing() -> None:
    judge = ScriptedJudge(lambda question: Answer(unscored=Unscored.STOPPED))
    (outcome,) = play(judge, [compare(PROMPT, numbers([1, 2]))])
    assert outcome.ranking.unscored is Unscored.STOPPED
    assert (outcome.requests, outcome.shown) == (0, 0)
