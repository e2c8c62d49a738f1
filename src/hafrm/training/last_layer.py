"""The reward head as the last layer: fitted to hidden states before training, and its posterior after training.

Given the backbone, Bradley-Terry is a logistic regression of labels on differences of hidden states. Before training,
`fit_head` fits its weights, so that training starts where a frozen backbone ends (linear probing before fine-tuning,
Kumar et al., 2022, arXiv:2202.10054).

After training, `laplace_heads` draws heads from the posterior by the Laplace approximation, a Gaussian around the
trained head. Its precision is that of the prior, the distribution of new heads, plus the sum over pairs of p (1 - p) *
difference * difference^T, where p is the label's probability. Labels say nothing about the level of rewards, so the
draws don't change it: all give the mean hidden state of the training responses the same reward.

Shape letters: H hidden, K heads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from hafrm.data import PairTables
from hafrm.memory import enough_memory
from hafrm.models.hybrid import HybridModel
from hafrm.models.modules import evaluating
from hafrm.progress import ProgressLine
from hafrm.stats import best_penalty, fit_pairs
from hafrm.training.batches import PairBatch, PairCollator, PairDataset
from hafrm.training.objective import Objective

_LESS_MEMORY = "Run the same command again with a lower data_options.tokens_per_batch: it resumes at this point."

_PAIRS = 1024
"""Pairs whose token ids are in memory at a time."""

_MOST = 8192
"""Maximum number of pairs to fit a head to."""

_FOLDS = 5
"""The penalty is chosen on a fifth of the prompts."""

PENALTIES = tuple(10.0**power for power in range(-1, 6))
"""Candidate weights of the squared norm, for differences of states with unit variance."""


def fit_head(model: HybridModel, tables: PairTables, rows: Sequence[int], collator: PairCollator) -> None:
    """Fit the reward head, or each of several, to the hidden states of pairs, in place.

    Args:
        model: The model before training.
        tables: The training pairs.
        rows: Indices of the pairs to learn from, of which the first ones are used.
        collator: Makes batches of them, for a single process.
    """
    rows = rows[:_MOST]
    differences, order = [], []
    for part, states in _states(model, tables, rows, collator, "fitting the reward head"):
        differences.append((states[part.chosen] - states[part.rejected]).numpy())
        order.append(part.rows.numpy())
    x = np.concatenate(differences)
    scale = x.std(axis=0) + 1e-6
    x /= scale
    _, prompts = np.unique(tables.pairs["prompt"][np.concatenate(order)], return_inverse=True)
    held_out = prompts % _FOLDS == 0
    if held_out.all():
        held_out = np.arange(len(x)) % _FOLDS == 0  # a single prompt
    penalty, _ = best_penalty(x[~held_out], x[held_out], PENALTIES)
    with torch.no_grad():
        model.score.weight.copy_(torch.from_numpy(fit_pairs(x, penalty) / scale))


@torch.no_grad()
def _states(
    model: HybridModel, tables: PairTables, rows: Sequence[int], collator: PairCollator, what: str
) -> Iterator[tuple[PairBatch, Tensor]]:
    """Yield batches of pairs with the hidden states at the scored places of their sequences, [S, H], in float64."""
    pairs = PairDataset(tables)
    with ProgressLine(what, Console(stderr=True)) as line, evaluating(model):
        for start in range(0, len(rows), _PAIRS):
            for part in collator([pairs[row] for row in rows[start : start + _PAIRS]]).parts:
                batch = part.sequences.to(model.score.weight.device)
                with enough_memory(f"{what}, a batch of {len(part)} pairs", _LESS_MEMORY):
                    states = model.hidden_states(batch)[batch.score_index].cpu().double()
                yield part, states
            line.show(f"{what}: {min(len(rows), start + _PAIRS):,} of {len(rows):,} pairs")


def laplace_heads(
    model: HybridModel,
    objective: Objective,
    tables: PairTables,
    rows: Sequence[int],
    collator: PairCollator,
    *,
    count: int,
    seed: int,
) -> nn.Linear:
    """Draw reward heads around a model's own, which is their mean.

    Args:
        model: The trained model, with one reward head.
        objective: The losses that trained it, for margins.
        rows: Indices of the pairs to learn from.
        count: K, an even number.
    """
    own = model.score.weight.detach()
    precision, level = posterior(model, objective, tables, rows, collator)
    head = nn.Linear(own.shape[1], count, bias=False, dtype=own.dtype)
    head.weight.data.copy_(posterior_draws(own[0].cpu().double(), precision, level, count=count, seed=seed))
    return head.to(own.device)


@torch.no_grad()
def posterior(
    model: HybridModel, objective: Objective, tables: PairTables, rows: Sequence[int], collator: PairCollator
) -> tuple[Tensor, Tensor]:
    """Compute the precision of a reward head's posterior, [H, H], and the sum of the responses' hidden states, [H].

    Both are in float64. Arguments are those of `laplace_heads`.
    """
    weight = model.score.weight[0].cpu().double()
    precision = (len(weight) + 1) * torch.eye(len(weight), dtype=torch.float64)  # see `new_reward_head`
    level = torch.zeros_like(weight)
    for part, states in _states(model, tables, rows, collator, "reward heads"):
        difference = states[part.chosen] - states[part.rejected]
        likely = torch.sigmoid(difference @ weight - objective.margin(part).cpu().double())
        precision += (difference * (likely * (1 - likely))[:, None]).T @ difference
        level += (states[part.chosen] + states[part.rejected]).sum(0)
    return precision, level


def posterior_draws(weight: Tensor, precision: Tensor, level: Tensor, *, count: int, seed: int) -> Tensor:
    """Draw weights from a Gaussian, in twos on opposite sides of its mean, so that their mean is exact.

    Args:
        weight: The mean, [H].
        precision: The inverse of the covariance, [H, H].
        level: A direction in which the draws do not differ from the mean, [H].
        count: K, an even number.

    Returns:
        Weights, [K, H], in the precision's dtype.
    """
    root = torch.linalg.cholesky(precision)
    normal = torch.randn(count // 2, len(weight), generator=torch.Generator().manual_seed(seed), dtype=precision.dtype)
    draws = torch.linalg.solve_triangular(root.T, normal.T, upper=True).T
    along = torch.cholesky_solve(level[:, None], root)[:, 0]  # condition on draws @ level = 0
    draws = draws - (draws @ level)[:, None] * along / (along @ level)
    return weight + torch.cat([draws, -draws])
