"""Disk, memory and time of runs: estimates compared with real runs and hand-worked numbers."""

from __future__ import annotations

import re
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from hafrm.cli import main
from hafrm.errors import ConfigError
from hafrm.judging.options import JudgeOptions
from hafrm.models.options import LoraOptions
from hafrm.pairs import Message, Prompt
from hafrm.paper import resources
from hafrm.paper.costs import Costs
from hafrm.paper.executor import costs_of
from hafrm.paper.experiments import EXPERIMENTS
from hafrm.paper.presets import paper_scale, small_scale
from hafrm.paper.resources import GIB, bytes_of, memory_bytes, peak_bytes, require_disk, shape_of
from hafrm.paper.runs import Policy, Run
from hafrm.paper.scales import Job, Overrides, Scale
from hafrm.templates import render
from tests.paper.test_plans import small_files
from tests.tiny import save_tiny

CONFIGS = Path(__file__).parents[2] / "configs"


def job(scale: Scale, out: Path = Path("o"), **values: object) -> Job:
    asked: dict[str, object] = {"backbones": tuple(scale.backbones), "sets": ("BS",), "seeds": (0,), "out": out}
    return Job(scale=scale, **(asked | values))  # type: ignore[arg-type]


def run_of(backbone: str, **values: object) -> Run:
    return Run(backbone=backbone, sets=("BS",), method="haf", **values)  # type: ignore[arg-type]


def test_the_papers_models_have_their_published_sizes_and_memory() -> None:
    """Phi-2 has 2,779,683,840 parameters, the Mistrals 7,248,023,552 and 7,241,732,096; each gets a reward head."""
    asked = job(paper_scale(Overrides()))
    shapes = {name: shape_of(asked, name) for name in asked.backbones}
    known = {"phi-2": 2_779_683_840 + 2560, "mistral-base": 7_248_023_552 + 4096}
    known["mistral-instruct"] = 7_241_732_096 + 4096
    for name, shape in shapes.items():
        assert shape is not None
        assert shape.weights == known[name]
    phi = shapes["phi-2"]
    assert phi is not None
    assert memory_bytes(asked, run_of("phi-2"), phi) / GIB == pytest.approx(16 * 2.77969 / 1.073742, rel=1e-3)
    plain = job(small_like(asked.scale))
    assert memory_bytes(plain, run_of("phi-2"), phi) / GIB == pytest.approx(51.8, abs=0.1)  # with foreach's copy
    mistral = shapes["mistral-base"]
    assert mistral is not None
    # rank 64 on q, k, v, o, gate, up, down of 32 layers, and the reward head
    by_layer = 2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336)
    assert mistral.adapters == 32 * 64 * by_layer + 4096


def test_ppo_also_has_a_reward_model_and_a_reference(tmp_path: Path) -> None:
    """By hand: three copies of Phi-2 in float32, gradients, two states and a copy; a Mistral shares its base."""
    asked, runs = job(paper_scale(Overrides())), {}
    for name in asked.backbones:
        policy = Policy(backbone=name, sets=("BS",), rewarded_by="haf", seed=0)
        shape = shape_of(asked, name)
        assert shape is not None
        runs[name] = memory_bytes(asked, policy, shape), shape
    phi, shape = runs["phi-2"]
    assert phi == 4 * 2_779_686_400 * (1 + 1 + 1 + 1 + 2 + 1)
    mistral, shape = runs["mistral-base"]
    assert mistral == 2 * shape.weights * 2 + shape.adapters * 4 * (1 + 1 + 2 + 1)


def test_memory_that_files_state_is_the_arithmetics() -> None:
    asked, stated = job(paper_scale(Overrides())), {}
    for name in asked.backbones:
        shape = shape_of(asked, name)
        assert shape is not None
        policy = Policy(backbone=name, sets=("BS",), rewarded_by="haf", seed=0)
        for kind, run in (("paper", run_of(name)), ("rlhf", policy)):
            stated[f"{kind}/{name}"] = f"{memory_bytes(asked, run, shape) / GIB:.0f}"
    for path in (each for each in CONFIGS.rglob("*.yaml") if each.parent.name in ("paper", "rlhf")):
        opening = path.read_text().partition("hafrm ")[0]
        assert re.findall(r"(\d+) Gi?B", opening) == [stated[str(path.relative_to(CONFIGS).with_suffix(""))]]
    (row,) = re.findall(r"\| memory before .*", (CONFIGS.parent / "docs" / "paper-map.md").read_text())
    phi, mistral = stated["paper/phi-2"], stated["paper/mistral-base"]
    ours = row.rpartition("|")[0].rpartition("|")[0]
    assert re.findall(r"(\d+) GiB", ours) == [phi, "52", mistral, stated["rlhf/phi-2"], stated["rlhf/mistral-base"]]


