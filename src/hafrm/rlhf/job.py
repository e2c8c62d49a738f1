"""A policy's training, prepared: what the algorithms share from the first step to the last."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hafrm.models.hybrid import HybridModel
from hafrm.rlhf.checkpoints import save_policy
from hafrm.rlhf.options import RlhfConfig
from hafrm.rlhf.prompts import PromptSet
from hafrm.training.folders import make_folder
from hafrm.training.manifest import save_manifest

__all__ = ["Progress", "RlhfJob", "RlhfResult"]

_PICTURES = ("curves.svg", "learning.svg")
"""What `hafrm rlhf` draws in the folder."""

Progress = Callable[[int, Mapping[str, float]], None]
"""Hears of every step that is done, with its means."""


@dataclass(frozen=True)
class RlhfResult:
    """What a policy's training came to."""

    folder: Path
    steps: int
    last: Mapping[str, float]
    """The last step's means; empty where no step was left."""


@dataclass(frozen=True)
class RlhfJob:
    """Options, model and prompts that have proved sound."""

    config: RlhfConfig
    model: HybridModel
    """The policy at its start, with adapters if any; values begin at zero."""
    tokenizer: Any
    prompts: PromptSet
    manifest: dict[str, Any]
    progress: Progress
    say: Callable[[str], None]

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.config.out)

    def begin(self) -> None:
        """Make the folder, which from now on holds an unfinished run."""
        if kept := make_folder(self.folder, anew=self.config.overwrite and self.folder.exists(), more=_PICTURES):
            self.say(kept)
        save_manifest(self.manifest, self.folder)

    def opening(self, done: int) -> str:
        """What a run says at its start.

        Args:
            done: The steps that an earlier attempt has done.
        """
        config, overlong = self.config, self.prompts.account["overlong"]
        left_out = f" ({overlong} over {config.max_prompt_tokens} tokens left out)" if overlong else ""
        ahead = f"goes on behind step {done}" if done else f"{config.steps} steps of {config.batch_size} responses"
        return (
            f"{config.algorithm} on {len(self.prompts.prompts)} prompts{left_out}, rewarded by {config.reward}: {ahead}"
        )

    def finish(self, last: Mapping[str, float]) -> RlhfResult:
        """Save the policy at the top of the folder, and close the manifest."""
        save_policy(self.model, self.tokenizer, self.folder)
        save_manifest(self.manifest | {"status": "finished", "steps": self.config.steps}, self.folder)
        return RlhfResult(self.folder, self.config.steps, last)
