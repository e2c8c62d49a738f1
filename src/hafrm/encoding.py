"""Encode messages as token ids: chat template, shared prompt, and length limit.

Uses the public methods of tokenizers; independent of files, models and tensors. Training, evaluation, export and
serving all encode with `ConversationEncoder`, so a conversation has the same reward in each of them.

A conversation's token ids are *exactly* those of `tokenizer.apply_chat_template(prompt + response)`, with the row's
`tools`, `documents` and `chat_template_kwargs`, so other programs see the same input. The prompt's ids are the leading
ids shared by the rendered prompt and all responses: if a tokenizer merges characters across the border, the merged
token belongs to the response. Some templates render a prompt differently once a response follows (Mistral's moves the
system text); there the border is where renderings with different responses start to differ.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice, repeat
from typing import Any, Literal

from hafrm.dropped import DroppedText
from hafrm.errors import DataError
from hafrm.options import check, option
from hafrm.pairs import Message, Prompt
from hafrm.special_tokens import SpecialTokenError, SpecialTokenRule, SpecialTokens
from hafrm.templates import ChatTokenizer, TemplateRefusalError, render

Item = tuple[Prompt, Sequence[Sequence[Message]]]
"""A prompt and its responses."""

_CHUNK = 1024
"""Number of prompts rendered and tokenized per call, which limits the memory used for text."""

ScoredAt = Literal["template", "stop_token"]
"""Where a conversation ends: `template` after everything that the chat template writes, as in hafrm's training and in
other programs; `stop_token` at the end-of-sequence token, as in OpenRLHF, which drops line breaks after it and appends
it to texts that lack it.
"""

Overlong = Literal["drop", "truncate"]
"""Treatment of conversations over the limit: `drop` skips and counts them, `truncate` cuts off the end of responses."""


@dataclass(frozen=True, slots=True)
class TokenGroup:
    """Token ids of one prompt and its responses; a pair has two responses, chosen before rejected."""

    prompt: tuple[int, ...]
    responses: tuple[tuple[int, ...], ...]
    lost: tuple[str, ...] = field(default=(), compare=False)
    """What the chat template drops, one entry per turn ("tool text"), column ("tools") or template argument."""
    special_tokens: int = field(default=0, compare=False)
    """Number of special tokens in the messages."""

    def __post_init__(self) -> None:
        if not self.prompt or not self.responses or not all(self.responses):
            raise ValueError("a token group needs a prompt and responses of at least one token each")

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each whole sequence: prompt plus response."""
        return tuple(len(self.prompt) + len(response) for response in self.responses)

    @property
    def unique_tokens(self) -> int:
        """Tokens of the group with the prompt counted once."""
        return len(self.prompt) + sum(map(len, self.responses))


class OverlongError(Exception):
    """A group exceeds the length limit.

    Args:
        tokens: Tokens of the longest sequence.
        limit: The limit.
        prompt_alone: Whether the prompt alone leaves no room for a response, so truncating can't help.
    """

    def __init__(self, tokens: int, limit: int, *, prompt_alone: bool) -> None:
        self.tokens, self.limit, self.prompt_alone = tokens, limit, prompt_alone
        super().__init__(f"{tokens} tokens, over the limit of {limit}")

    def __reduce__(self) -> Any:
        """Let worker processes return it."""
        return partial(OverlongError, prompt_alone=self.prompt_alone), (self.tokens, self.limit)


Encoded = TokenGroup | OverlongError | DataError
"""Outcome of encoding: token ids, or the reason why there are none."""


