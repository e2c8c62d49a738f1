"""The paper's tables, transcribed. `NOTES` lists printed numbers that do not follow from others.

Contains only numbers and the paper's names. Accuracies, recalls and differences are in percent, as printed. Figures 2
to 9 print no numbers, so they are not included.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

PaperMethod = Literal["dpo", "baseline", "haf"]

SETS = ("Helpful", "Harmless", "CA", "BS", "AHP")
"""The five data sets in Table 2's order (section 3.1)."""

METHODS: tuple[PaperMethod, ...] = ("dpo", "baseline", "haf")
"""The methods in Table 2's order (section 3.2)."""

BACKBONES = ("Phi-2", "Mistral-base", "Mistral")
"""Backbones, named as in Table 2; "Mistral" is Mistral-7B-Instruct-v0.2 (section 3.2)."""

CATEGORIES: Mapping[str, tuple[str, ...]] = {"Chat": ("AHP", "CA", "Helpful"), "Safety": ("BS", "Harmless")}
"""Categories within which section 4.1.3 tests transfer, in Table 3's order."""


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
    """Statistics of a training subset (Table 1)."""

    size: int
    """Number of pairs."""
    words: float
    """Words per question with answer."""
    tokens: float
    """Tokens per question with answer."""


TABLE_1: Mapping[str, SetStatistics] = {
    "Harmless": SetStatistics(12_915, 42.9, 61.5),
    "Helpful": SetStatistics(13_543, 54.3, 77.2),
    "BS": SetStatistics(47_625, 69.3, 88.5),
    "AHP": SetStatistics(8_722, 59.6, 81.9),
    "CA": SetStatistics(19_466, 165.5, 257.6),
}


@dataclass(frozen=True)
class AccuracyRow:
    """Accuracies of one method on one backbone (a row of Table 2)."""

    backbone: str
    method: PaperMethod
    accuracy: Mapping[str, float]
    """Accuracy by data set."""
    average: float
    """Average as printed."""

    def __str__(self) -> str:
        return f"{self.backbone}-{self.method}"


def _accuracies(backbone: str, method: PaperMethod, *printed: float) -> AccuracyRow:
    *values, average = printed
    return AccuracyRow(backbone, method, dict(zip(SETS, values, strict=True)), average)


TABLE_2 = (
    _accuracies("Phi-2", "dpo", 69.70, 66.30, 66.80, 87.80, 52.60, 68.64),
    _accuracies("Phi-2", "baseline", 64.30, 69.50, 79.30, 76.00, 58.40, 69.50),
    _accuracies("Phi-2", "haf", 76.40, 70.40, 79.00, 84.00, 60.80, 74.12),
    _accuracies("Mistral-base", "dpo", 64.60, 69.90, 68.80, 91.70, 53.80, 69.76),
    _accuracies("Mistral-base", "baseline", 72.60, 69.80, 64.20, 78.30, 50.40, 67.06),
    _accuracies("Mistral-base", "haf", 73.00, 70.00, 74.40, 85.40, 56.30, 71.82),
    _accuracies("Mistral", "dpo", 74.29, 70.30, 81.90, 92.70, 60.30, 75.90),
    _accuracies("Mistral", "baseline", 76.20, 72.70, 79.80, 80.80, 56.30, 73.16),
    _accuracies("Mistral", "haf", 75.80, 73.10, 81.90, 88.70, 63.10, 76.52),
)


@dataclass(frozen=True)
class PrintedTransfer:
    """One cell of Table 3: HAF's accuracy and its lead over the baseline and over DPO (negative: HAF is below)."""

    haf: float
    above_baseline: float
    above_dpo: float


@dataclass(frozen=True)
class TransferRow:
    """One backbone's accuracies out of domain (a row of Table 3)."""

    backbone: str
    source: Literal["internal", "external"]
    """Test data: "internal" is the other sets of the training set's category, "external" RewardBench's section."""
    cells: Mapping[str, PrintedTransfer]
    """Cells by training set."""
    average: PrintedTransfer
    """Average as printed."""

    def __str__(self) -> str:
        return f"{self.backbone}-{self.source}"


TRANSFER_SETS = ("AHP", "CA", "Helpful", "BS", "Harmless")
"""Training sets in Table 3's order."""


def _transfer(
    backbone: str, source: Literal["internal", "external"], *printed: tuple[float, float, float]
) -> TransferRow:
    *cells, average = (PrintedTransfer(*values) for values in printed)
    return TransferRow(backbone, source, dict(zip(TRANSFER_SETS, cells, strict=True)), average)


