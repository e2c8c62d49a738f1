"""Encode sources of pairs as tables of token ids, in one pass, and keep the tables for later runs.

`ConversationEncoder` does the encoding. This module counts the pairs that are left out or raises errors for them, and
keeps the tables of large files in the cache folder under a hash of everything that they depend on.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import tempfile
import warnings
import weakref
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, cast

from filelock import FileLock

from hafrm import atomic
from hafrm.data.loading import PairSource, open_sources
from hafrm.data.mappings import mapping_digest
from hafrm.data.off_topic import with_off_topic
from hafrm.data.options import DataOptions
from hafrm.data.reports import SourceReport
from hafrm.data.tables import Account, LostText, PairTables, TableWriter
from hafrm.encoding import ConversationEncoder, Encoded, OverlongError, TokenGroup
from hafrm.errors import CHANGE_ROLES, BadRowError, BadRowReason, DataError, UnwritableError
from hafrm.pairs import PreferencePair

_CHUNK = 1024
"""Pairs encoded at a time."""

_ALONE = 8
"""Number of chunks that one process encodes in the time that starting several takes."""

_EXAMPLES = 5
"""Number of pairs that a `LostText` lists."""

_WORTH_KEEPING = 8 * 2**20
"""Bytes of the files from which their tables are kept; encoding smaller ones again takes seconds."""

_ENCODING = 2
"""Part of every cache key; increase it when hafrm computes other token ids from the same rows and tokenizer."""


def encode_pairs(
    pairs: Iterable[PreferencePair],
    encoder: ConversationEncoder,
    options: DataOptions,
    *,
    folder: Path | None = None,
    reports: Sequence[SourceReport] = (),
    limit: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> PairTables:
    """Encode pairs; those that do not fit are left out and counted.

    Args:
        pairs: The pairs, which are read once and not kept in memory.
        encoder: The encoder, with the tokenizer, the limit and the rule for over-long pairs.
        options: The options, whose `on_bad_row` applies to pairs that can't be encoded.
        folder: An empty folder for the tables; None keeps them in memory.
        reports: Reports of the pairs' sources, which are complete once all pairs have been read.
        limit: Maximum number of encoded pairs.
        progress: Called with the number of pairs read so far.

    Raises:
        BadRowError: under `overlong: truncate` a prompt alone fills the limit, or the chat template refuses a
            conversation, and bad rows are not skipped.
        DataError: no pair is left.
    """
    count, waiting = _Count(encoder, options), iter(pairs)
    with closing(TableWriter(folder, len(cast(Any, encoder.tokenizer)))) as writer:
        while _add_pairs(writer, count, islice(waiting, limit and limit - count.kept), progress):
            if limit is None or count.kept == limit:
                break
        if isinstance(waiting, Generator):
            waiting.close()  # completes the reports
        return writer.finish(replace(count.account(), reports=list(reports)))


def _add_pairs(
    writer: TableWriter, count: _Count, pairs: Iterator[PreferencePair], progress: Callable[[int], None]
) -> int:
    """Encode pairs and write them; return how many were read."""
    before = count.read
    chunks = iter(lambda: list(islice(pairs, _CHUNK)), [])
    with closing(_encoded_chunks(chunks, count.encoder)) as encoded:
        for chunk, outcomes in encoded:
            for pair, outcome in zip(chunk, outcomes, strict=True):
                if isinstance(outcome, TokenGroup):
                    writer.add(pair, outcome, count.read)
                count.add(pair, outcome)
            progress(count.read)
    return count.read - before


def _encoded_chunks(
    chunks: Iterator[list[PreferencePair]], encoder: ConversationEncoder
) -> Generator[tuple[list[PreferencePair], list[Encoded]]]:
    """Yield chunks with their outcomes, in order; many chunks are encoded by as many processes as there are CPUs.

    The processes are forked, as in the datasets library, so scripts need no main guard and the tokenizer is not copied.
    """
    first = list(islice(chunks, _ALONE))
    processes = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    if len(first) < _ALONE or processes < 2:
        for chunk in chain(first, chunks):
            yield chunk, _encode_chunk(chunk, encoder)
        return
    with ProcessPoolExecutor(
        processes, mp_context=get_context("fork"), initializer=_begin_worker, initargs=(encoder,)
    ) as pool:
        waiting: deque[tuple[list[PreferencePair], Future[list[Encoded]]]] = deque()
        try:
            for chunk in chain(first, chunks):
                with warnings.catch_warnings():  # Python 3.12 warns of forks of processes with threads
                    warnings.simplefilter("ignore", DeprecationWarning)
                    waiting.append((chunk, pool.submit(_encode_in_worker, chunk)))
                if len(waiting) > 2 * processes:
                    done, future = waiting.popleft()
                    yield done, future.result()
            while waiting:
                done, future = waiting.popleft()
                yield done, future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _encode_chunk(chunk: Sequence[PreferencePair], encoder: ConversationEncoder) -> list[Encoded]:
    return encoder.encode_many((pair.prompt, (pair.chosen, pair.rejected)) for pair in chunk)


_worker_encoder: ConversationEncoder
"""The encoder of a worker process."""


def _begin_worker(encoder: ConversationEncoder) -> None:
    global _worker_encoder
    _worker_encoder = encoder
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # every CPU has a process already
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends the others


def _encode_in_worker(chunk: list[PreferencePair]) -> list[Encoded]:
    return _encode_chunk(chunk, _worker_encoder)


class _Count:
    """Counts encoded pairs, pairs that are left out, and text that the chat template drops."""

    def __init__(self, encoder: ConversationEncoder, options: DataOptions) -> None:
        self.encoder, self.options = encoder, options
        self.read = 0
        self.kept = 0
        self._dropped: Counter[str] = Counter()
        self._first_fault = ""
        self._lost: Counter[str] = Counter()
        self._having: Counter[str] = Counter()
        self._examples: dict[str, list[str]] = {}

    def add(self, pair: PreferencePair, outcome: TokenGroup | OverlongError | DataError) -> None:
        self.read += 1
        if not isinstance(outcome, TokenGroup):
            self._dropped[self._reason(pair, outcome)] += 1
            self._first_fault = self._first_fault or (str(outcome) if isinstance(outcome, DataError) else "")
            return
        self.kept += 1
        self._having.update(_droppable(pair))
        for what in outcome.lost:
            self._lost[what] += 1
            examples = self._examples.setdefault(what, [])
            if len(examples) < _EXAMPLES and pair.id not in examples:
                examples.append(pair.id)

    def account(self) -> Account:
        if not self.kept:
            raise DataError(self._nothing_left())
        lost = [LostText(what, n, self._having[what], self._examples[what]) for what, n in self._lost.items()]
        return Account(dropped=dict(self._dropped), lost=lost)

    def _reason(self, pair: PreferencePair, fault: OverlongError | DataError) -> str:
        if isinstance(fault, OverlongError) and self.encoder.overlong == "drop":
            return "overlong_prompt" if fault.prompt_alone else "overlong"
        error = _bad_row(pair, fault)
        if self.options.on_bad_row == "error":
            raise error
        return error.reason.value

    def _nothing_left(self) -> str:
        if not self.read:
            return "There are no pairs to encode."
        counts = ", ".join(f"{count} {reason}" for reason, count in self._dropped.items())
        if self._first_fault:
            return f"None of the {self.read} pairs can be used ({counts}). First: {self._first_fault} {CHANGE_ROLES}"
        return (
            f"None of the {self.read} pairs can be used with `data_options.max_length: {self.encoder.max_length}` "
            f"({counts}). Raise the limit, or set `data_options.overlong: truncate`."
        )


def _droppable(pair: PreferencePair) -> Iterator[str]:
    """Yield the kinds of text of a pair that a template may drop, one per turn or column; see `TokenGroup.lost`."""
    for column, value in pair.prompt.columns.items():
        if column == "chat_template_kwargs":
            yield from (f"{column}.{argument}" for argument in value)
        elif value:
            yield column
    for turn in pair.turns:
        if turn.content:
            yield f"{turn.role} text"
        if turn.more:
            yield from (f"{turn.role} reasoning" for _ in [0] if turn.reasoning)
            yield from (f"{turn.role} {name}" for name, value in turn.extras.items() if value)


def _bad_row(pair: PreferencePair, fault: OverlongError | DataError) -> BadRowError:
    if isinstance(fault, OverlongError):
        return BadRowError(
            BadRowReason.PROMPT_TOO_LONG,
            source=pair.source,
            row=pair.row,
            field="prompt",
            problem=f"alone fills the limit of {fault.limit} tokens, so truncation leaves no response to score",
            remedy="Shorten it, or raise `data_options.max_length`.",
        )
    return BadRowError.refused(str(fault), source=pair.source, row=pair.row)


def load_tables(
    data: Any,
    encoder: ConversationEncoder,
    options: DataOptions,
    *,
    split: str = "train",
    limit: int | None = None,
    say: Callable[[str], None] = lambda line: None,
    progress: Callable[[int], None] = lambda done: None,
) -> PairTables:
    """Read and encode sources of pairs, or open the tables that an earlier run kept for the same content.

    Args:
        data: Data names or rows in memory, as for `load_pairs`.
        encoder: As for `encode_pairs`.
        options: Options for reading and encoding.
        split: The split, as for `load_pairs`.
        limit: Maximum number of encoded pairs, if a source has an unknown number of rows.
        say: Called with a warning if kept tables are damaged, or can't be kept.
        progress: Called with the number of pairs read so far.

    Raises:
        BadRowError, ConfigError, DataError, UnknownDataError, UnreadableError: see `load_pairs` and `encode_pairs`.
        UnwritableError: neither the cache folder nor the folder for temporary files has room for the tables.
    """

    def encoded(sources: Sequence[PairSource], folder: Path | None = None, limit: int | None = None) -> PairTables:
        reports, pairs = [source.report for source in sources], _pairs(sources, options)
        return encode_pairs(pairs, encoder, options, folder=folder, reports=reports, limit=limit, progress=progress)

    sources = open_sources(data, split=split, options=options)
    if any(source.endless for source in sources):
        return encoded(sources, limit=limit)
    if sum(source.bytes for source in sources) < _WORTH_KEEPING:
        return encoded(sources)
    key = _key(sources, split, encoder, options)
    if key is None:
        return _in_temporary_folder(partial(encoded, sources))
    folder = atomic.cache_folder("tables") / key
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if (kept := _kept_tables(folder, sources, say)) is not None:
                return kept
            with atomic.new_folder(folder) as temporary:
                encoded(sources, temporary)
            return PairTables.open(folder)
    except OSError as error:
        problem = f"{folder.parent} can't be written to ({error.strerror or error})"
        say(f"warning: {problem}, so the next run will encode the rows again")
        sources = open_sources(data, split=split, options=options)
        return _in_temporary_folder(partial(encoded, sources))


def _kept_tables(folder: Path, sources: Sequence[PairSource], say: Callable[[str], None]) -> PairTables | None:
    """Open tables in the cache; return None if there are none, or they are damaged."""
    if not folder.exists():
        return None
    try:
        tables = PairTables.open(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        say(f"warning: {folder} is damaged ({error}), so the rows are encoded again")
        return None
    for report, source in zip(tables.account.reports, sources, strict=True):
        report.name, report.read_from = source.report.name, source.report.read_from
    return tables


def _in_temporary_folder(encoded: Callable[[Path], PairTables]) -> PairTables:
    """Write tables to a folder that is deleted when they are no longer used."""
    try:
        folder = Path(tempfile.mkdtemp(prefix="hafrm-tables-"))
        tables = encoded(folder)
    except OSError as error:
        place = f"{atomic.cache_folder('tables')} and {tempfile.gettempdir()}"
        raise UnwritableError(f"There is no room for token ids in {place} ({error.strerror or error}).") from error
    weakref.finalize(tables, shutil.rmtree, folder, ignore_errors=True)
    return tables


def _pairs(sources: Sequence[PairSource], options: DataOptions) -> Iterator[PreferencePair]:
    share, seed = options.off_topic, options.split_seed
    try:
        for source in sources:
            yield from with_off_topic(source.pairs, source.report, share, seed) if share else source.pairs
    finally:
        for source in sources:
            if isinstance(source.pairs, Generator):
                source.pairs.close()


def _key(sources: Sequence[PairSource], split: str, encoder: ConversationEncoder, options: DataOptions) -> str | None:
    """Return a hash of everything that tables depend on; None if finding out would require reading the rows."""
    backend: Any = getattr(encoder.tokenizer, "backend_tokenizer", None)
    mapping = mapping_digest(options.mapping) if options.mapping else ""
    if backend is None or mapping is None or any(source.key is None for source in sources):
        return None
    tokenizer: Any = encoder.tokenizer
    depends_on = [
        _ENCODING,
        backend.to_str(),
        tokenizer.chat_template,
        {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        [encoder.max_length, encoder.overlong, encoder.scored_at, encoder.special_tokens, encoder.find_lost],
        [options.on_bad_row, options.split_seed, split, options.columns, options.score_margins, mapping],
        options.off_topic,
        [source.key for source in sources],
        [[str(path), _sha256(path)] for source in sources for path in source.reads],
    ]
    return hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()[:32]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
