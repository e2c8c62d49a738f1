"""The trainer: transformers' `Trainer` with our batch, loss and metrics. Methods differ only in two loss weights.

The loop, accelerate, mixed precision, resuming and loggers are transformers' own. Its batches are typed as
dictionaries; ours are `PairBatches`, which it passes through untouched, so the overriding methods differ in that type.

A step is read in `HybridTrainer.training_step`: for each part of its batch, transformers moves it to the device
(`_prepare_inputs`), computes the loss (`compute_loss`: the model's scores by `Objective.pair_losses`) and runs
backward; after the last part it steps the optimizer and the schedule.

With several processes, each draws the pairs of all and takes its share by tokens, so that shares differ in pairs. The
loss is still a mean over all pairs of a step: each process takes the sum over its own pairs, times the number of
processes, divided by the number of all pairs. DDP, FSDP and ZeRO average gradients over processes, which gives the
gradient of that mean.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate.data_loader import BatchSamplerShard
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput, rotate_checkpoints

from hafrm.data import PairTables
from hafrm.errors import NonFiniteLossError
from hafrm.memory import enough_memory
from hafrm.models.checkpoints import save_adapter, save_run, writing
from hafrm.models.hybrid import HybridModel
from hafrm.models.layout import Layout
from hafrm.models.references import LiveReference
from hafrm.models.runinfo import RunInfo
from hafrm.models.stock import loading
from hafrm.numerics import doubled
from hafrm.training.batches import PairBatch, PairBatches, PairCollator, PairDataset
from hafrm.training.objective import Objective, PairLosses
from hafrm.training.order import PairOrder, pair_order
from hafrm.training.resuming import list_training_state
from hafrm.training.sharding import ShardedTrainer

_LESS_MEMORY = (
    "Lower data_options.tokens_per_batch, or set --training.activation_checkpointing true: the same command then "
    "resumes from the last checkpoint, with the same losses. If a single pair is too large, start a new run with a "
    "lower data_options.max_length, adapters (lora.rank) or a narrower dtype."
)
_NEW_RUN = (
    "Check these rows, or start a new run (another --out, or --overwrite true) with a lower training.learning_rate, or "
    "in bfloat16 or float32 instead of float16: a run can't be resumed with another rate or precision. The last "
    "checkpoint is intact."
)


class HybridTrainer(ShardedTrainer):
    """Trains a `HybridModel` on pairs with an `Objective`.

    Args:
        tokens_per_batch: Maximum number of tokens per forward pass.
        tokenizer: The tokenizer, saved with every checkpoint.
        info: The run's description, saved with every checkpoint.
        live_reference: Gives reference log-probs if the data sets have none.
        order: The order of the training pairs; by default transformers' own.
    """

    def __init__(
        self,
        model: HybridModel,
        args: TrainingArguments,
        *,
        objective: Objective,
        layout: Layout,
        tokens_per_batch: int,
        tokenizer: Any,
        info: RunInfo,
        train_dataset: PairDataset,
        eval_dataset: PairDataset | None = None,
        live_reference: LiveReference | None = None,
        order: PairOrder | None = None,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        super().__init__(
            model=model,
            args=args,
            data_collator=cast(Any, PairCollator(layout, tokens_per_batch, args.process_index, args.world_size)),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
            callbacks=list(callbacks),
        )
        self.objective: Objective = objective
        self.pairs = train_dataset.tables
        self.order = order or pair_order(args, range(len(train_dataset)), batch_by="pair")
        self.info = info
        self.live_reference = live_reference
        self.eval_metrics: dict[str, Tensor] = {}
        """Per-pair metrics of the latest evaluation, each [N]."""
        self.model_accepts_loss_kwargs = True  # `compute_loss` averages over the pairs of all accumulated batches
        self._sums: dict[str, Tensor] = {}
        """Sum of each metric over this process's pairs since the last log line; on the device, as reading it waits."""
        self._count = 0
        """Number of these pairs."""
        self._losses: list[tuple[Tensor, PairBatch]] = []
        """Per-pair losses of this process's parts of the current batch."""
        self._rows: list[int] = []
        """Indices in the data set of this process's pairs of the current step."""
        self._speed = Throughput()
        self._parameters = sum(p.numel() for p in model.parameters())  # counted before they are sharded

    def _get_dataloader(
        self, dataset: Any, description: str, batch_size: int, *args: Any, **kwargs: Any
    ) -> DataLoader[Any]:
        """Draw the pairs of all processes in every process; the collator takes its share of them."""
        loader = super()._get_dataloader(dataset, description, batch_size * self.args.world_size, *args, **kwargs)
        if isinstance(shard := loader.batch_sampler, BatchSamplerShard):
            shard.num_processes, shard.process_index, shard.even_batches = 1, 0, False
        return loader

    def _get_train_sampler(self, train_dataset: Any = None) -> PairOrder:
        """Return an order that `ReferenceSource` knows before training; it is that of transformers' own sampler."""
        return self.order

    def training_step(  # type: ignore[override]
        self, model: nn.Module, inputs: PairBatches, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Run forward and backward of a batch part by part; gradients accumulate and are synchronized once."""
        losses = []
        for place, part in enumerate(inputs.parts, 1):
            self._rows += part.rows.tolist() if part.counts else []
            ends = contextlib.nullcontext() if place == len(inputs.parts) else self._more_to_come(model)
            with ends, _enough_memory(f"step {self.state.global_step + 1}", part):
                losses.append(super().training_step(model, cast(Any, part), cast(Any, num_items_in_batch)))
        self._require_finite(self._losses, self.pairs)
        self._losses.clear()
        self._speed.add(pairs=inputs.pairs, tokens=inputs.tokens)
        return torch.stack(losses).sum()

    @contextlib.contextmanager
    def _more_to_come(self, model: nn.Module) -> Iterator[None]:
        """Let backward passes within the context add to the gradients without ending the step."""
        state = self.accelerator.gradient_state
        ends = state.sync_gradients
        state._set_sync_gradients(False)  # DeepSpeed steps when this is set
        try:
            with contextlib.nullcontext() if self.is_fsdp_enabled else self.accelerator.no_sync(model):
                yield
        finally:
            state._set_sync_gradients(ends)

    def compute_loss(  # type: ignore[override]
        self,
        model: nn.Module,
        inputs: PairBatch,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Return the sum of a batch's losses divided by the number of pairs in the whole optimizer step."""
        losses = self._pair_losses(model, inputs)
        self._losses.append((losses.loss.detach(), inputs))
        if not inputs.counts:
            return losses.loss.sum() * 0
        for name, values in losses.metrics.items():
            self._sums[name] = self._sums.get(name, 0.0) + doubled(values).sum()
        self._count += len(inputs)
        if num_items_in_batch is None:
            return losses.loss.mean()
        loss: Tensor = losses.loss.sum() * self.accelerator.num_processes / num_items_in_batch
        return loss

    def _pair_losses(self, model: nn.Module, batch: PairBatch) -> PairLosses:
        reference = None
        if self.objective.needs_reference and batch.reference is None and self.live_reference is not None:
            with self.accelerator.autocast():
                reference = self.live_reference(batch.sequences)
        return self.objective.pair_losses(model, batch, reference)

    def _require_finite(self, losses: Sequence[tuple[Tensor, PairBatch]], tables: PairTables) -> None:
        """Raise if a loss is not finite; waits for the device once."""
        bad = ~torch.isfinite(torch.cat([loss for loss, _ in losses]))
        if bad.any():
            rows = torch.cat([batch.rows for _, batch in losses])
            names = tables.names(rows[bad.cpu()].tolist())
            raise NonFiniteLossError(
                f"The loss is not finite at step {self.state.global_step + 1} for {len(names)} of {len(rows)} pairs: "
                f"{', '.join(names[:5])}. {_NEW_RUN}"
            )

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> float | None:
        """Return the norm of a step's gradient; raise if it is not finite, since it would spoil the weights and
        checkpoints.
        """
        norm: float | None = super()._get_grad_norm(model, grad_norm)  # type: ignore[no-untyped-call]
        rows, self._rows = self._rows, []
        scaled = self.accelerator.scaler is not None  # float16's scaler skips steps with such a gradient
        if norm is not None and not scaled and not math.isfinite(norm):
            raise NonFiniteLossError(
                f"The gradient is not finite at step {self.state.global_step + 1}, though the loss is. The step's "
                f"{len(rows)} pairs: {', '.join(self.pairs.names(rows[:5]))}{', ...' * (len(rows) > 5)}. {_NEW_RUN}"
            )
        return norm

    def _get_num_items_in_batch(self, batch_samples: list[PairBatches], device: torch.device) -> Tensor:
        """Return the number of pairs of one optimizer step, over accumulated batches and all processes."""
        return torch.tensor(sum(batch.pairs for batch in batch_samples), device=device)

    def _prepare_inputs(self, inputs: PairBatch) -> PairBatch:  # type: ignore[override]
        if inputs.reference is not None and inputs.reference.isnan().any():
            raise ValueError(f"pairs without reference log-probs: {', '.join(self.pairs.names(inputs.rows.tolist()))}")
        return inputs.to(self.args.device, non_blocking=self.args.dataloader_pin_memory)

    def floating_point_ops(self, inputs: PairBatches) -> int:  # type: ignore[override]
        """Estimate a step's operations in the usual way: 6 per parameter and token, padding included."""
        return 6 * self._parameters * inputs.tokens

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the means over the pairs that all processes have seen since the last call."""
        if "loss" in logs:
            shares = gather_object([(self._count, {name: total.item() for name, total in self._sums.items()})])
            pairs = sum(count for count, _ in shares)
            names = dict.fromkeys(name for _, sums in shares for name in sums)
            logs |= {name: sum(sums.get(name, 0.0) for _, sums in shares) / pairs for name in names}
            self._sums, self._count = {}, 0
            logs |= self._speed.per_second(sum(gather_object([self._speed.tokens])))
        logs.pop("train_loss", None)  # a resumed run divides its last part's sum by all steps
        super().log(logs, start_time)

    @torch.no_grad()
    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Evaluate the objective on pairs and keep the per-pair metrics in `eval_metrics`."""
        model = self._wrap_model(self.model, training=False)
        model.eval()
        share: list[dict[str, Tensor]] = []
        for batch in (part for batches in dataloader for part in batches.parts):
            with self.compute_loss_context_manager(), _enough_memory("validation", batch):
                losses = self._pair_losses(model, self._prepare_inputs(batch))
            self._require_finite([(losses.loss, batch)], cast(PairDataset, self.eval_dataset).tables)
            if batch.counts:
                found = losses.metrics | {"loss": losses.loss}
                share.append({"row": batch.rows} | {name: values.cpu() for name, values in found.items()})
        self.eval_metrics = _in_order(gather_object(share))
        metrics = {f"{metric_key_prefix}_{k}": v.double().mean().item() for k, v in self.eval_metrics.items()}
        count = len(self.eval_metrics["loss"])
        return EvalLoopOutput(predictions=np.empty(0), label_ids=None, metrics=metrics, num_samples=count)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write a checkpoint that stock transformers loads; intermediate ones of a LoRA run contain only the adapters.

        Raises:
            NonFiniteLossError: the weights are not finite; nothing is written.
        """
        folder = Path(output_dir or str(self.args.output_dir))
        self.write(save_adapter if self.model.adapted else save_run, self.info, folder)

    def write(self, save: Callable[[HybridModel, Any, RunInfo, Path], None], info: RunInfo, folder: Path) -> None:
        """Write a checkpoint with `save_run` or `save_adapter`; all processes must call it.

        Raises:
            NonFiniteLossError: a weight is not finite. Losses and gradients would only show it a step later, or, after
                the last step, never.
        """
        model = self.whole_model()
        for name, weight in model.named_parameters() if model is not None else ():
            if weight.requires_grad and not torch.isfinite(weight).all():
                raise NonFiniteLossError(
                    f"{name} is not finite after step {self.state.global_step}, though losses and gradients were: the "
                    f"step itself failed, because of the learning rate or an optimizer option. {_NEW_RUN}"
                )
        if model is not None and self.args.should_save:
            folder.mkdir(parents=True, exist_ok=True)
            save(model, self.processing_class, info, folder)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()  # the trainer's state comes next and marks the checkpoint as complete

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint, then delete the oldest.

        The oldest has the lowest step. File times, as in transformers, could mistake the newest for it after a clock
        is set back.

        Raises:
            UnwritableError: the disk is full, or the folder is not writable.
        """
        kept, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            with writing(Path(str(self.args.output_dir))):
                super()._save_checkpoint(model, trial)
                if self.args.should_save:
                    list_training_state(Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}")
        finally:
            self.args.save_total_limit = kept
        self.delete_old_checkpoints()

    def delete_old_checkpoints(self) -> None:
        """Delete checkpoints beyond `save_total_limit`, keeping the newest and the best."""
        if self.args.should_save:
            rotate_checkpoints(str(self.args.output_dir), self.args.save_total_limit, self.state.best_model_checkpoint)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with loading("state of an optimizer", str(checkpoint)):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with loading("state of random numbers", str(checkpoint)):
            super()._load_rng_state(checkpoint)


class Throughput:
    """Pairs and tokens per second of training since the last log line."""

    def __init__(self) -> None:
        self.pairs, self.tokens = 0, 0
        self._since = time.monotonic()

    def add(self, *, pairs: int, tokens: int) -> None:
        """Count a batch: its pairs over all processes, and this process's tokens."""
        self.pairs += pairs
        self.tokens += tokens

    def per_second(self, tokens: int) -> dict[str, float]:
        """Return the rates and start over; `tokens` is the number over all processes."""
        seconds = max(time.monotonic() - self._since, 1e-9)
        rates = {"pairs_per_second": self.pairs / seconds, "tokens_per_second": tokens / seconds}
        self.pairs, self.tokens, self._since = 0, 0, time.monotonic()
        return {name: round(rate, 1) for name, rate in rates.items()}


def _in_order(batches: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Concatenate the batches and sort the pairs by row: metrics by name, each [N]."""
    columns = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
    order = columns.pop("row").argsort()
    return {name: values[order] for name, values in columns.items()}


def _enough_memory(what: str, batch: PairBatch) -> contextlib.AbstractContextManager[None]:
    """Turn a lack of memory for a batch into an error; a batch of a single prompt can't be split into smaller ones."""
    tokens = batch.sequences.input_ids.numel()
    size = f"{what}, a batch of {len(batch)} pairs and {tokens} tokens"
    return enough_memory(size, _LESS_MEMORY, tokens=tokens if len(batch.units) > 1 else 0)
