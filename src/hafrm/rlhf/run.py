"""Train a policy, from its options to its folder: prompts, reward, policy, steps, checkpoints, curves."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from hafrm.data import local_path
from hafrm.errors import ConfigError
from hafrm.models.hybrid import HybridModel
from hafrm.models.references import weights_digest
from hafrm.models.starts import check_start
from hafrm.models.tokenizers import load_tokenizer
from hafrm.numerics import cpu_tuned
from hafrm.rlhf.checkpoints import newest_checkpoint, restore, save_checkpoint
from hafrm.rlhf.groups import train_groups
from hafrm.rlhf.job import Progress, RlhfJob, RlhfResult
from hafrm.rlhf.options import RlhfConfig
from hafrm.rlhf.policy import new_policy, ready_policy
from hafrm.rlhf.ppo import PpoTrainer
from hafrm.rlhf.prompts import prompt_set
from hafrm.rlhf.rewards import load_reward, reward_identity
from hafrm.training.folders import claim_folder, hold_folder
from hafrm.training.manifest import new_manifest, require_same_data, require_same_settings, resumed_manifest
from hafrm.training.metrics import METRICS_FILE, add_metrics, keep_metrics


def rlhf(
    config: RlhfConfig,
    *,
    progress: Progress = lambda step, told: None,
    say: Callable[[str], None] = lambda line: None,
) -> RlhfResult:
    """Train a policy, or resume an interrupted run in the same folder, bit for bit.

    The program's random state is left unchanged.

    Args:
        config: The options.
        progress: Called after every step.
        say: Called with a line before the first step.

    Raises:
        HafrmError: options, data or a model are unusable; the message says why and what to do.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            "hafrm rlhf trains in one process. For more than one device use OpenRLHF or verl with `hafrm serve` as "
            "their reward: docs/rlhf.md says how."
        )
    with hold_folder(Path(config.out)), cpu_tuned(), _forked_random():
        job = _prepare(config, progress, say)
        return _train_ppo(job) if config.algorithm == "ppo" else train_groups(job)


def _prepare(config: RlhfConfig, progress: Progress, say: Callable[[str], None]) -> RlhfJob:
    """Prepare prompts, policy and manifest, of a new or resumed run, without writing anything."""
    folder = Path(config.out)
    before = claim_folder(config, folder, _inputs(config), overwrite=config.overwrite)
    start = check_start(config.model, rewards=False, lora=config.lora, trust_remote_code=config.trust_remote_code)
    for note in start.notes:
        say(note)
    torch.manual_seed(config.seed)
    tokenizer = load_tokenizer(config.model, trust_remote_code=config.trust_remote_code)
    prompts = prompt_set(config.data, tokenizer, max_tokens=config.max_prompt_tokens, options=config.data_options)
    account = {"train": prompts.account}
    if before is not None:
        require_same_data(before, account, folder)
    model = new_policy(config, tokenizer)
    if model.bare:
        say(model.bare)
    effective = _effective(config, model)
    manifest = new_manifest(config, account, effective)
    if before is not None:
        require_same_settings(before, effective, folder)
        manifest = resumed_manifest(before, manifest)
    return RlhfJob(config, model, tokenizer, prompts, manifest, progress, say)


def _effective(config: RlhfConfig, model: HybridModel) -> dict[str, Any]:
    """Resolve the options, as `effective_settings` does for training; the weights are those of the reference."""
    gold = {"gold": reward_identity(config.gold, config.asked_of_gold, config.score)} if config.gold else {}
    return {
        "seed": config.seed,
        "dtype": str(config.torch_dtype).removeprefix("torch."),
        "bf16": config.mixed,
        "device": str(config.score.torch_device()),
        "per_device_train_batch_size": config.batch_size,
        "gradient_accumulation_steps": 1,
        "world_size": 1,
        "weights": weights_digest(model),
        "reward": reward_identity(config.reward, config, config.score),
        **gold,
    }


def _forked_random() -> AbstractContextManager[None]:
    return torch.random.fork_rng(devices=range(torch.cuda.device_count()))


def _inputs(config: RlhfConfig) -> dict[str, Path]:
    """Return the paths that the run reads, by the options that name them."""
    named = {name: getattr(config, name) for name in ("model", "reward", "reference", "gold")}
    named["score.chat_template"] = config.score.chat_template
    inputs = {f"{name}: {value}": Path(value) for name, value in named.items() if value}
    return inputs | {f"data: {name}": path for name in config.data if (path := local_path(name))}


def _train_ppo(job: RlhfJob) -> RlhfResult:
    config, model, tokenizer = job.config, job.model, job.tokenizer
    policy = ready_policy(
        config, model, tokenizer, report=lambda reason: job.say(f"batches are padded, not packed: {reason}")
    )
    scorer = load_reward(config.reward, config, config.score)
    gold = load_reward(config.gold, config.asked_of_gold, config.score) if config.gold else None
    trainer = PpoTrainer(config, policy, tokenizer, job.prompts.prompts, scorer, gold)
    job.begin()
    done = _resume(trainer, job.folder)
    job.say(job.opening(done))
    told: dict[str, float] = {}
    for step in range(done + 1, config.steps + 1):
        told = trainer.step(step)
        add_metrics(job.folder / METRICS_FILE, step, told)
        if config.is_checkpoint(step):
            save_checkpoint(model, tokenizer, trainer.state_dict(), job.folder / f"checkpoint-{step}")
        job.progress(step, told)
    return job.finish(told)


def _resume(trainer: PpoTrainer, folder: Path) -> int:
    """Restore the trainer from the newest checkpoint; return its step, 0 if there is none."""
    found = newest_checkpoint(folder)
    step = 0
    if found is not None:
        step, checkpoint = found
        trainer.load_state_dict(restore(trainer.policy.model, checkpoint))
    keep_metrics(folder / METRICS_FILE, step)
    return step
