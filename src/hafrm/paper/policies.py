"""Train policies by PPO on the experiments' reward models: each is trained once and later found by its name.

A policy's folder is OUT/SCALE/policies/BACKBONE/SETS/METHOD-seedN. It starts from its reward model's backbone, and is
trained on the same prompts as its reward model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hafrm.models.scorers import ScoreOptions
from hafrm.paper.runs import Run, train_config, write_data
from hafrm.paper.scales import Scale
from hafrm.rlhf.options import KlOptions, RlhfConfig, SamplingOptions
from hafrm.rlhf.run import rlhf
from hafrm.training.config import Method
from hafrm.training.manifest import changed_options, is_finished, read_manifest, refuse_other_options

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


@dataclass(frozen=True, kw_only=True)
class PolicyRun:
    """One policy of an experiment."""

    backbone: str
    """Backbone of the scale from which the policy and its reward model start."""
    sets: tuple[str, ...]
    """Paper names of the sets that provide its prompts and its reward model's training pairs."""
    rewarded_by: Method | None
    """Training method of its reward model; None: the true reward of its single set, available only in the world."""
    seed: int

    @property
    def reward(self) -> Run | None:
        """Run that trains its reward model, or None for the true reward."""
        if self.rewarded_by is None:
            return None
        return Run(backbone=self.backbone, sets=self.sets, method=self.rewarded_by, seed=self.seed)

    @property
    def prompts(self) -> Run:
        """Run whose training pairs provide the prompts, independent of the reward."""
        return Run(backbone=self.backbone, sets=self.sets, method="haf", seed=self.seed)

    @property
    def name(self) -> str:
        """Policy folder, relative to `policies`."""
        return f"{self.backbone}/{'+'.join(self.sets)}/{self.rewarded_by or 'oracle'}-seed{self.seed}"

    def folder(self, scale: Scale, out: Path) -> Path:
        """Return the policy's folder."""
        return out / scale.name / "policies" / self.name


def policy_config(scale: Scale, policy: PolicyRun, out: Path, *, model: str | None = None) -> RlhfConfig:
    """Return a policy's options.

    Args:
        scale: Backbones, pairs and options.
        policy: The policy.
        out: Output root shared by experiments.
        model: The backbone's name to use; by default its folder or hub id, which may train a small model first.
    """
    backbone = scale.backbone(policy.backbone)
    return RlhfConfig(
        model=model or backbone.model(),
        reward=str(policy.reward.folder(scale, out)) if policy.reward else scale.sets[policy.sets[0]].train,
        data=train_config(scale, policy.prompts, out, model="").data,
        out=str(policy.folder(scale, out)),
        lora=backbone.lora,
        score=ScoreOptions(overlong="truncate"),
        seed=policy.seed,
        **(WORLD_PPO if scale.name == "world" else {}),
    )


def train_missing_policy(scale: Scale, policy: PolicyRun, out: Path) -> Path:
    """Return the folder of a policy, training it first if it is unfinished.

    Raises:
        ConfigError: the folder contains a run with other options.
        HafrmError: training failed.
    """
    config = policy_config(scale, policy, out)
    refuse_other_options(other_policy_options(config), Path(config.out))
    folder = Path(config.out)
    if not is_finished(folder):
        write_data(scale, policy.prompts, out)
        rlhf(config)
    return folder


def other_policy_options(config: RlhfConfig, *, shown: bool = False) -> str:
    """Describe the options in which the folder's policy differs from the request; empty if there are none, or no run.

    Args:
        config: The requested options.
        shown: Whether `config.model` is a display name, which is not compared.
    """
    manifest = read_manifest(Path(config.out))
    if manifest is None:
        return ""
    return changed_options(manifest, replace(config, model=manifest["config"]["model"]) if shown else config)


def policy_command(config: RlhfConfig) -> list[str]:
    """Return the equivalent `hafrm rlhf` command as words, without options that have their default value."""
    plain = RlhfConfig(model=config.model, reward=config.reward, data=config.data, out=config.out)
    words = ["hafrm", "rlhf", config.model, "--reward", config.reward, "--data", *config.data]
    for name, value in _differences(asdict(config), asdict(plain)):
        words += [f"--{name}", value if isinstance(value, str) else json.dumps(value)]
    return [*words, "--out", config.out]


def _differences(values: Mapping[str, Any], plain: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the options that differ between two sets of values, by their command-line names."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _differences(value, plain[name], f"{prefix}{name}.")
        elif value != plain[name]:
            yield prefix + name, value
