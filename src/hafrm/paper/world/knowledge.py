"""What is true in the world: tables of facts and lists of things. Data alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Relation:
    """One kind of fact: a value for each subject. Lines hold `{subject}`, statements `{value}` as well."""

    kind: str
    """The kind of the subjects: "animal", "country" ..."""
    values: Mapping[str, str]
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    requests: tuple[str, ...]
    gap: str
    """What somebody who does not know the fact is unsure of."""


@dataclass(frozen=True, slots=True)
class Scale:
    """Things in a known order."""

    low: str
    high: str
    things: tuple[str, ...]


def _columns(table: str) -> list[dict[str, str]]:
    """Columns two and on of a table of words, each by the first."""
    rows = [line.split() for line in table.strip().splitlines()]
    return [{row[0]: row[i] for row in rows} for i in range(1, len(rows[0]))]


_HOME, _FOOD, _YOUNG = _columns("""
    fox       forest    mice     cub
    cow       barn      grass    calf
    horse     stable    hay      foal
    sheep     meadow    clover   lamb
    pig       sty       roots    piglet
    goat      hills     leaves   kid
    cat       house     fish     kitten
    lion      plain     meat     cub
    bear      cave      honey    cub
    wolf      forest    meat     pup
    deer      forest    leaves   fawn
    hen       barn      seeds    chick
    eagle     hills     mice     eaglet
    owl       tree      mice     owlet
    frog      pond      flies    tadpole
    whale     sea       shrimp   calf
    seal      sea       fish     pup
    camel     desert    grass    calf
    monkey    jungle    nuts     infant
    elephant  plain     leaves   calf
    kangaroo  plain     grass    joey
    swan      pond      weeds    cygnet
    squirrel  tree      nuts     pup
    mouse     house     seeds    pinkie
""")

_CAPITAL, _CONTINENT = _columns("""
    France    Paris       Europe
    Spain     Madrid      Europe
    Italy     Rome        Europe
    Germany   Berlin      Europe
    Poland    Warsaw      Europe
    Greece    Athens      Europe
    Norway    Oslo        Europe
    Portugal  Lisbon      Europe
    Egypt     Cairo       Africa
    Kenya     Nairobi     Africa
    Ghana     Accra       Africa
    Morocco   Rabat       Africa
    Senegal   Dakar       Africa
    Uganda    Kampala     Africa
    Peru      Lima        America
    Chile     Santiago    America
    Cuba      Havana      America
    Canada    Ottawa      America
    Ecuador   Quito       America
    Japan     Tokyo       Asia
    China     Beijing     Asia
    Nepal     Kathmandu   Asia
    Thailand  Bangkok     Asia
    Jordan    Amman       Asia
""")

_PLACE, _TOOL = _columns("""
    baker      bakery     oven
    farmer     field      plough
    teacher    school     chalk
    doctor     hospital   needle
    carpenter  workshop   hammer
    painter    studio     brush
    cook       kitchen    pan
    tailor     shop       thread
    fisherman  boat       net
    gardener   garden     spade
    miner      mine       lamp
    pilot      airport    map
    judge      court      law
    smith      forge      anvil
    librarian  library    catalogue
    clerk      office     pen
    musician   hall       violin
    mason      quarry     chisel
""")

_FOUNDER, _RIVER = _columns("""
    Veldra    Orlan     Asper
    Ostrel    Mirabel   Blenn
    Lorvik    Tovin     Corrin
    Pellan    Selka     Dulse
    Drossel   Brannoc   Evra
    Hathmoor  Ilsa      Fenna
    Calvost   Quentor   Glim
    Ezrin     Rhosyn    Hesk
    Gorlan    Davor     Irra
    Kestrin   Elmira    Jova
    Norwen    Fergal    Kell
    Tamsel    Winna     Lumen
""")

(_COLOUR,) = _columns("""
    snow      white
    grass     green
    coal      black
    honey     yellow
    chocolate brown
    blood     red
    lavender  purple
    steel     grey
    milk      white
    mud       brown
    moss      green
    gold      yellow
