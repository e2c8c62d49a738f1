"""Scores of a policy's responses by any scorer, which reads text: its tokenizer may differ from the policy's."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hafrm.errors import DataError, ModelError, RefusedError
from hafrm.models.scorers import Scorer, rewards_of_the_rest
from hafrm.pairs import Conversation, Message, Prompt


def answered(prompt: Prompt, text: str) -> Conversation:
    """Return the conversation of a prompt and the policy's response."""
    return Conversation(prompt, (Message("assistant", text),))


def scores_of(scorer: Scorer, conversations: Sequence[Conversation]) -> list[float | None]:
    """Return rewards in order; None if a conversation exceeds the scorer's limit or its chat template refuses it.

    Raises:
        ModelError: a reward is NaN or infinite.
    """
    try:
        scores = scorer.score(conversations)
    except RefusedError as error:
        known = rewards_of_the_rest(scorer, conversations, error)
        scores = [known.get(place) for place in range(len(conversations))]
    wrong = {place: score for place, score in enumerate(scores) if score is not None and not math.isfinite(score)}
    if wrong:
        place, score = next(iter(wrong.items()))
        raise ModelError(
            f"{len(wrong)} of {len(scores)} rewards are not finite; the first is {score}, of response {place}. Check "
            "the reward model with `hafrm evaluate`, or try --score.dtype float32."
        )
    return scores


def require_scored(scores: Sequence[float | None], reward: str, step: int) -> None:
    """Raise if no response of a step has a score.

    Raises:
        DataError: no response has a score.
    """
    if all(score is None for score in scores):
        raise DataError(
            f"step {step}: {reward} scored none of {len(scores)} responses, because they exceed its limit or its chat "
            "template refuses them. Raise score.max_length, or lower max_prompt_tokens and sampling.max_new_tokens."
        )
