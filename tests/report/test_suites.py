"""The tables of suites: which cells, differences and notes there are."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from hafrm.evaluation.results import Results
from hafrm.evaluation.suites import SUITES, ListScore, summarise_suite
from hafrm.report.loading import Evaluation
from hafrm.report.tables import SuiteTable, suite_tables
from tests.evaluation.test_suites import agreed, answered_alike


def table_of(scores: Sequence[ListScore]) -> SuiteTable:
    found = summarise_suite(SUITES["rewardbench"], scores)
    evaluation = Evaluation(results=Results(rows=0, cells={}, comparisons=[], suites={"suite": found}), scores=())
    (table,) = suite_tables(evaluation)
    return table


def names(table: SuiteTable) -> tuple[str, ...]:
    return tuple(name for name, _ in table.scores.columns)


@pytest.mark.parametrize("prompts", [2, 6])
def test_few_prompts_show_no_interval_and_why(prompts: int) -> None:
    table = table_of(agreed(prompts))
    cells = dict(zip(names(table), table.scores.models[0].cells, strict=True))
    shown = {name: cell.interval for name, cell in cells.items() if cell}
    intervals = {name: shown[name] for name in shown if "pooled" not in name}
    assert {name: shown[f"{name}, pooled"] for name in ("Chat", "Reasoning")} == {
        name: intervals[name] for name in ("Chat", "Reasoning")
    }
    certain = "[100.0, 100.0]"
    few = prompts == 2
    assert intervals == {"overall": "" if few else certain, "Chat": "" if few else certain, "Reasoning": certain}
    assert {row.score: row.p_holm != "–" for row in table.differences} == {n: bool(intervals[n]) for n in intervals}
    assert {row.score: row.better is not None for row in table.differences} == {
        n: bool(intervals[n]) for n in intervals
    }
    assert any("fewer than six prompts" in note for note in table.notes) == few


def test_what_a_model_could_not_score_is_named() -> None:
    table = table_of(answered_alike())
    shown = {row.name: [cell and cell.accuracy for cell in row.cells] for row in table.scores.models}
    assert names(table) == ("overall", "Chat", "Reasoning", "Prior Sets", "Chat, pooled", "Reasoning, pooled")
    assert shown["n"] == [None, "100.0", None, "100.0", "100.0", None]
    assert None not in shown["m"]
    assert any("n: nothing scored of Reasoning: hep-go" in note for note in table.notes)
    assert not any(note.startswith("m:") for note in table.notes)
    missing = summarise_suite(SUITES["rewardbench"], answered_alike())["missing"]
    assert "Chat Hard" in missing
    assert any(", ".join(missing) in note for note in table.notes)
