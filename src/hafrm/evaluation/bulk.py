"""Add rewards to rows: prompt and response get `reward`, pairs get `reward_chosen` and `reward_rejected`.

If the model has several reward heads, the standard errors are in `reward_error`, or `reward_error_chosen` and
`reward_error_rejected`. Divided rewards are in `token_rewards`, or `token_rewards_chosen` and `token_rewards_rejected`:
an object with `turns`, the text of each message of the response in pieces, each with its part of the reward or null;
`template`, the part of the chat template's tokens; and `reward`, the whole reward. The parts may not add up to
`reward`; the rest is the reward head's part. If only the reward head scores, each token's part is how much it changes
the reward so far, and the rest is the reward of an empty response.

Every row is written, in order, with all its fields except the results of an earlier scoring. If a row has no reward,
`unscored` says why.
"""

from __future__ import annotations

import gzip
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import chain, groupby, islice, repeat
from operator import attrgetter
from pathlib import Path
from typing import Any, BinaryIO, cast

from hafrm import atomic
from hafrm.contract import parse_conversation, parse_pair
from hafrm.data import MemoryData, OnBadRow, ReadOptions, read_rows
from hafrm.data.loading import open_sources
from hafrm.data.mappings import row_mapping, with_names
from hafrm.data.memory import plain_value
from hafrm.data.names import parsed
from hafrm.data.reports import listed
from hafrm.data.rowfiles import FORMATS, SPLITS_FILE, arrow_row, has_known_suffix, saved_files
from hafrm.errors import BadRowError, BadRowReason, UnreadableError
from hafrm.evaluation.options import ScoreConfig
from hafrm.evaluation.scoring import score_conversations, split_outcomes
from hafrm.models.loading import load_scorer
from hafrm.models.scorers import HybridScorer, Scorer, special_tokens_met
from hafrm.models.tokens import TokenRewards
from hafrm.outputs import require_unread
from hafrm.pairs import Conversation
from hafrm.rewards import DIVISION, ERROR, DetailedScorer, with_division, with_errors
from hafrm.rows import Row

CHUNK = 1024
"""Rows scored at a time. A scorer orders them by length and encodes equal prompts once."""

_SIDES = ("", "_chosen", "_rejected")

RESULTS = (*(f"{name}{side}" for name in ("reward", DIVISION, ERROR) for side in _SIDES), "unscored")
"""Fields that scoring writes, replacing earlier values."""


@dataclass(frozen=True)
class ScoredRow:
    """The result of scoring a row."""

    row: Row
    rewards: Mapping[str, float | None]
    """Rewards by output field: `reward`, or `reward_chosen` and `reward_rejected`."""
    details: Mapping[str, TokenRewards | float | None] = field(default_factory=dict)
    """Divided rewards, if they are wanted, or standard errors, by output field."""
    unscored: str | None = None
    """Why a reward is missing."""
    detail: str | None = None
    """Details of the reason, such as the field that breaks the data contract."""

    @property
    def line(self) -> dict[str, Any]:
        """Return the row with its rewards and without the fields of an earlier scoring."""
        fields = self.row.value if isinstance(self.row.value, Mapping) else {"row": self.row.number}
        line = {name: value for name, value in fields.items() if name not in RESULTS} | dict(self.rewards)
        line |= {name: asdict(each) if isinstance(each, TokenRewards) else each for name, each in self.details.items()}
        return line if self.unscored is None else line | {"unscored": self.unscored}


@dataclass
class ScoreCounts:
    """Number of rows with a reward, and number of rows without one by reason."""

    scored: int = 0
    unscored: Counter[str] = field(default_factory=Counter)
    altered: int = 0
    """Number of rows with NaN or infinity in a field, which is null in the output."""
    note: str = ""
    """A warning about conversations that contain special tokens; empty if there are none."""

    def add(self, row: ScoredRow) -> None:
        """Count a row."""
        self.altered += atomic.has_non_finite(row.row.value)
        if row.unscored is None:
            self.scored += 1
        else:
            self.unscored[row.unscored] += 1


