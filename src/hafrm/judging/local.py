"""A local causal LM as judge of two responses, by the log-probabilities of the two answers.

After the pair prompt (Table 9), the log-probabilities of `Output (a)` and `Output (b)` as the whole reply are compared.
Nothing is generated, so nothing can fail to parse.
"""

from __future__ import annotations

from collections.abc import Sequence

from hafrm.errors import ConfigError, RefusedError
from hafrm.judging.judges import Answer, Question, Unscored, ranks_of
from hafrm.judging.prompts import CHOICES, judge_messages
from hafrm.models.loading import load_log_prob_scorer
from hafrm.models.scorers import ScoreOptions, Scorer
from hafrm.pairs import Conversation, Message, Prompt


def load_local_judge(model: str, options: ScoreOptions, *, trust_remote_code: bool = False) -> LocalJudge:
    """Load a causal LM as judge.

    Raises:
        ConfigError: over-long prompts are to be truncated, which would cut off the question.
        ModelError: no causal LM can be loaded from there.
    """
    if options.overlong == "truncate":
        raise ConfigError("score.overlong: a local judge's prompt can't be cut. Leave the option out.")
    return LocalJudge(load_log_prob_scorer(model, options, trust_remote_code=trust_remote_code))


class LocalJudge:
    """Compares two responses by the log-probabilities of the two answers.

    Args:
        scorer: Computes the summed log-probability of a conversation's response.
    """

    most_responses = 2
    order_matters = True
    stopped = None

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer
        self._with_system = True  # until the chat template refuses system turns

    def ask(self, questions: Sequence[Question]) -> list[Answer]:
        """Return one answer per question; over-long ones are unscored."""
        try:
            scores = self.scorer.score(self._conversations(questions))
        except RefusedError:
            if not self._with_system:
                raise
            self._with_system = False
            return self.ask(questions)
        return [_answer(scores[i : i + 2]) for i in range(0, len(scores), 2)]

    def _conversations(self, questions: Sequence[Question]) -> list[Conversation]:
        """Return each question twice, once with either answer as the reply."""
        prompts = [self._prompt(question) for question in questions]
        return [Conversation(prompt, (Message("assistant", choice),)) for prompt in prompts for choice in CHOICES]

    def _prompt(self, question: Question) -> Prompt:
        system, user = judge_messages(question)
        if self._with_system:
            return Prompt((Message(**system), Message(**user)))
        return Prompt.of(f"{system['content']}\n\n{user['content']}")


def _answer(log_probs: Sequence[float | None]) -> Answer:
    numbers = [value for value in log_probs if value is not None]
    return Answer(ranks=ranks_of(numbers)) if len(numbers) == 2 else Answer(unscored=Unscored.OVERLONG)
