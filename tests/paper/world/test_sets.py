from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from random import Random
from statistics import mean

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from hafrm.contract import parse_pair
from hafrm.errors import DataError, UnknownDataError
from hafrm.evaluation.scoring import response_length
from hafrm.pairs import PreferencePair
from hafrm.paper.world import (
    PROFILES,
    WORLD_SETS,
    Annotator,
    oracle_reward,
    split_of,
    world_pairs,
)
from hafrm.paper.world.sets import LENGTH_BIAS, draw_traits
from hafrm.paper.world.source import World
from hafrm.paper.world.task import Trait
from tests.paper.world.ceiling import Rewards, oracle_accuracy, oracle_rewards
from tests.paths import TESTS

Pairs = Mapping[str, list[PreferencePair]]

DIGEST = """
import hashlib, json
from hafrm.paper.world import *
from hafrm.paper.world.backbone import instruct_conversations, pretraining_documents
rows = [pair.as_row() for name in WORLD_SETS for pair in world_pairs(name, "test", size=40, seed=3)]
rows += list(pretraining_documents(20)) + [repr(talk) for talk in instruct_conversations(20)]
print(hashlib.sha256(json.dumps(rows).encode()).hexdigest())
"""


@pytest.fixture(scope="module")
def rewards(train_pairs: Pairs) -> Mapping[str, Rewards]:
    """The true rewards of the training pairs."""
    return {name: oracle_rewards(pairs, name) for name, pairs in train_pairs.items()}


@pytest.mark.slow
def test_the_same_seed_gives_the_same_world_in_every_process() -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", DIGEST], env=os.environ | {"PYTHONHASHSEED": seed}, stdout=subprocess.PIPE, text=True
        )
        for seed in ("1", "2")
    ]
    digests = [process.communicate()[0].strip() for process in processes]
    assert len(digests[0]) == len(hashlib.sha256().hexdigest())
    assert digests[0] == digests[1]


def test_another_seed_gives_other_pairs_and_a_smaller_size_the_beginning() -> None:
    pairs = world_pairs("helpful", size=60)
    assert world_pairs("helpful", size=21) == pairs[:21]
    assert world_pairs("helpful", size=60, seed=1) != pairs


def test_the_published_results_are_of_these_sets() -> None:
    """The pairs on which the published models were tested can be drawn again: their lengths are in the record."""
    names = {"Helpful": "helpful", "Harmless": "harmless", "BS": "safe", "CA": "arena", "AHP": "human-pref"}
    lines = (
        (TESTS.parent / "docs" / "results" / "world" / "table2" / "record.jsonl")
        .read_text(encoding="utf-8")
        .splitlines()
    )
    recorded = {row["test"]: row["lengths"] for row in map(json.loads, lines) if "test" in row}
    assert set(recorded) == set(names)
    for name, lengths in recorded.items():
        pairs = world_pairs(names[name], "test", size=60)
        assert [[response_length(pair.chosen), response_length(pair.rejected)] for pair in pairs] == lengths[:60]


@pytest.mark.slow
def test_default_sizes_and_names(train_pairs: Pairs, test_pairs: Pairs) -> None:
    assert WORLD_SETS == ("helpful", "harmless", "arena", "safe", "human-pref")
    for name in WORLD_SETS:
        assert (len(train_pairs[name]), len(test_pairs[name])) == (2000, 500)
        assert [pair.row for pair in test_pairs[name]] == list(range(1, 501))
        assert {pair.source for pair in test_pairs[name]} == {f"world/{name}/test"}
    assert len(world_pairs("safe", "validation")) == 200


@pytest.mark.parametrize("name", WORLD_SETS)
def test_every_pair_keeps_the_data_contract(name: str, train_pairs: Pairs) -> None:
    for pair in train_pairs[name]:
        row = json.loads(json.dumps(pair.as_row()))
        assert parse_pair(row, source=pair.source, number=pair.row) == pair
        assert pair.margin is None, "the oracle's margin must not reach the trainer"
        assert pair.chosen != pair.rejected


