"""Streaming reader for the values of one JSON array: only one row and a piece of the file are in memory."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import IO, Any

from hafrm.data.files import LONGEST_ROW, too_long
from hafrm.errors import UnreadableError
from hafrm.rows import unique_keys

_PIECE = 2**20
_SPACE = re.compile(r"[ \t\n\r]*")
_UNDECIDED = 16
"""Number of characters at the end of the buffer in which a literal, a number or an escape may be cut off."""


def array_values(file: IO[bytes], source: str) -> Iterator[Any]:
    """Yield the values of the array in a file, in order.

    Raises:
        UnreadableError: the file is not UTF-8, not JSON, not an array, or a value is longer than `LONGEST_ROW`.
    """
    text = _Text(file, source)
    if text.next() != "[":
        value = text.value(1)
        if text.next():
            raise text.unexpected("Extra data")
        raise UnreadableError(
            f"{source}: contains a JSON value of type {type(value).__name__}, not an array of rows. Write one array, "
            "or one object per line into a .jsonl file."
        )
    text.skip()
    number = 0
    while number or text.next() != "]":
        number += 1
        yield text.value(number)
        if text.next() == "]":
            break
        if text.next() != ",":
            raise text.unexpected("Expecting ',' delimiter")
        text.skip()
    text.skip()
    if text.next():
        raise text.unexpected("Extra data")


def json_problem(error: Exception) -> str:
    """Describe where and why a text is not valid JSON."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at line {error.lineno}, character {error.colno}".replace("at line 1, ", "at ")
    return "nested too deeply" if isinstance(error, RecursionError) else str(error).split(";")[0]


class _Text:
    """A piece of a file's text, with the position of the next character to read."""

    def __init__(self, file: IO[bytes], source: str) -> None:
        self._file, self._source = file, source
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._json = json.JSONDecoder(object_pairs_hook=unique_keys)
        self._held, self._at = "", 0
        self._ended = False
        self._bytes = 0
        """Bytes read."""
        self._line = self._column = 0
        """Position of the buffer's start in the file."""

    def next(self) -> str:
        """Return the next character that is not white space; "" at the end."""
        while True:
            match = _SPACE.match(self._held, self._at)
            assert match is not None
            self._at = match.end()
            if self._at < len(self._held) or not self._more(_PIECE):
                return self._held[self._at : self._at + 1]

    def skip(self) -> None:
        """Consume the next character."""
        self._at += 1

    def value(self, number: int) -> Any:
        """Consume and return the next value; `number` is its row in error messages."""
        self.next()
        while True:
            try:
                value, end = self._json.raw_decode(self._held, self._at)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated") or error.pos > len(self._held) - _UNDECIDED
                if not cut or not self._more(len(self._held) - self._at):  # not just the end of the buffer
                    raise self._error(error) from None
            except (ValueError, RecursionError) as error:  # ValueError: a repeated key, or too long an integer
                raise self._error(error, f" in row {number}") from None
            else:  # a truncated number would parse too
                if len(self._held) - end >= _UNDECIDED or not self._more(_PIECE):
                    self._at = end
                    return value
            if len(self._held) - self._at > LONGEST_ROW:
                raise too_long(self._source, f"row {number}")

    def unexpected(self, message: str) -> UnreadableError:
        """Create the error for the next character."""
        return self._error(json.JSONDecodeError(message, self._held, self._at))

    def _error(self, error: Exception, where: str = "") -> UnreadableError:
        problem = json_problem(error) + where
        if isinstance(error, json.JSONDecodeError) and (self._line or self._column):
            column = error.colno + (self._column if error.lineno == 1 else 0)
            problem = f"{error.msg} at line {self._line + error.lineno}, character {column}"
        return UnreadableError(
            f"{self._source}: not valid JSON ({problem}). "
            "Repair the file; if it has one object per line, rename it to .jsonl."
        )

    def _more(self, size: int) -> bool:
        """Read more text and discard what was consumed; return whether there was more."""
        if self._ended:
            return False
        piece = self._file.read(max(size, _PIECE))
        self._ended = not piece
        try:
            text = self._decoder.decode(piece, final=self._ended)
        except UnicodeDecodeError as error:
            place = self._bytes + error.start - (len(error.object) - len(piece))
            raise UnreadableError(
                f"{self._source}: not UTF-8 (byte {place} is 0x{error.object[error.start]:02x}). "
                "Convert the file to UTF-8."
            ) from None
        if self._ended:
            return False
        self._bytes += len(piece)
        used = self._held[: self._at]
        breaks = used.count("\n")
        self._line += breaks
        self._column = len(used) - used.rfind("\n") - 1 if breaks else self._column + len(used)
        self._held, self._at = self._held[self._at :] + text, 0
        return True
