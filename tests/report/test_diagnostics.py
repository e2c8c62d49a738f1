"""Which pairs each plot shows, and in which direction."""

from __future__ import annotations

from pathlib import Path

import pytest

from hafrm.evaluation.scoring import PairScore
from hafrm.report.diagnostics import ModelPlots, forest_plots, plot_groups
from hafrm.report.loading import Evaluation, read_evaluation
from tests.report.conftest import write_evaluation
from tests.report.test_plots import dots, elements, labels


def score(row: int, margin: float | None, length_difference: int = 0, model: str = "m", data: str = "set") -> PairScore:
    rewards = (None, None) if margin is None else (1 + margin, 1.0)
    return PairScore(model, data, f"{data}:{row}", f"prompt {row}", *rewards, 1000 + length_difference, 1000)


def read(folder: Path, scores: list[PairScore]) -> Evaluation:
    return read_evaluation(write_evaluation(folder, scores))


def plots(folder: Path, scores: list[PairScore]) -> dict[str, str]:
    """The plots of the only model on the only data set, by the first word or words of their titles."""
    (group,) = plot_groups(read(folder, scores))
    (model,) = group.models
    return {title.split(" (")[0]: str(plot) for title, plot in model.plots}


@pytest.mark.parametrize("sign", [1, -1])
def test_margins_are_chosen_less_rejected(tmp_path: Path, sign: int):
    shown = plots(tmp_path, [score(row, sign * (1.0 + row)) for row in range(20)])
    filled = {kind: elements(shown["Reward margins"], "path", kind)[0].get("d") != "" for kind in ("right", "wrong")}
    assert filled == {"right": sign > 0, "wrong": sign < 0}


def test_pairs_are_sliced_by_how_much_longer_the_chosen_response_is(tmp_path: Path):
    """The model is wrong whenever the chosen response is the longer one: accuracy falls from left to right."""
    shown = plots(tmp_path, [score(row, -1.0 if row > 0 else 1.0, 10 * row) for row in range(-40, 41)])
    heights = [y for _, y in dots(shown["Accuracy by length"])]
    assert heights == sorted(heights)
    assert heights[0] < heights[-1]
    assert {"−200", "0", "200"} <= set(labels(shown["Accuracy by length"]))


def test_pairs_are_sliced_by_the_size_of_their_margin(tmp_path: Path):
    """Small margins are wrong and large ones right: accuracy rises from left to right."""
    shown = plots(tmp_path, [score(row, (1 if row > 40 else -1) * row / 10) for row in range(1, 81)])
    heights = [y for _, y in dots(shown["Accuracy by margin"])]
    assert heights == sorted(heights, reverse=True)
    assert len(heights) == 8


def test_the_calibration_error_stands_in_the_title(tmp_path: Path):
    """The model is sure of every pair and right in three of four: the calibration error is a quarter."""
    evaluation = read(tmp_path, [score(row, 50.0 if row % 4 else -50.0) for row in range(40)])
    titles = [title for title, _ in plot_groups(evaluation)[0].models[0].plots]
    assert titles[1] == "Reliability (ECE 0.250)"


def test_several_data_sets_are_also_shown_together(tmp_path: Path):
    scores = [score(row, 1.0, data=data) for data in ("x/a", "x/b") for row in range(10)]
    groups = plot_groups(read(tmp_path, [*scores, score(10, None, data="x/b")]))
    sizes = {group.name: [(model.name, model.pairs) for model in group.models] for group in groups}
    assert sizes == {"All data sets together": [("m", "20 pairs")], "a": [("m", "10 pairs")], "b": [("m", "10 pairs")]}
    assert all(isinstance(model, ModelPlots) for group in groups for model in group.models)


def test_forest_plots_share_one_axis_that_holds_every_interval(tmp_path: Path):
    """The model is right in all pairs of one set, and in one of five of the other."""
    scores = [score(row, 1.0, data="easy") for row in range(50)]
    scores += [score(row, -1.0 if row % 5 else 1.0, data="hard") for row in range(50)]
    shown = dict(forest_plots(read(tmp_path, scores)))
    assert list(shown) == ["easy", "hard"]
    axes = {data: [label for label in labels(str(plot)) if label.isdigit()] for data, plot in shown.items()}
    assert axes["easy"] == axes["hard"]
    assert int(axes["easy"][0]) <= 20
    assert int(axes["easy"][-1]) == 100
    for plot in shown.values():
        assert all(0 <= x <= 320 for x, _ in dots(str(plot)))
