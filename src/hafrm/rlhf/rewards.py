"""Rewards of what a policy answered, by any scorer: it reads text, so its tokenizer need not be the policy's."""

from __future__ import annotations

from collections.abc import Sequence

from hafrm.errors import RefusedError
from hafrm.judging.reward import OracleScorer
from hafrm.models.loading import ScorerChoice
from hafrm.models.scorers import ScoreOptions, Scorer
from hafrm.pairs import Conversation, Message
from hafrm.rlhf.prompts import Prompt

__all__ = ["answered", "load_reward", "scores_of"]

_WORLD = "world/"


def load_reward(name: str, choice: ScorerChoice, options: ScoreOptions) -> Scorer:
    """The scorer of a name: `world/NAME`, that set's true reward, or whatever `ScorerChoice.load` takes.

    Raises:
        UnknownDataError: the world has no such set.
        ModelError: nothing that scores loads from there.
    """
    if name.startswith(_WORLD):
        return OracleScorer(name.removeprefix(_WORLD))
    return choice.load(name, options)


def answered(prompt: Prompt, text: str) -> Conversation:
    """A prompt with the policy's answer."""
    return Conversation(prompt, (Message("assistant", text),))


def scores_of(scorer: Scorer, conversations: Sequence[Conversation]) -> list[float | None]:
    """Rewards in order; None where a conversation is over the scorer's limit or its template refuses it."""
    try:
        return scorer.score(conversations)
    except RefusedError as error:
        fit = [place for place in range(len(conversations)) if place not in error.reasons]
        known = dict(zip(fit, scorer.score([conversations[place] for place in fit]), strict=True)) if fit else {}
        return [known.get(place) for place in range(len(conversations))]
