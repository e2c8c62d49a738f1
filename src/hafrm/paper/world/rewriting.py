"""Rewriting: put a sentence into the past, deny it, ask it, shorten it, make an order polite."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random

from hafrm.paper.world.styles import Style
from hafrm.paper.world.task import Family, Forms, Grade, Task, Trait, make_forms
from hafrm.paper.world.text import Text, capital

_SUBJECTS = tuple(
    "the farmer|the baker|the teacher|the old man|the girl|the boy|my sister|my uncle|the clerk|the neighbour".split(
        "|"
    )
)
_PAST = {
    "carry": "carried",
    "wash": "washed",
    "sell": "sold",
    "open": "opened",
    "paint": "painted",
    "find": "found",
    "clean": "cleaned",
    "bring": "brought",
    "hold": "held",
    "move": "moved",
    "fix": "fixed",
    "watch": "watched",
}
_OBJECTS = tuple(
    "the basket|the box|the door|the table|the wagon|the ladder|the bottle|the picture|the chair|the bucket".split("|")
)
_TAILS = tuple(
    "in the morning|in the evening|at the market|near the bridge|behind the church|on Sundays|before lunch"
    "|in the rain".split("|")
)


def _third(verb: str) -> str:
    if verb.endswith("y"):
        return verb[:-1] + "ies"
    return verb + ("es" if verb.endswith(("sh", "ch", "x")) else "s")


@dataclass(frozen=True, slots=True)
class _Clause:
    """A sentence's parts."""

    subject: str
    verb: str
    object: str
    tail: str

    def shapes(self) -> dict[str, str]:
        """The clause in every shape that a prompt can ask for, and as prompts show it ("plain", "order")."""
        who, verb, rest = self.subject, self.verb, " ".join(part for part in (self.object, self.tail) if part)
        return {
            "plain": f"{who} {_third(verb)} {rest}.",
            "order": f"{verb} {rest}.",
            "past": f"{who} {_PAST[verb]} {rest}.",
            "future": f"{who} will {verb} {rest}.",
            "denial": f"{who} does not {verb} {rest}.",
            "question": f"does {who} {verb} {rest}?",
            "courtesy": f"could you please {verb} {rest}?",
            "short": f"{who} {_third(verb)} {self.object}.",
        }

    def core(self, kind: str) -> str:
        """The words that show that the rewriting was done."""
        return {
            "past": _PAST[self.verb],
            "future": f"will {self.verb}",
            "denial": f"does not {self.verb}",
            "question": f"does {self.subject} {self.verb}",
            "courtesy": f"could you please {self.verb}",
            "short": _third(self.verb),
        }[kind]

    def parts(self, kind: str) -> list[str]:
        """What of the sentence must still be there."""
        subject = [] if kind == "courtesy" else [self.subject]
        return [*subject, self.object, *([] if kind == "short" else [self.tail])]


_LINES: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "past": (
        ('what is the past tense of "{clause}"',),
        ('put this into the past tense: "{clause}"', 'say that it happened long ago: "{clause}"'),
    ),
    "future": (
        ('what is the future tense of "{clause}"',),
        ('put this into the future tense: "{clause}"', 'say that it will happen: "{clause}"'),
    ),
    "denial": (
        ('what is the opposite of "{clause}"',),
        ('deny this: "{clause}"', 'make this sentence negative: "{clause}"'),
    ),
    "question": (
        ('how do I ask whether "{clause}"',),
        ('turn this into a question: "{clause}"', 'make a question of this: "{clause}"'),
    ),
    "short": (
        ('what is a shorter form of "{clause}"',),
        ('make this shorter: "{clause}"', 'shorten this sentence: "{clause}"'),
    ),
    "courtesy": (
        ('what is a polite way to say "{clause}"',),
        ('make this order polite: "{clause}"', 'say this more politely: "{clause}"'),
    ),
}


def _either(words: tuple[str, ...]) -> str:
    return "|".join(map(re.escape, words))


