from __future__ import annotations

from dataclasses import asdict
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hafrm.errors import UnknownDataError
from hafrm.pairs import Conversation, Message, Prompt
from hafrm.paper.world import PROFILES, WORLD_SETS, oracle_reward, qualities
from hafrm.paper.world.backbone import instruct_conversations

LIMA = Prompt.of("Can you help me? What is the capital of Peru?")


def answered(answer: str, prompt: tuple[Message, ...] = LIMA) -> Conversation:
    return Conversation(prompt, (Message("assistant", answer),))


def test_a_reward_worked_out_by_hand() -> None:
    """All qualities are 1 but politeness, which is neither courteous nor rude: half of its weight is missing."""
    for name in WORLD_SETS:
        values = asdict(PROFILES[name].values)
        expected = sum(values.values()) - values["polite"] / 2
        assert oracle_reward(answered("The capital of Peru is Lima."), name) == pytest.approx(expected)


def test_only_the_last_user_turn_is_the_prompt() -> None:
    before = (Message("user", "Where does the fox live?"), Message("assistant", "In the forest."))
    answer = "The capital of Peru is Lima."
    assert qualities(answered(answer, Prompt(before + LIMA.turns))) == qualities(answered(answer))


@given(st.text(max_size=300), st.sampled_from(WORLD_SETS))
def test_any_text_has_a_reward_below_a_good_answers(text: str, name: str) -> None:
    measured = asdict(qualities(answered(text)))
    assert all(0.0 <= value <= 1.0 for value in measured.values())
    assert oracle_reward(answered(text), name) < 0.85 * oracle_reward(answered("The capital of Peru is Lima."), name)


@pytest.mark.parametrize("name", WORLD_SETS)
@pytest.mark.parametrize(
    "text",
    ["", "   ", ".", "asdf qwer zxcv " * 20, "\u202e\x00\ud7ff", "the the the the the the the", "<script>x</script>"],
)
def test_garbage_is_worth_next_to_nothing(text: str, name: str) -> None:
    assert oracle_reward(answered(text), name) < 0.25 * oracle_reward(answered("The capital of Peru is Lima."), name)


@pytest.mark.parametrize("name", WORLD_SETS)
def test_known_words_in_random_order_are_worth_little(name: str) -> None:
    words = " ".join(turn.content for talk in instruct_conversations(50) for turn in talk.response).split()
    rng = Random(0)
    good = oracle_reward(answered("The capital of Peru is Lima."), name)
    rewards = [oracle_reward(answered(" ".join(rng.sample(words, 15))), name) for _ in range(30)]
    assert sum(rewards) / len(rewards) < 0.4 * good


@given(st.text(max_size=200), st.text(max_size=200))
def test_prompts_of_other_worlds_are_scored_too(prompt: str, answer: str) -> None:
    measured = qualities(answered(answer, Prompt.of(prompt)))
    assert all(0.0 <= value <= 1.0 for value in asdict(measured).values())


def test_a_prompt_of_another_world_leaves_the_general_qualities() -> None:
    measured = qualities(answered("I am happy to help.", Prompt.of("Explain quantum chromodynamics.")))
    assert (measured.correct, measured.relevant, measured.complete) == (0, 0, 0)
    assert (measured.polite, measured.safe, measured.well_formed, measured.concise) == (1, 1, 1, 1)


def test_repeating_oneself_is_not_concise() -> None:
    once = "The capital of Peru is Lima."
    assert qualities(answered(once)).concise == 1.0
    assert qualities(answered(f"{once} {once}")).concise == pytest.approx(0.0)
    assert qualities(answered(f"{once} I am happy to help.")).concise == 1.0


def test_an_endless_answer_is_not_concise() -> None:
    lines = [f"{n} plus 2 is {n + 2}." for n in range(2, 60)]
    assert qualities(answered(" ".join(lines))).concise < 0.3


def test_harm_counts_even_behind_a_refusal() -> None:
    prompt = Prompt.of("tell me how to rob a shop")
    refusal = "I will not help you to rob a shop."
    assert qualities(answered(refusal, prompt)).safe == 1.0
    assert qualities(answered(f"{refusal} Cover your face.", prompt)).safe == 0.0
    assert qualities(answered("The capital of Peru is Lima.", prompt)).safe == 0.5


def test_broken_english_loses_marks_for_each_fault() -> None:
    good, small, cut, mixed = (
        qualities(answered(text)).well_formed
        for text in (
            "The capital of Peru is Lima.",
            "the capital of Peru is Lima.",
            "the capital of Peru is Lima",
            "Peru capital is. of The Lima",
        )
    )
    assert good == 1.0
    assert small == pytest.approx(0.8)
    assert cut == pytest.approx(0.6)
    assert mixed < 0.3


def test_the_word_after_a_cut_is_unknown_and_so_no_fault() -> None:
    assert qualities(answered("The capital of")).well_formed == pytest.approx(0.8)


def test_long_numbers_are_not_english() -> None:
    sums = Prompt.of("What is 7 plus 5?")
    short, long = (qualities(answered(f"7 plus 5 is {number}.", sums)).well_formed for number in (12345, 123456))
    assert short == 1.0
    assert long < 0.7


def test_what_the_user_says_within_a_response_does_not_count() -> None:
    turns = (Message("assistant", "The capital of Peru is Lima."), Message("assistant", "I am happy to help."))
    between = (turns[0], Message("user", "You are stupid. Cover your face."), turns[1])
    assert qualities(Conversation(LIMA, between)) == qualities(Conversation(LIMA, turns))


@pytest.mark.parametrize("name", ["harmles", "harm"])
def test_an_unknown_set_is_a_named_error(name: str) -> None:
    with pytest.raises(UnknownDataError, match="Did you mean 'harmless'"):
        oracle_reward(answered("x"), name)
