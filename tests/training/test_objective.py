"""How a row's fields enter the loss, by hand; the config's choices are those of the registries."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from hafrm.data import DataOptions, load_pairs
from hafrm.data.encode import encode_pairs
from hafrm.encoding import ConversationEncoder
from hafrm.errors import ConfigError
from hafrm.losses import PLACKETT_LUCE, REWARD_LOSSES, RewardLossName
from hafrm.models.hybrid import SequenceScores
from hafrm.models.layout import choose_layout
from hafrm.training.batches import PairBatch, PairCollator, PairDataset
from hafrm.training.config import TrainConfig
from hafrm.training.loss import LossConfig
from hafrm.training.objective import Objective, length_slope
from hafrm.training.run import train
from tests.models.test_packed_model import MAX_LENGTH, hybrid, random_group
from tests.tiny import save_tiny, some_pairs, tables_of, tiny_tokenizer

ROWS = [
    {"prompt": "a", "chosen": "b", "rejected": "c", "margin": 1.5},
    {"prompt": "d", "chosen": "e", "rejected": "f"},
    {"prompt": "g", "chosen": "h", "rejected": "i", "margin": 0.25},
]
MARGINS = (1.5, 0.0, 0.25)
REWARDS = ((2.0, 0.5), (-1.0, 1.0), (0.5, 0.5))
DIFFERENCES = [chosen - rejected - margin for (chosen, rejected), margin in zip(REWARDS, MARGINS, strict=True)]

BY_HAND = {
    "bradley_terry": [math.log1p(math.exp(-difference)) for difference in DIFFERENCES],
    "hinge": [max(0.0, 1 - difference) for difference in DIFFERENCES],
    "probit": [-math.log(0.5 * math.erfc(-difference / math.sqrt(2))) for difference in DIFFERENCES],
    "cauchy": [-math.log(0.5 + math.atan(difference) / math.pi) for difference in DIFFERENCES],
}


def batch_of_rows(folder: Path) -> PairBatch:
    """Return rows as the objective gets them: read, tokenised in some way, and collated."""
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    pairs = load_pairs(str(path)).pairs
    groups = [random_group(4 + place, 2, 3) for place in range(len(pairs))]  # their prompts differ
    dataset = PairDataset(tables_of(pairs, groups))
    layout = choose_layout(hybrid("llama"), 3, max_length=MAX_LENGTH)
    (batch,) = PairCollator(layout, 10_000)([dataset[row] for row in range(len(dataset))]).parts
    return batch


@pytest.mark.parametrize("name", BY_HAND)
@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_a_rows_margin_is_taken_off_its_reward_difference(name: Any, weight: float, tmp_path: Path) -> None:
    """From the file to the loss: each pair gets its own margin."""
    objective = Objective(LossConfig(reward_loss=name, reward_weight=weight, policy_ratio=0.0))
    rewards = torch.tensor(REWARDS, dtype=torch.float64).flatten()
    losses = objective(SequenceScores(rewards, None, None), batch_of_rows(tmp_path), None)
    assert losses.loss.tolist() == pytest.approx([weight * loss for loss in BY_HAND[name]], rel=1e-12)


@pytest.mark.parametrize("name", ["bradley_terry", "plackett_luce"])
def test_what_length_explains_is_not_the_rewards_to_learn(name: Any, tmp_path: Path) -> None:
    """Chosen responses have 2 tokens, rejected ones 3: with equal rewards the shorter leads by 1.4 * log(3 / 2)."""
    objective = Objective(LossConfig(reward_loss=name, length_control=True, policy_ratio=0.0), -1.4)
    rewards = torch.tensor(REWARDS, dtype=torch.float64).flatten()
    found = objective(SequenceScores(rewards, None, None), batch_of_rows(tmp_path), None)
    expected = [math.log1p(math.exp(-difference - 1.4 * math.log(3 / 2))) for difference in DIFFERENCES]
    assert found.loss.tolist() == pytest.approx(expected, rel=1e-6)
    assert found.metrics["rewards/margins"].tolist() == [one - other for one, other in REWARDS]


def labelled(bias: float, pairs: int = 4000) -> tuple[Any, torch.Tensor]:
    """Pairs won by quality and, with `bias`, by the log of the length, and both features of every response, [2N, 2]."""
    random = np.random.default_rng(0)
    features = np.stack([random.normal(size=(pairs, 2)), np.log(random.integers(5, 200, size=(pairs, 2)))], axis=2)
    lead = (features[:, 0] - features[:, 1]) @ [1.0, bias]
    lost = random.random(pairs) > 1 / (1 + np.exp(-lead))
    features[lost] = features[lost, ::-1]
    return features, torch.tensor(np.concatenate([features[:, 0], features[:, 1]]))


@pytest.mark.parametrize("bias", [-0.8, 0.0, 1.2])
def test_a_built_in_length_bias_is_kept_out_of_the_reward(bias: float) -> None:
    """A reward linear in quality and length has weights (1, bias) without control, and about (1, 0) with it.

    A quarter of the bias remains, because a fit on one of two causes underestimates its log-odds.
    """
    features, responses = labelled(bias)
    pairs = len(features)
    lengths = np.exp(features[:, :, 1]).round().astype(int)
    slope = length_slope(SimpleNamespace(lengths=lambda: lengths))  # type: ignore[arg-type]
    plain = LogisticRegression(C=1e9, fit_intercept=False)
    gaps = np.log(lengths[:, :1] / lengths[:, 1:])
    plain.fit(np.concatenate([gaps, -gaps]), [1] * pairs + [0] * pairs)
    assert slope == pytest.approx(plain.coef_[0, 0], abs=1e-3)
    batch: Any = SimpleNamespace(
        chosen=torch.arange(pairs),
        rejected=torch.arange(pairs) + pairs,
        rows=torch.arange(pairs),
        margin=torch.zeros(pairs),
        sequences=SimpleNamespace(response_lengths=torch.tensor(lengths.T.flatten())),
    )
    learnt = {}
    for control in (False, True):
        config = LossConfig(length_control=control, policy_ratio=0.0)
        objective = Objective(config, slope if control else 0.0)
        weights = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS([weights], line_search_fn="strong_wolfe", max_iter=50)

        def loss(objective: Objective = objective, weights: Any = weights, optimizer: Any = optimizer) -> Any:
            optimizer.zero_grad()
            scores = SequenceScores((responses - responses.mean(0)) @ weights, None, None)
            value = objective(scores, batch, None).loss.mean()
            value.backward()
            return value

        optimizer.step(loss)
        learnt[control] = weights.tolist()
    assert learnt[False] == pytest.approx([1.0, bias], abs=0.1)
    assert learnt[True] == pytest.approx([1.0, 0.0], abs=0.1 + abs(bias) / 5)


def test_length_that_explains_every_label_is_refused() -> None:
    for lengths in ([[3, 2], [9, 1], [4, 4]], [[2, 3], [1, 9]]):
        with pytest.raises(ConfigError, match="length_control"):
            length_slope(SimpleNamespace(lengths=lambda lengths=lengths: np.array(lengths)))  # type: ignore[arg-type]
    assert length_slope(SimpleNamespace(lengths=lambda: np.array([[4, 4]]))) == 0  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="length_control"):
        LossConfig(reward_loss="hinge", length_control=True)


def test_each_head_weighs_pairs_at_random_and_alike_in_every_epoch() -> None:
    """Training weighs pairs by exponential draws of mean 1; validation does not."""
    pairs, heads = 3000, 3
    rewards = torch.zeros(2 * pairs, heads, requires_grad=True)
    batch: Any = SimpleNamespace(
        chosen=torch.arange(pairs),
        rejected=torch.arange(pairs) + pairs,
        rows=torch.arange(pairs).flip(0),
        margin=torch.zeros(pairs),
        sequences=SimpleNamespace(response_lengths=torch.ones(2 * pairs)),
    )
    objective = Objective(LossConfig(heads=heads, policy_ratio=0.0))
    scores = SequenceScores(rewards.mean(1), None, None, rewards)
    (slopes,) = torch.autograd.grad(objective(scores, batch, None).loss.sum(), rewards)
    weights = -slopes[:pairs] * 2 * heads  # Bradley-Terry's slope at 0 is 1/2
    assert (weights > 0).all()
    assert weights.mean(0).tolist() == pytest.approx([1] * heads, abs=0.08)
    assert weights.std(0).tolist() == pytest.approx([1] * heads, abs=0.1)
    assert torch.corrcoef(weights.T).triu(1).abs().max() < 0.08
    (again,) = torch.autograd.grad(objective(scores, batch, None).loss.sum(), rewards)
    assert torch.equal(again, slopes)
    with torch.no_grad():
        assert objective(scores, batch, None).loss.tolist() == pytest.approx([math.log(2)] * pairs)


SCORES = [3.0, 1.0, 2.0, 2.0]
RANKINGS = [{"prompt": prompt, "responses": [c * 4 for c in "abcd"], "scores": SCORES} for prompt in "xy"]


def rankings(folder: Path) -> str:
    path = folder / "rankings.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in RANKINGS))
    return str(path)


@pytest.mark.parametrize("margins", [False, True])
def test_rankings_reach_plackett_luce(margins: bool, tmp_path: Path) -> None:
    """From the file to the loss, for any order of the pairs: a is the best, c and d tie and beat b."""
    options = DataOptions(max_length=64, score_margins=margins)
    encoder = ConversationEncoder(tiny_tokenizer(), 64, "drop")
    dataset = PairDataset(encode_pairs(load_pairs(rankings(tmp_path), options=options).pairs, encoder, options))
    layout = choose_layout(hybrid("llama"), 3, max_length=64)
    (batch,) = PairCollator(layout, 10_000)([dataset[row] for row in (3, 9, 0, 5, 7, 1, 4, 8, 2, 6)]).parts
    value = dict(zip("abcd", (0.5, -1.0, 0.25, 2.0), strict=True))
    texts = map(encoder.tokenizer.decode, batch.sequences.target_ids.split(batch.sequences.lengths))
    rewards = torch.tensor([value[text.strip()[0]] for text in texts])
    objective = Objective(LossConfig(reward_loss="plackett_luce", policy_ratio=0.0))
    losses = objective(SequenceScores(rewards.double(), None, None), batch, None)
    scores = dict(zip("abcd", SCORES, strict=True))

    def choice(best: str, others: str) -> float:
        gaps = [value[o] - value[best] + margins * (scores[best] - scores[o]) for o in others]
        return math.log1p(sum(map(math.exp, gaps)))

    expected = choice("a", "bcd") + choice("c", "b") + choice("d", "b")
    assert losses.loss.sum().item() == pytest.approx(2 * expected)
    assert batch.sequences.num_sequences == 8


def test_a_run_says_what_length_explains(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The manifest has the slope of the pairs, by tokens including those of the template's ending."""
    model, rows = save_tiny(tmp_path / "model"), tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(pair.as_row()) + "\n" for pair in some_pairs(12)))
    training = {"max_steps": 2, "per_device_train_batch_size": 4, "use_cpu": True}
    loss, out, options = LossConfig(length_control=True), tmp_path / "run", DataOptions(max_length=128)
    train(
        TrainConfig(
            model=str(model), data=[str(rows)], out=str(out), loss=loss, training=training, data_options=options
        )
    )
    slope = json.loads((out / "manifest.json").read_text())["length_slope"]
    answers = [[len(pair.chosen[0].content), len(pair.rejected[0].content)] for pair in some_pairs(12)]
    of_text = length_slope(SimpleNamespace(lengths=lambda: np.array(answers)))  # type: ignore[arg-type]
    assert slope == pytest.approx(of_text, rel=0.3)
    assert f"{slope:.2f}" in capfd.readouterr().err


