"""Combining runs and pairs in one cell."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from hafrm.data import load_pairs
from hafrm.errors import DataError
from hafrm.evaluation.scoring import SCORES_FILE, PairScore
from hafrm.paper import measures
from hafrm.paper.plans import single_sets
from hafrm.paper.presets import small_scale
from hafrm.paper.scales import METHODS, Overrides
from hafrm.paper.tables import lines_of, template
from tests.paper.recorded import recorded_accuracies
from tests.paper.test_plans import job, small_files


def test_scores_of_a_file_and_of_what_it_became_are_not_put_together() -> None:
    """A pair is identified by its row; after a change the row may contain another prompt."""

    def scores(prompt: str) -> list[PairScore]:
        return [PairScore("m", "d", f"d:{row}", f"{prompt}{row}", 1.0, 0.0, 5, 5) for row in range(8)]

    old, new = (measures.measured([scores(prompt)], "BS, haf") for prompt in ("old", "new"))
    with pytest.raises(DataError, match=r"BS, haf: d:0 does not have the same prompt"):
        measures.measured([scores("old"), scores("new")], "BS, haf")
    with pytest.raises(DataError, match="not have the same prompt"):
        measures.relation({"haf": old, "baseline": new}, "baseline", backbone="b", trained_on="BS", tested_on="BS")


def test_pairs_that_are_left_out_are_counted_by_reason(tmp_path: Path) -> None:
    """Of six test pairs one is too long, and the prompts of two were trained on. The record gives the same accuracy."""
    data = small_files(tmp_path / "data")
    scale = small_scale(Overrides(), backbones=["m"], data_folder=str(data))
    asked = job(scale, sets=("BS",), out=tmp_path / "o")
    (scoring,), test = single_sets(asked).scorings, scale.sets["BS"].test
    trained = [pair.group for pair in load_pairs(scale.sets["BS"].train, split="train").pairs[:2]]
    rows = []
    for run in scoring.runs:
        for number, group in enumerate(["a", "b", "c", "d", *trained]):
            rewards = (None, None, 5, 5, "overlong") if group == "c" else (float(group != "d"), 0.5, 5, 5)
            rows.append(PairScore(str(run.folder(asked)), test, f"{test}:{number}", group, *rewards))
            rows.append(PairScore(str(run.folder(asked)), "other", f"other:{number}", group, 0.0, 1.0, 5, 5))
    folder = scoring.folder(asked)
    folder.mkdir(parents=True)
    (folder / SCORES_FILE).write_text("".join(f"{json.dumps(asdict(row))}\n" for row in rows))
    grid = measures.measure(asked, ("BS",), ("BS",), backbone="m")
    assert len(grid["BS"]["haf"].pair_hits) == 3
    assert grid["BS"]["haf"].accuracy == pytest.approx(2 / 3)
    for _ in range(2):  # the second record replaces the first
        measures.write_record(asked, [scoring], [], tmp_path)
    assert recorded_accuracies(tmp_path) == {f"m/BS/{name}-seed0 on BS": pytest.approx(2 / 3) for name in METHODS}
    assert len((tmp_path / "record.jsonl").read_text().splitlines()) == 1 + 3
    expected = {"overlong": 1, "with a prompt that was trained on": 2}
    assert measures.left_out_of({"m": grid}) == {"BS (m)": expected}
    (line,) = lines_of(template("pages").left_out_notes(measures.left_out_of({"m": grid})))
    assert all(words in line for words in ("BS (m)", "1 overlong", "2 with a prompt"))


def test_leads_that_cancel_out_are_no_lead() -> None:
    """Leads of 1, 2 and -3 pairs of ten: as floats, .1 + .2 - .3 is above 0."""

    def row(right: int) -> measures.Measured:
        hits = {f"f:{i}": float(i < right) for i in range(10)}
        return measures.Measured((right / 10,), hits, {pair: pair for pair in hits}, 0.5)

    columns = [measures.Paired.of(row(5 + lead), row(5), "a and b") for lead in (1, 2, -3)]
    mean = measures.mean_compared(columns)
    assert (mean["difference"], mean["by_seed"]) == (0, {"0": 0})
