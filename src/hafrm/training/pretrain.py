"""Pretrain a small causal language model, or continue training one, with transformers' `Trainer` on packed text.

The result is a stock folder: model, tokenizer with a chat template, and `recipe.json` with the options, the losses and
the perplexity on held-out text. A killed run resumes from its last checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import (
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)

from hafrm import atomic
from hafrm.data.files import reading
from hafrm.errors import ConfigError, DataError, first_line
from hafrm.models.hybrid import max_positions
from hafrm.models.runinfo import checkpoint_folders, require_outside_models
from hafrm.models.stock import load_causal_lm
from hafrm.models.tokenizers import load_tokenizer, resize_embeddings
from hafrm.numerics import cpu_tuned
from hafrm.pretraining.blocks import Blocks, perplexity
from hafrm.pretraining.llama import new_llama, no_progress_bars, train_tokenizer, untie
from hafrm.store import LOCK_FILE, alone
from hafrm.training.arguments import total_steps
from hafrm.training.callbacks import ConsoleProgress
from hafrm.training.config import PretrainConfig
from hafrm.training.manifest import git_revision
from hafrm.training.resuming import train_to_the_end
from hafrm.training.texts import read_texts, samples, words_of

RECIPE_FILE = "recipe.json"

_BEGUN_FILE = "begun.json"
"""Options and text fingerprints of an unfinished run; deleted once `recipe.json` is written."""


def pretrain(config: PretrainConfig, say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Train the model, or resume a killed run.

    Args:
        config: The options.
        say: Called with a line before each stage.

    Returns:
        The contents of `recipe.json`: `{"config", "parameters", "tokens", "steps", "perplexity", "losses",
        "validation", ...}`. A finished folder is not trained again.

    Raises:
        ConfigError: the folder contains another model, another process trains there, or training's options can't work.
        DataError: a row is not text, too little is held out, or the text differs from that of the unfinished run.
        ModelError: the model to continue does not exist.
        UnreadableError: a file of the text can't be read.
    """
    folder = Path(config.out)
    atomic.require_folder(folder)
    atomic.require_utf8(folder)
    require_outside_models(folder)
    asked = {"config": json.loads(json.dumps(config.asked())), "texts": [_sha256(file) for file in config.data]}
    if finished := _finished(folder, asked):
        return finished
    with alone(folder), cpu_tuned(), no_progress_bars():
        return _finished(folder, asked) or _pretrain(config, folder, asked, say)  # others may have finished it


