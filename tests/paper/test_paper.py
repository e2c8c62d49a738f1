"""The transcribed tables: derived numbers are recomputed, and exceptions are pinned."""

from __future__ import annotations

import math
from statistics import fmean

import pytest

from hafrm.paper import numbers
from hafrm.paper.numbers import SETS, TABLE_2, TABLE_3, TABLE_4, TABLE_6, TABLE_7, TABLE_8, TABLE_11
from hafrm.stats import pearson

GAINS = ("haf", "above_baseline", "above_dpo")


@pytest.mark.parametrize("row", TABLE_2, ids=lambda row: f"{row.backbone}-{row.method}")
def test_table_2_averages_to_its_last_column(row: numbers.AccuracyRow) -> None:
    assert fmean(row.accuracy.values()) == pytest.approx(row.average, abs=0.006)
    assert tuple(row.accuracy) == SETS


def test_table_2_has_every_method_of_every_backbone_and_haf_leads_on_average() -> None:
    assert {(row.backbone, row.method) for row in TABLE_2} == {
        (b, m) for b in numbers.BACKBONES for m in numbers.METHODS
    }
    for backbone in numbers.BACKBONES:
        averages = {row.method: row.average for row in TABLE_2 if row.backbone == backbone}
        assert max(averages, key=averages.__getitem__) == "haf"


@pytest.mark.parametrize("row", TABLE_3, ids=lambda row: f"{row.backbone}-{row.source}")
@pytest.mark.parametrize("column", GAINS)
def test_table_3_averages(row: numbers.TransferRow, column: str) -> None:
    """All except one can be derived; 77.70 and 6.79 differ by less than 0.01."""
    mean, printed = fmean(getattr(cell, column) for cell in row.cells.values()), getattr(row.average, column)
    if (row.backbone, row.source, column) == ("Phi-2", "external", "above_baseline"):
        assert (round(mean, 2), printed) == (1.67, 8.35)
        assert 5 * mean == pytest.approx(printed)  # the sum was printed
        assert any("8.35" in note for note in numbers.NOTES["table3"])
    else:
        assert mean == pytest.approx(printed, abs=0.0065)


def test_categories_are_the_five_sets() -> None:
    assert sorted(name for names in numbers.CATEGORIES.values() for name in names) == sorted(SETS)
    assert [numbers.category_of(name) for name in numbers.TRANSFER_SETS] == ["Chat"] * 3 + ["Safety"] * 2
    with pytest.raises(KeyError):
        numbers.category_of("Sums")


@pytest.mark.parametrize(
    "row",
    [row for row in TABLE_4 if row.method != "random"],
    ids=lambda row: f"{row.backbone}-{row.method}-top{row.k}",
)
def test_table_4_follows_from_table_11(row: numbers.SummaryRecall) -> None:
    recalls = {name: getattr(cell, f"top_{row.k}") for name, cell in TABLE_11[row.backbone, row.method].items()}  # type: ignore[index]
    assert math.floor(100 * fmean(recalls.values()) + 1e-6) / 100 == row.all_sets  # cut, not rounded
    assert fmean(recalls[name] for name in ("AHP", "CA", "Helpful")) == pytest.approx(row.chat, abs=0.006)
    as_captioned = fmean(recalls[name] for name in ("AHP", "CA", "Harmless"))
    assert as_captioned != pytest.approx(row.chat, abs=0.2)


def test_random_recalls_are_those_of_four_and_eight_responses() -> None:
    responses = {"Phi-2": 4, "Mistral": 8}
    for row in TABLE_4:
        if row.method == "random":
            assert row.all_sets == row.chat == 100 * row.k / responses[row.backbone]


def correlation(kind: str) -> tuple[float, float]:
    accuracy = {row.method: row.accuracy for row in TABLE_2 if row.backbone == "Mistral"}
    gain = [accuracy["dpo"][name] - accuracy["baseline"][name] for name in SETS]
    variances = TABLE_6["Mistral"]
    values = {
        "win": [variances[name].win for name in SETS],
        "lose": [variances[name].lose for name in SETS],
        "win - lose": [variances[name].win - variances[name].lose for name in SETS],
    }
    found = pearson(values[kind], gain)
    return found.value, found.p_value


@pytest.mark.parametrize("kind", ["win", "lose"])
def test_table_7_follows_from_tables_2_and_6(kind: str) -> None:
    printed = TABLE_7[kind]
    assert correlation(kind) == pytest.approx((printed.value, printed.p_value), abs=3e-4)


def test_table_7s_third_correlation_does_not_follow() -> None:
    value, p_value = correlation("win - lose")
    assert (value, p_value) == pytest.approx((0.7402, 0.1526), abs=1e-4)
    assert TABLE_7["win - lose"].value == -0.9064
    assert any("0.740" in note for note in numbers.NOTES["table7"])


def test_bold_variances_are_the_smallest_of_their_rows() -> None:
    """Table 6 prints the smallest of each row in bold: BS, except for Phi-2's better responses."""
    for backbone, table in TABLE_6.items():
        for kind in ("win", "lose"):
            smallest = min(table, key=lambda name: getattr(table[name], kind))
            assert smallest == ("CA" if (backbone, kind) == ("Phi-2", "win") else "BS")


def test_table_8_multiplies_out() -> None:
    for row in TABLE_8.values():
        assert len(row) == 6
        assert all(cost.queries * cost.responses == cost.printed for cost in row.values())


def test_table_1_has_the_five_sets() -> None:
    assert set(numbers.TABLE_1) == set(SETS)
    assert all(1.2 < row.tokens / row.words < 1.6 for row in numbers.TABLE_1.values())
