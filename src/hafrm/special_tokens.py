"""Find special tokens in messages and encode them as plain characters.

A tokenizer turns `</s>` or `<|im_end|>` inside a message into the same token that the chat template writes, so the
author of a message can end their own turn and forge the turns that follow.

Uses messages and the public methods of tokenizers; independent of files, models and tensors.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

from jinja2 import Environment, TemplateSyntaxError, nodes

from hafrm.pairs import Message, Prompt
from hafrm.templates import TemplateRefusalError, render

SpecialTokenRule = Literal["text", "token", "refuse"]
"""Treatment of special tokens in messages.

`text` encodes them as plain characters, `token` as the tokenizer's own tokens, as other programs and training do;
`refuse` gives the conversation no reward.
"""

_BEGIN, _END = "\ufdd0", "\ufdd1"
"""Markers around special tokens of messages during rendering: code points that don't occur in text."""

_LAST = "Another question"
_USER, _ANSWER, _MORE = Message("user", "Question"), Message("assistant", "Answer"), Message("user", _LAST)
_SYSTEM, _TOOL = Message("system", "Be brief"), Message("tool", "Result")
_TALKS = [
    (*system, *turns, _MORE)
    for system in ((), (_SYSTEM,))
    for turns in ((_USER, _ANSWER), (_USER, _ANSWER, _TOOL, _ANSWER))
]
"""Conversations whose renderings show which tokens open and close turns; templates may refuse some of them."""

_SAFE_FILTERS = frozenset(
    "trim tojson length count default d first last list int string safe items map select selectattr reject "
    "rejectattr sort".split()
)
_SAFE_METHODS = frozenset(
    "strip lstrip rstrip split rsplit startswith endswith removeprefix removesuffix items keys values get append "
    "find index count strftime".split()
)
"""Template methods and filters that can't turn ordinary text into a special token."""


class SpecialTokenError(TemplateRefusalError):
    """A message contains a special token that can't be encoded or is not allowed."""


class SpecialTokens:
    """Tokens of a tokenizer that structure a conversation: the special ones, and others that open or close turns."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        added = list(tokenizer.added_tokens_decoder.values())
        around = _around_turns(tokenizer)
        names = set(tokenizer.all_special_tokens) | {
            str(token) for token in added if token.special or (str(token).strip() and str(token) in around)
        }
        self._token = _any_of(names)
        self._hidden = re.compile(f"{_BEGIN}({self._token.pattern}){_END}|[{_BEGIN}{_END}]")
        self._letters = {letter for name in names for letter in name if not letter.isalnum()}
        self._rewrites = _rewrites(tokenizer.chat_template)
        self._normalize = _normalizer(tokenizer)
        normalized = {str(token) for token in added if getattr(token, "normalized", False)} & names
        self._normalized = _any_of({self._normalize(name) for name in normalized}) if self._normalize else None
        self._known: dict[tuple[str, bool], list[int]] = {}

    def count(self, prompt: Prompt, response: Sequence[Message]) -> int:
        """Count the special tokens in the messages, tools, documents and template arguments."""
        return sum(self._count(text) for text in _texts(prompt, response))

    def _count(self, text: str) -> int:
        found = len(self._token.findall(text))
        return max(found, self._disguised(text)) if self._normalized else found

    def _disguised(self, text: str) -> int:
        """Count the special tokens that the tokenizer's normalizer creates from a text, such as full-width ones."""
        assert self._normalize is not None
        assert self._normalized is not None
        return len(self._normalized.findall(self._normalize(text)))

    def hide(self, value: Any) -> Any:
        """Mark the special tokens in all strings of a JSON value, so `encode` can tell them from the template's own.

        Raises:
            SpecialTokenError: a string contains the markers' code points, or a special token in another spelling.
        """
        if isinstance(value, str):
            if _BEGIN in value or _END in value:
                raise SpecialTokenError(
                    "A message contains U+FDD0 or U+FDD1 next to special tokens. Remove these characters."
                )
            if self._normalized and self._disguised(self._token.sub("", value)):
                raise SpecialTokenError(
                    "A message contains a special token in another spelling, such as full-width letters. Remove it."
                )
            return self._token.sub(rf"{_BEGIN}\g<0>{_END}", value)
        return _each(self.hide, value)

    def shown(self, text: str) -> str:
        """Remove the markers from a text rendered from marked values."""
        return text.replace(_BEGIN, "").replace(_END, "")

    def check(self, conversations: Sequence[tuple[Prompt, Sequence[Message]]], texts: Sequence[str]) -> None:
        """Check that the template did not create special tokens from messages, for example by removing a word.

        `texts` are the conversations' renderings from marked values; all have the same template arguments.

        Raises:
            SpecialTokenError: a text has more special tokens than the rendering without special characters.
        """
        if not self._rewrites:
            return
        plain = render(self._tokenizer, conversations, change=self._without_letters)
        for text, harmless in zip(texts, plain, strict=True):
            if len(self._token.findall(self._hidden.sub("", text))) > len(self._token.findall(harmless)):
                raise SpecialTokenError("The chat template turns text of a message into a special token. Remove it.")

    def _without_letters(self, value: Any) -> Any:
        if isinstance(value, str):
            return "".join(letter for letter in value if letter not in self._letters) or value[:0]
        return _each(self._without_letters, value)

    def encode(self, text: str) -> list[int]:
        """Encode a text rendered from marked values: marked tokens as their characters, everything else as usual.

        Raises SpecialTokenError if the tokenizer creates a special token even from plain characters.
        """
        pieces = self._hidden.split(text)
        ids = self._usual(pieces[0]) if pieces[0] else []
        for number, piece in enumerate(pieces[1:], 1):
            if piece:
                ids += self._in_the_middle(piece, hidden=number % 2 == 1)  # odd pieces are the matched tokens
        return ids

    def _in_the_middle(self, text: str, *, hidden: bool) -> list[int]:
        """Encode a text that follows other text; SentencePiece-like tokenizers add a space only at the beginning."""
        if (key := (text, hidden)) not in self._known or len(text) > 64:
            encode = self._without_added_tokens if hidden else self._usual
            before, ids = encode("\n"), encode("\n" + text)
            ids = ids[len(before) :] if ids[: len(before)] == before else encode(text)
            if hidden and self._tokenizer.convert_tokens_to_ids(text) in ids:
                raise SpecialTokenError(f"The tokenizer can't encode {text!r} as plain characters. Remove it.")
            if len(text) > 64:
                return ids
            if len(self._known) > 4096:
                self._known.clear()
            self._known[key] = ids
        return self._known[key]

    def _usual(self, text: str) -> list[int]:
        found: list[int] = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return found

    def _without_added_tokens(self, text: str) -> list[int]:
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is None:  # a tokenizer written in Python
            pieces = self._tokenizer.tokenize(text, split_special_tokens=True)
            return list(self._tokenizer.convert_tokens_to_ids(pieces))
        text = backend.normalizer.normalize_str(text) if backend.normalizer else text
        words = [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text)] if backend.pre_tokenizer else [text]
        return [token.id for word in words for token in backend.model.tokenize(word)]


