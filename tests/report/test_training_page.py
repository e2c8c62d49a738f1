"""The page of a training run: its state, its figures, the doctor's findings, and texts that try to break out."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from hafrm import atomic
from hafrm.cli import main
from hafrm.errors import ModelError
from hafrm.report.training import train_with_page, write_training_page
from hafrm.training.config import TrainConfig
from tests.report.conftest import ATTACK
from tests.report.test_page import Page
from tests.report.test_plots import labels
from tests.tiny import save_tiny, some_pairs


def run_folder(
    folder: Path, accuracy: float, *, lines: int = 120, status: str = "running", model: str = "base"
) -> Path:
    """A run of 16 pairs per step whose loss falls by 0.01 per step."""
    folder.mkdir()
    config = {"model": model, "data": ["train.jsonl"], "method": "haf", "out": "runs/mine", "loss": {"beta": 0.3}}
    manifest = {
        "format": 1,
        "status": status,
        "started": "2026-11-29T17:20:00+00:00",
        "config": config,
        "effective": {"per_device_train_batch_size": 16, "learning_rate": 1e-3},
        "data": {"train": {"pairs": 1920, "sources": []}},
    }
    atomic.write_json(folder / "manifest.json", manifest | ({"steps": lines} if status == "finished" else {}))
    rows: list[dict[str, Any]] = [
        {
            "step": step,
            "loss": 2 - 0.01 * step,
            "loss/reward": 0.6,
            "loss/policy": 0.5,
            "rewards/accuracies": accuracy,
            "grad_norm": 1.0,
            "tokens_per_second": 5000.0,
            "pairs_per_second": 12.5,
        }
        for step in range(1, lines + 1)
    ]
    rows.insert(60, {"step": 60, "eval_loss": 0.9, "eval_rewards/accuracies": 0.75})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def shown(folder: Path, **options: Any) -> tuple[Page, str]:
    html = write_training_page(folder, **options).read_text(encoding="utf-8")
    return Page(html), html


def test_the_page_has_the_runs_figures(tmp_path: Path) -> None:
    page, html = shown(run_folder(tmp_path / "run", 0.8, status="finished"))
    assert "29 November 2026, 17:20 UTC" in page.find("p", class_="kicker")[0]
    assert "120 steps" in page.find("p", class_="verdict")[0]
    (scores,) = page.find("dl", class_="scores")
    assert re.findall(r"[\d.]+", scores) == ["80.0", "75.0", "0.815", "12.5"]  # the loss: the mean of the last four
    plots = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    assert [re.findall('aria-label="([^"]*)"', plot)[0] for plot in plots] == [
        "Loss",
        "Accuracy, %",
        "Gradient norm, before clipping",
        "Tokens per second",
    ]
    assert {"total", "reward", "policy", "validation"} <= set(labels(plots[0]))
    assert "hafrm train --model base --data train.jsonl" in page.find("code")[-1]
    assert "--loss.beta 0.3" in page.find("code")[-1]
    assert page.find("li") == []


def test_a_run_of_one_loss_has_one_curve_of_it(tmp_path: Path) -> None:
    """The baseline's loss is the reward's: the total would be drawn over it."""
    folder = run_folder(tmp_path / "run", 0.8)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows = [{name: value for name, value in row.items() if name != "loss/policy"} for row in rows]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, html = shown(folder)
    drawn = set(labels(re.findall(r"<svg.*?</svg>", html, re.DOTALL)[0]))
    assert drawn >= {"total", "validation"}
    assert not drawn & {"reward", "policy"}


def test_the_doctors_findings_are_there(tmp_path: Path) -> None:
    page, _ = shown(run_folder(tmp_path / "run", 0.5))
    (found,) = page.find("li")
    assert "chance" in found
    assert "training.learning_rate" in found


def test_a_run_is_not_judged_before_it_has_seen_enough_pairs(tmp_path: Path) -> None:
    page, _ = shown(run_folder(tmp_path / "run", 0.5, lines=24))
    assert page.find("li") == []
    assert any("384 pairs" in text and "400" in text for text in page.find("p"))


def test_a_run_that_trains_is_given_the_time_that_its_own_lines_give_it(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", 0.5, lines=60)
    assert shown(folder, steps=400)[0].find("li") == []
    assert len(shown(folder)[0].find("li")) == 1


@pytest.mark.parametrize(("status", "steps"), [("running", 400), ("running", None), ("finished", None)])
def test_only_the_page_of_a_run_that_trains_reloads_itself(tmp_path: Path, status: str, steps: int | None) -> None:
    page, _ = shown(run_folder(tmp_path / "run", 0.8, status=status), steps=steps)
    refreshing = [a for tag, a, _ in page.elements if tag == "meta" and a.get("http-equiv") == "refresh"]
    assert bool(refreshing) == (steps is not None)
    (state, *_) = page.find("p", class_="verdict")
    word = "Finished" if status == "finished" else "Running" if steps else "Stopped"
    assert state.startswith(word)
    assert ("400" in state) == (steps is not None)


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    page, html = shown(run_folder(tmp_path / "run", 0.8, model=f"\u202e{ATTACK}"), steps=9)
    assert [tag for tag, _, _ in page.elements if tag in ("script", "img")] == ["script"]
    assert ATTACK in page.find("dd")[4]
    assert "\u202e" not in html


def test_a_folder_without_a_run_has_no_page(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"metrics\.jsonl"):
        write_training_page(tmp_path)


class Reader(TrainerCallback):
    """Reads the page after each step, and may stop the run."""

    def __init__(self, path: Path, stop: int) -> None:
        self.path, self.stop = path, stop
        self.seen: list[str] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step:
            self.seen += Page(self.path.read_text(encoding="utf-8")).find("p", class_="verdict")[:1]
        if state.global_step == self.stop:
            raise KeyboardInterrupt


def test_the_page_follows_a_run_that_is_stopped_and_resumed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    base = str(save_tiny(tmp_path / "base", max_position_embeddings=512))
    rows = [pair.as_row() for pair in some_pairs(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "run"
    training: dict[str, Any] = {"max_steps": 4, "save_steps": 2, "use_cpu": True, "report_to": "none"}
    config = TrainConfig(model=base, data=[str(tmp_path / "rows.jsonl")], out=str(out), training=training)
    reader = Reader(out / "training.html", 3)
    with pytest.raises(KeyboardInterrupt):
        train_with_page(config, callbacks=[reader])
    assert reader.seen
    assert all(text.startswith("Running: step") and text.endswith("of 4.") for text in reader.seen)
    assert "Stopped at step 3" in (out / "training.html").read_text()
    words = ["--model", base, "--data", config.data[0], "--out", str(out)]
    options = [word for name, value in training.items() for word in (f"--training.{name}", str(value).lower())]
    assert main(["train", *words, *options]) == 0
    assert str(out / "training.html") in capfd.readouterr().out.replace("\n", "")
    text = (out / "training.html").read_text()
    assert "Finished after 4 steps" in text
    assert main(["train", *words, *options, "--overwrite", "true"]) == 0  # the page is the run's own
    assert "training.html" not in capfd.readouterr().err
