"""A raw row: its fields, cells and messages, read with errors that name source, row, field and remedy.

What a row must contain to be a pair, a conversation or a prompt is in `hafrm.contract`.
"""

from __future__ import annotations

import ast
import contextlib
import json
import re
import reprlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, TypeGuard

from hafrm.errors import BadRowError, BadRowReason
from hafrm.options import is_finite
from hafrm.pairs import MESSAGE_KEYS, ROLES, TEMPLATE_COLUMNS, Message, Prompt, plain

MEDIA_COLUMNS = ("image", "images", "audio", "audios", "video", "videos")
"""Columns of media, which are not supported."""

UNRENDERED_COLUMNS = {
    "history": "Put its turns into `prompt`, as chat messages before the last one",
    "input": "Append its text to `prompt`",
    "instruction": "Put its text into `prompt`",
    "system_prompt": "Rename it to `system`",
    "system_message": "Rename it to `system`",
}
"""Columns in which data sets of other programs keep part of the prompt, with the remedy for each."""

_SPECIAL_TOKEN = re.compile(r"(?!add_)\w+_token|additional_special_tokens")
"""Matches the names of a tokenizer's special tokens, which a row's template arguments must not replace."""

_RESERVED_ARGUMENTS = frozenset(
    "conversation messages tools documents chat_template add_generation_prompt continue_final_message tokenize padding "
    "truncation max_length return_tensors return_dict return_assistant_tokens_mask tokenizer_kwargs "
    "sanitize_control_tokens".split()
)
"""Names in `chat_template_kwargs` that would change how hafrm calls the template rather than what it writes."""

TEXT_PARTS = ("text", "input_text", "output_text")
"""Types of text parts in a message's content, as in chat and responses APIs."""

_TRANSCRIPT_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant|System):[ ]?")
_TRANSCRIPT_ROLES = {"Human": "user", "Assistant": "assistant", "System": "system"}