def _around_turns(tokenizer: Any) -> str:
    """Return what the chat template writes before the last user's text; all added tokens if it renders nothing."""
    found = []
    for turns in _TALKS:
        try:
            (text,) = render(tokenizer, [(Prompt(turns), (_ANSWER,))])
        except TemplateRefusalError:
            continue
        found.append(text.rpartition(_LAST)[0])
    return "\0".join(found or map(str, tokenizer.added_tokens_decoder.values()))


def _rewrites(template: Any) -> bool:
    """Return whether a chat template can create a special token from ordinary text, as `replace` and `lower` can."""
    if not isinstance(template, str):
        return True
    try:
        tree = Environment(extensions=["jinja2.ext.loopcontrols"]).parse(template)
    except TemplateSyntaxError:  # e.g. a tag that only transformers defines
        return True
    filters = (node for node in tree.find_all(nodes.Filter) if node.name not in _SAFE_FILTERS)
    calls = (
        call
        for call in tree.find_all(nodes.Call)
        if isinstance(call.node, nodes.Getattr) and call.node.attr not in _SAFE_METHODS
    )
    loops = (
        call
        for loop in tree.find_all(nodes.For)
        for call in (loop.iter, *loop.iter.find_all(nodes.Call))
        if isinstance(call, nodes.Call) and isinstance(call.node, nodes.Getattr) and "split" in call.node.attr
    )
    return any(not _of_a_role(node) for node in (*filters, *calls)) or any(loops)


def _of_a_role(node: nodes.Node) -> bool:
    """Return whether an expression depends only on a turn's role, which is one of a few words."""
    names = {item.attr for item in node.find_all(nodes.Getattr)}
    names |= {item.arg.value for item in node.find_all(nodes.Getitem) if isinstance(item.arg, nodes.Const)}
    return "role" in names and names <= {"role", "capitalize", "upper", "lower", "title"}


def _normalizer(tokenizer: Any) -> Callable[[str], str] | None:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return backend.normalizer.normalize_str if backend is not None and backend.normalizer is not None else None


def _any_of(names: set[str]) -> re.Pattern[str]:
    longest_first = sorted(names, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def _texts(prompt: Prompt, response: Sequence[Message]) -> Iterator[str]:
    for turn in (*prompt.turns, *response):
        yield turn.content
        if turn.more:
            yield from _strings(turn.extras)
    if prompt.arguments:
        yield from _strings(prompt.template_arguments)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _strings([*value.keys(), *value.values()])
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _strings(each)


def _each(change: Callable[[Any], Any], value: Any) -> Any:
    """Apply a change to each part of a JSON value, including keys."""
    if isinstance(value, Mapping):
        return {change(key): change(each) for key, each in value.items()}
    return [change(each) for each in value] if isinstance(value, list | tuple) else value
