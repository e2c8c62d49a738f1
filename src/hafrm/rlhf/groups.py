"""GRPO and RLOO by TRL's trainers, with the same prompts, scorer and options as PPO.

TRL runs the loop: sampling, log-probs, KL (in GRPO's loss as a mean over tokens; in RLOO subtracted from each
response's reward as a sum), and the contents of checkpoints. hafrm supplies the reward, the order of prompts and the
steps to save, and renames the metrics to PPO's.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import torch
from datasets import Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState

from hafrm.errors import ConfigError, MissingExtraError
from hafrm.models.checksums import save_checksums
from hafrm.models.generating import stop_tokens
from hafrm.models.scorers import Scorer
from hafrm.models.stock import quiet_transformers
from hafrm.rewards import DetailedScorer, load_reward, with_division
from hafrm.rlhf.checkpoints import require_as_saved
from hafrm.rlhf.job import RlhfJob, RlhfResult, deal
from hafrm.rlhf.objectives import group_advantages
from hafrm.rlhf.options import RlhfConfig
from hafrm.rlhf.rewards import answered, paid_early, require_scored, scores_of
from hafrm.training.callbacks import Logs
from hafrm.training.metrics import METRICS_FILE, add_metrics, keep_metrics
from hafrm.training.resuming import last_checkpoint, train_to_the_end

_NAMES = {
    "reward": "reward",
    "reward_std": "reward_sd",
    "kl": "kl_per_token",
    "entropy": "entropy",
    "completions/mean_length": "length",
    "loss": "loss/policy",
    "clip_ratio/region_mean": "clip_fraction",
    "learning_rate": "learning_rate",
    "grad_norm": "grad_norm",
}
"""Names of metrics: TRL's, mapped to those of PPO."""


class GroupReward:
    """A scorer as a reward function of TRL, which gets indices of prompts, completions as messages, and token ids."""

    __name__ = "reward"

    def __init__(self, job: RlhfJob, scorer: Scorer, ends: set[int]) -> None:
        self.prompts, self.config, self.tokenizer, self.ends = job.prompts.prompts, job.config, job.tokenizer, ends
        self.scorer = scorer if job.config.dense == "none" else with_division(scorer, job.config.reward)
        self.rewards: list[float | None] = []
        """Rewards of the last batch; None for responses without a score."""
        self.early: list[list[float]] = []
        """What is paid at each token of the last batch's responses, if rewards are dense."""

    def __call__(
        self,
        *,
        completions: Sequence[Sequence[Mapping[str, str]]],
        completion_ids: Sequence[Sequence[int]],
        place: Sequence[int],
        trainer_state: TrainerState,
        **others: Any,
    ) -> list[float | None]:
        """Return rewards in the order of the completions; TRL ignores completions without a reward (None).

        Raises:
            DataError: no completion has a score.
            ModelError: a reward is NaN or infinite.
        """
        step = trainer_state.global_step + 1
        texts = ["".join(turn["content"] for turn in completion).strip() for completion in completions]
        talks = [answered(self.prompts[p], text) for p, text in zip(place, texts, strict=True)]
        scores = scores_of(self.scorer, talks)
        require_scored(scores, self.config.reward, step)
        self.rewards = [
            score if score is None or self.ends & set(ids) else score - self.config.missing_eos_penalty
            for score, ids in zip(scores, completion_ids, strict=True)
        ]
        if isinstance(self.scorer, DetailedScorer):
            self.early = paid_early(self.scorer, self.config, step, self.tokenizer, talks, completion_ids)
        return self.rewards


class _Progress(TrainerCallback):
    """Writes metrics.jsonl with PPO's names, reports every step, and schedules checkpoints like PPO's."""

    def __init__(self, job: RlhfJob, reward: GroupReward) -> None:
        self.job, self.reward, self.last = job, reward, dict[str, float]()

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Drop the lines of steps that will be repeated."""
        keep_metrics(self.job.folder / METRICS_FILE, state.global_step)
        self.job.say(self.job.opening(state.global_step))

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: Logs = None, **kwargs: Any) -> None:
        """Append a line; only steps that draw responses have rewards and statistics of responses."""
        if logs and "loss" in logs:
            found = {ours: float(logs[theirs]) for theirs, ours in _NAMES.items() if theirs in logs}
            if "reward" in logs:
                found["ended"] = 1 - float(logs["completions/clipped_ratio"])
                found["unscored"] = float(self.reward.rewards.count(None))
            self.last = {name: value for name, value in found.items() if math.isfinite(value)}
            add_metrics(self.job.folder / METRICS_FILE, state.global_step, self.last)
            self.job.progress(state.global_step, self.last)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Request a checkpoint, but never between two passes over a batch: TRL does not save drawn responses, so a
        resumed run would draw different ones.
        """
        control.should_save = self.job.config.is_checkpoint(state.global_step)


