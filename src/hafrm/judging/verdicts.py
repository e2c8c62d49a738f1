"""`verdicts.jsonl`, with a line per judged row, which lets stopped runs resume; and the summary of its verdicts.

`judge.json` records what the verdicts depend on; once there is a verdict, later runs in the folder must match it. When
a run resumes, it removes the lines of questions that failed and asks them again. Rows are identified by their texts, so
their file may have been moved.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hafrm.errors import DataError
from hafrm.judging.judges import FAILURES, Unscored
from hafrm.judging.rows import Item
from hafrm.judging.tournament import Outcome
from hafrm.stats import bootstrap_interval, hits, top_k_hits
from hafrm.store import LineFile, RunFolder

VERDICTS_FILE = "verdicts.jsonl"
HEADER_FILE = "judge.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A judge's verdict on one row, and its cost."""

    id: str
    """The row as `source:row`."""
    group: str
    models: list[str]
    labelled: bool
    """Whether the first response is known to be the better one."""
    lengths: list[int]
    """Number of characters of each response."""
    ranks: list[int | None] | None
    """1 is the best, equal ranks are a tie; None for those below the best two of eight. None without a verdict."""
    flipped: bool | None
    """Whether the two orders of a pair disagree; None if only one was asked, or there is no verdict."""
    unscored: str | None
    reply: str | None
    """A reply that could not be parsed, shortened."""
    requests: int
    """Number of questions, including those answered from the cache."""
    responses_shown: int
    """Number of responses in these questions: Table 8's unit of cost."""
    prompt_tokens: int
    completion_tokens: int
    key: str
    """Hash of the row's texts, by which it is recognised on resume."""

    @property
    def failed(self) -> bool:
        """Whether the question failed, as opposed to a reply that could not be parsed."""
        return self.unscored is not None and self.unscored in FAILURES


def verdict_of(item: Item, outcome: Outcome, order: Iterable[int]) -> Verdict:
    """Create the verdict on an item from the outcome of its plan, which has the item's responses in this `order`."""
    ranking = outcome.ranking
    placed = dict(zip(order, ranking.ranks, strict=True)) if ranking.ranks is not None else {}
    return Verdict(
        id=item.id,
        group=item.group,
        models=list(item.models),
        labelled=item.labelled,
        lengths=[sum(len(message.text) for message in response) for response in item.responses],
        ranks=[placed[place] for place in range(len(item.responses))] if placed else None,
        flipped=ranking.flipped,
        unscored=ranking.unscored.value if ranking.unscored else None,
        reply=ranking.reply,
        requests=outcome.requests,
        responses_shown=outcome.shown,
        prompt_tokens=outcome.prompt_tokens,
        completion_tokens=outcome.completion_tokens,
        key=item.key,
    )


def resume_verdicts(folder: Path, depends_on: Mapping[str, Any], items: Iterable[Item]) -> list[Verdict]:
    """Return the verdicts of an earlier run that can be reused, and remove all others from the file.

    Raises:
        ConfigError: the folder has verdicts of another judge, other rows or other options.
        DataError: its files are damaged.
    """
    file, run = LineFile(folder / VERDICTS_FILE), RunFolder(folder, HEADER_FILE, "verdicts")
    verdicts = [] if file.empty else file.read(_verdict)
    if all(verdict.ranks is None for verdict in verdicts):  # without a verdict nothing is lost
        run.write_header(depends_on)
        file.replace([])
        return []
    run.require_same(depends_on)
    answered = [verdict for verdict in verdicts if not verdict.failed]
    ids = {item.key: item.id for item in items}
    keys = {verdict.key for verdict in answered}
    if not keys <= ids.keys() or len(keys) < len(answered):
        raise DataError(f"{file.path} has lines of other rows, or repeated lines. Choose another --out.")
    kept = [replace(verdict, id=ids[verdict.key]) for verdict in answered]  # their file may have moved
    if kept != verdicts:
        file.replace([asdict(verdict) for verdict in kept])
    return kept


def _verdict(row: Mapping[str, Any]) -> Verdict:
    verdict = Verdict(**row)
    if verdict.unscored is not None:
        Unscored(verdict.unscored)
    return verdict


