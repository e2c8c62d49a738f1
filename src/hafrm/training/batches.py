"""Pairs as batches: token groups with what the losses need beside them.

Shape letters: B pairs, S = 2B sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from hafrm.encoding import TokenGroup
from hafrm.models.layout import Layout
from hafrm.packing import SequenceBatch, even_shares
from hafrm.pairs import PreferencePair

__all__ = ["PairBatch", "PairBatches", "PairCollator", "PairDataset", "PairItem"]


@dataclass(frozen=True)
class PairItem:
    """One pair, encoded."""

    row: int
    """Its place in the data set, by which errors name it."""
    tokens: TokenGroup
    margin: float
    reference: tuple[float, float] | None
    """Reference log-probs of chosen and rejected, where they were computed beforehand."""


class PairDataset(Dataset[PairItem]):
    """Encoded pairs.

    Args:
        pairs: The pairs, for their margins and names.
        groups: Their token ids, in the same order.
        reference: Reference log-probs, [B, 2], or None.
    """

    def __init__(
        self, pairs: Sequence[PreferencePair], groups: Sequence[TokenGroup], reference: np.ndarray | None = None
    ) -> None:
        if len(pairs) != len(groups) or (reference is not None and reference.shape != (len(groups), 2)):
            raise ValueError("pairs, groups and reference must be of one length")
        self.pairs, self.groups, self.reference = pairs, groups, reference

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, row: int) -> PairItem:
        reference = None if self.reference is None else (self.reference[row, 0], self.reference[row, 1])
        return PairItem(row, self.groups[row], self.pairs[row].margin or 0.0, reference)

    def names(self, rows: Sequence[int]) -> list[str]:
        """Where the pairs of these rows came from."""
        return [self.pairs[row].id for row in rows]


@dataclass(frozen=True)
class PairBatch:
    """A batch of pairs: S = 2B sequences, chosen before rejected, with margins and reference log-probs."""

    sequences: SequenceBatch
    rows: Tensor
    """Each pair's place in its data set, [B]."""
    margin: Tensor
    """How much better chosen is said to be, [B]; 0 where the data does not say."""
    reference: Tensor | None
    """Reference log-probs, [S], where they were computed beforehand."""
    counts: bool = True
    """Whether its losses count. One that does not keeps step with other processes, which have a part more."""

    def __len__(self) -> int:
        return self.rows.shape[0]

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> PairBatch:
        """The same batch on another device."""
        return replace(
            self,
            sequences=self.sequences.to(device, non_blocking=non_blocking),
            margin=self.margin.to(device, non_blocking=non_blocking),
            reference=None if self.reference is None else self.reference.to(device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> PairBatch:
        """The same batch in pinned memory."""
        return replace(
            self,
            sequences=self.sequences.pin_memory(),
            margin=self.margin.pin_memory(),
            reference=None if self.reference is None else self.reference.pin_memory(),
        )


@dataclass(frozen=True)
class PairBatches:
    """A process's share of what a data loader hands over as one batch, in parts that each fit the token budget.

    How a batch is shared and cut changes no loss and no gradient: both are sums over pairs. (Where a loss joins the
    pairs of a part, as `kto_pair` does, it changes both.)
    """

    parts: tuple[PairBatch, ...]
    """As many in each process: sharded weights are gathered part by part, by all processes together."""
    pairs: int
    """Pairs of the batch, over all processes."""

    @property
    def tokens(self) -> int:
        """Tokens that go through the model, padding included."""
        return sum(part.sequences.input_ids.numel() for part in self.parts)

    def pin_memory(self) -> PairBatches:
        """The same batches in pinned memory."""
        return replace(self, parts=tuple(part.pin_memory() for part in self.parts))


@dataclass(frozen=True)
class PairCollator:
    """Lays pairs out as batches within a token budget; where rows are padded, pairs of like length stand together.

    Each process is given the pairs of all, plans for all, and lays out its own share.
    """

    layout: Layout
    tokens_per_batch: int
    process: int = 0
    processes: int = 1

    def __call__(self, items: Sequence[PairItem]) -> PairBatches:
        """Collate pairs; see `PairBatches`."""
        shares = even_shares([item.tokens.unique_tokens for item in items], self.processes)
        plans = [self._plan([items[i] for i in share]) for share in shares]
        parts = [self._batch(part) for part in plans[self.process]]
        missing = max(map(len, plans)) - len(parts)
        if missing:  # put first, so that the last part is one that counts where there is one
            shortest = min(items, key=lambda item: item.tokens.unique_tokens)
            parts = [replace(self._batch([shortest]), counts=False)] * missing + parts
        return PairBatches(tuple(parts), len(items))

    def _plan(self, items: Sequence[PairItem]) -> list[list[PairItem]]:
        groups = [item.tokens for item in items]
        plan = self.layout.plan(groups, sequences=2 * len(items), tokens=self.tokens_per_batch)
        return [[items[i] for i in part] for part in plan]

    def _batch(self, items: Sequence[PairItem]) -> PairBatch:
        references = [value for item in items for value in item.reference or ()]
        return PairBatch(
            sequences=self.layout.batch([item.tokens for item in items]),
            rows=torch.tensor([item.row for item in items]),
            margin=torch.tensor([item.margin for item in items], dtype=torch.float32),
            reference=torch.tensor(references, dtype=torch.float32) if references else None,
        )
