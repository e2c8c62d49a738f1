"""Relations, their intervals, and how findings are written."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from markupsafe import Markup

from hafrm.paper.accuracy import transfer_cell
from hafrm.paper.measures import Measured, average_of, average_relation, relation
from hafrm.report.charts import standalone
from hafrm.report.figures import Bar, BarGroup, Curve, Panel, accuracy_bars, curve_panels
from hafrm.report.findings import Findings, Relation, Table, ranked, relation_table, write_findings


def measured(*hits_by_seed: list[float]) -> Measured:
    each = np.array(hits_by_seed)
    pairs = [f"p{number}" for number in range(each.shape[1])]
    return Measured(
        accuracies=tuple(map(float, each.mean(axis=1))),
        pair_hits=dict(zip(pairs, map(float, each.mean(axis=0)), strict=True)),
        groups={pair: pair for pair in pairs},
        length_accuracy=0.5,
    )


def related(haf: Measured, other: Measured, paper: float | None = None) -> Relation:
    both = {"haf": haf, "baseline": other, "dpo": other}
    return relation(both, "baseline", backbone="b", trained_on="BS", tested_on="BS", paper=paper)  # type: ignore[arg-type]


def test_haf_is_ahead_where_the_interval_says_so() -> None:
    right, wrong = measured([1.0] * 40), measured([0.0] * 30 + [1.0] * 10)
    assert related(right, wrong).verdict == "above"
    assert related(wrong, right).verdict == "below"
    assert related(right, wrong).difference == pytest.approx(0.75)
    close = related(measured([1.0, 0.0] * 20), measured([0.0, 1.0] * 20))
    assert (close.verdict, close.difference) == ("undecided", 0)
    assert {replace(close, ci95=ends).verdict for ends in ((0.0, 0.1), (-0.1, 0.0), None)} == {"undecided"}


def test_seeds_are_averaged_pair_by_pair_and_their_spread_is_told() -> None:
    haf = measured([1.0] * 10, [1.0] * 5 + [0.0] * 5)
    assert haf.accuracy == pytest.approx(0.75)
    assert haf.spread == pytest.approx(np.std([1.0, 0.5], ddof=1))
    found = related(haf, measured([0.0] * 10, [0.0] * 10))
    assert found.by_seed == pytest.approx((1.0, 0.5))
    assert found.difference == pytest.approx(0.75)
    assert found.spread == pytest.approx(np.std([1.0, 0.5], ddof=1))
    assert measured([1.0, 0.0]).spread is None


def test_only_pairs_that_both_scored_count() -> None:
    haf, other = measured([1.0] * 6), measured([0.0] * 4)
    assert related(haf, other).difference == 1
    assert average_of([haf, other]).accuracy == pytest.approx(0.5)
    assert average_of([haf, other]).ci95 is None


def test_an_averages_interval_is_narrower_than_its_parts() -> None:
    rng = np.random.default_rng(0)
    each = [related(measured(list(rng.integers(0, 2, 200))), measured(list(rng.integers(0, 2, 200)))) for _ in range(4)]
    mean = average_relation(each, paper=0.01)
    assert mean.difference == pytest.approx(np.mean([one.difference for one in each]))
    assert mean.ci95 is not None
    widths = [one.ci95[1] - one.ci95[0] for one in each if one.ci95]
    assert mean.ci95[1] - mean.ci95[0] == pytest.approx(np.mean(widths) / 2, rel=0.05)
    assert (mean.tested_on, mean.paper) == ("Avg", 0.01)
    few = related(measured([1.0, 1.0]), measured([0.0, 0.0]))  # has no interval
    assert (few.ci95, average_relation([*each, few]).ci95) == (None, None)


def test_the_best_is_bold_and_the_second_underlined() -> None:
    assert ranked([1.0, 3.0, 2.0], ["a", "b", "c"]) == ["a", Markup("<b>b</b>"), Markup("<u>c</u>")]
    assert ranked([2.0, 2.0, None], ["a", "b", "-"]) == [Markup("<b>a</b>"), Markup("<b>b</b>"), "-"]


def test_a_transfer_cell_reads_as_the_papers() -> None:
    assert transfer_cell(0.675, 0.012, 0.237) == "67.50 <sup>(1.20↑)</sup><sub>(23.70↑)</sub>"
    assert "(1.35↓)" in transfer_cell(0.6245, -0.0135, 0.116)
    assert "<sup>(0.00)</sup>" in transfer_cell(0.5, -1e-9, 0)


def bars() -> Markup:
    groups = [BarGroup("B<S", (Bar("haf", 0.7, (0.6, 0.8), light=0.75), Bar("dpo", 0.42)))]
    return accuracy_bars("Bars & more", groups, (("haf", "HAF"), ("dpo", "DPO")))


def test_pictures_stand_alone_and_follow_light_and_dark() -> None:
    curves = tuple(Curve(f"{ratio}", "zero", ((20, ratio), (40, ratio + 1))) for ratio in (-1, 2))
    flat = Panel("flat", (Curve("0", "zero", ((20, 0.5),)),))
    for svg in (bars(), curve_panels("Curves", [Panel("loss", curves)]), curve_panels("Flat", [flat])):
        root = ET.fromstring(standalone(svg))
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert "prefers-color-scheme: dark" in standalone(svg)
        assert "nan" not in str(svg)
        assert root[0].tag.endswith("}title")
        assert root[0].text == root.attrib["aria-label"]


def test_a_curve_of_one_point_is_visible() -> None:
    """A path with only a move command draws nothing."""
    svg = str(curve_panels("One", [Panel("loss", (Curve("0", "zero", ((3.0, 0.5),)),))]))
    (line,) = re.findall(r'class="series zero"[^>]* d="([^"]+)"|d="([^"]+)"[^>]*class="series zero"', svg)[:1]
    assert "L" in "".join(line)


@pytest.mark.parametrize("sets", [1, 3])
def test_the_legend_is_inside_the_picture(sets: int) -> None:
    groups = [BarGroup(f"set {place}", (Bar("haf", 0.7),)) for place in range(sets)]
    figure = accuracy_bars("few", groups, (("dpo", "DPO"), ("baseline", "Baseline"), ("haf", "HAF")))
    width = float(re.search(r'viewBox="0 0 ([\d.]+)', figure)[1])  # type: ignore[index]
    start = float(re.search(r'x="([\d.]+)"[^>]*>HAF<', figure)[1])  # type: ignore[index]
    assert start + 6.5 * len("HAF") <= width


def test_bars_rise_from_one_half_and_hang_below_it() -> None:
    """One is at 70 [60, 80] with a light one at 75 behind it, the other at 42: the axis is from 40 to 80."""
    root = ET.fromstring(standalone(bars()))
    svg = "{http://www.w3.org/2000/svg}"

    def ends(tag: str, class_: str) -> tuple[float, float]:
        element = next(each for each in root.iter(f"{svg}{tag}") if each.get("class") == class_)
        if tag == "line":
            return float(element.attrib["y2"]), float(element.attrib["y1"])
        heights = [float(y) for y in re.findall(r"[ML][\d.]+ ([\d.]+)", element.attrib["d"])]
        return min(heights), max(heights)

    (top, half), (same, below) = ends("path", "bar haf"), ends("path", "bar dpo")
    assert half == same
    unit = (half - top) / 20
    assert (below - half) / unit == pytest.approx(8, abs=0.05)
    assert [(half - y) / unit for y in ends("path", "bar light haf")] == pytest.approx([25, 0], abs=0.05)
    assert [(half - y) / unit for y in ends("line", "error")] == pytest.approx([30, 10], abs=0.05)
    labels = {each.text: float(each.attrib["y"]) for each in root.iter(f"{svg}text")}
    assert labels["40"] - labels["80"] == pytest.approx(40 * unit, rel=0.01)


def test_findings_are_written_whole(tmp_path: Path) -> None:
    found = related(measured([1.0] * 40), measured([0.0] * 40), paper=0.123)
    table = Table("A | table", ("x", "y"), (("a|b <i>", Markup("<b>1</b>")),))
    findings = Findings(
        title="T",
        intro="I",
        results={"seeds": [0]},
        tables=(table,),
        figures={"bars": bars()},
        relations=(found,),
        notes=("N <b>",),
    )
    assert write_findings(findings, tmp_path / "out") == tmp_path / "out" / "index.html"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "index.html",
        "table.md",
        "results.json",
        "bars.svg",
    }
    text = (tmp_path / "out" / "table.md").read_text()
    assert "![Bars &amp; more](bars.svg)\n\n*Bars &amp; more*" in text  # the caption is the text for screen readers
    assert "| a\\|b &lt;i&gt; | <b>1</b> |" in text
    assert "| the baseline (b) | BS | BS | +100.0 [+100.0, +100.0] | above | +12.3 |" in text
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["relations"][0]["verdict"] == "above"
    page = (tmp_path / "out" / "index.html").read_text()
    assert "<h2>Bars &amp; more</h2>" in page
    assert "N &lt;b&gt;" in page
    assert "<b>1</b>" in page
    assert "default-src &#39;none&#39;" in page


def test_columns_of_seeds_and_paper_are_there_where_they_say_something() -> None:
    one, two = related(measured([1.0, 0.0]), measured([0.0, 0.0])), measured([1.0, 0.0], [1.0, 1.0])
    assert len(relation_table([one]).header) == 5
    assert relation_table([related(two, measured([0.0, 0.0], [0.0, 0.0]), paper=0.1)]).header[-2:] == (
        "by seed",
        "paper",
    )
