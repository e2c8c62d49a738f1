"""One training run from its options to its folder: data, model, references, trainer, checkpoint, manifest."""

from __future__ import annotations

import math
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from transformers import EarlyStoppingCallback, PrinterCallback, ProgressCallback, TrainingArguments, set_seed

from hafrm.atomic import cache_folder
from hafrm.data import EncodedPairs, PairSet, encode_pairs, load_pairs
from hafrm.encoding import ConversationEncoder
from hafrm.errors import ConfigError
from hafrm.models.checkpoints import RunInfo, new_model, save_run
from hafrm.models.hybrid import HybridModel, max_positions
from hafrm.models.layout import Layout, choose_layout
from hafrm.models.references import (
    LiveReference,
    adapter_off_reference,
    frozen_copy_reference,
    precompute_reference,
)
from hafrm.models.tokenizers import load_tokenizer
from hafrm.numerics import cpu_tuned
from hafrm.packing import pad_rows
from hafrm.stats import fit_combination
from hafrm.training.batches import PairDataset
from hafrm.training.callbacks import ConsoleProgress, MetricsFile
from hafrm.training.config import TrainConfig, training_arguments
from hafrm.training.manifest import is_finished, new_manifest, read_manifest, require_same_config, save_manifest
from hafrm.training.objective import Objective
from hafrm.training.trainer import HybridTrainer, last_checkpoint

__all__ = ["TrainResult", "train"]


@dataclass(frozen=True)
class TrainResult:
    """What a run came to."""

    folder: Path
    steps: int
    metrics: dict[str, float]
    """The final validation metrics, of the checkpoint that was kept; empty without validation pairs."""


def train(config: TrainConfig) -> TrainResult:
    """Train a model, or go on with an interrupted run in the same folder.

    Raises:
        HafrmError: options, data or model can't serve; the message says why and what to do.
    """
    with cpu_tuned():
        return _train(config, Path(config.out))


def _train(config: TrainConfig, folder: Path) -> TrainResult:
    _check_folder(config, folder)
    set_seed(int(config.training.get("seed", 0)))
    train_set = load_pairs(config.data, split="train", options=config.data_options)
    eval_set = (
        load_pairs(config.eval_data, split="validation", options=config.data_options) if config.eval_data else None
    )
    tokenizer = load_tokenizer(config.model, trust_remote_code=config.trust_remote_code)
    encoder = ConversationEncoder(tokenizer, config.data_options.max_length, config.data_options.overlong)
    train_pairs = encode_pairs(train_set.pairs, encoder, config.data_options)
    eval_pairs = encode_pairs(eval_set.pairs, encoder, config.data_options) if eval_set is not None else None
    args = training_arguments(config, pairs=len(train_pairs.groups))
    _make_folder(config, folder, main_process=args.process_index == 0)
    model = _new_model(config, tokenizer, args, train_pairs)
    progress = ConsoleProgress()
    layout = choose_layout(
        model,
        tokenizer.pad_token_id,
        max_length=config.data_options.max_length,
        choice=config.layout,
        report=lambda reason: progress.say(f"batches are padded, not packed: {reason}"),
    )
    objective = Objective(config.resolved_loss)
    info = _run_info(config, tokenizer)
    manifest = new_manifest(config, {"train": _account(train_set, train_pairs)})
    manifest["layout"] = "packed" if layout.packed else "padded"
    if eval_set is not None and eval_pairs is not None:
        manifest["data"]["eval"] = _account(eval_set, eval_pairs)
    save_manifest(manifest, folder)

    reference = _Reference(config, objective, model, layout, args)
    trainer = HybridTrainer(
        model,
        args,
        objective=objective,
        layout=layout,
        tokens_per_batch=config.data_options.tokens_per_batch,
        tokenizer=tokenizer,
        info=info,
        train_dataset=reference.dataset(train_pairs),
        eval_dataset=reference.dataset(eval_pairs) if eval_pairs is not None else None,
        live_reference=reference.live,
        callbacks=[MetricsFile(folder), progress, *_early_stopping(config)],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    try:
        trainer.train(resume_from_checkpoint=_as_text(last_checkpoint(folder)))
    finally:
        progress.close()
    return _finish(trainer, config, manifest, folder)


def _check_folder(config: TrainConfig, folder: Path) -> None:
    """Refuse to mix two runs in one folder, or a run with other files."""
    manifest = read_manifest(folder)
    if config.overwrite and manifest is not None:
        return
    if is_finished(folder):
        raise ConfigError(f"{folder} already holds a finished run. Choose another --out, or --overwrite true.")
    if manifest is not None:
        require_same_config(manifest, config, folder)
    elif folder.is_file() or (folder.exists() and any(folder.iterdir())):
        raise ConfigError(f"{folder} holds files that are not a run of hafrm. Choose another --out.")


def _make_folder(config: TrainConfig, folder: Path, *, main_process: bool) -> None:
    """Make the run's folder, once data and options have proved sound; only here is an old run deleted."""
    if not main_process:
        return
    try:
        if config.overwrite and folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"out: {folder} can't be written to ({error.strerror}). Choose another --out.") from error


