"""Load what a run reads: its pairs, its tokenizer, and the model that it starts from."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from accelerate import PartialState
from rich.console import Console
from transformers import TrainingArguments

from hafrm.data import PairTables, load_tables, local_path
from hafrm.encoding import ConversationEncoder
from hafrm.errors import ConfigError
from hafrm.models.hybrid import HybridModel
from hafrm.models.options import HeadInit, chat_template
from hafrm.models.starts import Start, check_start, new_model
from hafrm.models.tokenizers import load_tokenizer, prepare_tokenizer
from hafrm.packing import pad_rows
from hafrm.progress import ProgressLine
from hafrm.training.callbacks import print_line
from hafrm.training.config import TrainConfig
from hafrm.training.defaults import pairs_needed


def checked_start(config: TrainConfig) -> Start:
    """Check and load what training needs before data are read."""
    loss = config.resolved_loss
    start = check_start(
        config.model,
        head_init=config.head_init,
        rewards=loss.reward_weight != 0,
        log_probs=loss.policy_ratio != 0,
        lora=config.lora,
        trust_remote_code=config.trust_remote_code,
    )
    if start.positions is not None and config.data_options.max_length > start.positions:
        raise ConfigError(
            f"data_options.max_length is {config.data_options.max_length}, but {config.model} has {start.positions} "
            f"positions. Set data_options.max_length to {start.positions} or less."
        )
    return start


def input_paths(config: TrainConfig) -> dict[str, Path]:
    """Return the paths that the run reads, by the options that name them."""
    inputs = {f"model: {config.model}": Path(config.model)}
    if config.chat_template not in (None, "default"):
        inputs["chat_template"] = Path(config.chat_template)
    return inputs | {f"data: {name}": path for name in (*config.data, *config.eval_data) if (path := local_path(name))}


@dataclass(frozen=True)
class RunData:
    """The encoded pairs of a run."""

    train: PairTables
    eval: PairTables | None

    @cached_property
    def account(self) -> dict[str, Any]:
        """What happened to every row: read, left out (by reason) and kept, for the manifest.

        In "train", "eval" and, with the latter, "shared_prompts".
        """
        account: dict[str, Any] = {"train": _account(self.train)}
        if self.eval is not None:
            account |= {"eval": _account(self.eval), "shared_prompts": self.train.prompts_shared_with(self.eval)}
        return account


def _account(tables: PairTables) -> dict[str, Any]:
    return {
        "sources": [report.as_dict() for report in tables.account.reports],
        "dropped_in_encoding": tables.account.dropped,
        "pairs": len(tables),
        "identical_responses": tables.identical,
        "with_special_tokens": len(tables.with_special_tokens),
        "dropped_by_template": {lost.what: [lost.count, lost.of] for lost in tables.account.lost},
    }


def load_data(config: TrainConfig, own_tokenizer: Any) -> tuple[RunData, Any]:
    """Read and encode the pairs; return them with the tokenizer: a copy of the caller's own, or the model's."""
    options = config.data_options
    console = Console(stderr=True, quiet=not PartialState().is_main_process)
    say = partial(print_line, console=console)
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
            with ProgressLine(f"reading {name} pairs", console) as line:
                tables[name] = load_tables(
                    data,
                    encoder,
                    options if name == "train" else replace(options, off_topic=0.0),
                    split=split,
                    limit=needed if name == "train" else None,
                    say=say,
                    progress=partial(_show_progress, line, name),
                )
    return RunData(tables["train"], tables.get("eval")), tokenizer


def _show_progress(line: ProgressLine, name: str, done: int) -> None:
    line.show(f"reading {name} pairs: {done:,}")


def load_model(
    config: TrainConfig, head_init: HeadInit, tokenizer: Any, args: TrainingArguments, pairs: PairTables
) -> HybridModel:
    """Load the model with its heads, and freeze what is not trained."""
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
        heads=loss.trained_heads,
    )
    if loss.policy_ratio:
        model.check_policy_head(pad_rows(pairs[:1], pad_token_id=tokenizer.pad_token_id))
    model.freeze_unused(rewards=loss.reward_weight != 0, log_probs=loss.policy_ratio != 0)
    return model.to(args.device)