_VERBS = {form: verb for verb in _PAST for form in (verb, _third(verb))}
_CLAUSE = re.compile(
    rf"(?:(?P<subject>{_either(_SUBJECTS)}) )?(?P<verb>{_either(tuple(_VERBS))}) (?P<object>{_either(_OBJECTS)})"
    rf" (?P<tail>{_either(_TAILS)})\.",
    re.IGNORECASE,
)


WORD_CLASSES: Mapping[str, str] = (
    {thing.split()[-1]: "<object>" for thing in _OBJECTS}
    | {who.split()[-1]: "<subject>" for who in _SUBJECTS}
    | dict.fromkeys(_PAST, "<verb>")
    | {_third(verb): "<verbs>" for verb in _PAST}
    | dict.fromkeys(_PAST.values(), "<verbed>")
)
"""The words that grammar allows in each other's place."""


class Rewriting(Family):
    """Rewrite a quoted sentence."""

    name = "rewriting"
    traits = frozenset({Trait.WRONG, Trait.PARTIAL})

    def __init__(self) -> None:
        self.forms: Mapping[str, Forms] = {
            kind: make_forms({"clause": r'[^"]+'}, questions=questions, requests=requests)
            for kind, (questions, requests) in _LINES.items()
        }

    def draw(self, rng: Random) -> Task:
        """A rewriting of a random sentence."""
        kind = rng.choice(list(_LINES))
        subject = "" if kind == "courtesy" else rng.choice(_SUBJECTS)
        return Task(self.name, kind, (subject, rng.choice(list(_PAST)), rng.choice(_OBJECTS), rng.choice(_TAILS)))

    def slots(self, task: Task) -> dict[str, str]:
        """The sentence as the prompt quotes it."""
        shapes = _Clause(*task.items).shapes()
        return {"clause": capital(shapes["order" if task.kind == "courtesy" else "plain"])}

    def task(self, kind: str, values: Mapping[str, str]) -> Task | None:
        """The sentence that a prompt quotes, taken apart."""
        found = _CLAUSE.fullmatch(values["clause"])
        if not found or bool(found["subject"]) == (kind == "courtesy"):
            return None
        tail = next(tail for tail in _TAILS if tail.lower() == found["tail"].lower())
        return Task(self.name, kind, (found["subject"] or "", _VERBS[found["verb"]], found["object"], tail))

    def write(self, task: Task, traits: frozenset[Trait], style: Style, rng: Random) -> list[str]:
        """The sentence rewritten; in another shape than asked, or with a part lost."""
        subject, verb, thing, tail = task.items
        if Trait.PARTIAL in traits:
            thing, tail = ("it", tail) if task.kind == "short" or rng.random() < 0.3 else (thing, "")
        kind = task.kind
        if Trait.WRONG in traits:
            others = ["order"] if kind == "courtesy" else ["plain", "past", "future", "denial", "question"]
            kind = rng.choice([other for other in others if other != kind])
        return [capital(_Clause(subject, verb, thing, tail).shapes()[kind])]

    def grade(self, task: Task, text: Text) -> Grade:
        """Whether the rewriting was done, on the sentence given, and nothing of it is lost."""
        clause = _Clause(*task.items)
        parts = clause.parts(task.kind)
        kept = text.count(parts)
        same_verb = text.says_any((clause.verb, _third(clause.verb), _PAST[clause.verb]))
        if kept + same_verb < (len(parts) + 1) / 2:
            return Grade(0.0, 0.0, 0.0)
        done = text.says(clause.core(task.kind)) and not (task.kind == "short" and text.says(clause.tail))
        return Grade(float(done), 1.0, kept / len(parts))

    def tell(self, rng: Random) -> list[str]:
        """One event in several shapes."""
        _, verb, thing, tail = self.draw(rng).items
        shapes = _Clause(rng.choice(_SUBJECTS), verb, thing, tail).shapes()
        return [capital(shapes[kind]) for kind in rng.sample(["plain", "past", "future", "denial", "question"], 2)]
