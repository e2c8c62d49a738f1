"""Table 8's ways of finding the best of several responses, as plans whose questions can be counted.

Binary comparisons find the best by knock-out, the best two by two groups and a merge of their best, and the whole order
by merge insertion (Ford and Johnson), which needs the fewest for four and eight; that these are the paper's ways is
inferred from its numbers. Rankings of four use groups, a final and, for the complete order of eight, the middle.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

from hafrm.judging.judges import Answer, Question, Response
from hafrm.judging.tournament import Plan, Prompt, Ranking, best_first

_Order = Generator[list[Question], list[Answer], list[int]]
_Better = Callable[[int, int], Generator[list[Question], list[Answer], bool]]


def best_by_comparisons(prompt: Prompt, responses: Sequence[Response]) -> Plan:
    """The best response by knock-out: n - 1 comparisons."""
    order = yield from _knock_out(list(range(len(responses))), _asking(prompt, responses))
    return _ranking(order[:1], len(responses))


def top_two_by_comparisons(prompt: Prompt, responses: Sequence[Response]) -> Plan:
    """Find the best two: of four by 4 comparisons; of eight by 10, two groups and two comparisons of their best."""
    better = _asking(prompt, responses)
    half = len(responses) // 2
    groups = [list(range(half)), list(range(half, len(responses)))]
    bests = []
    for group in groups:
        bests.append((yield from _best_two(group, better)))
    best = yield from _merge_two(bests[0], bests[1], better)
    return _ranking(best, len(responses))


def order_by_comparisons(prompt: Prompt, responses: Sequence[Response]) -> Plan:
    """The whole order by merge insertion: 5 comparisons at most for four responses, 16 for eight."""
    order = yield from _merge_insertion(list(range(len(responses))), _asking(prompt, responses))
    return _ranking(order, len(responses))


def order_eight_by_fours(prompt: Prompt, responses: Sequence[Response]) -> Plan:
    """Find the complete order of eight by five rankings of four: two groups, their best, their worst, the middle."""

    def ask(*fours: Sequence[int]) -> Generator[list[Question], list[Answer], list[list[int]]]:
        answers = yield [Question(prompt, tuple(responses[i] for i in four)) for four in fours]
        return [best_first(four, answer) for four, answer in zip(fours, answers, strict=True)]

    a, b = yield from ask(range(4), range(4, 8))
    upper, lower = yield from ask(a[:2] + b[:2], a[2:] + b[2:])
    (middle,) = yield from ask(upper[2:] + lower[:2])
    return _ranking(upper[:2] + middle + lower[2:], 8)


def _asking(prompt: Prompt, responses: Sequence[Response]) -> _Better:
    """Compare two responses, given by their indices, with one question."""

    def better(first: int, second: int) -> Generator[list[Question], list[Answer], bool]:
        (answer,) = yield [Question(prompt, (responses[first], responses[second]))]
        return best_first([first, second], answer)[0] == first

    return better


def _ranking(best: Sequence[int], responses: int) -> Ranking:
    ranks = {place: rank for rank, place in enumerate(best, 1)}
    return Ranking(ranks=tuple(ranks.get(place) for place in range(responses)))


def _knock_out(places: list[int], better: _Better) -> _Order:
    while len(places) > 1:
        winners = []
        for first, second in zip(places[::2], places[1::2], strict=False):
            winners.append(first if (yield from better(first, second)) else second)
        places = winners + places[len(places) // 2 * 2 :]
    return places


def _best_two(places: list[int], better: _Better) -> _Order:
    """Find the best two, in order, by halving and merging."""
    if len(places) == 1:
        return places
    half = len(places) // 2
    first = yield from _best_two(places[:half], better)
    second = yield from _best_two(places[half:], better)
    return (yield from _merge_two(first, second, better))


def _merge_two(first: list[int], second: list[int], better: _Better) -> _Order:
    """Find the best two of two ordered lists with at most two items each."""
    merged: list[int] = []
    while len(merged) < 2 and first and second:
        if (yield from better(first[0], second[0])):
            merged, first = [*merged, first[0]], first[1:]
        else:
            merged, second = [*merged, second[0]], second[1:]
    return (merged + first + second)[:2]


def _merge_insertion(places: list[int], better: _Better) -> _Order:
    """Best first. After a first round of pairs, the losers are inserted into the order of the winners, in the order of
    Jacobsthal numbers, so that each binary search is among one less than a power of two.
    """
    if len(places) < 2:
        return places
    loser_of: dict[int, int] = {}
    for first, second in zip(places[::2], places[1::2], strict=False):
        wins = yield from better(first, second)
        loser_of[first if wins else second] = second if wins else first
    winners = yield from _merge_insertion(list(loser_of), better)
    order = winners[::-1]  # worst first: a loser goes in front of its winner
    pending = [(loser_of[winner], winner) for winner in order]
    if len(places) % 2:
        pending.append((places[-1], -1))
    for index in _jacobsthal(len(pending)):
        item, winner = pending[index]
        low, high = 0, order.index(winner) if winner >= 0 else len(order)
        while low < high:
            middle = (low + high) // 2
            if (yield from better(item, order[middle])):
                low = middle + 1
            else:
                high = middle
        order.insert(low, item)
    return order[::-1]


def _jacobsthal(count: int) -> list[int]:
    """The order of insertion, from 0: 0, 2 1, 4 3, 10 9 8 7 6 5, ..."""
    order, last, size, power = [0], 1, 2, 2
    while last < count:
        order += range(min(last + size, count) - 1, last - 1, -1)
        power *= 2
        last, size = last + size, power - size
    return order
