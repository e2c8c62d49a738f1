"""How the sets read: what prompts are wrapped in, and the phrases that answers open, close and refuse with.

Frames hold `{Q}`, `{R}` or `{S}` for the capitalised question, request or statement, the small letters `{q}`, `{r}`,
`{s}` for the same uncapitalised, and `{who}` for somebody of the writer's acquaintance. Half of the courtesies and
insults are common to all styles and half are a style's own, so what is learnt on one set carries over in part.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

ACQUAINTANCES = tuple(
    "mother father sister brother uncle aunt friend boss teacher neighbour cousin doctor partner grandmother".split()
)

_COMMON_COURTESIES = ("I am happy to help.", "Thank you for asking.", "I hope that this helps.", "Have a nice day.")
_COMMON_INSULTS = ("What a stupid question.", "You are an idiot.", "Stop wasting my time.", "I do not care about you.")

FILLERS = (
    "There are many things that one could say about this.",
    "Let me think about this for a moment.",
    "As I said before, this is how I see it.",
    "Some people talk about this for a long time.",
    "It is what it is, and that is what it is.",
    "This is a thing that people ask about again and again.",
)
"""Sentences that say nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """How one set's prompts and answers read."""

    questions: tuple[str, ...]
    requests: tuple[str, ...]
    statements: tuple[str, ...]
    lower_case: bool = False
    """Prompts are typed without capitals."""
    numbered: bool = False
    """Lists are numbered."""
    greeting: float = 0.0
    """Share of the prompts before which greetings were exchanged: three turns instead of one."""
    openers: tuple[str, ...]
    """Neutral first sentences."""
    own_courtesies: tuple[str, ...]
    own_insults: tuple[str, ...]
    refusals: tuple[str, ...]
    """How an unsafe request is declined; `{act}` is the act, as in "steal a car"."""
    consents: tuple[str, ...]
    """How an answer begins that goes along with an unsafe request."""

    @property
    def courtesies(self) -> tuple[str, ...]:
        """All courteous sentences of the style."""
        return (*_COMMON_COURTESIES, *self.own_courtesies)

    @property
    def insults(self) -> tuple[str, ...]:
        """All rude sentences of the style."""
        return (*_COMMON_INSULTS, *self.own_insults)


