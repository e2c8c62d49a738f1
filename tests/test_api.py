"""The Python API: dictionaries as options, loaded models, callbacks, metrics, and results in notebooks."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, TrainerCallback

import hafrm
from hafrm.errors import ConfigError, HafrmError
from hafrm.evaluation.results import Results
from hafrm.losses import bradley_terry_loss
from hafrm.training import objective
from tests.tiny import save_tiny, some_pairs

QUICK: dict[str, Any] = {
    "method": "baseline",
    "data_options": {"max_length": 256},
    "training": {"max_steps": 2, "per_device_train_batch_size": 4, "use_cpu": True, "report_to": "none"},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("api") / "base")


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    return [pair.as_row() for pair in some_pairs(8)]


def weights(run: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(run / "model.safetensors")


def test_dir_names_the_public_api_and_loads_nothing() -> None:
    code = "import sys, hafrm; assert {*hafrm.__all__} <= {*dir(hafrm)}; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert not {"os", "sys", "importlib"} & set(dir(hafrm))


def test_every_public_name_is_documented_with_an_example_or_its_fields() -> None:
    for name in hafrm.__all__:
        value = getattr(hafrm, name)
        assert value.__doc__, name
        if not isinstance(value, type):
            assert "Example:" in value.__doc__, name


def test_a_dictionary_trains_evaluates_scores_and_exports(base: Path, rows: list[Any], tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = str(tmp_path / "run")
    result = hafrm.train({"model": str(base), "data": str(file), "out": run, **QUICK})
    assert (result.folder, result.steps) == (Path(run), 2)
    same = hafrm.train({"model": base, "data": rows, "out": str(tmp_path / "memory"), **QUICK})
    assert all(torch.equal(value, weights(same.folder)[name]) for name, value in weights(Path(run)).items())
    results = hafrm.evaluate({"models": run, "data": [str(file)], "out": str(tmp_path / "eval")})
    measured = results.cells[run, str(file)].measured
    assert measured is not None
    shown = results._repr_html_()
    assert f"{100 * measured.accuracy:.1f}" in shown
    heading, *names = re.findall("<tr><td>(.*?)</td>", shown)
    assert "accuracy" in heading
    assert [names[0], names[-1], len(names)] == ["run", "random", 3]  # the longer response is between them
    counts = hafrm.score({"model": run, "data": str(file), "out": str(tmp_path / "scored.jsonl")})
    assert counts.scored == 8
    assert hafrm.score({"model": run, "data": rows, "out": str(tmp_path / "memory.jsonl")}).scored == 8
    assert (tmp_path / "memory.jsonl").read_bytes() == (tmp_path / "scored.jsonl").read_bytes()
    assert hafrm.export({"run": run}) == [Path(run) / "export" / "reward"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"methd": "haf"}, "--method"),
        ({"method": "rm"}, "method must be haf, baseline, dpo or grm, got rm"),
        ({"loss": {"betta": 1}}, "--loss.beta"),
        ({"lora": {"rank": "many"}}, "lora.rank must be a whole number, got many"),
        ({"training": {"max_stps": 1}}, "max_steps"),
        ({"training": {"eval_steps": "abc"}}, r"training\.eval_steps must be a number, got 'abc'"),
        ({"training": {"data_seed": "abc"}}, r"training\.data_seed must be a whole number, got 'abc'"),
        ({"model": "/nowhere/at/all"}, "no such folder"),
        ({"data": "nothing.jsonl"}, "no such file"),
    ],
)
def test_a_mistake_in_a_dictionary_is_the_command_lines_error(
    options: dict[str, Any], expected: str, base: Path, rows: list[Any], tmp_path: Path
) -> None:
    with pytest.raises(HafrmError, match=expected):
        hafrm.train({"model": str(base), "data": rows, "out": str(tmp_path / "run"), **options})
    assert not (tmp_path / "run").exists()


def test_a_missing_reference_is_the_command_lines_error_too(base: Path, rows: list[Any], tmp_path: Path) -> None:
    values = {"model": base, "reference": "/nowhere/at/all", "data": rows, "out": tmp_path / "out.jsonl"}
    with pytest.raises(HafrmError, match="no such folder"):
        hafrm.score(values)


def test_a_loaded_models_name_is_kept_if_it_is_given(
    base: Path, rows: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run's record has it."""
    monkeypatch.setattr("hafrm.report.training.train_with_page", lambda config, **options: config)
    found = [
        hafrm.train({"data": rows, "out": tmp_path / "run", **named}, model=object()) for named in ({"model": base}, {})
    ]
    assert [config.model for config in found] == [str(base), "."]
    assert found[0].out == str(tmp_path / "run")


