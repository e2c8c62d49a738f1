"""Several reward heads on one backbone: their mean is the reward everywhere, their spread its standard error."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback

from hafrm.data import DataOptions
from hafrm.errors import ConfigError
from hafrm.evaluation.bulk import RowScorer, score_rows
from hafrm.evaluation.options import ScoreConfig
from hafrm.judging.options import JudgeOptions
from hafrm.models.checkpoints import load_run
from hafrm.models.export import export
from hafrm.models.identity import model_identity
from hafrm.models.loading import load_scorer
from hafrm.models.options import ExportConfig, LoraOptions, ScoreOptions, ScorerChoice
from hafrm.pairs import Conversation
from hafrm.rlhf.options import RlhfConfig, SamplingOptions
from hafrm.rlhf.run import rlhf
from hafrm.sampling.best_of_n import best_of_n
from hafrm.sampling.options import BestOfNConfig
from hafrm.training.config import TrainConfig
from hafrm.training.loss import LossConfig
from hafrm.training.run import train
from tests.tiny import save_tiny, some_pairs

HEADS = 3
TALKS = [Conversation.of("Why? " * (1 + i % 2), f"word {i} " * (i + 1)) for i in range(4)]


def config(folder: Path, **values: Any) -> TrainConfig:
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(pair.as_row()) + "\n" for pair in some_pairs(12)))
    model = folder / "model"
    if not model.exists():
        save_tiny(model)
    training = {"max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "use_cpu": True}
    defaults: dict[str, Any] = {
        "model": str(model),
        "data": [str(rows)],
        "out": str(folder / "run"),
        "loss": LossConfig(heads=HEADS),
        "data_options": DataOptions(max_length=128),
        "training": training | {"report_to": [], "save_steps": 2},
    }
    return TrainConfig(**(defaults | values))


@pytest.fixture(scope="module", params=[0, 4], ids=["full", "lora"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("heads")
    train(config(folder, lora=LoraOptions(rank=request.param)))
    return folder / "run"


@torch.no_grad()
def by_hand(run: Path) -> torch.Tensor:
    """Each head's rewards, [conversations, K]: the file's weights on the stock backbone's last states."""
    weights = load_file(run / "model.safetensors")["reward_heads.weight"]
    assert weights.shape == (HEADS, 32)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(run).eval(), AutoTokenizer.from_pretrained(run)
    found = []
    for talk in TALKS:
        messages = [turn.as_dict() for turn in talk.turns]
        ids = tokenizer.apply_chat_template(messages, return_dict=False, return_tensors="pt")
        found.append(weights @ model.model(ids).last_hidden_state[0, -1])
    return torch.stack(found)


def test_the_mean_is_the_reward_in_every_program(run: Path, tmp_path: Path) -> None:
    """hafrm, the run's folder in the stock class, and the export with one head and its adapters agree."""
    rewards = by_hand(run).mean(1).tolist()
    assert load_scorer(str(run)).score(TALKS) == pytest.approx(rewards, abs=1e-5)
    export(ExportConfig(run=str(run), out=str(tmp_path / "out")))
    reward = tmp_path / "out" / "reward"
    assert set(load_file(run / "model.safetensors")) - set(load_file(reward / "model.safetensors")) == {
        "lm_head.weight",
        "reward_heads.weight",
    }
    stock: list[Any] = [AutoModelForSequenceClassification.from_pretrained(place) for place in (run, reward)]
    if (reward / "adapter").exists():
        assert not any("reward_heads" in name for name in load_file(reward / "adapter" / "adapter_model.safetensors"))
        base = AutoModelForSequenceClassification.from_pretrained(run.parent / "model", num_labels=1)
        stock.append(PeftModel.from_pretrained(base, reward / "adapter"))
    tokenizer = AutoTokenizer.from_pretrained(run)
    for model in stock:
        for talk, expected in zip(TALKS, rewards, strict=True):
            messages = [turn.as_dict() for turn in talk.turns]
            ids = tokenizer.apply_chat_template(messages, return_dict=False, return_tensors="pt")
            with torch.no_grad():
                assert model.eval()(ids).logits.item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("pessimism", [0.5, 2.0])
def test_pessimism_takes_off_standard_errors(run: Path, pessimism: float) -> None:
    heads = by_hand(run)
    expected = heads.mean(1) - pessimism * heads.std(1)
    assert (heads.std(1) > 1e-3).all()
    options = ScoreOptions(pessimism=pessimism)
    assert load_scorer(str(run), options=options).score(TALKS) == pytest.approx(expected.tolist(), abs=1e-5)
    by_prefix: Any = load_scorer(str(run), options=options)
    by_prefix.by_prefix = True
    divided = [each.reward for each in by_prefix.token_rewards(TALKS)]
    assert divided == pytest.approx(expected.tolist(), abs=1e-5)
    combined = [
        load_scorer(str(run), head="combined", combined_weight=0.5, options=each).score(TALKS)
        for each in (options, ScoreOptions())
    ]
    differences = [one - other for one, other in zip(*combined, strict=True)]  # type: ignore[operator]
    assert differences == pytest.approx((-pessimism * heads.std(1)).tolist(), abs=1e-5)
    identities = [model_identity(str(run), ScorerChoice(), each) for each in (options, ScoreOptions())]
    assert identities[0] != identities[1]  # so that no rewards are reused


