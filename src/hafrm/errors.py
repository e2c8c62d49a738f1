"""The errors that users of hafrm can meet.

    HafrmError
    ├── ConfigError          an invalid option or combination of options
    ├── DataError            something is wrong with a data set as a whole
    │   ├── BadRowError      a row breaks the data contract; names file, row, field and remedy
    │   ├── RefusedError     the chat template can't render conversations, or a server refuses them
    │   ├── UnknownDataError the name of a data set is unknown; suggests similar ones
    │   └── UnreadableError  a file can't be opened or decoded
    ├── ModelError           the model or tokenizer is unusable for this task
    │   └── DamagedError     checkpoint files are missing or differ from what was saved
    ├── TrainingError        a run can't continue
    │   └── NonFiniteLossError  the loss or its gradient is NaN or infinite; names the rows of the batch
    ├── NoMemoryError        a batch does not fit into memory; names the options that make it smaller
    ├── UnwritableError      a checkpoint can't be written, usually because the disk is full
    └── MissingExtraError    an optional dependency is not installed; gives the install command

Every message says where, what, and the remedy. `ValueError` is reserved for wrong arguments of pure functions and
`AssertionError` for hafrm's own invariants; users of the command line should see neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


def first_line(error: Exception) -> str:
    """Return the first line of another program's error message, or the error's type if the message is empty."""
    return printable((str(error).strip() or type(error).__name__).splitlines()[0])


def printable(text: str, limit: int = 300) -> str:
    """Make foreign text safe for a terminal or log: escape control characters, and cut it off at `limit` characters."""
    shown = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text[:limit])
    return shown + ("..." if len(text) > limit else "")


class HafrmError(Exception):
    """Base class of all errors that hafrm raises on purpose."""


class ConfigError(HafrmError):
    """An option or combination of options is invalid."""


class DataError(HafrmError):
    """Something is wrong with a data set as a whole."""


class BadRowReason(StrEnum):
    """Why a row breaks the data contract; skipped rows are counted by these values."""

    INVALID_JSON = "invalid_json"
    INVALID_TEXT = "invalid_text"
    MISSING_FIELD = "missing_field"
    WRONG_TYPE = "wrong_type"
    EMPTY_PROMPT = "empty_prompt"
    EMPTY_RESPONSE = "empty_response"
    MIXED_SCHEMA = "mixed_schema"
    UNSUPPORTED = "unsupported"
    """The row contains something that would be lost: a key that no chat template reads, or media."""
    PROMPT_TOO_LONG = "prompt_too_long"
    REFUSED_BY_TEMPLATE = "refused_by_template"


CHANGE_ROLES = "Change the row's roles, or use a tokenizer with another chat template."
"""Remedy for conversations that the chat template refuses."""


class BadRowError(DataError):
    """One row breaks the data contract.

    Args:
        reason: The kind of fault, by which `on_bad_row: skip` counts the row.
        source: The file or data set of the row.
        row: The row's number from 1; in JSON-lines files the line number.
        field: The faulty field, or None if the row as a whole is at fault.
        problem: What is wrong, as a clause: "is empty, so there are no response tokens to score".
        remedy: What the user can do about it, as a sentence.
        skippable: Whether the message should suggest skipping such rows.
    """

    def __init__(
        self,
        reason: BadRowReason,
        *,
        source: str,
        row: int,
        field: str | None,
        problem: str,
        remedy: str,
        skippable: bool = True,
    ) -> None:
        self.reason = reason
        self.source = source
        self.row = row
        self.field = field
        self.fault = f"`{field}` {problem}. {remedy}" if field else f"{problem}. {remedy}"
        """Problem and remedy, without the row's place."""
        skip = " Or set `data_options.on_bad_row: skip` to skip and count such rows." if skippable else ""
        super().__init__(f"{source}, row {row}: {self.fault}{skip}")

    @classmethod
    def refused(cls, problem: str, *, source: str, row: int, remedy: str = CHANGE_ROLES) -> BadRowError:
        """Create the error for a row whose conversation the chat template or a server refuses."""
        return cls(
            BadRowReason.REFUSED_BY_TEMPLATE,
            source=source,
            row=row,
            field=None,
            problem=problem.rstrip("."),
            remedy=remedy,
        )


class RefusedError(DataError):
    """A chat template or a server refuses conversations, for example those with two consecutive turns of one role.

    Args:
        reasons: Reasons given by the template or the server, by the conversation's index.
        remedy: What the user can do about it, as a sentence.
        finished: Rewards of all other conversations by index, None for over-long ones; None if none were computed.
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
            f"{len(self.reasons)} conversations were refused; the first is conversation {first}: "
            f"{self.reasons[first]} {remedy}"
        )


class UnknownDataError(DataError):
    """The data set name is unknown."""


class UnreadableError(DataError):
    """A file can't be opened, decoded or decompressed."""


class ModelError(HafrmError):
    """The model or tokenizer is unusable for this task."""


class DamagedError(ModelError):
    """Checkpoint files are missing or differ from what was saved."""


class NoMemoryError(HafrmError):
    """A batch does not fit into memory."""

    tokens: int = 0
    """The batch's tokens, if it could be split into smaller ones."""


class UnwritableError(HafrmError):
    """A checkpoint can't be written."""


class TrainingError(HafrmError):
    """A training run can't continue."""


class NonFiniteLossError(TrainingError):
    """The loss or its gradient became NaN or infinite."""


class MissingExtraError(HafrmError):
    """An optional dependency is not installed."""
