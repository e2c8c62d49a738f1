"""Preference pairs and prompts of the world's sets, drawn from a seed.

Every candidate is a prompt with two answers. Length must not predict which answer is better, so a candidate whose
better answer is the longer one is used only together with one whose better answer is the shorter one, of the same
family of tasks and with similar differences in words and in reward. Labels are drawn afterwards, from the two rewards
alone: each errs with its Bradley-Terry probability. Errors are drawn by systematic sampling, separately for the two
halves of the balance, so that they are spread evenly.

Two variants of each set are labelled in other ways, to study losses: NAME-longer by annotators who also like length,
NAME-ranked by rankings of four answers, as all pairs of each.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, islice
from random import Random
from typing import Literal, get_args

from hafrm.errors import DataError
from hafrm.pairs import Conversation, Message, PreferencePair, Prompt, prompt_group
from hafrm.paper.world.conduct import FAMILIES
from hafrm.paper.world.oracle import Profile, profile, qualities, qualities_of
from hafrm.paper.world.task import Task, Trait
from hafrm.paper.world.writer import write_answer, write_prompt

Split = Literal["train", "validation", "test"]

SPLIT_SIZES: dict[Split, int] = {"train": 2000, "validation": 200, "test": 500}
"""Default number of pairs per split."""

VARIANTS = ("longer", "ranked")

LENGTH_BIAS = 2.0
"""NAME-longer: log-odds that a response gains per log of the ratio of words: 1.4 for twice as many."""

RANKED = 4
"""NAME-ranked: answers per ranking; every two of them are a pair."""

_TIE = 0.2
"""Reward differences up to this are ties, which are left out as in the paper's preprocessing."""

_WORD_STEPS = (3, 7, 12)
_REWARD_STEPS = (0.8, 1.6, 2.8)
"""Limits of the classes within which candidates are balanced."""


def oracle_reward(conversation: Conversation, name: str) -> float:
    """Return a response's true reward according to the annotators of set `name`.

    Args:
        conversation: Any prompt and response; text from outside the world scores near zero.
        name: One of `WORLD_SETS`, or a variant, which has the same true rewards.

    Raises:
        UnknownDataError: there is no such set.
    """
    return profile(_set_of(name)[0]).values.reward(qualities(conversation))


def _set_of(name: str) -> tuple[str, str]:
    """Return the set that a name is a variant of, and the variant; "" for the set itself."""
    found, _, variant = name.rpartition("-")
    return (found, variant) if variant in VARIANTS else (name, "")


def split_of(prompt: Prompt) -> Split:
    """Return the split of a prompt, the same in every set: seven tenths train, a tenth validation, two tenths test."""
    place = int(prompt_group(prompt), 16) % 10
    return "train" if place < 7 else "validation" if place < 8 else "test"


def world_pairs(name: str, split: str = "train", *, size: int | None = None, seed: int = 0) -> list[PreferencePair]:
    """Draw preference pairs of a set.

    Args:
        name: One of `WORLD_SETS`, or a variant: NAME-longer or NAME-ranked.
        split: "train", "validation" or "test"; no prompt is in two of them, even across sets.
        size: Number of pairs; a smaller draw is the start of a larger one. Default: 2000, 200 and 500, three times as
            many of rankings.
        seed: Seed of the draw; the world is the same for all seeds.

    Raises:
        UnknownDataError: there is no such set.
        DataError: there is no such split.
    """
    of, variant = _set_of(name)
    chosen = profile(of)
    part = _known_split(split)
    rng, luck = Random(f"pairs/{of}/{part}/{seed}"), Random(f"labels/{of}/{part}/{seed}")
    source = f"world/{name}/{part}"
    if variant == "ranked":
        return list(islice(_ranked(of, part, rng, luck, source), 3 * SPLIT_SIZES[part] if size is None else size))
    liking = LENGTH_BIAS * chosen.annotator.temperature if variant == "longer" else 0.0
    candidates = islice(_balanced(_candidates(of, part, rng)), SPLIT_SIZES[part] if size is None else size)
    errors = {longer_is_better: _EvenErrors(luck) for longer_is_better in (True, False)}
    pairs = []
    for row, candidate in enumerate(candidates, 1):
        lead = abs(candidate.lead) + liking * candidate.log_longer
        errs = errors[candidate.longer_by > 0].draw(chosen.annotator.preference(-lead))
        pairs.append(candidate.labelled(errs=errs, source=source, row=row))
    return pairs


def _ranked(name: str, split: Split, rng: Random, luck: Random, source: str) -> Iterator[PreferencePair]:
    """Yield all pairs of rankings of new prompts' answers, drawn from the Plackett-Luce model of the rewards.

    Each answer's utility is its reward, in units of the annotator's temperature, plus noise from a Gumbel distribution;
    careless annotators have only the noise.
    """
    chosen, seen = profile(name), set[str]()
    for task, prompt in draw_prompts(name, split, rng):
        answers = list({write_answer(task, draw_traits(chosen, rng), chosen.style, rng) for _ in range(RANKED)})
        if prompt_group(prompt) in seen or len(answers) < RANKED:
            continue
        seen.add(prompt_group(prompt))
        attention = 0.0 if luck.random() < chosen.annotator.careless else 1 / chosen.annotator.temperature
        utility = {
            answer: attention * chosen.values.reward(qualities_of(task, answer)) - math.log(luck.expovariate(1.0))
            for answer in sorted(answers)
        }
        for part, (better, worse) in enumerate(combinations(sorted(utility, key=utility.__getitem__)[::-1], 2), 1):
            yield _pair(prompt, better, worse, source, len(seen), part)


