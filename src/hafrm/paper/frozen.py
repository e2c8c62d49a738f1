"""A frozen backbone with a fitted reward head: what the pretrained model knows before any training.

The head is a logistic regression on differences of hidden states at the scored positions. Its penalty is chosen on
validation pairs, as the models' learning rates are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from hafrm.encoding import ConversationEncoder, TokenGroup
from hafrm.models.hybrid import HybridModel
from hafrm.models.layout import Layout, choose_layout
from hafrm.models.modules import evaluating
from hafrm.models.options import LoraOptions, ScoreOptions
from hafrm.models.scorers import HybridScorer
from hafrm.models.starts import new_model
from hafrm.stats import Floats, best_penalty
from hafrm.training.last_layer import PENALTIES

_TOKENS, _SEQUENCES = 8192, 32
"""The most tokens, and in padded batches sequences, per forward pass."""


def fit_frozen(
    model: str, encoder: ConversationEncoder, train: Sequence[TokenGroup], validation: Sequence[TokenGroup]
) -> HybridScorer:
    """Fit a reward head on a backbone that stays as it is, by the Bradley-Terry loss (Eq. 2).

    Args:
        model: Folder or hub id of the backbone.
        train: Pairs to fit, the chosen response first.
        validation: Pairs on which the penalty is chosen; ties go to the larger one.
    """
    tokenizer: Any = encoder.tokenizer
    found = new_model(model, tokenizer, lora=LoraOptions(), lm_head=False)
    layout = choose_layout(found, tokenizer.pad_token_id, max_length=encoder.max_length)
    x, held_out = (_differences(found, layout, groups) for groups in (train, validation))
    scale = x.std(axis=0) + 1e-6
    _, weights = best_penalty(x / scale, held_out / scale, PENALTIES)
    with torch.no_grad():
        found.score.weight.copy_(torch.from_numpy(weights / scale)[None])
    return HybridScorer(found, encoder, layout, ScoreOptions())


@torch.no_grad()
def _differences(model: HybridModel, layout: Layout, groups: Sequence[TokenGroup]) -> Floats:
    """Return the scored state of each pair's chosen response minus that of the rejected one, [B, H]."""
    found: dict[int, Floats] = {}
    with evaluating(model):
        for rows in layout.plan(groups, sequences=_SEQUENCES, tokens=_TOKENS):
            batch = layout.batch([groups[row] for row in rows])
            states = model.hidden_states(batch)[batch.score_index].double().numpy()
            found.update(zip(rows, states[::2] - states[1::2], strict=True))
    return np.stack([found[row] for row in range(len(groups))])