def test_no_prompt_crosses_splits_not_even_between_sets(train_pairs: Pairs, test_pairs: Pairs) -> None:
    train = {pair.group for pairs in train_pairs.values() for pair in pairs}
    test = {pair.group for pairs in test_pairs.values() for pair in pairs}
    validation = {pair.group for name in WORLD_SETS for pair in world_pairs(name, "validation", size=100)}
    assert not train & test
    assert not train & validation
    assert not test & validation
    assert {split_of(pair.prompt) for pairs in test_pairs.values() for pair in pairs} == {"test"}


@pytest.mark.parametrize("name", WORLD_SETS)
def test_prompts_are_varied(name: str, train_pairs: Pairs) -> None:
    assert len({pair.group for pair in train_pairs[name]}) > 0.8 * len(train_pairs[name])
    answers = {turn.content for pair in train_pairs[name] for turn in (*pair.chosen, *pair.rejected)}
    assert len(answers) > 0.7 * 2 * len(train_pairs[name])


@pytest.mark.parametrize("measure", [len, lambda text: len(text.split())], ids=["characters", "words"])
@pytest.mark.parametrize("name", WORLD_SETS)
def test_length_does_not_give_the_label_away(name: str, measure, train_pairs: Pairs, test_pairs: Pairs) -> None:
    for pairs in (train_pairs[name], test_pairs[name]):
        longer_wins = mean(measure(pair.chosen[0].content) > measure(pair.rejected[0].content) for pair in pairs)
        assert longer_wins == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("name", WORLD_SETS)
def test_by_the_oracle_the_longer_answer_is_better_in_exactly_half_of_the_pairs(
    name: str, train_pairs: Pairs, rewards: Mapping[str, Rewards]
) -> None:
    """The balance is exact before annotators err."""
    longer_is_better = 0
    for pair, (chosen, rejected) in zip(train_pairs[name], rewards[name], strict=True):
        longer_is_better += (chosen > rejected) == (len(pair.chosen[0].content) > len(pair.rejected[0].content))
    assert longer_is_better == len(train_pairs[name]) / 2


@pytest.mark.parametrize("name", WORLD_SETS)
def test_labels_err_as_often_as_bradley_and_terry_say(name: str, rewards: Mapping[str, Rewards]) -> None:
    """Errors are drawn evenly, so the share is closer than the .008 expected from independent draws."""
    accuracy, ceiling = oracle_accuracy(rewards[name], name)
    assert accuracy == pytest.approx(ceiling, abs=0.01)
    assert 0.8 < ceiling < 0.93


@pytest.mark.parametrize("name", WORLD_SETS)
def test_labels_are_surer_where_the_rewards_differ_more(name: str, rewards: Mapping[str, Rewards]) -> None:
    """Within thirds of the pairs by margin, the share of right labels follows the annotator's probabilities."""
    leads = [(abs(chosen - rejected), chosen > rejected) for chosen, rejected in rewards[name]]
    leads.sort(key=lambda lead: lead[0])  # not by rightness among equals
    third = len(leads) // 3
    for part in (leads[:third], leads[third : 2 * third], leads[2 * third :]):
        expected = mean(PROFILES[name].annotator.preference(lead) for lead, _ in part)
        assert mean(right for _, right in part) == pytest.approx(expected, abs=0.045)


@given(st.floats(-1e6, 1e6), st.floats(0.05, 5), st.floats(0, 1))
def test_an_annotators_two_preferences_add_up_to_one(lead: float, temperature: float, careless: float) -> None:
    annotator = Annotator(temperature=temperature, careless=careless)
    assert annotator.preference(lead) + annotator.preference(-lead) == pytest.approx(1.0)
    assert careless / 2 <= annotator.preference(lead) <= 1 - careless / 2 + 1e-12


