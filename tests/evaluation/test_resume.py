"""An evaluation resumes where it was stopped, scores nothing twice, and never mixes scores of two models."""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hafrm import atomic
from hafrm.errors import BadRowError, ConfigError, ModelError, RefusedError
from hafrm.evaluation import scoring
from hafrm.evaluation.options import EvaluateConfig
from hafrm.evaluation.run import evaluate
from hafrm.evaluation.scoring import read_scores
from hafrm.models.options import ScoreOptions, ScorerChoice
from hafrm.pairs import Conversation
from hafrm.report.loading import read_evaluation
from hafrm.stats import expected_calibration_error, fit_temperature
from hafrm.store import alone
from tests.tiny import pair, some_pairs

PAIRS = 18


class Bench:
    """Models with a config and a file of weights; a reward is the response's length times a number in that file.

    The last digit shows the position in the call, since the rounding of real models depends on the batch.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.scored: list[str] = []
        """The conversations that were scored, each as "MODEL RESPONSE"."""
        self.loaded: list[str] = []
        self.stop_after: int | None = None
        self.refuses = ""
        (folder / "data.jsonl").write_text("".join(json.dumps(each.as_row()) + "\n" for each in some_pairs(PAIRS)))

    def model(self, name: str, factor: int = 1) -> str:
        path = self.folder / name
        path.mkdir(exist_ok=True)
        config = {"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]}
        (path / "config.json").write_text(json.dumps(config))
        (path / "model.safetensors").write_text(str(factor))
        return str(path)

    def config(self, *models: str, **options: Any) -> EvaluateConfig:
        data = options.pop("data", [str(self.folder / "data.jsonl")])
        return EvaluateConfig(models=list(models), data=data, out=str(self.folder / "out"), **options)

    def load(self, model: str) -> Bench.Scorer:
        self.loaded.append(model)
        return Bench.Scorer(self, model, int((Path(model) / "model.safetensors").read_text()))

    class Scorer:
        def __init__(self, bench: Bench, model: str, factor: int) -> None:
            self.bench, self.model, self.factor = bench, model, factor

        def score(self, conversations: Sequence[Conversation]) -> list[float | None]:
            if self.bench.stop_after is not None and len(self.bench.scored) >= self.bench.stop_after:
                raise KeyboardInterrupt
            texts = [c.response[0].content for c in conversations]
            refused = {i: "No." for i, text in enumerate(texts) if self.bench.refuses and self.bench.refuses in text}
            if refused:
                raise RefusedError(refused)
            self.bench.scored += [f"{self.model} {text}" for text in texts]
            return [self.factor * len(text) + place * 1e-6 for place, text in enumerate(texts)]

    def outcome(self) -> tuple[bytes, bytes]:
        out = self.folder / "out"
        return (out / "scores.jsonl").read_bytes(), (out / "results.json").read_bytes()

    def parts(self) -> list[Path]:
        return sorted((self.folder / "out" / "parts").glob("*.jsonl"))


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    bench = Bench(tmp_path)
    monkeypatch.setattr(scoring, "CHUNK", 4)
    monkeypatch.setattr(ScorerChoice, "load", lambda self, model, options: bench.load(model))
    return bench


def undisturbed(bench: Bench, config: EvaluateConfig) -> tuple[bytes, bytes]:
    evaluate(replace(config, out=str(bench.folder / "undisturbed")))
    bench.scored.clear()
    out = bench.folder / "undisturbed"
    return (out / "scores.jsonl").read_bytes(), (out / "results.json").read_bytes()


@pytest.mark.parametrize("stop_after", [0, 8, 24, 36, 44, 68])
def test_a_killed_evaluation_goes_on_and_ends_the_same(bench: Bench, stop_after: int) -> None:
    config = bench.config(bench.model("a"), bench.model("b", -2))
    expected = undisturbed(bench, config)
    bench.stop_after = stop_after
    with pytest.raises(KeyboardInterrupt):
        evaluate(config)
    assert not (bench.folder / "out" / "results.json").exists()
    assert not (bench.folder / "out" / "scores.jsonl").exists()
    done = len(bench.scored)
    assert stop_after <= done < 4 * PAIRS
    bench.stop_after = None
    evaluate(config)
    assert bench.outcome() == expected
    assert len(bench.scored) == 4 * PAIRS, "a pair was scored twice"


@pytest.mark.parametrize("cut", [0, 1, 150, 700, 1500, 2600])
def test_half_a_line_and_half_a_chunk_are_dropped(bench: Bench, cut: int) -> None:
    """The result is the same whatever is left of the file: a chunk with other pairs would differ in its last digit."""
    config = bench.config(bench.model("a"))
    expected = undisturbed(bench, config)
    evaluate(config)
    (part,) = bench.parts()
    os.truncate(part, cut)
    lines: list[str] = []
    bench.scored.clear()
    evaluate(config, say=lines.append)
    assert bench.outcome() == expected
    kept = PAIRS - len(bench.scored) // 2
    assert kept % 4 == 0
    assert kept <= cut / 100
    assert len(lines) == (1 if kept else 0)
    assert len(read_scores(part)) == PAIRS


def test_a_finished_evaluation_scores_and_loads_nothing(bench: Bench) -> None:
    config = bench.config(bench.model("a"), bench.model("b"))
    evaluate(config)
    before = bench.outcome()
    bench.scored.clear()
    bench.loaded.clear()
    evaluate(config)
    assert (bench.scored, bench.loaded) == ([], [])
    assert bench.outcome() == before


def test_two_evaluations_do_not_share_a_folder(bench: Bench) -> None:
    """The second would start the first's unfinished file again."""
    config = bench.config(bench.model("m"))
    with alone(Path(config.out)), pytest.raises(ConfigError, match="Another command is writing"):
        evaluate(config)
    assert not bench.scored
    waiting = threading.Thread(target=evaluate, args=(config,), kwargs={"wait": True})
    with alone(Path(config.out)):
        waiting.start()
        waiting.join(0.2)
        assert not bench.scored
    waiting.join()
    assert (Path(config.out) / "results.json").exists()


