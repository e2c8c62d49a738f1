"""Encoded pairs as three tables: prompts, responses to them, and pairs of responses.

A prompt or response that occurs in several pairs is one row, so that pairs with the same prompt can share its
computation. The tables are numpy arrays; in a folder they are memory-mapped, so opening a million pairs reads none.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np

from hafrm import atomic
from hafrm.data.reports import SourceReport
from hafrm.encoding import TokenGroup
from hafrm.pairs import PreferencePair, pair_id, prompt_group
from hafrm.store import read_json

TABLES_FILE = "tables.json"
_FORMAT = 2
_TOKENS_FILE = "tokens.bin"
_TABLES = ("prompts", "responses", "pairs")

_SPAN = [("start", "<i8"), ("length", "<i4")]
_PROMPT = np.dtype(_SPAN)
_RESPONSE = np.dtype([*_SPAN, ("prompt", "<i8")])
_PAIR = np.dtype(
    [
        ("prompt", "<i8"),
        ("chosen", "<i8"),
        ("rejected", "<i8"),
        ("margin", "<f4"),
        ("source", "<i4"),
        ("row", "<i8"),
        ("part", "<i4"),
        ("index", "<i8"),
        ("text", "<u8"),
        ("special_tokens", "<i4"),
    ]
)


@dataclass(frozen=True)
class LostText:
    """Text that the chat template drops: part of one role's turns, tools, documents or template arguments."""

    what: str
    """Kind of text, as in `TokenGroup.lost`: "tool text", "assistant reasoning", "tools"."""
    count: int
    of: int
    """Number of turns or rows that have it."""
    examples: list[str]
    """Ids of the first affected pairs."""

    def __str__(self) -> str:
        role, _, part = self.what.rpartition(" ")
        if part.startswith("chat_template_kwargs."):
            return f"{part} changes nothing in {self.count} of {self.of} rows"
        where = f"turns (role {role})" if role else "rows"
        return f"the chat template drops the {part} of {self.count} of {self.of} {where}"


@dataclass
class Account:
    """What happened to the rows and pairs that were read for a table."""

    reports: list[SourceReport] = field(default_factory=list)
    """One report per source; empty if pairs were given rather than sources."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Number of pairs left out, by reason: "overlong" (a response exceeds the limit), "overlong_prompt" (the prompt
    alone fills it), or with `on_bad_row: skip` the `BadRowReason` of pairs that can't be encoded.
    """
    lost: list[LostText] = field(default_factory=list)
    """Text of the pairs that the chat template drops."""
    sources: list[str] = field(default_factory=list)
    """Names of the files or data sets of the pairs."""

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Account:
        """Restore an account from the plain values of `asdict`."""
        reports = [SourceReport(**report) for report in values["reports"]]
        return cls(reports, values["dropped"], [LostText(**lost) for lost in values["lost"]], values["sources"])


