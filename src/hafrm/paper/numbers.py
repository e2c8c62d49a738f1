"""The paper's tables, transcribed in `numbers.json`. `NOTES` lists printed numbers that do not follow from others.

Contains only numbers and the paper's names. Accuracies, recalls and differences are in percent, as printed. Figures 2
to 9 print no numbers, so they are not included.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Literal

PaperMethod = Literal["dpo", "baseline", "haf"]

SETS = ("Helpful", "Harmless", "CA", "BS", "AHP")
"""The five data sets in Table 2's order (section 3.1)."""

TEST_PAIRS = 1000
"""Test pairs per set in Table 2, inferred from its digits (see `NOTES`)."""

METHODS: tuple[PaperMethod, ...] = ("dpo", "baseline", "haf")
"""The methods in Table 2's order (section 3.2)."""

BACKBONES = ("Phi-2", "Mistral-base", "Mistral")
"""Backbones, named as in Table 2; "Mistral" is Mistral-7B-Instruct-v0.2 (section 3.2)."""

CATEGORIES: Mapping[str, tuple[str, ...]] = {"Chat": ("AHP", "CA", "Helpful"), "Safety": ("BS", "Harmless")}
"""Categories within which section 4.1.3 tests transfer, in Table 3's order."""

TRANSFER_SETS = ("AHP", "CA", "Helpful", "BS", "Harmless")
"""Training sets in Table 3's order."""

RECALL_SETS = ("AHP", "BS", "CA", "Helpful", "Harmless")
"""Data sets in Table 11's order."""


def category_of(name: str) -> str:
    """Return the category of a data set.

    Raises:
        KeyError: it is not one of the five.
    """
    for category, names in CATEGORIES.items():
        if name in names:
            return category
    raise KeyError(name)


@dataclass(frozen=True)
class SetStatistics:
    """Statistics of a training subset (Table 1): pairs, and words and tokens per question with answer."""

    size: int
    words: float
    tokens: float


@dataclass(frozen=True)
class AccuracyRow:
    """Accuracies of one method on one backbone by data set, and their printed average (a row of Table 2)."""

    backbone: str
    method: PaperMethod
    accuracy: Mapping[str, float]
    average: float


@dataclass(frozen=True)
class PrintedTransfer:
    """One cell of Table 3: HAF's accuracy and its lead over the baseline and over DPO (negative: HAF is below)."""

    haf: float
    above_baseline: float
    above_dpo: float


@dataclass(frozen=True)
class TransferRow:
    """One backbone's accuracies out of domain by training set, and their printed average (a row of Table 3)."""

    backbone: str
    source: Literal["internal", "external"]
    """Test data: "internal" is the other sets of the training set's category, "external" RewardBench's section."""
    cells: Mapping[str, PrintedTransfer]
    average: PrintedTransfer


@dataclass(frozen=True)
class SummaryRecall:
    """Best-of-N recall of one method on one backbone, on average over the five sets and over "Chat" (Table 4)."""

    backbone: str
    method: Literal["random", "baseline", "dpo", "haf"]
    k: Literal[1, 2]
    all_sets: float
    chat: float


@dataclass(frozen=True)
class PerplexityVariance:
    """Variance of the token-wise perplexity, -log P / length, over the better and the worse responses (Table 6)."""

    win: float
    lose: float


@dataclass(frozen=True)
class PrintedCorrelation:
    """Pearson correlation over the five sets with accuracy(DPO) - accuracy(baseline) (Table 7)."""

    value: float
    p_value: float


@dataclass(frozen=True)
class RankingCost:
    """Responses that a judge reads to find the best of N (Table 8): `queries` prompts of `responses` each."""

    queries: int
    responses: int
    printed: int
    """Their product, as printed in bold."""


@dataclass(frozen=True)
class Recall:
    """Best-of-N recall of one method on one backbone and set (Table 11)."""

    top_1: float
    top_2: float


_PRINTED: Mapping[str, Any] = json.loads(files(__package__).joinpath("numbers.json").read_text(encoding="utf-8"))


def _transfers(cells: list[list[float]]) -> tuple[dict[str, PrintedTransfer], PrintedTransfer]:
    *by_set, average = (PrintedTransfer(*cell) for cell in cells)
    return dict(zip(TRANSFER_SETS, by_set, strict=True)), average


TABLE_1: Mapping[str, SetStatistics] = {name: SetStatistics(*row) for name, row in _PRINTED["table_1"].items()}

TABLE_2 = tuple(
    AccuracyRow(backbone, method, dict(zip(SETS, values, strict=True)), average)
    for backbone, method, *values, average in _PRINTED["table_2"]
)

TABLE_3 = tuple(TransferRow(backbone, source, *_transfers(cells)) for backbone, source, *cells in _PRINTED["table_3"])

TABLE_4 = tuple(SummaryRecall(*row) for row in _PRINTED["table_4"])

TABLE_5: Mapping[str, str] = _PRINTED["table_5"]
"""Settings by name, from Table 5 and Appendix A."""

TABLE_6: Mapping[str, Mapping[str, PerplexityVariance]] = {
    backbone: {name: PerplexityVariance(*values) for name, values in row.items()}
    for backbone, row in _PRINTED["table_6"].items()
}

TABLE_7: Mapping[str, PrintedCorrelation] = {
    name: PrintedCorrelation(*values) for name, values in _PRINTED["table_7"].items()
}

TABLE_8: Mapping[str, Mapping[tuple[str, int], RankingCost]] = {
    way: {(target, candidates): RankingCost(*cost) for target, candidates, *cost in costs}
    for way, costs in _PRINTED["table_8"].items()
}
"""Costs by way of ranking, and by (target, number of candidates)."""

TABLE_11: Mapping[tuple[str, PaperMethod], Mapping[str, Recall]] = {
    (backbone, method): {name: Recall(*pair) for name, pair in zip(RECALL_SETS, pairs, strict=True)}
    for backbone, method, *pairs in _PRINTED["table_11"]
}

NOTES: Mapping[str, tuple[str, ...]] = {table: tuple(notes) for table, notes in _PRINTED["notes"].items()}
"""By table: numbers that do not follow from others, and details that the paper leaves open."""
