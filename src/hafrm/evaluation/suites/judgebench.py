"""JudgeBench (Tan et al., 2024, arXiv:2410.12784): is the objectively correct of two responses scored higher?

As in `utils/metrics.py` of ScalerLab/JudgeBench with one order (`--single_game`), which is how it runs reward models:
every pair counts the same, and a section consists of the pairs whose source begins with its name. Equal rewards count
one half, not 0. The split `gpt`, with responses of GPT-4o, is the leaderboard's; that with responses of Claude can be
read as `judgebench@FILE`.
"""

from __future__ import annotations

from collections.abc import Mapping

from hafrm.evaluation.suites.items import (
    Item,
    Score,
    Stratum,
    Suite,
    pair_chances,
    pair_wins,
    pooled_score,
    two_responses,
)
from hafrm.rows import Row

_SECTIONS = {
    "Knowledge": "mmlu-pro",
    "Reasoning": "livebench-reasoning",
    "Math": "livebench-math",
    "Coding": "livecodebench",
}
"""The beginning of the sources of each section."""


def _parse(reader: Row, part: str) -> Item:
    first = {"A>B": 0, "B>A": 1}[reader.one_of("label", ("A>B", "B>A"))]
    return two_responses(
        reader, "question", ("response_A", "response_B"), first, subset=reader.string("source"), key="pair_id"
    )


def _scores(strata: Mapping[Stratum, int]) -> tuple[list[Score], list[str]]:
    parts = {
        name: {stratum: count for stratum, count in strata.items() if stratum[0].startswith(start)}
        for name, start in _SECTIONS.items()
    }
    sections = [pooled_score("sections", name, part) for name, part in parts.items() if part]
    single = [pooled_score("subsets", stratum[0], {stratum: 1}) for stratum in sorted(strata)]
    missing = [name for name, part in parts.items() if not part]
    return [pooled_score("overall", "overall", strata), *sections, *single], missing


SUITE = Suite(
    name="judgebench",
    title="JudgeBench",
    path="ScalerLab/JudgeBench",
    revision="57dd5e0b9817d07f05ec8f45a91b2ce1e310e308",
    split="gpt",
    files=("gpt|dataset=judgebench,response_model=gpt-4o-2024-05-13",),
    homepage="https://huggingface.co/datasets/ScalerLab/JudgeBench",
    licence="MIT",
    citation="Tan et al. (2024), JudgeBench: A Benchmark for Evaluating LLM-Based Judges, arXiv:2410.12784",
    parse=_parse,
    observe=pair_wins,
    chance=pair_chances,
    scores=_scores,
)
