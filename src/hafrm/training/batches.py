"""Batches of pairs: each prompt and each response once, with the pairs as indices of responses.

Shape letters: B pairs, S sequences (a prompt with one response).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from hafrm.data import PairTables
from hafrm.encoding import TokenGroup
from hafrm.models.layout import Layout
from hafrm.packing import SequenceBatch, even_shares


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
    """Encoded pairs; reference log-probs, if given, are of the tables' responses, [R], NaN where they are not known.

    Raises:
        ValueError: the reference is of another shape.
    """

    def __init__(self, tables: PairTables, reference: np.ndarray | None = None) -> None:
        if reference is not None and reference.shape != (tables.num_responses,):
            raise ValueError(f"reference must be of shape [{tables.num_responses}], got {list(reference.shape)}")
        self.tables, self.reference = tables, reference
        self._margins = tables.margins

    def __len__(self) -> int:
        return len(self.tables)

    def __getitem__(self, row: int) -> PairItem:
        reference = None
        if self.reference is not None:
            pair = self.tables.pairs[row]
            reference = float(self.reference[pair["chosen"]]), float(self.reference[pair["rejected"]])
        return PairItem(row, self.tables[row], float(self._margins[row]), reference)


@dataclass(frozen=True)
class PairBatch:
    """A batch of B pairs of S sequences, with margins and reference log-probs."""

    sequences: SequenceBatch
    """The sequences, each prompt's together; a response that occurs in several pairs is one sequence."""
    chosen: Tensor
    """Index of each pair's better sequence, [B]."""
    rejected: Tensor
    """Index of each pair's worse sequence, [B]."""
    rows: Tensor
    """Each pair's index in its data set, [B]."""
    margin: Tensor
    """How much better chosen is, [B]; 0 where the data does not say."""
    reference: Tensor | None
    """Reference log-probs, [S], if they were precomputed; NaN in batches that are prefetched and never trained on."""
    units: tuple[tuple[int, int], ...]
    """Number of sequences and of pairs of each prompt, in order: no pair spans two units."""
    counts: bool = True
    """Whether its losses count. A batch that does not count is only run because other processes have more parts."""

    def __len__(self) -> int:
        return self.rows.shape[0]

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> PairBatch:
        """Return the batch on another device; `rows` stay."""
        sequences = self.sequences.to(device, non_blocking=non_blocking)
        return self._with_tensors(sequences, lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> PairBatch:
        """Return the batch in pinned memory."""
        return self._with_tensors(self.sequences.pin_memory(), Tensor.pin_memory)

    def _with_tensors(self, sequences: SequenceBatch, change: Callable[[Tensor], Tensor]) -> PairBatch:
        return replace(
            self,
            sequences=sequences,
            chosen=change(self.chosen),
            rejected=change(self.rejected),
            margin=change(self.margin),
            reference=None if self.reference is None else change(self.reference),
        )


@dataclass(frozen=True)
class PairBatches:
    """One process's share of a data loader's batch, cut into parts that each fit the token budget.

    Sharing and cutting a batch changes neither loss nor gradient: both are sums over pairs. (Losses that compare a
    pair with the others of its part are exceptions: `kto_pair`, `aot` and `aot_unpaired`.)
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


_Unit = tuple[TokenGroup, list[PairItem]]
"""Pairs of one prompt with their distinct responses, which are laid out once."""


def _units(items: Sequence[PairItem], tokens: int) -> list[_Unit]:
    """Gather pairs of the same prompt into units of up to `tokens` unique tokens, in order of first occurrence."""
    by_prompt: dict[tuple[int, ...], list[tuple[dict[tuple[int, ...], None], list[PairItem]]]] = {}
    for item in items:
        units = by_prompt.setdefault(item.tokens.prompt, [])
        own = dict.fromkeys(item.tokens.responses)
        if units and len(item.tokens.prompt) + sum(map(len, units[-1][0] | own)) <= tokens:
            units[-1][0].update(own)
            units[-1][1].append(item)
        else:
            units.append((own, [item]))
    return [
        (TokenGroup(prompt, tuple(responses)), its_items)
        for prompt, units in by_prompt.items()
        for responses, its_items in units
    ]


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
        units = _units(items, self.tokens_per_batch)
        shares = even_shares([group.unique_tokens for group, _ in units], self.processes)
        plans = [self._plan([units[i] for i in share]) for share in shares]
        parts = [_batch(part, self.layout) for part in plans[self.process]]
        missing = max(map(len, plans)) - len(parts)
        if missing:  # they go first, so that the last part counts if any does
            shortest = min(units, key=lambda unit: unit[0].unique_tokens)
            parts = [replace(_batch([shortest], self.layout), counts=False)] * missing + parts
        return PairBatches(tuple(parts), len(items))

    def _plan(self, units: Sequence[_Unit]) -> list[list[_Unit]]:
        sequences = 2 * sum(len(items) for _, items in units)
        plan = self.layout.plan([group for group, _ in units], sequences=sequences, tokens=self.tokens_per_batch)
        return [[units[i] for i in part] for part in plan]


def _batch(units: Sequence[_Unit], layout: Layout) -> PairBatch:
    chosen: list[int] = []
    rejected: list[int] = []
    references: list[float] = []
    first = 0
    for group, items in units:
        place = {response: first + index for index, response in enumerate(group.responses)}
        first += len(group.responses)
        known: dict[tuple[int, ...], float] = {}
        for item in items:
            better, worse = item.tokens.responses
            chosen.append(place[better])
            rejected.append(place[worse])
            known.update(zip((better, worse), item.reference or (), strict=False))
        references += [known[response] for response in group.responses] if known else []
    every = [item for _, items in units for item in items]
    return PairBatch(
        sequences=layout.batch([group for group, _ in units]),
        chosen=torch.tensor(chosen),
        rejected=torch.tensor(rejected),
        rows=torch.tensor([item.row for item in every]),
        margin=torch.tensor([item.margin for item in every], dtype=torch.float32),
        reference=torch.tensor(references, dtype=torch.float32) if references else None,
        units=tuple((len(group.responses), len(items)) for group, items in units),
    )
