"""Runs in two processes on CPUs (DDP, FSDP2, DeepSpeed, Ray Train) equal the same run in one; all in float32."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from tests.models.test_starts import multimodal
from tests.tiny import save_tiny, some_pairs

ROOT = Path(__file__).parents[2]
PAIRS, BATCH, STEPS = 25, 8, 8  # four steps an epoch, the last of one pair: then one of two processes has none

pytestmark = pytest.mark.slow  # several processes, each of which imports torch

BEST = {"load_best_model_at_end": True}  # the best is not the last checkpoint: accuracy reaches 1 earlier
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "lora": {"lora": {"rank": 4}},
    "tied": {"model": "tied"},
    "tied-lora": {"model": "tied", "lora": {"rank": 4}},
    "multimodal": {"model": "multimodal"},
    "multimodal-lora": {"model": "multimodal", "lora": {"rank": 4}},
    "baseline": {"method": "baseline", "model": "classifier"},  # the classifier has no LM head
    "best": {"training": BEST},
    "best-lora": {"training": BEST, "lora": {"rank": 4}},
}
SHARES = {
    "": {"per_device_train_batch_size": 4},
    "-accumulated": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
}
FSDP = {"fsdp": True}
RUNS: dict[str, list[str]] = {
    "ddp": ["plain", "lora", "multimodal", "multimodal-lora", "plain-accumulated"],
    "fsdp2": ["plain", "lora", "tied", "tied-lora", "best", "best-lora", "plain-accumulated"],
    "ray": ["plain", "lora"],
    "zero1": ["plain", "tied", "best-lora", "lora-accumulated"],
    "zero2": ["plain", "tied", "best-lora", "lora-accumulated"],
    "zero3": ["plain", "baseline", "tied", "best-lora", "lora-accumulated"],
}
"""Runs in two processes, by kind of sharding."""
PACKAGES = {"ray": "ray", "zero1": "deepspeed", "zero2": "deepspeed", "zero3": "deepspeed"}
MISSING = {way: package for way, package in PACKAGES.items() if find_spec(package) is None}


def ways(*names: str) -> list[Any]:
    """Parameters of a test, skipped where a package is missing."""
    by_name = {name: MISSING.get(name.split("-")[0]) for name in names}
    return [
        pytest.param(name, marks=[pytest.mark.skip(f"needs {lacks}")] * bool(lacks)) for name, lacks in by_name.items()
    ]


NAMES = ways(*(f"{way}-{kind}" for way, kinds in RUNS.items() for kind in kinds))
NOT_COMPARED = ("second", "runtime", "flos", "epoch")  # transformers counts epochs by accumulated batches


def alone(name: str) -> str:
    """The run in one process that a run in several must equal."""
    return f"alone-{name.split('-', 1)[1].removesuffix('-accumulated')}"


def command(way: str, file: Path, processes: int) -> list[str]:
    """Return the arguments for Python to do the runs in a file."""
    worker = ["-m", "tests.training.distributed_worker", str(file)]
    if way == "alone":
        return worker
    if way == "ray":
        return [*worker, str(processes)]
    if "zero" not in way:
        return ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", *worker]
    launch = ["-m", "accelerate.commands.launch", "--config_file", str(ROOT / "configs/distributed/deepspeed.yaml")]
    return [*launch, "--zero_stage", way[-1], f"--num_processes={processes}", "--main_process_port=0", *worker]


@dataclass(frozen=True)
class Desk:
    """The folder of this module's runs."""

    folder: Path

    def start(self, way: str, runs: dict[str, dict[str, Any]], processes: int = 2) -> str:
        """Do runs one after another in the processes of a launcher; return their output."""
        file = self.folder / f"runs-{way}-{processes}.json"
        file.write_text(json.dumps([self._options(name, values) for name, values in runs.items()]))
        done = subprocess.run(
            [sys.executable, *command(way, file, processes)],
            env={**os.environ, "PYTHONPATH": self._path(), "DS_ACCELERATOR": "cpu"},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=600,  # DeepSpeed compiles its communication once, in two minutes
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
            "bf16": False,  # otherwise one process alone takes it where it is fast
            "report_to": [],
            "eval_steps": 4,
            "save_steps": 4,
            "save_total_limit": None,
            "load_best_model_at_end": False,
        }
        return {
            "model": str(self.folder / values.get("model", "base")),
            "method": values.get("method", "haf"),
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
    classifier = AutoModelForSequenceClassification.from_pretrained(folder / "base", num_labels=1)
    classifier.save_pretrained(folder / "classifier")
    AutoTokenizer.from_pretrained(folder / "base").save_pretrained(folder / "classifier")
    rows = [json.dumps(pair.as_row()) for pair in some_pairs(PAIRS)]
    (folder / "train.jsonl").write_text("\n".join(rows))
    (folder / "valid.jsonl").write_text("\n".join(rows[:7]))
    desk = Desk(folder)
    desk.start("alone", {f"alone-{kind}": run(kind, {"per_device_train_batch_size": BATCH}) for kind in KINDS})
    for way, kinds in RUNS.items():
        if way not in MISSING:
            (folder / f"said-{way}").write_text(desk.start(way, {f"{way}-{kind}": half(way, kind) for kind in kinds}))
    return desk


def run(kind: str, training: dict[str, Any]) -> dict[str, Any]:
    return KINDS[kind] | {"training": training | KINDS[kind].get("training", {})}


def half(way: str, kind: str) -> dict[str, Any]:
    """A run that two processes share equally."""
    share = SHARES["-accumulated" if "accumulated" in kind else ""]
    return run(kind.removesuffix("-accumulated"), share | (FSDP if way == "fsdp2" else {}))


@pytest.mark.parametrize("name", NAMES)
def test_several_processes_make_the_curve_of_one(name: str, desk: Desk) -> None:
    """Losses, gradient norms, validation and all other metrics agree step by step."""
    expected, found = desk.lines(alone(name)), desk.lines(name)
    assert [line["step"] for line in found] == [line["step"] for line in expected]
    for line, truth in zip(found, expected, strict=True):
        assert line.keys() == truth.keys()
        for metric in (metric for metric in truth if "loss" in metric):
            assert line[metric] == pytest.approx(truth[metric], abs=1e-6), (metric, line["step"])
        for metric in (name for name in truth if not any(word in name for word in NOT_COMPARED)):
            assert line[metric] == pytest.approx(truth[metric], rel=1e-4, abs=1e-4), (metric, line["step"])


@pytest.mark.parametrize("name", NAMES)
def test_the_result_is_that_of_one_process(name: str, desk: Desk) -> None:
    """The tensors are the same, and stock transformers computes the same scores from them."""
    expected, found = (load_file(desk.folder / each / "model.safetensors") for each in (alone(name), name))
    assert found.keys() == expected.keys()
    for tensor, truth in expected.items():
        torch.testing.assert_close(found[tensor], truth, rtol=1e-4, atol=1e-5, msg=tensor)
    text = torch.arange(5, 45)[None]
    stocks = (AutoModelForSequenceClassification, AutoModelForCausalLM)
    for stock in stocks[:1] if "baseline" in name else stocks:
        theirs, ours = (stock.from_pretrained(desk.folder / each).eval() for each in (alone(name), name))
        with torch.no_grad():
            torch.testing.assert_close(ours(text).logits, theirs(text).logits, rtol=1e-4, atol=1e-4)
    manifest = json.loads((desk.folder / name / "manifest.json").read_text())
    assert manifest["best_step"] == (4 if "best" in name else None)


def test_each_process_computes_its_share_of_the_references_once(desk: Desk) -> None:
    """References are computed in parts of four prompts; later runs read them from different caches."""
    computed = [cached_references(desk.folder / f"runs-ddp-2-cache-{rank}") for rank in range(2)]
    once = cached_references(desk.folder / "runs-alone-2-cache-0") * 2 / 3  # without the tied model
    assert once <= sum(computed) <= once + 2 * 14  # a validation pair may be in the other's cache of training pairs
    assert min(computed) >= sum(computed) / 3


def cached_references(cache: Path) -> int:
    return sum(len(np.load(path)["log_probs"]) for path in (cache / "references").rglob("*.npz"))


@pytest.mark.parametrize("way", ways(*RUNS))
def test_one_process_speaks_for_all(way: str, desk: Desk) -> None:
    said = (desk.folder / f"said-{way}").read_text()
    assert said.count("25 training pairs, 7 validation pairs: 8 steps of 8 pairs") == len(RUNS[way])
    for kind in RUNS[way]:
        manifest = json.loads((desk.folder / f"{way}-{kind}" / "manifest.json").read_text())
        assert (manifest["status"], manifest["effective"]["world_size"]) == ("finished", 2)
        assert manifest["effective"]["sharding"] == (None if way in ("ddp", "ray") else way)


def test_a_checkpoint_holds_its_weights_once(desk: Desk) -> None:
    names = {path.name for path in (desk.folder / "fsdp2-plain" / "checkpoint-4").iterdir()}
    assert {"model.safetensors", "optimizer.bin", "trainer_state.json", "hafrm.json"} <= names
    assert not [name for name in names if name.startswith("pytorch_model")]


def interrupted(desk: Desk, name: str, *, at_its_end: bool = False) -> str:
    """Return a run's folder as it was after its first checkpoint, or after its last."""
    copy = desk.folder / f"{name}-{'ended' if at_its_end else 'again'}"
    shutil.copytree(desk.folder / name, copy)
    if not at_its_end:
        shutil.rmtree(copy / "checkpoint-8")
    (copy / "model.safetensors").unlink()
    manifest = json.loads((copy / "manifest.json").read_text()) | {"status": "running"}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    return copy.name


def test_runs_resume_with_another_number_of_processes(desk: Desk) -> None:
    """Resume from two processes to one, with the same number of pairs per step."""
    whole = {"per_device_train_batch_size": BATCH}
    sharded = SHARES["-accumulated"] | {"per_device_train_batch_size": 4} | FSDP
    wanted = {
        "ddp-plain": run("plain", whole),
        "fsdp2-plain": run("plain", sharded),
        "fsdp2-lora": run("lora", sharded),
    }
    ended = interrupted(desk, "fsdp2-plain", at_its_end=True)
    again = {interrupted(desk, name): values for name, values in wanted.items()}
    desk.start("ddp", again | {ended: wanted["fsdp2-plain"]}, processes=1)
    require_same(desk, "fsdp2-plain", ended)
    for name in wanted:
        require_same(desk, name, f"{name}-again")


@pytest.mark.parametrize("way", ways("zero1", "zero3"))
def test_runs_resume_under_zero(way: str, desk: Desk) -> None:
    wanted = {f"{way}-{kind}": half(way, kind) for kind in ("plain", "best-lora")}
    ended = interrupted(desk, f"{way}-best-lora", at_its_end=True)
    again = {interrupted(desk, name): values for name, values in wanted.items()}
    desk.start(way, again | {ended: wanted[f"{way}-best-lora"]})
    require_same(desk, f"{way}-best-lora", ended)
    for name in wanted:
        require_same(desk, name, f"{name}-again")


def require_same(desk: Desk, name: str, again: str) -> None:
    expected, found = (load_file(desk.folder / each / "model.safetensors") for each in (name, again))
    for tensor, truth in expected.items():
        torch.testing.assert_close(found[tensor], truth, rtol=1e-4, atol=1e-5, msg=tensor)
    losses = [[line["loss"] for line in desk.lines(each) if "loss" in line] for each in (name, again)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-6)
