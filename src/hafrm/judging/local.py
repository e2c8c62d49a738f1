"""Judges that run in this process: a causal LM for two responses, and a reward model for any number."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hafrm.errors import ConfigError, ModelError, RefusedError
from hafrm.judging.judges import Answer, FreeJudge, Question, Unscored, ranks_of
from hafrm.judging.prompts import CHOICES, judge_messages
from hafrm.models.loading import load_log_prob_scorer
from hafrm.models.options import ScoreOptions
from hafrm.models.scorers import Scorer, rewards_or_reasons
from hafrm.pairs import Conversation, Message, Prompt


def load_local_judge(model: str, options: ScoreOptions, *, trust_remote_code: bool = False) -> LocalJudge:
    """Load a causal LM as judge.

    Raises:
        ConfigError: `score.overlong` is `truncate`, which would cut off the question.
        ModelError: no causal LM can be loaded from there.
    """
    if options.overlong == "truncate":
        raise ConfigError("score.overlong: the prompt of a local judge can't be truncated. Leave the option out.")
    return LocalJudge(load_log_prob_scorer(model, options, trust_remote_code=trust_remote_code))


class LocalJudge(FreeJudge):
    """Compares two responses by the log-probabilities of the answers `Output (a)` and `Output (b)` to Table 9's prompt.

    The model generates nothing, so no reply has to be parsed. The scorer gives a response's summed log-probability.
    """

    most_responses = 2
    order_matters = True

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer
        self._with_system = True  # False once the chat template refuses system turns

    def ask(self, questions: Sequence[Question]) -> list[Answer]:
        """Return one answer per question; over-long ones are unscored."""
        try:
            scores = self.scorer.score(self._conversations(questions))
        except RefusedError:
            if not self._with_system:
                raise
            self._with_system = False
            return self.ask(questions)
        outcomes = [Unscored.OVERLONG if score is None else score for score in scores]
        return [_answer(outcomes[i : i + 2]) for i in range(0, len(outcomes), 2)]

    def _conversations(self, questions: Sequence[Question]) -> list[Conversation]:
        """Return each question twice, once with either answer as the reply."""
        prompts = [self._prompt(question) for question in questions]
        return [Conversation(prompt, (Message("assistant", choice),)) for prompt in prompts for choice in CHOICES]

    def _prompt(self, question: Question) -> Prompt:
        system, user = judge_messages(question)
        if self._with_system:
            return Prompt((Message(**system), Message(**user)))
        return Prompt.of(f"{system['content']}\n\n{user['content']}")


class RewardJudge(FreeJudge):
    """Ranks by a scorer's rewards (as ArmoRM does in the paper's Figure 9); equal rewards tie."""

    most_responses = 1024
    order_matters = False

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer

    def ask(self, questions: Sequence[Question]) -> list[Answer]:
        """Return one answer per question; one with an over-long or refused conversation is unscored.

        Raises:
            ModelError: a reward is not finite, so it has no rank.
        """
        asked = [Conversation(question.prompt, response) for question in questions for response in question.responses]
        distinct = list(dict.fromkeys(asked))
        outcomes = map(_outcome, rewards_or_reasons(self.scorer, distinct))
        rewards = dict(zip(distinct, outcomes, strict=True))
        return [
            _answer([rewards[Conversation(question.prompt, response)] for response in question.responses])
            for question in questions
        ]


def _outcome(found: float | str) -> float | Unscored:
    if isinstance(found, str):
        return Unscored(found)
    if not math.isfinite(found):
        raise ModelError(
            f"The judge's reward of a response is {found}. Its weights may be damaged, or its dtype overflows."
        )
    return found


def _answer(rewards: Sequence[float | Unscored]) -> Answer:
    numbers = [reward for reward in rewards if not isinstance(reward, Unscored)]
    if len(numbers) == len(rewards):
        return Answer(ranks=ranks_of(numbers))
    return Answer(unscored=next(reward for reward in rewards if isinstance(reward, Unscored)))
