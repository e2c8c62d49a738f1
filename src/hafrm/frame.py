r"""What a chat template writes around conversations, and how rendered texts are brought back to that form.

Clients that send text send it in three forms: as the template writes a conversation; as a policy generated it, which
ends *at* the stop token although the template may write more (a line break, for ChatML); and as
`tokenizer.decode(ids)`, which for SentencePiece-like tokenizers puts spaces beside special tokens that the template did
not write. `Frame` turns each of them into the first, so that the reward is read where it was trained to be read.

Knows tokenizers through their public methods. Knows no model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hafrm.encoding import common_prefix
from hafrm.pairs import Conversation, Message, Prompt
from hafrm.templates import TemplateRefusalError, render

__all__ = ["Frame", "frame_of"]

_ANSWER = "Xylophone"
_SAMPLES = tuple(
    Conversation.of(*texts) for texts in (("Question", _ANSWER), ("Another", _ANSWER), ("Question", f"{_ANSWER} \n"))
)
_TALK = Conversation(Prompt((*_SAMPLES[0].turns, Message("user", "Another"))), _SAMPLES[0].response)


@dataclass(frozen=True)
class Frame:
    """The marks that a tokenizer's chat template writes, and the changes that decoding makes to them."""

    tokenizer: Any
    bos: str
    """The beginning-of-sequence token's text where the template begins with it, else nothing."""
    ending: str
    """What the template writes after the text of a final assistant turn."""
    ending_ids: tuple[int, ...]
    """The ending's token ids, as they follow a text."""
    stop: str
    """The first special token of the ending, at which a policy stops; empty where the ending has none."""
    stops: tuple[str, ...]
    """Other tokens at which a policy stops: the model's own, and what opens the next turn where none ends one."""
    trims: bool
    """Whether the template strips white space from the end of a turn."""
    opening: str
    """What the template writes before the first user's text."""
    opening_ids: tuple[int, ...]
    """The opening's token ids."""
    decoded_opening: str
    """The opening after a trip through token ids."""
    lossless: bool
    """Whether decoding gives back what was tokenized."""
    special: re.Pattern[str]
    """Matches any added token."""
    pads: tuple[str, ...]
    """Tokens that clients pad with: the pad token, and the end-of-sequence token of those that have no other."""

    def restored(self, text: str, prompt: str | None = None) -> tuple[str, str | None, bool]:
        """A client's text as the template would have written it.

        Args:
            text: A rendered conversation, in any of the module's three forms.
            prompt: The rendered prompt that the sender says it begins with.

        Returns:
            The text; the prompt, None where the text does not begin with it; and whether the response ends, which is
            False where it was cut off before a stop token.
        """
        text = self._without_leading_pads(text)
        prompt = None if prompt is None else self._with_bos(prompt)
        text, prompt = self._undecoded(text, prompt)
        text, ended = self._ended(text)
        return text, prompt if prompt is not None and len(prompt) < len(text) else None, ended

    def restored_ids(self, ids: Sequence[int]) -> tuple[list[int], bool]:
        """Token ids with the template's beginning and ending, and whether they came with an end; see `restored`."""
        return self._ended_ids(self._begun_ids(ids))

    def without_stop(self, content: str) -> str:
        """A response's content without the stop token that its generation ended with, and without pads behind it."""
        end, _ = self._end(content)
        return content if end == len(content) else content[:end].removesuffix(self._before_stop)

    @property
    def _marks(self) -> tuple[str, ...]:
        """Tokens that are taken off the end of a text."""
        return tuple(dict.fromkeys(mark for mark in (self.stop, *self.stops, *self.pads) if mark))

    @property
    def _before_stop(self) -> str:
        """What the template writes between a response's text and the stop token; all of an ending without one."""
        return self.ending.partition(self.stop)[0] if self.stop else self.ending

    @property
    def _always_ends(self) -> bool:
        """Whether nothing is known that would tell a cut response from a whole one."""
        return not self.stop and not self.stops

    def _begun_ids(self, ids: Sequence[int]) -> list[int]:
        """Token ids without the pads of a left-padded batch, and with the template's beginning."""
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
        # As in `_end`: what the ending writes between and behind marks goes with the mark before it.
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
        # Decoding writes a space after a special token, but not at a text's beginning.
        decoded = f"{self.bos} {text}"
        source = None if self.lossless else self._source(decoded, _forms(decoded, self.special))
        return source or self.bos + text

    def _without_leading_pads(self, text: str) -> str:
        """The text without the pads of a left-padded batch, and with the template's beginning."""
        bare = self._bare(text)
        if bare != text:
            own = self.opening.removesuffix(self._bare(self.opening))
            text = own + (bare if self.lossless else bare.removeprefix(" "))
        return self._with_bos(text)

    def _bare(self, text: str) -> str:
        start = 0  # a place, not a copy for each pad: there can be a million
        while pad := next((pad for pad in self.pads if text.startswith(pad, start)), None):
            start += len(pad)
        return text[start:]

    def _undecoded(self, text: str, prompt: str | None) -> tuple[str, str | None]:
        """The text before a trip through token ids, and the prompt where the text begins with it."""
        if self.lossless:
            return text, prompt if prompt is not None and text.startswith(prompt) else None
        if prompt is None:
            return self._exact(text), None
        prompt = self._exact(prompt)
        decoded = self._decoded(prompt)
        if decoded != prompt and text.startswith(prompt):
            return text, prompt
        if not text.startswith(decoded):
            return self._exact(text), None
        rest = text.removeprefix(decoded)
        # The space at its beginning may be the one that follows the prompt's last token, if that is a special one.
        forms = (prompt + form for start in (rest, rest.removeprefix(" ")) for form in _forms(start, self.special))
        return self._source(text, forms) or prompt + rest, prompt

    def _exact(self, text: str) -> str:
        """A text before a trip through token ids; itself where it made none."""
        if text.startswith(self.opening) and not text.startswith(self.decoded_opening):
            return text
        return self._source(text, _forms(text, self.special)) or text

    def _source(self, text: str, candidates: Iterator[str]) -> str | None:
        """The first candidate that becomes the text by a trip through token ids."""
        return next((candidate for candidate in candidates if self._decoded(candidate) == text), None)

    def _ended(self, text: str) -> tuple[str, bool]:
        """The text with the template's ending completed, and whether it has an end."""
        if not self.stop and self.ending and text.endswith(self.ending):
            return text, True
        end, ended = self._end(text)
        core = text[:end]
        if not ended:
            return core, self._always_ends
        core = core.removesuffix(self._before_stop)
        return (core.rstrip() if self.trims else core) + self.ending, True

    def _end(self, text: str) -> tuple[int, bool]:
        """Where a text ends without the marks at its end, and whether one of them says that it is whole."""
        marks, end, ended = self._marks, len(text), False
        while True:
            bare = next((place for place in range(end, 0, -1) if not text[place - 1].isspace()), 0)
            mark = next((mark for mark in marks if text.endswith(mark, 0, bare)), None)
            if mark is None:
                return end, ended
            end = bare - len(mark)
            ended = ended or mark != self.tokenizer.pad_token

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def _decoded(self, text: str) -> str:
        return str(self.tokenizer.decode(self._ids(text), skip_special_tokens=False))


