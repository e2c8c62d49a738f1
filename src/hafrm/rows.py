r"""The data contract: how a raw row becomes a preference pair, a conversation, or a prompt with responses.

A raw row is a plain mapping, wherever it comes from. It contains `prompt`, `chosen` and `rejected`, each as chat
messages (`[{"role", "content"}, ...]`) or as a plain string: a prompt string is one user turn, a response string one
assistant turn. Without `prompt`, the prompt is the turns that `chosen` and `rejected` have in common; strings are then
transcripts in the format of Anthropic's hh-rlhf ("\n\nHuman: ... \n\nAssistant: ...").

A message may have any key of `MESSAGE_KEYS`, and a row any column of `TEMPLATE_COLUMNS`: both reach the chat template.
Other message keys would be lost and raise an error, as do columns with text of the prompt (`UNRENDERED_COLUMNS`).
Optional columns: `system` (a string: the system turn of a prompt without one), `margin` (a number) and `group` (a
string: pairs of one group are never split apart, and statistics resample whole groups).
"""

from __future__ import annotations

import ast
import contextlib
import json
import math
import re
import reprlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hafrm.errors import BadRowError, BadRowReason, DataError
from hafrm.pairs import (
    MESSAGE_KEYS,
    ROLES,
    TEMPLATE_COLUMNS,
    Conversation,
    Message,
    PreferencePair,
    Prompt,
    plain,
)

MEDIA_COLUMNS = ("image", "images", "audio", "audios", "video", "videos")
"""Columns of media, which are not supported."""

UNRENDERED_COLUMNS = {
    "history": "Put its turns into `prompt`, as chat messages before the last one",
    "input": "Append its text to `prompt`",
    "instruction": "Put its text into `prompt`",
    "system_prompt": "Rename it to `system`",
    "system_message": "Rename it to `system`",
}
"""Columns in which other programs' data sets keep a part of the prompt, with the remedy for each."""

_READ_COLUMNS = frozenset({"prompt", "chosen", "rejected", "response", "system", "margin", "group", *TEMPLATE_COLUMNS})

_SPECIAL_TOKEN = re.compile(r"(?!add_)\w+_token|additional_special_tokens")
"""Names that a tokenizer gives its special tokens by: in a template they are the row's if its arguments set them."""

_RESERVED_ARGUMENTS = frozenset(
    "conversation messages tools documents chat_template add_generation_prompt continue_final_message tokenize padding "
    "truncation max_length return_tensors return_dict return_assistant_tokens_mask tokenizer_kwargs "
    "sanitize_control_tokens".split()
)
"""Names in `chat_template_kwargs` that would change how hafrm renders instead of what the template writes."""

TEXT_PARTS = ("text", "input_text", "output_text")
"""Types of text parts in a message's content, as in chat and responses APIs."""

_LARGEST_MARGIN = 1e6
"""Largest margin accepted: above it the loss and its gradients overflow, so the data must be wrong."""

_TRANSCRIPT_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant|System):[ ]?")
_TRANSCRIPT_ROLES = {"Human": "user", "Assistant": "assistant", "System": "system"}


class Cell(str):
    """A cell of a CSV file: text that stands for a number, a list or messages where the contract expects one."""

    __slots__ = ()

    @property
    def value(self) -> Any:
        """What the text says as JSON or as a Python literal; None if empty, the text itself if it is neither."""
        text = self.strip()
        if not text:
            return None
        for parse in (json.loads, ast.literal_eval):
            with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
                return parse(text)
        return str(self)

    @property
    def turns(self) -> Any:
        """The chat messages that the text says as JSON or as a Python literal; otherwise the text."""
        found = self.value if self.startswith(("[", "{")) else None
        turns = [found] if isinstance(found, Mapping) else found
        if isinstance(turns, list) and turns and all(isinstance(turn, Mapping) for turn in turns):
            return found if all("role" in turn or "from" in turn for turn in turns) else str(self)
        return str(self)


def typed(value: Any) -> Any:
    """Return the value of a cell; any other value as it is."""
    return value.value if isinstance(value, Cell) else value