class _Ours(Trainer):
    """Mixin for TRL's trainers that adds checksums to each checkpoint, and dense rewards."""

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the weights, then their checksums; the trainer's state, written last, marks a complete checkpoint."""
        super().save_model(output_dir, _internal_call)
        save_checksums(Path(output_dir or str(self.args.output_dir)))

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        """Give each token its own advantage, if rewards are dense."""
        found = super()._generate_and_score_completions(inputs)  # type: ignore[misc]
        (reward,) = cast(Any, self).reward_funcs
        if reward.early:
            scores = torch.tensor([math.nan if score is None else score for score in reward.rewards])
            advantages = found["advantages"]
            found["advantages"] = group_advantages(
                advantages, scores.to(advantages), reward.early, reward.config.group.generations
            )
        return found


def train_groups(job: RlhfJob) -> RlhfResult:
    """Train to the end, from the last checkpoint if there is one.

    Raises:
        MissingExtraError: TRL is not installed.
        DamagedError: a file of the last checkpoint is not what was saved.
        ConfigError: prompts have parts that TRL does not render.
        ModelError: rewards of tokens are wanted, but the reward model has none.
    """
    _require_plain(job)
    trl = import_trl(f"--algorithm {job.config.algorithm}")
    options, trainer_class = (getattr(trl, f"{job.config.algorithm.upper()}{part}") for part in ("Config", "Trainer"))
    scorer = load_reward(job.config.reward, job.config, job.config.score)
    causal_lm = job.model.causal_lm
    reward = GroupReward(job, scorer, set(stop_tokens(causal_lm, job.tokenizer)))
    job.begin()
    if (checkpoint := last_checkpoint(job.folder, say=lambda line: None)) is not None:
        require_as_saved(checkpoint)
    progress = _Progress(job, reward)
    with quiet_transformers(), warnings.catch_warnings():
        # TRL uses deprecated names of transformers
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing", category=FutureWarning)
        trainer = type(trainer_class.__name__, (_Ours, trainer_class), {})(
            model=causal_lm,
            reward_funcs=reward,
            args=options(**_arguments(job.config)),
            train_dataset=_dataset(job),
            processing_class=job.tokenizer,
            callbacks=[progress],
        )
        trainer.remove_callback(PrinterCallback)
        train_to_the_end(trainer, job.folder)
    return job.finish(progress.last)


def import_trl(needed_by: str) -> Any:
    """Import TRL without its warnings about optional parts, which hafrm does not use.

    Raises:
        MissingExtraError: TRL is not installed; `needed_by` starts the message.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return import_module("trl")
    except ImportError as error:
        raise MissingExtraError(f"{needed_by} needs TRL: pip install 'hafrm[trl]'") from error


def _require_plain(job: RlhfJob) -> None:
    """Raise for prompts with tools or documents, which TRL's trainers do not render."""
    rich = sum(bool(prompt.arguments or any(turn.more for turn in prompt.turns)) for prompt in job.prompts.prompts)
    if rich:
        raise ConfigError(
            f"{rich} prompts have tools, documents, template arguments, or turns with more than role and "
            f"content, which TRL's {job.config.algorithm} trainer does not render. Use --algorithm ppo, or other "
            "prompts."
        )


def _dataset(job: RlhfJob) -> Dataset:
    """Return the prompts of all batches, in order. With TRL's own order, a resumed run would restart at the first."""
    config = job.config
    rows = [{**prompt.as_row(), "place": place} for place, prompt in enumerate(job.prompts.prompts)]
    prompts = config.batch_size // config.group.generations
    batches = range(1, math.ceil(config.steps / config.group.iterations) + 1)
    return Dataset.from_list(rows).select(
        [place for batch in batches for place in deal(len(rows), prompts, batch, config.seed)]
    )


def _arguments(config: RlhfConfig) -> dict[str, Any]:
    """Translate the options to TRL's; others keep TRL's defaults."""
    on_gpu = config.score.torch_device().type == "cuda"
    return {
        "output_dir": config.out,
        "use_cpu": not on_gpu,
        "bf16": config.mixed,
        "gradient_checkpointing": on_gpu,
        "max_steps": config.steps,
        "shuffle_dataset": False,
        "per_device_train_batch_size": config.batch_size,
        "num_generations": config.group.generations,
        "num_iterations": config.group.iterations,
        "epsilon": config.group.clip,
        "beta": config.kl_coefficient,
        "max_completion_length": config.sampling.max_new_tokens,
        "top_p": config.sampling.top_p,
        "top_k": 0,
        "temperature": config.sampling.temperature,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": config.lr_scheduler_type,
        "max_grad_norm": config.max_grad_norm,
        "weight_decay": 0.0,
        "optim": "adamw_torch",
        "seed": config.seed,
        "save_strategy": "no",  # scheduled by `_Progress`
        "logging_steps": 1,
        "report_to": [],
        "disable_tqdm": True,
    }