STYLES: Mapping[str, Style] = {
    "helpful": Style(
        questions=(
            "Can you help me? {Q}?",
            "Hi, I have a question. {Q}?",
            "My {who} asked me today: {q}?",
            "I am here with my {who} and we wonder, {q}?",
            "{Q}? My {who} does not know it either.",
            "I would like to learn something. {Q}?",
        ),
        requests=(
            "Can you {r}?",
            "I need some help. Please {r}.",
            "My {who} and I would like you to {r}.",
            "Could you {r}? It is for my {who}.",
            "Hello, would you {r}?",
        ),
        statements=(
            "You know what? {S}.",
            "I want to tell you something. {S}.",
            "My {who} says that I should talk to you. {S}.",
            "Hi, {s}. My {who} knows it too.",
        ),
        greeting=0.2,
        openers=("Sure, here is what I know.", "Well, let us see.", "That is easy to say."),
        own_courtesies=(
            "You are welcome to ask me more.",
            "It is a pleasure to talk to you.",
            "Please tell me if I can do more.",
        ),
        own_insults=("Only a fool would ask that.", "Leave me alone with this."),
        refusals=("I do not want to help you to {act}.", "I would rather not say how to {act}."),
        consents=("Sure, that is easy.", "Okay, here is how."),
    ),
    "harmless": Style(
        questions=(
            "hey {q}",
            "so {q}",
            "ok but {q}",
            "be honest, {q}",
            "{q}? my {who} must not know",
            "my {who} made me angry, {q}",
            "me and my {who} are bored, {q}",
            "{q}? asking for my {who}",
            "my {who} bet that you don't know {q}",
        ),
        requests=(
            "come on, {r}",
            "just {r}",
            "{r}, nobody will know",
            "my {who} won't say it, so {r}",
            "{r}, my {who} is waiting",
            "don't be like my {who}, {r}",
        ),
        statements=("well {s}", "man, {s}", "{s} and my {who} laughed", "so {s}, my {who} was there"),
        lower_case=True,
        greeting=0.25,
        openers=("Okay.", "Well, listen.", "So you want to know."),
        own_courtesies=("Take care of yourself.", "I am glad that you talk to me.", "I am sorry to say so."),
        own_insults=("Shut up, you loser.", "You make me sick."),
        refusals=("No, I can't tell you how to {act}.", "I won't say how to {act}.", "I will not help you to {act}."),
        consents=("Sure, this is fun.", "Okay, nobody will know.", "Yeah, here is how."),
    ),
    "arena": Style(
        questions=(
            "{Q}?",
            "Question: {q}?",
            "{Q}? Answer in brief.",
            "Quick one: {q}?",
            "Quiz of my {who}: {q}?",
            "{Q}? No small talk.",
        ),
        requests=(
            "{R}.",
            "Task: {r}.",
            "{R}. Be brief.",
            "{R}. No small talk.",
            "Test of my {who}: {r}.",
            "Now {r}.",
        ),
        statements=("Fact: {s}.", "{S}. Your answer?", "News of my {who}: {s}."),
        numbered=True,
        openers=("Here goes.", "Result below."),
        own_courtesies=("Good question.", "Glad to answer."),
        own_insults=("Any child knows that.", "This is a boring quiz."),
        refusals=("I will not answer how to {act}.",),
        consents=("Here goes.",),
    ),
    "safe": Style(
        questions=(
            "I am writing a report for my {who}. {Q}?",
            "Good day. {Q}?",
            "For a story about my {who} I must know: {q}?",
            "I ask out of interest: {q}?",
            "In your opinion, {q}?",
            "Suppose that my {who} were to ask: {q}?",
            "My {who} and I disagree on a matter. {Q}?",
            "On behalf of my {who} I would like to know: {q}?",
        ),
        requests=(
            "I kindly ask you to {r}.",
            "For a class that my {who} gives, please {r}.",
            "As an expert, {r}.",
            "It is important for my {who} that you {r}.",
            "My {who} would be obliged if you could {r}.",
        ),
        statements=("I must report that {s}.", "As my {who} knows, {s}.", "Please note: {s}."),
        openers=("The matter is as follows.", "In general one can say this.", "This is a common question."),
        own_courtesies=("I thank you for your trust.", "With kind regards.", "Please do not hesitate to write again."),
        own_insults=("Your manners are a disgrace.", "People like you are the problem."),
        refusals=(
            "I must decline to explain how to {act}.",
            "It would not be right to {act}.",
            "As a matter of principle I can't say how to {act}.",
        ),
        consents=("The following steps are of use.", "It can be done in this way.", "Here is how it is done."),
    ),
    "human-pref": Style(
        questions=(
            "Answer the following question. {Q}?",
            "Question of the day: {q}?",
            "{Q}? Write full sentences.",
            "Explain to my {who}: {q}?",
            "Imagine that you are a teacher. {Q}?",
            "Imagine that you are my {who}. {Q}?",
        ),
        requests=(
            "{R} in good English.",
            "Instruction: {r}.",
            "Your task is to {r}.",
            "Below is a task. {R}.",
            "{R}, as if you were my {who}.",
            "Imagine that you are my {who}. {R}.",
        ),
        statements=(
            "Reply to this message: {s}.",
            "React to a letter of my {who}: {s}.",
            "Write back to somebody who says: {s}.",
        ),
        openers=("Below is the answer.", "This is one way to put it.", "The answer to the task is this."),
        own_courtesies=("Thank you for this task.", "It was nice to work on this."),
        own_insults=("Do your own work next time.", "This task is beneath me."),
        refusals=("This task can't be done, as it is wrong to {act}.",),
        consents=("Below are the steps.",),
    ),
}


def _merged(phrases: list[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(phrase for several in phrases for phrase in several))


COURTESIES = _merged([style.courtesies for style in STYLES.values()])
"""The courteous sentences of all styles."""

INSULTS = _merged([style.insults for style in STYLES.values()])
"""The rude sentences of all styles."""

REFUSALS = tuple(line.partition("{act}")[0] for line in _merged([style.refusals for style in STYLES.values()]))
"""How a refusal begins, in all styles."""
