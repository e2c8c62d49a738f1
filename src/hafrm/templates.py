"""Chat templates: rendering conversations, and special tokens inside messages.

Uses the public methods of tokenizers; independent of files, models and tensors.

A stock tokenizer turns `</s>` or `<|im_end|>` inside a message into the token that the template itself writes, so the
author of a message can end their turn in it and forge later ones. `SpecialTokens` finds such marks and can encode them
as plain characters.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

from hafrm.errors import DataError, first_line
from hafrm.pairs import Conversation, Message, Prompt
from hafrm.timeouts import TimedOutError, time_limit

__all__ = [
    "DEFAULT_CHAT_TEMPLATE",
    "ChatTokenizer",
    "SpecialTokenError",
    "SpecialTokenRule",
    "SpecialTokens",
    "TemplateRefusalError",
    "render",
]

DEFAULT_CHAT_TEMPLATE = (
    "{{ bos_token if bos_token is defined and bos_token is not none else '' }}"
    "{{ 'Tools: ' ~ (tools | tojson) ~ '\\n\\n' if tools else '' }}"
    "{{ 'Documents: ' ~ (documents | tojson) ~ '\\n\\n' if documents else '' }}"
    "{% for message in messages %}"
    "{{ '' if loop.first else '\\n\\n' }}"
    "{{ {'user': 'Human'}.get(message['role'], message['role'] | capitalize) }}: "
    "{{ message['reasoning_content'] ~ '\\n\\n' if message['reasoning_content'] else '' }}"
    "{{ message['content'] }}"
    "{{ (message['tool_calls'] | tojson) if message['tool_calls'] else '' }}"
    "{{ eos_token if message['role'] == 'assistant' else '' }}"
    "{% endfor %}"
    "{{ '\\n\\nAssistant:' if add_generation_prompt else '' }}"
)
"""Fallback template for tokenizers without one. An assistant turn ends with the end-of-sequence token."""


class ChatTokenizer(Protocol):
    """The methods of a transformers tokenizer that hafrm uses."""

    def apply_chat_template(self, conversation: Any, **kwargs: Any) -> Any:
        """Render messages."""
        ...

    def __call__(self, text: Any, **kwargs: Any) -> Any:
        """Tokenize rendered texts."""
        ...


class TemplateRefusalError(DataError):
    """The tokenizer's chat template refuses a conversation or fails on it."""


SpecialTokenRule = Literal["text", "token", "refuse"]
"""How special tokens in messages are encoded: `text` as plain characters; `token` as the tokenizer's own tokens, as in
other programs and in training; `refuse` gives the conversation no reward.
"""

_BEGIN, _END = "\ufdd0", "\ufdd1"
"""Noncharacters written around special tokens of messages while a template is rendered."""
_TALK = Conversation(
    Prompt((Message("user", "Question"), Message("assistant", "Answer"), Message("user", "Another"))),
    (Message("assistant", "Answer"),),
)
_SECONDS = 30.0
"""Time limit of one call of a template; 1024 long conversations take about one second."""


class SpecialTokenError(TemplateRefusalError):
    """A message contains a special token that can't or must not be encoded."""


