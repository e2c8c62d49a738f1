"""An evaluation keeps the token log-ratios of its worst mistakes, computes none twice, and works without them."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hafrm.data import DataOptions
from hafrm.errors import ConfigError
from hafrm.evaluation import tokens
from hafrm.evaluation.options import EvaluateConfig
from hafrm.evaluation.run import evaluate
from hafrm.evaluation.scoring import read_scores
from hafrm.models.options import ScorerChoice
from hafrm.models.scorers import HybridScorer
from hafrm.models.tokens import TokenRatios
from hafrm.pairs import Conversation
from hafrm.training.config import TrainConfig
from hafrm.training.run import train
from tests.tiny import save_tiny, some_pairs

PAIRS = 12


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base model, three runs from it, and their pairs."""
    folder = tmp_path_factory.mktemp("trained")
    base, rows = save_tiny(folder / "base"), folder / "train.jsonl"
    for path, count in ((folder / "pairs.jsonl", PAIRS), (rows, PAIRS + 1)):
        path.write_text("".join(json.dumps(pair.as_row()) + "\n" for pair in some_pairs(count)))
    for method in ("haf", "baseline", "dpo"):
        training = {"max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "use_cpu": True}
        train(
            TrainConfig(
                model=str(base),
                data=[str(rows)],
                method=method,
                out=str(folder / method),
                data_options=DataOptions(max_length=128),
                training=training | {"report_to": []},
            )
        )
    return folder


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of conversations in each computation."""
    sizes: list[int] = []
    compute = HybridScorer.token_log_ratios

    def counted(self: HybridScorer, conversations: Sequence[Conversation]) -> list[TokenRatios | None]:
        sizes.append(len(conversations))
        return compute(self, conversations)

    monkeypatch.setattr(HybridScorer, "token_log_ratios", counted)
    return sizes


def config(folder: Path, out: Path, *models: str, **options: Any) -> EvaluateConfig:
    names = [str(folder / model) for model in models or ("haf",)]
    return EvaluateConfig(models=names, data=[str(folder / "pairs.jsonl")], out=str(out), **options)


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "tokens.jsonl").read_text().splitlines()]


def require_same(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    """Rewards agree up to rounding, which depends on the batch; everything else exactly."""
    for one, other in zip(ours, theirs, strict=True):
        for name in ("chosen", "rejected"):
            mine, rival = dict(one[name]), dict(other[name])
            (after,), (expected,) = mine.pop("rewards"), rival.pop("rewards")
            assert [*after, mine.pop("reward")] == pytest.approx([*expected, rival.pop("reward")], abs=1e-5)
            assert mine == rival
        assert [one[name] for name in ("model", "data", "id")] == [other[name] for name in ("model", "data", "id")]


def text(side: dict[str, Any]) -> str:
    return "".join(piece for pieces in side["turns"] for piece, _ in pieces)


def test_the_worst_mistakes_of_models_with_a_policy_head_are_kept(trained: Path, tmp_path: Path) -> None:
    evaluate(config(trained, tmp_path, "haf", "baseline", token_log_ratios=5))
    scores = [score for score in read_scores(tmp_path / "scores.jsonl") if score.model == str(trained / "haf")]
    worst = sorted((score.margin, score.id) for score in scores)[:5]
    assert [line["id"] for line in lines(tmp_path)] == [name for _, name in worst]
    assert {line["model"] for line in lines(tmp_path)} == {str(trained / "haf")}
    pairs = some_pairs(PAIRS)
    for line in lines(tmp_path):
        pair = pairs[int(line["id"].rpartition(":")[2]) - 1]
        assert text(line["chosen"]) == pair.chosen[0].content
        assert text(line["rejected"]) == pair.rejected[0].content
    assert any(value for line in lines(tmp_path) for _, value in line["chosen"]["turns"][0])
    rewards = {score.id: [score.reward_chosen, score.reward_rejected] for score in scores}
    for line in lines(tmp_path):
        sides = [line["chosen"], line["rejected"]]
        assert [side["reward"] for side in sides] == pytest.approx(rewards[line["id"]], abs=1e-5)
        for side in sides:
            assert [[value is None for value in turn] for turn in side["rewards"]] == [
                [value is None for _, value in pieces] for pieces in side["turns"]
            ]


def test_a_run_without_a_trained_reward_head_has_no_rewards_so_far(trained: Path, tmp_path: Path) -> None:
    evaluate(config(trained, tmp_path, "dpo", token_log_ratios=3))
    sides = [line[name] for line in lines(tmp_path) for name in ("chosen", "rejected")]
    assert len(sides) == 6
    assert all(side["turns"] and not {"rewards", "reward"} & side.keys() for side in sides)


def test_nothing_is_computed_twice(trained: Path, tmp_path: Path, asked: list[int], monkeypatch: Any) -> None:
    monkeypatch.setattr(tokens, "_CHUNK", 2)
    options = config(trained, tmp_path, token_log_ratios=4)
    evaluate(options)
    before = lines(tmp_path)
    assert asked == [4, 4]
    evaluate(options)
    assert asked == [4, 4]
    kept = tmp_path / "parts" / "tokens.jsonl"
    content = kept.read_bytes().splitlines(keepends=True)
    kept.write_bytes(b"".join(content[:3]) + content[3][:20])  # as a kill leaves it
    evaluate(options)
    assert asked == [4, 4, 4]  # the whole chunk, since rounding depends on what a batch contains
    assert lines(tmp_path) == before
    evaluate(replace(options, token_log_ratios=6))
    assert asked == [4, 4, 4, 4]
    assert lines(tmp_path)[:4] == before
    evaluate(replace(options, token_log_ratios=0))
    assert not (tmp_path / "tokens.jsonl").exists()


def test_the_head_that_scores_does_not_change_them(trained: Path, tmp_path: Path) -> None:
    kept = {}
    for head in ("reward", "policy"):
        evaluate(config(trained, tmp_path / head, token_log_ratios=PAIRS, head=head))
        kept[head] = sorted(lines(tmp_path / head), key=lambda line: str(line["id"]))
    require_same(kept["reward"], kept["policy"])


def test_without_the_base_model_it_is_said_in_a_line(trained: Path, tmp_path: Path) -> None:
    moved = tmp_path / "trained"
    shutil.copytree(trained, moved)
    info = json.loads((moved / "haf" / "hafrm.json").read_text())
    (moved / "haf" / "hafrm.json").write_text(json.dumps(info | {"base_model": "nobody/has-this"}))
    said: list[str] = []
    results = evaluate(config(moved, tmp_path / "out"), say=said.append).as_dict()
    assert results["models"][str(moved / "haf")]["data"]
    assert len(said) == 1
    assert "nobody/has-this" in said[0]
    assert "--reference" in said[0]
    assert not (tmp_path / "out" / "tokens.jsonl").exists()
    evaluate(config(moved, tmp_path / "out", token_log_ratios=0), say=said.append)
    assert len(said) == 1


def test_a_base_model_of_other_weights_is_no_reference(trained: Path, tmp_path: Path) -> None:
    moved = tmp_path / "trained"
    shutil.copytree(trained, moved)
    other = save_tiny(moved / "base", seed=5)
    info = json.loads((moved / "haf" / "hafrm.json").read_text())
    (moved / "haf" / "hafrm.json").write_text(json.dumps(info | {"base_model": str(other)}))
    said: list[str] = []
    evaluate(config(moved, tmp_path / "out"), say=said.append)
    assert f"{other} no longer" in said[0]


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, MemoryError])
@pytest.mark.parametrize("name", ["load", "token_log_ratios"])
def test_too_little_memory_for_tokens_costs_no_scores(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Exception], name: str
) -> None:
    place: Any = HybridScorer if name == "token_log_ratios" else ScorerChoice
    real = getattr(place, name)

    def exhausted(self: Any, *args: Any) -> Any:
        if name == "load" and self.head != "policy":  # the scorer, and not the tokens'
            return real(self, *args)
        raise kind("42 GiB")

    monkeypatch.setattr(place, name, exhausted)
    said: list[str] = []
    results = evaluate(config(trained, tmp_path), say=said.append).as_dict()
    assert json.loads((tmp_path / "results.json").read_text())["rows"] == results["rows"] == PAIRS
    assert not (tmp_path / "tokens.jsonl").exists()
    (line,) = (line for line in said if "log-ratios" in line)
    assert "Out of memory" in line
    assert "--token_log_ratios 0" in line


def test_no_scorer_is_held_while_tokens_are_computed(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[weakref.ref[Any]] = []
    held: list[int] = []
    real = ScorerChoice.load

    def load(self: ScorerChoice, *args: Any) -> Any:
        gc.collect()
        held.append(sum(ref() is not None for ref in loaded))
        scorer = real(self, *args)
        loaded.append(weakref.ref(scorer))
        return scorer

    monkeypatch.setattr(ScorerChoice, "load", load)
    evaluate(config(trained, tmp_path, "baseline", "haf"))
    assert held == [0, 0, 0]


def test_less_than_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="token_log_ratios"):
        EvaluateConfig(models=["m"], data=["d"], out="o", token_log_ratios=-1)
