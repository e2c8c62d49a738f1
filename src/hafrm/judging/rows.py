"""The rows to judge: prompts with two, four or eight responses, or labelled pairs."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

from hafrm.contract import parse_pair
from hafrm.data import ReadOptions, SourceReport, nothing_left, read_records
from hafrm.data.reports import Drop
from hafrm.errors import BadRowReason, DataError
from hafrm.judging.judges import Response
from hafrm.judging.options import Mode
from hafrm.pairs import PreferencePair, Prompt, prompt_group
from hafrm.rows import Row

_SIZES: dict[Mode, tuple[int, ...]] = {"pair": (2,), "rank": (4, 8)}
_LABELS = ("chosen", "rejected")

SAMPLES_FILE = "samples.jsonl"
"""The file of responses in a folder of `hafrm sample`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A prompt with the responses to judge."""

    id: str
    """The row as `source:row`, for messages; `key` identifies the row if its file is moved."""
    group: str
    prompt: Prompt
    responses: tuple[Response, ...]
    models: tuple[str, ...] = ()
    """Names of the responses in results: their models, or their positions."""
    labelled: bool = False
    """Whether the first response is known to be the better one."""
    repeat: int = 0
    """Number of equal items before this one."""

    @property
    def key(self) -> str:
        """Hash of the item's texts, which stays the same if the file is moved; equal items are numbered."""
        texts = [self.prompt.turns, *self.responses]
        plain = json.dumps([[message.as_dict() for message in messages] for messages in texts]) + self.prompt.arguments
        digest = hashlib.sha256(plain.encode()).hexdigest()[:16]
        return f"{digest}-{self.repeat}" if self.repeat else digest


@dataclass
class Items:
    """The items of a data set to judge, and the number of rows that can't be judged."""

    items: list[Item] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    """Number of rows left out, by reason: they are invalid, or a rule or split of their source excludes them."""

    @property
    def sha256(self) -> str:
        """A fingerprint of all texts, in order, independent of file paths."""
        digest = hashlib.sha256()
        for item in self.items:
            values = {name: value for name, value in asdict(item).items() if name != "id"}
            digest.update(json.dumps(values).encode() + b"\n")
        return digest.hexdigest()


def load_items(data: str, mode: Mode, options: ReadOptions, *, split: str = "test") -> Items:
    """Read a file of rows, or the pairs of a named data set.

    Args:
        data: A file whose rows have `prompt` and `responses` (strings or chat messages; optional `models`, a name for
            each), or pairs; or the name of a data set.
        mode: `pair` takes two responses or a pair, `rank` four or eight responses.

    Raises:
        BadRowError: a row is invalid, and `on_bad_row` is not `skip`.
        UnreadableError: the file can't be read.
        DataError: there is nothing to judge.
    """
    if mode == "rank" and not Path(data).is_file():
        raise DataError(f"{data}: no such file. --mode rank reads a file of rows with `prompt` and `responses`.")
    report = SourceReport(name=data, kind="file", split=split)
    rows = read_records(data, report, options, partial(_item, mode), of_pair=_of_pair, split=split)
    found = Items(list(_numbered(rows)), report.left_out)
    if not found.items:
        raise nothing_left(data, "is nothing to judge", [report])
    return found


def load_joined(ours: str, theirs: str, options: ReadOptions) -> Items:
    """Join two models' samples by prompt: an item for each prompt that both answered, with the first response of each.

    Args:
        ours: A file of rows with `prompt` and `responses`, or a folder of `hafrm sample`.

    Raises:
        DataError: there is no prompt that both answered.
    """
    places = [Path(name) / SAMPLES_FILE if Path(name).is_dir() else Path(name) for name in (ours, theirs)]
    names = [path.parent.name or str(path) for path in places]
    if names[0] == names[1]:
        names = list(map(str, places))
    reports = [SourceReport(name=str(path), kind="file") for path in places]
    sides = [
        {item.prompt: item for item in read_records(str(path), report, options, _first_of_samples)}
        for path, report in zip(places, reports, strict=True)
    ]
    joined = [
        replace(item, responses=(item.responses[0], sides[1][prompt].responses[0]), models=tuple(names))
        for prompt, item in sides[0].items()
        if prompt in sides[1]
    ]
    found = Items(list(_numbered(joined)), reports[0].left_out + reports[1].left_out)
    alone = len(sides[0].keys() ^ sides[1].keys())
    found.skipped += Counter({"answered_by_one": alone} if alone else {})
    if not found.items:
        raise nothing_left(f"{ours} and {theirs}", "is no prompt that both answer", reports)
    return found


def _first_of_samples(reader: Row) -> Item | Drop:
    """Read the first response of a row; prompts that were not sampled for, or got an empty response, are left out."""
    if reader.fields.get("unsampled"):
        return Drop(str(reader.fields["unsampled"]))
    (first, *_) = reader.responses("Give at least one response.", bool)
    if not any(message.text.strip() for message in first):
        return Drop("empty_response")
    return _item_of(reader, [first])


def _item_of(reader: Row, responses: Iterable[Response]) -> Item:
    prompt = reader.prompt()
    return Item(
        id=f"{reader.source}:{reader.number}",
        group=reader.string_or_none("group") or prompt_group(prompt),
        prompt=prompt,
        responses=tuple(responses),
    )


def _numbered(items: Iterable[Item]) -> Iterator[Item]:
    """Yield the items, each with the number of equal ones before it."""
    seen: Counter[str] = Counter()
    for item in items:
        key = item.key
        yield replace(item, repeat=seen[key])
        seen[key] += 1


def _item(mode: Mode, reader: Row) -> Item:
    if mode == "pair" and not reader.has("responses"):
        return _of_pair(parse_pair(reader.fields, source=reader.source, number=reader.number))
    sizes = _SIZES[mode]
    others = ", or `chosen` and `rejected`" if mode == "pair" else ""
    responses = reader.responses(f"--mode {mode} takes {' or '.join(map(str, sizes))}{others}.", sizes.__contains__)
    for place, response in enumerate(responses):
        reader.check_response(f"responses[{place}]", response)
    return replace(_item_of(reader, responses), models=_models(reader, len(responses)))


def _models(reader: Row, count: int) -> tuple[str, ...]:
    if not reader.has("models"):
        return tuple(f"response {place}" for place in range(1, count + 1))
    names = reader.fields["models"]
    fit = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if not fit or len(names) != count or len(set(names)) < count:
        raise reader.error(
            BadRowReason.WRONG_TYPE,
            "models",
            "does not name each response once",
            f"Give {count} different names, or leave the field out.",
        )
    for name in names:
        reader.check_text("models", name)
    return tuple(names)


def _of_pair(pair: PreferencePair) -> Item:
    return Item(
        id=pair.id,
        group=pair.group,
        prompt=pair.prompt,
        responses=(pair.chosen, pair.rejected),
        models=_LABELS,
        labelled=True,
    )