@dataclass(frozen=True, slots=True)
class ConversationEncoder:
    """Encodes prompts and responses into token ids, with the same rules everywhere.

    Args:
        tokenizer: A transformers tokenizer with a chat template.
        max_length: Maximum tokens of a prompt with one response (512 in the paper's Table 5).
        overlong: What to do above that: `drop` raises `OverlongError`, for the caller to count; `truncate` cuts off the
            end of responses, and raises only if the prompt alone fills the limit.
        scored_at: Where a conversation ends, which is where its reward is read.
        special_tokens: How to encode special tokens inside messages; other programs and training use `token`.
        find_lost: Whether to find what the template drops; see `TokenGroup.lost`.
    """

    tokenizer: ChatTokenizer
    max_length: int = option(512, least=2)  # prompt and response
    overlong: Overlong = "drop"
    scored_at: ScoredAt = "template"
    special_tokens: SpecialTokenRule = "token"
    find_lost: bool = True
    _special: SpecialTokens = field(init=False, repr=False, compare=False)
    _dropped: DroppedText = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check(self, "data_options.")
        object.__setattr__(self, "_special", SpecialTokens(self.tokenizer))
        object.__setattr__(self, "_dropped", DroppedText(self.tokenizer, self.ended))

    def encode(self, prompt: Prompt, responses: Sequence[Sequence[Message]]) -> TokenGroup:
        """Encode a prompt with its responses.

        Raises:
            OverlongError: the group exceeds the limit; see `overlong`.
            TemplateRefusalError: the tokenizer's chat template refuses the conversation.
        """
        (outcome,) = self.encode_many([(prompt, responses)])
        if isinstance(outcome, TokenGroup):
            return outcome
        raise outcome

    def encode_many(self, items: Iterable[Item]) -> list[Encoded]:
        """Encode many prompts with their responses, several times faster than one by one.

        Args:
            items: Prompts, each with its responses, as for `encode`.

        Returns:
            For each item its token group, or the error that `encode` would raise.
        """
        waiting = iter(items)
        chunks = iter(lambda: list(islice(waiting, _CHUNK)), [])
        return [outcome for chunk in chunks for outcome in self._encode_chunk(chunk)]

    def text_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenize rendered texts without adding anything."""
        # `verbose=False`: callers report over-long texts themselves.
        ids: list[list[int]] = self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def ended(self, text: str) -> str:
        """End a rendered conversation where it is scored; see `ScoredAt`."""
        if self.scored_at == "template":
            return text
        bare, eos = text.rstrip("\n"), str(getattr(self.tokenizer, "eos_token", None) or "")
        return bare if bare.endswith(eos) else f"{bare} {eos}"

    def encode_prompt(self, prompt: Prompt) -> tuple[list[int], int]:
        """Return the token ids of a prompt without a response, and the number of special tokens in its messages.

        Raises:
            TemplateRefusalError: the chat template refuses it.
        """
        (rendered,) = self._rendered([(prompt, ())]).values()
        return rendered.ids, rendered.special_tokens

    def _encode_chunk(self, items: Sequence[Item]) -> list[Encoded]:
        try:
            openings = self._rendered(((prompt, ()) for prompt, _ in items), opening=True)
            whole = self._rendered((prompt, tuple(response)) for prompt, responses in items for response in responses)
            return self._cut_all(items, openings, whole)
        except TemplateRefusalError as error:
            if len(items) == 1:
                return [error]
            return [outcome for item in items for outcome in self._encode_chunk([item])]

    def _rendered(self, conversations: Iterable[_Key], *, opening: bool = False) -> dict[_Key, _Rendered]:
        """Render and tokenize each distinct conversation once."""
        alike: dict[tuple[str, int], list[_Key]] = defaultdict(list)
        for prompt, response in dict.fromkeys(conversations):
            alike[prompt.arguments, self._special.count(prompt, response)].append((prompt, response))
        found: dict[_Key, _Rendered] = {}
        for (_, special_tokens), keys in alike.items():
            if special_tokens and self.special_tokens == "refuse":
                raise SpecialTokenError("The messages contain special tokens, and `score.special_tokens` is `refuse`.")
            special = self._special if self.special_tokens != "token" else None
            hidden = special if special_tokens else None
            texts = render(self.tokenizer, keys, opening=opening, change=hidden.hide if hidden else None)
            if special and not opening:
                special.check(keys, texts)
            if not opening:
                texts = [self.ended(text) for text in texts]
            ids = map(hidden.encode, texts) if hidden else self.text_ids(texts)
            shown = map(hidden.shown, texts) if hidden else texts
            found.update(zip(keys, map(_Rendered, shown, ids, repeat(special_tokens)), strict=True))
        return found

    def _cut_all(
        self, items: Sequence[Item], openings: dict[_Key, _Rendered], whole: dict[_Key, _Rendered]
    ) -> list[Encoded]:
        outcomes: list[Encoded] = []
        for prompt, responses in items:
            keys = [(prompt, tuple(response)) for response in responses]
            wholes = [whole[key] for key in keys]
            borders = [
                self._border(key, openings[prompt, ()], rendered) for key, rendered in zip(keys, wholes, strict=True)
            ]
            outcome = self._cut(borders, [rendered.ids for rendered in wholes])
            if isinstance(outcome, TokenGroup):
                of_prompt = openings[prompt, ()].special_tokens
                special_tokens = of_prompt + sum(rendered.special_tokens - of_prompt for rendered in wholes)
                texts = [rendered.text for rendered in wholes]
                lost = tuple(self._dropped.of(prompt, responses, texts)) if self.find_lost else ()
                outcome = replace(outcome, lost=lost, special_tokens=special_tokens)
            outcomes.append(outcome)
        return outcomes

    def _border(self, key: _Key, opening: _Rendered, whole: _Rendered) -> int:
        """Count the leading tokens that belong to the prompt; at least one remains for the response."""
        shared = common_prefix([opening.ids, whole.ids])
        if shared < len(opening.ids) - 1 and not self._appends(key[0], whole):
            shared = common_prefix([rendered.ids for rendered in (whole, *self._probes(key))])
        return min(shared, len(whole.ids) - 1)

    def _appends(self, prompt: Prompt, whole: _Rendered) -> bool:
        """Return whether the rendering starts with that of the prompt alone."""
        try:
            (text,) = render(self.tokenizer, [(prompt, ())])
        except TemplateRefusalError:  # this template requires a response
            return False
        return whole.text.startswith(text)

    def _probes(self, key: _Key) -> list[_Rendered]:
        """Render the conversation with two responses that differ from their first character on."""
        prompt, (first, *rest) = key
        probes = [(prompt, (replace(first, content=letter, more=""), *rest)) for letter in ("a", "b")]
        return list(self._rendered(probes).values())

    def _cut(self, borders: Sequence[int], whole: Sequence[Sequence[int]]) -> Encoded:
        """Split sequences at the longest common prompt and apply the length limit."""
        shared = min(common_prefix(whole), *borders) if len(whole) > 1 else borders[0]
        if shared < min(borders) - 1:  # the last token may be merged with the beginning of a response
            return TemplateRefusalError(
                "The tokenizer's chat template renders the prompt differently for each response, for example because "
                "they differ in the number of turns, so they can't be compared. Use a template that only appends turns."
            )
        if shared < 1:
            return TemplateRefusalError(
                "The tokenizer's chat template renders a prompt differently when a response follows: even the first "
                "tokens differ. Use a template that only appends turns."
            )
        longest = max(map(len, whole))
        prompt_alone = shared >= self.max_length
        if longest > self.max_length and (self.overlong == "drop" or prompt_alone):
            return OverlongError(longest, self.max_length, prompt_alone=prompt_alone)
        responses = tuple(tuple(ids[shared : self.max_length]) for ids in whole)
        return TokenGroup(tuple(whole[0][:shared]), responses)


_Key = tuple[Prompt, tuple[Message, ...]]
"""A prompt and one response."""


@dataclass(frozen=True, slots=True)
class _Rendered:
    text: str
    ids: list[int]
    special_tokens: int
    """Number of special tokens in the messages."""


def common_prefix(sequences: Sequence[Sequence[object]]) -> int:
    """Return the number of leading items that all sequences share."""
    first, *others = sequences
    shared, most = 0, min(map(len, sequences))
    guess = most  # often, one sequence begins with the other
    while shared < most:  # bisection, because comparing slices is fast
        if all(other[shared:guess] == first[shared:guess] for other in others):
            shared = guess
        else:
            most = guess - 1
        guess = (shared + most + 1) // 2
    return shared
