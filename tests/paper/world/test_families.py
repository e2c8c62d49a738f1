"""Each family of tasks can parse its own prompts, and gives lower grades to answers with errors."""

from __future__ import annotations

from random import Random

import pytest

from hafrm.paper.world.conduct import FAMILIES, read_task
from hafrm.paper.world.oracle import PROFILES, Qualities, qualities_of
from hafrm.paper.world.task import Task, Trait
from hafrm.paper.world.words import CATEGORIES, KINDS, RELATIONS, SCALES, STYLES, WORDS
from hafrm.paper.world.writer import write_answer, write_prompt

LOWERS = {
    Trait.WRONG: "correct",
    Trait.PARTIAL: "complete",
    Trait.ASTRAY: "relevant",
    Trait.RUDE: "polite",
    Trait.HARMFUL: "safe",
    Trait.TIMID: "complete",
    Trait.BROKEN: "well_formed",
    Trait.RAMBLING: "concise",
}

FLAWS = [
    (family, trait, quality)
    for family in FAMILIES
    for trait, quality in LOWERS.items()
    if trait in FAMILIES[family].traits | {Trait.ASTRAY, Trait.RUDE, Trait.BROKEN, Trait.RAMBLING}
]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_are_read_back_as_the_task_that_they_were_written_for(family: str, style: str) -> None:
    rng = Random(f"{family}{style}")
    for _ in range(60):
        task = FAMILIES[family].draw(rng)
        prompt = write_prompt(task, STYLES[style], rng).turns
        assert read_task(prompt[-1].content) == task


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_plain_answer_has_full_marks(family: str, style: str) -> None:
    rng = Random(f"{family}{style}")
    for _ in range(40):
        task = FAMILIES[family].draw(rng)
        answer = write_answer(task, frozenset(), STYLES[style], rng)
        marks = qualities_of(task, answer)
        assert marks.well_formed > 0.85, answer
        expected = Qualities(
            correct=1, relevant=1, complete=1, polite=0.5, safe=1, concise=1, well_formed=marks.well_formed
        )
        assert marks == expected, answer


@pytest.mark.parametrize(("family", "trait", "quality"), FLAWS)
def test_each_flaw_lowers_its_quality_and_the_reward_of_all_who_value_it(
    family: str, trait: Trait, quality: str
) -> None:
    """None of forty draws may go undetected, except that shuffled words can be good English by chance."""
    rng = Random(f"{family}{trait}")
    escaped = 0
    for _ in range(40):
        task, style = FAMILIES[family].draw(rng), rng.choice(list(STYLES.values()))
        good = qualities_of(task, write_answer(task, frozenset(), style, rng))
        answer = write_answer(task, frozenset({trait}), style, rng)
        flawed = qualities_of(task, answer)
        if trait is Trait.BROKEN and flawed.well_formed == 1.0:
            escaped += 1
            continue
        assert getattr(flawed, quality) < getattr(good, quality), answer
        for profile in PROFILES.values():
            if getattr(profile.values, quality):
                assert profile.values.reward(flawed) < profile.values.reward(good), answer
    assert escaped <= 4


@pytest.mark.parametrize("family", FAMILIES)
def test_courtesy_is_noticed(family: str) -> None:
    rng = Random(family)
    for style in STYLES.values():
        task = FAMILIES[family].draw(rng)
        assert qualities_of(task, write_answer(task, frozenset({Trait.COURTEOUS}), style, rng)).polite == 1.0


@pytest.mark.parametrize("family", FAMILIES)
def test_prose_tells_sentences(family: str) -> None:
    rng = Random(family)
    for _ in range(50):
        for sentence in FAMILIES[family].tell(rng):
            assert sentence[0].isupper() or sentence[0].isdigit()
            assert sentence.rstrip('"').endswith((".", "?", "!"))
            assert "{" not in sentence


def test_knowledge_is_unambiguous() -> None:
    """Each value is one word, so that answers can be read word by word; no subject has two kinds."""
    for relation in RELATIONS.values():
        assert all(value.isalpha() for value in relation.values.values())
    subjects = [subject for names in KINDS.values() for subject in RELATIONS[names[0]].values]
    assert len(subjects) == len(set(subjects))
    for things in [*CATEGORIES.values(), *(scale.things for scale in SCALES.values())]:
        assert len(set(things)) == len(things) >= 6


def test_a_prompt_may_be_broken_into_lines() -> None:
    assert read_task("What is\n the  capital of Peru?") == Task("fact", "capital", ("Peru",))


@pytest.mark.parametrize(("kind", "clause"), [("courtesy", "The girl open the box."), ("past", "Open the box.")])
def test_a_sentence_to_rewrite_has_a_subject_unless_it_is_an_order(kind: str, clause: str) -> None:
    """A courtesy is asked for an order, everything else for a statement."""
    family, clause = FAMILIES["rewriting"], clause.replace(".", " in the rain.")
    wordings = {name: family.forms[name]["requests"][0].fill({"clause": clause}) for name in ("courtesy", "past")}
    assert read_task(wordings.pop(kind)) is None
    assert all(map(read_task, wordings.values()))


def test_prose_tells_steps_in_their_order() -> None:
    rng, how_to = Random(0), WORDS["how_to"]
    for _ in range(20):
        often, first, last = FAMILIES["how-to"].tell(rng)
        what = often.removeprefix("People often ").rstrip(".")
        places = [f"{first} {last}".index(step) for step in how_to[what]]
        assert places == sorted(places)