def summarise(verdicts: Sequence[Verdict], *, rows: int) -> dict[str, Any]:
    """Summarise verdicts.

    Args:
        verdicts: The verdicts, including unscored ones.
        rows: Number of rows to judge; those without a verdict were not asked.

    Returns:
        Rates are in [0, 1], each with `n` and a 95% bootstrap interval over prompts in `ci95`, null if there are fewer
        than six prompts; a tie of two counts one half, and of more in equal parts. `unscored` counts rows by reason,
        and `unscored_replies` has the first unreadable reply for each. `responses` has, by the response's model,
        `win_rate` with `wins`, `ties` and `losses` (pairs), or `first` and `best_two`.
    """
    scored = [verdict for verdict in verdicts if verdict.ranks is not None]
    unscored = Counter(verdict.unscored for verdict in verdicts if verdict.unscored is not None)
    return {
        "rows": rows,
        "judged": len(scored),
        "unscored": dict(sorted(unscored.items())),
        "unscored_replies": _examples(verdicts),
        "not_asked": rows - len(verdicts),
        "responses": _by_model(scored),
        "agreement": _agreement(scored),
        "flip_rate": _flip_rate(scored),
        "requests": sum(verdict.requests for verdict in verdicts),
        "responses_shown": sum(verdict.responses_shown for verdict in verdicts),
        "prompt_tokens": sum(verdict.prompt_tokens for verdict in verdicts),
        "completion_tokens": sum(verdict.completion_tokens for verdict in verdicts),
    }


def nothing_judged(results: Mapping[str, Any]) -> str:
    """Return why a run has no verdict, in one line, from the contents of `results.json`."""
    reasons = [
        f"{count} {reason} ({Unscored(reason).explanation})"
        for reason, count in sorted(results["unscored"].items(), key=lambda each: -each[1])
    ]
    if results["run"]["stopped"]:
        reasons.append(f"{results['not_asked']} not asked because the run stopped: {results['run']['stopped']}")
    replies = results["unscored_replies"]
    reply = next((replies[reason] for reason in results["unscored"] if reason in replies), None)
    said = "" if reply is None else f" A reply: {reply or '(empty)'}"
    return f"none of the {results['rows']} rows was judged: {'; '.join(reasons)}.{said}"


def _examples(verdicts: Sequence[Verdict]) -> dict[str, str]:
    """Return one reply for each reason why replies could not be read."""
    found: dict[str, str] = {}
    for verdict in verdicts:
        if verdict.unscored is not None and verdict.reply is not None:
            found.setdefault(verdict.unscored, verdict.reply)
    return dict(sorted(found.items()))


def _by_model(scored: Sequence[Verdict]) -> dict[str, Any]:
    places: dict[str, list[tuple[Verdict, int]]] = defaultdict(list)
    for verdict in scored:
        for place, model in enumerate(verdict.models):
            places[model].append((verdict, place))
    return {model: _of_model(found) for model, found in places.items()}


def _of_model(found: Sequence[tuple[Verdict, int]]) -> dict[str, Any]:
    groups = [verdict.group for verdict, _ in found]
    first = [_share_of_best(verdict, place, 1) for verdict, place in found]
    if all(len(verdict.models) == 2 for verdict, _ in found):
        counts = Counter(first)
        return _rate(first, groups, "win_rate") | {"wins": counts[1.0], "ties": counts[0.5], "losses": counts[0.0]}
    best_two = [_share_of_best(verdict, place, 2) for verdict, place in found]
    return {"first": _rate(first, groups), "best_two": _rate(best_two, groups)}


def _share_of_best(verdict: Verdict, place: int, k: int) -> float:
    """Return the probability that a response is among the best k if ties are broken at random."""
    assert verdict.ranks is not None
    ranks = [float("inf") if rank is None else rank for rank in verdict.ranks]
    chosen = np.arange(len(ranks)) == place
    return float(top_k_hits([chosen], [ranks], k)[0])


def _agreement(scored: Sequence[Verdict]) -> dict[str, Any] | None:
    """Return how often the judge prefers the labelled response, and how often that is longer; ties count half."""
    labelled = [verdict for verdict in scored if verdict.labelled]
    if not labelled:
        return None
    values = [_share_of_best(verdict, 0, 1) for verdict in labelled]
    longer = hits([verdict.lengths[0] - verdict.lengths[1] for verdict in labelled])
    ties = sum(value == 0.5 for value in values)
    return _rate(values, [v.group for v in labelled]) | {"ties": ties, "length_agreement": float(longer.mean())}


def _flip_rate(scored: Sequence[Verdict]) -> dict[str, Any] | None:
    asked_twice = [verdict for verdict in scored if verdict.flipped is not None]
    if not asked_twice:
        return None
    return _rate([float(bool(v.flipped)) for v in asked_twice], [v.group for v in asked_twice])


def _rate(values: Sequence[float], groups: Iterable[str], name: str = "value") -> dict[str, Any]:
    return {"n": len(values), name: float(np.mean(values)), "ci95": bootstrap_interval(values, list(groups))}
