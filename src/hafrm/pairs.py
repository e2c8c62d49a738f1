"""Messages, prompts, conversations and preference pairs, independent of files, tokenizers and tensors.

`hafrm.contract` reads them from raw rows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

ROLES = ("system", "developer", "user", "assistant", "tool")

MESSAGE_KEYS = ("tool_calls", "tool_call_id", "name", "reasoning_content", "reasoning", "thinking", "tool_responses")
"""Keys of a message, besides `role` and `content`, that chat templates read."""

REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
"""Keys under which a message may have its reasoning; transformers renames them to the first."""

TEMPLATE_COLUMNS = ("tools", "documents", "chat_template_kwargs")
"""Columns of a row that chat templates read: tools, documents and further named arguments."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    """One of `ROLES`."""
    content: str
    """The turn's text; empty if the turn only calls tools."""
    more: str = ""
    """Further keys of the turn (`MESSAGE_KEYS`) as a JSON object, in their original order; empty if there are none."""

    @property
    def extras(self) -> dict[str, Any]:
        """The turn's further keys and their values."""
        return dict(json.loads(self.more)) if self.more else {}

    @property
    def reasoning(self) -> str:
        """The turn's reasoning, if given separately from its content."""
        if not self.more:
            return ""
        extras = self.extras
        return next((str(extras[key]) for key in REASONING_KEYS if extras.get(key)), "")

    def with_reasoning(self, reasoning: str) -> Message:
        """Replace the turn's reasoning under its existing keys; an empty string removes those keys."""
        if not self.more:
            return self
        extras = {key: value if key not in REASONING_KEYS else reasoning for key, value in self.extras.items()}
        kept = {key: value for key, value in extras.items() if value or key not in REASONING_KEYS}
        return replace(self, more=json.dumps(kept, ensure_ascii=False) if kept else "")

    @property
    def text(self) -> str:
        """The turn as a person would read it: reasoning, content and tool calls."""
        if not self.more:
            return self.content
        shown = [self.reasoning, self.content]
        shown += [json.dumps(self.extras[key], ensure_ascii=False) for key in ("tool_calls",) if key in self.extras]
        return "\n\n".join(part for part in shown if part)

    def as_dict(self) -> dict[str, Any]:
        """Return the message in the form that chat templates take."""
        return {"role": self.role, "content": self.content, **self.extras}


@dataclass(frozen=True, slots=True)
class Prompt:
    """The turns to respond to, with the chat template's other inputs (the paper's x)."""

    turns: tuple[Message, ...]
    arguments: str = ""
    """Values of `TEMPLATE_COLUMNS` as a JSON object; empty if there are none."""

    @classmethod
    def of(cls, text: str) -> Prompt:
        """Create a prompt of one user turn."""
        return cls((Message("user", text),))

    @property
    def columns(self) -> dict[str, Any]:
        """The row's columns that the chat template reads."""
        return dict(json.loads(self.arguments)) if self.arguments else {}

    @property
    def template_arguments(self) -> dict[str, Any]:
        """Keyword arguments for `apply_chat_template`."""
        columns = self.columns
        return {**columns.pop("chat_template_kwargs", {}), **columns}

    def as_row(self) -> dict[str, Any]:
        """Return the prompt as columns of a raw row, the inverse of `Row.prompt`."""
        return {"prompt": [message.as_dict() for message in self.turns], **self.columns}


@dataclass(frozen=True, slots=True)
class Conversation:
    """A prompt with one response, which a reward model scores (the paper's (x, y))."""

    prompt: Prompt
    response: tuple[Message, ...]
    """Usually one assistant turn; if there are more turns, the last one is an assistant turn."""

    @classmethod
    def of(cls, prompt: str, response: str) -> Conversation:
        """Create a conversation of one user turn and one assistant turn."""
        return cls(Prompt.of(prompt), (Message("assistant", response),))

    @property
    def turns(self) -> tuple[Message, ...]:
        """The turns of prompt and response."""
        return (*self.prompt.turns, *self.response)

    def as_row(self) -> dict[str, Any]:
        """Return the conversation as a raw row, the inverse of `parse_conversation`."""
        return self.prompt.as_row() | {"response": [message.as_dict() for message in self.response]}


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferencePair:
    """A prompt with a better and a worse response: the paper's (x, y, y') (section 2.1)."""

    prompt: Prompt
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    margin: float | None = None
    """How much better `chosen` is, in units of reward, if the source says so."""
    group: str = ""
    """Name shared by pairs with the same prompt. Empty: derived from the prompt's text."""
    source: str = field(default="", compare=False)
    """File or data set of the pair."""
    row: int = field(default=0, compare=False)
    """The row's number in its source, from 1."""
    part: int = field(default=0, compare=False)
    """The pair's number among several pairs of one row, from 1; 0 if it is the only one."""

    def __post_init__(self) -> None:
        if not self.group:
            object.__setattr__(self, "group", prompt_group(self.prompt))

    @property
    def id(self) -> str:
        """Stable name of the pair for error messages and result files: `source:row`, or `source:row.part`."""
        return pair_id(self.source, self.row, self.part)

    @property
    def turns(self) -> tuple[Message, ...]:
        """All turns: the prompt's, then those of both responses."""
        return (*self.prompt.turns, *self.chosen, *self.rejected)

    @property
    def conversations(self) -> tuple[Conversation, Conversation]:
        """The pair's two conversations, chosen before rejected."""
        return Conversation(self.prompt, self.chosen), Conversation(self.prompt, self.rejected)

    def as_row(self) -> dict[str, Any]:
        """Return the pair as a raw row, the inverse of `parse_pair`."""
        row = self.prompt.as_row()
        row |= {name: [message.as_dict() for message in getattr(self, name)] for name in ("chosen", "rejected")}
        if self.margin is not None:
            row["margin"] = self.margin
        return row | {"group": self.group}


def pair_id(source: str, row: int, part: int = 0) -> str:
    """Return the id of a pair; see `PreferencePair.id`."""
    return f"{source}:{row}.{part}" if part else f"{source}:{row}"


def prompt_group(prompt: Prompt) -> str:
    """Return a short stable name for a prompt, the same for prompts that differ only in case and white space."""
    return text_group(prompt.turns, prompt.arguments)


def text_group(turns: Sequence[Message], arguments: str = "") -> str:
    """Return a short stable name for turns, the same for turns whose content differs only in case and white space."""
    parts = [
        f"{turn.role}\x1f{plain(turn.content).lower()}" + (f"\x1f{turn.more}" if turn.more else "") for turn in turns
    ]
    return hashlib.sha256("\x1e".join([*parts, arguments] if arguments else parts).encode()).hexdigest()[:16]


def plain(text: str) -> str:
    """Return a text with its white space normalised."""
    return " ".join(text.split())