def test_scored_rows_have_standard_errors(run: Path, tmp_path: Path) -> None:
    """The standard deviation over the heads of the file: of responses, of pairs, and of columns in memory."""
    heads = by_hand(run)
    rewards, errors = heads.mean(1).tolist(), heads.std(1).tolist()
    rows = [{"prompt": talk.prompt.turns[0].content, "response": talk.response[0].content} for talk in TALKS]
    pair = {"prompt": rows[0]["prompt"], "chosen": rows[0]["response"], "rejected": rows[2]["response"]}
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in [*rows, pair]))
    score_rows(ScoreConfig(model=str(run), data=str(tmp_path / "rows.jsonl"), out=str(tmp_path / "scored.jsonl")))
    *scored, of_pair = [json.loads(line) for line in (tmp_path / "scored.jsonl").read_text().splitlines()]
    assert [row["reward"] for row in scored] == pytest.approx(rewards, abs=1e-5)
    assert [row["reward_error"] for row in scored] == pytest.approx(errors, abs=1e-5)
    found = [of_pair[f"reward_error_{side}"] for side in ("chosen", "rejected")]
    assert found == pytest.approx([errors[0], errors[2]], abs=1e-5)
    columns = RowScorer(str(run))({name: [row[name] for row in rows] for name in rows[0]})
    assert columns["reward_error"] == pytest.approx(errors, abs=1e-5)
    again = RowScorer(str(run), head="policy")({**columns, "unscored": [None] * len(rows)})
    assert "reward_error" not in again  # errors of an earlier scoring would look like those of the new one


def test_only_what_is_judged_is_pessimistic(run: Path, tmp_path: Path) -> None:
    """Policies and best-of-N maximise the bound; the same run as their judge gives the mean of its heads."""
    rewards = by_hand(run)
    bounds, means = rewards.mean(1) - 2 * rewards.std(1), rewards.mean(1)
    row = {"prompt": "Why? ", "responses": [talk.response[0].content for talk in TALKS[::2]]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    options = ScoreOptions(pessimism=2.0)
    judge = JudgeOptions(kind="reward", model=str(run))
    shared: dict[str, Any] = {"out": str(tmp_path / "best"), "score": options, "judge": judge}
    (prompt,) = best_of_n(BestOfNConfig(models=[str(run)], samples=str(tmp_path / "rows.jsonl"), **shared)).prompts
    assert prompt.rewards[str(run)] == pytest.approx(bounds[::2].tolist(), abs=1e-5)
    assert prompt.gold == pytest.approx(means[::2].tolist(), abs=1e-5)
    policy = RlhfConfig(
        model=str(run.parent / "model"),
        reward=str(run),
        gold=str(run),
        data=[str(tmp_path / "rows.jsonl")],
        out=str(tmp_path / "policy"),
        steps=1,
        batch_size=4,
        max_prompt_tokens=64,
        sampling=SamplingOptions(max_new_tokens=6),
        score=options,
    )
    seen: list[dict[str, float]] = []
    rlhf(policy, progress=lambda _, metrics: seen.append(metrics))
    assert seen[0]["reward"] < seen[0]["gold"] - 2e-3


def test_errors_that_do_not_exist_are_refused(run: Path) -> None:
    options = ScoreOptions(pessimism=1.0)
    for model, head in ((str(run), "policy"), (str(run.parent / "model"), None)):
        with pytest.raises(ConfigError, match="pessimism"):
            load_scorer(model, head=head, options=options)
    for values in ({"heads": 0}, {"heads": 2, "reward_weight": 0.0}):
        with pytest.raises(ConfigError, match="heads"):
            LossConfig(**values)


def test_heads_are_saved_and_resumed_bit_for_bit(run: Path, tmp_path: Path) -> None:
    """A run that stops at its second step and resumes ends with the weights of an uninterrupted one."""
    saved = json.loads((run / "manifest.json").read_text())["config"]
    whole = config(tmp_path, lora=LoraOptions(**saved["lora"]))

    class Stop(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            if state.global_step == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(whole, callbacks=[Stop()])
    train(whole)
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path / "run", run))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    model, _, described = load_run(tmp_path / "run")
    assert described.heads == model.heads == HEADS
    torch.testing.assert_close(model.score.weight, ours["reward_heads.weight"])
    torch.testing.assert_close(ours["score.weight"], ours["reward_heads.weight"].mean(0, keepdim=True))


def test_training_goes_on_from_the_mean(run: Path, tmp_path: Path) -> None:
    start = replace(config(tmp_path), model=str(run), training={"max_steps": 1, "learning_rate": 1e-9, "use_cpu": True})
    train(start)
    kept = load_file(tmp_path / "run" / "model.safetensors")["reward_heads.weight"]
    mean = load_file(run / "model.safetensors")["score.weight"]
    torch.testing.assert_close(kept, mean.to(kept.dtype).expand(HEADS, -1), atol=1e-5, rtol=0)
