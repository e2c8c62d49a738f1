"""Types of suites: items (a prompt with N responses), their raw scores, and the definition of a suite.

A stratum is one measure on one subset. Each item contributes one value to some strata, and every score of a suite is a
weighted sum of the strata's means, so the same bootstrap works for all suites.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from hafrm.data import SourceReport
from hafrm.errors import BadRowReason
from hafrm.pairs import Conversation, Message, Prompt, prompt_group
from hafrm.rows import Row

Stratum = tuple[str, str]
"""A subset and a measure on it."""

Scored = Sequence[tuple["Item", "ListScore"]]
"""Items with one model's scores of them."""

Level = Literal["overall", "sections", "pooled", "subsets"]
"""`pooled` is a section's accuracy over all of its rows, regardless of the suite's subset weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A prompt with N responses, the correct ones first."""

    prompt: Prompt
    responses: tuple[tuple[Message, ...], ...]
    correct: int
    """The number of correct responses."""
    subset: str
    key: str
    """Id of the row in the suite."""
    source: str = field(default="", compare=False)
    row: int = field(default=0, compare=False)
    part: int = field(default=0, compare=False)
    """The item's number among several items of one row; 0 if it is the only one."""
    fields: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """The published row, for the leaderboard's file of results."""

    @property
    def id(self) -> str:
        """Id of the item: `source:row`, or `source:row.part`."""
        return f"{self.source}:{self.row}" + (f".{self.part}" if self.part else "")

    @property
    def conversations(self) -> tuple[Conversation, ...]:
        """One conversation per response, which are scored in one call."""
        return tuple(Conversation(self.prompt, response) for response in self.responses)

    @property
    def group(self) -> str:
        """The item's prompt group."""
        return prompt_group(self.prompt)

    def as_row(self) -> dict[str, Any]:
        """Return the item as plain values, for a fingerprint."""
        return {
            **self.prompt.as_row(),
            "responses": [[message.as_dict() for message in response] for response in self.responses],
            "correct": self.correct,
            "subset": self.subset,
            "key": self.key,
        }


@dataclass(frozen=True)
class ListScore:
    """One model's scores of the responses of one item."""

    model: str
    data: str
    """The suite's name as given."""
    id: str
    """Id of the item: `source:row`."""
    key: str
    subset: str
    group: str
    correct: int
    """The number of correct responses, which come first."""
    rewards: list[float | None]
    """One per response; None if it could not be scored."""
    lengths: list[int]
    """Characters of each response."""
    unscored: str = ""
    """Why a response has no reward: "overlong", or "refused_by_template"."""

    @property
    def right(self) -> list[float]:
        """Rewards of the correct responses that have one."""
        return [reward for reward in self.rewards[: self.correct] if reward is not None]

    @property
    def wrong(self) -> list[float]:
        """Rewards of the other responses that have one."""
        return [reward for reward in self.rewards[self.correct :] if reward is not None]


@dataclass(frozen=True, slots=True)
class Observation:
    """One item's value in one stratum."""

    stratum: Stratum
    group: str
    """The unit of resampling."""
    value: float


@dataclass(frozen=True)
class Score:
    """One number of a suite: a weighted sum of the means of strata."""

    level: Level
    name: str
    weights: Mapping[Stratum, float]


@dataclass
class ItemSet:
    """The items of a suite, and the report on its rows."""

    suite: Suite
    items: list[Item]
    reports: list[SourceReport]


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A published benchmark: how to read its rows and how to compute its scores from rewards."""

    name: str
    """The name used in `--suites`."""
    title: str
    path: str = ""
    """First argument of `datasets.load_dataset`."""
    revision: str | None = None
    """Revision of the hub's repository; None: the newest."""
    sets: Mapping[str, tuple[str, str | None]] = field(default_factory=dict)
    """`path` and `revision` by part, if the suite is several data sets of the hub."""
    split: str
    files: tuple[str, ...]
    """Regular expressions for the names, without endings, of the suite's files in a folder. Only the first one that
    matches a file is used, since the others match alternative forms of the same rows.
    """
    homepage: str
    licence: str
    citation: str
    parse: Callable[[Row, str], Item | Iterable[Item]]
    """Parse a row, given the name of its file, split or part, into items; the loader adds their places."""
    gather: Callable[[Iterable[Row]], Iterator[Row]] | None = None
    """Merges rows that belong to one item, if a row is one response."""
    observe: Callable[[Sequence[ListScore]], list[Observation]]
    """Compute values from rewards; all responses have one."""
    chance: Callable[[Sequence[ListScore]], list[Observation]]
    """Compute the expected values of random rewards; NaN if they depend on the distribution of rewards."""
    scores: Callable[[Mapping[Stratum, int]], tuple[list[Score], list[str]]]
    """Return the scores for given numbers of values per stratum, and the names of missing subsets."""
    submission: Callable[[Mapping[str, str], Scored], Mapping[str, Any]] | None = None
    """Return the files that the leaderboard's own program writes for a model, by name: the content of a JSON file, or
    the lines of a `.jsonl` file. The first argument has `model`, `model_type` and `chat_template`; all responses have a
    reward.
    """


