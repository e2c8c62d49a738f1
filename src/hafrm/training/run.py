"""Run a training from its options to its folder: data, model, references, trainer, checkpoint, manifest."""

from __future__ import annotations

import gc
import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from rich.console import Console
from transformers import (
    EarlyStoppingCallback,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from hafrm.errors import ConfigError, NoMemoryError, first_line
from hafrm.models.checkpoints import save_run
from hafrm.models.hybrid import HybridModel
from hafrm.models.layout import Layout
from hafrm.models.references import weights_digest
from hafrm.models.runinfo import RunInfo
from hafrm.models.starts import saved_start
from hafrm.numerics import cpu_tuned
from hafrm.stats import fit_combination
from hafrm.training.arguments import pairs_per_step, total_steps
from hafrm.training.batches import PairCollator
from hafrm.training.callbacks import ConsoleProgress, MetricsFile, best_step, print_line
from hafrm.training.config import TrainConfig
from hafrm.training.defaults import training_arguments
from hafrm.training.doctor import circumstances_of
from hafrm.training.fitting import fitted_layout, measure, tokens_per_batch
from hafrm.training.folders import claim_folder, hold_folder, make_folder
from hafrm.training.inputs import RunData, checked_start, input_paths, load_data, load_model
from hafrm.training.last_layer import fit_head, laplace_heads
from hafrm.training.manifest import (
    effective_settings,
    new_manifest,
    require_same_data,
    require_same_settings,
    resumed_manifest,
    save_manifest,
)
from hafrm.training.objective import Objective, length_slope
from hafrm.training.opening import opening_lines
from hafrm.training.order import PairOrder, pair_order
from hafrm.training.preflight import check_machine, require_all_processes
from hafrm.training.reference import ReferenceSource
from hafrm.training.resuming import train_or_resume
from hafrm.training.sharding import load_whole_weights, sharding
from hafrm.training.trackers import one_run_each, open_to_the_end, tracker_ids
from hafrm.training.trainer import HybridTrainer


@dataclass(frozen=True)
class TrainResult:
    """The result of a training run."""

    folder: Path
    steps: int
    metrics: dict[str, float]
    """Final validation metrics of the kept checkpoint; empty without validation pairs."""


def train(
    config: TrainConfig,
    *,
    callbacks: Sequence[TrainerCallback] = (),
    model: PreTrainedModel | str | Path | None = None,
    tokenizer: Any = None,
) -> TrainResult:
    """Train a model, or resume an interrupted run in the same folder.

    Args:
        config: The options.
        callbacks: Further callbacks of transformers' `Trainer`.
        model: What to start from, in place of `config.model`: a folder, a hub id, or a loaded causal language model,
            which is copied to hafrm's cache, since scoring with the policy head needs it again as the reference.
        tokenizer: A loaded tokenizer, in place of the model's own; needed with a loaded model.

    Raises:
        HafrmError: options, data or model are unusable; the message says why and what to do.

    Example:
        >>> rows = [{"prompt": "Two plus two?", "chosen": "Four.", "rejected": "Five."}, ...]
        >>> result = train(TrainConfig(model="Qwen/Qwen3-0.6B", data=rows, out="runs/mine"))
        >>> result.folder
        PosixPath('runs/mine')
    """
    _check_objects(model, tokenizer, callbacks)
    if isinstance(model, PreTrainedModel):
        if tokenizer is None:
            raise ConfigError("tokenizer: a loaded model needs its tokenizer too.")
        model = saved_start(model)
    if model is not None:
        config = replace(config, model=str(model))
    most: int | None = None
    with hold_folder(Path(config.out)), cpu_tuned():
        while True:
            try:
                return _train(config, callbacks, tokenizer, most)
            except NoMemoryError as error:
                most = _fewer_tokens(config, error)
            gc.collect()  # frees the failed attempt's model
            torch.cuda.empty_cache()
            config = replace(config, overwrite=False)  # resumes from the failed attempt's last checkpoint


def _check_objects(model: Any, tokenizer: Any, callbacks: Sequence[Any]) -> None:
    """Raise ConfigError if an object of another library has a type that training can't use."""
    if model is not None and not isinstance(model, PreTrainedModel | str | Path):
        raise ConfigError(f"model: expected a folder, a hub id or a PreTrainedModel, got {type(model).__name__}.")
    if tokenizer is not None and not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ConfigError(f"tokenizer: expected a tokenizer of transformers, got {type(tokenizer).__name__}.")
    if not all(map(_is_callback, callbacks)):
        raise ConfigError("callbacks: expected a list of transformers' TrainerCallbacks.")


def _is_callback(value: Any) -> bool:
    """Return whether Trainer accepts a value as a callback: an instance, or a class that it instantiates."""
    return isinstance(value, TrainerCallback) or (isinstance(value, type) and issubclass(value, TrainerCallback))


def _fewer_tokens(config: TrainConfig, error: NoMemoryError) -> int:
    """Return half the tokens of the batch that did not fit into memory, and say so.

    Raises:
        NoMemoryError: smaller batches can't help, would change the losses, or the user chose their size.
    """
    tokens = error.tokens // 2
    several = PartialState().num_processes > 1  # the other processes wait for this one
    read_once = any(isinstance(source, Iterator) for source in (*config.data, *config.eval_data))
    chosen = config.data_options.tokens_per_batch or Objective(config.resolved_loss).couples_pairs
    if chosen or not tokens or several or read_once:
        raise error
    print_line(f"warning: {first_line(error)} Training continues with batches of {tokens} tokens.")
    return tokens


@dataclass(frozen=True)
class _Run:
    """A run whose options, data and model have been checked: nothing has been written yet."""

    config: TrainConfig
    args: TrainingArguments
    data: RunData
    tokenizer: Any
    model: HybridModel
    layout: Layout
    objective: Objective
    tokens: int
    """Maximum number of tokens per forward pass."""
    info: RunInfo
    manifest: dict[str, Any]
    notes: list[str]
    """What to say at the start, after the plan."""

    @property
    def folder(self) -> Path:
        return Path(self.config.out)


def _train(
    config: TrainConfig, callbacks: Sequence[TrainerCallback], tokenizer: Any, most_tokens: int | None
) -> TrainResult:
    before = claim_folder(config, Path(config.out), input_paths(config), overwrite=config.overwrite)
    check_machine(config.training)
    progress = ConsoleProgress(Console(stderr=True, quiet=not PartialState().is_main_process))
    run = _prepare(config, tokenizer, before, most_tokens, progress)
    PartialState().wait_for_everyone()  # all processes have now read the folder's state
    with run.args.main_process_first(local=False):  # the others look for checkpoints in the folder
        if run.args.process_index == 0:
            _begin(run, progress)
    with one_run_each(run.args, run.manifest):
        trainer = _trainer(run, callbacks, progress)
        with open_to_the_end(trainer):
            try:
                steps = total_steps(run.args.to_dict(), len(run.data.train))
                train_or_resume(trainer, run.folder, steps, progress.say, partial(_fit_head, trainer, run))
            finally:
                progress.close()
            return _finish(trainer, run)


def _prepare(
    config: TrainConfig,
    tokenizer: Any,
    before: dict[str, Any] | None,
    most_tokens: int | None,
    progress: ConsoleProgress,
) -> _Run:
    """Check and load everything that the run needs.

    `before` is the manifest of an interrupted run to resume; `most_tokens` limits the tokens of a forward pass after
    more did not fit into memory.
    """
    started = before and before.get("effective")
    training_arguments(config, pairs=1, started=started)  # raises for options that don't fit, before anything is read
    start = checked_start(config)
    set_seed(int(config.training.get("seed", 0)))
    data, tokenizer = load_data(config, tokenizer)
    if before is not None:
        require_same_data(before, data.account, Path(config.out))
    args = training_arguments(config, pairs=len(data.train), started=started)
    shards = _checked_sharding(config, args)
    make_folder(Path(config.out))
    with progress.console.status("loading the model"):
        model = load_model(config, start.head_init, tokenizer, args, data.train)
    loss = config.resolved_loss
    objective = Objective(loss, length_slope(data.train) if loss.length_control else 0.0)
    measured = None if shards else partial(measure, model, objective, tables=data.train, args=args)
    layout, needs = fitted_layout(config, model, tokenizer, measured, progress.say)
    tokens, sized = tokens_per_batch(config, needs, args, most_tokens)
    info = run_info(config, tokenizer, _base_digest(model, objective))
    effective = effective_settings(args, config, model.config, shards) | {"weights": info.base_digest}
    if config.chat_template is not None:
        effective["chat_template"] = hashlib.sha256(tokenizer.chat_template.encode()).hexdigest()
    if objective.couples_pairs:
        effective["part"] = [tokens, args.world_size]
    found: dict[str, Any] = {
        "layout": "packed" if layout.packed else "padded",
        "reward_head": start.head_init if loss.reward_weight else None,
    }
    notes = [sized, start.head, *start.notes, model.bare]
    if loss.length_control:
        found["length_slope"] = objective.length_slope
        notes.append(
            f"length control: log-odds of {objective.length_slope:.2f} per log of the ratio of tokens are for length"
        )
    manifest = new_manifest(config, data.account, effective) | tracker_ids(args, before) | found
    if before is not None:
        require_same_settings(before, effective, Path(config.out))
        manifest = resumed_manifest(before, manifest)
    return _Run(
        config=config,
        args=args,
        data=data,
        tokenizer=tokenizer,
        model=model,
        layout=layout,
        objective=objective,
        tokens=tokens,
        info=info,
        manifest=manifest,
        notes=[note for note in notes if note],
    )


def _checked_sharding(config: TrainConfig, args: TrainingArguments) -> str | None:
    """Check the processes and the sharding of weights, and return the latter; see `sharding`.

    Raises:
        ConfigError: the processes, or their sharding, don't suit the run.
    """
    require_all_processes(args)
    shards = sharding(args, quantized=config.lora.quantize != "none")
    if config.resolved_loss.heads_from == "laplace" and (shards or args.world_size > 1):
        raise ConfigError("loss.heads_from: laplace draws heads in one process with whole weights. Use bootstrap.")
    load_whole_weights()
    return shards


def _begin(run: _Run, progress: ConsoleProgress) -> None:
    """Write the manifest, and say what the run is going to do."""
    kept = make_folder(run.folder, start_over=run.config.overwrite)
    save_manifest(run.manifest, run.folder)
    opening = opening_lines(run.config, run.args, run.data, run.manifest["layout"])
    for line in (*opening, *run.notes, kept):
        if line:
            progress.say(line)


def _trainer(run: _Run, callbacks: Sequence[TrainerCallback], progress: ConsoleProgress) -> HybridTrainer:
    config, args, pairs = run.config, run.args, run.data.train
    order = pair_order(args, pairs.pairs["prompt"], batch_by=config.data_options.batch_by)
    reference = ReferenceSource(
        run.objective, run.model, run.layout, args, weights=run.info.base_digest, tokens=run.tokens
    )
    trainer = HybridTrainer(
        run.model,
        args,
        objective=run.objective,
        layout=run.layout,
        tokens_per_batch=run.tokens,
        tokenizer=run.tokenizer,
        info=run.info,
        train_dataset=reference.dataset(pairs, _visited(order, args)),
        order=order,
        eval_dataset=reference.dataset(run.data.eval) if run.data.eval is not None else None,
        live_reference=reference.live,
        callbacks=[
            progress,
            MetricsFile(run.folder, circumstances_of(run.manifest), progress.say),
            *([EarlyStoppingCallback(config.early_stopping)] if config.early_stopping else []),
            *callbacks,
        ],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    return trainer


def _base_digest(model: HybridModel, objective: Objective) -> str:
    """Hash the weights under the run's reference or adapters; empty if its checkpoints contain all weights."""
    return weights_digest(model) if objective.needs_reference or model.adapted else ""


def run_info(config: TrainConfig, tokenizer: Any, base_digest: str = "") -> RunInfo:
    """Return what a run's checkpoints say about it, from its options."""
    loss = config.resolved_loss
    local = Path(config.model)
    return RunInfo(
        method=config.method,
        base_model=str(local.resolve()) if local.exists() else config.model,
        base_digest=base_digest,
        dtype=str(config.torch_dtype).removeprefix("torch."),
        reward_weight=loss.reward_weight,
        policy_ratio=loss.policy_ratio,
        reward_loss=loss.reward_loss,
        heads=loss.trained_heads,
        policy_loss=loss.policy_loss,
        beta=loss.beta,
        max_length=config.data_options.max_length,
        overlong=config.data_options.overlong,
        pad_token=tokenizer.pad_token,
        lora=asdict(config.lora) if config.lora.enabled else None,
    )


def _finish(trainer: HybridTrainer, run: _Run) -> TrainResult:
    """Evaluate the kept model, save it at the top of the run's folder, and complete the manifest."""
    with trainer.accelerator.autocast():  # training's precision, even if there was no step left to train
        metrics = trainer.evaluate() if run.data.eval is not None else {}
    info = replace(trainer.info, combined_weight=_combined_weight(trainer))
    if run.objective.config.heads_from == "laplace":
        info = replace(info, heads=_draw_heads(trainer, run))
    trainer.write(save_run, info, run.folder)
    if trainer.args.should_save:
        manifest = run.manifest | {
            "status": "finished",
            "steps": trainer.state.global_step,
            "best_step": best_step(trainer.state) if trainer.args.load_best_model_at_end else None,
            "eval_metrics": {name: value for name, value in metrics.items() if math.isfinite(value)},
        }
        save_manifest(manifest, run.folder)
    PartialState().wait_for_everyone()  # all processes return only once the run's folder is complete
    return TrainResult(run.folder, trainer.state.global_step, metrics)


def _fit_head(trainer: HybridTrainer, run: _Run) -> None:
    """Fit the reward head to the pairs that the run visits, if it starts so."""
    if run.manifest["reward_head"] == "fit":
        with trainer.accelerator.autocast():
            fit_head(run.model, run.data.train, _visited(trainer.order, run.args), PairCollator(run.layout, run.tokens))


def _visited(order: PairOrder, args: TrainingArguments) -> Sequence[int]:
    """Return the indices of the pairs that the run visits, in order."""
    values = args.to_dict()
    return order.visited(total_steps(values, len(order)), pairs_per_step(values, args.world_size))


def _draw_heads(trainer: HybridTrainer, run: _Run) -> int:
    """Replace the reward head by heads drawn from its posterior, and return their number."""
    count = run.objective.config.heads
    rows, collator = _visited(trainer.order, run.args), PairCollator(run.layout, run.tokens)
    with trainer.accelerator.autocast():
        run.model.score = laplace_heads(
            run.model, run.objective, run.data.train, rows, collator, count=count, seed=run.args.seed
        )
    return count


def _combined_weight(trainer: HybridTrainer) -> float | None:
    """Return the weight of the combined score that fits the validation labels best; None without both heads or
    validation.
    """
    metrics = trainer.eval_metrics
    if "loss/reward" not in metrics or "loss/policy" not in metrics:
        return None
    margins = np.stack([metrics["rewards/margins"].numpy(), metrics["policy/margins"].numpy()], axis=1)
    return fit_combination(margins)