class PairTables(Sequence[TokenGroup]):
    """Encoded pairs: a sequence of token groups, with chosen before rejected, and columns of values per pair.

    Args:
        tokens: All token ids, [T].
        prompts: Start and length of the P prompts in `tokens`.
        responses: Start and length of the R responses in `tokens`, and their prompts.
        pairs: The N pairs as indices into the other tables, with their margins and sources.
        account: What happened to the rows that were read.
        folder: The folder that contains the tables, if any.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        prompts: np.ndarray,
        responses: np.ndarray,
        pairs: np.ndarray,
        account: Account,
        folder: Path | None = None,
    ) -> None:
        self._tokens, self._prompts, self._responses = tokens, prompts, responses
        self.pairs = pairs
        """The table of pairs, [N], with the fields prompt, chosen, rejected (rows of the other tables), margin (NaN if
        the data has none), source, row, part (see `PreferencePair`), index (number among the pairs that were read),
        text (of the prompt, hashed) and special_tokens.
        """
        self.account, self.folder = account, folder

    @classmethod
    def open(cls, folder: Path) -> PairTables:
        """Open the tables in a folder.

        Raises:
            OSError, ValueError: a file is missing, truncated or not written by `TableWriter`.
        """
        values = read_json(folder / TABLES_FILE)
        if values is None or values.get("format") != _FORMAT:
            raise ValueError(f"{TABLES_FILE} is missing, damaged or of another version")
        account = Account.from_json(values["account"])
        tables = [np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in _TABLES]
        tokens = np.memmap(folder / _TOKENS_FILE, dtype=values["tokens"]["dtype"], mode="r")
        prompts, responses, pairs = tables
        if [len(tokens), *map(len, tables)] != values["tokens"]["lengths"]:
            raise ValueError("a file is truncated")
        return cls(tokens, prompts, responses, pairs, account, folder)

    def __reduce__(self) -> tuple[Any, ...]:
        """Let worker processes open the folder themselves instead of receiving a copy of the arrays."""
        if self.folder is not None:
            return PairTables.open, (self.folder,)
        return PairTables, (self._tokens, self._prompts, self._responses, self.pairs, self.account)

    def __len__(self) -> int:
        return len(self.pairs)

    @overload
    def __getitem__(self, row: int) -> TokenGroup: ...

    @overload
    def __getitem__(self, row: slice) -> list[TokenGroup]: ...

    def __getitem__(self, row: int | slice) -> TokenGroup | list[TokenGroup]:
        if isinstance(row, slice):
            return [self[each] for each in range(*row.indices(len(self)))]
        pair = self.pairs[row]
        responses = (self.response(int(pair["chosen"])), self.response(int(pair["rejected"])))
        return TokenGroup(self._ids(self._prompts[pair["prompt"]]), responses)

    def prompt(self, row: int) -> tuple[int, ...]:
        """Return the token ids of the prompt in a row of the prompts."""
        return self._ids(self._prompts[row])

    def response(self, row: int) -> tuple[int, ...]:
        """Return the token ids of the response in a row of the responses."""
        return self._ids(self._responses[row])

    def _ids(self, span: Any) -> tuple[int, ...]:
        start = int(span["start"])
        return tuple(self._tokens[start : start + int(span["length"])].tolist())

    @property
    def num_responses(self) -> int:
        """R, the number of distinct responses."""
        return len(self._responses)

    @property
    def margins(self) -> np.ndarray:
        """The margins, [N], float32; 0 where the data has none."""
        margins: np.ndarray = np.nan_to_num(self.pairs["margin"], nan=0.0)
        return margins

    @property
    def kept(self) -> np.ndarray:
        """Index of each pair among those that were read, [N]."""
        index: np.ndarray = self.pairs["index"]
        return index

    @property
    def identical(self) -> int:
        """Number of pairs whose responses have the same tokens, for example because of truncation."""
        return int((self.pairs["chosen"] == self.pairs["rejected"]).sum())

    @property
    def with_special_tokens(self) -> np.ndarray:
        """Rows of the pairs whose messages contain special tokens, which are encoded like the chat template's own."""
        return np.flatnonzero(self.pairs["special_tokens"])

    def prompts_shared_with(self, other: PairTables) -> int:
        """Count the prompts that occur in both tables, by their text; see `hafrm.pairs.prompt_group`."""
        return len(np.intersect1d(self.pairs["text"], other.pairs["text"]))

    def names(self, rows: Sequence[int]) -> list[str]:
        """Return the ids of the pairs in some rows; see `PreferencePair.id`."""
        found = self.pairs[list(rows)]
        return [pair_id(self.account.sources[pair["source"]], pair["row"], pair["part"]) for pair in found]

    def longest(self) -> np.ndarray:
        """Return the tokens of the longer sequence of each pair, prompt included, [N]."""
        longest: np.ndarray = self._prompts["length"][self.pairs["prompt"]] + self.lengths().max(axis=1)
        return longest

    def lengths(self) -> np.ndarray:
        """Return the tokens of the chosen and the rejected response of each pair, [N, 2]."""
        sides = np.stack([self.pairs["chosen"], self.pairs["rejected"]], axis=1)
        lengths: np.ndarray = self._responses["length"][sides]
        return lengths


