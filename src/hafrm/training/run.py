"""Run a training from its options to its folder: data, model, references, trainer, checkpoint, manifest."""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from rich.console import Console
from rich.status import Status
from transformers import (
    EarlyStoppingCallback,
    PreTrainedModel,
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from hafrm import atomic
from hafrm.data import PairTables, load_tables, local_path
from hafrm.data.reports import left_out_words
from hafrm.encoding import ConversationEncoder
from hafrm.errors import ConfigError, ModelError
from hafrm.models.checkpoints import save_run
from hafrm.models.hybrid import HybridModel, max_positions
from hafrm.models.layout import Layout, choose_layout
from hafrm.models.options import HeadInit, chat_template
from hafrm.models.references import weights_digest
from hafrm.models.runinfo import RunInfo, require_undamaged
from hafrm.models.starts import Start, check_start, saved_start
from hafrm.models.stock import new_model
from hafrm.models.tokenizers import load_tokenizer, prepare_tokenizer
from hafrm.numerics import bfloat16_speedup, cpu_tuned
from hafrm.packing import pad_rows
from hafrm.stats import fit_combination
from hafrm.training.arguments import total_steps
from hafrm.training.callbacks import ConsoleProgress, DoctorLines, MetricsFile, best_step
from hafrm.training.config import TrainConfig
from hafrm.training.defaults import pairs_needed, training_arguments
from hafrm.training.doctor import circumstances_of
from hafrm.training.folders import claim_folder, hold_folder, make_folder
from hafrm.training.manifest import (
    effective_settings,
    new_manifest,
    require_same_data,
    require_same_settings,
    resumed_manifest,
    save_manifest,
)
from hafrm.training.objective import Objective
from hafrm.training.order import PairOrder, pair_order
from hafrm.training.preflight import check_machine, require_all_processes
from hafrm.training.reference import ReferenceSource
from hafrm.training.resuming import last_listed_checkpoint, list_training_state
from hafrm.training.sharding import sharding
from hafrm.training.trackers import one_run_each, tracker_ids
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
    if isinstance(model, PreTrainedModel):
        if tokenizer is None:
            raise ConfigError("tokenizer: a loaded model needs its tokenizer too.")
        model = saved_start(model)
    if model is not None:
        config = replace(config, model=str(model))
    with hold_folder(Path(config.out)), cpu_tuned():
        return _train(config, Path(config.out), callbacks, tokenizer)


def _train(config: TrainConfig, folder: Path, callbacks: Sequence[TrainerCallback], own_tokenizer: Any) -> TrainResult:
    before = claim_folder(config, folder, _inputs(config), overwrite=config.overwrite)
    check_machine(config.training)
    loss, start = config.resolved_loss, _start(config)
    set_seed(int(config.training.get("seed", 0)))
    data, tokenizer = _load_data(config, own_tokenizer)
    if before is not None:
        require_same_data(before, data.account, folder)
    args = training_arguments(config, pairs=len(data.train), started=before and before.get("effective"))
    require_all_processes(args)
    shards = sharding(args, lora=config.lora.enabled)
    make_folder(folder)
    progress = ConsoleProgress(Console(stderr=True, quiet=args.process_index != 0))
    with progress.console.status("loading the model"):
        model = _new_model(config, start.head_init, tokenizer, args, data.train)
    layout = _layout(config, model, tokenizer, progress)
    objective = Objective(loss)
    tokens = config.data_options.token_budget(args.device.type)
    info = _run_info(config, tokenizer, _base_digest(model, objective))
    effective = effective_settings(args, config, model.config, shards) | {"weights": info.base_digest}
    if config.chat_template is not None:
        effective["chat_template"] = hashlib.sha256(tokenizer.chat_template.encode()).hexdigest()
    if objective.couples_pairs:
        effective["part"] = [tokens, args.world_size]
    manifest = (
        new_manifest(config, data.account, effective)
        | tracker_ids(args, before)
        | {
            "layout": "packed" if layout.packed else "padded",
            "reward_head": start.head_init if loss.reward_weight else None,
        }
    )
    if before is not None:
        require_same_settings(before, effective, folder)
        manifest = resumed_manifest(before, manifest)
    PartialState().wait_for_everyone()  # all processes have now read the folder's state
    with args.main_process_first(local=False):  # the others look for checkpoints in the folder
        if args.process_index == 0:
            kept = make_folder(folder, start_over=config.overwrite)
            save_manifest(manifest, folder)
            length = config.data_options.max_length
            opening = _opening(data, args, manifest["layout"], margins=objective.needs_rewards, max_length=length)
            bare = [model.bare] if model.bare else []
            for line in (*opening, _precision(config, args), start.head, *start.notes, *bare, kept):
                if line:
                    progress.say(line)

    order = pair_order(args, data.train.pairs["prompt"], batch_by=config.data_options.batch_by)
    reference = ReferenceSource(loss, model, layout, args, weights=info.base_digest, tokens=tokens)
    with one_run_each(args, manifest):
        trainer = HybridTrainer(
            model,
            args,
            objective=objective,
            layout=layout,
            tokens_per_batch=tokens,
            tokenizer=tokenizer,
            info=info,
            train_dataset=reference.dataset(data.train, _visited(args, order)),
            order=order,
            eval_dataset=reference.dataset(data.eval) if data.eval is not None else None,
            live_reference=reference.live,
            callbacks=[
                MetricsFile(folder),
                progress,
                DoctorLines(folder, circumstances_of(manifest), progress.say),
                *_early_stopping(config),
                *callbacks,
            ],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
        try:
            checkpoint = _last_checkpoint(folder, progress)
            if checkpoint is not None:
                progress.say(f"resuming from {checkpoint.name}")
            _run_trainer(trainer, checkpoint, total_steps(args.to_dict(), len(data.train)))
        finally:
            progress.close()
        return _finish(trainer, config, manifest, folder)


def _visited(args: TrainingArguments, order: PairOrder) -> list[int]:
    """Return the rows of the pairs that the run trains on: not all, if its steps end before the first epoch does."""
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    return order.visited(total_steps(args.to_dict(), len(order)), batch)


def _start(config: TrainConfig) -> Start:
    """Check and load what training needs before data are read."""
    loss = config.resolved_loss
    return check_start(
        config.model,
        head_init=config.head_init,
        rewards=loss.reward_weight != 0,
        log_probs=loss.policy_ratio != 0,
        lora=config.lora,
        trust_remote_code=config.trust_remote_code,
    )


def _inputs(config: TrainConfig) -> dict[str, Path]:
    """Return the paths that the run reads, by the options that name them."""
    inputs = {f"model: {config.model}": Path(config.model)}
    if config.chat_template not in (None, "default"):
        inputs["chat_template"] = Path(config.chat_template)
    return inputs | {f"data: {name}": path for name in (*config.data, *config.eval_data) if (path := local_path(name))}


@dataclass(frozen=True)
class _Data:
    """The encoded pairs of a run, with an account of every row."""

    train: PairTables
    eval: PairTables | None
    account: dict[str, Any]
    """For the manifest: "train", "eval" and, with the latter, "shared_prompts"."""


def _load_data(config: TrainConfig, own_tokenizer: Any) -> tuple[_Data, Any]:
    options = config.data_options
    console = Console(stderr=True, quiet=not PartialState().is_main_process)
    say = partial(console.print, highlight=False, markup=False, soft_wrap=True)
    template = chat_template(config.chat_template, "chat_template")
    if own_tokenizer is None:
        tokenizer = load_tokenizer(config.model, trust_remote_code=config.trust_remote_code, instead=template, say=say)
    else:
        tokenizer = copy.deepcopy(own_tokenizer)  # the caller's stays as it is
        tokenizer.chat_template = template or tokenizer.chat_template
        tokenizer = prepare_tokenizer(tokenizer)
    encoder = ConversationEncoder(tokenizer, options.max_length, options.overlong)
    needed = pairs_needed(config, processes=PartialState().num_processes)
    tables = {}
    for name, data, split in (("train", config.data, "train"), ("eval", config.eval_data, "validation")):
        if data:
            with console.status(f"reading {name} pairs") as status:
                tables[name] = load_tables(
                    data,
                    encoder,
                    options,
                    split=split,
                    limit=needed if name == "train" else None,
                    say=say,
                    progress=partial(_show_progress, status, name),
                )
    account: dict[str, Any] = {name: _account(table) for name, table in tables.items()}
    if "eval" in tables:
        account["shared_prompts"] = tables["train"].prompts_shared_with(tables["eval"])
    return _Data(tables["train"], tables.get("eval"), account), tokenizer


def _precision(config: TrainConfig, args: TrainingArguments) -> str:
    """Say that products are in bfloat16 if the user did not ask for it; empty otherwise."""
    if not args.bf16 or args.device.type != "cpu" or "bf16" in config.training:
        return ""
    return (
        f"products are in bfloat16, in which this CPU multiplies {bfloat16_speedup():.1f} times as fast as in float32 "
        "(training.bf16 false for float32)"
    )


def _show_progress(status: Status, name: str, done: int) -> None:
    status.update(f"reading {name} pairs: {done:,}")


_MUCH = 0.05
"""Share of pairs lost above which the counts are a warning."""


def _opening(data: _Data, args: TrainingArguments, layout: str, *, margins: bool, max_length: int) -> Iterator[str]:
    """Yield what a run prints at its start: its plan and its warnings.

    Args:
        data: The run's pairs.
        args: The trainer's arguments.
        layout: The layout of its batches.
        margins: Whether it uses the rows' margins.
        max_length: The limit on the tokens of a pair.
    """
    pairs = len(data.train)
    steps = total_steps(args.to_dict(), pairs)
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    sets = [("training pairs", data.train)] + ([("validation pairs", data.eval)] if data.eval is not None else [])
    counts = ", ".join(_counted(what, tables, max_length) for what, tables in sets)
    warning = "warning: " if any(_share_lost(tables) > _MUCH for _, tables in sets) else ""
    yield (
        f"{warning}{counts}: {steps} steps of {batch} pairs ({steps * batch / pairs:.3g} epochs), "
        f"learning rate {args.learning_rate:g}, {layout} batches"
    )
    for report in data.train.account.reports:
        if said := "; ".join(filter(None, (report.form and f"read as {report.form}", report.unread_columns))):
            yield f"{report.name}: {said}"
    if shared := data.account.get("shared_prompts"):
        yield (
            f"warning: {shared} prompts of the validation data are in the training data too, so validation will look "
            "better than it is"
        )
    if identical := data.account["train"]["identical_responses"]:
        yield f"warning: in {identical} training pairs both responses are the same tokens, so no preference"
    if special := data.account["train"]["with_special_tokens"]:
        yield (
            f"warning: {special} training pairs contain special tokens of the tokenizer, which are encoded as the chat "
            "template's own; `hafrm data check --tokenizer` lists them"
        )
    for lost in data.train.account.lost:
        yield f"warning: {lost}"
    if not margins and data.train.margins.any():
        yield "warning: the rows' margins have no effect, since only the reward loss reads them"


def _left_out(tables: PairTables) -> Counter[str]:
    """Return how many pairs of the data asked for were left out, by reason."""
    reports = tables.account.reports
    return sum((report.lost for report in reports), Counter(tables.account.dropped))


def _share_lost(tables: PairTables) -> float:
    """Return the share of pairs that were left out and could have been kept: ties could not."""
    left_out = _left_out(tables)
    return 1 - (len(tables) + left_out["tie"] + left_out["mapping"]) / (len(tables) + left_out.total())


def _counted(what: str, tables: PairTables, max_length: int) -> str:
    """Say how many pairs there are, and why others are left out."""
    left_out = _left_out(tables)
    if not left_out:
        return f"{len(tables):,} {what}"
    return f"{len(tables):,} of {len(tables) + left_out.total():,} {what} ({left_out_words(left_out, max_length)})"


def _account(tables: PairTables) -> dict[str, Any]:
    """Count what happened to every row: read, dropped (by reason) and kept."""
    return {
        "sources": [report.as_dict() for report in tables.account.reports],
        "dropped_in_encoding": tables.account.dropped,
        "pairs": len(tables),
        "identical_responses": tables.identical,
        "with_special_tokens": len(tables.with_special_tokens),
        "dropped_by_template": {lost.what: [lost.count, lost.of] for lost in tables.account.lost},
    }


def _new_model(
    config: TrainConfig, head_init: HeadInit, tokenizer: Any, args: TrainingArguments, pairs: PairTables
) -> HybridModel:
    loss = config.resolved_loss
    model = new_model(
        config.model,
        tokenizer,
        lora=config.lora,
        head_init=head_init,
        seed=args.seed,
        dtype=config.torch_dtype,
        trust_remote_code=config.trust_remote_code,
        disable_dropout=config.disable_dropout,
        lm_head=loss.policy_ratio != 0,
    )
    limit = max_positions(model.config)
    if limit is not None and config.data_options.max_length > limit:
        raise ConfigError(
            f"data_options.max_length is {config.data_options.max_length}, but {config.model} has {limit} positions. "
            f"Set data_options.max_length to {limit} or less."
        )
    if loss.policy_ratio:
        model.check_policy_head(pad_rows(pairs[:1], pad_token_id=tokenizer.pad_token_id))
    model.freeze_unused(rewards=loss.reward_weight != 0, log_probs=loss.policy_ratio != 0)
    return model.to(args.device)


def _layout(config: TrainConfig, model: HybridModel, tokenizer: Any, progress: ConsoleProgress) -> Layout:
    """Choose the layout of batches, the same in all processes."""
    layout = choose_layout(
        model,
        tokenizer.pad_token_id,
        max_length=config.data_options.max_length,
        choice=config.layout,
        report=lambda reason: progress.say(f"batches are padded, not packed: {reason}"),
    )
    return replace(layout, packed=all(gather_object([layout.packed])))


def _base_digest(model: HybridModel, objective: Objective) -> str:
    """Hash the weights under the run's reference or adapters; empty if its checkpoints contain all weights."""
    return weights_digest(model) if objective.needs_reference or model.adapted else ""


def _run_info(config: TrainConfig, tokenizer: Any, base_digest: str) -> RunInfo:
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
        policy_loss=loss.policy_loss,
        beta=loss.beta,
        max_length=config.data_options.max_length,
        overlong=config.data_options.overlong,
        pad_token=tokenizer.pad_token,
        lora=asdict(config.lora) if config.lora.enabled else None,
    )


def _early_stopping(config: TrainConfig) -> list[EarlyStoppingCallback]:
    return [EarlyStoppingCallback(config.early_stopping)] if config.early_stopping else []


def _run_trainer(trainer: HybridTrainer, checkpoint: Path | None, steps: int) -> None:
    """Train, from the last checkpoint if there is one."""
    if checkpoint is not None:
        state = _state_here(checkpoint)
        at_its_end = state.global_step >= steps or _out_of_patience(state)
        if at_its_end:  # killed after its last step: transformers would take one more
            trainer.state = state
            best = state.best_model_checkpoint if trainer.args.load_best_model_at_end else None
            trainer.restore(Path(best or checkpoint))
            trainer.delete_old_checkpoints()
            return
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))