def test_a_run_learns_from_rankings(tmp_path: Path) -> None:
    """If all rewards are 0, choices are random: 1 in 4, then twice 1 in 2, over five pairs per ranking."""
    config = {
        "model": str(save_tiny(tmp_path / "model")),
        "data": [rankings(tmp_path)],
        "method": "baseline",
        "out": str(tmp_path / "run"),
        "head_init": "zero",
        "loss": LossConfig(reward_loss="plackett_luce"),
        "training": {"max_steps": 8, "per_device_train_batch_size": 10, "learning_rate": 1e-2, "use_cpu": True},
    }
    with pytest.raises(ConfigError, match="batch_by"):
        TrainConfig(**config)
    train(TrainConfig(**config, data_options=DataOptions(max_length=64, batch_by="prompt")))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    found = [line["loss/reward"] for line in lines if "loss/reward" in line]
    assert found[0] == pytest.approx(math.log(4 * 2 * 2) / 5, rel=1e-5)
    assert found[-1] < found[0] / 2


def test_the_choices_are_those_of_the_registry() -> None:
    """The losses that can be chosen are exactly the registered ones."""
    assert set(get_args(RewardLossName)) == {*REWARD_LOSSES, PLACKETT_LUCE}


def test_what_plackett_luce_does_not_read_is_refused() -> None:
    with pytest.raises(ConfigError, match="label_smoothing"):
        LossConfig(reward_loss="plackett_luce", label_smoothing=0.1)


@pytest.mark.parametrize("name", ["dop", "dpo+dpo", "0*dpo", "-1*dpo", "dpo+", "x*dpo", "dpo sft", ""])
def test_policy_losses_that_are_none(name: str) -> None:
    with pytest.raises(ConfigError, match="policy_loss"):
        LossConfig(policy_loss=name)


def test_a_sum_of_policy_losses_reads_what_its_terms_read() -> None:
    assert LossConfig(policy_loss="dpo + 0.2*simpo", target_margin=0.7, reference="precomputed")
    with pytest.raises(ConfigError, match="target_margin"):
        LossConfig(policy_loss="dpo+0.2*sft", target_margin=0.7)
    with pytest.raises(ConfigError, match="reference"):
        LossConfig(policy_loss="simpo+0.2*sft", reference="precomputed")


def test_a_certain_label_has_no_exact_optimization() -> None:
    with pytest.raises(ConfigError, match="policy_label_smoothing"):
        LossConfig(policy_loss="exo_pair")
