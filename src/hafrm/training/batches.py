"""Batches of pairs: token groups, margins and reference log-probs.

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


@dataclass(frozen=True)
class PairItem:
    """An encoded pair."""

    row: int
    """The pair's index in the data set, for error messages."""
    tokens: TokenGroup
    margin: float
    reference: tuple[float, float] | None
    """Reference log-probs of chosen and rejected, if they were precomputed."""


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
        """Return the sources of the pairs in these rows."""
        return [self.pairs[row].id for row in rows]


@dataclass(frozen=True)
class PairBatch:
    """A batch of pairs: S = 2B sequences, chosen before rejected, with margins and reference log-probs."""

    sequences: SequenceBatch
    rows: Tensor
    """Each pair's index in its data set, [B]."""
    margin: Tensor
    """How much better chosen is, [B]; 0 where the data does not say."""
    reference: Tensor | None
    """Reference log-probs, [S], if they were precomputed."""
    counts: bool = True
    """Whether its losses count. A batch that does not only keeps in step with processes that have more parts."""

    def __len__(self) -> int:
        return self.rows.shape[0]

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> PairBatch:
        """Return the batch on another device."""
        return replace(
            self,
            sequences=self.sequences.to(device, non_blocking=non_blocking),
            margin=self.margin.to(device, non_blocking=non_blocking),
            reference=None if self.reference is None else self.reference.to(device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> PairBatch:
        """Return the batch in pinned memory."""
        return replace(
            self,
            sequences=self.sequences.pin_memory(),
            margin=self.margin.pin_memory(),
            reference=None if self.reference is None else self.reference.pin_memory(),
        )


@dataclass(frozen=True)
class PairBatches:
    """One process's share of a data loader's batch, cut into parts that each fit the token budget.

    Sharing and cutting a batch changes neither loss nor gradient: both are sums over pairs. (A loss that couples the
    pairs of a part, such as `kto_pair`, is an exception.)
    """

    parts: tuple[PairBatch, ...]
    """The parts; every process has equally many, because all processes gather sharded weights together, part by part.
    """
    pairs: int
    """Number of pairs in the batch, over all processes."""

    @property
    def tokens(self) -> int:
        """Return the number of tokens that go through the model, padding included."""
        return sum(part.sequences.input_ids.numel() for part in self.parts)

    def pin_memory(self) -> PairBatches:
        """Return the batches in pinned memory."""
        return replace(self, parts=tuple(part.pin_memory() for part in self.parts))


@dataclass(frozen=True)
class PairCollator:
    """Collates pairs into batches within a token budget, grouping pairs of similar length where rows are padded.

    Each process receives the pairs of all processes, plans for all, and lays out only its own share.
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
        if missing:  # go first, so that the last part counts wherever any part does
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