class TableWriter:
    """Writes tables pair by pair, to an empty folder or, if it is None, to memory.

    The number of token ids, `vocabulary`, determines the integer type.
    """

    def __init__(self, folder: Path | None, vocabulary: int) -> None:
        self.folder = folder
        self._dtype = np.dtype("<u2" if vocabulary <= 2**16 else "<u4")
        self._file = (folder / _TOKENS_FILE).open("wb") if folder else io.BytesIO()
        self._length = 0
        self._prompts, self._responses, self._pairs = _Rows(_PROMPT), _Rows(_RESPONSE), _Rows(_PAIR)
        self._sources: dict[str, int] = {}

    def close(self) -> None:
        """Close the file of tokens; the tables are complete only after `finish`."""
        self._file.close()

    def add(self, pair: PreferencePair, group: TokenGroup, index: int) -> None:
        """Add an encoded pair; `index` is its number among the pairs that were read."""
        prompt = self._text(self._prompts, group.prompt, b"")
        digest = self._prompts.digests[-16:]
        chosen, rejected = (self._text(self._responses, ids, bytes(digest), prompt) for ids in group.responses)
        source = self._sources.setdefault(pair.source, len(self._sources))
        margin = np.nan if pair.margin is None else pair.margin
        text = int(prompt_group(pair.prompt), 16)
        self._pairs.add(
            (prompt, chosen, rejected, margin, source, pair.row, pair.part, index, text, group.special_tokens),
        )

    def _text(self, rows: _Rows, ids: tuple[int, ...], context: bytes, *more: int) -> int:
        content = np.array(ids, dtype=self._dtype).tobytes()
        self._file.write(content)
        rows.digests += hashlib.blake2b(content, digest_size=16, key=context).digest()
        place = rows.add((self._length, len(ids), *more))
        self._length += len(ids)
        return place

    def finish(self, account: Account) -> PairTables:
        """Merge equal rows and return the tables; in a folder, the file with the account is written last."""
        account.sources = list(self._sources)
        prompts, new_prompt = self._prompts.merged()
        responses, new_response = self._responses.merged()
        pairs = self._pairs.array()
        responses["prompt"] = new_prompt[responses["prompt"]]
        pairs["prompt"] = new_prompt[pairs["prompt"]]
        for name in ("chosen", "rejected"):
            pairs[name] = new_response[pairs[name]]
        if self.folder is None:
            assert isinstance(self._file, io.BytesIO)
            tokens = np.frombuffer(self._file.getvalue(), dtype=self._dtype)
            return PairTables(tokens, prompts, responses, pairs, account)
        self._file.close()
        for name, table in zip(_TABLES, (prompts, responses, pairs), strict=True):
            np.save(self.folder / f"{name}.npy", table)
        lengths = [self._length, len(prompts), len(responses), len(pairs)]
        atomic.write_json(
            self.folder / TABLES_FILE,
            {
                "format": _FORMAT,
                "tokens": {"dtype": self._dtype.str, "lengths": lengths},
                "account": asdict(account),
            },
        )
        return PairTables.open(self.folder)


class _Rows:
    """A growing table in compact form, with a digest of each row's content if equal rows are to be merged."""

    _PIECE = 4096

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self._dtype = dtype
        self._pieces: list[np.ndarray] = []
        self._recent: list[tuple[Any, ...]] = []
        self.digests = bytearray()

    def __len__(self) -> int:
        return len(self._pieces) * self._PIECE + len(self._recent)

    def add(self, row: tuple[Any, ...]) -> int:
        self._recent.append(row)
        if len(self._recent) == self._PIECE:
            self._pieces.append(np.array(self._recent, dtype=self._dtype))
            self._recent = []
        return len(self) - 1

    def array(self) -> np.ndarray:
        return np.concatenate([*self._pieces, np.array(self._recent, dtype=self._dtype)])

    def merged(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the distinct rows in order of first occurrence, and the new index of every row."""
        digests = np.frombuffer(bytes(self.digests), dtype="V16")
        _, first, inverse = np.unique(digests, return_index=True, return_inverse=True)
        order = np.argsort(first)
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        return self.array()[first[order]], rank[inverse]
