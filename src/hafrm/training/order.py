"""The order in which a run visits its pairs, known before the first step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice

import torch
from torch.utils.data import Sampler
from transformers import TrainingArguments


def pair_order(args: TrainingArguments, pairs: int) -> PairOrder:
    """Return the order of a run's pairs."""
    seed = args.seed if args.data_seed is None else args.data_seed
    return PairOrder(pairs, seed, shuffle=args.train_sampling_strategy != "sequential")


class PairOrder(Sampler[int]):
    """Visits all pairs once per epoch, in an order that follows from the seed and the epoch alone.

    The order is that of transformers' trainer with accelerate's seedable sampler.

    Args:
        pairs: Number of pairs.
        seed: Seed of the orders.
        shuffle: Whether to shuffle; otherwise pairs are visited as they were read.
    """

    def __init__(self, pairs: int, seed: int, *, shuffle: bool = True) -> None:
        self.pairs, self.seed, self.shuffle = pairs, seed, shuffle
        self.epoch = 0

    def __len__(self) -> int:
        return self.pairs

    def __iter__(self) -> Iterator[int]:
        yield from self.of_epoch(self.epoch)
        self.set_epoch(self.epoch + 1)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration; the trainer calls it when it resumes."""
        self.epoch = epoch

    def of_epoch(self, epoch: int) -> list[int]:
        """Return the rows of the pairs in the order of an epoch."""
        if not self.shuffle:
            return list(range(self.pairs))
        generator = torch.Generator().manual_seed(self.seed + epoch)
        order: list[int] = torch.randperm(self.pairs, generator=generator).tolist()
        return order

    def visited(self, steps: int, batch: int) -> list[int]:
        """Return the distinct rows that a run of `steps` steps of `batch` pairs visits, in order.

        The last batch of an epoch is smaller where `batch` does not divide the pairs.
        """
        per_epoch = math.ceil(self.pairs / batch)
        if steps >= per_epoch:
            return self.of_epoch(0)
        return list(islice(self.of_epoch(0), steps * batch))
