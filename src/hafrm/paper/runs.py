"""What experiments train: reward models and policies, each identified by its settings, trained once and shared.

A run's folder is OUT/SCALE/runs/BACKBONE/SETS/METHOD-seedN, extended by settings that differ from the method's
defaults; a policy's is OUT/SCALE/policies/BACKBONE/SETS/METHOD-seedN. A finished folder with the same options is
reused, an unfinished one resumes from its last checkpoint, and one with other options raises an error.
"""

from __future__ import annotations

import math
import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hafrm.data import DataOptions
from hafrm.models.options import Head, HeadInit, Method, ScoreOptions
from hafrm.options import command_line
from hafrm.paper.samples import RunData
from hafrm.paper.scales import Job
from hafrm.paper.trl_rewards import train_with_trl
from hafrm.paper.world.sets import RANKED
from hafrm.rlhf.options import Dense, KlOptions, RlhfConfig, SamplingOptions
from hafrm.rlhf.run import rlhf
from hafrm.store import alone
from hafrm.training.config import TrainConfig
from hafrm.training.loss import LossConfig
from hafrm.training.manifest import changed_options, is_finished, read_manifest, refuse_other_options
from hafrm.training.run import train

OTHER_OPTIONS = "other options"
"""Prefix of the state shown for a run that would be refused."""

LOSSES: Mapping[str, LossConfig] = {
    "ipo": LossConfig(policy_loss="ipo"),
    "simpo": LossConfig(policy_loss="simpo", beta=2.0),  # per-token log-probs are small: its paper uses 2 and more
    "sft": LossConfig(policy_loss="sft"),
    "probit": LossConfig(reward_loss="probit"),
    "cauchy": LossConfig(reward_loss="cauchy"),
    "hinge": LossConfig(reward_loss="hinge"),
    "heads": LossConfig(heads=5),
    "laplace": LossConfig(heads=64, heads_from="laplace"),
    "consistency": LossConfig(consistency_weight=0.1),
    "sft-consistency": LossConfig(policy_loss="sft", consistency_weight=0.1),
    "plackett_luce": LossConfig(reward_loss="plackett_luce"),
    "length_control": LossConfig(length_control=True),
}
"""Losses that can replace those of a method, by name."""

_RANKINGS = 4
"""Rankings of a batch, as many responses as pairs in other batches."""

WORLD_PPO: Mapping[str, Any] = {
    "steps": 90,
    "learning_rate": 1e-4,
    "lr_scheduler_type": "constant",
    "max_prompt_tokens": 128,
    "checkpoints": 6,
    "sampling": SamplingOptions(max_new_tokens=96),
    "kl": KlOptions(coefficient=0.02, target=None),
}
"""The world's PPO options that differ from the paper's.

So small a model needs a larger learning rate, and a low KL coefficient lets a policy move far enough to show
over-optimisation.
"""


SMALL_PPO: Mapping[str, Any] = {
    "steps": 200,
    "max_prompt_tokens": 256,
    "checkpoints": 5,
    "sampling": SamplingOptions(max_new_tokens=128),
}
"""PPO options of the scale `small` that differ from the paper's, whose 6,250 steps take days there."""


def _ppo(job: Job) -> dict[str, Any]:
    own = {"world": WORLD_PPO, "small": SMALL_PPO, "paper": {}}[job.scale.name]
    return {**own, **({} if job.ppo_steps is None else {"steps": job.ppo_steps})}