def small_like(scale: Scale) -> Scale:
    return replace(scale, training={name: value for name, value in scale.training.items() if name != "optim"})


@pytest.mark.parametrize("rank", [0, 4])
def test_a_runs_disk_is_what_it_takes(rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Disk at the end and at the peak of a run that saves three times."""
    tiny = save_tiny(tmp_path / "base", hidden_size=128, intermediate_size=512, max_position_embeddings=512)
    scale = small_scale(
        Overrides(steps=3, max_length=256), backbones=[str(tiny)], data_folder=str(small_files(tmp_path / "data"))
    )
    every = {**scale.training, "eval_steps": 1, "save_steps": 1}
    own = replace(scale.backbone("base"), lora=LoraOptions(rank=rank))
    asked = job(replace(scale, training=every, backbones={"base": own}), tmp_path / "o", backbones=("base",))
    shape = shape_of(asked, "base")
    assert shape is not None
    expected = bytes_of(asked, run_of("base"), shape)
    largest = 0
    removed = shutil.rmtree

    def measured(path: str | Path, *more: object, **named: object) -> None:
        nonlocal largest
        largest = max(largest, _weights(tmp_path / "o"))
        removed(path, *more, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(shutil, "rmtree", measured)
    folder = run_of("base").make(asked)
    assert _weights(folder) == pytest.approx(expected.finished, rel=0.05)
    assert 0.5 * expected.training < largest <= 1.05 * (expected.finished + expected.training)
    assert peak_bytes(asked, [run_of("base")]) == 0


def _weights(folder: Path) -> int:
    """Bytes of weights and optimizer states."""
    names = ("*.safetensors", "optimizer.pt")
    return sum(path.stat().st_size for name in names for path in folder.rglob(name) if path.exists())


def test_checkpoints_that_are_compared_keep_weights_alone(tmp_path: Path) -> None:
    tiny = save_tiny(tmp_path / "base", max_position_embeddings=512)
    scale = small_scale(
        Overrides(steps=5, max_length=256), backbones=[str(tiny)], data_folder=str(small_files(tmp_path / "data"))
    )
    every = {**scale.training, "eval_steps": 1, "save_steps": 1}
    asked = job(replace(scale, training=every), tmp_path / "o", backbones=("base",))
    folder = run_of("base", keep_checkpoints=True).make(asked)
    assert len(list(folder.glob("checkpoint-*/*.safetensors"))) == 5
    assert not list(folder.rglob("optimizer.pt"))


def test_a_disk_that_is_too_small_is_refused_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    asked = job(paper_scale(Overrides()), tmp_path / "o", backbones=("phi-2",))
    runs = [run_of("phi-2", seed=seed) for seed in range(3)]
    finished, checkpoint = 4 * 2_779_686_400, 12 * 2_779_686_400
    assert peak_bytes(asked, runs) == 3 * finished + 3 * checkpoint
    assert peak_bytes(asked, runs, keeps_weights=False) == finished + 3 * checkpoint
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(resources.shutil, "disk_usage", lambda path: usage(0, 0, 100 * GIB))
    with pytest.raises(ConfigError, match=r"needs 124.* GiB of disk at its peak, and .* has 100.0 GiB free"):
        require_disk(asked, runs)
    assert main(["reproduce", "table2", "--scale", "paper", "--out", str(tmp_path / "o")]) == 2
    assert "of disk at its peak" in capfd.readouterr().err
    assert not (tmp_path / "o").exists()


def test_the_papers_time_is_a_count_of_products() -> None:
    """Phi-2 on AHP, by hand: four times 3200 steps of 16 pairs, the reference once, and 41 validations."""
    asked = job(paper_scale(Overrides()), sets=("AHP",), backbones=("phi-2",))
    run = Run(backbone="phi-2", sets=("AHP",), method="haf")
    shape = shape_of(asked, "phi-2")
    assert shape is not None
    pairs = 4 * 3200 * 16 + 8722 + 41 * round(0.05 * 8722)
    seconds = 2 * pairs * 2 * 81.9 * (shape.body + shape.head) / (0.4 * 312e12)
    assert Costs(asked).run(run) == pytest.approx(seconds, rel=0.01)


@pytest.mark.parametrize(
    ("name", "judge", "readers", "questions"),
    [
        ("figure4", JudgeOptions(kind="openai", model="m"), 4, 200 * (1 + 2 * 3)),
        ("figure4", JudgeOptions(kind="openai", model="m", orders="one"), 4, 200 * (1 + 3)),
        ("figure9", JudgeOptions(kind="reward", model="m"), 5, 0),
    ],
)
def test_the_time_of_samples_and_of_their_judge(
    name: str, judge: JudgeOptions, readers: int, questions: int, tmp_path: Path
) -> None:
    """Phi-2 answers 200 prompts of AHP four times; three models, one with a reference, read that; by hand."""
    asked = job(paper_scale(Overrides()), tmp_path, sets=("AHP",), backbones=("phi-2",), judge=judge)
    plan = EXPERIMENTS[name].plan(asked)
    (each,), shape = plan.responses, shape_of(asked, "phi-2")
    assert shape is not None
    products = 2 * 800 * (64 + 256) * shape.body * (1 + readers) / (0.4 * 312e12)
    weights_read = 25 * 256 * 2 * shape.weights / 2e12
    assert Costs(asked).responses(each) == pytest.approx(products + weights_read)
    assert Costs(asked).questions(each) == questions
    told = list(costs_of(asked, plan))
    assert any(f"{(products + weights_read) / 3600:.2g} hours of sampling" in line for line in told)
    assert any(f"{questions:,} questions" in line for line in told) is (questions > 0)
    made = tmp_path / "paper" / each.made
    made.parent.mkdir(parents=True)
    made.touch()
    assert not any("sampling" in line or "questions" in line for line in costs_of(asked, plan))


def test_no_more_prompts_are_counted_than_there_are(tmp_path: Path) -> None:
    """BS has 14 test pairs here; eight responses are ranked by three questions, and three compared in both orders."""
    tiny, data = save_tiny(tmp_path / "base", max_position_embeddings=512), small_files(tmp_path / "data")
    scale = small_scale(Overrides(), backbones=[str(tiny)], data_folder=str(data))
    judge = JudgeOptions(kind="openai", model="m")
    asked = job(scale, tmp_path / "o", backbones=("base",), judge=judge)
    (each,) = EXPERIMENTS["figure4"].plan(asked).responses
    assert Costs(asked).questions(each) == 14 * (3 + 2 * 3)


def test_the_time_of_a_policys_answers() -> None:
    """Each of 10 checkpoints and the start answers 240 prompts; an endpoint sees each pair of answers twice."""
    asked = job(paper_scale(Overrides()), backbones=("phi-2",), judge=JudgeOptions(kind="openai", model="m"))
    ours, theirs = EXPERIMENTS["figure5"].plan(asked).responses
    costs = Costs(asked)
    assert (costs.questions(ours), costs.questions(theirs)) == (240 * 11 * 2, 0)
    assert (ours.draws, ours.readers) == (11, 3)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("phi-2", "Instruct: Two plus two?\nOutput: Four.</s>"),
        ("mistral-base", "<s>[INST] Two plus two? [/INST] Four.</s>"),
    ],
)
def test_the_papers_base_models_read_their_familys_format(name: str, text: str, tmp_path: Path) -> None:
    template = paper_scale(Overrides()).backbone(name).chat_template
    assert template is not None
    tokenizer = AutoTokenizer.from_pretrained(save_tiny(tmp_path / "m"))
    tokenizer.chat_template = Path(template).read_text()
    tokenizer.bos_token, tokenizer.eos_token = "<s>", "</s>"
    prompt = Prompt((Message("user", "Two plus two?"),))
    (whole,) = render(tokenizer, [(prompt, (Message("assistant", "Four."),))])
    (opening,) = render(tokenizer, [(prompt, ())], opening=True)
    assert whole == text
    assert whole.startswith(opening)
    assert paper_scale(Overrides()).backbone("mistral-instruct").chat_template is None  # it has its own


def test_the_papers_precision_and_copies_of_its_sets(tmp_path: Path) -> None:
    asked = job(paper_scale(Overrides()))
    assert asked.scale.training["fp16"] is True
    assert run_of("mistral-base").config(asked).dtype == "float16"
    other = job(paper_scale(Overrides(precision="bf16")))
    assert other.scale.training["bf16"] is True
    assert "fp16" not in other.scale.training
    with pytest.raises(ConfigError, match="hh-helpful is missing"):
        paper_scale(Overrides(), data_folder=str(tmp_path))
    for name in ("hh-helpful", "hh-harmless", "chatbot-arena", "beaver-safe", "alpaca-human-pref"):
        (tmp_path / name).mkdir()
    scale = paper_scale(Overrides(), data_folder=str(tmp_path))
    assert scale.sets["BS"].test == f"beaver-safe@{tmp_path / 'beaver-safe'}"