def _sha256(file: str) -> str:
    with reading(file), Path(file).open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _finished(folder: Path, asked: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the recipe of a finished model, or None; raise if the folder contains something else."""
    for name in (RECIPE_FILE, _BEGUN_FILE):
        if not (folder / name).exists():
            continue
        try:
            found = dict(json.loads((folder / name).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise ConfigError(
                f"{folder / name} is not what hafrm pretrain writes ({first_line(error)}). Choose another --out."
            ) from error
        _require_same(folder, found, asked)
        return found if name == RECIPE_FILE else None
    if folder.exists() and not all(path.name == LOCK_FILE or atomic.leftover_of(path) for path in folder.iterdir()):
        raise ConfigError(f"{folder} contains files that hafrm pretrain did not write. Choose another --out.")
    return None


def _require_same(folder: Path, found: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Raise unless the model has the same options and text."""
    if found.get("config") != asked["config"]:
        raise ConfigError(f"{folder} contains a model that was made with other options. Choose another --out.")
    texts = zip(asked["config"]["data"], found["texts"], asked["texts"], strict=True)
    changed = [file for file, old, new in texts if old != new]
    if changed:
        raise DataError(
            f"{', '.join(changed)} changed since the model in {folder} was started. Restore the text, or choose "
            "another --out."
        )


def _pretrain(
    config: PretrainConfig, folder: Path, asked: Mapping[str, Any], say: Callable[[str], None]
) -> dict[str, Any]:
    seed = int(config.training.get("seed", 0))
    set_seed(seed)
    say("reading the text")
    tokenizer = _tokenizer(config, folder)
    model = _model(config, tokenizer)
    context = config.context or max_positions(model.config) or config.shape.context
    left_out: Counter[str] = Counter()
    train = Blocks(samples(read_texts(config.data, held_out=False), tokenizer, context, left_out), context)
    held_out = _held_out(config, tokenizer, context)
    if not len(train):
        raise DataError(
            f"data: there are fewer than {context} tokens to train on. Add text, or choose a smaller context."
        )
    args = _arguments(config, folder, len(train))
    _begin(folder, asked, tokenizer)
    without = "".join(f", without {count:,} {what}" for what, count in left_out.items())
    say(
        f"{model.num_parameters():,} parameters, {len(train) * context:,} tokens in {len(train):,} blocks, "
        f"{len(held_out)} held out{without}; {total_steps(args.to_dict(), len(train)):,} steps"
    )
    trainer = Trainer(model, args, train_dataset=train, eval_dataset=held_out, callbacks=[ConsoleProgress()])
    trainer.remove_callback(PrinterCallback)
    train_to_the_end(trainer, folder)
    seen = _blocks_seen(args, trainer.state.global_step, len(train))
    recipe = {**asked, "left_out": dict(left_out), "tokens": seen * context}
    return _finish(config, folder, recipe, trainer, tokenizer, held_out)


def _begin(folder: Path, asked: Mapping[str, Any], tokenizer: PreTrainedTokenizerFast) -> None:
    """Claim the folder of a new run once all checks have passed."""
    if not (folder / _BEGUN_FILE).exists():
        atomic.write_json(folder / _BEGUN_FILE, asked)
    if not (folder / "tokenizer.json").exists():
        with atomic.new_files(folder, last="tokenizer.json") as temporary:  # last, as it marks a resumable run
            tokenizer.save_pretrained(temporary)


def _tokenizer(config: PretrainConfig, folder: Path) -> PreTrainedTokenizerFast:
    """Return the model's tokenizer, the one that a killed run trained, or a new one."""
    if config.model is not None or (folder / "tokenizer.json").exists():
        loaded: PreTrainedTokenizerFast = load_tokenizer(config.model or str(folder))
        return loaded
    texts = map(words_of, islice(read_texts(config.data, held_out=False), config.tokenizer_texts))
    return train_tokenizer(texts, vocabulary=config.shape.vocabulary, context=config.shape.context)


def _model(config: PretrainConfig, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    if config.model is None:
        return new_llama(config.shape, tokenizer)
    model = load_causal_lm(config.model, dtype=torch.float32)
    resize_embeddings(model, tokenizer)
    limit = max_positions(model.config)
    if config.context is not None and limit is not None and config.context > limit:
        raise ConfigError(f"context is {config.context}, but {config.model} has {limit} positions.")
    return model


def _held_out(config: PretrainConfig, tokenizer: PreTrainedTokenizerFast, context: int) -> Blocks:
    """Return the held-out blocks, up to the requested number."""
    texts = read_texts(config.data, held_out=True)
    blocks = Blocks(samples(texts, tokenizer, context), context, config.validation_blocks)
    if not len(blocks):
        raise DataError(
            f"data: the rows that are held out by their `split` have fewer than {context} tokens, too few to "
            "measure how well the model predicts. Mark more rows, or choose a smaller context."
        )
    return blocks


def _arguments(config: PretrainConfig, folder: Path, blocks: int) -> TrainingArguments:
    values: dict[str, Any] = {
        "per_device_train_batch_size": 16,
        "per_device_eval_batch_size": 8,
        "num_train_epochs": 1,
        "learning_rate": 2e-3 if config.model is None else 5e-4,
        "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr_rate": 0.05},
        "warmup_steps": 0.05,  # a fraction of the steps
        "optim": "adamw_torch",
        "adam_beta2": 0.95,
        "weight_decay": 0.1,
        "max_grad_norm": 1.0,
        "seed": 0,
        "logging_steps": 10,
        "save_total_limit": 1,
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "bf16": torch.cuda.is_available() and torch.cuda.is_bf16_supported(),
    } | config.training
    every = max(1, math.ceil(total_steps(values, blocks) / 10))
    schedule: dict[str, Any] = {
        "eval_strategy": "steps",
        "eval_steps": every,
        "save_strategy": "steps",
        "save_steps": every,
    }
    try:
        args = TrainingArguments(output_dir=str(folder), prediction_loss_only=True, **(schedule | values))
    except (ValueError, TypeError, ImportError) as error:
        raise ConfigError(f"training: {error}") from error
    if args.n_gpu > 1:  # several GPUs in one process would multiply the blocks per step that the recipe records
        args._n_gpu = 1
    return args


def _blocks_seen(args: TrainingArguments, steps: int, blocks: int) -> int:
    """Return the number of blocks trained on; the last step of an epoch may have had fewer."""
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps
    epochs, more = divmod(steps, math.ceil(blocks / batch))
    return epochs * blocks + more * batch


def _finish(
    config: PretrainConfig,
    folder: Path,
    recipe: dict[str, Any],
    trainer: Trainer,
    tokenizer: PreTrainedTokenizerFast,
    held_out: Blocks,
) -> dict[str, Any]:
    """Write the folder, its recipe last, and delete the checkpoints."""
    model: Any = trainer.model
    if config.model is None and config.untie and isinstance(model, LlamaForCausalLM):
        untie(model)
    history = trainer.state.log_history
    recipe |= {
        "parameters": model.num_parameters(),
        "steps": trainer.state.global_step,
        "perplexity": perplexity(model, held_out),
        "losses": [[row["step"], row["loss"]] for row in history if "loss" in row],
        "validation": [[row["step"], row["eval_loss"]] for row in history if "eval_loss" in row],
        "git_revision": git_revision(),
    }
    with atomic.new_files(folder, last=RECIPE_FILE) as temporary:
        model.to("cpu").save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        atomic.write_json(temporary / RECIPE_FILE, recipe)
    (folder / _BEGUN_FILE).unlink(missing_ok=True)
    for checkpoint in checkpoint_folders(folder).values():
        shutil.rmtree(checkpoint, ignore_errors=True)
    return recipe