@dataclass(frozen=True, kw_only=True)
class Trained(ABC):
    """Something to train, with its own folder."""

    backbone: str
    """Backbone of the scale to start from."""
    sets: tuple[str, ...]
    """Paper names of the training sets; several are sampled evenly."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Folder relative to those of the same kind."""

    @abstractmethod
    def folder(self, job: Job) -> Path:
        """Return the folder."""

    @abstractmethod
    def changed(self, job: Job, *, shown: bool = False) -> str:
        """Describe the options and data in which the folder's run differs from this one; empty if there is no such run.

        Root and data files may have moved. If `shown`, the backbone's display name is compared, and no model is made.
        """

    @abstractmethod
    def command(self, job: Job) -> str:
        """Return the equivalent `hafrm` command, without options that have their default value."""

    @abstractmethod
    def _train(self, job: Job) -> None: ...

    def data(self, job: Job) -> RunData:
        """Return the pairs to train on, or whose prompts to train on."""
        return RunData(job, self.sets)

    def require_same(self, job: Job) -> None:
        """Raise if the folder's run has another scale, length or rate, or other pairs.

        Raises:
            ConfigError: the folder contains a run with other options.
        """
        refuse_other_options(self.changed(job), self.folder(job))

    def make(self, job: Job) -> Path:
        """Return the folder, after training it if it is unfinished; wait if another command is training it.

        Raises:
            ConfigError: the folder contains a run with other options.
            HafrmError: training failed.
        """
        folder = self.folder(job)
        self.require_same(job)
        if not is_finished(folder):
            with alone(folder, beside=True, wait=True):
                self.require_same(job)
                if not is_finished(folder):
                    self.data(job).write()
                    self._train(job)
        return folder

    def state(self, job: Job) -> str:
        """Return "finished", "unfinished", "missing", or "other options" with the differences."""
        if changed := self.changed(job, shown=True):
            return f"{OTHER_OPTIONS}: {changed}"
        if is_finished(self.folder(job)):
            return "finished"
        return "missing" if read_manifest(self.folder(job)) is None else "unfinished"


