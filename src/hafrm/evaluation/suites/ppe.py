"""PPE (Frick et al., 2024, arXiv:2410.14872): pairs that people judged, and pairs of right and wrong answers.

The human preferences are pairs of Chatbot Arena with the votes of its users. As in the paper's accuracy, ties are left
out: they are read, but are part of no number. Every other pair counts the same; sections are English, the other
languages, and pairs about code.

The correctness sets have 32 responses of one model to each question of five benchmarks, and whether each is right.
Accuracy is computed on the pairs of a right and a wrong response that the sets name (`sampled_conflict_pairs`). Only
these responses are scored, so the paper's curves over 32 responses can't be computed. The overall score is the mean of
the sets. In files, a set is named by its file, such as `MATH.parquet`.

Equal rewards count one half.

A file of results for the human preferences has the form of the authors' (`lmarena-ai/ppe-result-data` on the hub): a
list of the published rows, each with `score_1` and `score_2`. The correctness sets get none, since theirs have the
scores of all 32 responses.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hafrm.errors import BadRowReason
from hafrm.evaluation.suites.items import (
    Item,
    ListScore,
    Score,
    Scored,
    Stratum,
    Suite,
    key_of,
    pair_chances,
    pair_wins,
    pooled_sections,
    two_responses,
)
from hafrm.rows import Row

_WINNERS = {"model_a": 0, "model_b": 1, "tie": None, "tie (bothbad)": None}
_CODE = ", code"
_SETS = {
    "MMLU-Pro": "d3a309b95d5a3a34efdd2b01a9e3ee10565bf0c7",
    "MATH": "c46ce3cda5417fe8d170e992d925f93856b5db40",
    "GPQA": "2f85cea6481db81daa2c8033c51b7811b7bbf648",
    "IFEval": "a4f7fae2443d96529dee6b65863a816a051b3a4d",
    "MBPP-Plus": "afa814632c1df94e76b6af2c1d282511114cd2b7",
}
"""The correctness sets, with their revisions."""


def _parse_votes(reader: Row, part: str) -> Item:
    first = _WINNERS[reader.one_of("winner", tuple(_WINNERS))]
    subset = reader.string("language") + (_CODE if reader.has("is_code") and reader.boolean("is_code") else "")
    key = key_of(reader, "question_id")
    return two_responses(reader, "prompt", ("response_1", "response_2"), first, subset=subset, key=key)


def _submission(run: Mapping[str, str], scored: Scored) -> dict[str, Any]:
    rows = []
    for item, score in scored:
        rewards = score.rewards[::-1] if _WINNERS[item.fields["winner"]] == 1 else score.rewards
        rows.append({**item.fields, "score_1": rewards[0], "score_2": rewards[1]})
    return {f"data/human_preference_v1/{run['model'].rpartition('/')[2]}.json": rows}


def _parse_answers(reader: Row, part: str) -> Iterator[Item]:
    subset = next((name for name in _SETS if part.startswith(name)), part.partition(".")[0])
    right, key = reader.sequence("scores"), key_of(reader, "question_id")
    for number, pair in enumerate(reader.sequence("sampled_conflict_pairs")):
        if len(pair) != 2 or not all(place in range(len(right)) for place in pair):
            problem = f"names the pair {pair}, but there are {len(right)} responses"
            raise reader.error(BadRowReason.WRONG_TYPE, "sampled_conflict_pairs", problem, "Count responses from 0.")
        if bool(right[pair[0]]) == bool(right[pair[1]]):
            problem = f"names the pair {pair}, whose responses are both right or both wrong"
            raise reader.error(BadRowReason.WRONG_TYPE, "sampled_conflict_pairs", problem, "Correct the row.")
        names = (f"response_{pair[0] + 1}", f"response_{pair[1] + 1}")
        first = 0 if right[pair[0]] else 1
        yield two_responses(reader, "prompt", names, first, subset=subset, key=f"{key}+{number}")


def _decided(scores: Sequence[ListScore]) -> list[ListScore]:
    return [score for score in scores if score.correct == 1]


def _mean_of_sets(strata: Mapping[Stratum, int]) -> tuple[list[Score], list[str]]:
    single = [Score("sections", stratum[0], {stratum: 1.0}) for stratum in strata]
    overall = [Score("overall", "overall", {stratum: 1 / len(strata) for stratum in strata})] if strata else []
    return overall + single, [name for name in _SETS if all(name != subset for subset, _ in strata)]


_CITATION = "Frick et al. (2024), How to Evaluate Reward Models for RLHF, arXiv:2410.14872"

SUITES = (
    Suite(
        name="ppe",
        title="PPE, human preferences",
        path="lmarena-ai/PPE-Human-Preference-V1",
        split="test",
        files=("test",),
        homepage="https://huggingface.co/datasets/lmarena-ai/PPE-Human-Preference-V1",
        licence="see the homepage",
        citation=_CITATION,
        parse=_parse_votes,
        observe=lambda scores: pair_wins(_decided(scores)),
        chance=lambda scores: pair_chances(_decided(scores)),
        scores=pooled_sections(
            {
                "English": lambda subset: subset.removesuffix(_CODE) == "English",
                "other languages": lambda subset: subset.removesuffix(_CODE) != "English",
                "code": lambda subset: subset.endswith(_CODE),
            }
        ),
        submission=_submission,
    ),
    Suite(
        name="ppe-correctness",
        title="PPE, correctness",
        sets={name: (f"lmarena-ai/PPE-{name}-Best-of-K", revision) for name, revision in _SETS.items()},
        split="train",
        files=("|".join(_SETS),),
        homepage="https://huggingface.co/lmarena-ai",
        licence="see the homepage",
        citation=_CITATION,
        parse=_parse_answers,
        observe=pair_wins,
        chance=pair_chances,
        scores=_mean_of_sets,
    ),
)
