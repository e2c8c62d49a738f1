"""The accuracy table and the comparisons: marks, notes and baselines."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hafrm import atomic
from hafrm.evaluation.results import Cell, Comparison, Results
from hafrm.evaluation.scoring import PairScore
from hafrm.report.loading import Evaluation, read_evaluation
from hafrm.report.page import write_page
from hafrm.report.tables import accuracy_table, comparison_rows, markdown_table, marked_best
from hafrm.report.verdict import verdicts
from tests.report.conftest import measured, unscored, write_evaluation


def cell(accuracy: float) -> Cell:
    found = measured(accuracy, (accuracy - 0.02, accuracy + 0.02))
    return Cell(n=100, unscored=0, unscored_reasons={}, measured=found)


def test_an_average_is_of_sets_not_of_pairs_and_its_interval_by_hand() -> None:
    """Half-widths .10 and .08 give hypot(.10, .08) / 2 = .064, cut at 100%; a missing set or interval leaves a gap."""
    found = {
        ("a", "s"): (100, 0.6, (0.5, 0.7), 0.6),
        ("a", "t"): (10, 0.8, (0.72, 0.88), 0.4),
        ("b", "s"): (100, 0.5, (0.4, 0.6), 0.6),
        ("b", "t"): (10, 0.7, None, 0.4),
        ("c", "s"): (100, 0.9, (0.8, 1.0), 0.6),
        ("d", "s"): (100, 1.0, (0.9, 1.0), 0.6),
        ("d", "t"): (10, 0.98, (0.9, 1.0), 0.4),
    }
    cells = {
        key: replace(cell(accuracy), n=n, measured=replace(measured(accuracy, ends), length_accuracy=length))
        for key, (n, accuracy, ends, length) in found.items()
    }
    table = accuracy_table(Evaluation(results=Results(rows=0, cells=cells, comparisons=[]), scores=()))
    assert table.columns[0] == ("average", "2 sets")
    first = {row.name: row.cells[0] and (row.cells[0].accuracy, row.cells[0].interval) for row in table.models}
    assert first == {"a": ("70.0", "[63.6, 76.4]"), "b": ("60.0", ""), "c": None, "d": ("99.0", "[95.5, 100.0]")}
    longer, random = (row.cells[0] for row in table.baselines)
    assert longer is not None
    assert random is not None
    assert (longer.accuracy, random.accuracy) == ("50.0", "50.0")


def comparison(a: str, b: str, low: float, high: float, p_holm: float = 0.0012) -> Comparison:
    return Comparison(
        data="set",
        a=a,
        b=b,
        n=100,
        difference=(low + high) / 2,
        ci95=(low, high),
        p_bootstrap=0.0004,
        p_holm=p_holm,
        p_mcnemar=0.25,
    )


def made(accuracies: dict[str, float], *comparisons: Comparison) -> Evaluation:
    cells = {(model, "set"): cell(accuracy) for model, accuracy in accuracies.items()}
    return Evaluation(results=Results(rows=0, cells=cells, comparisons=list(comparisons)), scores=())


@pytest.mark.parametrize(
    ("comparisons", "best"),
    [
        ([comparison("a", "b", 0.01, 0.2)], "a"),
        ([comparison("b", "a", -0.2, -0.01)], "a"),
        ([comparison("a", "b", 0.01, 0.2, p_holm=0.22)], None),
        ([comparison("a", "b", 0.01, 0.2, p_holm=float("nan"))], None),
        ([comparison("a", "c", 0.01, 0.2)], None),
        ([comparison("b", "a", 0.01, 0.2)], None),
        ([], None),
    ],
    ids=[
        "decided",
        "other way round",
        "corrected away",
        "never corrected",
        "not to the second",
        "favours the second",
        "none",
    ],
)
def test_best_is_marked_only_where_the_corrected_test_decides_against_the_second(
    comparisons: list[Comparison], best: str | None
):
    evaluation = made({"c": 0.6, "b": 0.75, "a": 0.8}, *comparisons)
    assert marked_best(evaluation, "set") == best
    table = accuracy_table(evaluation)
    assert [row.name for row in table.models if row.cells[0] and row.cells[0].best] == ([best] if best else [])


def test_one_model_alone_is_not_best():
    table = accuracy_table(made({"a": 0.8}))
    assert table.models[0].cells[0] is not None
    assert not table.models[0].cells[0].best


def test_baselines_are_always_there():
    rows = {row.name: row.cells[0] for row in accuracy_table(made({"a": 0.8})).baselines}
    assert [rows[name] and rows[name].accuracy for name in ("the longer response", "random")] == ["60.0", "50.0"]


def test_a_bag_of_words_is_a_baseline_that_says_what_it_is_fitted_on(tmp_path: Path) -> None:
    assert accuracy_table(made({"a": 0.8})).note == ""
    evaluation = made({"a": 0.8})
    (key, held), *_ = evaluation.results.cells.items()
    assert held.measured is not None
    evaluation.results.cells[key] = replace(held, measured=replace(held.measured, words_accuracy=0.55))
    table = accuracy_table(evaluation)
    assert [row.name for row in table.baselines] == ["the longer response", "a bag of words", "random"]
    assert "four fifths" in table.note
    rows = {row.name: row.cells[0] and row.cells[0].accuracy for row in table.baselines}
    assert rows["a bag of words"] == "55.0"
    atomic.write_json(tmp_path / "results.json", evaluation.results.as_dict())
    (tmp_path / "scores.jsonl").write_text("")
    written = markdown_table(tmp_path)
    assert table.note in written
    assert "| a bag of words | 55.0 |" in written


def test_unscored_pairs_are_noted(tmp_path: Path, scores: list[PairScore]):
    first = scores[0].model, scores[0].data
    some = [unscored(s) if number < 3 else s for number, s in enumerate(scores)]
    none = [unscored(s) if s.model == first[0] and s.data == "code.jsonl" else s for s in some]
    evaluation = read_evaluation(write_evaluation(tmp_path, none))
    table = accuracy_table(evaluation)
    row = {data: cell for (data, _), cell in zip(table.columns, table.models[0].cells, strict=True)}
    assert row["harmless.jsonl"].note == "n 57, 3 unscored"
    assert row["helpful.jsonl"].note == ""
    assert (row["code.jsonl"].accuracy, row["code.jsonl"].note) == ("–", "n 0, 60 unscored")
    assert dict(table.columns)["harmless.jsonl"] == "60 pairs, 31 prompts"


def of_prompts(scores: list[PairScore], prompts: int) -> list[PairScore]:
    """The scores with every pair under one of a few prompts."""
    return [replace(score, group=f"{int(score.id.rpartition(':')[2]) % prompts}") for score in scores]


@pytest.mark.parametrize("prompts", [1, 2, 5])
def test_few_prompts_have_no_interval_no_p_and_no_best(tmp_path: Path, scores: list[PairScore], prompts: int):
    """Resampling few prompts shows little spread, which does not make a difference certain."""
    evaluation = read_evaluation(write_evaluation(tmp_path, of_prompts(scores, prompts)))
    table = accuracy_table(evaluation)
    assert {cell.interval for row in table.models for cell in row.cells if cell} == {""}
    assert not any(cell.best for row in table.models for cell in row.cells if cell)
    assert table.few == tuple(evaluation.data)
    rows = [row for rows in comparison_rows(evaluation.results.comparisons, evaluation.scores).values() for row in rows]
    stated = {(row.interval, row.p_bootstrap, row.p_holm, row.p_mcnemar, row.decided) for row in rows}
    assert stated == {("–", "–", "–", "–", False)}
    page = write_page(tmp_path, title="t").read_text(encoding="utf-8")
    assert "are of fewer than six prompts" in page
    assert "too few prompts" in " ".join(verdicts(evaluation))


def test_six_prompts_have_intervals(tmp_path: Path, scores: list[PairScore]):
    evaluation = read_evaluation(write_evaluation(tmp_path, of_prompts(scores, 6)))
    table = accuracy_table(evaluation)
    assert table.few == ()
    assert all(cell.interval for row in table.models for cell in row.cells if cell)
    rows = [row for rows in comparison_rows(evaluation.results.comparisons, evaluation.scores).values() for row in rows]
    assert "–" not in {text for row in rows for text in (row.interval, row.p_bootstrap, row.p_holm, row.p_mcnemar)}
    assert "fewer than six prompts" not in write_page(tmp_path, title="t").read_text(encoding="utf-8")


def test_comparisons_are_worded():
    (rows,) = comparison_rows([comparison("a", "b", 0.01, 0.2)], ()).values()
    row = rows[0]
    assert (row.a, row.b, row.n, row.difference, row.interval) == ("a", "b", "100", "+10.5", "[+1.0, +20.0]")
    assert (row.p_bootstrap, row.p_holm, row.p_mcnemar, row.decided) == ("< 0.001", "0.001", "0.250", True)


def test_a_model_that_was_not_evaluated_on_a_set_has_an_empty_cell():
    evaluation = made({"a": 0.8})
    evaluation.results.cells["b", "other"] = cell(0.7)
    table = accuracy_table(evaluation)
    assert [[c and c.accuracy for c in row.cells] for row in table.models] == [
        [None, "80.0", None],
        [None, None, "70.0"],
    ]


def test_the_average_is_of_all_sets_and_its_interval_of_independent_ones():
    evaluation = made({"a": 0.8})
    evaluation.results.cells["a", "other"] = cell(0.7)
    table = accuracy_table(evaluation)
    assert [name for name, _ in table.columns] == ["average", "set", "other"]
    first = table.models[0].cells[0]
    assert first is not None
    assert (first.accuracy, first.interval) == ("75.0", "[73.6, 76.4]")  # 2 points / sqrt(2) on both sides
    assert [row.cells[0] and row.cells[0].accuracy for row in table.baselines] == ["60.0", "50.0"]