class Cell(str):
    """A cell of a CSV file: text that stands for a number, a list or messages where the contract expects one."""

    __slots__ = ()

    @property
    def value(self) -> Any:
        """The text parsed as JSON or as a Python literal; None if empty, the text itself if it is neither."""
        text = self.strip()
        if not text:
            return None
        for parse in (json.loads, ast.literal_eval):
            # TypeError: a set or dict of values that can't be hashed, as in the text {{1}}
            with contextlib.suppress(ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
                return parse(text)
        return str(self)

    @property
    def turns(self) -> Any:
        """The chat messages that the text contains as JSON or as a Python literal; otherwise the text."""
        found = self.value if self.startswith(("[", "{")) else None
        turns = [found] if isinstance(found, Mapping) else found
        if isinstance(turns, list) and turns and all(isinstance(turn, Mapping) for turn in turns):
            return found if all("role" in turn or "from" in turn for turn in turns) else str(self)
        return str(self)

    def require_unique_keys(self) -> None:
        """Raise ValueError if an object in the parsed text has a key twice: `value` has only the last one."""
        text = self.strip()
        try:
            json.loads(text, object_pairs_hook=unique_keys)
        except json.JSONDecodeError:  # a Python literal
            for node in ast.walk(ast.parse(text, mode="eval")):
                if isinstance(node, ast.Dict):
                    unique_keys([(ast.literal_eval(key), None) for key in node.keys if key is not None])


def typed(value: Any) -> Any:
    """Return the value of a cell; any other value unchanged."""
    return value.value if isinstance(value, Cell) else value


def unique_keys(items: Sequence[tuple[Any, Any]]) -> dict[Any, Any]:
    """Make an object of parsed JSON, as an `object_pairs_hook`; raise ValueError for a repeated key.

    Otherwise its last value would silently be kept.
    """
    found = dict(items)
    if len(found) < len(items):
        ((name, _),) = Counter(name for name, _ in items).most_common(1)
        raise ValueError(f"an object has the key {short(name)} twice")
    return found


def is_list(value: object) -> TypeGuard[Sequence[Any]]:
    """Return whether a value is a sequence other than text or bytes."""
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def transcript_turns(text: str) -> tuple[Message, ...]:
    r"""Split a transcript "\n\nHuman: ... \n\nAssistant: ..." (the format of hh-rlhf) into turns; () for other text."""
    marks = list(_TRANSCRIPT_TURN.finditer(text))
    if not marks or marks[0].start() != 0:
        return ()
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    return tuple(
        Message(_TRANSCRIPT_ROLES[mark[1]], text[mark.end() : end].strip())
        for mark, end in zip(marks, ends, strict=True)
    )


def begins_with(turns: Sequence[Message], beginning: Sequence[Message]) -> bool:
    """Return whether `turns` start with `beginning`, up to white space, and continue after it."""
    repeated = zip(turns, beginning, strict=False)
    return len(turns) > len(beginning) and all(
        (ours.role, plain(ours.content)) == (theirs.role, plain(theirs.content)) for ours, theirs in repeated
    )


def _prompt_turns(text: str) -> tuple[Message, ...]:
    r"""Split a prompt in hh-rlhf's format ("\n\nHuman: ...\n\nAssistant:") into turns; return () for other text."""
    turns = transcript_turns(text)
    opened = bool(turns) and turns[-1] == Message("assistant", "")
    if opened:
        turns = turns[:-1]
    if not turns or turns[-1].role != "user" or not (opened or text.startswith("\n\n")):
        return ()
    return turns


@dataclass(frozen=True, slots=True)
class Row:
    """A row as found in its source; the methods read its fields, and their errors name source, row and field."""

    value: Any = None
    """The content: a mapping from field names to values, or whatever is there instead."""
    source: str = ""
    """The file or data set."""
    number: int = 1
    """The row's number from 1; in JSON-lines files the line's number."""
    fault: BadRowError | None = None
    """Why the content could not be read."""
    merged: int = 1
    """Number of rows of the source that this row was made from."""
    prefix: str = ""
    """The path of an object nested in a row, which precedes field names in errors."""

    @property
    def fields(self) -> Mapping[str, Any]:
        """The row's values by field; BadRowError is raised if it could not be read or is not an object."""
        if self.fault is not None:
            raise self.fault
        if not isinstance(self.value, Mapping):
            raise self.error(
                BadRowReason.WRONG_TYPE,
                None,
                f"the row is of type {type(self.value).__name__}, not an object",
                'Write each row as an object: {"prompt": ..., "chosen": ..., "rejected": ...}.',
            )
        return self.value

    def error(self, reason: BadRowReason, name: str | None, problem: str, remedy: str) -> BadRowError:
        """Create the error for a problem with field `name` of this row."""
        field = name and self.prefix + name
        return BadRowError(reason, source=self.source, row=self.number, field=field, problem=problem, remedy=remedy)

    def unfit(self, name: str, value: object, wanted: str) -> BadRowError:
        """Create the error for a field that is missing or has another value than wanted."""
        if value is None:
            return self.error(BadRowReason.MISSING_FIELD, name, "is missing", f"Give {wanted}.")
        return self.error(BadRowReason.WRONG_TYPE, name, f"is {short(value)}", f"Give {wanted}.")

    def has(self, name: str) -> bool:
        """Return whether the row has a value for `name` other than null or an empty cell."""
        value = self.fields.get(name)
        return value is not None and not (isinstance(value, Cell) and not value)

    def prompt(self) -> Prompt:
        """Return the row's prompt with the columns that the chat template reads."""
        turns = self.complete_prompt(self.messages("prompt", "user"))
        return Prompt(turns, self.template_columns())

    def complete_prompt(self, turns: tuple[Message, ...]) -> tuple[Message, ...]:
        """Prepend the column `system` to the prompt's turns.

        Raises:
            BadRowError: no turn has text, there are two system turns, or another column contains text of the prompt.
        """
        if not any(message.text.strip() for message in turns):
            raise self.error(BadRowReason.EMPTY_PROMPT, "prompt", "is empty", "Give the prompt's text.")
        system = self.string("system") if self.has("system") else ""
        if system.strip() and turns[0].role in ("system", "developer"):
            if plain(turns[0].content) != plain(system):
                problem = f"is {short(system)}, but the prompt begins with another {turns[0].role} turn"
                raise self.error(BadRowReason.UNSUPPORTED, "system", problem, "Give the system turn once.")
        elif system.strip():
            turns = (Message("system", system), *turns)
        for name, remedy in UNRENDERED_COLUMNS.items():
            if not all(_begins_or_ends(turns, text) for text in _strings(self.fields.get(name))):
                problem = "contains text that is missing from the prompt, so it would be lost"
                raise self.error(BadRowReason.UNSUPPORTED, name, problem, f"{remedy}, or remove the column.")
        return turns

    def template_columns(self) -> str:
        """Return the columns that the chat template reads, as `Prompt.arguments`; raise on media columns."""
        for name in MEDIA_COLUMNS:
            if self.fields.get(name):
                remedy = "Remove the row, or only the column if the text is complete without it."
                raise self.error(BadRowReason.UNSUPPORTED, name, "contains media, but only text can be scored", remedy)
        given = [name for name in TEMPLATE_COLUMNS if self.has(name) and not _is_blank(self.fields[name])]
        columns = {name: self._template_column(name) for name in given}
        return json.dumps(columns, ensure_ascii=False) if columns else ""

    def _template_column(self, name: str) -> Any:
        """Return one of `TEMPLATE_COLUMNS`, given as a value or as JSON text."""
        value = self.fields[name]
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(value, object_pairs_hook=unique_keys) if isinstance(value, str) else value
        if name == "chat_template_kwargs":
            if not isinstance(value, Mapping):
                raise self.unfit(name, value, "an object of argument names and values")
            names = map(str, value)
            reserved = sorted(each for each in names if each in _RESERVED_ARGUMENTS or _SPECIAL_TOKEN.fullmatch(each))
            if reserved:
                remedy = "Put `tools` and `documents` into columns of their own, and leave the others out."
                raise self.error(BadRowReason.UNSUPPORTED, name, f"sets {', '.join(reserved)}", remedy)
        elif not _is_list_of_objects(value):
            raise self.unfit(name, value, "a list of objects")
        self._check_json(name, value)
        return value

    def _check_json(self, name: str, value: Any) -> None:
        """Raise if a value has no JSON form or contains lone surrogates."""
        try:
            self.check_text(name, json.dumps(value, ensure_ascii=False, allow_nan=False))
        except (TypeError, ValueError, RecursionError) as error:
            problem = f"has no JSON form ({error})"
            raise self.error(BadRowReason.WRONG_TYPE, name, problem, "Write plain JSON values.") from None

    def messages(self, name: str, role: str) -> tuple[Message, ...]:
        """Return a field as messages; a plain string becomes one turn of `role`, a transcript its turns."""
        value = self.turns(name) if self.has(name) else None
        if isinstance(value, str):
            self.check_text(name, value)
            turns = _prompt_turns(value) if name == "prompt" else self._transcript(value)
            return turns or (Message(role, value),)
        if isinstance(value, Mapping):
            value = [value]
        if not is_list(value):
            raise self.unfit(name, value, 'a string or chat messages: [{"role": "user", "content": "..."}]')
        return tuple(self._message(f"{name}[{i}]", item) for i, item in enumerate(value))

    def turns(self, name: str) -> Any:
        """Return a field; of a cell the messages that it contains, if there are any."""
        value = self.fields.get(name)
        return self._of_cell(name, value, value.turns) if isinstance(value, Cell) else value

    def _of_cell(self, name: str, cell: Cell, value: Any) -> Any:
        """Return what a cell was parsed to; raise if an object in it has a key twice."""
        try:
            if not isinstance(value, str):
                cell.require_unique_keys()
        except (ValueError, RecursionError) as error:
            problem = f"is ambiguous ({error})"
            raise self.error(BadRowReason.WRONG_TYPE, name, problem, "Give each key of an object once.") from None
        return value

    def _transcript(self, text: str) -> tuple[Message, ...]:
        """Split a response that is a transcript into turns, if the row has no prompt or the transcript repeats it.

        Other text may look like a transcript too, for example a dialogue that the prompt asked for.
        """
        turns = transcript_turns(text)
        if not turns or not self.has("prompt") or begins_with(turns, self.messages("prompt", "user")):
            return turns
        return ()

    def _message(self, where: str, item: object) -> Message:
        if not isinstance(item, Mapping):
            raise self.unfit(where, item, 'a chat message: {"role": "user", "content": "..."}')
        role = item.get("role")
        if role not in ROLES:
            raise self.unfit(f"{where}.role", role, f"one of {', '.join(ROLES)}")
        more = self._extras(where, item)
        content = self._content(f"{where}.content", item.get("content"), optional=bool(more))
        return Message(str(role), content, more)

    def _extras(self, where: str, item: Mapping[str, Any]) -> str:
        """Return a message's further keys as `Message.more`; null counts as absent, as in transformers."""
        extras = {key: value for key, value in item.items() if value is not None and key not in ("role", "content")}
        for key, value in extras.items():
            place, calls = f"{where}.{key}", key in ("tool_calls", "tool_responses")
            if key not in MESSAGE_KEYS:
                remedy = f"Remove it; a message may have role, content, {', '.join(MESSAGE_KEYS)}."
                raise self.error(BadRowReason.UNSUPPORTED, place, "is a key that hafrm would ignore", remedy)
            if not (_is_list_of_objects(value) if calls else isinstance(value, str)):
                raise self.unfit(place, value, "a list of objects" if calls else "a string")
            self._check_json(place, value)
        return json.dumps(extras, ensure_ascii=False) if extras else ""

    def _content(self, where: str, content: object, *, optional: bool) -> str:
        """Return a turn's text; text parts are joined by line breaks, as in vLLM."""
        if content is None and optional:
            return ""
        if is_list(content):
            return "\n".join(self._part(f"{where}[{i}]", part) for i, part in enumerate(content))
        return self._text(where, content, "the turn's text as a string")

    def _part(self, where: str, part: object) -> str:
        if not isinstance(part, Mapping):
            raise self.unfit(where, part, 'a part of a message: {"type": "text", "text": "..."}')
        kind = part.get("type", "text")
        other = next((key for key, value in part.items() if value is not None and key not in ("type", "text")), None)
        if kind not in TEXT_PARTS or other is not None:
            name = f"{where}.{'type' if other is None else other}"
            problem = f"is {short(kind)}" if other is None else "is a key that hafrm would ignore"
            raise self.error(BadRowReason.UNSUPPORTED, name, problem, "Only text can be scored: keep the text parts.")
        return self._text(f"{where}.text", part.get("text"), "the part's text as a string")

    def _text(self, where: str, value: object, wanted: str) -> str:
        if not isinstance(value, str):
            raise self.unfit(where, value, wanted)
        self.check_text(where, value)
        return value

    def check_text(self, name: str, text: str) -> None:
        """Raise if a text contains lone surrogates, which tokenizers can't encode."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            problem = f"is not valid Unicode (lone surrogate at character {error.start})"
            raise self.error(BadRowReason.INVALID_TEXT, name, problem, "Repair the file's encoding.") from None

    def check_response(self, name: str, response: Sequence[Message]) -> None:
        """Raise unless a response starts and ends with assistant turns, each with text or tool calls."""
        empty = next((m for m in response if m.role == "assistant" and not m.text.strip()), None)
        if not response or empty is not None:
            problem = "is empty, so there are no response tokens to score"
            raise self.error(BadRowReason.EMPTY_RESPONSE, name, problem, "Remove the row, or fill the response in.")
        for place, message in (("begins", response[0]), ("ends", response[-1])):
            if message.role != "assistant":
                raise self.error(
                    BadRowReason.WRONG_TYPE,
                    name,
                    f"{place} with a turn of role {message.role}",
                    "A response begins and ends with an assistant turn; put earlier turns into `prompt`.",
                )

    def responses(self, sizes: str, fits: Callable[[int], bool]) -> list[tuple[Message, ...]]:
        """Return the field `responses`: a list of strings or of lists of messages.

        Args:
            sizes: How many responses there must be, as a sentence that says what to give.
            fits: Whether a number of responses is acceptable.
        """
        values = self.fields.get("responses")
        if not isinstance(values, list) or not fits(len(values)):
            reason = BadRowReason.WRONG_TYPE if self.has("responses") else BadRowReason.MISSING_FIELD
            problem = f"contains {len(values)} responses" if isinstance(values, list) else "is not a list"
            problem = problem if self.has("responses") else "is missing"
            raise self.error(reason, "responses", problem, sizes)
        named = {f"responses[{place}]": value for place, value in enumerate(values)}
        reader = replace(self, value={"prompt": self.fields.get("prompt"), **named})
        return [reader.messages(name, "assistant") for name in named]

    def string(self, name: str) -> str:
        """Return a field that must be a string."""
        return self._text(name, self.fields.get(name), "a string")

    def boolean(self, name: str) -> bool:
        """Return a field that must be true or false."""
        value = typed(self.fields.get(name))
        if not isinstance(value, bool):
            raise self.unfit(name, value, "true or false")
        return value

    def sequence(self, name: str) -> Sequence[Any]:
        """Return a field that must be a list."""
        value = self.fields.get(name)
        value = self._of_cell(name, value, value.value) if isinstance(value, Cell) else value
        if not is_list(value):
            raise self.unfit(name, value, "a list")
        return value

    def one_of(self, name: str, values: Sequence[Any]) -> Any:
        """Return which of some values a field equals: 0 and 1 also match false and true."""
        value = typed(self.fields.get(name))
        for each in values:
            if each == value:
                return each  # 0 and 1 may be floats in the row, and may have to be indices
        raise self.unfit(name, value, "one of " + ", ".join(map(str, values)))

    def required_number(self, name: str) -> float:
        """Return a field that must be a finite number."""
        value = self.number_or_none(name)
        if value is None:
            raise self.unfit(name, None, "a finite number")
        return value

    def number_or_none(self, name: str) -> float | None:
        """Return an optional field that must be a finite number."""
        value = typed(self.fields.get(name))
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float | Decimal) or not is_finite(value):
            raise self.unfit(name, value, "a finite number, or leave the field out")
        return float(value)

    def string_or_none(self, name: str) -> str | None:
        """Return an optional string; integers are converted to their digits."""
        value = self.fields.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        return None if value is None else self._text(name, value, "a string, or leave the field out")


def _begins_or_ends(turns: Sequence[Message], text: str) -> bool:
    """Return whether a turn equals, starts with or ends with a text, up to white space."""
    padded = [f" {plain(turn.content)} " for turn in turns]
    return any(turn.startswith(f" {text} ") or turn.endswith(f" {text} ") for turn in padded)


def _is_list_of_objects(value: object) -> bool:
    return isinstance(value, Sequence) and all(isinstance(item, Mapping) for item in value)


def _strings(value: object) -> list[str]:
    """Return the non-empty texts nested in a value, with white space normalised."""
    found, waiting = [], [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, Mapping):
            waiting += item.values()
        elif is_list(item):
            waiting += item
        elif item is not None and (text := plain(str(item))):
            found.append(text)
    return found


def _is_blank(value: object) -> bool:
    return isinstance(value, str) and not value.strip()


def short(value: object) -> str:
    """Return a value's representation, cut to 40 characters."""
    text = reprlib.repr(value)  # limits the depth: repr fails on deeply nested rows
    return text if len(text) <= 40 else text[:37] + "..."
