"""Small talk: somebody tells what happened; a good reply feels with them and asks on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random

from hafrm.paper.world.styles import Style
from hafrm.paper.world.task import Family, Forms, Grade, Task, Trait, make_forms
from hafrm.paper.world.text import Text, sentence, table_rows


@dataclass(frozen=True, slots=True)
class _Event:
    happened: str
    glad: bool
    topic: str
    question: str


_EVENTS: Mapping[str, _Event] = {
    happened: _Event(happened, mood == "glad", topic, question)
    for happened, mood, topic, question in table_rows("""
I lost my keys           | sorry | keys     | Where did you have them last?
my dog fell ill          | sorry | dog      | Did you call the vet?
I missed my train        | sorry | train    | When does the next one leave?
my bike was stolen       | sorry | bike     | Did you go to the police?
I broke my arm           | sorry | arm      | Does it still ache?
it rained on our picnic  | sorry | picnic   | Did you all get wet?
I burnt the cake         | sorry | cake     | Will you bake another one?
my phone fell in a pond  | sorry | phone    | Can it be repaired?
I failed my driving test | sorry | test     | When can you try again?
my friend moved away     | sorry | friend   | How far away is that?
I have a bad cold        | sorry | cold     | Have you seen a doctor?
our team lost the game   | sorry | game     | What was the score?
I passed my exam         | glad  | exam     | Which mark did you get?
I found a new job        | glad  | job      | What will you do there?
my sister had a baby     | glad  | baby     | What is the name?
I won a race             | glad  | race     | How long did you train?
we bought a house        | glad  | house    | How many rooms has it got?
I got a kitten           | glad  | kitten   | What does it look like?
my garden is in bloom    | glad  | garden   | Which flowers do you grow?
I finished my painting   | glad  | painting | Where will you hang it?
I learnt to swim         | glad  | swimming | Who taught you?
our trip was lovely      | glad  | trip     | Where did you go?
my aunt came to visit    | glad  | aunt     | How long will she stay?
I baked a perfect loaf   | glad  | loaf     | May I have the recipe?
""")
}

_TIMES = ("today", "yesterday", "last night", "this week", "on Monday")

_GLAD = (
    "That is great news about your {topic}.",
    "How lovely to hear about your {topic}.",
    "What luck with your {topic}.",
)
_SORRY = (
    "That is bad luck with your {topic}.",
    "How sad to hear about your {topic}.",
    "What a pity about your {topic}.",
)
_FLAT = ("So that was your {topic}.", "I have heard about your {topic} now.")


def _feelings(lines: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(line.partition("your")[0] for line in lines)


class SmallTalk(Family):
    """React to what somebody tells."""

    name = "small-talk"
    traits = frozenset({Trait.WRONG, Trait.PARTIAL})

    def __init__(self) -> None:
        slots = {"event": tuple(_EVENTS), "time": _TIMES}
        self.forms: Mapping[str, Forms] = {"news": make_forms(slots, statements=("{event} {time}", "{time} {event}"))}

    def draw(self, rng: Random) -> Task:
        """An event and when it was."""
        return Task(self.name, "news", (rng.choice(list(_EVENTS)), rng.choice(_TIMES)))

    def slots(self, task: Task) -> dict[str, str]:
        """The event and the time."""
        return {"event": task.items[0], "time": task.items[1]}

    def task(self, kind: str, values: Mapping[str, str]) -> Task:
        """The event that a prompt tells."""
        return Task(self.name, kind, (values["event"], values["time"]))

    def write(self, task: Task, traits: frozenset[Trait], style: Style, rng: Random) -> list[str]:
        """Sympathy and a question; the wrong feeling, none, or no question."""
        event = _EVENTS[task.items[0]]
        line = rng.choice(_GLAD if event.glad != (Trait.WRONG in traits) else _SORRY)
        question = [event.question]
        if Trait.PARTIAL in traits:
            missing = rng.choice(("feeling", "question", "both"))
            line = line if missing == "question" else rng.choice(_FLAT)
            question = question if missing == "feeling" else []
        return [line.format(topic=event.topic), *question]

    def grade(self, task: Task, text: Text) -> Grade:
        """The right feeling, about the right thing, and a question that shows interest."""
        event = _EVENTS[task.items[0]]
        right, wrong = (_feelings(lines) for lines in ((_GLAD, _SORRY) if event.glad else (_SORRY, _GLAD)))
        feels, errs, asks = text.says_any(right), text.says_any(wrong), text.says(event.question)
        if not (asks or text.says(event.topic)):
            return Grade(0.0, 0.0, 0.0)
        correct = 0.5 if not (feels or errs) else float(feels) if not (feels and errs) else 0.25
        return Grade(correct, 1.0, 0.5 * (feels or errs) + 0.5 * asks)

    def tell(self, rng: Random) -> list[str]:
        """Somebody tells their news and a friend replies."""
        event = rng.choice(list(_EVENTS.values()))
        reply = rng.choice(_GLAD if event.glad else _SORRY).format(topic=event.topic)
        name = rng.choice(("Anna", "Ben", "Clara", "David", "Emma"))
        news = f'{name} said: "{sentence(event.happened + " " + rng.choice(_TIMES))}"'
        return [news, f'A friend replied: "{reply} {event.question}"']