""")

RELATIONS: Mapping[str, Relation] = {
    "home": Relation(
        "animal",
        _HOME,
        ("The {subject} lives in the {value}.", "The home of the {subject} is the {value}."),
        ("where does the {subject} live", "what is the home of the {subject}"),
        ("tell me where the {subject} lives", "name the home of the {subject}"),
        "where the {subject} lives",
    ),
    "food": Relation(
        "animal",
        _FOOD,
        ("The {subject} eats {value}.", "The food of the {subject} is {value}."),
        ("what does the {subject} eat", "what is the food of the {subject}"),
        ("tell me what the {subject} eats", "name the food of the {subject}"),
        "what the {subject} eats",
    ),
    "young": Relation(
        "animal",
        _YOUNG,
        ("A young {subject} goes by the name of {value}.", "The word for a young {subject} is {value}."),
        ("what is a young {subject} called", "what do people call a young {subject}"),
        ("tell me what a young {subject} is called", "give me the word for a young {subject}"),
        "what a young {subject} is called",
    ),
    "capital": Relation(
        "country",
        _CAPITAL,
        ("The capital of {subject} is {value}.", "{value} is the capital of {subject}."),
        ("what is the capital of {subject}", "which city is the capital of {subject}"),
        ("name the capital of {subject}", "tell me the capital of {subject}"),
        "the capital of {subject}",
    ),
    "continent": Relation(
        "country",
        _CONTINENT,
        ("{subject} lies in {value}.", "{subject} is a country in {value}."),
        ("on which continent does {subject} lie", "where in the world is {subject}"),
        ("name the continent of {subject}", "tell me where {subject} lies"),
        "the continent of {subject}",
    ),
    "place": Relation(
        "job",
        _PLACE,
        ("The {subject} works in the {value}.", "The {value} is where the {subject} works."),
        ("where does the {subject} work", "in which place does the {subject} work"),
        ("tell me where the {subject} works", "name the place where the {subject} works"),
        "where the {subject} works",
    ),
    "tool": Relation(
        "job",
        _TOOL,
        ("The {subject} works with the {value}.", "The tool of the {subject} is the {value}."),
        ("what does the {subject} work with", "what is the tool of the {subject}"),
        ("tell me what the {subject} works with", "name the tool of the {subject}"),
        "the tool of the {subject}",
    ),
    "founder": Relation(
        "town",
        _FOUNDER,
        ("{subject} was founded by {value}.", "{value} founded the town of {subject}."),
        ("who founded {subject}", "who was the founder of {subject}"),
        ("name the founder of {subject}", "tell me who founded {subject}"),
        "who founded {subject}",
    ),
    "river": Relation(
        "town",
        _RIVER,
        ("{subject} lies on the river {value}.", "The river {value} runs through {subject}."),
        ("which river runs through {subject}", "on which river does {subject} lie"),
        ("name the river of {subject}", "tell me which river runs through {subject}"),
        "the river of {subject}",
    ),
    "colour": Relation(
        "thing",
        _COLOUR,
        ("The colour of {subject} is {value}.", "The usual colour of {subject} is {value}."),
        ("what is the colour of {subject}", "which colour has {subject}"),
        ("name the colour of {subject}", "tell me the colour of {subject}"),
        "the colour of {subject}",
    ),
}

KINDS: Mapping[str, tuple[str, ...]] = {
    "animal": ("home", "food", "young"),
    "country": ("capital", "continent"),
    "job": ("place", "tool"),
    "town": ("founder", "river"),
}
"""The relations of each kind of subject that one can describe."""

CATEGORIES: Mapping[str, tuple[str, ...]] = {
    name: tuple(things.split())
    for name, things in {
        "animals": "fox cow horse sheep pig goat cat lion bear wolf deer frog",
        "fruits": "apple pear plum cherry grape lemon peach banana mango melon",
        "vegetables": "carrot onion potato cabbage spinach leek bean pumpkin turnip celery",
        "colours": "red green blue yellow purple brown black white grey pink",
        "tools": "hammer saw spade needle brush chisel drill rake axe pliers",
        "drinks": "tea coffee milk juice water cocoa cider lemonade",
        "clothes": "shirt coat hat scarf sock glove dress skirt belt shoe",
        "sports": "tennis football hockey rowing boxing golf chess cricket",
        "instruments": "violin piano flute drum trumpet harp guitar cello",
        "vehicles": "car bus train tram bicycle lorry ship plane",
        "trees": "oak pine birch willow maple elm cedar poplar",
        "metals": "iron copper gold silver tin lead zinc nickel",
    }.items()
}

CATEGORIES_OF: Mapping[str, frozenset[str]] = {
    thing: frozenset(name for name, things in CATEGORIES.items() if thing in things)
    for things in CATEGORIES.values()
    for thing in things
}

SCALES: Mapping[str, Scale] = {
    "size": Scale("small", "large", tuple("mouse frog cat fox goat pig cow horse elephant whale".split())),
    "speed": Scale("slow", "fast", tuple("snail turtle walker runner bicycle car train plane rocket".split())),
    "age": Scale("young", "old", tuple("baby child pupil student parent grandparent".split())),
    "place": Scale("narrow", "wide", tuple("room house street village town country continent".split())),
    "day": Scale("early", "late", tuple("Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split())),
    "month": Scale("first", "last", tuple("January March April June July September October December".split())),
}
"""From each scale's low end to its high end."""