def test_one_model_more_is_the_only_one_scored(bench: Bench) -> None:
    a, b = bench.model("a"), bench.model("b", 3)
    evaluate(bench.config(a))
    bench.scored.clear()
    results = evaluate(bench.config(a, b)).as_dict()
    assert {line.split()[0] for line in bench.scored} == {b}
    assert (list(results["models"]), results["rows"]) == ([a, b], 2 * PAIRS)
    assert results["models"][a] != {}
    evaluate(bench.config(b))
    assert {score.model for score in read_evaluation(bench.folder / "out").scores} == {b}


def change_weights(bench: Bench) -> dict[str, Any]:
    bench.model("a", 5)
    return {}


def change_config(bench: Bench) -> dict[str, Any]:
    path = bench.folder / "a" / "config.json"
    path.write_text(path.read_text().replace("{", '{"num_labels": 1, ', 1))
    return {}


def change_data(bench: Bench) -> dict[str, Any]:
    path = bench.folder / "data.jsonl"
    path.write_text(path.read_text().replace("question 3", "another question"))
    return {}


def shift_rows(bench: Bench) -> dict[str, Any]:
    path = bench.folder / "data.jsonl"
    path.write_text("\n" + path.read_text())
    return {}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (change_weights, "the model changed"),
        (change_config, "the model changed"),
        (change_data, "the pairs changed"),
        (shift_rows, "the rows of its pairs changed"),
        (lambda bench: {"head": "reward"}, "head changed"),
        (lambda bench: {"head": "combined", "combined_weight": 2.0}, "head, combined_weight changed"),
        (lambda bench: {"reference": bench.model("r")}, "its reference changed"),
        (lambda bench: {"score": ScoreOptions(max_length=64)}, "score.max_length changed"),
        (lambda bench: {"score": ScoreOptions(overlong="truncate")}, "score.overlong changed"),
    ],
    ids=["weights", "config", "data", "rows", "head", "combined_weight", "reference", "max_length", "overlong"],
)
@pytest.mark.parametrize("stop_after", [None, 24], ids=["finished", "stopped"])
def test_what_changed_is_scored_anew(
    bench: Bench, change: Callable[[Bench], dict[str, Any]], named: str, stop_after: int | None
) -> None:
    a = bench.model("a")
    bench.stop_after = stop_after
    try:
        evaluate(bench.config(a))
    except KeyboardInterrupt:
        bench.stop_after = None
    options = change(bench)
    expected = undisturbed(bench, bench.config(a, **options))
    lines: list[str] = []
    evaluate(bench.config(a, **options), say=lines.append)
    assert bench.outcome() == expected
    assert len(bench.scored) == 2 * PAIRS
    (line,) = lines
    assert line.startswith(f"{a} on {bench.folder / 'data.jsonl'}: {named}")