@dataclass(frozen=True, kw_only=True)
class Run(Trained):
    """One training run of a reward model."""

    method: Method
    seed: int = 0
    policy_ratio: float | None = None
    """Weight of HAF's policy loss; None is the paper's 0.2."""
    loss: str | None = None
    """Name in `LOSSES` of a loss that replaces one of the paper's; None keeps the paper's losses."""
    share: int = 1
    """Train on 1/share of the pairs."""
    rankings: bool = False
    """Whether its pairs come from the world's rankings, each of which is kept whole in one batch."""
    flipped: int = 0
    """Percent of the training pairs whose labels are flipped."""
    off_topic: float = 0.0
    """Share of the training pairs to which an off-topic one is added."""
    head_init: HeadInit = "auto"
    trainer: Literal["hafrm", "trl"] = "hafrm"
    """`trl` trains the baseline with TRL's RewardTrainer."""
    keep_checkpoints: bool = False
    """Whether to keep every checkpoint, for experiments that compare them."""

    @property
    def recipe(self) -> str:
        """What a learning rate is chosen for: the method, with the loss that replaces one of the paper's."""
        return self.method if self.loss is None else f"{self.method}-{self.loss}"

    def learning_rate(self, job: Job) -> float:
        """Return the learning rate: the recipe's own, or else the method's."""
        rates = job.scale.backbone(self.backbone).learning_rates
        return rates.get(self.recipe, rates[self.method])

    @property
    def name(self) -> str:
        """Folder relative to `runs`."""
        ratio = "" if self.policy_ratio is None else f"-ratio{self.policy_ratio:g}"
        loss = "" if self.loss is None else f"-{self.loss}"
        share = "" if self.share == 1 else f"-1of{self.share}"
        flipped = f"-flipped{self.flipped}" if self.flipped else ""
        off_topic = f"-offtopic{self.off_topic:g}" if self.off_topic else ""
        head = "" if self.head_init == "auto" else f"-{self.head_init}"
        trainer = "" if self.trainer == "hafrm" else f"-{self.trainer}"
        kept = "-checkpoints" if self.keep_checkpoints else ""
        settings = f"{self.method}{ratio}{loss}{share}{flipped}{off_topic}{head}{trainer}"
        return f"{self.backbone}/{'+'.join(self.sets)}/{settings}-seed{self.seed}{kept}"

    def folder(self, job: Job) -> Path:
        """Return the folder; while learning rates are being chosen, its name includes the rate."""
        rate = f"-lr{self.learning_rate(job):g}" if job.scale.tuned else ""
        return job.root / "runs" / f"{self.name}{rate}"

    def data(self, job: Job) -> RunData:
        """Return the pairs to train on."""
        return RunData(job, self.sets, self.share, self.flipped)

    def config(self, job: Job, *, model: str = "") -> TrainConfig:
        """Return the run's options; `model` is the backbone's folder or hub id."""
        backbone, data = job.scale.backbone(self.backbone), self.data(job)
        loss = LossConfig() if self.loss is None else LOSSES[self.loss]
        pairs, every = _RANKINGS * math.comb(RANKED, 2), job.scale.every(kept=True)
        kept = {"save_total_limit": None, "eval_steps": every, "save_steps": every}
        return TrainConfig(
            model=model,
            data=data.names("train"),
            eval_data=data.names("validation"),
            out=str(self.folder(job)),
            method=self.method,
            loss=loss if self.policy_ratio is None else replace(loss, policy_ratio=self.policy_ratio),
            lora=backbone.lora,
            data_options=DataOptions(
                max_length=job.scale.max_length,
                batch_by="prompt" if self.rankings else "pair",
                off_topic=self.off_topic,
            ),
            training={
                **job.scale.training,
                **({"per_device_train_batch_size": pairs} if self.rankings else {}),
                "learning_rate": self.learning_rate(job),
                "seed": self.seed,
                **(kept if self.keep_checkpoints else {}),
            },
            early_stopping=job.scale.early_stopping,
            head_init=self.head_init,
            chat_template=backbone.chat_template,
            dtype=backbone.dtype,
        )

    def options(self, job: Job) -> dict[str, Any]:
        """Return what determines the run's result, without names of folders: options, and fingerprints of the pairs."""
        options = asdict(self.config(job, model=self.backbone))
        named = {name: value for name, value in options.items() if name not in ("data", "eval_data", "out")}
        template = options["chat_template"] and Path(options["chat_template"]).name
        return named | {"chat_template": template, "pairs": list(self.data(job).digests().values())}

    def _train(self, job: Job) -> None:
        config = self.config(job, model=job.model(self.backbone))
        if self.trainer == "trl":
            train_with_trl(config)
        else:
            train(config, callbacks=[_WeightsAlone()] * self.keep_checkpoints)

    def make(self, job: Job) -> Path:
        """Return the folder, after training it if it is unfinished, without the files that only a resumed run needs."""
        folder = super().make(job)
        for checkpoint in folder.glob("checkpoint-*"):
            if self.keep_checkpoints:
                _drop_optimizer(checkpoint)
            else:
                shutil.rmtree(checkpoint)
        return folder

    def changed(self, job: Job, *, shown: bool = False) -> str:
        """Describe the differences; files may have moved if their pairs are the same."""
        manifest = read_manifest(self.folder(job))
        if manifest is None:
            return ""
        model = job.scale.backbone(self.backbone).shown if shown else job.model(self.backbone)
        if shown and job.scale.name != "small":  # the folder's name is known only once it is made or downloaded
            model = manifest["config"]["model"]
        config = self.config(job, model=model)
        data = _changed_data(manifest, config, self.data(job).digests())
        held = {name: manifest["config"][name] for name in ("data", "eval_data")}
        for name in ("model", "chat_template"):  # may be in another folder here
            before, now = manifest["config"][name], getattr(config, name)
            if before and now and Path(before).name == Path(now).name:
                held[name] = before
        return ", ".join(filter(None, (changed_options(manifest, replace(config, **held)), data)))

    def command(self, job: Job) -> str:
        """Return the equivalent `hafrm train` command."""
        config = self.config(job, model=job.scale.backbone(self.backbone).shown)
        return expandable(command_line("hafrm train", TrainConfig, asdict(config)))


def seed_runs(job: Job, backbone: str, sets: tuple[str, ...], **options: Any) -> list[Run]:
    """Return the runs with the given options, one per seed."""
    return [Run(backbone=backbone, sets=sets, seed=seed, **options) for seed in job.seeds]


def _changed_data(manifest: dict[str, Any], config: TrainConfig, digests: Mapping[str, str | None]) -> str:
    """Describe the data that differ from a manifest's; names of data that are not local files must match."""
    changes = []
    for part, option in (("train", "data"), ("eval", "eval_data")):
        before, names = manifest["config"][option], getattr(config, option)
        sources = manifest["data"].get(part, {}).get("sources", [])
        if len(sources) != len(names):
            changes += [] if before == names else [f"{option} (was {before}, now {names})"]
            continue
        for old, name, source in zip(before, names, sources, strict=True):
            now = digests[name]
            if now is None and Path(old).parts[-2:] != Path(name).parts[-2:]:  # a set's name, or CUTS/FILE
                changes.append(f"{option} (was {old}, now {name})")
            elif now is not None and now != source["sha256"]:
                changes.append(f"{option} (was {old}, sha256 {source['sha256'][:8]}, now {name}, sha256 {now[:8]})")
    return ", ".join(changes)


