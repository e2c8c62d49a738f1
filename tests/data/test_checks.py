"""Every fault that `check_pairs` knows, planted one at a time."""

from __future__ import annotations

import pytest

from hafrm.data import Finding, SourceReport, check_pairs, shared_prompts
from hafrm.pairs import PreferencePair
from tests.tiny import pair

CLEAN = [pair(f"question {i}", "yes" if i % 2 else "really", "never" if i % 2 else "no", row=i) for i in range(20)]
A_OVER_B = pair("which?", "left", "right", row=100)


def found(pairs: list[PreferencePair]) -> list[tuple[str, str, int]]:
    return [(finding.check, finding.severity, finding.count) for finding in check_pairs(pairs)]


def test_a_clean_set_has_no_findings() -> None:
    assert check_pairs(CLEAN, report=SourceReport(name="x", kind="file"), against={"test": [A_OVER_B]}) == []


def test_copies_are_counted_without_their_original() -> None:
    assert found([*CLEAN, A_OVER_B, A_OVER_B, A_OVER_B]) == [("duplicate_pairs", "warning", 2)]


def test_identical_answers_up_to_case_and_white_space() -> None:
    same = [pair("q1", "Left", " left\n", row=7), pair("q2", "x", "x", row=8)]
    (finding,) = check_pairs([*CLEAN, *same])
    assert (finding.check, finding.severity, finding.count) == ("identical_answers", "error", 2)
    assert finding.examples == ["test:7", "test:8"]


def test_conflicts_are_the_same_answers_labelled_both_ways() -> None:
    assert found([*CLEAN, A_OVER_B, pair("Which? ", "right", "left")]) == [("conflicting_labels", "warning", 2)]
    assert found([*CLEAN, A_OVER_B, pair("which?", "right", "up")]) == []
    assert found([*CLEAN, A_OVER_B, pair("what?", "right", "left")]) == []


def test_overlap_goes_by_the_prompts_text_whatever_the_groups_are_called() -> None:
    test = [PreferencePair(prompt=CLEAN[3].prompt, chosen=CLEAN[0].chosen, rejected=CLEAN[0].rejected, group="other")]
    (finding,) = check_pairs(CLEAN, against={"arena": test, "unrelated": [A_OVER_B]})
    assert (finding.check, finding.severity, finding.count) == ("overlap", "error", 1)
    assert finding.examples == [CLEAN[3].id]
    assert "arena" in finding.explanation


@pytest.mark.parametrize(("longer", "which", "share"), [(17, "longer", "85.0%"), (3, "shorter", "85.0%")])
def test_length_bias_says_which_way(longer: int, which: str, share: str) -> None:
    pairs = [pair(f"q{i}", "long answer" if i < longer else "x", "short") for i in range(20)]
    (finding,) = check_pairs(pairs)
    assert (finding.check, finding.severity, finding.count) == ("length_bias", "warning", 20)
    assert f"{which} response is right {share}" in finding.explanation


def test_a_small_set_strays_from_one_half_by_chance() -> None:
    pairs = [pair(f"q{i}", "long answer" if i < 3 else "x", "short") for i in range(4)]
    assert (
        check_pairs(pairs)
        == []
        != check_pairs([pair(f"q{i}", "long answer" if i % 4 < 3 else "x", "short") for i in range(40)])
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[{"role": "user", "content": "a"}]', True),
        ("[{'role': 'user', 'content': None}, {'role': 'user', 'content': 'it\\'s'}]", True),
        ('\n{"role": "user", "content": "a"}', True),
        ("[{'from': 'human', 'value': 'a'}]", True),
        ('{"role": "admin"}', False),
        ('[{"content": "a"}]', False),
        ("[1, 2]", False),
        ("[link](a)", False),
    ],
)
def test_messages_that_are_text_are_told(text: str, told: bool) -> None:
    assert [each[0] for each in found([pair(text, "yes", "no")])] == ["json_in_text"] * told


def test_skipped_rows_are_findings() -> None:
    report = SourceReport(
        name="x", kind="file", skipped={"empty_response": 3}, examples={"empty_response": ["x:1 `chosen`"]}
    )
    (finding,) = check_pairs(CLEAN, report=report)
    assert (finding.check, finding.severity, finding.count) == ("bad_rows.empty_response", "error", 3)
    assert finding.examples == ["x:1 `chosen`"]


def test_errors_stand_before_warnings_and_examples_are_few() -> None:
    findings: list[Finding] = check_pairs([*CLEAN, *CLEAN, pair("q", "x", "x")])
    assert [finding.severity for finding in findings] == ["error", "warning"]
    assert len(findings[1].examples) == 5 < findings[1].count
    assert findings[1].as_dict()["check"] == "duplicate_pairs"


def test_shared_prompts_are_counted_once_and_by_text() -> None:
    ours = [pair("A?", "yes", "no"), pair("b?", "yes", "no"), pair("a? ", "x", "y"), pair("c?", "yes", "no")]
    theirs = [pair("a?", "left", "right"), pair("a?", "up", "down"), pair("B?", "1", "2"), pair("d?", "1", "2")]
    assert len(shared_prompts(ours, theirs)) == 2
    assert shared_prompts(ours[3:], theirs) == set()