def _last_checkpoint(folder: Path, progress: ConsoleProgress) -> Path | None:
    """Return the checkpoint to resume from, or None. The first process reads it and broadcasts the result."""
    found = [last_listed_checkpoint(folder, progress.say) if PartialState().is_main_process else None]
    broadcast_object_list(found)
    return found[0]


def _state_here(checkpoint: Path) -> TrainerState:
    """Return a checkpoint's state, with the best checkpoint's path updated in case the run's folder was moved.

    Raises:
        ModelError: the best checkpoint is missing, so that the run could not keep it at its end.
        DamagedError: the best checkpoint is damaged.
    """
    path = checkpoint / "trainer_state.json"
    state: TrainerState = TrainerState.load_from_json(str(path))
    best = state.best_model_checkpoint
    here = best and str(checkpoint.parent / Path(best).name)
    if here and not Path(here).is_dir():
        raise ModelError(
            f"{here}, the best checkpoint according to {path}, is missing. Restore it, or start over with --overwrite."
        )
    if here and PartialState().is_main_process:
        require_undamaged(Path(here))
    if here != best:
        state.best_model_checkpoint = here
        values = json.loads(path.read_text(encoding="utf-8")) | {"best_model_checkpoint": here}
        atomic.write_json(path, values)
        list_training_state(checkpoint)
    return state


