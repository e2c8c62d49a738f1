"""What of a row reaches the loss, by hand; and the choices of the config are those that the registries have."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch

from hafrm.data import load_pairs
from hafrm.errors import ConfigError
from hafrm.losses import REWARD_LOSSES
from hafrm.models.hybrid import SequenceScores
from hafrm.models.layout import choose_layout
from hafrm.training.batches import PairBatch, PairCollator, PairDataset
from hafrm.training.config import LossConfig
from hafrm.training.objective import Objective
from tests.models.test_packed_model import MAX_LENGTH, hybrid, random_group
from tests.tiny import tables_of

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


def test_the_choices_are_those_of_the_registry() -> None:
    """A loss that is registered can be chosen, and what can be chosen is registered."""
    assert set(get_args(get_type_hints(LossConfig)["reward_loss"])) == set(REWARD_LOSSES)


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
