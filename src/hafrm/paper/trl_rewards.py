"""The study's comparison with TRL: a run of hafrm's baseline, trained by TRL's `RewardTrainer` instead.

It gets the same token ids, and the same steps, batch size, optimizer, schedule, precision and seed. TRL draws its own
order of the pairs and its own reward head, and pads: a prompt is encoded twice.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForSequenceClassification, PrinterCallback, TrainingArguments

from hafrm.data.tables import PairTables
from hafrm.models.checkpoints import save_run
from hafrm.models.lora import quiet_peft
from hafrm.models.options import LoraOptions
from hafrm.models.starts import new_model
from hafrm.models.stock import loading, quiet_transformers
from hafrm.rlhf.groups import import_trl
from hafrm.training.config import TrainConfig
from hafrm.training.defaults import training_arguments
from hafrm.training.inputs import load_data
from hafrm.training.manifest import effective_settings, new_manifest, save_manifest
from hafrm.training.resuming import train_to_the_end
from hafrm.training.run import run_info

_BEST = "eval_accuracy"
"""TRL's name of the validation accuracy; it averages over batches."""


def train_with_trl(config: TrainConfig) -> None:
    """Train a sequence classifier with TRL, or resume, and save it as a run of the baseline.

    Raises:
        MissingExtraError: TRL is not installed.
        HafrmError: options, data or model are unusable.
    """
    trl = import_trl("The part trl")
    data, tokenizer = load_data(config, None)
    arguments = training_arguments(config, pairs=len(data.train))
    folder = Path(config.out)
    theirs = folder / "trl"
    with loading("a language model", config.model):
        model = AutoModelForSequenceClassification.from_pretrained(
            config.model, num_labels=1, dtype=config.torch_dtype, trust_remote_code=config.trust_remote_code
        )
    model.config.pad_token_id = tokenizer.pad_token_id
    manifest = new_manifest(config, data.account, effective_settings(arguments, config, model.config, None))
    folder.mkdir(parents=True, exist_ok=True)
    save_manifest(manifest, folder)
    with quiet_transformers(), quiet_peft():
        trainer = trl.RewardTrainer(
            model=model,
            args=trl.RewardConfig(**_with_their_names(arguments) | {"output_dir": str(theirs)}, max_length=None),
            train_dataset=_rows(data.train),
            eval_dataset=None if data.eval is None else _rows(data.eval),
            processing_class=tokenizer,
            peft_config=_adapters(config.lora),
        )
        trainer.remove_callback(PrinterCallback)
        train_to_the_end(trainer, theirs)
        metrics = {} if data.eval is None else trainer.evaluate()
        trained = trainer.model.merge_and_unload() if config.lora.enabled else trainer.model
        trained.save_pretrained(theirs)
    classifier = new_model(str(theirs), tokenizer, lora=LoraOptions(), head_init="keep", lm_head=False)
    save_run(classifier, tokenizer, replace(run_info(config, tokenizer), lora=None), folder)
    measured = {"eval_loss": "eval_loss", "eval_rewards/accuracies": _BEST, "eval_rewards/margins": "eval_margin"}
    found = {ours: metrics[name] for ours, name in measured.items() if name in metrics}
    save_manifest(manifest | {"status": "finished", "eval_metrics": found}, folder)
    shutil.rmtree(theirs)


def _with_their_names(arguments: TrainingArguments) -> dict[str, Any]:
    """Return the values of hafrm's training arguments for TRL's config; transformers derives some fields again."""
    values = {each.name: getattr(arguments, each.name) for each in fields(TrainingArguments) if each.init}
    best = _BEST if arguments.metric_for_best_model else None
    return values | {"metric_for_best_model": best, "remove_unused_columns": True}


def _rows(pairs: PairTables) -> Dataset:
    """Return the pairs in the form that TRL's trainer takes without tokenizing."""

    def rows() -> Iterator[dict[str, tuple[int, ...]]]:
        for group in pairs:
            chosen, rejected = (group.prompt + response for response in group.responses)
            yield {"chosen_ids": chosen, "rejected_ids": rejected}

    return Dataset.from_list(list(rows()))


def _adapters(options: LoraOptions) -> LoraConfig | None:
    if not options.enabled:
        return None
    return LoraConfig(
        task_type="SEQ_CLS",
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules=list(options.targets) or "all-linear",
    )
