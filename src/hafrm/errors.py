"""The errors that a user of hafrm can meet.

    HafrmError
    ├── ConfigError          an option or a combination of options that can't work
    ├── DataError            something is wrong with the data as a whole
    │   ├── BadRowError      one row breaks the data contract: says file, row, field, remedy
    │   ├── RefusedError     conversations that a tokenizer's chat template can't render, or that a server refuses
    │   ├── UnknownDataError a data set name that nobody knows; names the nearest ones
    │   └── UnreadableError  a file that can't be opened or decoded
    ├── ModelError           a model or tokenizer that can't serve as asked
    │   └── DamagedError     files of a checkpoint that are not what was saved
    ├── TrainingError        a run that can't go on
    │   └── NonFiniteLossError  the loss or its gradient is NaN or infinite; names the rows of the batch
    ├── NoMemoryError        a batch does not fit into memory; names the options that make it smaller
    ├── UnwritableError      a checkpoint that can't be written: a full disk, most often
    └── MissingExtraError    an optional dependency is not installed; says how to install it

Every message says where, what, and the remedy. `ValueError` is kept for wrong arguments to the pure functions and
`AssertionError` for invariants of hafrm itself: neither should reach somebody who runs the command line.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

__all__ = [
    "CHANGE_ROLES",
    "BadRowError",
    "BadRowReason",
    "ConfigError",
    "DamagedError",
    "DataError",
    "HafrmError",
    "MissingExtraError",
    "ModelError",
    "NoMemoryError",
    "NonFiniteLossError",
    "RefusedError",
    "TrainingError",
    "UnknownDataError",
    "UnreadableError",
    "UnwritableError",
    "first_line",
    "printable",
]


def first_line(error: Exception) -> str:
    """The first line of what another program's error says, or its kind where it says nothing; see `printable`."""
    return printable((str(error).strip() or type(error).__name__).splitlines()[0])


def printable(text: str, limit: int = 300) -> str:
    """A text of another program or person for a terminal or a log: without control characters, and not endless."""
    shown = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text[:limit])
    return shown + ("..." if len(text) > limit else "")


class HafrmError(Exception):
    """Root of all errors that hafrm raises on purpose."""


class ConfigError(HafrmError):
    """An option, or a combination of options, that can't work."""


class DataError(HafrmError):
    """Something is wrong with a data set as a whole."""


class BadRowReason(StrEnum):
    """Why a row breaks the data contract: the key under which skipped rows are counted."""

    INVALID_JSON = "invalid_json"
    INVALID_TEXT = "invalid_text"
    MISSING_FIELD = "missing_field"
    WRONG_TYPE = "wrong_type"
    EMPTY_PROMPT = "empty_prompt"
    EMPTY_RESPONSE = "empty_response"
    MIXED_SCHEMA = "mixed_schema"
    UNSUPPORTED = "unsupported"
    """The row contains what would be lost: a key that no chat template is given, or what is not text."""
    PROMPT_TOO_LONG = "prompt_too_long"
    REFUSED_BY_TEMPLATE = "refused_by_template"


CHANGE_ROLES = "Change the row's roles, or use a tokenizer with another chat template."
"""What to do about a conversation that a tokenizer's chat template refuses."""


class BadRowError(DataError):
    """One row breaks the data contract.

    Args:
        reason: The kind of fault, under which `on_bad_row: skip` counts the row.
        source: The file or data set that holds the row.
        row: The row's number, from 1; in JSON-lines files the line's number.
        field: The field at fault, or None where the row as a whole is.
        problem: What is wrong, as a clause: "is empty, so there are no response tokens to score".
        remedy: What the user can do about it, as a sentence.
    """

    def __init__(
        self, reason: BadRowReason, *, source: str, row: int, field: str | None, problem: str, remedy: str
    ) -> None:
        self.reason = reason
        self.source = source
        self.row = row
        self.field = field
        self.fault = f"`{field}` {problem}. {remedy}" if field else f"{problem}. {remedy}"
        """What is wrong and what to do about it, without the row's place."""
        super().__init__(
            f"{source}, row {row}: {self.fault} Or set `data_options.on_bad_row: skip` "
            "to leave such rows out and have them counted."
        )

    @classmethod
    def refused(cls, problem: str, *, source: str, row: int, remedy: str = CHANGE_ROLES) -> BadRowError:
        """A row whose conversation the tokenizer's chat template, or a server, refuses for this reason."""
        return cls(
            BadRowReason.REFUSED_BY_TEMPLATE,
            source=source,
            row=row,
            field=None,
            problem=problem.rstrip("."),
            remedy=remedy,
        )


class RefusedError(DataError):
    """Conversations that a tokenizer's chat template can't render: two turns of one role in a row, for some.

    Args:
        reasons: What the template or the server says, by the conversation's place among those given.
        remedy: What the user can do about it, as a sentence.
        finished: The rewards of all others by their places, None for what is too long; None where none was computed.
    """

    def __init__(
        self,
        reasons: Mapping[int, str],
        *,
        remedy: str = CHANGE_ROLES,
        finished: Mapping[int, float | None] | None = None,
    ) -> None:
        self.reasons, self.remedy, self.finished = dict(reasons), remedy, finished
        first = min(self.reasons)
        super().__init__(
            f"{len(self.reasons)} conversations are refused; the first is conversation {first}: "
            f"{self.reasons[first]} {remedy}"
        )


class UnknownDataError(DataError):
    """A data set name that nobody knows."""


class UnreadableError(DataError):
    """A file that can't be opened, decoded or decompressed."""


class ModelError(HafrmError):
    """A model or tokenizer that can't serve as asked."""


class DamagedError(ModelError):
    """Files of a checkpoint that are missing, or not what was saved."""


class NoMemoryError(HafrmError):
    """A batch that does not fit into memory."""


class UnwritableError(HafrmError):
    """A checkpoint that can't be written."""


class TrainingError(HafrmError):
    """A training run that can't go on."""


class NonFiniteLossError(TrainingError):
    """The loss or its gradient became NaN or infinite."""


class MissingExtraError(HafrmError):
    """An optional dependency is not installed."""
