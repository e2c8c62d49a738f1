"""Train with a loss of your own: a focal Bradley-Terry loss, which gives less weight to well-ranked pairs.

    python examples/custom_loss.py MODEL train.jsonl runs/focal

A loss is a function of the two rewards, [B] each, that returns one number per pair, [B]. Register it under a name
before you create the options; from then on `reward_loss="focal"` works like hafrm's own names.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

import hafrm
from hafrm.losses import bradley_terry_loss, register_reward_loss


def focal_loss(
    chosen: Tensor, rejected: Tensor, *, margin: Tensor | None = None, label_smoothing: float = 0.0, focus: float = 2.0
) -> Tensor:
    """Bradley-Terry loss times (1 - p)^focus, where p is the probability of the chosen response. Shape [B]."""
    loss = bradley_terry_loss(chosen, rejected, margin=margin, label_smoothing=label_smoothing)
    return loss * (1 - torch.exp(-loss)) ** focus


def main(model: str, data: str, out: str) -> None:
    """Train for a few steps."""
    register_reward_loss("focal", focal_loss)
    loss = hafrm.LossConfig(reward_loss="focal")
    config = hafrm.TrainConfig(model=model, data=[data], out=out, loss=loss, training={"max_steps": 20})
    hafrm.train(config)


if __name__ == "__main__":
    main(*sys.argv[1:])
