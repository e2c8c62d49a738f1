"""RM-Bench (Liu et al., 2024, arXiv:2410.16184): is the correct response scored higher, whatever the styles?

A row has three correct and three wrong responses, each concise, detailed, and detailed with markdown. As in
`compute_accuracy` of THU-KEG/RM-Bench, the accuracies form a matrix with chosen styles as rows and rejected styles as
columns: hard is the mean of its upper right triangle (the wrong response has the fancier style), normal of its
diagonal, easy of its lower left triangle. A domain consists of all rows whose own domain begins with its name, so the
two halves of safety are pooled with equal weight per row. A domain's number is the mean of the three, and each overall
number the mean of the domains that are present. Equal rewards count one half, not 0.

Rows of the files `DOMAIN_filtered.json`, the parts of `total_dataset.json`, have no domain field: it is taken from the
file's name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from hafrm.errors import BadRowReason
from hafrm.evaluation.suites.items import (
    Item,
    Level,
    ListScore,
    Observation,
    Score,
    Scored,
    Stratum,
    Suite,
    key_of,
    response_list,
    win,
)
from hafrm.rows import Row

STYLES = ("concise", "detailed", "markdown")
DIFFICULTIES: Mapping[str, tuple[tuple[int, int], ...]] = {
    "hard": ((0, 1), (0, 2), (1, 2)),
    "normal": ((0, 0), (1, 1), (2, 2)),
    "easy": ((1, 0), (2, 0), (2, 1)),
}
"""The cells of the matrix, as (chosen style, rejected style)."""
_DOMAINS = {"chat": ("chat",), "code": ("code",), "math": ("math",), "safety": ("safety-refuse", "safety-response")}
"""The published subsets of each domain."""
_FILTERED = r"(?P<domain>chat|code|math|safety-refuse|safety-response)_filtered"
_CELLS = [(chosen, rejected) for chosen in range(3) for rejected in range(3)]


def _parse(reader: Row, part: str) -> Item:
    in_name = re.match(_FILTERED, part)
    domain = in_name["domain"] if in_name and not reader.has("domain") else reader.string("domain")
    if not domain.startswith(tuple(_DOMAINS)):
        raise reader.error(
            BadRowReason.WRONG_TYPE, "domain", f"is {domain!r}, not a domain of RM-Bench", "Correct the name."
        )
    prompt = reader.prompt()
    return Item(
        prompt=prompt,
        responses=response_list(reader, "chosen", size=3) + response_list(reader, "rejected", size=3),
        correct=3,
        subset=domain,
        key=key_of(reader),
    )


def _measure(cell: tuple[int, int]) -> str:
    return f"{STYLES[cell[0]]} > {STYLES[cell[1]]}"


def _observe(scores: Sequence[ListScore]) -> list[Observation]:
    return [
        Observation(
            (score.subset, _measure((chosen, rejected))),
            score.group,
            win(score.rewards[chosen], score.rewards[3 + rejected]),
        )
        for score in scores
        for chosen, rejected in _CELLS
    ]


def _chance(scores: Sequence[ListScore]) -> list[Observation]:
    return [Observation((s.subset, _measure(cell)), s.group, 0.5) for s in scores for cell in _CELLS]


def _scores(strata: Mapping[Stratum, int]) -> tuple[list[Score], list[str]]:
    present = {subset: count for (subset, _), count in strata.items()}
    published = [part for domain, parts in _DOMAINS.items() if domain not in present for part in parts]
    missing = [part for part in published if part not in present]
    shares = {domain: found for domain in _DOMAINS if (found := _shares(domain, present))}
    everywhere = {part: share / len(shares) for found in shares.values() for part, share in found.items()}
    every_cell = [cell for cells in DIFFICULTIES.values() for cell in cells]
    scores = [_score("overall", "overall", everywhere, every_cell)]
    scores += [_score("sections", name, everywhere, cells) for name, cells in DIFFICULTIES.items()]
    scores += [_score("sections", domain, share, every_cell) for domain, share in shares.items()]
    scores += [
        _score("subsets", f"{domain}, {name}", share, cells)
        for domain, share in shares.items()
        for name, cells in DIFFICULTIES.items()
    ]
    return scores + [_score("subsets", _measure(cell), everywhere, [cell]) for cell in _CELLS], missing


def _shares(domain: str, present: Mapping[str, int]) -> dict[str, float]:
    """Return the subsets of a domain, each with its share of the domain's rows."""
    counts = {subset: count for subset, count in present.items() if subset.startswith(domain)}
    total = sum(counts.values()) or 1
    return {subset: count / total for subset, count in counts.items()}


def _score(level: Level, name: str, shares: Mapping[str, float], cells: Sequence[tuple[int, int]]) -> Score:
    weights = {(subset, _measure(cell)): share / len(cells) for subset, share in shares.items() for cell in cells}
    return Score(level, name, weights)


def _submission(run: Mapping[str, str], scored: Scored) -> dict[str, Any]:
    """Return what `scripts/run_rm.py` writes, and `compute_accuracy` reads: the rows with their rewards."""
    rows = [
        {"domain": item.subset, **item.fields, "score_chosen": score.rewards[:3], "score_rejected": score.rewards[3:]}
        for item, score in scored
    ]
    return {f"total_dataset_{run['model'].rpartition('/')[2]}.json": rows}


SUITE = Suite(
    name="rm-bench",
    title="RM-Bench",
    path="THU-KEG/RM-Bench",
    split="train",
    files=("total_dataset|train", _FILTERED),
    homepage="https://huggingface.co/datasets/THU-KEG/RM-Bench",
    licence="ODC-BY",
    citation=(
        "Liu et al. (2024), RM-Bench: Benchmarking Reward Models of Language Models with Subtlety and Style, "
        "arXiv:2410.16184"
    ),
    parse=_parse,
    observe=_observe,
    chance=_chance,
    scores=_scores,
    submission=_submission,
)
