"""The order in which a run visits its pairs, known before the first step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Literal

import numpy as np
import torch
from torch.utils.data import Sampler
from transformers import TrainingArguments

from hafrm.errors import ConfigError


def pair_order(
    args: TrainingArguments, prompts: Sequence[int] | np.ndarray, *, batch_by: Literal["pair", "prompt"]
) -> PairOrder:
    """Return the order of a run's pairs.

    Raises:
        ConfigError: pairs are to be visited sequentially and by prompt.
    """
    seed = args.seed if args.data_seed is None else args.data_seed
    shuffle = args.train_sampling_strategy != "sequential"
    if batch_by == "prompt" and not shuffle:
        raise ConfigError("data_options.batch_by prompt shuffles: leave out training.train_sampling_strategy.")
    return PairOrder(prompts, seed, shuffle=shuffle, by_prompt=batch_by == "prompt")


class PairOrder(Sampler[int]):
    """Visits all pairs once per epoch, in an order that follows from the seed and the epoch alone.

    The order is that of transformers' trainer with accelerate's seedable sampler, unless it is by prompt.

    Args:
        prompts: The prompt of each pair.
        shuffle: Whether to shuffle; otherwise pairs are visited as they were read.
        by_prompt: Shuffle prompts, and visit the pairs of each together.
    """

    def __init__(
        self, prompts: Sequence[int] | np.ndarray, seed: int, *, shuffle: bool = True, by_prompt: bool = False
    ) -> None:
        self.pairs, self.seed, self.shuffle = len(prompts), seed, shuffle
        self._prompts = np.asarray(prompts) if by_prompt else None
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
        if self._prompts is not None:
            rank = torch.randperm(int(self._prompts.max()) + 1, generator=generator).numpy()
            return [int(row) for row in np.argsort(rank[self._prompts], kind="stable")]
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
