"""The prepared training of a policy: what all algorithms share."""

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

_PICTURES = ("curves.svg", "learning.svg")
"""Figures that `hafrm rlhf` draws in the folder."""

Progress = Callable[[int, Mapping[str, float]], None]
"""Called with every finished step and its means."""


@dataclass(frozen=True)
class RlhfResult:
    """The result of a policy's training."""

    folder: Path
    steps: int
    last: Mapping[str, float]
    """Means of the last step; empty if there was no step left."""


@dataclass(frozen=True)
class RlhfJob:
    """Validated options, with model and prompts."""

    config: RlhfConfig
    model: HybridModel
    """The initial policy, with adapters if any; values begin at zero."""
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
        """Create the folder, which from now on contains an unfinished run."""
        if kept := make_folder(self.folder, start_over=self.config.overwrite and self.folder.exists(), more=_PICTURES):
            self.say(kept)
        save_manifest(self.manifest, self.folder)

    def opening(self, done: int) -> str:
        """Return what a run prints at its start.

        Args:
            done: Number of steps done by an earlier attempt.
        """
        config, overlong = self.config, self.prompts.account["overlong"]
        left_out = f" ({overlong} over {config.max_prompt_tokens} tokens left out)" if overlong else ""
        ahead = f"resumes after step {done}" if done else f"{config.steps} steps of {config.batch_size} responses"
        return (
            f"{config.algorithm} on {len(self.prompts.prompts)} prompts{left_out}, rewarded by {config.reward}: {ahead}"
        )

    def finish(self, last: Mapping[str, float]) -> RlhfResult:
        """Save the policy at the top of the folder, and complete the manifest."""
        save_policy(self.model, self.tokenizer, self.folder)
        save_manifest(self.manifest | {"status": "finished", "steps": self.config.steps}, self.folder)
        return RlhfResult(self.folder, self.config.steps, last)