def _account(pair_set: PairSet, encoded: EncodedPairs) -> dict[str, Any]:
    """Every row's whereabouts: what was read, what was dropped and why, what is left."""
    return {
        "sources": [report.as_dict() for report in pair_set.reports],
        "dropped_in_encoding": encoded.dropped,
        "pairs": len(encoded.groups),
    }


def _new_model(config: TrainConfig, tokenizer: Any, args: TrainingArguments, pairs: EncodedPairs) -> HybridModel:
    model = new_model(
        config.model,
        tokenizer,
        lora=config.lora,
        head_init=config.head_init,
        seed=args.seed,
        dtype=config.torch_dtype,
        trust_remote_code=config.trust_remote_code,
    )
    limit = max_positions(model.config)
    if limit is not None and config.data_options.max_length > limit:
        raise ConfigError(
            f"data_options.max_length is {config.data_options.max_length}, but {config.model} has {limit} positions. "
            f"Set data_options.max_length to {limit} or less."
        )
    loss = config.resolved_loss
    if loss.policy_ratio:
        model.check_policy_head(pad_rows(pairs.groups[:1], pad_token_id=tokenizer.pad_token_id))
    model.freeze_unused(rewards=loss.reward_weight != 0, log_probs=loss.policy_ratio != 0)
    return model.to(args.device)


def _run_info(config: TrainConfig, tokenizer: Any) -> RunInfo:
    loss = config.resolved_loss
    local = Path(config.model)
    return RunInfo(
        method=config.method,
        base_model=str(local.resolve()) if local.exists() else config.model,
        reward_weight=loss.reward_weight,
        policy_ratio=loss.policy_ratio,
        policy_loss=loss.policy_loss,
        beta=loss.beta,
        max_length=config.data_options.max_length,
        overlong=config.data_options.overlong,
        pad_token=tokenizer.pad_token,
        lora=asdict(config.lora) if config.lora.enabled else None,
    )


class _Reference:
    """Gives data sets their reference log-probs beforehand, or the trainer a live reference."""

    def __init__(
        self, config: TrainConfig, objective: Objective, model: HybridModel, layout: Layout, args: TrainingArguments
    ) -> None:
        kind = config.resolved_loss.reference
        self.precomputed = objective.needs_reference and kind in ("auto", "precomputed")
        self.live: LiveReference | None = None
        if objective.needs_reference and not self.precomputed:
            self.live = (adapter_off_reference if kind == "adapter_off" else frozen_copy_reference)(model)
        # The policy runs under autocast, so its reference must too: else log-ratios start off zero.
        half = torch.bfloat16 if args.bf16 else torch.float16
        self._autocast = torch.autocast(args.device.type, dtype=half, enabled=args.bf16 or args.fp16)
        self._model, self._layout, self._batch_size = model, layout, args.per_device_eval_batch_size

    def dataset(self, encoded: EncodedPairs) -> PairDataset:
        """The pairs, with reference log-probs where they are computed beforehand."""
        return PairDataset(encoded.pairs, encoded.groups, self._compute(encoded) if self.precomputed else None)

    def _compute(self, encoded: EncodedPairs) -> np.ndarray:
        status = Console(stderr=True).status("reference log-probs")
        with status, self._autocast:
            return precompute_reference(
                self._model,
                encoded.groups,
                layout=self._layout,
                batch_size=self._batch_size,
                cache=cache_folder("references"),
                progress=lambda done: status.update(f"reference log-probs: {done} of {len(encoded.groups)} pairs"),
            )


def _early_stopping(config: TrainConfig) -> list[EarlyStoppingCallback]:
    return [EarlyStoppingCallback(config.early_stopping)] if config.early_stopping else []


def _as_text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _finish(trainer: HybridTrainer, config: TrainConfig, manifest: dict[str, Any], folder: Path) -> TrainResult:
    """Evaluate the model that was kept, save it at the top of the run's folder, and close the manifest."""
    metrics = trainer.evaluate() if config.eval_data else {}
    info = replace(trainer.info, combined_weight=_combined_weight(trainer))
    if trainer.args.should_save:
        save_run(trainer.model, trainer.processing_class, info, folder)
        best = trainer.state.best_model_checkpoint
        manifest |= {
            "status": "finished",
            "steps": trainer.state.global_step,
            "best_step": int(best.rsplit("-", 1)[1]) if best else None,
            "eval_metrics": {name: value for name, value in metrics.items() if math.isfinite(value)},
        }
        save_manifest(manifest, folder)
    return TrainResult(folder, trainer.state.global_step, metrics)


def _combined_weight(trainer: HybridTrainer) -> float | None:
    """The combined score's weight that fits the validation labels best; None without both heads or validation."""
    metrics = trainer.eval_metrics
    if "loss/reward" not in metrics or "loss/policy" not in metrics:
        return None
    margins = np.stack([metrics["rewards/margins"].numpy(), metrics["policy/margins"].numpy()], axis=1)
    return fit_combination(margins)
