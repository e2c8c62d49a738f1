"""Layout of a model's batches: packed if a probe allows it, padded otherwise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hafrm.encoding import TokenGroup
from hafrm.errors import ConfigError, ModelError
from hafrm.models.hybrid import HybridModel
from hafrm.models.options import LayoutChoice
from hafrm.models.probe import probe_packing, probe_padding
from hafrm.packing import SequenceBatch, batches_by_length, pack_rows, pad_rows, plan_batches


@dataclass(frozen=True)
class Layout:
    """How groups become batches; picklable, so that data loaders can send it to their workers."""

    packed: bool
    pad_token_id: int
    padding_side: str = "right"

    def batch(self, groups: Sequence[TokenGroup]) -> SequenceBatch:
        """Lay groups out as one batch."""
        if self.packed:
            return pack_rows(groups)
        return pad_rows(groups, pad_token_id=self.pad_token_id, padding_side=self.padding_side)

    def plan(self, groups: Sequence[TokenGroup], *, sequences: int, tokens: int) -> list[list[int]]:
        """Spread groups over batches.

        Args:
            groups: The groups.
            sequences: Maximum sequences of a padded batch; packed rows have no such limit.
            tokens: Maximum tokens of a batch, padding included. A larger group gets its own batch.

        Returns:
            Batches of indices into `groups`.
        """
        if self.packed:
            return plan_batches([group.unique_tokens for group in groups], tokens)
        most = max((len(group.responses) for group in groups), default=1)
        longest = [max(group.lengths) for group in groups]
        return batches_by_length(longest, max(1, sequences // most), max(1, tokens // most))


def choose_layout(
    model: HybridModel,
    pad_token_id: int,
    *,
    max_length: int,
    choice: LayoutChoice = "auto",
    padding_side: str = "right",
    report: Callable[[str], None] = lambda reason: None,
) -> Layout:
    """Choose the layout for a model and put the model into the matching state.

    Args:
        model: The model, on its final device and in its final dtype.
        pad_token_id: Fills short rows of the padded layout.
        max_length: Maximum length of a sequence.
        choice: See `LayoutChoice`.
        padding_side: Side of the padding.
        report: Called with the reason if the probe decides on padding.

    Raises:
        ConfigError: the choice is unknown.
        ModelError: the model supports neither packed nor padded rows.
    """
    if choice not in ("auto", "padded"):
        raise ConfigError(f"layout must be `auto` or `padded`, got {choice!r}")
    packed = False
    if choice == "auto":
        reason = None if model.supports_packing else probe_packing(model, max_length=max_length)
        packed = reason is None
        if reason is not None:
            report(reason)
    if not packed and (wrong := probe_padding(model, pad_token_id=pad_token_id, side=padding_side)):
        raise ModelError(
            f"{type(model.stock_lm).__name__} can't run batches of texts of different lengths: {wrong}. Use another "
            "architecture."
        )
    return Layout(packed, pad_token_id, padding_side)
