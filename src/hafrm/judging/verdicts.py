"""`verdicts.jsonl`: a line per judged row, written as it comes, so that a stopped run can be resumed.

`judge.json` next to it records what the verdicts depend on, which later runs must match once there is an answer. When a
run is resumed, lines whose question failed are removed, and their questions are asked again. Rows are identified by
their texts, so their file may have moved.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from hafrm import atomic
from hafrm.errors import ConfigError, DataError
from hafrm.judging.judges import FAILURES, Unscored
from hafrm.judging.rows import Item
from hafrm.judging.tournament import Outcome

VERDICTS_FILE = "verdicts.jsonl"
HEADER_FILE = "judge.json"

_FORMAT = "format"
_FORMAT_NOW = 2
"""Format 1, which had no format field, identified rows by their file's path and drew the order of responses by it."""


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
    """Characters of each response."""
    ranks: list[int | None] | None
    """1 is the best, equal ranks are a tie; None for responses below the best two of eight, or for all of them."""
    flipped: bool | None
    """Whether the two orders of a pair disagree; None if there was one order, or no verdict."""
    unscored: str | None
    reply: str | None
    """A shortened reply that could not be read; None if there is none."""
    requests: int
    """Questions put to the judge, or answered from the cache of replies."""
    responses_shown: int
    """Responses in these questions: the unit of Table 8."""
    prompt_tokens: int
    completion_tokens: int
    key: str = ""
    """The row's name computed from its texts, which identifies it on resume; empty in files of the first format."""

    @property
    def failed(self) -> bool:
        """Return whether the judge could not be asked, as opposed to an answer that can't be used."""
        return self.unscored is not None and self.unscored in FAILURES

    def line(self) -> bytes:
        """Encode the verdict as one line of JSON."""
        return atomic.json_line(asdict(self))


def verdict_of(item: Item, outcome: Outcome, order: Iterable[int]) -> Verdict:
    """Make the verdict on an item whose responses were judged in another order.

    Args:
        item: The judged item.
        outcome: The result of its plan.
        order: Indices in the item of the responses of the outcome.
    """
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
    """Return the verdicts of an earlier run that can be kept, and remove all others from the file.

    Raises:
        ConfigError: the folder has verdicts of another judge, other rows or other options, or of an older format.
        DataError: its files are damaged.
    """
    path = folder / VERDICTS_FILE
    now = {_FORMAT: _FORMAT_NOW, **json.loads(json.dumps(depends_on))}
    before = _read_header(folder) if path.exists() and path.stat().st_size else None
    verdicts = [] if before is None else _read(path)
    answered = [verdict for verdict in verdicts if not verdict.failed]
    if before is None or all(verdict.ranks is None for verdict in verdicts):  # without a verdict nothing is lost
        atomic.write_json(folder / HEADER_FILE, now)
        atomic.write_text(path, "")
        return []
    _require_same(folder, before, now)
    atomic.drop_half_line(path)
    kept = _at_their_places(path, answered, items)
    if kept != verdicts:
        with atomic.new_file(path) as file:
            file.writelines(verdict.line() for verdict in kept)
    return kept


def _read_header(folder: Path) -> dict[str, Any]:
    header = folder / HEADER_FILE
    try:
        return dict(json.loads(header.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(
            f"{header} is missing or damaged, so nobody knows what {folder / VERDICTS_FILE} is of. Give another --out."
        ) from error


def _require_same(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    if _FORMAT not in before:
        raise ConfigError(
            f"{folder} holds verdicts of an older hafrm, which drew the order of responses by the path of their file. "
            "Move the folder away, or give another --out."
        )
    changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if changed:
        raise ConfigError(f"{folder} holds verdicts with another {', '.join(changed)}. Give another --out.")


def _at_their_places(path: Path, verdicts: Sequence[Verdict], items: Iterable[Item]) -> list[Verdict]:
    """Return the verdicts with the current ids of their rows."""
    places = {item.key: item.id for item in items}
    keys = {verdict.key for verdict in verdicts}
    if not keys <= places.keys() or len(keys) < len(verdicts):
        raise DataError(f"{path} holds lines that are not of these rows, or twice. Give another --out.")
    return [replace(verdict, id=places[verdict.key]) for verdict in verdicts]


def _read(path: Path) -> list[Verdict]:
    """Read the file's verdicts, without the partial last line of a killed run."""
    verdicts = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        if not line:
            continue
        try:
            row = {"key": "", "reply": None, **json.loads(line)}
            verdict = Verdict(**{field.name: row[field.name] for field in fields(Verdict)})
            if verdict.unscored is not None:
                Unscored(verdict.unscored)
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}, line {number}, is no verdict ({error}). Give another --out.") from error
        verdicts.append(verdict)
    return verdicts
