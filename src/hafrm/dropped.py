"""Find what a chat template drops from a conversation, by rendering it again with a part changed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from hafrm.pairs import MESSAGE_KEYS, REASONING_KEYS, Message, Prompt
from hafrm.templates import ChatTokenizer, TemplateRefusalError, render

_OTHER_KEYS = tuple(key for key in MESSAGE_KEYS if key not in REASONING_KEYS)

_KEPT = 1024
"""Number of surroundings to keep."""

_WORD = re.compile(r"\w+")
_ESCAPE = re.compile(r"\\[nrt\"\\/]")


@dataclass(frozen=True)
class _Rendering:
    """A conversation and the text that the template makes of it."""

    prompt: Prompt
    turns: tuple[Message, ...]
    """The turns of the prompt and of a response."""
    text: str

    @cached_property
    def written(self) -> str:
        """The text of all turns."""
        return "\n".join(text for turn in self.turns for text in (turn.content, turn.reasoning) if text)


class DroppedText:
    """Finds what a tokenizer's chat template drops; `ended` ends a rendered text as the encoder does."""

    def __init__(self, tokenizer: ChatTokenizer, ended: Callable[[str], str]) -> None:
        self.tokenizer, self.ended = tokenizer, ended
        self._surroundings: dict[tuple[str, tuple[tuple[str, bool, str], ...]], str] = {}

    def of(self, prompt: Prompt, responses: Sequence[Sequence[Message]], texts: Sequence[str]) -> Iterator[str]:
        """Yield what is dropped from a prompt and from each of its responses.

        Args:
            prompt: The prompt.
            responses: The responses.
            texts: The prompt with each response, rendered.

        Yields:
            The names of columns and template arguments ("tools"), and for each turn its role and the part that is
            dropped ("tool text", "assistant reasoning").
        """
        wholes = [
            _Rendering(prompt, (*prompt.turns, *turns), text) for turns, text in zip(responses, texts, strict=True)
        ]
        yield from self._of_columns(prompt, wholes)
        first = len(prompt.turns)
        yield from self._of_turns(wholes[0], range(first))
        for whole in wholes:
            yield from self._of_turns(whole, range(first, len(whole.turns)))

    def _of_columns(self, prompt: Prompt, wholes: Sequence[_Rendering]) -> Iterator[str]:
        """Yield the tools, documents and template arguments whose removal does not change any rendering."""
        columns = prompt.columns
        less = {name: {**columns, name: None} for name in ("tools", "documents") if columns.get(name)}
        arguments = columns.get("chat_template_kwargs", {})
        for name in arguments:
            others = {other: value for other, value in arguments.items() if other != name}
            less[f"chat_template_kwargs.{name}"] = {**columns, "chat_template_kwargs": others}
        for what, left in less.items():
            changed = replace(prompt, arguments=json.dumps(left, ensure_ascii=False))
            if all(self._renders_as(whole, changed, whole.turns) for whole in wholes):
                yield what

    def _of_turns(self, whole: _Rendering, places: range) -> Iterator[str]:
        dropped: dict[tuple[str, str, str], bool] = {}  # equal parts of turns are looked for once
        for place in places:
            turn = whole.turns[place]
            for part, value in _parts(turn):
                key = (turn.role, part, value)
                if key not in dropped:
                    dropped[key] = self._drops(whole, place, part, value)
                if dropped[key]:
                    yield f"{turn.role} {part}"

    def _drops(self, whole: _Rendering, place: int, part: str, value: str) -> bool:
        """Return whether the template drops a part of a turn.

        A text that also occurs elsewhere is doubled, to see whether the rendering changes.
        """
        turn = whole.turns[place]
        if part in _OTHER_KEYS:
            changed = replace(turn, more=_without(turn.more, part))
        elif not _writes(whole.text, value):
            return True
        elif value in whole.text and whole.written.count(value) == 1 and value not in self._around(whole):
            return False
        else:
            twice = f"{value} {value}"
            changed = replace(turn, content=twice) if part == "text" else turn.with_reasoning(twice)
        return self._renders_as(whole, whole.prompt, (*whole.turns[:place], changed, *whole.turns[place + 1 :]))

    def _around(self, whole: _Rendering) -> str:
        """Return what the template writes around turns like these: its own marks, tools, calls and arguments."""
        turns = whole.turns
        shapes = tuple((turn.role, bool(turn.content), turn.with_reasoning("").more) for turn in turns)
        key = whole.prompt.arguments, shapes
        if key not in self._surroundings:
            if len(self._surroundings) >= _KEPT:
                self._surroundings.clear()
            bare = [replace(turn, content="0" if turn.content else "").with_reasoning("") for turn in turns]
            self._surroundings[key] = self._text(whole.prompt, bare) or ""
        return self._surroundings[key]

    def _renders_as(self, whole: _Rendering, prompt: Prompt, turns: Sequence[Message]) -> bool:
        """Return whether other turns, or other arguments of the prompt, render as the same text."""
        text = self._text(prompt, turns)
        return text is not None and self.ended(text) == whole.text

    def _text(self, prompt: Prompt, turns: Sequence[Message]) -> str | None:
        """Render turns with a prompt's arguments; return None if the template refuses them."""
        try:
            (text,) = render(self.tokenizer, [(replace(prompt, turns=()), turns)])
        except TemplateRefusalError:
            return None
        return text


def _parts(turn: Message) -> list[tuple[str, str]]:
    """Return the parts of a turn that have a value."""
    extras = turn.extras
    parts = [("text", turn.content.strip()), ("reasoning", turn.reasoning.strip())]
    parts += [(name, json.dumps(extras[name])) for name in _OTHER_KEYS if extras.get(name)]
    return [(name, value) for name, value in parts if value]


def _writes(rendered: str, text: str) -> bool:
    """Return whether a rendering contains a text: literally, up to white space and punctuation, or JSON-escaped."""
    if (text := text.strip()) in rendered:
        return True
    words = " ".join(_WORD.findall(text))
    return bool(words) and any(
        f" {words} " in f" {' '.join(_WORD.findall(form))} " for form in (rendered, _ESCAPE.sub(" ", rendered))
    )


def _without(values: str, name: str) -> str:
    """Remove a key from the text of a JSON object; return "" if no key remains."""
    found = json.loads(values)
    found.pop(name, None)
    return json.dumps(found, ensure_ascii=False) if found else ""
