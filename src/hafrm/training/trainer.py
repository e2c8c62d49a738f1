"""The trainer: transformers' `Trainer` with our batch, our loss and our metrics. The method is two weights.

The loop, accelerate, mixed precision, resuming and loggers are transformers' own. Its batches are typed as
dictionaries; ours are `PairBatches`, which it hands through untouched, so the overriding methods differ in that type.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast
from zipfile import BadZipFile, ZipFile

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput, rotate_checkpoints

from hafrm.errors import DamagedError, NonFiniteLossError
from hafrm.memory import enough_memory
from hafrm.models.checkpoints import RunInfo, loading, restore_weights, save_adapter, save_run, writing
from hafrm.models.hybrid import HybridModel
from hafrm.models.layout import Layout
from hafrm.models.references import LiveReference
from hafrm.training.batches import PairBatch, PairBatches, PairCollator, PairDataset
from hafrm.training.objective import Objective, PairLosses

__all__ = ["HybridTrainer", "last_checkpoint"]

_LESS_MEMORY = (
    "Lower data_options.tokens_per_batch, or set --training.activation_checkpointing true: the same command then goes "
    "on from the last checkpoint, to the same losses. Where one pair alone is too much, a new run needs a lower "
    "data_options.max_length, adapters (lora.rank) or a narrower dtype."
)
_NEW_RUN = (
    "Check these rows, or start a new run (another --out, or --overwrite true) with a lower training.learning_rate, or "
    "in bfloat16 or float32 instead of float16: a run can't go on with another rate or precision. The last checkpoint "
    "is intact."
)


class HybridTrainer(Trainer):
    """Trains a `HybridModel` on pairs with an `Objective`.

    Args:
        model: The two-headed model.
        args: transformers' training arguments.
        objective: The losses.
        layout: How pairs become batches.
        tokens_per_batch: The most tokens that go through the model at once.
        tokenizer: The tokenizer, saved with every checkpoint.
        info: The run's description, saved with every checkpoint.
        train_dataset: Encoded pairs.
        eval_dataset: Encoded validation pairs, or None.
        live_reference: Gives reference log-probs where the data sets bring none.
        callbacks: More of transformers' callbacks.
    """

    model: HybridModel

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
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        super().__init__(
            model=model,
            args=args,
            data_collator=cast(Any, PairCollator(layout, tokens_per_batch)),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
            callbacks=list(callbacks),
        )
        self.objective: Objective = objective
        self.pairs = train_dataset
        self.info = info
        self.live_reference = live_reference
        self.eval_metrics: dict[str, Tensor] = {}
        """Every validation pair's metrics in the latest evaluation, each [N]."""
        self.model_accepts_loss_kwargs = True  # `compute_loss` averages over the pairs of all accumulated batches
        self._sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self._rows: list[int] = []
        """The pairs of the step under way, by their places in the data set."""

    def training_step(  # type: ignore[override]
        self, model: nn.Module, inputs: PairBatches, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Forward and backward of a batch, part by part; gradients add up, and meet those of other processes once."""
        *first, last = inputs.parts
        losses = []
        for part in first:
            with self.accelerator.no_sync(model):
                losses.append(self._part_step(model, part, num_items_in_batch))
        losses.append(self._part_step(model, last, num_items_in_batch))
        return torch.stack(losses).sum()

    def _part_step(self, model: nn.Module, part: PairBatch, num_items_in_batch: Tensor | int | None) -> Tensor:
        self._rows += part.rows.tolist()
        with enough_memory(f"step {self.state.global_step + 1}, {_size(part)}", _LESS_MEMORY):
            return super().training_step(model, cast(Any, part), cast(Any, num_items_in_batch))

    def compute_loss(  # type: ignore[override]
        self,
        model: nn.Module,
        inputs: PairBatch,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """The batch's loss: the mean over pairs, those of all batches that one optimizer step accumulates."""
        losses = self._pair_losses(model, inputs)
        self._require_finite(losses.loss, inputs, self.pairs)
        for name, values in losses.metrics.items():
            self._sums[name][0] += values.sum().item()
            self._sums[name][1] += len(values)
        if num_items_in_batch is None:
            return losses.loss.mean()
        # Data parallelism averages gradients over processes, the count is of all of them.
        loss: Tensor = losses.loss.sum() * self.accelerator.num_processes / num_items_in_batch
        return loss

    def _pair_losses(self, model: nn.Module, batch: PairBatch) -> PairLosses:
        reference = None
        if self.objective.needs_reference and batch.reference is None and self.live_reference is not None:
            with self.accelerator.autocast():
                reference = self.live_reference(batch.sequences)
        return self.objective.pair_losses(model, batch, reference)

    def _require_finite(self, loss: Tensor, batch: PairBatch, pairs: Any) -> None:
        bad = ~torch.isfinite(loss.detach())
        if bad.any():
            names = pairs.names(batch.rows[bad.cpu()].tolist())
            raise NonFiniteLossError(
                f"The loss is not finite at step {self.state.global_step + 1} for {len(names)} of {len(batch)} pairs: "
                f"{', '.join(names[:5])}. {_NEW_RUN}"
            )

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> float | None:
        """The norm of a step's gradient; one that is not finite would spoil the weights and every later checkpoint."""
        norm: float | None = super()._get_grad_norm(model, grad_norm)  # type: ignore[no-untyped-call]
        rows, self._rows = self._rows, []
        scaled = self.accelerator.scaler is not None  # float16's scaler takes no step with such a gradient
        if norm is not None and not scaled and not math.isfinite(norm):
            raise NonFiniteLossError(
                f"The gradient is not finite at step {self.state.global_step + 1}, though the loss is. The step's "
                f"{len(rows)} pairs: {', '.join(self.pairs.names(rows[:5]))}{', ...' * (len(rows) > 5)}. {_NEW_RUN}"
            )
        return norm

    def _get_num_items_in_batch(self, batch_samples: list[PairBatches], device: torch.device) -> Tensor:
        """The pairs of one optimizer step, over accumulated batches and all processes."""
        count = torch.tensor(sum(map(len, batch_samples)), device=device)
        total: Tensor = self.accelerator.reduce(count, "sum")
        return total

    def _prepare_inputs(self, inputs: PairBatch) -> PairBatch:  # type: ignore[override]
        return inputs.to(self.args.device)

    def floating_point_ops(self, inputs: PairBatches) -> int:  # type: ignore[override]
        """The usual estimate of a step's operations: 6 a parameter and token, padding included."""
        return 6 * sum(p.numel() for p in self.model.parameters()) * inputs.tokens

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the means over the pairs seen since the last time."""
        training = "loss" in logs
        if training:
            logs |= {name: total / count for name, (total, count) in self._sums.items() if count}
            self._sums.clear()
        logs.pop("train_loss", None)  # of a run that went on: the sum over its last part, by the number of all steps
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
        """Evaluate the objective on pairs; keeps every pair's metrics in `eval_metrics`."""
        model = self._wrap_model(self.model, training=False)
        model.eval()
        collected: dict[str, list[Tensor]] = defaultdict(list)
        for batch in (part for batches in dataloader for part in batches.parts):
            with self.compute_loss_context_manager(), enough_memory(f"validation, {_size(batch)}", _LESS_MEMORY):
                losses = self._pair_losses(model, self._prepare_inputs(batch))
            self._require_finite(losses.loss, batch, self.eval_dataset)
            for name, values in (losses.metrics | {"loss": losses.loss}).items():
                collected[name].append(self.accelerator.gather_for_metrics(values).cpu())
        self.eval_metrics = {name: torch.cat(values) for name, values in collected.items()}
        metrics = {f"{metric_key_prefix}_{k}": v.double().mean().item() for k, v in self.eval_metrics.items()}
        count = len(self.eval_metrics["loss"])
        return EvalLoopOutput(predictions=np.empty(0), label_ids=None, metrics=metrics, num_samples=count)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """Write a checkpoint that stock transformers loads; a LoRA run's intermediate ones hold the adapters alone."""
        if not self.args.should_save:
            return
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        (save_adapter if self.model.adapted else save_run)(self.model, self.processing_class, self.info, folder)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint, then delete the oldest: by steps, and not by times as transformers does.

        After a clock was set back that would be the newest.

        Raises:
            UnwritableError: the disk is full, or the folder can't be written to.
        """
        kept, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            with writing(Path(str(self.args.output_dir))):
                super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = kept
        self.delete_old_checkpoints()

    def delete_old_checkpoints(self) -> None:
        """Keep no more checkpoints than `save_total_limit` says: the newest and the best."""
        if self.args.should_save:
            rotate_checkpoints(str(self.args.output_dir), self.args.save_total_limit, self.state.best_model_checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        _require_whole_archives(Path(resume_from_checkpoint))
        restore_weights(self.model, Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with loading("state of an optimizer", str(checkpoint)):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with loading("state of random numbers", str(checkpoint)):
            super()._load_rng_state(checkpoint)

    def _load_best_model(self) -> None:
        if self.state.best_model_checkpoint:
            restore_weights(self.model, Path(self.state.best_model_checkpoint))


def last_checkpoint(run: Path) -> Path | None:
    """The newest checkpoint of a run that was written to its end, or None.

    The trainer's state is the last file of a checkpoint, so one that reads well means that the rest is there.
    """
    complete = []
    for folder in run.glob("checkpoint-*"):
        with contextlib.suppress(OSError, ValueError, KeyError):
            state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
            complete.append((int(state["global_step"]), folder))
    return max(complete, default=(0, None))[1]


def _require_whole_archives(checkpoint: Path) -> None:
    """Refuse a checkpoint of which optimizer, schedule or random numbers are damaged: torch reads without checksums.

    Raises:
        DamagedError: names the file.
    """
    for path in sorted([*checkpoint.glob("*.pt"), *checkpoint.glob("*.pth")]):
        try:
            with ZipFile(path) as archive:
                damaged = archive.testzip() is not None
        except (BadZipFile, OSError, NotImplementedError, RuntimeError, ValueError, EOFError):
            damaged = True
        if damaged:
            raise DamagedError(
                f"{path} is damaged. Delete the folder {checkpoint}: the same command then goes on from the checkpoint "
                "before it, or begins again where there is none."
            )


def _size(batch: PairBatch) -> str:
    """A batch's size, for messages."""
    tokens = batch.sequences.input_ids
    return f"a batch of {len(batch)} pairs and {tokens.numel()} tokens"