class _WeightsAlone(TrainerCallback):
    """Keeps the optimizer's states of the last two checkpoints only, which are enough to resume."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Delete older states."""
        checkpoints = Path(str(args.output_dir)).glob("checkpoint-*")
        for checkpoint in sorted(checkpoints, key=lambda path: int(path.name.partition("-")[2]))[:-2]:
            _drop_optimizer(checkpoint)


def _drop_optimizer(checkpoint: Path) -> None:
    for name in ("optimizer.pt", "optimizer.bin"):
        (checkpoint / name).unlink(missing_ok=True)


@dataclass(frozen=True, kw_only=True)
class Policy(Trained):
    """One policy, trained by PPO from its reward model's backbone, on the prompts of its reward model."""

    rewarded_by: Method | None
    """Training method of its reward model; None: the true reward of its single set, or outside the world the judge's.
    """
    seed: int
    head: Head | None = None
    """Head of the reward model that scores; None: the default one."""
    dense: Dense = "none"
    """Where the score is paid."""
    loss: str | None = None
    """Name in `LOSSES` of a loss that replaces one of its reward model's."""
    pessimism: float = 0.0
    """Standard errors to subtract from the score of a reward model with several heads."""

    @property
    def reward(self) -> Run | None:
        """Run that trains its reward model, or None for the true reward."""
        if self.rewarded_by is None:
            return None
        return Run(backbone=self.backbone, sets=self.sets, method=self.rewarded_by, seed=self.seed, loss=self.loss)

    @property
    def name(self) -> str:
        """Folder relative to `policies`."""
        dense = None if self.dense == "none" else self.dense
        below = f"minus{self.pessimism:g}" if self.pessimism else None
        parts = filter(None, (self.rewarded_by or "oracle", self.loss, self.head, dense, below))
        return f"{self.backbone}/{'+'.join(self.sets)}/{'-'.join(parts)}-seed{self.seed}"

    def folder(self, job: Job) -> Path:
        """Return the folder."""
        return job.root / "policies" / self.name

    def config(self, job: Job, *, model: str | None = None) -> RlhfConfig:
        """Return the policy's options; `model` is by default the backbone's own, which may train a small one first."""
        judge = job.scale.sets[self.sets[0]].train if job.judge is None else job.judge.model
        return RlhfConfig(
            model=model or job.model(self.backbone),
            reward=str(self.reward.folder(job)) if self.reward else judge,
            data=self.data(job).names("train"),
            out=str(self.folder(job)),
            lora=job.scale.backbone(self.backbone).lora,
            score=ScoreOptions(overlong="truncate", pessimism=self.pessimism),
            seed=self.seed,
            chat_template=job.scale.backbone(self.backbone).chat_template,
            trust_remote_code=job.trust_remote_code and self.reward is None,
            head=self.head,
            dense=self.dense,
            **_ppo(job),
        )

    def _train(self, job: Job) -> None:
        rlhf(self.config(job))

    def changed(self, job: Job, *, shown: bool = False) -> str:
        """Describe the differences in options."""
        manifest = read_manifest(self.folder(job))
        if manifest is None:
            return ""
        held = manifest["config"]["model"] if shown and job.in_world else None  # world backbones have other names
        return changed_options(manifest, self.config(job, model=held))

    def command(self, job: Job) -> str:
        """Return the equivalent `hafrm rlhf` command."""
        config = self.config(job, model=job.scale.backbone(self.backbone).shown)
        return expandable(command_line("hafrm rlhf", RlhfConfig, asdict(config), positional="model"))


def seed_policies(job: Job, backbone: str, sets: tuple[str, ...], **options: Any) -> list[Policy]:
    """Return the policies with the given options, one per seed."""
    return [Policy(backbone=backbone, sets=sets, seed=seed, **options) for seed in job.seeds]


def expandable(line: str) -> str:
    """Return a shell line in which the shell expands arguments of the form `$(COMMAND)`."""
    return re.sub(r"'(\$\(.*?\))'", r'"\1"', line)
