"""A batch is shared over processes completely, evenly by tokens, and with the same loss and gradients."""

from __future__ import annotations

import pytest
import torch

from hafrm.models.layout import Layout
from hafrm.training.batches import PairBatches, PairCollator, PairItem
from hafrm.training.loss import LossConfig
from hafrm.training.objective import Objective
from tests.models.test_packed_model import Float64Throughout, assert_same, hybrid
from tests.training.test_exactness import GROUPS, REFERENCE, gradients

ITEMS = [PairItem(i, group, 0.0, REFERENCE[i]) for i, group in enumerate(GROUPS)]


def shared(layout: Layout, tokens_per_batch: int, processes: int) -> list[PairBatches]:
    return [PairCollator(layout, tokens_per_batch, process, processes)(ITEMS) for process in range(processes)]


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("tokens_per_batch", [30, 60, 1000])
@pytest.mark.parametrize("processes", [1, 2, 3, 7])
def test_processes_keep_step_and_take_each_pair_once(packed: bool, tokens_per_batch: int, processes: int) -> None:
    batches = shared(Layout(packed, 3), tokens_per_batch, processes)
    assert len({len(batch.parts) for batch in batches}) == 1
    rows = [row for batch in batches for part in batch.parts if part.counts for row in part.rows.tolist()]
    assert sorted(rows) == list(range(len(ITEMS)))
    assert {batch.pairs for batch in batches} == {len(ITEMS)}


@pytest.mark.parametrize("processes", [2, 3, 7])
@pytest.mark.parametrize("tokens_per_batch", [30, 1000])
def test_the_mean_over_processes_is_the_mean_over_pairs(processes: int, tokens_per_batch: int) -> None:
    """In float64: each process's sum, times the number of processes, divided by all pairs; averaged as in DDP."""
    model, objective = hybrid("llama"), Objective(LossConfig())

    def mean_gradients(count: int) -> tuple:
        losses = [
            objective.pair_losses(model, part).loss.sum() * count / batch.pairs * part.counts
            for batch in shared(Layout(False, 3), tokens_per_batch, count)
            for part in batch.parts
        ]
        return gradients(model, torch.stack(losses).sum() / count)

    with Float64Throughout():
        assert_same(mean_gradients(processes), mean_gradients(1), 1e-12)