def test_an_annotators_preference_worked_out_by_hand() -> None:
    assert Annotator(temperature=2.0, careless=0.1).preference(2.0) == pytest.approx(0.9 * 0.731059 + 0.05, abs=1e-6)
    assert Annotator(temperature=0.5, careless=0.0).preference(5.0) == pytest.approx(0.9999546, abs=1e-7)


def test_no_answer_is_meant_to_be_both_courteous_and_rude() -> None:
    rng = Random(0)
    drawn = [draw_traits(PROFILES[name], rng) for name in WORLD_SETS for _ in range(300)]
    assert {Trait.COURTEOUS, Trait.RUDE} <= set().union(*drawn)
    assert not any({Trait.COURTEOUS, Trait.RUDE} <= traits for traits in drawn)


def test_what_is_not_there_is_a_named_error() -> None:
    with pytest.raises(UnknownDataError, match=r"'helpfull'\. Did you mean 'helpful'"):
        world_pairs("helpfull")
    with pytest.raises(DataError, match="no split 'dev'"):
        world_pairs("helpful", "dev")


def leads_of(pairs: list[PreferencePair], name: str) -> np.ndarray:
    """True reward of chosen minus that of rejected, in units of the annotator's temperature."""
    return -np.diff(oracle_rewards(pairs, name), axis=1)[:, 0] / PROFILES[name].annotator.temperature


def test_annotators_of_the_longer_variant_also_like_length(train_pairs: Pairs) -> None:
    """The same answers; given the true rewards, a label's log-odds rise by 2 per log of the ratio of words."""
    plain, longer = train_pairs["helpful"][:1500], world_pairs("helpful-longer", size=1500)
    for one, other in zip(plain, longer, strict=True):
        assert one.prompt == other.prompt
        assert {one.chosen, one.rejected} == {other.chosen, other.rejected}
    found = {}
    for name, pairs in (("plain", plain), ("longer", longer)):
        words = [[len(side[0].content.split()) for side in (pair.chosen, pair.rejected)] for pair in pairs]
        features = np.stack([leads_of(pairs, "helpful"), -np.diff(np.log(words), axis=1)[:, 0]], axis=1)
        fit = LogisticRegression(C=1e6, fit_intercept=False)
        fit.fit(np.concatenate([features, -features]), [1] * len(pairs) + [0] * len(pairs))
        found[name] = fit.coef_[0]
    assert found["plain"][1] == pytest.approx(0, abs=0.4)
    assert found["longer"][1] == pytest.approx(LENGTH_BIAS, abs=0.5)
    assert found["longer"][0] == pytest.approx(found["plain"][0], abs=0.15)


def test_rankings_are_whole_and_follow_the_rewards() -> None:
    pairs = world_pairs("helpful-ranked", size=600)
    by_row: dict[int, list[PreferencePair]] = {}
    for pair in pairs:
        by_row.setdefault(pair.row, []).append(pair)
    assert len(by_row) == len({pair.group for pair in pairs}) == 100
    for each in by_row.values():
        assert [pair.part for pair in each] == [1, 2, 3, 4, 5, 6]
        wins = Counter(pair.chosen for pair in each)
        assert sorted(wins.values()) == [1, 2, 3]
        assert len({pair.prompt for pair in each}) == 1
    leads, annotator = leads_of(pairs, "helpful"), PROFILES["helpful"].annotator
    expected = [annotator.preference(abs(lead) * annotator.temperature) for lead in leads]
    assert np.mean((leads > 0) + 0.5 * (leads == 0)) == pytest.approx(np.mean(expected), abs=0.03)
    assert len(world_pairs("safe-ranked", "validation")) == 600


def test_variants_have_the_true_rewards_of_their_set() -> None:
    (pair,) = world_pairs("human-pref", size=1)
    rewards = {oracle_reward(pair.conversations[0], f"human-pref{variant}") for variant in ("", "-longer", "-ranked")}
    assert len(rewards) == 1
    assert {"human-pref", "safe-longer", "arena-ranked"} < set(World().names)
    with pytest.raises(UnknownDataError):
        world_pairs("helpful-shorter")