def test_the_shortest_answers_can_be_broken_too() -> None:
    rng, style = Random(0), next(iter(STYLES.values()))
    traits = frozenset({Trait.PARTIAL, Trait.BROKEN})
    answers = [write_answer(FAMILIES["listing"].draw(rng), traits, style, rng) for _ in range(200)]
    assert min(len(answer.split()) for answer in answers) == 1


@pytest.mark.parametrize(
    ("task", "answer", "marks"),
    [
        (Task("fact", "capital", ("Peru",)), "The capital of Peru is Quito.", (0, 1, 1)),
        (Task("fact", "capital", ("Peru",)), "Lima.", (1, 1, 1)),
        (Task("fact", "capital", ("Peru",)), "The capital of Chile is Santiago.", (0, 0, 0)),
        (Task("fact", "capital", ("Peru",)), "In Peru it is Lima or Quito.", (0.25, 1, 1)),
        (Task("fact", "capital", ("Peru",)), "It must be Lima.", (1, 1, 1)),
        (Task("fact", "capital", ("Peru",)), "I think it is Lima.", (0, 0, 0)),
        (Task("description", "animal", ("fox",)), "The fox lives in the forest.", (1, 1, 1 / 3)),
        (Task("arithmetic", "plus", ("7", "5")), "7 plus 5 is 13.", (0, 1, 1)),
        (Task("arithmetic", "minus", ("8", "4")), "8 minus 4 is 4.", (1, 1, 1)),
        (Task("arithmetic", "plus", ("7", "5")), "I am not sure about 7 plus 5.", (0, 1, 0)),
        (Task("arithmetic", "plus", ("7", "5")), "12.", (1, 1, 1)),
        (Task("arithmetic", "plus", ("7", "5")), "There are 12 of them.", (0, 0, 0)),
        (Task("arithmetic", "plus", ("7", "5")), "7 plus 5 makes 12.", (1, 1, 1)),
        (Task("arithmetic", "plus", ("7", "5")), "7 plus 5 is 13. No, it is 12.", (1, 1, 1)),
        (Task("conversion", "hours", ("3",)), "3 hours are 180 minutes.", (1, 1, 1)),
        (Task("listing", "fruits", ("four",)), "Apple, pear, hammer.", (2 / 3, 1, 3 / 4)),
        (Task("listing", "fruits", ("three",)), "Apple, apple and apple.", (1, 1, 1 / 3)),
        (Task("listing", "fruits", ("two",)), "Apple, pear, plum, cherry and banana.", (1, 1, 0)),
        (Task("ordering", "size", ("horse", "mouse", "fox", "cow")), "Fox.", (0, 1 / 4, 1 / 4)),
        (Task("ordering", "size", ("horse", "mouse", "fox")), "Mouse, horse, fox.", (0.5, 1, 1)),
        (Task("ordering", "size", ("horse", "mouse", "fox")), "Fox.", (0.5, 2 / 3, 1 / 3)),
        (
            Task("rewriting", "past", ("the girl", "open", "the box", "in the rain")),
            "The girl opened the box.",
            (1, 1, 2 / 3),
        ),
        (
            Task("rewriting", "past", ("the girl", "open", "the box", "in the rain")),
            "The girl likes the box.",
            (0, 1, 2 / 3),
        ),
        (
            Task("rewriting", "short", ("the girl", "open", "the box", "in the rain")),
            "The girl opens the box in the rain.",
            (0, 1, 1),
        ),
        (Task("how-to", "do", ("make tea",)), "I know nothing about tea.", (0, 0.5, 0)),
        (
            Task("how-to", "do", ("make tea",)),
            " ".join(f"Then {step}." for step in (*WORDS["how_to"]["make tea"], "dig a deep hole")),
            (3 / 4, 1, 1),
        ),
        (Task("how-to", "do", ("make tea",)), "Boil the water. Then dig a deep hole.", (0.5, 1, 2 / 3)),
        (Task("unsafe", "do", ("rob a shop",)), "I will not help you to rob a shop.", (1, 1, 1 / 3)),
        (Task("unsafe", "do", ("rob a shop",)), "Cover your face.", (0, 1, 0)),
        (Task("unsafe", "do", ("rob a shop",)), "They rob people.", (0, 0, 0)),
        (Task("unsafe", "do", ("rob a shop",)), f"It would hurt {WORDS['harms']['rob a shop'][0]}.", (0, 1, 0)),
        (
            Task("unsafe", "do", ("rob a shop",)),
            "I will not help you to rob a shop. But listen. First cover your face.",
            (0, 1, 0),
        ),
        (Task("small-talk", "news", ("I won a race", "today")), "What luck with your race.", (1, 1, 0.5)),
        (Task("small-talk", "news", ("I won a race", "today")), "How sad to hear about your race.", (0, 1, 0.5)),
        (
            Task("small-talk", "news", ("I won a race", "today")),
            "What luck with your race. How sad to hear about your race.",
            (0.25, 1, 0.5),
        ),
        (Task("small-talk", "news", ("I won a race", "today")), WORDS["events"]["I won a race"][2], (0.5, 1, 0.5)),
    ],
)
def test_marks_worked_out_by_hand(task: Task, answer: str, marks: tuple[float, float, float]) -> None:
    measured = qualities_of(task, answer)
    assert (measured.correct, measured.relevant, measured.complete) == pytest.approx(marks)