class SpecialTokens:
    """The tokens that structure a conversation: special ones, and others that open or close turns.

    Args:
        tokenizer: A transformers tokenizer with a chat template.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        try:
            (talk,) = render(tokenizer, [(_TALK.prompt, _TALK.response)])
        except TemplateRefusalError:
            talk = ""
        earlier_turns = talk.rpartition(_TALK.prompt.turns[-1].content)[0]
        added = tokenizer.added_tokens_decoder.values()
        names = {str(token) for token in added if token.special or (str(token).strip() and str(token) in earlier_turns)}
        longest_first = sorted(names | set(tokenizer.all_special_tokens), key=len, reverse=True)
        self._token = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._hidden = re.compile(f"{_BEGIN}({self._token.pattern}){_END}|[{_BEGIN}{_END}]")

    def count(self, prompt: Prompt, response: Sequence[Message]) -> int:
        """Count the special tokens in messages, tools, documents and template arguments."""
        return sum(1 for text in _texts(prompt, response) for _ in self._token.finditer(text))

    def hide(self, value: Any) -> Any:
        """Mark the special tokens in all strings of a JSON value, so `encode` can distinguish them from the template's.

        Raises:
            SpecialTokenError: a string contains the code points used as marks.
        """
        if isinstance(value, str):
            if _BEGIN in value or _END in value:
                raise SpecialTokenError("A message contains special tokens beside U+FDD0 or U+FDD1. Remove these.")
            return self._token.sub(rf"{_BEGIN}\g<0>{_END}", value)
        if isinstance(value, Mapping):
            return {self.hide(key): self.hide(each) for key, each in value.items()}
        return [self.hide(each) for each in value] if isinstance(value, list | tuple) else value

    def shown(self, text: str) -> str:
        """Remove the marks from a text rendered from hidden values."""
        return text.replace(_BEGIN, "").replace(_END, "")

    def encode(self, text: str) -> list[int]:
        """Tokenize a text rendered from hidden values: hidden tokens as characters, everything else as usual.

        Raises:
            SpecialTokenError: the tokenizer makes a special token even of the characters.
        """
        ids: list[int] = []
        for number, piece in enumerate(self._hidden.split(text)):
            if piece and number % 2:  # a match of the group
                ids += self._as_characters(piece)
            elif piece:
                ids += self._in_the_middle(piece, self._usual) if ids else self._usual(piece)
        return ids

    def _usual(self, text: str) -> list[int]:
        found: list[int] = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return found

    def _as_characters(self, token: str) -> list[int]:
        ids = self._in_the_middle(token, self._without_added_tokens)
        if self._tokenizer.convert_tokens_to_ids(token) in ids:
            raise SpecialTokenError(f"The tokenizer has no other token ids for {token!r} than the special token's.")
        return ids

    def _in_the_middle(self, text: str, encode: Any) -> list[int]:
        """Tokenize a text as if others preceded it: SentencePiece-like tokenizers add a space at the beginning."""
        before = encode("\n")
        ids: list[int] = encode("\n" + text)
        return ids[len(before) :] if ids[: len(before)] == before else list(encode(text))

    def _without_added_tokens(self, text: str) -> list[int]:
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is None:  # a tokenizer written in Python
            pieces = self._tokenizer.tokenize(text, split_special_tokens=True)
            return list(self._tokenizer.convert_tokens_to_ids(pieces))
        text = backend.normalizer.normalize_str(text) if backend.normalizer else text
        words = [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text)] if backend.pre_tokenizer else [text]
        return [token.id for word in words for token in backend.model.tokenize(word)]


def _texts(prompt: Prompt, response: Sequence[Message]) -> Iterator[str]:
    yield prompt.arguments
    for turn in (*prompt.turns, *response):
        yield turn.content
        yield turn.more


def render(
    tokenizer: Any,
    conversations: Sequence[tuple[Prompt, Sequence[Message]]],
    *,
    opening: bool = False,
    hiding: SpecialTokens | None = None,
) -> list[str]:
    """Render conversations with the tokenizer's chat template.

    Args:
        tokenizer: A transformers tokenizer with a chat template.
        conversations: Prompts, each with a response; all prompts have the same `arguments`.
        opening: Whether to append the opening of a response.
        hiding: Marks special tokens in the messages so that its `encode` can find them.

    Raises:
        TemplateRefusalError: the template refuses a conversation, fails on it, or exceeds the time limit.
    """
    turns: Any = [[turn.as_dict() for turn in (*prompt.turns, *response)] for prompt, response in conversations]
    arguments: Any = conversations[0][0].template_arguments
    if hiding is not None:
        turns, arguments = hiding.hide(turns), hiding.hide(arguments)
    try:
        with time_limit(_SECONDS):
            texts: list[str] = tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=opening, **arguments
            )
    except TimedOutError as error:
        raise TemplateRefusalError(
            f"The tokenizer's chat template did not end within {_SECONDS:.0f} seconds."
        ) from error
    except Exception as error:  # a template is arbitrary code and can raise anything
        raise TemplateRefusalError(
            f"The tokenizer's chat template refuses the conversation: {first_line(error)}"
        ) from error
    return texts
