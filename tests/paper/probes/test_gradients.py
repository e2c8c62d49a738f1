"""Gradients of the two losses, against autograd on the stock model, sequence by sequence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from hafrm.data import DataOptions, encode_pairs
from hafrm.encoding import ConversationEncoder
from hafrm.models.lora import LoraOptions
from hafrm.models.starts import new_model
from hafrm.models.tokenizers import load_tokenizer
from hafrm.paper.probes.gradients import WHOLE, pulls
from hafrm.training.loss import LossConfig
from tests.tiny import save_tiny, some_pairs

BETA, RATIO = 0.1, 0.2


def test_cosines_and_ratios_are_those_of_autograd_on_the_stock_model(tmp_path: Path) -> None:
    folder = str(save_tiny(tmp_path / "base"))
    tokenizer = load_tokenizer(folder)
    tables = encode_pairs(some_pairs(6), ConversationEncoder(tokenizer, 128), DataOptions(max_length=128))
    model = new_model(folder, tokenizer, lora=LoraOptions(), seed=3, dtype=torch.float32)
    reference = np.linspace(-90, -60, tables.num_responses, dtype=np.float32)
    found = pulls(model, tables, LossConfig(policy_ratio=RATIO, beta=BETA), reference)

    def scored(prompt: Sequence[int], response: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The reward and the log-prob of a response."""
        ids = torch.tensor([[*prompt, *response]])
        states = model.stock_lm.model(ids).last_hidden_state[0]
        logits = model.stock_lm.lm_head(states)[len(prompt) - 1 : -1].log_softmax(-1)
        return (states[-1] @ model.score.weight[0]), logits.gather(-1, ids[0, len(prompt) :, None]).sum()

    reward, policy = torch.zeros(()), torch.zeros(())
    for group, pair in zip(tables, tables.pairs, strict=True):
        (r_w, p_w), (r_l, p_l) = (scored(group.prompt, response) for response in group.responses)
        lead = float(reference[pair["chosen"]] - reference[pair["rejected"]])
        reward = reward - logsigmoid(r_w - r_l) / len(tables)
        policy = policy - RATIO * logsigmoid(BETA * (p_w - p_l - lead)) / len(tables)
    weights = dict(model.stock_lm.model.named_parameters())
    both = [gradients(loss, weights) for loss in (reward, policy)]
    expected = {WHOLE: list(weights), "layer 1": [name for name in weights if name.startswith("layers.0.")]}
    for part, names in expected.items():
        r, p = (torch.cat([each[name].flatten() for name in names]).double() for each in both)
        assert found[part].ratio == pytest.approx(float(p.norm() / r.norm()), rel=1e-3)
        assert found[part].cosine == pytest.approx(float(r @ p / r.norm() / p.norm()), abs=1e-4)


def gradients(loss: Tensor, weights: dict[str, Any]) -> dict[str, Tensor]:
    return dict(zip(weights, torch.autograd.grad(loss, list(weights.values()), retain_graph=True), strict=True))
