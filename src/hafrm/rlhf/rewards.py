"""Reward a policy's answers with any scorer: it reads text, so its tokenizer may differ from the policy's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from hafrm.data.simulated import SimulatedReward, is_simulated
from hafrm.errors import ConfigError, DataError, ModelError, RefusedError
from hafrm.models.identity import model_identity
from hafrm.models.options import ScoreOptions, ScorerChoice
from hafrm.models.scorers import Scorer, rewards_of_the_rest
from hafrm.pairs import Conversation, Message, Prompt

_OF_WEIGHTS = ("the server", "its base", "the model", "its reference", "score.chat_template")
"""Parts of a model's identity that the options don't determine: names whose contents can change."""


def load_reward(name: str, choice: ScorerChoice, options: ScoreOptions) -> Scorer:
    """Load a scorer by name: `world/NAME`, that set's true reward, or anything that `ScorerChoice.load` accepts.

    Raises:
        UnknownDataError: the world has no such set.
        ConfigError: a head, a reference or a weight is chosen for the world, which has none.
        ModelError: no scorer can be loaded from there.
    """
    if is_simulated(name):
        asked = [each for each in ("head", "reference", "combined_weight") if getattr(choice, each) is not None]
        if asked:
            raise ConfigError(f"--{' and --'.join(asked)} has no effect on the true reward of {name}: leave it out.")
        return SimulatedReward(name)
    return choice.load(name, options)


def reward_identity(name: str, choice: ScorerChoice, options: ScoreOptions) -> dict[str, Any]:
    """Return what a scorer's rewards depend on besides the options: plain values, keyed by what messages call them.

    A model whose identity can't be determined counts as a different one each time, as in `hafrm judge`. The world's
    rewards depend only on their name.

    Raises:
        ModelError: there is no such model, or no such server answers.
    """
    if is_simulated(name):
        return {}
    found = model_identity(name, choice, options)
    return {part: found[part] for part in _OF_WEIGHTS if part in found}


def answered(prompt: Prompt, text: str) -> Conversation:
    """Append the policy's answer to a prompt."""
    return Conversation(prompt, (Message("assistant", text),))


def scores_of(scorer: Scorer, conversations: Sequence[Conversation]) -> list[float | None]:
    """Return rewards in order; None if a conversation is over the scorer's limit or its template refuses it.

    Raises:
        ModelError: a reward is NaN or infinite, which makes the step unusable at any learning rate.
    """
    scores = _scores_of(scorer, conversations)
    wrong = {place: score for place, score in enumerate(scores) if score is not None and not math.isfinite(score)}
    if wrong:
        place, score = next(iter(wrong.items()))
        raise ModelError(
            f"The reward model gave {len(wrong)} of {len(scores)} responses no finite reward; the first is {score}, of "
            f"response {place}. Look at the model with `hafrm evaluate`, or try --score.dtype float32."
        )
    return scores


def require_scored(scores: Sequence[float | None], reward: str, step: int) -> None:
    """Raise if no response of a step has a score.

    Raises:
        DataError: no response has a score.
    """
    if all(score is None for score in scores):
        raise DataError(
            f"step {step}: {reward} scored none of {len(scores)} responses, since they are over its limit or its chat "
            "template refuses them. Raise score.max_length, or lower max_prompt_tokens and sampling.max_new_tokens."
        )


def _scores_of(scorer: Scorer, conversations: Sequence[Conversation]) -> list[float | None]:
    try:
        return scorer.score(conversations)
    except RefusedError as error:
        known = rewards_of_the_rest(scorer, conversations, error)
        return [known.get(place) for place in range(len(conversations))]