def test_options_that_only_round_change_nothing(bench: Bench) -> None:
    a = bench.model("a")
    evaluate(bench.config(a))
    bench.scored.clear()
    evaluate(bench.config(a, score=ScoreOptions(batch_size=3, device="cpu", padding_side="left")))
    assert bench.scored == []


@pytest.mark.parametrize("damage", ["{half", "null", '{"model": "a"}'])
@pytest.mark.parametrize("ending", [".json", ".jsonl"])
def test_damaged_parts_are_scored_anew(bench: Bench, damage: str, ending: str) -> None:
    config = bench.config(bench.model("a"))
    evaluate(config)
    before = bench.outcome()
    (part,) = bench.parts()
    path = part.with_suffix(ending)
    path.write_text(damage + "\n" + path.read_text())
    lines: list[str] = []
    evaluate(config, say=lines.append)
    assert bench.outcome() == before
    assert "damaged" in lines[0]


ODD = {
    "reward_chosen": [math.nan, math.inf, "x", True, None, 10**400, [1.0], {}],
    "length_chosen": [1.5, None, "3", False],
    "unscored": [None, 3, "overlong"],
    "group": [None, 7],
    "model": [None],
}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in ODD.items() for value in values])
def test_scores_that_can_not_be_are_scored_anew(bench: Bench, field: str, value: object) -> None:
    """A reward is a finite number, or missing with a reason."""
    config = bench.config(bench.model("a"))
    evaluate(config)
    before = bench.outcome()
    (part,) = bench.parts()
    first, *rest = part.read_text().splitlines()
    part.write_text("\n".join([json.dumps(json.loads(first) | {field: value}), *rest]) + "\n")
    lines: list[str] = []
    evaluate(config, say=lines.append)
    assert bench.outcome() == before
    assert "damaged" in lines[0]
    assert str(part) in lines[0]


@pytest.mark.parametrize("depends_on", [[], "x", None, 3])
def test_a_part_that_depends_on_what_can_not_be(bench: Bench, depends_on: object) -> None:
    config = bench.config(bench.model("a"))
    evaluate(config)
    header = bench.parts()[0].with_suffix(".json")
    header.write_text(json.dumps(json.loads(header.read_text()) | {"depends_on": depends_on}))
    lines: list[str] = []
    evaluate(config, say=lines.append)
    assert "damaged" in lines[0]


def test_a_models_folder_is_no_place_for_results(bench: Bench) -> None:
    model = bench.model("a")
    with pytest.raises(ConfigError, match="model's folder"):
        evaluate(replace(bench.config(model), out=str(model)))


