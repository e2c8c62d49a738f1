"""What policy heads write: KL against stock transformers, measures by hand, and the experiment from end to end."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from hafrm.cli import main
from hafrm.encoding import TokenGroup
from hafrm.errors import ConfigError
from hafrm.models.layout import choose_layout
from hafrm.models.options import LoraOptions
from hafrm.models.starts import new_model
from hafrm.models.tokenizers import load_tokenizer
from hafrm.paper import generators
from hafrm.paper.generators import Point, at_kl, compared
from hafrm.paper.presets import paper_scale, world_scale
from hafrm.paper.probes.writing import Written, distinct
from hafrm.paper.scales import Overrides
from hafrm.rlhf.policy import Policy
from tests.paper.test_plans import job
from tests.tiny import save_tiny


@pytest.mark.parametrize("rank", [0, 4])
def test_divergences_are_those_of_stock_transformers(rank: int, tmp_path: Path) -> None:
    """The whole vocabulary's KL before each response token, summed over the response, and 0 at the start."""
    start = save_tiny(tmp_path / "start")
    tokenizer = load_tokenizer(str(start))
    model = new_model(str(start), tokenizer, lora=LoraOptions(rank=rank), dtype=torch.float32)
    policy = Policy(model, choose_layout(model, tokenizer.pad_token_id, max_length=64))
    groups = [TokenGroup((5, 6, 7), ((8, 9),)), TokenGroup((5, 9), ((10, 11, 12, 13),)), TokenGroup((6,), ((7,),))]
    assert policy.divergences(groups) == pytest.approx([0, 0, 0], abs=1e-6)
    with torch.no_grad():
        for weight in (w for w in model.causal_lm.parameters() if w.requires_grad):
            weight += 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    stock = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32).eval()
    expected = []
    for group in groups:
        ids = torch.tensor([[*group.prompt, *group.responses[0]]])
        span = slice(len(group.prompt) - 1, -1)
        with torch.no_grad():
            p, q = (each(input_ids=ids).logits[0, span].log_softmax(-1) for each in (model.causal_lm, stock))
        expected.append((p.exp() * (p - q)).sum().item())
    assert min(expected) > 1e-4
    assert policy.divergences(groups) == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_distinct_n_by_hand() -> None:
    """`a b` occurs twice among five bigrams, four of them distinct; a text of one word has none."""
    parts = distinct(["a b c", "A B a", "b", "c a"], 2)
    assert parts.tolist() == [[1.5, 1.5, 0, 1], [2, 2, 0, 1]]
    assert distinct(["a b c", "A B a", "b", "c a"], 1)[0].sum() == pytest.approx(3)


def written(step: int, kl: list[float], texts: list[str]) -> Written:
    return Written(step, texts, kl, [2, 4], [6.0, 2.0], [3, 1])


def test_measures_by_hand() -> None:
    point = Point.of(written(3, [1.0, 2.0], ["x y", "x z"]), [1.0, 5.0], [1.0, 4.0])
    values = {name: point.value(name).item() for name in point.parts}
    assert values == pytest.approx(
        {
            "kl": 1.5,
            "kl per token": 0.5,
            "win rate, %": 0.75,
            "judge's reward": 3.0,
            "perplexity": np.exp(2.0),
            "distinct-1": 0.75,
            "distinct-2": 1.0,
            "distinct-3": 0.0,
            "tokens": 3.0,
        }
    )
    assert point.value("kl", np.array([[2.0, 0.0], [0.0, 2.0]])).tolist() == [1.0, 2.0]


def curve(*points: tuple[float, float]) -> list[Point]:
    """Checkpoints with these divergences and mean rewards, over eight prompts that differ."""
    spread = np.linspace(-1, 1, 8)
    return [
        Point(
            step,
            {"kl": np.stack([kl + 0 * spread, 1 + 0 * spread]), "judge's reward": np.stack([y + spread, spread**0])},
        )
        for step, (kl, y) in enumerate(points)
    ]


def test_values_at_equal_kl_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours reaches only two nats; theirs is interpolated between its checkpoints, in any order."""
    monkeypatch.setattr(generators, "_MEASURES", {"judge's reward": None})
    ours, theirs = curve((0, 1), (2, 5)), curve((0, 1), (6, 7), (1, 2))
    assert at_kl(theirs, "judge's reward", [0.5, 1, 2, 9]).tolist() == [[1.5, 2, 3, 7]]
    half, whole = compared([ours], [theirs])
    assert (half["kl"], whole["kl"]) == (1, 2)
    assert half["judge's reward"]["difference"] == pytest.approx(3 - 2)
    assert whole["judge's reward"]["difference"] == pytest.approx(5 - 3)
    assert whole["judge's reward"]["ci95"] == pytest.approx([2, 2])  # the prompts' spread is common to both


def test_its_plan(tmp_path: Path) -> None:
    """Three ways for each seed, with at least four checkpoints; outside the world there is a judge."""
    for steps in (7, 240):
        plan = generators.plan(job(world_scale(Overrides(steps=steps)), seeds=(0, 1), out=tmp_path))
        assert [run.name.split("/")[-1] for run in plan.runs if run.seed == 1] == [
            "dpo-seed1-checkpoints",
            "haf-seed1-checkpoints",
            "haf-ratio1-seed1-checkpoints",
        ]
        assert all(each.draws >= 5 for each in plan.responses)
    with pytest.raises(ConfigError, match="true reward is unknown"):
        generators.plan(job(paper_scale(Overrides()), out=tmp_path))


@pytest.mark.slow
def test_generators_from_their_command_to_their_files(
    tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generators, "_SIZES", {"world": (8, 6)})
    words = [
        "reproduce",
        "generators",
        "--out",
        str(tmp_path),
        "--steps",
        "2",
        "--sets",
        "Helpful",
        "--seeds",
        "0",
        "1",
    ]
    assert main(words) == 0
    root = tmp_path / "world"
    results = json.loads((root / "generators" / "results.json").read_text())
    for way in results["checkpoints"].values():
        assert [each["step"] for each in way] == [0, 1, 2]
        assert (way[0]["win rate, %"], way[0]["kl"]) == (0.5, pytest.approx(0, abs=1e-6))
        assert way[2]["kl"] > 1e-6
    starts = {tuple(way[0].values()) for way in results["checkpoints"].values()}
    assert len(starts) == 1
    assert set(results["at_equal_kl"]) == {"HAF - DPO", "HAF, ratio 1 - DPO"}
    answers = {path: path.stat().st_mtime_ns for path in (root / "answers").rglob("*.json")}
    assert len(answers) == 2 * (1 + 3 * 2)
    assert main(words) == 0
    assert {path: path.stat().st_mtime_ns for path in (root / "answers").rglob("*.json")} == answers
    assert (root / "generators" / "generators.svg").read_text().startswith("<svg")