def test_calibration_rows_may_be_in_memory(rows: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def run(config: Any, **options: Any) -> Results:
        seen.append(config.calibration_data)
        return Results(rows=0, cells={}, comparisons=[])

    monkeypatch.setattr("hafrm.evaluation.run.evaluate", run)
    found = hafrm.evaluate({"models": ["world/helpful"], "data": rows, "calibration_data": rows, "out": tmp_path})
    assert hafrm.load_pairs(seen).pairs == hafrm.load_pairs(rows).pairs
    assert found._repr_html_() == ""


def test_groups_may_be_dataclasses_and_other_types_are_refused(base: Path, rows: list[Any], tmp_path: Path) -> None:
    options = {"data_options": hafrm.DataOptions(max_length=256), "loss": hafrm.LossConfig(label_smoothing=0.1)}
    run = hafrm.train({"model": base, "data": rows, "out": tmp_path / "run", **QUICK, **options})
    assert json.loads((run.folder / "manifest.json").read_text())["config"]["loss"]["label_smoothing"] == 0.1
    with pytest.raises(TypeError, match="TrainConfig or a dictionary"):
        hafrm.train("runs/a")  # type: ignore[arg-type]


def test_a_loaded_model_trains_as_its_folder_does(base: Path, rows: list[Any], tmp_path: Path) -> None:
    by_name = hafrm.train({"model": base, "data": rows, "out": tmp_path / "a", **QUICK, "method": "haf"})
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    before, template = {name: value.clone() for name, value in model.state_dict().items()}, tokenizer.chat_template
    config = {"data": rows, "out": tmp_path / "b", **QUICK, "method": "haf"}
    loaded = hafrm.train(config, model=model, tokenizer=tokenizer)
    assert all(torch.equal(value, weights(loaded.folder)[name]) for name, value in weights(by_name.folder).items())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert tokenizer.chat_template == template
    scorer = hafrm.load_scorer(str(loaded.folder), head="policy")  # finds its reference again
    assert len(scorer.score([hafrm.Conversation.of("2 + 2?", "Four.")])) == 1
    with pytest.raises(ConfigError, match="tokenizer"):
        hafrm.train(config, model=model)


@pytest.mark.parametrize(
    ("objects", "name"),
    [
        ({"tokenizer": 5}, "tokenizer"),
        ({"model": torch.nn.Linear(1, 1)}, "model"),
        ({"callbacks": [print]}, "callbacks"),
    ],
)
def test_objects_of_other_types_are_refused(
    objects: dict[str, Any], name: str, base: Path, rows: list[Any], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=f"^{name}: expected"):
        hafrm.train({"model": base, "data": rows, "out": tmp_path / "run", **QUICK}, **objects)
    assert not (tmp_path / "run").exists()


def test_callbacks_are_called(base: Path, rows: list[Any], tmp_path: Path) -> None:
    seen: list[int] = []

    class Steps(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            seen.append(state.global_step)

    hafrm.train({"model": base, "data": rows, "out": tmp_path / "run", **QUICK}, callbacks=[Steps()])
    assert seen == [1, 2]


def test_losses_and_metrics_of_ones_own(
    base: Path, rows: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hafrm.losses import rewards as losses

    monkeypatch.setattr(objective, "_METRICS", {})
    monkeypatch.setitem(losses._LOSSES, "own", bradley_terry_loss)
    hafrm.register_metric("level", lambda chosen, rejected: (chosen + rejected) / 2)
    loss = hafrm.LossConfig(reward_loss="own")
    run = hafrm.train({"model": base, "data": rows, "eval_data": rows, "out": tmp_path / "run", **QUICK, "loss": loss})
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    trained = [line for line in lines if "loss" in line]
    for line in trained:
        assert line["custom/level"] == pytest.approx((line["rewards/chosen"] + line["rewards/rejected"]) / 2, abs=1e-5)
    assert any("eval_custom/level" in line for line in lines) or "eval_custom/level" in run.metrics
    with pytest.raises(ValueError, match="taken"):
        hafrm.register_metric("level", lambda chosen, rejected: chosen)
    with pytest.raises(ValueError, match="identifier"):
        hafrm.register_metric("no name", lambda chosen, rejected: chosen)


def test_calls_from_several_threads_do_what_calls_one_after_another_do(
    base: Path, rows: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers can't build several models at once: their weights may be lost, in later calls too."""
    building: list[str] = []
    most: list[int] = []
    build = PreTrainedModel.from_pretrained.__func__

    def slowly(kind: type, *args: Any, **options: Any) -> Any:
        building.append(kind.__name__)
        time.sleep(0.02)
        made = build(kind, *args, **options)
        most.append(len(building))
        building.pop()
        return made

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", classmethod(slowly))

    def train(name: str) -> dict[str, torch.Tensor]:
        hafrm.train({**QUICK, "model": str(base), "data": rows, "out": str(tmp_path / name)})
        return weights(tmp_path / name)

    def score(name: str) -> str:
        hafrm.score({"model": str(tmp_path / "alone"), "data": rows, "out": str(tmp_path / name)})
        return (tmp_path / name).read_text()

    def load(name: str) -> list[float | None]:
        scorer = hafrm.load_scorer(str(tmp_path / "alone"))
        return scorer.score([("a", name)] * 2)

    expected, scores = train("alone"), score("alone.jsonl")
    with ThreadPoolExecutor(8) as pool:
        trained = [pool.submit(train, f"run{n}") for n in range(2)]
        scored = [pool.submit(score, f"scores{n}.jsonl") for n in range(3)]
        loaded = [pool.submit(load, "b") for _ in range(3)]
    for each in trained:
        torch.testing.assert_close(each.result(), expected, rtol=0, atol=0)
    assert [each.result() for each in scored] == [scores] * 3
    assert [each.result() for each in loaded] == [load("b")] * 3
    assert len(most) > 8
    assert max(most) == 1


def test_rows_are_scored_to_an_output_that_only_takes_text(
    base: Path, rows: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in notebooks."""
    hafrm.train({**QUICK, "model": str(base), "data": rows, "out": str(tmp_path / "run")})
    rows[0]["note"] = "¿雪? \ud800"
    asked = {"model": str(tmp_path / "run"), "data": rows}
    hafrm.score({**asked, "out": str(tmp_path / "scored.jsonl")})
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    hafrm.score(asked)
    assert sys.stdout.getvalue() == (tmp_path / "scored.jsonl").read_text(encoding="utf-8")