def _pair(prompt: Prompt, better: str, worse: str, source: str, row: int, part: int = 0) -> PreferencePair:
    chosen, rejected = ((Message("assistant", answer),) for answer in (better, worse))
    return PreferencePair(prompt=prompt, chosen=chosen, rejected=rejected, source=source, row=row, part=part)


def _known_split(split: str) -> Split:
    for known in get_args(Split):
        if split == known:
            return known  # type: ignore[no-any-return]
    raise DataError(f"The world's sets have no split {split!r}. Use train, validation or test.")


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A prompt with two answers, not yet labelled."""

    family: str
    prompt: Prompt
    answers: tuple[str, str]
    lead: float
    """Reward of the first answer minus that of the second."""

    @property
    def longer_by(self) -> int:
        """Words by which the better answer is longer; negative if it is shorter."""
        first, second = (len(answer.split()) for answer in self.answers)
        return first - second if self.lead > 0 else second - first

    @property
    def log_longer(self) -> float:
        """Log of the better answer's words, relative to the worse answer's."""
        first, second = (len(answer.split()) for answer in self.answers)
        return math.log(first / second) * (1 if self.lead > 0 else -1)

    def labelled(self, *, errs: bool, source: str, row: int) -> PreferencePair:
        """Return the pair as labelled by an annotator who prefers the better answer, or errs."""
        first, second = self.answers if (self.lead > 0) != errs else self.answers[::-1]
        return _pair(self.prompt, first, second, source, row)

    @property
    def stratum(self) -> tuple[str, int, int]:
        """Class of candidates within which lengths are balanced."""
        words = sum(abs(self.longer_by) >= step for step in _WORD_STEPS)
        return self.family, words, sum(abs(self.lead) >= step for step in _REWARD_STEPS)

    def is_fair(self) -> bool:
        """Return whether the rewards differ, and the same answer is longer in words and in characters."""
        first, second = map(len, self.answers)
        longer_by_characters = (first - second) * (1 if self.lead > 0 else -1)
        return abs(self.lead) > _TIE and self.longer_by * longer_by_characters > 0


def draw_prompts(name: str, split: Split, rng: Random) -> Iterator[tuple[Task, Prompt]]:
    """Yield prompts of a set and split without end, each with its task; prompts may repeat."""
    chosen = profile(name)
    families, weights = list(chosen.families), list(chosen.families.values())
    while True:
        task = FAMILIES[rng.choices(families, weights)[0]].draw(rng)
        prompt = write_prompt(task, chosen.style, rng)
        if split_of(prompt) == split:
            yield task, prompt


def _candidates(name: str, split: Split, rng: Random) -> Iterator[_Candidate]:
    chosen = profile(name)
    for task, prompt in draw_prompts(name, split, rng):
        first, second = (write_answer(task, draw_traits(chosen, rng), chosen.style, rng) for _ in range(2))
        lead = chosen.values.reward(qualities_of(task, first)) - chosen.values.reward(qualities_of(task, second))
        candidate = _Candidate(task.family, prompt, (first, second), lead)
        if candidate.is_fair():
            yield candidate


def draw_traits(chosen: Profile, rng: Random) -> frozenset[Trait]:
    """Draw the traits of one answer from a set's habits."""
    traits = {trait for trait, share in chosen.habits.items() if rng.random() < share}
    return frozenset(traits - {Trait.RUDE} if Trait.COURTEOUS in traits else traits)


def _balanced(candidates: Iterator[_Candidate]) -> Iterator[_Candidate]:
    """Yield two candidates of a stratum at a time: one whose longer answer is better, one whose shorter is."""
    waiting: dict[tuple[tuple[str, int, int], bool], deque[_Candidate]] = defaultdict(deque)
    for candidate in candidates:
        longer_wins = candidate.longer_by > 0
        partners = waiting[candidate.stratum, not longer_wins]
        if partners:
            yield partners.popleft()
            yield candidate
        else:
            waiting[candidate.stratum, longer_wins].append(candidate)


class _EvenErrors:
    """Draws with individual probabilities of success, whose number of successes is about the sum of the probabilities.

    Systematic sampling in blocks: a draw succeeds if the running total of the probabilities, from a random start,
    passes a whole number. Each block has a new start, so that repeating probabilities don't fall into a pattern.
    """

    _BLOCK = 20

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._total = 0.0
        self._left = 0

    def draw(self, probability: float) -> bool:
        if not self._left:
            self._total, self._left = self._rng.random(), self._BLOCK
        before = int(self._total)
        self._total += probability
        self._left -= 1
        return int(self._total) > before
