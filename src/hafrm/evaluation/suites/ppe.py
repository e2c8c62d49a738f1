"""PPE's human preferences (Frick et al., 2024, arXiv:2410.14872): is the response that people preferred scored higher?

Pairs of Chatbot Arena, with the votes of its users. As in the paper's accuracy, ties are left out: they are read, but
are part of no number. Every other pair counts the same; sections are English, the other languages, and pairs about
code. PPE's five correctness sets are not read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hafrm.evaluation.suites.items import (
    Item,
    ListScore,
    Observation,
    Score,
    Stratum,
    Suite,
    pair_chances,
    pair_wins,
    pooled_score,
    two_responses,
)
from hafrm.rows import Row

_WINNERS = {"model_a": 0, "model_b": 1, "tie": None, "tie (bothbad)": None}
_CODE = ", code"


def _parse(reader: Row, part: str) -> Item:
    first = _WINNERS[reader.one_of("winner", tuple(_WINNERS))]
    subset = reader.string("language") + (_CODE if reader.has("is_code") and reader.boolean("is_code") else "")
    return two_responses(reader, "prompt", ("response_1", "response_2"), first, subset=subset, key="question_id")


def _decided(scores: Sequence[ListScore]) -> list[ListScore]:
    return [score for score in scores if score.correct == 1]


def _observe(scores: Sequence[ListScore]) -> list[Observation]:
    return pair_wins(_decided(scores))


def _chance(scores: Sequence[ListScore]) -> list[Observation]:
    return pair_chances(_decided(scores))


def _scores(strata: Mapping[Stratum, int]) -> tuple[list[Score], list[str]]:
    english = {s: n for s, n in strata.items() if s[0].removesuffix(_CODE) == "English"}
    parts = {
        "English": english,
        "other languages": {s: n for s, n in strata.items() if s not in english},
        "code": {s: n for s, n in strata.items() if s[0].endswith(_CODE)},
    }
    sections = [pooled_score("sections", name, part) for name, part in parts.items() if part]
    overall = [pooled_score("overall", "overall", strata)] if strata else []
    return [*overall, *sections], [name for name, part in parts.items() if not part]


SUITE = Suite(
    name="ppe",
    title="PPE, human preferences",
    path="lmarena-ai/PPE-Human-Preference-V1",
    split="test",
    files=("test",),
    homepage="https://huggingface.co/datasets/lmarena-ai/PPE-Human-Preference-V1",
    licence="see the homepage",
    citation="Frick et al. (2024), How to Evaluate Reward Models for RLHF, arXiv:2410.14872",
    parse=_parse,
    observe=_observe,
    chance=_chance,
    scores=_scores,
)
