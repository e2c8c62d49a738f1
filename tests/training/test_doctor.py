"""Runs that are made to fail give one line per sign, and a healthy run gives none."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from hafrm.cli import main
from hafrm.training.doctor import Circumstances, Watch
from tests.tiny import save_tiny

Pair = tuple[str, str]


def healthy(draw: random.Random) -> Pair:
    """The better response has an exclamation mark; both are equally long."""
    return "yes! " + draw.choice("abcd"), "no.. " + draw.choice("abcd")


def flipped(draw: random.Random) -> Pair:
    chosen, rejected = healthy(draw)
    return rejected, chosen


def random_labels(draw: random.Random) -> Pair:
    chosen, rejected = healthy(draw)
    return (chosen, rejected) if draw.random() < 0.5 else (rejected, chosen)


def longer(draw: random.Random) -> Pair:
    """The better response is the longer one, of the same letters."""
    return "a" * draw.randint(9, 12), "a" * draw.randint(2, 5)


def file(path: Path, kind: Callable[[random.Random], Pair], count: int) -> str:
    draw = random.Random(str(kind))
    rows = []
    for number in range(count):
        chosen, rejected = kind(draw)
        rows.append({"prompt": f"q{path.stem}{number}", "chosen": chosen, "rejected": rejected})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("doctor") / "base"))


def checks(
    base: str,
    folder: Path,
    capfd: pytest.CaptureFixture[str],
    kind: Callable[[random.Random], Pair],
    *options: str,
    validation: Callable[[random.Random], Pair] | None = None,
) -> list[str]:
    """Train, and return the checks reported by the run and by the command afterwards, which must agree."""
    words = ["train", "--model", base, "--data", file(folder / "t.jsonl", kind, 2000), "--out", str(folder / "run")]
    words += ["--method", "baseline", "--training.max_steps", "60", "--training.use_cpu", "--training.bf16", "false"]
    words += ["--training.learning_rate", "3e-3", "--data_options.max_length", "64", "--training.report_to", "none"]
    words += ["--eval_data", file(folder / "v.jsonl", validation, 200)] if validation else []
    assert main([*words, *options]) == 0
    said = capfd.readouterr().err
    assert main(["doctor", str(folder / "run"), "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    for each in found:
        assert said.count(each["text"]) == 1
    assert said.count("warning: step") == len(found)
    return [each["check"] for each in found]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["haf", "baseline", "dpo"])
def test_a_healthy_run_is_silent(base: str, method: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert checks(base, tmp_path, capfd, healthy, "--method", method, validation=healthy) == []
    main(["doctor", str(tmp_path / "run")])
    assert "No sign" in capfd.readouterr().out


@pytest.mark.parametrize("rate", ["0", pytest.param("1e-12", marks=pytest.mark.slow)])
def test_a_run_that_takes_no_steps(base: str, rate: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    options = ["--training.learning_rate", rate, "--training.max_steps", "30"]
    found = checks(base, tmp_path, capfd, random_labels, *options)
    assert "chance" in found


@pytest.mark.slow
def test_a_head_that_stays_zero(base: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    found = checks(base, tmp_path, capfd, healthy, "--training.learning_rate", "1e-12", "--head_init", "zero")
    assert "constant rewards" in found


@pytest.mark.slow
def test_labels_at_random(base: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert "chance" in checks(base, tmp_path, capfd, random_labels)


def test_a_rate_that_is_far_too_high(base: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    found = checks(base, tmp_path, capfd, random_labels, "--training.learning_rate", "3", "--training.max_steps", "30")
    assert {"diverged", "drift", "exploding gradients"} & {*found}


@pytest.mark.parametrize(("loss", "kind"), [("loss/reward", "bradley_terry"), ("loss/policy", "dpo")])
def test_a_loss_that_rises_far_above_that_of_equal_rewards(loss: str, kind: str) -> None:
    def run(values: Sequence[float]) -> list[dict[str, Any]]:
        rows = [row(step, **{loss: value}) for step, value in enumerate(values, 1)]
        return [{name: value for name, value in each.items() if name in (loss, "step", "loss")} for each in rows]

    assert watched(run([0.7] + 99 * [1.5])) == ["diverged"]
    assert watched(run([0.7] + 99 * [1.5]), **{kind: False}) == []
    assert watched(run([1.8] + 99 * [1.5])) == []  # rows with margins, or a head that was kept, begin high


def test_a_long_warm_up_is_waited_for() -> None:
    rows = [row(step, accuracies=0.5) for step in range(1, 301)] + [row(step) for step in range(301, 1001)]
    assert watched(rows) == ["chance"]
    assert watched(rows, warmup_steps=300) == []


@pytest.mark.slow
def test_flipped_labels_show_in_the_validation(base: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert "flipped labels" in checks(base, tmp_path, capfd, flipped, validation=healthy)


@pytest.mark.slow
def test_flipped_labels_show_in_training_from_a_trained_head(
    base: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for part in ("first", "second"):
        (tmp_path / part).mkdir()
    assert checks(base, tmp_path / "first", capfd, healthy) == []
    start = str(tmp_path / "first" / "run")
    found = checks(start, tmp_path / "second", capfd, flipped, "--training.learning_rate", "1e-7")
    assert "flipped labels" in found


@pytest.mark.slow
def test_pairs_that_length_decides(base: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert checks(base, tmp_path, capfd, longer) == ["length"]


@pytest.mark.slow
def test_a_resumed_run_says_nothing_twice(base: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from transformers import TrainerCallback

    from hafrm.training import callbacks

    options = ["--training.save_steps", "35", "--training.learning_rate", "1e-12", "--head_init", "zero"]

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 40:
                raise KeyboardInterrupt

    words = ["train", "--model", base, "--data", file(tmp_path / "t.jsonl", random_labels, 2000), *options]
    words += ["--out", str(tmp_path / "run"), "--method", "baseline", "--training.max_steps", "60"]
    words += ["--data_options.max_length", "64", "--training.use_cpu", "--training.report_to", "none"]
    original = callbacks.MetricsFile.on_step_end
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(callbacks.MetricsFile, "on_step_end", Stop.on_step_end)
        assert main(words) == 130
    assert callbacks.MetricsFile.on_step_end is original
    first = capfd.readouterr().err
    assert main(words) == 0
    second = capfd.readouterr().err
    assert (first.count(": constant rewards:"), second.count(": constant rewards:")) == (1, 0)
    assert "resuming from checkpoint-35" in second


def watched(rows: Sequence[dict[str, Any]], **circumstances: Any) -> list[str]:
    watch = Watch(Circumstances(**{"pairs_per_step": 16} | circumstances))
    found = [finding for row in rows for finding in watch.add(row)] + watch.finish()
    return [finding.check for finding in found]


def row(step: int, **values: float) -> dict[str, Any]:
    names = {"accuracies": "rewards/accuracies", "chosen": "rewards/chosen", "rejected": "rewards/rejected"}
    usual = {"loss": 0.5, "loss/reward": 0.5, "rewards/accuracies": 0.75, "grad_norm": 1.0}
    return usual | {names.get(name, name): value for name, value in values.items()} | {"step": step}


def test_rewards_that_drift_apart_from_zero() -> None:
    steady = [row(step, chosen=9.0, rejected=8.5) for step in range(1, 101)]
    drifting = [row(step, chosen=step / 4 + 0.5, rejected=step / 4) for step in range(1, 101)]
    assert watched(steady) == []  # a head that was kept may begin anywhere
    assert watched(drifting) == ["drift"]


def test_gradients_that_vanish_or_explode() -> None:
    assert watched([row(step, grad_norm=10.0 ** (-step / 10)) for step in range(1, 101)]) == ["vanishing gradients"]
    fitted = [row(step, grad_norm=10.0 ** (-step / 10), accuracies=1.0) for step in range(1, 101)]
    assert watched(fitted) == []
    assert watched([row(step, grad_norm=1.1**step) for step in range(1, 101)]) == ["exploding gradients"]


def evaluation(step: int, loss: float, accuracy: float = 0.7) -> dict[str, Any]:
    return {"step": step, "eval_loss": loss, "eval_rewards/accuracies": accuracy}


def test_a_validation_that_gets_worse_while_training_gets_better() -> None:
    def run(losses: Sequence[float], falling: float) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        for place, loss in enumerate(losses, 1):
            rows += [row(20 * place + step, loss=0.6 - falling * place) for step in range(-19, 1)]
            rows.append(evaluation(20 * place, loss))
        return rows

    assert watched(run([0.6, 0.55, 0.6, 0.65, 0.7], 0.1)) == ["overfitting"]
    assert watched(run([0.6, 0.55, 0.6, 0.65, 0.7], -0.1)) == []  # training gets worse too
    assert watched(run([0.6, 0.55, 0.6, 0.54, 0.53], 0.1)) == []


def test_chance_is_tested_by_the_number_of_pairs() -> None:
    assert watched([row(step, accuracies=0.53) for step in range(1, 101)]) == ["chance"]
    assert watched([row(step, accuracies=0.53) for step in range(1, 401)], pairs_per_step=4096) == []
    assert watched([row(step, accuracies=0.5) for step in range(1, 20)]) == []  # too few pairs to tell


def test_a_run_that_ends_at_once_may_still_have_diverged() -> None:
    rows = [row(step, accuracies=0.5, **{"loss/reward": 100.0 * step}) for step in range(5)]
    assert watched([{**rows[0], "loss/reward": 0.7}, *rows[1:]]) == ["diverged"]
    assert watched([row(step, accuracies=0.5, **{"loss/reward": 0.693}) for step in range(1, 5)]) == []


def test_a_run_of_few_pairs_is_not_called_healthy(base: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert checks(base, tmp_path, capfd, healthy, "--training.max_steps", "3") == []
    assert main(["doctor", str(tmp_path / "run")]) == 0
    assert "48 pairs" in capfd.readouterr().out


def test_a_folder_without_metrics_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(tmp_path)]) == 2
    assert "metrics.jsonl" in capfd.readouterr().err
