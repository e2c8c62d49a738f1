"""A reward model as judge: the higher reward wins, equal rewards tie."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from hafrm.errors import ModelError, RefusedError
from hafrm.judging.judges import Answer, Question, Unscored, ranks_of
from hafrm.models.scorers import Scorer, rewards_of_the_rest
from hafrm.pairs import Conversation


class RewardJudge:
    """Ranks by a scorer's rewards (as ArmoRM does in the paper's Figure 9)."""

    most_responses = 1024
    order_matters = False
    stopped = None

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer

    def ask(self, questions: Sequence[Question]) -> list[Answer]:
        """Return one answer per question; one with an over-long or refused conversation is unscored.

        Raises:
            ModelError: a reward is not finite, so it has no rank.
        """
        asked = [Conversation(question.prompt, response) for question in questions for response in question.responses]
        distinct = list(dict.fromkeys(asked))
        try:
            scores = dict(enumerate(self.scorer.score(distinct)))
        except RefusedError as error:
            scores = rewards_of_the_rest(self.scorer, distinct, error)
        rewards = {conversation: _reward(scores, place) for place, conversation in enumerate(distinct)}
        return [
            _answer([rewards[Conversation(question.prompt, response)] for response in question.responses])
            for question in questions
        ]


def _reward(scores: Mapping[int, float | None], place: int) -> float | Unscored:
    if place not in scores:
        return Unscored.REFUSED_BY_TEMPLATE
    reward = scores[place]
    if reward is not None and not math.isfinite(reward):
        raise ModelError(f"The judge's reward of a response is {reward}. Look for damaged weights, or an overflow.")
    return Unscored.OVERLONG if reward is None else reward


def _answer(rewards: Sequence[float | Unscored]) -> Answer:
    numbers = [reward for reward in rewards if not isinstance(reward, Unscored)]
    if len(numbers) == len(rewards):
        return Answer(ranks=ranks_of(numbers))
    return Answer(unscored=next(reward for reward in rewards if isinstance(reward, Unscored)))
