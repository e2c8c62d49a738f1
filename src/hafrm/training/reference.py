"""Provide a run's reference log-probs: precomputed with the data sets, or live next to the policy."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from accelerate import PartialState
from rich.console import Console
from transformers import TrainingArguments

from hafrm.atomic import cache_folder
from hafrm.data import PairTables
from hafrm.encoding import TokenGroup
from hafrm.memory import enough_memory
from hafrm.models.hybrid import HybridModel
from hafrm.models.layout import Layout
from hafrm.models.references import LiveReference, ReferenceCache, adapter_off_reference, frozen_copy_reference
from hafrm.progress import ProgressLine
from hafrm.training.batches import PairDataset
from hafrm.training.defaults import autocast_of
from hafrm.training.objective import Objective

_LESS_MEMORY = (
    "Lower data_options.tokens_per_batch (or training.per_device_eval_batch_size, where rows are padded); what was "
    "computed is kept."
)

_WINDOW = 8192
"""Prompts whose token ids are in memory at a time."""


class ReferenceSource:
    """Adds precomputed reference log-probs to data sets, or gives the trainer a live reference.

    Args:
        objective: The losses, which say whether a reference is needed.
        model: The initial model, which is the reference.
        args: The trainer's arguments, for precision and batch size.
        weights: The model's `weights_digest`; empty if no loss uses a reference.
        tokens: Maximum number of tokens per forward pass.
    """

    def __init__(
        self,
        objective: Objective,
        model: HybridModel,
        layout: Layout,
        args: TrainingArguments,
        *,
        weights: str,
        tokens: int,
    ) -> None:
        source = objective.config.reference if objective.needs_reference else None
        self.precomputed = source in ("auto", "precomputed")
        self.live: LiveReference | None = None
        if source is not None and not self.precomputed:
            self.live = (adapter_off_reference if source == "adapter_off" else frozen_copy_reference)(model)
        # The policy runs under autocast, so its reference must too; otherwise log-ratios would not start at zero.
        self._autocast = autocast_of(args)
        self._tokens = tokens
        self._cached = partial(
            ReferenceCache,
            model,
            layout=layout,
            batch_size=args.per_device_eval_batch_size,
            tokens=tokens,
            cache=cache_folder("references"),
            weights=weights,
        )
        self._said: set[str] = set()  # avoids repeating a full disk's warning for every part

    def dataset(self, tables: PairTables, rows: Sequence[int] | None = None) -> PairDataset:
        """Return the pairs, with reference log-probs of those in `rows`, by default all, if they are precomputed."""
        if not self.precomputed:
            return PairDataset(tables)
        return PairDataset(tables, self._compute(tables, range(len(tables)) if rows is None else rows))

    def _compute(self, tables: PairTables, rows: Sequence[int]) -> np.ndarray:
        """Return the log-prob of each response, [R], NaN for those that no visited pair has.

        The responses to one prompt are computed together.
        """
        line = ProgressLine("reference log-probs", Console(stderr=True, quiet=not PartialState().is_main_process))

        def say(text: str) -> None:
            if text not in self._said:
                line.say(text)
            self._said.add(text)

        found = np.full(tables.num_responses, np.nan, dtype=np.float32)
        prompts = responses_by_prompt(tables, rows)
        size = f"the reference log-probs, batches of {self._tokens} tokens"
        with line, self._autocast, enough_memory(size, _LESS_MEMORY, tokens=self._tokens):
            cache = self._cached(say=say)
            for start in range(0, len(prompts), _WINDOW):
                window = prompts[start : start + _WINDOW]
                groups = [TokenGroup(tables.prompt(p), tuple(map(tables.response, places))) for p, places in window]

                def progress(done: int, start: int = start) -> None:
                    line.show(f"reference log-probs: {start + done:,} of {len(prompts):,} prompts")

                for (_, places), values in zip(window, cache.log_probs(groups, progress), strict=True):
                    found[places] = values
        return found


def responses_by_prompt(tables: PairTables, rows: Sequence[int]) -> list[tuple[int, list[int]]]:
    """Return the prompts of pairs with their distinct responses, in the order in which the pairs first contain them."""
    found: dict[int, dict[int, None]] = {}
    pairs = tables.pairs[np.asarray(rows, dtype=np.int64)]
    for prompt, chosen, rejected in zip(pairs["prompt"], pairs["chosen"], pairs["rejected"], strict=True):
        found.setdefault(int(prompt), {}).update({int(chosen): None, int(rejected): None})
    return [(prompt, list(places)) for prompt, places in found.items()]
