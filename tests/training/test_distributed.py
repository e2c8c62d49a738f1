"""Runs in two processes on CPUs, by DDP and FSDP2, against the same run in one; all in float32."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from hafrm.models.runinfo import RunInfo
from tests.models.test_starts import multimodal
from tests.tiny import save_tiny, some_pairs

ROOT = Path(__file__).parents[2]
PAIRS, BATCH, STEPS = 25, 8, 8  # four steps an epoch, the last of one pair: then one of two processes has none

pytestmark = pytest.mark.slow  # several processes, each of which imports torch

RUNS: dict[str, dict[str, Any]] = {
    "ddp": {"training": {"per_device_train_batch_size": 4}},
    "ddp-accumulated": {"training": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}},
    "ddp-lora": {"training": {"per_device_train_batch_size": 4}, "lora": {"rank": 4}},
    "ddp-multimodal": {"training": {"per_device_train_batch_size": 4}, "model": "multimodal"},
    "ddp-multimodal-lora": {
        "training": {"per_device_train_batch_size": 4},
        "model": "multimodal",
        "lora": {"rank": 4},
    },
    "fsdp2": {"training": {"per_device_train_batch_size": 4, "fsdp": True}},
    "fsdp2-accumulated": {
        "training": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "fsdp": True}
    },
    "fsdp2-tied": {"training": {"per_device_train_batch_size": 4, "fsdp": True}, "model": "tied"},
}
NOT_COMPARED = ("second", "runtime", "flos", "epoch")  # transformers counts epochs by accumulated batches
ALONE = {"training": {"per_device_train_batch_size": BATCH}}


@dataclass(frozen=True)
class Desk:
    """Where the runs of this module lie."""

    folder: Path

    def start(self, processes: int | None, runs: dict[str, dict[str, Any]]) -> str:
        """Do runs one after another in so many processes of torchrun, None without it; returns what they printed."""
        told = [self._options(name, values) for name, values in runs.items()]
        file = self.folder / f"runs-{processes}.json"
        file.write_text(json.dumps(told))
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes else []
        environment = {**os.environ, "HAFRM_CACHE": str(self.folder / f"cache-{processes}"), "PYTHONPATH": self._path()}
        done = subprocess.run(
            [sys.executable, *launcher, "-m", "tests.training.distributed_worker", str(file)],
            env=environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-8000:]
        return done.stdout + done.stderr

    def _path(self) -> str:
        return os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])

    def _options(self, name: str, values: dict[str, Any]) -> dict[str, Any]:
        training = {
            "max_steps": STEPS,
            "learning_rate": 1e-3,
            "use_cpu": True,
            "report_to": [],
            "eval_steps": 4,
            "save_steps": 4,
            "save_total_limit": None,
            "load_best_model_at_end": False,
        }
        return {
            "model": str(self.folder / values.get("model", "base")),
            "data": [str(self.folder / "train.jsonl")],
            "eval_data": [str(self.folder / "valid.jsonl")],
            "out": str(self.folder / name),
            "data_options": {"max_length": 128, "tokens_per_batch": 250},
            "training": training | values["training"],
            "lora": values.get("lora", {}),
        }

    def lines(self, name: str) -> list[dict[str, float]]:
        """The run's `metrics.jsonl`."""
        return [json.loads(line) for line in (self.folder / name / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    folder = tmp_path_factory.mktemp("distributed")
    save_tiny(folder / "base")
    save_tiny(folder / "tied", "qwen2")
    multimodal(folder / "multimodal")
    rows = [json.dumps(pair.as_row()) for pair in some_pairs(PAIRS)]
    (folder / "train.jsonl").write_text("\n".join(rows))
    (folder / "valid.jsonl").write_text("\n".join(rows[:7]))
    desk = Desk(folder)
    lora, tied = ALONE | {"lora": {"rank": 4}}, ALONE | {"model": "tied"}
    towers = ALONE | {"model": "multimodal"}
    mixed = {"alone-multimodal": towers, "alone-multimodal-lora": towers | {"lora": {"rank": 4}}}
    desk.start(None, {"alone": ALONE, "alone-lora": lora, "alone-tied": tied} | mixed)
    (folder / "said").write_text(desk.start(2, RUNS))
    return desk


def alone(name: str) -> str:
    """The run in one process that a run in several must equal."""
    kinds = ("multimodal-lora", "multimodal", "lora", "tied")
    return next((f"alone-{kind}" for kind in kinds if kind in name), "alone")


@pytest.mark.parametrize("name", RUNS)
def test_several_processes_make_the_curve_of_one(name: str, desk: Desk) -> None:
    """Losses, gradient norms, validation and all other metrics, step by step."""
    expected, found = desk.lines(alone(name)), desk.lines(name)
    assert [line["step"] for line in found] == [line["step"] for line in expected]
    for line, truth in zip(found, expected, strict=True):
        assert line.keys() == truth.keys()
        for metric in (metric for metric in truth if "loss" in metric):
            assert line[metric] == pytest.approx(truth[metric], abs=1e-6), (metric, line["step"])
        for metric in (name for name in truth if not any(word in name for word in NOT_COMPARED)):
            assert line[metric] == pytest.approx(truth[metric], rel=1e-4, abs=1e-4), (metric, line["step"])


@pytest.mark.parametrize("name", RUNS)
def test_the_result_loads_in_stock_transformers_with_the_same_scores(name: str, desk: Desk) -> None:
    text = torch.arange(5, 45)[None]
    for stock in (AutoModelForSequenceClassification, AutoModelForCausalLM):
        theirs, ours = (stock.from_pretrained(desk.folder / run).eval() for run in (alone(name), name))
        with torch.no_grad():
            torch.testing.assert_close(ours(text).logits, theirs(text).logits, rtol=1e-4, atol=1e-4)
    assert RunInfo.load(desk.folder / name).method == "haf"


def test_each_process_computes_its_share_of_the_references_once(desk: Desk) -> None:
    """In parts of four of 25 and of 7 pairs, for three models; later runs read them."""
    shares = [int((desk.folder / f"runs-2-computed-{rank}").read_text()) for rank in range(2)]
    assert sum(shares) == 3 * (25 + 7)
    assert min(shares) >= 3 * 12


def test_one_process_speaks_for_all(desk: Desk) -> None:
    said = (desk.folder / "said").read_text()
    assert said.count("25 training pairs, 7 validation pairs: 8 steps of 8 pairs") == len(RUNS)
    for name in RUNS:
        manifest = json.loads((desk.folder / name / "manifest.json").read_text())
        assert (manifest["status"], manifest["effective"]["world_size"]) == ("finished", 2)
        assert manifest["effective"]["sharding"] == ("fsdp2" if "fsdp2" in name else None)


def test_a_checkpoint_holds_its_weights_once(desk: Desk) -> None:
    names = {path.name for path in (desk.folder / "fsdp2" / "checkpoint-4").iterdir()}
    assert {"model.safetensors", "optimizer.bin", "trainer_state.json", "hafrm.json"} <= names
    assert not [name for name in names if name.startswith("pytorch_model")]


def interrupted(desk: Desk, name: str, *, at_its_end: bool = False) -> str:
    """A run's folder as it was after its first checkpoint, or after its last."""
    copy = desk.folder / f"{name}-{'ended' if at_its_end else 'again'}"
    shutil.copytree(desk.folder / name, copy)
    if not at_its_end:
        shutil.rmtree(copy / "checkpoint-8")
    (copy / "model.safetensors").unlink()
    manifest = json.loads((copy / "manifest.json").read_text()) | {"status": "running"}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    return copy.name


def test_runs_resume_with_another_number_of_processes(desk: Desk) -> None:
    """From two processes to one, whose step takes as many pairs."""
    whole = {"training": {"per_device_train_batch_size": BATCH}}
    sharded = {"training": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "fsdp": True}}
    ended = interrupted(desk, "fsdp2", at_its_end=True)
    desk.start(1, {interrupted(desk, "ddp"): whole, interrupted(desk, "fsdp2"): sharded, ended: sharded})
    weights = [(desk.folder / run / "model.safetensors").read_bytes() for run in ("fsdp2", ended)]
    assert weights[0] == weights[1]
    for name in ("ddp", "fsdp2"):
        expected, found = (load_file(desk.folder / run / "model.safetensors") for run in (name, f"{name}-again"))
        for tensor, truth in expected.items():
            torch.testing.assert_close(found[tensor], truth, rtol=1e-4, atol=1e-5, msg=tensor)
        losses = [[line["loss"] for line in desk.lines(run) if "loss" in line] for run in (name, f"{name}-again")]
        assert losses[1] == pytest.approx(losses[0], abs=1e-6)
