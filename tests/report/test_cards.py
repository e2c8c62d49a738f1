"""Cards match the files, and their commands are those that made the run."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from hafrm import atomic
from hafrm.cli import evaluate as evaluate_command
from hafrm.cli import train as train_command
from hafrm.cli.options import options_of
from hafrm.data.reports import SourceReport
from hafrm.evaluation.options import EvaluateConfig
from hafrm.models.options import ScoreOptions
from hafrm.models.runinfo import RunInfo
from hafrm.options import command_line
from hafrm.report.cards import data_card, model_card
from hafrm.training.config import TrainConfig
from hafrm.training.loss import LossConfig


@pytest.mark.parametrize(
    "config",
    [
        TrainConfig(model="tests", data=["a b.jsonl"], out="runs/x"),
        TrainConfig(
            model="tests",
            data=["a b.jsonl", "c.jsonl"],
            eval_data=["d.jsonl"],
            out="runs/x",
            loss=LossConfig(beta=0.3, policy_loss="ipo"),
            training={"learning_rate": 1e-4, "bf16": False, "report_to": "none", "max_steps": 7},
            early_stopping=3,
        ),
        EvaluateConfig(models=["tests", "src"], data=["c.jsonl"], out="e", score=ScoreOptions(overlong="truncate")),
        EvaluateConfig(models=["tests"], data=["a b.jsonl"], suites=["rm-bench"], out="e", head="policy"),
    ],
    ids=["defaults", "options", "models", "suites"],
)
def test_a_command_read_back_has_the_same_options(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, module, name = type(config), train_command, "train"
    if kind is EvaluateConfig:
        module, name = evaluate_command, "evaluate"
    positional = "models" if name == "evaluate" else ""
    words = shlex.split(command_line(f"hafrm {name}", kind, asdict(config), positional=positional))
    assert words[:2] == ["hafrm", name]
    parser = module.parser()
    assert options_of(kind, parser, parser.parse_args(parser.words(words[2:])), models=()) == config


def test_a_runs_card_has_its_method_base_steps_and_command(tmp_path: Path) -> None:
    info = RunInfo(
        method="haf",
        base_model="org/base",
        reward_weight=1.0,
        policy_ratio=0.2,
        policy_loss="dpo",
        beta=0.1,
        max_length=512,
        overlong="drop",
        pad_token="<pad>",
        dtype="float32",
    )
    info.save(tmp_path)
    sizes = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, "world_size": 2}
    manifest = {
        "format": 1,
        "status": "finished",
        "started": "2026-11-29T17:20:00+00:00",
        "config": {"model": "org/base", "data": ["t.jsonl"], "method": "haf", "out": "runs/<x>"},
        "effective": {"learning_rate": 1e-5, **sizes},
        "data": {"train": {"pairs": 4800, "sources": []}},
        "steps": 240,
        "best_step": 200,
        "eval_metrics": {"eval_rewards/accuracies": 0.698},
    }
    atomic.write_json(tmp_path / "manifest.json", manifest)
    card = model_card(str(tmp_path), "haf")
    facts = dict(card.facts)
    assert (facts["method"], facts["base"]) == ("haf", "org/base")
    assert facts["loss"] == "1 × bradley_terry + 0.2 × dpo"
    assert "4,800" in facts["pairs"]
    assert facts["steps"] == "240 of 32 pairs"
    assert "200" in facts["kept"]
    assert "69.8" in facts["validation"]
    assert "29 November 2026" in facts["started"]
    assert shlex.split(card.command)[-2:] == ["--out", "runs/<x>"]


def test_a_model_without_a_description_is_said_to_have_none(tmp_path: Path) -> None:
    card = model_card(str(tmp_path / "m"), "m")
    assert "hafrm.json" in dict(card.facts)["training"]
    assert card.command == ""


def test_a_data_sets_card_counts_what_was_left_out() -> None:
    report = SourceReport(name="x.jsonl", kind="file", form="TRL", rows=100, kept=90, sha256="ab" * 32)
    report.skipped, report.dropped = {"empty": 4}, {"tie": 6}
    facts = dict(data_card("x.jsonl", "x.jsonl", [report.as_dict()]).facts)
    assert facts["pairs"] == "90 of 100 rows"
    assert facts["left out"] == "4 empty, 6 tie"
    assert facts["fingerprint"] == "abababababab"
    assert "split" not in facts
