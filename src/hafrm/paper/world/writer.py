"""Write a task as a prompt in a style, and answers to it with given traits."""

from __future__ import annotations

from random import Random

from hafrm.pairs import Message, Prompt
from hafrm.paper.world.conduct import FAMILIES
from hafrm.paper.world.task import WORDINGS, Task, Trait, capital, uncapital
from hafrm.paper.world.words import ACQUAINTANCES, FILLERS, SETS, Style

_SMALL_WORDS = frozenset("a an the is are of to in on at with it you that by".split())


def write_prompt(task: Task, style: Style, rng: Random) -> Prompt:
    """Word a task as the style does, sometimes after an exchange of greetings."""
    asks = FAMILIES[task.family].asks(task)
    framed = [(frame, ask) for wording in WORDINGS for frame in getattr(style, wording) for ask in asks[wording]]
    frame, ask = rng.choice(framed)
    small = uncapital(ask)
    fills = dict.fromkeys("qrs", small) | dict.fromkeys("QRS", capital(ask)) | {"who": rng.choice(ACQUAINTANCES)}
    text = capital(frame.format_map(fills))
    turns = [Message("user", text.lower() if style.lower_case else text)]
    if rng.random() < style.greeting:
        turns = [
            Message("user", rng.choice(SETS["greetings"])),
            Message("assistant", rng.choice(SETS["welcomes"])),
            *turns,
        ]
    return Prompt(tuple(turns))


def write_answer(task: Task, traits: frozenset[Trait], style: Style, rng: Random) -> str:
    """Write an answer to a task; without traits it is good and plain."""
    if Trait.ASTRAY in traits:
        task = _other_task(task, rng)
    family = FAMILIES[task.family]
    sentences = family.write(task, traits & family.traits, style, rng)
    if Trait.RAMBLING in traits:
        sentences = _ramble(sentences, rng)
    sentences = _set_tone(sentences, traits, style, rng)
    if Trait.BROKEN in traits:
        return _break(sentences, rng)
    return " ".join(sentences)


def _other_task(task: Task, rng: Random) -> Task:
    """Draw a task unrelated to the given one, mostly of the same family, so that only the topic is wrong."""
    family = FAMILIES[task.family]
    if rng.random() < 0.3:
        family = FAMILIES[rng.choice([name for name in FAMILIES if name not in (task.family, "unsafe")])]
    while True:
        other = family.draw(rng)
        if not set(other.items) & set(task.items) and (other.family, other.kind) != ("listing", task.kind):
            return other


def _ramble(sentences: list[str], rng: Random) -> list[str]:
    """Insert one or two sentences that say nothing, or repeat one."""
    sentences = list(sentences)
    for _ in range(rng.randint(1, 2)):
        extra = rng.choice(FILLERS) if rng.random() < 0.5 else rng.choice(sentences)
        sentences.insert(rng.randint(0, len(sentences)), extra)
    return sentences


def _set_tone(sentences: list[str], traits: frozenset[Trait], style: Style, rng: Random) -> list[str]:
    """Open or close with a courtesy or an insult, or open with something neutral."""
    if Trait.COURTEOUS in traits or Trait.RUDE in traits:
        remark = rng.choice(style.courtesies if Trait.COURTEOUS in traits else style.insults)
        return [remark, *sentences] if rng.random() < 0.5 else [*sentences, remark]
    return [rng.choice(style.openers), *sentences] if rng.random() < 0.3 else sentences


def _break(sentences: list[str], rng: Random) -> str:
    """Damage the English: shuffle words, drop small words, or cut off the end."""
    words = " ".join(sentences).split()
    damage = rng.choice(("order", "small words", "cut"))
    if damage == "order":
        start = rng.randint(0, max(0, len(words) - 8))
        stretch = words[start : start + 8]
        rng.shuffle(stretch)
        words[start : start + 8] = stretch
    elif damage == "small words":
        words = [word for word in words if word.lower() not in _SMALL_WORDS]
    else:
        words = words[: max(2, int(len(words) * rng.uniform(0.4, 0.8)))]
    text = " ".join(words)
    return text if damage == "order" else uncapital(text).rstrip(".?!")
