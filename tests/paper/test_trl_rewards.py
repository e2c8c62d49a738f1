"""The study's runs by TRL's RewardTrainer: what TRL gets, and what is kept of its model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hafrm.evaluation.scoring import SCORES_FILE, read_scores
from hafrm.paper.plans import Scoring
from hafrm.paper.presets import small_scale
from hafrm.paper.runs import Run
from hafrm.paper.scales import Job, Overrides
from tests.paper.test_plans import job, small_files

trl = pytest.importorskip("trl")
pytestmark = pytest.mark.slow


def asked(base: Path, tmp_path: Path, **values: Any) -> Job:
    data = small_files(tmp_path / "data")
    scale = small_scale(Overrides(max_length=128, **values), backbones=[str(base)], data_folder=str(data))
    return job(scale, out=tmp_path / "out", backbones=("base", "base-lora"))


def rows(tmp_path: Path, split: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / f"data/pku_safe-{split}.jsonl").read_text().splitlines()]


def rendered(tokenizer: Any, row: dict[str, Any]) -> Iterator[list[int]]:
    """The ids of both conversations, by the tokenizer's own chat template."""
    for side in ("chosen", "rejected"):
        yield tokenizer.apply_chat_template([*row["prompt"], *row[side]], tokenize=True, return_dict=False)


@pytest.mark.parametrize("backbone", ["base", "base-lora"])
def test_trl_gets_the_same_tokens_and_options_and_its_model_is_kept(
    backbone: str, tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}
    make = trl.RewardTrainer.__init__

    def noting(self: Any, **values: Any) -> None:
        given.update(values)
        make(self, **values)

    monkeypatch.setattr(trl.RewardTrainer, "__init__", noting)
    study = asked(tiny_world, tmp_path, steps=3, learning_rate=1e-2)
    run = Run(backbone=backbone, sets=("BS",), method="baseline", trainer="trl", seed=2)
    folder = run.make(study)

    tokenizer = AutoTokenizer.from_pretrained(folder)
    seen = sorted(list(row.values()) for row in given["train_dataset"])
    assert seen == sorted(list(rendered(tokenizer, row)) for row in rows(tmp_path, "train"))
    args = given["args"]
    assert (args.max_steps, args.learning_rate, args.seed, args.adam_epsilon) == (3, 1e-2, 2, 1e-5)
    assert (args.gradient_checkpointing, args.max_length) == (False, None)
    assert (given["peft_config"] is None) == (backbone == "base")

    scores = read_scores(Scoring(runs=(run,), tested_on=("BS",)).make(study) / SCORES_FILE)
    stock = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    for row, score in zip(rows(tmp_path, "test"), scores, strict=True):
        with torch.no_grad():
            chosen, rejected = (stock(torch.tensor([ids])).logits.item() for ids in rendered(tokenizer, row))
        assert score.margin == pytest.approx(chosen - rejected, abs=1e-5)
    assert not (folder / "trl").exists()
    assert run.state(study) == "finished"


def test_a_killed_run_of_trl_resumes(tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = asked(tiny_world, tmp_path, steps=40)
    run = Run(backbone="base", sets=("BS",), method="baseline", trainer="trl")
    steps = []
    step = trl.RewardTrainer.training_step

    def counting(self: Any, *values: Any) -> Any:
        steps.append(self.state.global_step)
        if len(steps) == 31:
            raise KeyboardInterrupt
        return step(self, *values)

    monkeypatch.setattr(trl.RewardTrainer, "training_step", counting)
    with pytest.raises(KeyboardInterrupt):
        run.make(study)
    assert run.state(study) == "unfinished"
    run.make(study)
    assert steps[:31] == [*range(31)]
    assert steps[31:] == [*range(20, 40)]