def row_schema(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the shape of a row, by which loaders detect files of mixed schemas.

    Returns:
        For `prompt`, `chosen` and `rejected` each "messages", "string", or "absent".
    """

    def kind(value: object) -> str:
        if isinstance(value, str):
            return "string"
        return "messages" if isinstance(value, Sequence | Mapping) else "absent"

    return tuple(kind(row.get(name)) for name in ("prompt", "chosen", "rejected"))


def unread_columns(row: Mapping[str, Any]) -> set[str]:
    """Return the names of non-empty columns that neither pairs nor conversations use."""
    return {str(name) for name in row.keys() - _READ_COLUMNS if row[name] not in (None, "", [], {})}


def parse_pair(row: Mapping[str, Any], *, source: str, number: int, part: int = 0) -> PreferencePair:
    """Turn a raw row into a pair.

    Args:
        row: The raw row; see the module's docstring.
        source: The file or data set, for error messages and the pair's id.
        number: The row's number in its source, from 1.
        part: The pair's place among several of the source's row; see `PreferencePair.part`.

    Raises:
        BadRowError: the row breaks the contract; the message gives field, reason and remedy.
    """
    reader = RowReader(row, source=source, number=number)
    arguments = reader.template_columns()
    chosen, rejected = reader.messages("chosen", "assistant"), reader.messages("rejected", "assistant")
    if _holds_prompt(chosen) and _holds_prompt(rejected):
        turns, chosen, rejected = reader.split_common_turns(chosen, rejected)
        reader.check_stated_prompt(turns)
    elif reader.has("prompt"):
        turns = reader.messages("prompt", "user")
    else:
        raise reader.error(
            BadRowReason.MISSING_FIELD,
            "prompt",
            "is missing, and `chosen` and `rejected` do not begin with a user or system turn that could be the prompt",
            "Add a `prompt` field (a string or chat messages).",
        )
    turns = reader.complete_prompt(turns)
    reader.check_response("chosen", chosen)
    reader.check_response("rejected", rejected)
    return PreferencePair(
        prompt=Prompt(turns, arguments),
        chosen=chosen,
        rejected=rejected,
        margin=reader.margin(),
        group=reader.string_or_none("group") or "",
        source=source,
        row=number,
        part=part,
    )


def parse_conversation(row: Mapping[str, Any], *, source: str, number: int) -> Conversation:
    """Turn a raw row `{"prompt", "response"}` into a conversation.

    Raises:
        BadRowError: the row breaks the contract.
    """
    reader = RowReader(row, source=source, number=number)
    prompt = reader.prompt()
    response = reader.messages("response", "assistant")
    for turns in (prompt.turns, reader.messages("prompt", "user")):  # with and without the column `system`
        if _begins_with(response, turns):  # as in pairs, the response may repeat the prompt
            response = response[len(turns) :]
            break
    reader.check_response("response", response)
    return Conversation(prompt, response)


def conversations_of(items: Sequence[Any]) -> list[Conversation]:
    """Return what the Python API scores as conversations.

    Args:
        items: Conversations; (prompt, response) pairs, each a string or chat messages; lists of chat messages that end
            with the response; or rows with `prompt` and `response`.

    Raises:
        DataError: an item is none of these, or breaks the data contract.
    """
    return [
        item if isinstance(item, Conversation) else _conversation(item, number)
        for number, item in enumerate(items, start=1)
    ]


def _conversation(item: Any, number: int) -> Conversation:
    row = item
    if isinstance(item, Sequence) and not isinstance(item, str | bytes) and item:
        if all(isinstance(each, Mapping) for each in item):
            row = {"prompt": list(item[:-1]), "response": [item[-1]]}
        elif len(item) == 2:
            row = {"prompt": item[0], "response": item[1]}
    if not isinstance(row, Mapping):
        raise DataError(
            f"Can't score item {number}, which is {_short(item)}: give a (prompt, response) pair, chat messages that "
            "end with the response, or a Conversation."
        )
    try:
        return parse_conversation(row, source="conversations", number=number)
    except BadRowError as error:
        raise DataError(f"Can't score item {number}: {error.fault}") from error


def transcript_turns(text: str) -> tuple[Message, ...]:
    r"""Split a transcript "\n\nHuman: ... \n\nAssistant: ..." (the format of hh-rlhf) into turns.

    Returns:
        The turns, or () if the text is not such a transcript.
    """
    marks = list(_TRANSCRIPT_TURN.finditer(text))
    if not marks or marks[0].start() != 0:
        return ()
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    return tuple(
        Message(_TRANSCRIPT_ROLES[mark[1]], text[mark.end() : end].strip())
        for mark, end in zip(marks, ends, strict=True)
    )


def _holds_prompt(messages: Sequence[Message]) -> bool:
    return bool(messages) and messages[0].role != "assistant"


def _begins_with(turns: Sequence[Message], beginning: Sequence[Message]) -> bool:
    """Return whether `turns` start with `beginning`, up to white space, and continue after it."""
    repeated = zip(turns, beginning, strict=False)
    return len(turns) > len(beginning) and all(
        (ours.role, plain(ours.content)) == (theirs.role, plain(theirs.content)) for ours, theirs in repeated
    )


def _answers(turns: Sequence[Message]) -> bool:
    return bool(turns) and turns[0].role == "assistant"


def _prompt_turns(text: str) -> tuple[Message, ...]:
    r"""Split a prompt in hh-rlhf's format ("\n\nHuman: ...\n\nAssistant:") into turns; return () for other text."""
    turns = transcript_turns(text)
    opened = bool(turns) and turns[-1] == Message("assistant", "")
    if opened:
        turns = turns[:-1]
    if not turns or turns[-1].role != "user" or not (opened or text.startswith("\n\n")):
        return ()
    return turns


class RowReader:
    """Reads the fields of one raw row; every error names source, row and field, after `prefix` for nested objects."""

    def __init__(self, row: Mapping[str, Any], *, source: str, number: int, prefix: str = "") -> None:
        self.source, self.number, self.prefix = source, number, prefix
        if not isinstance(row, Mapping):
            raise self.error(
                BadRowReason.WRONG_TYPE,
                None,
                f"the row is of type {type(row).__name__}, not an object",
                'Write each row as an object: {"prompt": ..., "chosen": ..., "rejected": ...}.',
            )
        self.row = row

    def error(self, reason: BadRowReason, name: str | None, problem: str, remedy: str) -> BadRowError:
        """Create the error for a problem with field `name` of this row."""
        field = name and self.prefix + name
        return BadRowError(reason, source=self.source, row=self.number, field=field, problem=problem, remedy=remedy)

    def has(self, name: str) -> bool:
        """Return whether the row has a value for `name` other than null or an empty cell."""
        value = self.row.get(name)
        return value is not None and not (isinstance(value, Cell) and not value)

    def prompt(self) -> Prompt:
        """Return the row's prompt with the columns that the chat template reads."""
        turns = self.complete_prompt(self.messages("prompt", "user"))
        return Prompt(turns, self.template_columns())

    def complete_prompt(self, turns: tuple[Message, ...]) -> tuple[Message, ...]:
        """Prepend the column `system` to the prompt's turns, and raise if other columns contain text of the prompt."""
        self.check_prompt(turns)
        system = self.string("system") if self.has("system") else ""
        if system.strip() and turns[0].role in ("system", "developer"):
            if plain(turns[0].content) != plain(system):
                problem = f"is {_short(system)}, but the prompt begins with another {turns[0].role} turn"
                raise self.error(BadRowReason.UNSUPPORTED, "system", problem, "Give the system turn once.")
        elif system.strip():
            turns = (Message("system", system), *turns)
        self._check_rendered(turns)
        return turns

    def _check_rendered(self, turns: Sequence[Message]) -> None:
        """Raise if a column contains a part of the prompt that is missing from the prompt's turns."""
        for name, remedy in UNRENDERED_COLUMNS.items():
            if not all(_begins_or_ends(turns, text) for text in _strings(self.row.get(name))):
                problem = "contains text that the prompt does not, and it would be lost"
                raise self.error(BadRowReason.UNSUPPORTED, name, problem, f"{remedy}, or remove the column.")

    def template_columns(self) -> str:
        """Return the columns that the chat template reads, as `Prompt.arguments`; raise on media columns."""
        for name in MEDIA_COLUMNS:
            if self.row.get(name):
                raise self.error(
                    BadRowReason.UNSUPPORTED,
                    name,
                    "contains media, and only text can be scored",
                    "Remove the row, or the column if the texts say all.",
                )
        columns = {name: self._template_column(name) for name in TEMPLATE_COLUMNS if self.has(name)}
        return json.dumps(columns, ensure_ascii=False) if columns else ""

    def _template_column(self, name: str) -> Any:
        """Return one of `TEMPLATE_COLUMNS`, given as a value or as JSON text."""
        value = self.row[name]
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(value) if isinstance(value, str) else value
        if name == "chat_template_kwargs":
            fits, wanted = isinstance(value, Mapping), "an object of argument names and values"
            names = [str(each) for each in value] if fits else []
            reserved = sorted(each for each in names if each in _RESERVED_ARGUMENTS or _SPECIAL_TOKEN.fullmatch(each))
            if reserved:
                remedy = "Put `tools` and `documents` into columns of their own, and leave the others out."
                raise self.error(BadRowReason.UNSUPPORTED, name, f"sets {', '.join(reserved)}", remedy)
        else:
            fits = isinstance(value, Sequence) and all(isinstance(item, Mapping) for item in value)
            wanted = "a list of objects"
        if not fits:
            raise self.error(BadRowReason.WRONG_TYPE, name, f"is {_short(value)}", f"Give {wanted}, or leave it out.")
        self._check_json(name, value)
        return value

    def _check_json(self, name: str, value: Any) -> None:
        """Raise if a value has no JSON form or contains lone surrogates."""
        try:
            self.check_text(name, json.dumps(value, ensure_ascii=False, allow_nan=False))
        except (TypeError, ValueError, RecursionError) as error:
            raise self.error(
                BadRowReason.WRONG_TYPE, name, f"has no JSON form ({error})", "Write plain JSON values."
            ) from None

    def messages(self, name: str, role: str) -> tuple[Message, ...]:
        """Return a field as messages; a plain string becomes one turn of `role`, a transcript its turns."""
        if not self.has(name):
            raise self.error(BadRowReason.MISSING_FIELD, name, "is missing", "Add it, as a string or as chat messages.")
        value = self.row[name]
        if isinstance(value, Cell):
            value = value.turns
        if isinstance(value, str):
            self.check_text(name, value)
            turns = _prompt_turns(value) if name == "prompt" else self._transcript(value)
            return turns or (Message(role, value),)
        if isinstance(value, Mapping):
            value = [value]
        if not isinstance(value, Sequence) or isinstance(value, bytes):
            raise self.error(
                BadRowReason.WRONG_TYPE,
                name,
                f"is of type {type(value).__name__}",
                'Write it as a string or as chat messages: [{"role": "user", "content": "..."}].',
            )
        return tuple(self._message(f"{name}[{i}]", item) for i, item in enumerate(value))

    def _transcript(self, text: str) -> tuple[Message, ...]:
        """Split a response that is a transcript into turns, if the row has no prompt or the transcript repeats it.

        Any other text only looks like a transcript, for example a dialogue that the prompt asked for.
        """
        turns = transcript_turns(text)
        if not turns or not self.has("prompt") or _begins_with(turns, self.messages("prompt", "user")):
            return turns
        return ()

    def _message(self, where: str, item: object) -> Message:
        if not isinstance(item, Mapping):
            raise self.error(
                BadRowReason.WRONG_TYPE,
                where,
                f"is of type {type(item).__name__}",
                'A chat message is an object: {"role": "user", "content": "..."}.',
            )
        role = item.get("role")
        if role not in ROLES:
            raise self.error(
                BadRowReason.MISSING_FIELD if role is None else BadRowReason.WRONG_TYPE,
                f"{where}.role",
                "is missing" if role is None else f"is {_short(role)}",
                f"Use one of {', '.join(ROLES)}.",
            )
        more = self._extras(where, item)
        content = self._content(f"{where}.content", item.get("content"), optional=bool(more))
        return Message(str(role), content, more)

    def _extras(self, where: str, item: Mapping[str, Any]) -> str:
        """Return a message's further keys as `Message.more`; null counts as absent, as in transformers."""
        extras = {key: value for key, value in item.items() if value is not None and key not in ("role", "content")}
        for key, value in extras.items():
            if key not in MESSAGE_KEYS:
                raise self.error(
                    BadRowReason.UNSUPPORTED,
                    f"{where}.{key}",
                    "is a key that hafrm would lose",
                    f"Remove it; a message may have role, content, {', '.join(MESSAGE_KEYS)}.",
                )
            self._check_extra(f"{where}.{key}", key, value)
        return json.dumps(extras, ensure_ascii=False) if extras else ""

    def _check_extra(self, where: str, key: str, value: Any) -> None:
        """Raise unless the value of a message's key has the type that chat templates expect."""
        listed = key in ("tool_calls", "tool_responses")
        if listed and not (isinstance(value, Sequence) and all(isinstance(call, Mapping) for call in value)):
            raise self.error(BadRowReason.WRONG_TYPE, where, f"is {_short(value)}", "Give a list of objects.")
        if not listed and not isinstance(value, str):
            raise self.error(BadRowReason.WRONG_TYPE, where, f"is {_short(value)}", "Give a string.")
        self._check_json(where, value)

    def _content(self, where: str, content: object, *, optional: bool) -> str:
        """Return a turn's text; text parts are joined by line breaks, as in vLLM."""
        if content is None and optional:
            return ""
        if isinstance(content, Sequence) and not isinstance(content, str | bytes):
            return "\n".join(self._part(f"{where}[{i}]", part) for i, part in enumerate(content))
        if not isinstance(content, str):
            raise self.error(
                BadRowReason.MISSING_FIELD if content is None else BadRowReason.WRONG_TYPE,
                where,
                "is missing" if content is None else f"is of type {type(content).__name__}",
                "Give the turn's text as a string.",
            )
        self.check_text(where, content)
        return content

    def _part(self, where: str, part: object) -> str:
        if not isinstance(part, Mapping):
            raise self.error(
                BadRowReason.WRONG_TYPE,
                where,
                f"is of type {type(part).__name__}",
                'A part of a turn is an object: {"type": "text", "text": "..."}.',
            )
        kind = part.get("type", "text")
        other = next((key for key, value in part.items() if value is not None and key not in ("type", "text")), None)
        if kind not in TEXT_PARTS or other is not None:
            name = f"{where}.type" if other is None else f"{where}.{other}"
            problem = f"is {_short(kind)}" if other is None else "is a key that hafrm would lose"
            raise self.error(BadRowReason.UNSUPPORTED, name, problem, "Only text can be scored: keep the text parts.")
        text = part.get("text")
        if not isinstance(text, str):
            raise self.error(
                BadRowReason.WRONG_TYPE, f"{where}.text", f"is {_short(text)}", "Give the part's text as a string."
            )
        self.check_text(f"{where}.text", text)
        return text

    def check_text(self, name: str, text: str) -> None:
        """Raise if a text contains lone surrogates, which tokenizers can't encode."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise self.error(
                BadRowReason.INVALID_TEXT,
                name,
                f"is not valid Unicode (lone surrogate at character {error.start})",
                "Repair the file's encoding.",
            ) from None

    def split_common_turns(
        self, chosen: tuple[Message, ...], rejected: tuple[Message, ...]
    ) -> tuple[tuple[Message, ...], tuple[Message, ...], tuple[Message, ...]]:
        """Find the implicit prompt: the leading turns that both share, up to an assistant turn."""
        shared = 0
        while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
            shared += 1
        while shared and not (_answers(chosen[shared:]) and _answers(rejected[shared:])):
            shared -= 1
        if not shared:
            raise self.error(
                BadRowReason.MISSING_FIELD,
                "prompt",
                "is missing, and `chosen` and `rejected` share no leading turns that an assistant turn follows",
                "Add a `prompt` field, or make both conversations begin with the same turns.",
            )
        return chosen[:shared], chosen[shared:], rejected[shared:]

    def check_stated_prompt(self, found: Sequence[Message]) -> None:
        """Raise if `prompt` contains text that is missing from the prompt within the conversations."""
        if not self.has("prompt"):
            return
        known = {plain(message.text) for message in found} | {""}
        if any(plain(message.text) not in known for message in self.messages("prompt", "user")):
            raise self.error(
                BadRowReason.WRONG_TYPE,
                "prompt",
                "contains text that is missing from the turns with which `chosen` and `rejected` begin",
                "Give the prompt once: in `prompt`, with `chosen` and `rejected` beginning at the assistant's turn.",
            )

    def check_prompt(self, prompt: Sequence[Message]) -> None:
        """Raise unless a turn of the prompt has text."""
        if not any(message.text.strip() for message in prompt):
            raise self.error(BadRowReason.EMPTY_PROMPT, "prompt", "is empty", "Give the prompt's text.")

    def check_response(self, name: str, response: Sequence[Message]) -> None:
        """Raise unless a response starts and ends with assistant turns, each with text or tool calls."""
        empty = next((m for m in response if m.role == "assistant" and not m.text.strip()), None)
        if not response or empty is not None:
            raise self.error(
                BadRowReason.EMPTY_RESPONSE,
                name,
                "is empty, so there are no response tokens to score",
                "Remove the row, or fill the response in.",
            )
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
        values = self.row.get("responses")
        if not isinstance(values, list) or not fits(len(values)):
            reason = BadRowReason.WRONG_TYPE if self.has("responses") else BadRowReason.MISSING_FIELD
            problem = f"contains {len(values)} responses" if isinstance(values, list) else "is not a list"
            problem = problem if self.has("responses") else "is missing"
            raise self.error(reason, "responses", problem, sizes)
        named = {f"responses[{place}]": value for place, value in enumerate(values)}
        reader = RowReader({"prompt": self.row.get("prompt"), **named}, source=self.source, number=self.number)
        return [reader.messages(name, "assistant") for name in named]

    def string(self, name: str) -> str:
        """Return a field that must be a string."""
        value = self.row.get(name)
        if not isinstance(value, str):
            raise self._unfit(name, value, "a string")
        self.check_text(name, value)
        return value

    def boolean(self, name: str) -> bool:
        """Return a field that must be true or false."""
        value = typed(self.row.get(name))
        if not isinstance(value, bool):
            raise self._unfit(name, value, "true or false")
        return value

    def sequence(self, name: str) -> Sequence[Any]:
        """Return a field that must be a list."""
        value = typed(self.row.get(name))
        if not isinstance(value, Sequence) or isinstance(value, str | bytes):
            raise self._unfit(name, value, "a list")
        return value

    def one_of(self, name: str, values: Sequence[Any]) -> Any:
        """Return a field that must equal one of some values: 0 and 1 also match false and true."""
        value = typed(self.row.get(name))
        if value not in values:
            raise self._unfit(name, value, "one of " + ", ".join(map(str, values)))
        return value

    def required_number(self, name: str) -> float:
        """Return a field that must be a finite number."""
        value = self.number_or_none(name)
        if value is None:
            raise self._unfit(name, None, "a finite number")
        return value

    def _unfit(self, name: str, value: object, wanted: str) -> BadRowError:
        if value is None:
            return self.error(BadRowReason.MISSING_FIELD, name, "is missing", f"Give {wanted}.")
        return self.error(BadRowReason.WRONG_TYPE, name, f"is {_short(value)}", f"Give {wanted}.")

    def number_or_none(self, name: str) -> float | None:
        """Return an optional field that must be a finite number."""
        value = typed(self.row.get(name))
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not _is_finite(value):
            raise self.error(
                BadRowReason.WRONG_TYPE, name, f"is {_short(value)}", "Give a finite number, or leave the field out."
            )
        return float(value)

    def margin(self) -> float | None:
        """Return the row's margin, in units of reward."""
        value = self.number_or_none("margin")
        if value is not None and abs(value) > _LARGEST_MARGIN:
            problem = f"is {value!r}, beyond {_LARGEST_MARGIN:g}"
            raise self.error(BadRowReason.WRONG_TYPE, "margin", problem, "Give it in units of reward.")
        return value

    def string_or_none(self, name: str) -> str | None:
        """Return an optional string; integers are converted to their digits."""
        value = self.row.get(name)
        if value is None or isinstance(value, str):
            if value:
                self.check_text(name, value)
            return value
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        raise self.error(BadRowReason.WRONG_TYPE, name, f"is {_short(value)}", "Give a string, or leave the field out.")


def _begins_or_ends(turns: Sequence[Message], text: str) -> bool:
    """Return whether a turn equals, starts with or ends with a text, up to white space."""
    padded = [f" {plain(turn.content)} " for turn in turns]
    return any(turn.startswith(f" {text} ") or turn.endswith(f" {text} ") for turn in padded)


def _strings(value: object) -> list[str]:
    """Return the non-empty texts nested in a value, with white space normalised."""
    found, waiting = [], [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, Mapping):
            waiting += item.values()
        elif isinstance(item, Sequence) and not isinstance(item, str | bytes):
            waiting += item
        elif item is not None and (text := plain(str(item))):
            found.append(text)
    return found


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer too large for a float
        return False


def _short(value: object) -> str:
    # reprlib limits the depth: repr fails on deeply nested rows.
    text = reprlib.repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
