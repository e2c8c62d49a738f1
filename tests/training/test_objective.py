"""What of a row reaches the loss, by hand; and the choices of the config are those that the registries have."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args, get_type_hints

import pytest
import torch

from hafrm.data import DataOptions, load_pairs
from hafrm.data.encode import encode_pairs
from hafrm.encoding import ConversationEncoder
from hafrm.errors import ConfigError
from hafrm.losses import PLACKETT_LUCE, REWARD_LOSSES
from hafrm.models.hybrid import SequenceScores
from hafrm.models.layout import choose_layout
from hafrm.training.batches import PairBatch, PairCollator, PairDataset
from hafrm.training.config import LossConfig, TrainConfig
from hafrm.training.objective import Objective
from hafrm.training.run import train
from tests.models.test_packed_model import MAX_LENGTH, hybrid, random_group
from tests.tiny import save_tiny, tables_of, tiny_tokenizer

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
    """The rows as they come to the objective: read, tokenised to anything, and collated."""
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    pairs = load_pairs(str(path)).pairs
    groups = [random_group(4 + place, 2, 3) for place in range(len(pairs))]  # of different prompts
    dataset = PairDataset(tables_of(pairs, groups))
    layout = choose_layout(hybrid("llama"), 3, max_length=MAX_LENGTH)
    (batch,) = PairCollator(layout, 10_000)([dataset[row] for row in range(len(dataset))]).parts
    return batch


@pytest.mark.parametrize("name", BY_HAND)
@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_a_rows_margin_is_taken_off_its_reward_difference(name: Any, weight: float, tmp_path: Path) -> None:
    """From the file to the loss: (1.5 of 1.5), none, and .25 of 0; a pair's own margin and no other's."""
    objective = Objective(LossConfig(reward_loss=name, reward_weight=weight, policy_ratio=0.0))
    rewards = torch.tensor(REWARDS, dtype=torch.float64).flatten()
    losses = objective(SequenceScores(rewards, None, None), batch_of_rows(tmp_path), None)
    assert losses.loss.tolist() == pytest.approx([weight * loss for loss in BY_HAND[name]], rel=1e-12)


def test_each_head_weighs_pairs_at_random_and_alike_in_every_epoch() -> None:
    """In training by an exponential draw of mean 1, of which a validation takes none."""
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
    """From the file to the loss, in whatever order the pairs are drawn: a is best of all, c and d beat b, and tie."""
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


def test_a_run_learns_from_rankings(tmp_path: Path) -> None:
    """Rewards that are all 0 leave chance: 1 in 4, then twice 1 in 2, over the five pairs of each ranking."""
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
    """A loss that is registered can be chosen, and what can be chosen is registered."""
    assert set(get_args(get_type_hints(LossConfig)["reward_loss"])) == {*REWARD_LOSSES, PLACKETT_LUCE}


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
