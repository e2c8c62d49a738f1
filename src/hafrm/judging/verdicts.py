"""`verdicts.jsonl`: a line for each judged row, written as it comes, so that a stopped run goes on.

`judge.json` beside it says what the verdicts depend on, and binds later runs once there is an answer. Lines whose
question failed, rather than was answered, are taken out when a run goes on, and their questions are asked again. Rows
are known by their texts, so the file that they came from may lie elsewhere by then.
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

__all__ = ["HEADER_FILE", "VERDICTS_FILE", "Verdict", "resume_verdicts", "verdict_of"]

VERDICTS_FILE = "verdicts.jsonl"
HEADER_FILE = "judge.json"

_FORMAT = "format"
_FORMAT_NOW = 2
"""1, which was not written, knew rows by their file's path, and drew the order of responses by it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a judge found of one row, and what that took."""

    id: str
    """Where the row stands, as `source:row`."""
    group: str
    models: list[str]
    labelled: bool
    """Whether the first response is known to be the better one."""
    lengths: list[int]
    """Characters of each response."""
    ranks: list[int | None] | None
    """1 is the best, equal ranks are a tie; None for responses below the best two of eight, or for all of them."""
    flipped: bool | None
    """Whether the two orders of a pair disagree; None where there was one order, or no verdict."""
    unscored: str | None
    reply: str | None
    """How a reply that could not be read looks, shortened; None where there is none."""
    requests: int
    """Questions put to the judge, or found in the cache of replies."""
    responses_shown: int
    """Responses in them: the units of Table 8."""
    prompt_tokens: int
    completion_tokens: int
    key: str = ""
    """The row's name by its texts, by which a run that goes on knows it; empty in files of the first format."""

    @property
    def failed(self) -> bool:
        """Whether there was no answer, rather than none that counts."""
        return self.unscored is not None and self.unscored in FAILURES

    def line(self) -> bytes:
        """The verdict as one line of JSON."""
        return atomic.json_line(asdict(self))


def verdict_of(item: Item, outcome: Outcome, order: Iterable[int]) -> Verdict:
    """The verdict on an item whose responses were judged in another order.

    Args:
        item: What was judged.
        outcome: What was found of it.
        order: The places in the item of the responses that the outcome is about.
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
    """The verdicts to keep of an earlier run; the file then holds these and no others.

    Raises:
        ConfigError: the folder holds verdicts of another judge, other rows or other options, or of an older format.
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
    """The verdicts, each with the place where its row stands now."""
    places = {item.key: item.id for item in items}
    keys = {verdict.key for verdict in verdicts}
    if not keys <= places.keys() or len(keys) < len(verdicts):
        raise DataError(f"{path} holds lines that are not of these rows, or twice. Give another --out.")
    return [replace(verdict, id=places[verdict.key]) for verdict in verdicts]


def _read(path: Path) -> list[Verdict]:
    """The file's verdicts, without the half line that a killed run may have left."""
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