def score_rows(config: ScoreConfig, *, config_files: Iterable[str] = ()) -> ScoreCounts:
    """Score a file's rows and write them out with their rewards.

    Args:
        config: What to score.
        config_files: The files from which the options were read, which must not be overwritten.

    Raises:
        BadRowError: a row breaks the data contract, and bad rows are not skipped.
        ConfigError: the output would overwrite what is read.
        UnreadableError: the file can't be read.
        ModelError: rewards of tokens are wanted, but the model has none.
    """
    if config.out is not None:
        atomic.require_place(Path(config.out))
        require_unread(Path(config.out), config, config_files, nested=True)
    bounds = config.shard_bounds(sum(1 for _ in _rows(config)) if config.shard else sys.maxsize)
    loaded = config.load(config.model, config.score)
    scorer = with_errors(loaded)
    if config.tokens:
        if isinstance(loaded, HybridScorer):
            loaded.by_prefix = True
        scorer = with_division(loaded, config.model)
    counts = ScoreCounts()
    rows = islice(_rows(config), *bounds)
    with _output(config.out) as file:
        while chunk := list(islice(rows, CHUNK)):
            for _, of_file in groupby(chunk, key=attrgetter("source")):
                for row in score_chunk(scorer, list(of_file), options=config.data_options):
                    file.write(atomic.json_line(row.line))
                    counts.add(row)
    counts.note = special_tokens_met(loaded)
    return counts


def _rows(config: ScoreConfig) -> Iterator[Row]:
    """Yield the selected rows of the data; of a folder without #SPLIT those of all its files.

    Raises:
        ConfigError: the name is that of a file, and has a split.
        UnreadableError: the data can't be read, or the folder contains no file of rows.
    """
    name = None if isinstance(config.data, MemoryData) else parsed(config.data)
    if name is None or name.split is not None or not Path(name.base).is_dir():
        (source,) = open_sources(config.data, split="test", options=config.data_options)
        yield from source.rows()
        return
    files = [*_files_of(Path(name.base))]
    if not files:
        raise UnreadableError(f"{config.data} contains no file of rows ({FORMATS}).")

    def rows() -> Iterator[Row]:
        return chain.from_iterable(map(read_rows, files))

    yield from name.selection.of(rows(), lambda: sum(1 for _ in rows()), config.data_options.split_seed)


def _files_of(folder: Path) -> Iterator[Path]:
    """Yield the files of rows in a folder and those below it, also of data sets that `datasets` saved there."""
    has_splits = (folder / SPLITS_FILE).is_file()
    if not has_splits and (saved := saved_files(folder, "")) is not None:
        yield from saved
        return
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink():
            yield from _files_of(path)
        elif has_known_suffix(path) and path.name != (SPLITS_FILE if has_splits else ""):
            yield path


class RowScorer:
    """Scores batches of rows, given as columns: for `map_batches` of Ray Data, or `map(..., batched=True)` of datasets.

    Args:
        model: The model, as in `load_scorer`.
        options: Further arguments of `load_scorer`.

    Example:
        >>> rows = ray.data.read_parquet("answers/").map_batches(
        ...     RowScorer, fn_constructor_args=["runs/haf"], concurrency=8, num_gpus=1
        ... )
    """

    def __init__(self, model: str, **options: Any) -> None:
        self.scorer = with_errors(load_scorer(model, **options))

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        """Return the batch's columns with `reward`, or `reward_chosen` and `reward_rejected`, and `unscored` added.

        If the model has several reward heads, the standard errors are added as well: `reward_error`, or
        `reward_error_chosen` and `reward_error_rejected`.
        """
        columns = {name: plain_value(values) for name, values in batch.items() if name not in RESULTS}
        rows = [
            Row(arrow_row(dict(zip(columns, values, strict=True))), "batch", number)
            for number, values in enumerate(zip(*columns.values(), strict=True), 1)
        ]
        scored = list(score_chunk(self.scorer, rows, options=ReadOptions(on_bad_row="skip")))
        lines = [{**row.rewards, **row.details} for row in scored]
        found = {name: [line.get(name) for line in lines] for name in dict.fromkeys(chain.from_iterable(lines))}
        return {**columns, **found, "unscored": [row.unscored for row in scored]}