TABLE_3 = (
    _transfer(
        "Phi-2",
        "internal",
        (67.50, 1.20, 23.70),
        (62.45, -1.35, 11.60),
        (66.10, 0.90, 19.80),
        (70.60, 5.60, 4.60),
        (76.90, 1.50, 8.60),
        (68.71, 1.57, 13.66),
    ),
    _transfer(
        "Mistral-base",
        "internal",
        (59.65, 4.90, 14.55),
        (56.35, -2.15, 6.00),
        (62.40, -0.85, 12.85),
        (69.60, 0.50, 3.30),
        (75.30, 1.90, 5.80),
        (64.66, 0.86, 8.50),
    ),
    _transfer(
        "Mistral",
        "internal",
        (72.20, 8.40, 12.75),
        (63.30, -0.70, 9.65),
        (67.40, -0.20, 14.25),
        (71.90, 1.40, 3.00),
        (76.70, 2.40, 5.70),
        (70.30, 2.26, 9.07),
    ),
    _transfer(
        "Phi-2",
        "external",
        (85.14, 1.36, 65.88),
        (95.27, 0.34, 19.59),
        (89.86, 6.08, 74.66),
        (66.30, 0.95, 2.04),
        (66.44, -0.38, 4.62),
        (80.60, 8.35, 33.36),
    ),
    _transfer(
        "Mistral-base",
        "external",
        (79.66, 20.34, 64.14),
        (93.79, 21.03, 33.45),
        (81.38, -6.90, 67.24),
        (70.40, 3.27, 8.73),
        (63.30, -3.82, 4.91),
        (77.70, 6.79, 35.69),
    ),
    _transfer(
        "Mistral",
        "external",
        (91.55, 32.77, 53.37),
        (91.89, 3.04, 16.21),
        (82.43, 1.69, 63.51),
        (70.52, -1.22, 4.08),
        (73.37, 2.72, 5.17),
        (81.95, 7.80, 28.47),
    ),
)

RecallMethod = Literal["random", "baseline", "dpo", "haf"]


@dataclass(frozen=True)
class SummaryRecall:
    """Best-of-N recall of one method on one backbone, averaged over data sets (Table 4)."""

    backbone: str
    method: RecallMethod
    k: Literal[1, 2]
    all_sets: float
    """Column "All": the mean over the five sets."""
    chat: float
    """Column "Chat"; see `NOTES`."""

    def __str__(self) -> str:
        return f"{self.backbone}-{self.method}-top{self.k}"


TABLE_4 = (
    SummaryRecall("Phi-2", "random", 1, 25.00, 25.00),
    SummaryRecall("Phi-2", "baseline", 1, 27.43, 28.97),
    SummaryRecall("Phi-2", "dpo", 1, 22.94, 26.39),
    SummaryRecall("Phi-2", "haf", 1, 33.77, 37.19),
    SummaryRecall("Phi-2", "random", 2, 50.00, 50.00),
    SummaryRecall("Phi-2", "baseline", 2, 49.71, 53.39),
    SummaryRecall("Phi-2", "dpo", 2, 46.22, 51.59),
    SummaryRecall("Phi-2", "haf", 2, 58.28, 64.23),
    SummaryRecall("Mistral", "random", 1, 12.50, 12.50),
    SummaryRecall("Mistral", "baseline", 1, 16.03, 18.27),
    SummaryRecall("Mistral", "dpo", 1, 12.81, 13.85),
    SummaryRecall("Mistral", "haf", 1, 18.19, 21.12),
    SummaryRecall("Mistral", "random", 2, 25.00, 25.00),
    SummaryRecall("Mistral", "baseline", 2, 30.64, 35.13),
    SummaryRecall("Mistral", "dpo", 2, 29.05, 31.56),
    SummaryRecall("Mistral", "haf", 2, 34.89, 39.96),
)


@dataclass(frozen=True)
class PerplexityVariance:
    """Variance of the token-wise perplexity, -log P / length, over a set's responses (Table 6)."""

    win: float
    """Variance over the better responses."""
    lose: float
    """Variance over the worse responses."""


TABLE_6: Mapping[str, Mapping[str, PerplexityVariance]] = {
    "Phi-2": {
        "Helpful": PerplexityVariance(0.74, 0.92),
        "Harmless": PerplexityVariance(1.00, 0.97),
        "CA": PerplexityVariance(0.60, 1.09),
        "BS": PerplexityVariance(0.74, 0.60),
        "AHP": PerplexityVariance(2.52, 2.55),
    },
    "Mistral-base": {
        "Helpful": PerplexityVariance(0.42, 0.62),
        "Harmless": PerplexityVariance(0.65, 0.63),
        "CA": PerplexityVariance(0.51, 0.87),
        "BS": PerplexityVariance(0.38, 0.28),
        "AHP": PerplexityVariance(0.75, 0.98),
    },
    "Mistral": {
        "Helpful": PerplexityVariance(3.50, 6.08),
        "Harmless": PerplexityVariance(5.13, 5.81),
        "CA": PerplexityVariance(2.33, 3.52),
        "BS": PerplexityVariance(1.58, 1.31),
        "AHP": PerplexityVariance(1.98, 2.67),
    },
}


