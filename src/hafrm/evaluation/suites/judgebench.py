"""JudgeBench (Tan et al., 2024, arXiv:2410.12784): is the objectively correct of two responses scored higher?

As in `utils/metrics.py` of ScalerLab/JudgeBench with one order (`--single_game`), which is how it runs reward models:
every pair counts the same, and a section consists of the pairs whose source begins with its name. Equal rewards count
one half, not 0. The split `gpt`, with responses of GPT-4o, is the leaderboard's; that with responses of Claude can be
read as `judgebench@FILE`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from operator import methodcaller
from typing import Any

from hafrm.evaluation.suites.items import (
    Item,
    Scored,
    Suite,
    key_of,
    pair_chances,
    pair_wins,
    pooled_sections,
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

_FILE = "dataset=judgebench,response_model=gpt-4o-2024-05-13"


def _parse(reader: Row, part: str) -> Item:
    first = {"A>B": 0, "B>A": 1}[reader.one_of("label", ("A>B", "B>A"))]
    key = key_of(reader, "pair_id")
    return two_responses(
        reader, "question", ("response_A", "response_B"), first, subset=reader.string("source"), key=key
    )


def _submission(run: Mapping[str, str], scored: Scored) -> dict[str, Any]:
    """Return the lines of `run_judge.py` for a reward model: every pair with a judgment in each order."""
    name = f"{_FILE},judge_name=reward_model,judge_model={run['model'].replace('/', '_')}.jsonl"
    return {name: list(_judged(run["model"], scored))}


def _judged(model: str, scored: Scored) -> Iterator[dict[str, Any]]:
    for item, score in scored:
        rewards = score.rewards if item.fields["label"] == "A>B" else score.rewards[::-1]
        judgments = [
            {
                "judgment": {"judge_model": model, "prompt": "", "response": "", "scores": list(each)},
                "decision": "A>B" if (each[0] or 0.0) > (each[1] or 0.0) else "B>A",
            }
            for each in (rewards, rewards[::-1])
        ]
        yield {**item.fields, "judge_name": "reward_model", "judgments": judgments}


SUITE = Suite(
    name="judgebench",
    title="JudgeBench",
    path="ScalerLab/JudgeBench",
    revision="57dd5e0b9817d07f05ec8f45a91b2ce1e310e308",
    split="gpt",
    files=(f"gpt|{_FILE}",),
    homepage="https://huggingface.co/datasets/ScalerLab/JudgeBench",
    licence="MIT",
    citation="Tan et al. (2024), JudgeBench: A Benchmark for Evaluating LLM-Based Judges, arXiv:2410.12784",
    parse=_parse,
    observe=pair_wins,
    chance=pair_chances,
    scores=pooled_sections(
        {name: methodcaller("startswith", start) for name, start in _SECTIONS.items()}, subsets=True
    ),
    submission=_submission,
)
