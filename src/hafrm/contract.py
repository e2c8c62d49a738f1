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

from collections.abc import Mapping, Sequence
from typing import Any

from hafrm.errors import BadRowError, BadRowReason, DataError
from hafrm.pairs import TEMPLATE_COLUMNS, Conversation, Message, PreferencePair, Prompt, plain
from hafrm.rows import Row, begins_with, is_list, short

_READ_COLUMNS = frozenset({"prompt", "chosen", "rejected", "response", "system", "margin", "group", *TEMPLATE_COLUMNS})


_LARGEST_MARGIN = 1e6
"""Largest margin accepted: above it the loss and its gradients overflow, so the data must be wrong."""


def row_schema(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Return "messages", "string" or "absent" for each of `prompt`, `chosen` and `rejected`."""

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
        part: The pair's number among several pairs of one row; see `PreferencePair.part`.

    Raises:
        BadRowError: the row breaks the contract; the message gives field, reason and remedy.
    """
    reader = Row(row, source=source, number=number)
    arguments = reader.template_columns()
    chosen, rejected = reader.messages("chosen", "assistant"), reader.messages("rejected", "assistant")
    if all(turns and turns[0].role != "assistant" for turns in (chosen, rejected)):  # both begin with the prompt
        turns, chosen, rejected = _split_common_turns(reader, chosen, rejected)
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
        margin=_margin(reader),
        group=reader.string_or_none("group") or "",
        source=source,
        row=number,
        part=part,
    )


def _split_common_turns(
    row: Row, chosen: tuple[Message, ...], rejected: tuple[Message, ...]
) -> tuple[tuple[Message, ...], tuple[Message, ...], tuple[Message, ...]]:
    """Find the implicit prompt, that is the leading turns that both share up to an assistant turn.

    Raises:
        BadRowError: there are none, or the field `prompt` contains text that is missing from them.
    """
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    while shared and not all(len(turns) > shared and turns[shared].role == "assistant" for turns in (chosen, rejected)):
        shared -= 1
    if not shared:
        raise row.error(
            BadRowReason.MISSING_FIELD,
            "prompt",
            "is missing, and `chosen` and `rejected` share no leading turns that an assistant turn follows",
            "Add a `prompt` field, or make both conversations begin with the same turns.",
        )
    known = {plain(message.text) for message in chosen[:shared]} | {""}
    stated = row.messages("prompt", "user") if row.has("prompt") else ()
    if any(plain(message.text) not in known for message in stated):
        raise row.error(
            BadRowReason.WRONG_TYPE,
            "prompt",
            "contains text that is missing from the turns with which `chosen` and `rejected` begin",
            "Give the prompt once: in `prompt`, with `chosen` and `rejected` beginning at the assistant's turn.",
        )
    return chosen[:shared], chosen[shared:], rejected[shared:]


def _margin(row: Row) -> float | None:
    """Return the row's margin, in units of reward."""
    value = row.number_or_none("margin")
    if value is not None and abs(value) > _LARGEST_MARGIN:
        problem = f"is {value!r}, beyond {_LARGEST_MARGIN:g}"
        raise row.error(BadRowReason.WRONG_TYPE, "margin", problem, "Give it in units of reward.")
    return value


def parse_conversation(row: Mapping[str, Any], *, source: str, number: int) -> Conversation:
    """Turn a raw row `{"prompt", "response"}` into a conversation; raise BadRowError if it breaks the contract."""
    reader = Row(row, source=source, number=number)
    prompt = reader.prompt()
    response = reader.messages("response", "assistant")
    for turns in (prompt.turns, reader.messages("prompt", "user")):  # with and without the column `system`
        if begins_with(response, turns):  # as in pairs, the response may repeat the prompt
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
    if is_list(item) and item:
        if all(isinstance(each, Mapping) for each in item):
            row = {"prompt": list(item[:-1]), "response": [item[-1]]}
        elif len(item) == 2:
            row = {"prompt": item[0], "response": item[1]}
    if not isinstance(row, Mapping):
        raise DataError(
            f"Can't score item {number}, which is {short(item)}: give a (prompt, response) pair, chat messages that "
            "end with the response, or a Conversation."
        )
    try:
        return parse_conversation(row, source="conversations", number=number)
    except BadRowError as error:
        raise DataError(f"Can't score item {number}: {error.fault}") from error