@dataclass(frozen=True)
class PrintedCorrelation:
    """Pearson correlation over the five sets with accuracy(DPO) - accuracy(baseline) (Table 7)."""

    value: float
    p_value: float


TABLE_7: Mapping[str, PrintedCorrelation] = {
    "win": PrintedCorrelation(-0.8166, 0.0916),
    "lose": PrintedCorrelation(-0.9492, 0.0136),
    "win - lose": PrintedCorrelation(-0.9064, 0.0339),
}


@dataclass(frozen=True)
class RankingCost:
    """Responses that a judge reads to find the best of N (Table 8): `queries` prompts of `responses` each."""

    queries: int
    responses: int
    printed: int
    """Their product, as printed in bold."""


def _costs(*printed: tuple[int, int, int]) -> Mapping[tuple[str, int], RankingCost]:
    """Return costs by (target, number of candidates), from (printed, queries, responses)."""
    keys = [(target, candidates) for target in ("top-1", "top-2", "complete") for candidates in (4, 8)]
    return {key: RankingCost(a, b, total) for key, (total, a, b) in zip(keys, printed, strict=True)}


TABLE_8: Mapping[str, Mapping[tuple[str, int], RankingCost]] = {
    "binary comparison": _costs((6, 3, 2), (14, 7, 2), (8, 4, 2), (20, 10, 2), (10, 5, 2), (32, 16, 2)),
    "rank 4 responses": _costs((4, 1, 4), (12, 3, 4), (4, 1, 4), (12, 3, 4), (4, 1, 4), (20, 5, 4)),
    "rank 8 responses": _costs((4, 1, 4), (8, 1, 8), (4, 1, 4), (8, 1, 8), (4, 1, 4), (8, 1, 8)),
}


@dataclass(frozen=True)
class Recall:
    """Best-of-N recall of one method on one backbone and set (Table 11)."""

    top_1: float
    top_2: float


RECALL_SETS = ("AHP", "BS", "CA", "Helpful", "Harmless")
"""Data sets in Table 11's order."""


def _recalls(*printed: float) -> Mapping[str, Recall]:
    pairs = zip(printed[::2], printed[1::2], strict=True)
    return dict(zip(RECALL_SETS, (Recall(*pair) for pair in pairs), strict=True))


TABLE_11: Mapping[tuple[str, PaperMethod], Mapping[str, Recall]] = {
    ("Phi-2", "haf"): _recalls(28.67, 52.51, 32.49, 53.06, 37.46, 65.94, 45.44, 74.25, 24.79, 45.67),
    ("Phi-2", "dpo"): _recalls(20.85, 45.62, 17.68, 39.71, 31.89, 56.07, 26.42, 53.07, 17.87, 36.67),
    ("Phi-2", "baseline"): _recalls(15.45, 34.63, 32.85, 50.90, 27.84, 51.64, 43.62, 73.91, 17.41, 37.48),
    ("Mistral", "haf"): _recalls(22.86, 41.95, 14.61, 25.38, 24.12, 42.69, 16.39, 35.24, 12.99, 29.23),
    ("Mistral", "dpo"): _recalls(14.57, 32.91, 10.00, 24.61, 13.68, 30.62, 13.31, 31.14, 12.52, 25.98),
    ("Mistral", "baseline"): _recalls(14.82, 30.40, 13.07, 24.61, 25.05, 43.85, 14.95, 31.14, 12.29, 23.20),
}

NOTES: Mapping[str, tuple[str, ...]] = {
    "table2": (
        "The paper does not say how many test pairs a set has, and gives no intervals; its averages are the plain "
        "means of the five sets.",
    ),
    "table3": (
        "The paper's average gain of Phi-2 over the baseline on external data, 8.35, is the sum of its five cells; "
        "their mean is 1.67.",
        "The paper's other averages are the means of their cells to within 0.01.",
    ),
    "table4": (
        "The paper's caption says that Chat is AHP, CA and Harmless; its numbers are the means of AHP, CA and Helpful "
        "in Table 11.",
        "The column All is the mean of Table 11's five sets, cut after two decimals and not rounded.",
    ),
    "table7": (
        "The first two correlations follow from Tables 2 and 6 to within 0.0003. The third does not: the difference of "
        "the two variances correlates at +0.740 with DPO's gain. It may be of the variance of each pair's difference, "
        "which the paper does not print.",
    ),
    "table8": ("The caption names GPT-3.5; the text of Appendix F ranks with gpt-4-turbo-2024-04-09.",),
}
"""By table: numbers that do not follow from others, and details that the paper leaves open."""