class _TextOutput:
    """Writes lines of bytes to a standard output that only takes text, such as a notebook's."""

    def write(self, line: bytes) -> None:
        sys.stdout.write(line.decode())


@contextmanager
def _output(out: str | None) -> Iterator[BinaryIO]:
    if out is None:
        written = getattr(sys.stdout, "buffer", None) or _TextOutput()
        yield cast(BinaryIO, written)
        sys.stdout.flush()
    elif out.lower().endswith(".gz"):
        with atomic.new_file(Path(out)) as file, gzip.GzipFile(fileobj=file, mode="wb", mtime=0) as packed:
            yield cast(BinaryIO, packed)
    else:
        with atomic.new_file(Path(out)) as file:
            yield file


def score_chunk(scorer: Scorer, rows: Sequence[Row], *, options: ReadOptions) -> Iterator[ScoredRow]:
    """Score some rows together.

    Args:
        scorer: The scorer.
        rows: The rows, each a prompt with a response, or a pair in any known form.
        options: How rows are read, and whether a row that breaks the data contract raises an error or gets a reason
            instead of rewards.

    Raises:
        BadRowError: a row breaks the data contract, and bad rows are not skipped.
    """
    read = row_mapping(options)
    parsed = [_parse(with_names(row, options.renamed), read, options.on_bad_row) for row in rows]
    places = [(row.source, row.number) for row, (_, found, _) in zip(rows, parsed, strict=True) for _ in found]
    conversations = [conversation for _, found, _ in parsed for conversation in found]
    outcomes = iter(score_conversations(scorer, conversations, places, on_bad_row=options.on_bad_row))
    for row, (names, found, error) in zip(rows, parsed, strict=True):
        details = _details(scorer, names, found)
        if error is not None:
            yield ScoredRow(row, dict.fromkeys(names), details, error.reason.value, error.field)
            continue
        rewards, problem = split_outcomes(islice(outcomes, len(found)))
        yield ScoredRow(row, dict(zip(names, rewards, strict=True)), details, problem or None)


def _details(
    scorer: Scorer, names: Iterable[str], conversations: Sequence[Conversation]
) -> dict[str, TokenRewards | float | None]:
    """Return what a scorer keeps in addition to rewards, by output field; None for conversations without a reward."""
    if not isinstance(scorer, DetailedScorer):
        return {}
    fields = (name.replace("reward", scorer.name, 1) for name in names)
    each = map(scorer.details.get, conversations) if conversations else repeat(None)
    return dict(zip(fields, each, strict=False))


def reward_names(value: object) -> tuple[str, ...]:
    """Return the reward fields of a row; a row that is not an object gets `reward`."""
    return ("reward_chosen", "reward_rejected") if _is_pair(value) else ("reward",)


def _is_pair(value: object) -> bool:
    return isinstance(value, Mapping) and "response" not in value


def _nothing_to_score(row: Row) -> BadRowError:
    problem = f"is missing, as are `chosen` and `rejected` (columns: {listed([*row.fields]) or 'none'})"
    remedy = 'Give a response, or a pair; other names by `--data_options.columns "response: COLUMN"`.'
    return row.error(BadRowReason.MISSING_FIELD, "response", problem, remedy)


def _parse(
    row: Row, read: Callable[[Row], Any], on_bad_row: OnBadRow
) -> tuple[tuple[str, ...], tuple[Conversation, ...], BadRowError | None]:
    """Return the names of the row's reward fields, its conversations, and the error if it has none."""
    names = reward_names(row.value)
    try:
        if row.fault is not None:
            raise row.fault
        value = read(row)
        names = reward_names(value)
        if isinstance(value, Mapping) and not {"response", "chosen", "rejected"} & value.keys():
            raise _nothing_to_score(row)
        if not _is_pair(value):
            return names, (parse_conversation(value, source=row.source, number=row.number),), None
        return names, parse_pair(value, source=row.source, number=row.number).conversations, None
    except BadRowError as error:
        if on_bad_row == "error":
            raise
        return names, (), error
