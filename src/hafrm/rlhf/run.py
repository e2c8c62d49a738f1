"""`hafrm rlhf`: train a policy, from its options to its folder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from hafrm.data import local_path
from hafrm.errors import ConfigError
from hafrm.models.hybrid import HybridModel
from hafrm.models.options import ScoreOptions, ScorerChoice, chat_template
from hafrm.models.references import weights_digest
from hafrm.models.starts import check_start
from hafrm.models.tokenizers import load_tokenizer
from hafrm.numerics import cpu_tuned
from hafrm.rewards import load_reward, reward_identity
from hafrm.rlhf.checkpoints import newest_checkpoint, restore, save_checkpoint
from hafrm.rlhf.groups import train_groups
from hafrm.rlhf.job import Progress, RlhfJob, RlhfResult, prompt_set
from hafrm.rlhf.options import RlhfConfig
from hafrm.rlhf.policy import new_policy, ready_policy
from hafrm.rlhf.ppo import PpoTrainer
from hafrm.training.arguments import launched_processes
from hafrm.training.folders import claim_folder, hold_folder
from hafrm.training.manifest import new_manifest, require_same_data, require_same_settings, resumed_manifest
from hafrm.training.metrics import METRICS_FILE, add_metrics, keep_metrics

_OF_WEIGHTS = ("the server", "its base", "the model", "its reference", "score.chat_template")
"""The parts of a scorer's identity that the options do not determine."""


def rlhf(
    config: RlhfConfig,
    *,
    progress: Progress = lambda step, metrics: None,
    say: Callable[[str], None] = lambda line: None,
) -> RlhfResult:
    """Train a policy; an interrupted run in the same folder resumes with the same results, bit for bit.

    The random state of the program is left unchanged.

    Args:
        config: The options.
        progress: Called after every step.
        say: Called with a line before the first step.

    Raises:
        HafrmError: options, data or a model are unusable; the message says why and what to do.
    """
    if launched_processes() > 1:
        raise ConfigError(
            "hafrm rlhf trains in one process. For several devices, use OpenRLHF or verl with `hafrm serve` as their "
            "reward, as described in docs/rlhf.md."
        )
    with hold_folder(Path(config.out)), cpu_tuned(), torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        job = _prepare(config, progress, say)
        return _train_ppo(job) if config.algorithm == "ppo" else train_groups(job)


def _prepare(config: RlhfConfig, progress: Progress, say: Callable[[str], None]) -> RlhfJob:
    """Prepare the prompts, policy and manifest of a new or resumed run, without writing anything."""
    folder = Path(config.out)
    before = claim_folder(config, folder, _inputs(config), overwrite=config.overwrite)
    start = check_start(config.model, rewards=False, lora=config.lora, trust_remote_code=config.trust_remote_code)
    for note in start.notes:
        say(note)
    torch.manual_seed(config.seed)
    template = chat_template(config.chat_template, "chat_template")
    tokenizer = load_tokenizer(config.model, trust_remote_code=config.trust_remote_code, instead=template, say=say)
    prompts = prompt_set(config.data, tokenizer, max_tokens=config.max_prompt_tokens, options=config.data_options)
    account = {"train": prompts.account}
    if before is not None:
        require_same_data(before, account, folder)
    model = new_policy(config, tokenizer)
    if model.bare:
        say(model.bare)
    effective = _effective(config, model)
    if template is not None:
        effective["chat_template"] = hashlib.sha256(template.encode()).hexdigest()
    manifest = new_manifest(config, account, effective)
    if before is not None:
        require_same_settings(before, effective, folder)
        manifest = resumed_manifest(before, manifest)
    return RlhfJob(config, model, tokenizer, prompts, manifest, progress, say)


def _effective(config: RlhfConfig, model: HybridModel) -> dict[str, Any]:
    """Resolve the options, as `effective_settings` does for training, with the digest of the initial weights."""
    gold = {"gold": _identity(config.gold, config.gold_choice, config.gold_score)} if config.gold else {}
    return {
        "seed": config.seed,
        "dtype": str(config.torch_dtype).removeprefix("torch."),
        "bf16": config.mixed,
        "device": str(config.score.torch_device()),
        "per_device_train_batch_size": config.batch_size,
        "gradient_accumulation_steps": 1,
        "world_size": 1,
        "weights": weights_digest(model),
        "reward": _identity(config.reward, config, config.score),
        **gold,
    }


def _identity(name: str, choice: ScorerChoice, options: ScoreOptions) -> dict[str, Any]:
    """Return what a scorer's rewards depend on besides the options: contents of files, which can change."""
    found = reward_identity(name, choice, options)
    return {part: value for part, value in found.items() if part in _OF_WEIGHTS}


def _inputs(config: RlhfConfig) -> dict[str, Path]:
    """Return the paths that the run reads, by the options that name them."""
    named = {name: getattr(config, name) for name in ("model", "reward", "reference", "gold")}
    named |= {"chat_template": config.chat_template, "score.chat_template": config.score.chat_template}
    inputs = {f"{name}: {value}": Path(value) for name, value in named.items() if value}
    return inputs | {f"data: {name}": path for name in config.data if (path := local_path(name))}


def _train_ppo(job: RlhfJob) -> RlhfResult:
    config, model, tokenizer = job.config, job.model, job.tokenizer
    policy = ready_policy(
        config, model, tokenizer, report=lambda reason: job.say(f"batches are padded, not packed: {reason}")
    )
    scorer = load_reward(config.reward, config, config.score)
    gold = load_reward(config.gold, config.gold_choice, config.gold_score) if config.gold else None
    trainer = PpoTrainer(config, policy, tokenizer, job.prompts.prompts, scorer, gold)
    job.begin()
    done = _resume(trainer, job.folder)
    job.say(job.opening(done))
    metrics: dict[str, float] = {}
    for step in range(done + 1, config.steps + 1):
        metrics = trainer.step(step)
        add_metrics(job.folder / METRICS_FILE, step, metrics)
        if config.is_checkpoint(step):
            save_checkpoint(model, tokenizer, trainer.state_dict(), job.folder / f"checkpoint-{step}")
        job.progress(step, metrics)
    return job.finish(metrics)


def _resume(trainer: PpoTrainer, folder: Path) -> int:
    """Restore the trainer from the newest checkpoint; return its step, 0 if there is none."""
    found = newest_checkpoint(folder)
    step = 0
    if found is not None:
        step, checkpoint = found
        trainer.load_state_dict(restore(trainer.policy.model, checkpoint))
    keep_metrics(folder / METRICS_FILE, step)
    return step
