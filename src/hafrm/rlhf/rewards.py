"""Scores of a policy's responses by any scorer, which reads text: its tokenizer may differ from the policy's.

A score can be divided among the response's tokens (`--dense`). The scorer's numbers belong to pieces of text: each is
paid at the policy's token that completes the piece, or its line or sentence.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from hafrm.errors import DataError, ModelError
from hafrm.models.scorers import Scorer, rewards_or_reasons
from hafrm.models.tokens import TokenRewards, common_beginning
from hafrm.pairs import Conversation, Message, Prompt
from hafrm.rewards import DetailedScorer
from hafrm.rlhf.options import Dense, RlhfConfig

_ENDS: Mapping[Dense, str] = {"token": "", "line": r"\n+", "sentence": r"""[.!?]["')\]]*\s+|\n+"""}
"""Matches the end of a line or sentence, and belongs to it; an empty pattern means every token."""


def answered(prompt: Prompt, text: str) -> Conversation:
    """Return the conversation of a prompt and the policy's response."""
    return Conversation(prompt, (Message("assistant", text),))


def scores_of(scorer: Scorer, conversations: Sequence[Conversation]) -> list[float | None]:
    """Return rewards in order; None if a conversation exceeds the scorer's limit or its chat template refuses it.

    Raises:
        ModelError: a reward is NaN or infinite.
    """
    scores = [None if isinstance(each, str) else each for each in rewards_or_reasons(scorer, conversations)]
    wrong = {place: score for place, score in enumerate(scores) if score is not None and not math.isfinite(score)}
    if wrong:
        place, score = next(iter(wrong.items()))
        raise ModelError(
            f"{len(wrong)} of {len(scores)} rewards are not finite; the first is {score}, of response {place}. Check "
            "the reward model with `hafrm evaluate`, or try --score.dtype float32."
        )
    return scores


def require_scored(scores: Sequence[float | None], reward: str, step: int) -> None:
    """Raise DataError if no response of a step has a score."""
    if all(score is None for score in scores):
        raise DataError(
            f"step {step}: {reward} scored none of {len(scores)} responses, because they exceed its limit or its chat "
            "template refuses them. Raise score.max_length, or lower max_prompt_tokens and sampling.max_new_tokens."
        )


def token_ends(tokenizer: Any, ids: Sequence[int], text: str) -> list[int]:
    """Return how many of a response's characters are complete after each of its tokens, [tokens].

    Args:
        tokenizer: The policy's tokenizer.
        ids: The response's tokens; special ones have no text.
        text: The response, without surrounding white space.
    """
    starts = tokenizer.batch_decode([ids[: end + 1] for end in range(len(ids))], skip_special_tokens=True)
    # only the common beginning counts, because a character's first bytes decode to another character
    return list(accumulate((common_beginning(start.lstrip(), text) for start in starts), max))


def paid_by_token(rewards: TokenRewards, ends: Sequence[int], dense: Dense) -> list[float]:
    """Return what is paid at each of the policy's tokens, [tokens]; parts of the reward that belong to no text are not.

    Args:
        rewards: The divided reward of a response of one message.
        ends: The result of `token_ends`.
        dense: The unit of text (token, line or sentence) at whose end its part of the reward is paid.
    """
    (pieces,) = rewards.turns
    text = "".join(piece for piece, _ in pieces)
    steps = [*(found.end() for found in re.finditer(_ENDS[dense], text)), len(text)]
    paid, done = [0.0] * len(ends), 0
    for piece, value in pieces:
        done += len(piece)
        if value is not None:
            due = steps[bisect_left(steps, done)]
            paid[min(bisect_left(ends, due), len(ends) - 1)] += value
    return paid


def paid_early(
    scorer: DetailedScorer[TokenRewards],
    config: RlhfConfig,
    step: int,
    tokenizer: Any,
    conversations: Sequence[Conversation],
    ids: Sequence[Sequence[int]],
) -> list[list[float]]:
    """Return what is paid at each token of responses that were just scored; nothing where there is no score.

    Args:
        scorer: The scorer, after scoring.
        step: The step, for messages.
        tokenizer: The policy's tokenizer.
        conversations: Prompts with the policy's responses.
        ids: The responses' tokens.

    Raises:
        DataError: no reward is divided.
    """
    rewards = [scorer.details.get(conversation) for conversation in conversations]
    if not any(each is not None and each.divided for each in rewards):
        raise DataError(
            f"step {step}: the tokens of {config.reward} can't be aligned with the text of any response, because its "
            "tokenizer gives no offsets or its chat template changes messages. Leave out --dense."
        )
    return [
        [0.0] * len(tokens)
        if each is None
        else paid_by_token(each, token_ends(tokenizer, tokens, conversation.response[0].content), config.dense)
        for each, tokens, conversation in zip(rewards, ids, conversations, strict=True)
    ]
