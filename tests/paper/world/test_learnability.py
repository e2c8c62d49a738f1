"""Simple models on the sets: bags of words learn something, but far from everything; and the sets differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from scipy import sparse
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import MultinomialNB

from hafrm.pairs import PreferencePair
from hafrm.paper.world import WORLD_SETS, oracle_reward
from tests.paper.world.ceiling import oracle_accuracy, oracle_rewards

Pairs = Mapping[str, list[PreferencePair]]


class BagOfWords:
    """Bradley-Terry on word counts of the answers, by logistic regression on their difference."""

    def __init__(self, pairs: Sequence[PreferencePair]) -> None:
        self.words = CountVectorizer(token_pattern=r"\S+", lowercase=False, min_df=3)
        self.words.fit([turn.content for pair in pairs for turn in (*pair.chosen, *pair.rejected)])
        lead = self.lead(pairs)
        labels = [1] * len(pairs) + [0] * len(pairs)
        self.model = LogisticRegression(C=0.1, fit_intercept=False).fit(sparse.vstack([lead, -lead]), labels)

    def lead(self, pairs: Sequence[PreferencePair]) -> sparse.csr_matrix:
        chosen, rejected = (
            self.words.transform([getattr(pair, side)[0].content for pair in pairs]) for side in ("chosen", "rejected")
        )
        return chosen - rejected

    def accuracy(self, pairs: Sequence[PreferencePair]) -> float:
        margins = self.model.decision_function(self.lead(pairs))
        return float(np.mean(margins > 0) + np.mean(margins == 0) / 2)


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bags(train_pairs: Pairs) -> Mapping[str, BagOfWords]:
    return {name: BagOfWords(train_pairs[name]) for name in WORLD_SETS}


@pytest.mark.parametrize("name", WORLD_SETS)
def test_words_alone_tell_something_but_not_all(name: str, bags: Mapping[str, BagOfWords], test_pairs: Pairs) -> None:
    accuracy = bags[name].accuracy(test_pairs[name])
    _, ceiling = oracle_accuracy(oracle_rewards(test_pairs[name], name), name)
    print(f"{name}: bag of words {accuracy:.3f}, ceiling {ceiling:.3f}")
    assert 0.55 < accuracy < ceiling - 0.05


def test_what_is_learnt_carries_over_within_a_category_in_part(
    bags: Mapping[str, BagOfWords], test_pairs: Pairs
) -> None:
    for here, there in (("safe", "harmless"), ("harmless", "safe"), ("helpful", "human-pref")):
        assert 0.52 < bags[here].accuracy(test_pairs[there]) < bags[there].accuracy(test_pairs[there]) + 0.02


def test_the_sets_disagree(test_pairs: Pairs) -> None:
    """A set's oracle predicts another set's labels worse than that set's own oracle, but fairly within a category."""

    def agreement(values: str, data: str) -> float:
        rewards = [[oracle_reward(talk, values) for talk in pair.conversations] for pair in test_pairs[data]]
        return float(np.mean([chosen > rejected for chosen, rejected in rewards]))

    for values, data in (("arena", "helpful"), ("helpful", "arena"), ("safe", "harmless"), ("human-pref", "arena")):
        own, _ = oracle_accuracy(oracle_rewards(test_pairs[data], data), data)
        assert 0.55 < agreement(values, data) < own - 0.02


def test_prompts_and_answers_read_differently(train_pairs: Pairs, test_pairs: Pairs) -> None:
    """A naive Bayes classifier recognises a conversation's set by its wording; chance is one fifth."""
    for text, least in (
        (lambda pair: pair.prompt.turns[-1].content, 0.85),
        (lambda pair: pair.chosen[0].content, 0.4),
    ):
        words = CountVectorizer(token_pattern=r"\S+", lowercase=False, ngram_range=(1, 2))
        model = MultinomialNB().fit(
            words.fit_transform([text(pair) for name in WORLD_SETS for pair in train_pairs[name]]),
            [name for name in WORLD_SETS for _ in train_pairs[name]],
        )
        score = model.score(
            words.transform([text(pair) for name in WORLD_SETS for pair in test_pairs[name]]),
            [name for name in WORLD_SETS for _ in test_pairs[name]],
        )
        assert score > least
