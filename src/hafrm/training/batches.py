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
        return PairItem(row, self.tables[row], float(self._margins[row]), self._reference(row))

    def _reference(self, row: int) -> tuple[float, float] | None:
        if self.reference is None:
            return None
        pair = self.tables.pairs[row]
        return float(self.reference[pair["chosen"]]), float(self.reference[pair["rejected"]])

    def names(self, rows: Sequence[int]) -> list[str]:
        """Return the sources of the pairs in these rows."""
        return self.tables.names(rows)


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


@dataclass(frozen=True)
class _Unit:
    """Pairs of one prompt, whose distinct responses are laid out once."""

    tokens: TokenGroup
    items: tuple[PairItem, ...]

    @classmethod
    def of(cls, items: Sequence[PairItem]) -> _Unit:
        responses = dict.fromkeys(response for item in items for response in item.tokens.responses)
        return cls(TokenGroup(items[0].tokens.prompt, tuple(responses)), tuple(items))

    def places(self) -> list[tuple[int, int]]:
        """Return the indices of each pair's responses within the unit."""
        place = {response: index for index, response in enumerate(self.tokens.responses)}
        return [(place[chosen], place[rejected]) for chosen, rejected in (item.tokens.responses for item in self.items)]

    def reference(self) -> list[float]:
        """Return the reference log-probs of the unit's responses; empty if they were not precomputed."""
        known: dict[tuple[int, ...], float] = {}
        for item in self.items:
            known.update(zip(item.tokens.responses, item.reference or (), strict=False))
        return [known[response] for response in self.tokens.responses] if known else []


def units_of(items: Sequence[PairItem], tokens: int) -> list[_Unit]:
    """Gather pairs of the same prompt into units of up to `tokens` unique tokens, in order of first occurrence."""
    by_prompt: dict[tuple[int, ...], list[list[PairItem]]] = {}
    seen: dict[tuple[int, ...], tuple[set[tuple[int, ...]], int]] = {}  # each prompt's last unit
    for item in items:
        prompt = item.tokens.prompt
        units = by_prompt.setdefault(prompt, [])
        responses, used = seen.get(prompt, (set(), len(prompt)))
        new = set(item.tokens.responses) - responses
        total = used + sum(map(len, new))
        if not units or total > tokens:
            units.append([])
            responses, new = set(), set(item.tokens.responses)
            total = len(prompt) + sum(map(len, new))
        units[-1].append(item)
        responses |= new
        seen[prompt] = responses, total
    return [_Unit.of(unit) for units in by_prompt.values() for unit in units]


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
        units = units_of(items, self.tokens_per_batch)
        shares = even_shares([unit.tokens.unique_tokens for unit in units], self.processes)
        plans = [self._plan([units[i] for i in share]) for share in shares]
        parts = [_batch(part, self.layout) for part in plans[self.process]]
        missing = max(map(len, plans)) - len(parts)
        if missing:  # they go first, so that the last part counts if any does
            shortest = min(units, key=lambda unit: unit.tokens.unique_tokens)
            parts = [replace(_batch([shortest], self.layout), counts=False)] * missing + parts
        return PairBatches(tuple(parts), len(items))

    def _plan(self, units: Sequence[_Unit]) -> list[list[_Unit]]:
        groups = [unit.tokens for unit in units]
        sequences = 2 * sum(len(unit.items) for unit in units)
        plan = self.layout.plan(groups, sequences=sequences, tokens=self.tokens_per_batch)
        return [[units[i] for i in part] for part in plan]


def _batch(units: Sequence[_Unit], layout: Layout) -> PairBatch:
    chosen: list[int] = []
    rejected: list[int] = []
    first = 0
    for unit in units:
        for better, worse in unit.places():
            chosen.append(first + better)
            rejected.append(first + worse)
        first += len(unit.tokens.responses)
    items = [item for unit in units for item in unit.items]
    references = [value for unit in units for value in unit.reference()]
    return PairBatch(
        sequences=layout.batch([unit.tokens for unit in units]),
        chosen=torch.tensor(chosen),
        rejected=torch.tensor(rejected),
        rows=torch.tensor([item.row for item in items]),
        margin=torch.tensor([item.margin for item in items], dtype=torch.float32),
        reference=torch.tensor(references, dtype=torch.float32) if references else None,
        units=tuple((len(unit.tokens.responses), len(unit.items)) for unit in units),
    )
