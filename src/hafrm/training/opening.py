"""What a run prints before its first step: its plan, how its data were read, and warnings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from transformers import TrainingArguments

from hafrm.data import PairTables
from hafrm.data.reports import left_out_words
from hafrm.numerics import bfloat16_speedup
from hafrm.training.arguments import pairs_per_step, total_steps
from hafrm.training.config import TrainConfig
from hafrm.training.inputs import RunData

_MUCH = 0.05
"""Share of pairs lost above which the counts are a warning."""


def opening_lines(config: TrainConfig, args: TrainingArguments, data: RunData, layout: str) -> Iterator[str]:
    """Yield the plan of a run and its warnings."""
    train, account, pairs = data.train, data.account, len(data.train)
    steps = total_steps(args.to_dict(), pairs)
    batch = pairs_per_step(args.to_dict(), args.world_size)
    sets = [("training pairs", train)] + ([("validation pairs", data.eval)] if data.eval is not None else [])
    counts = ", ".join(_counted(what, tables, config.data_options.max_length) for what, tables in sets)
    warning = "warning: " if any(_share_lost(tables) > _MUCH for _, tables in sets) else ""
    yield (
        f"{warning}{counts}: {steps} steps of {batch} pairs ({steps * batch / pairs:.3g} epochs), "
        f"learning rate {args.learning_rate:g}, {layout} batches"
    )
    if added := sum(report.off_topic for report in train.account.reports):
        yield f"off-topic pairs: {added:,} were added to the training pairs and are counted among them"
    for report in train.account.reports:
        if said := "; ".join(filter(None, (report.form and f"read as {report.form}", report.unread_columns))):
            yield f"{report.name}: {said}"
        if report.contradictions:
            yield f"warning: {report.contradictions}"
    if shared := account.get("shared_prompts"):
        yield (
            f"warning: {shared} prompts of the validation data are in the training data too, so validation will look "
            "better than it is"
        )
    if identical := account["train"]["identical_responses"]:
        yield f"warning: in {identical} training pairs both responses have the same tokens, so neither is preferred"
    if special := account["train"]["with_special_tokens"]:
        yield (
            f"warning: {special} training pairs contain special tokens of the tokenizer, which are encoded as the chat "
            "template's own; `hafrm data check --tokenizer` lists them"
        )
    for lost in train.account.lost:
        yield f"warning: {lost}"
    if not config.resolved_loss.reward_weight and train.margins.any():
        yield "warning: the rows' margins have no effect, since only the reward loss reads them"
    if args.bf16 and args.device.type == "cpu" and "bf16" not in config.training:
        yield (
            f"products are in bfloat16, in which this CPU multiplies {bfloat16_speedup():.1f} times as fast as in "
            "float32 (training.bf16 false for float32)"
        )


def _left_out(tables: PairTables) -> Counter[str]:
    """Return how many pairs of the requested data were left out, by reason."""
    reports = tables.account.reports
    return sum((report.lost for report in reports), Counter(tables.account.dropped))


def _share_lost(tables: PairTables) -> float:
    """Return the share of pairs that were left out although they could have been kept, so without ties."""
    left_out = _left_out(tables)
    return 1 - (len(tables) + left_out["tie"] + left_out["mapping"]) / (len(tables) + left_out.total())


def _counted(what: str, tables: PairTables, max_length: int) -> str:
    """Describe how many pairs there are, and why others are left out."""
    left_out = _left_out(tables)
    if not left_out:
        return f"{len(tables):,} {what}"
    return f"{len(tables):,} of {len(tables) + left_out.total():,} {what} ({left_out_words(left_out, max_length)})"
