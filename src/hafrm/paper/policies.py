"""Policies that experiments train by PPO against their reward models: each trained once, and found again by its name.

A policy's folder is OUT/SCALE/policies/BACKBONE/SETS/METHOD-seedN. It starts from its reward model's backbone, and is
trained on the prompts that its reward model was trained on.
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

__all__ = ["WORLD_PPO", "PolicyRun", "other_policy_options", "policy_command", "policy_config", "train_missing_policy"]

WORLD_PPO: Mapping[str, Any] = {
    "steps": 90,
    "learning_rate": 1e-4,
    "lr_scheduler_type": "constant",
    "max_prompt_tokens": 128,
    "checkpoints": 6,
    "sampling": SamplingOptions(max_new_tokens=96),
    "kl": KlOptions(coefficient=0.02, target=None),
}
"""The world's options where they are not the paper's: a model this small takes a larger rate, and a low price of KL
lets a policy go far enough to be seen over-optimising."""


@dataclass(frozen=True, kw_only=True)
class PolicyRun:
    """One policy of an experiment."""

    backbone: str
    """A backbone of the scale: where policy and reward model start from."""
    sets: tuple[str, ...]
    """The paper's names of the sets whose prompts it answers and that its reward model was trained on."""
    rewarded_by: Method | None
    """How its reward model was trained; None: the true reward of its one set, which the world alone has."""
    seed: int

    @property
    def reward(self) -> Run | None:
        """The run that rewards it."""
        if self.rewarded_by is None:
            return None
        return Run(backbone=self.backbone, sets=self.sets, method=self.rewarded_by, seed=self.seed)

    @property
    def prompts(self) -> Run:
        """A run on the pairs whose prompts it answers, whatever rewards it."""
        return Run(backbone=self.backbone, sets=self.sets, method="haf", seed=self.seed)

    @property
    def name(self) -> str:
        """The policy's folder below `policies`."""
        return f"{self.backbone}/{'+'.join(self.sets)}/{self.rewarded_by or 'oracle'}-seed{self.seed}"

    def folder(self, scale: Scale, out: Path) -> Path:
        """Where the policy lies."""
        return out / scale.name / "policies" / self.name


def policy_config(scale: Scale, policy: PolicyRun, out: Path, *, model: str | None = None) -> RlhfConfig:
    """A policy's options.

    Args:
        scale: Backbones, pairs and options.
        policy: The policy.
        out: The root that experiments share.
        model: What to call the backbone; by default its folder or hub id, which may train a small model first.
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
    """The folder of a policy, trained to its end.

    Raises:
        ConfigError: the folder holds a run with other options.
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
    """The options in which a folder's policy differs from what is asked for; empty where none does, or no run is.

    Args:
        config: What is asked for.
        shown: Whether its model is only how a plan prints it, which can't be compared.
    """
    manifest = read_manifest(Path(config.out))
    if manifest is None:
        return ""
    return changed_options(manifest, replace(config, model=manifest["config"]["model"]) if shown else config)


def policy_command(config: RlhfConfig) -> list[str]:
    """The words of the `hafrm rlhf` that does the same; values that are the defaults are left out."""
    plain = RlhfConfig(model=config.model, reward=config.reward, data=config.data, out=config.out)
    words = ["hafrm", "rlhf", config.model, "--reward", config.reward, "--data", *config.data]
    for name, value in _differences(asdict(config), asdict(plain)):
        words += [f"--{name}", value if isinstance(value, str) else json.dumps(value)]
    return [*words, "--out", config.out]


def _differences(values: Mapping[str, Any], plain: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The options at which two sets of values differ, by their names on the command line."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _differences(value, plain[name], f"{prefix}{name}.")
        elif value != plain[name]:
            yield prefix + name, value