def test_refused_rows_are_skipped_at_no_cost_and_met_again(bench: Bench) -> None:
    """The remedy in the error keeps the scores, and a skipped row is an error again if errors are requested."""
    a = bench.model("a")
    bench.refuses = "yes 12"
    with pytest.raises(BadRowError, match="row 13"):
        evaluate(bench.config(a))
    assert len(bench.scored) == 24
    skip = {"data_options": replace(bench.config(a).data_options, on_bad_row="skip")}
    results = evaluate(bench.config(a, **skip)).as_dict()
    assert results["models"][a]["data"][str(bench.folder / "data.jsonl")]["unscored"] == 1
    assert len(bench.scored) == 2 * PAIRS - 1
    with pytest.raises(BadRowError, match=f"^{a}: .*row 13"):
        evaluate(bench.config(a))


def test_all_models_are_looked_up_before_any_is_scored(bench: Bench) -> None:
    with pytest.raises(ModelError, match=r"nowhere.*no such folder here"):
        evaluate(bench.config(bench.model("a"), str(bench.folder / "nowhere")))
    empty = Path(bench.model("empty"))
    (empty / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="empty contains no weights"):
        evaluate(bench.config(bench.model("a"), str(empty)))
    with pytest.raises(ModelError, match="no-reference"):
        evaluate(bench.config(bench.model("a"), head="policy", reference=str(bench.folder / "no-reference")))
    assert (bench.loaded, bench.scored) == ([], [])


def test_errors_name_the_model(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def overflow(self: Bench.Scorer, conversations: Sequence[Conversation]) -> list[float | None]:
        raise ModelError("The model gave a reward that is not finite.")

    a = bench.model("a")
    monkeypatch.setattr(Bench.Scorer, "score", overflow)
    with pytest.raises(ModelError, match=f"^{a}: The model gave"):
        evaluate(bench.config(a))


def test_an_earlier_result_is_gone_before_other_scores_stand_there(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate(bench.config(bench.model("a")))
    bench.model("a", 7)

    def stopped(path: Path, value: Any) -> None:
        if path.name == "results.json":
            raise KeyboardInterrupt
        write_json(path, value)

    write_json = atomic.write_json
    monkeypatch.setattr(atomic, "write_json", stopped)
    with pytest.raises(KeyboardInterrupt):
        evaluate(bench.config(bench.model("a")))
    assert not (bench.folder / "out" / "results.json").exists()


def test_calibration_pairs_set_the_temperature(bench: Bench) -> None:
    """The temperature is fitted to other pairs, whose scores are not part of the results but resume in the same way."""
    a = bench.model("a", 2)
    path = bench.folder / "validation.jsonl"
    rows = [pair("why", "yes " * (3 + i % 3), "no " * (1 + 2 * i % 9), row=i).as_row() for i in range(12)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    results = evaluate(bench.config(a, calibration_data=str(path))).as_dict()
    cell = results["models"][a]["data"][str(bench.folder / "data.jsonl")]
    margins = [score.margin for score in read_scores(bench.folder / "out" / "calibration.jsonl")]
    assert len(margins) == 12
    assert 0 < fit_temperature(margins) == cell["temperature"]
    own = np.array([score.margin for score in read_scores(bench.folder / "out" / "scores.jsonl")])
    stated = 1 / (1 + np.exp(-own / cell["temperature"]))
    assert cell["ece_calibrated"] == pytest.approx(expected_calibration_error(stated))
    assert results["rows"] == PAIRS == len(read_evaluation(bench.folder / "out").scores)
    bench.scored.clear()
    without = evaluate(bench.config(a)).as_dict()
    assert "temperature" not in without["models"][a]["data"][str(bench.folder / "data.jsonl")]
    assert not (bench.folder / "out" / "calibration.jsonl").exists()
    assert bench.scored == []


def test_calibration_pairs_are_not_the_evaluated_ones(bench: Bench) -> None:
    with pytest.raises(ConfigError, match="calibration_data"):
        evaluate(bench.config(bench.model("a"), calibration_data=str(bench.folder / "data.jsonl")))
