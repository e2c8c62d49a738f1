r"""The text that a chat template writes around conversations, and how to restore it in clients' texts.

Clients send text in three forms: as the template renders a conversation; as a policy generated it, ending *at* the stop
token although the template may write more (a line break, for ChatML); and as `tokenizer.decode(ids)`, which adds spaces
next to special tokens with SentencePiece-like tokenizers. `Frame` converts all of them to the first form, so that the
reward is read at the same position as in training. Uses the public methods of tokenizers; independent of models.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hafrm.encoding import common_prefix
from hafrm.pairs import Conversation, Message, Prompt
from hafrm.templates import TemplateRefusalError, render

_ANSWER = "Xylophone"
_SAMPLES = tuple(
    Conversation.of(*texts) for texts in (("Question", _ANSWER), ("Another", _ANSWER), ("Question", f"{_ANSWER} \n"))
)
_TALK = Conversation(Prompt((*_SAMPLES[0].turns, Message("user", "Another"))), _SAMPLES[0].response)


@dataclass(frozen=True)
class Frame:
    """The marks that a tokenizer's chat template writes, and how decoding changes them."""

    tokenizer: Any
    bos: str
    """Text of the beginning-of-sequence token if the template starts with it, else ""."""
    ending: str
    """Text that the template writes after a final assistant turn."""
    ending_ids: tuple[int, ...]
    """Token ids of the ending when it follows a text."""
    stop: str
    """First special token of the ending, at which a policy stops; "" if there is none."""
    stops: tuple[str, ...]
    """Other stop tokens: those of the model, and the one that opens the next turn if turns have no ending."""
    trims: bool
    """Whether the template strips white space from the end of a turn."""
    opening: str
    """Text that the template writes before the first user's text."""
    opening_ids: tuple[int, ...]
    """Token ids of the opening."""
    decoded_opening: str
    """The opening after tokenizing and decoding."""
    lossless: bool
    """Whether decoding exactly restores the tokenized text."""
    special: re.Pattern[str]
    """Matches any added token."""
    pads: tuple[str, ...]
    """Tokens that clients may pad with: the pad token and the end-of-sequence token."""

    def restored(self, text: str, prompt: str | None = None) -> tuple[str, str | None, bool]:
        """Convert a client's text to the form that the template writes.

        Args:
            text: A rendered conversation, in any of the module's three forms.
            prompt: The rendered prompt with which the text starts, according to the client.

        Returns:
            The text; the prompt, or None if the text does not start with it; and whether the response is complete, that
            is, not cut off before a stop token.
        """
        text = self._without_leading_pads(text)
        prompt = None if prompt is None else self._with_bos(prompt)
        text, prompt = self._undecoded(text, prompt)
        text, ended = self._ended(text)
        return text, prompt if prompt is not None and len(prompt) < len(text) else None, ended

    def restored_ids(self, ids: Sequence[int]) -> tuple[list[int], bool]:
        """Add the template's beginning and ending to token ids; return them and whether the response is complete."""
        return self._ended_ids(self._begun_ids(ids))

    def without_stop(self, content: str) -> str:
        """Remove the final stop token, and any padding after it, from the text of a response."""
        end, _ = self._end(content)
        return content if end == len(content) else content[:end].removesuffix(self._before_stop)

    @property
    def _marks(self) -> tuple[str, ...]:
        """Tokens to strip from the end of a text."""
        return tuple(dict.fromkeys(mark for mark in (self.stop, *self.stops, *self.pads) if mark))

    @property
    def _before_stop(self) -> str:
        """Text between a response and its stop token; the whole ending if there is no stop token."""
        return self.ending.partition(self.stop)[0] if self.stop else self.ending

    @property
    def _always_ends(self) -> bool:
        """Whether a truncated response looks the same as a complete one."""
        return not self.stop and not self.stops

    def _begun_ids(self, ids: Sequence[int]) -> list[int]:
        """Strip left padding and complete the template's beginning."""
        pads = set(self._token_ids(self.pads))
        start = _length_of(ids, pads)
        own = self.opening_ids[: _length_of(self.opening_ids, pads)] if start else ()
        begun = [*own, *ids[start:]]
        bos = self._token_ids([self.bos] if self.bos else [])
        return begun if begun[: len(bos)] == bos else [*bos, *begun]

    def _ended_ids(self, ids: list[int]) -> tuple[list[int], bool]:
        ending, marks = list(self.ending_ids), self._token_ids(self._marks)
        if not self.stop and ending and ids[-len(ending) :] == ending:
            return ids, True
        place = ending.index(marks[0]) if self.stop else len(ending)
        before, after = ending[:place], set(ending[place:]) - set(marks)
        length, ended = len(ids), False
        # As in `_end`: other tokens of the ending between and after marks are removed with the mark before them.
        while (end := _length_without(ids, after, length)) and ids[end - 1] in marks:
            ended = ended or ids[end - 1] != self.tokenizer.pad_token_id
            length = end - 1
        core = ids[:length]
        if not ended:
            return core, self._always_ends
        if before and core[-len(before) :] == before:
            core = core[: -len(before)]
        return [*core, *ending], True

    def _token_ids(self, tokens: Sequence[str]) -> list[int]:
        return [self.tokenizer.convert_tokens_to_ids(token) for token in tokens]

    def _with_bos(self, text: str) -> str:
        if text.startswith(self.bos):
            return text
        # Decoding adds a space after a special token, but not at the start of a text.
        decoded = f"{self.bos} {text}"
        source = None if self.lossless else self._source(decoded, _forms(decoded, self.special))
        return source or self.bos + text

    def _without_leading_pads(self, text: str) -> str:
        """Strip left padding and complete the template's beginning."""
        bare = self._bare(text)
        if bare != text:
            own = self.opening.removesuffix(self._bare(self.opening))
            text = own + (bare if self.lossless else bare.removeprefix(" "))
        return self._with_bos(text)

    def _bare(self, text: str) -> str:
        start = 0  # not a copy of the text per pad: there can be a million
        while pad := next((pad for pad in self.pads if text.startswith(pad, start)), None):
            start += len(pad)
        return text[start:]

    def _undecoded(self, text: str, prompt: str | None) -> tuple[str, str | None]:
        """Undo the effects of tokenizing and decoding, and return the prompt if the text starts with it."""
        if self.lossless:
            return text, prompt if prompt is not None and text.startswith(prompt) else None
        if prompt is None:
            return self._exact(text), None
        prompt = self._exact(prompt)
        decoded = _decoded(self.tokenizer, prompt)
        if decoded != prompt and text.startswith(prompt):
            return text, prompt
        if not text.startswith(decoded):
            return self._exact(text), None
        rest = text.removeprefix(decoded)
        # A leading space may belong to the prompt's last token, if that is a special one.
        forms = (prompt + form for start in (rest, rest.removeprefix(" ")) for form in _forms(start, self.special))
        return self._source(text, forms) or prompt + rest, prompt

    def _exact(self, text: str) -> str:
        """Return the text before tokenizing and decoding, or the text itself if it was not decoded."""
        if text.startswith(self.opening) and not text.startswith(self.decoded_opening):
            return text
        return self._source(text, _forms(text, self.special)) or text

    def _source(self, text: str, candidates: Iterator[str]) -> str | None:
        """Return the first candidate that tokenizing and decoding turn into `text`."""
        return next((candidate for candidate in candidates if _decoded(self.tokenizer, candidate) == text), None)

    def _ended(self, text: str) -> tuple[str, bool]:
        """Complete the template's ending, and return whether the response is complete."""
        if not self.stop and self.ending and text.endswith(self.ending):
            return text, True
        end, ended = self._end(text)
        core = text[:end]
        if not ended:
            return core, self._always_ends
        core = core.removesuffix(self._before_stop)
        return (core.rstrip() if self.trims else core) + self.ending, True

    def _end(self, text: str) -> tuple[int, bool]:
        """Return where the text ends without trailing marks, and whether one of the marks shows that it is complete."""
        marks, end, ended = self._marks, len(text), False
        while True:
            bare = next((place for place in range(end, 0, -1) if not text[place - 1].isspace()), 0)
            mark = next((mark for mark in marks if text.endswith(mark, 0, bare)), None)
            if mark is None:
                return end, ended
            end = bare - len(mark)
            ended = ended or mark != self.tokenizer.pad_token


