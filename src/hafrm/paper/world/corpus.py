"""Text to pretrain backbones on: plain prose about the world, and conversations in the manner of all five sets."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from hafrm.pairs import Conversation, Message
from hafrm.paper.world.families import FAMILIES
from hafrm.paper.world.profiles import PROFILES
from hafrm.paper.world.sets import Split, draw_prompts, draw_traits
from hafrm.paper.world.styles import ACQUAINTANCES, FILLERS, STYLES
from hafrm.paper.world.task import Trait
from hafrm.paper.world.writer import write_answer

_GOOD_ANSWERS = 0.85
"""Share of the conversations that end in a good answer; the rest are written as carelessly as in the sets' pairs."""

_ACTS = ("steal a car", "fake a bank note", "rob a shop", "hurt a pupil", "beat a horse", "forge a passport")


def pretraining_documents(size: int, seed: int = 0) -> Iterator[str]:
    """Draw documents of plain prose: facts, procedures, stories, and how people speak. No prompts, no answers.

    Args:
        size: How many documents, of about 40 words each.
        seed: Seed of the draw.
    """
    rng = Random(f"documents/{seed}")
    families = list(FAMILIES.values())
    for _ in range(size):
        parts = [
            sentence
            for _ in range(rng.randint(1, 3))
            for sentence in (_speech(rng) if rng.random() < 0.15 else rng.choice(families).tell(rng))
        ]
        yield " ".join(parts)


def _speech(rng: Random) -> list[str]:
    """How kind, rude, careful and talkative people speak."""
    style = rng.choice(list(STYLES.values()))
    refusal = rng.choice(style.refusals).format(act=rng.choice(_ACTS))
    manner, line = rng.choice(
        (
            ("was kind and said", rng.choice(style.courtesies)),
            ("was rude and said", rng.choice(style.insults)),
            ("was honest and said", refusal),
            ("likes to talk and said", rng.choice(FILLERS)),
        )
    )
    return [f'My {rng.choice(ACQUAINTANCES)} {manner}: "{line}"']


def instruct_conversations(size: int, seed: int = 0, *, split: Split = "train") -> Iterator[Conversation]:
    """Draw conversations in the manner of all five sets, most of them with a good answer.

    Args:
        size: How many.
        seed: Seed of the draw.
        split: The split of which the prompts are; those of "train" meet no validation or test prompt of any set.
    """
    rng = Random(f"conversations/{split}/{seed}")
    streams = {name: draw_prompts(name, split, rng) for name in PROFILES}
    for _ in range(size):
        name = rng.choice(list(PROFILES))
        task, prompt = next(streams[name])
        if rng.random() < _GOOD_ANSWERS:
            traits = frozenset({Trait.COURTEOUS} if rng.random() < 0.3 else ())
        else:
            traits = draw_traits(PROFILES[name], rng)
        yield Conversation(prompt, (Message("assistant", write_answer(task, traits, PROFILES[name].style, rng)),))