def frame_of(tokenizer: Any, stops: Sequence[int] = ()) -> Frame:
    """Find out what a tokenizer's chat template writes around a conversation, by rendering a few.

    Args:
        tokenizer: A transformers tokenizer with a chat template.
        stops: Ids of the tokens at which the model stops, as its own config has them.

    Of a template that refuses a plain question and answer nothing is known: its texts are taken as they come.
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
    frame = Frame(
        tokenizer=tokenizer,
        bos=bos if texts[0].startswith(bos) else "",
        ending=ending,
        ending_ids=(),
        stop=stop[0] if stop else "",
        stops=tuple(mark for mark in dict.fromkeys(others) if mark not in pads),
        trims=texts[2] == texts[0],
        opening=texts[0][: common_prefix(texts[:2])],
        opening_ids=(),
        decoded_opening="",
        lossless=True,
        special=special,
        pads=pads,
    )
    whole, core = frame._ids(texts[0]), frame._ids(before + answer)
    apart = whole[: len(core)] == core  # else a token spans the border
    decoded = [frame._decoded(text) for text in texts]
    return replace(
        frame,
        opening_ids=tuple(frame._ids(frame.opening)),
        ending_ids=tuple(whole[len(core) :] if apart else frame._ids(ending)),
        decoded_opening=decoded[0][: common_prefix(decoded[:2])],
        lossless=decoded == texts,
    )


def _length_of(ids: Sequence[int], leading: set[int]) -> int:
    """How many ids at the beginning are in `leading`."""
    return next((place for place, token in enumerate(ids) if token not in leading), len(ids))


def _length_without(ids: Sequence[int], trailing: set[int], length: int) -> int:
    """How many of the first `length` ids are left without those at the end that are in `trailing`."""
    return next((place for place in range(length, 0, -1) if ids[place - 1] not in trailing), 0)


def _forms(text: str, special: re.Pattern[str]) -> Iterator[str]:
    """Texts that decoding may have made this one of, by writing spaces beside special tokens."""
    after = re.sub(rf"({special.pattern}) ", r"\1", text)
    yield after
    yield re.sub(rf" ({special.pattern})", r"\1", after)
    yield re.sub(rf" ({special.pattern})", r"\1", text)