def _out_of_patience(state: TrainerState) -> bool:
    """Return whether early stopping had ended the run at this checkpoint."""
    callbacks: Any = state.stateful_callbacks or {}
    saved = callbacks.get("EarlyStoppingCallback", {})
    waited = saved.get("attributes", {}).get("early_stopping_patience_counter", 0)
    return bool(waited >= saved.get("args", {}).get("early_stopping_patience", math.inf))


def _finish(trainer: HybridTrainer, config: TrainConfig, manifest: dict[str, Any], folder: Path) -> TrainResult:
    """Evaluate the kept model, save it at the top of the run's folder, and complete the manifest."""
    with trainer.accelerator.autocast():  # training's precision, even if there was no step left to train
        metrics = trainer.evaluate() if config.eval_data else {}
    info = replace(trainer.info, combined_weight=_combined_weight(trainer))
    weights = trainer.whole_weights()
    if trainer.args.should_save:
        save_run(trainer.model, trainer.processing_class, info, folder, weights=weights)
        manifest |= {
            "status": "finished",
            "steps": trainer.state.global_step,
            "best_step": best_step(trainer.state) if trainer.args.load_best_model_at_end else None,
            "eval_metrics": {name: value for name, value in metrics.items() if math.isfinite(value)},
        }
        save_manifest(manifest, folder)
    PartialState().wait_for_everyone()  # all processes return only once the run's folder is complete
    return TrainResult(folder, trainer.state.global_step, metrics)


def _combined_weight(trainer: HybridTrainer) -> float | None:
    """Return the weight of the combined score that fits the validation labels best; None without both heads or
    validation.
    """
    metrics = trainer.eval_metrics
    if "loss/reward" not in metrics or "loss/policy" not in metrics:
        return None
    margins = np.stack([metrics["rewards/margins"].numpy(), metrics["policy/margins"].numpy()], axis=1)
    return fit_combination(margins)