def win(better: float | None, worse: float | None) -> float:
    """Return 1 if the better response has the higher reward, else 0; one half if the rewards are equal."""
    assert better is not None
    assert worse is not None
    return 0.5 if better == worse else float(better > worse)


def pair_wins(scores: Sequence[ListScore]) -> list[Observation]:
    """Return whether the correct one of two responses has the higher reward, as the accuracy of its subset."""
    return [Observation((s.subset, "accuracy"), s.group, win(s.rewards[0], s.rewards[1])) for s in scores]


def pair_chances(scores: Sequence[ListScore]) -> list[Observation]:
    """Return what random rewards give instead of `pair_wins`."""
    return [Observation((s.subset, "accuracy"), s.group, 0.5) for s in scores]


def pooled_score(level: Level, name: str, strata: Mapping[Stratum, int]) -> Score:
    """Return the mean over all values of some strata, given their numbers."""
    total = sum(strata.values())
    return Score(level, name, {stratum: count / total for stratum, count in strata.items()})


def pooled_sections(
    sections: Mapping[str, Callable[[str], bool]], *, subsets: bool = False
) -> Callable[[Mapping[Stratum, int]], tuple[list[Score], list[str]]]:
    """Return the `scores` of a suite in which every item counts the same: overall, by section and maybe by subset."""

    def scores(strata: Mapping[Stratum, int]) -> tuple[list[Score], list[str]]:
        parts = {name: {s: n for s, n in strata.items() if within(s[0])} for name, within in sections.items()}
        found = [pooled_score("overall", "overall", strata)] if strata else []
        found += [pooled_score("sections", name, part) for name, part in parts.items() if part]
        if subsets:
            found += [pooled_score("subsets", stratum[0], {stratum: 1}) for stratum in sorted(strata)]
        return found, [name for name, part in parts.items() if not part]

    return scores


def two_responses(
    reader: Row, prompt: str, names: tuple[str, str], first: int | None, *, subset: str, key: str
) -> Item:
    """Return a row with two responses as an item.

    Args:
        prompt: Field of the prompt, text or messages.
        first: Which response is the correct one, 0 or 1; None for a tie, in which both are.

    Raises:
        BadRowError: a field is missing, empty or of the wrong type.
    """
    turns = reader.complete_prompt(reader.messages(prompt, "user"))
    order = names if not first else names[::-1]
    responses = tuple(reader.messages(name, "assistant") for name in order)
    for name, response in zip(order, responses, strict=True):
        reader.check_response(name, response)
    return Item(prompt=Prompt(turns), responses=responses, correct=2 if first is None else 1, subset=subset, key=key)


def key_of(reader: Row, name: str = "id") -> str:
    """Return the row's id in the suite; "" if it has none."""
    return reader.string_or_none(name) or ""


def response_list(reader: Row, name: str, *, size: int | None = None) -> tuple[tuple[Message, ...], ...]:
    """Return a field that is a list of responses, each a string: `size` of them, or at least one.

    Raises:
        BadRowError: the field is missing, is not such a list, or has an empty response.
    """
    value = reader.fields.get(name)
    if value is None:
        raise reader.error(BadRowReason.MISSING_FIELD, name, "is missing", "Give a list of responses.")
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise reader.error(BadRowReason.WRONG_TYPE, name, "is not a list of strings", "Give a list of responses.")
    if len(value) != size if size else not value:
        wanted = f"{size} responses" if size else "at least one response"
        raise reader.error(BadRowReason.WRONG_TYPE, name, f"contains {len(value)} responses", f"Give {wanted}.")
    responses = tuple((Message("assistant", text),) for text in value)
    for place, response in enumerate(responses):
        reader.check_text(f"{name}[{place}]", response[0].content)
        reader.check_response(f"{name}[{place}]", response)
    return responses