def frame_of(tokenizer: Any, stops: Sequence[int] = ()) -> Frame:
    """Find what a tokenizer's chat template writes around conversations, by rendering examples.

    If the template refuses a plain question and answer, texts are used unchanged.

    Args:
        tokenizer: A transformers tokenizer with a chat template.
        stops: Ids of the model's stop tokens, from its config.
    """
    added = sorted({str(token) for token in tokenizer.get_added_vocab()} | set(tokenizer.all_special_tokens), key=len)
    special = re.compile("|".join(map(re.escape, reversed(added))) or "(?!)")
    pads = tuple(dict.fromkeys(token for token in (tokenizer.pad_token, tokenizer.eos_token) if token))
    try:
        texts = render(tokenizer, [(each.prompt, each.response) for each in (*_SAMPLES, _TALK)])
    except TemplateRefusalError:
        return Frame(tokenizer, "", "", (), "", (), False, "", (), "", True, special, pads)
    bos = tokenizer.bos_token or ""
    before, answer, ending = texts[0].rpartition(_ANSWER)
    stop = special.search(ending)
    others = tuple(str(tokenizer.convert_ids_to_tokens(token)) for token in stops if 0 <= token < len(tokenizer))
    next_turn = special.match(texts[3].partition(_ANSWER)[2].removeprefix(ending))
    if next_turn and not stop:
        others = (*others, next_turn[0])
    opening = texts[0][: common_prefix(texts[:2])]
    whole, core = _ids(tokenizer, texts[0]), _ids(tokenizer, before + answer)
    apart = whole[: len(core)] == core  # otherwise a token spans the border
    decoded = [_decoded(tokenizer, text) for text in texts]
    return Frame(
        tokenizer=tokenizer,
        bos=bos if texts[0].startswith(bos) else "",
        ending=ending,
        ending_ids=tuple(whole[len(core) :] if apart else _ids(tokenizer, ending)),
        stop=stop[0] if stop else "",
        stops=tuple(mark for mark in dict.fromkeys(others) if mark not in pads),
        trims=texts[2] == texts[0],
        opening=opening,
        opening_ids=tuple(_ids(tokenizer, opening)),
        decoded_opening=decoded[0][: common_prefix(decoded[:2])],
        lossless=decoded == texts,
        special=special,
        pads=pads,
    )


def _ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def _decoded(tokenizer: Any, text: str) -> str:
    """Tokenize and decode a text."""
    return str(tokenizer.decode(_ids(tokenizer, text), skip_special_tokens=False))


def _length_of(ids: Sequence[int], leading: set[int]) -> int:
    """Count the ids at the start that are in `leading`."""
    return next((place for place, token in enumerate(ids) if token not in leading), len(ids))


def _length_without(ids: Sequence[int], trailing: set[int], length: int) -> int:
    """Return the length of `ids[:length]` without ids at the end that are in `trailing`."""
    return next((place for place in range(length, 0, -1) if ids[place - 1] not in trailing), 0)


def _forms(text: str, special: re.Pattern[str]) -> Iterator[str]:
    """Yield texts from which decoding may have made this one by adding spaces next to special tokens."""
    after = re.sub(rf"({special.pattern}) ", r"\1", text)
    yield after
    yield re.sub(rf" ({special.pattern})", r"\1", after)
    yield re.sub(rf" ({special.pattern})", r"\1", text)
