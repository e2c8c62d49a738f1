"""The prepared training of a policy, which all algorithms share."""

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
"""Charts that `hafrm rlhf` writes into the folder."""

Progress = Callable[[int, Mapping[str, float]], None]
"""Function that is called with each finished step and its metrics."""


@dataclass(frozen=True)
class RlhfResult:
    """The result of a policy's training."""

    folder: Path
    steps: int
    last: Mapping[str, float]
    """Metrics of the last step; empty if no step was left to do."""


@dataclass(frozen=True)
class RlhfJob:
    """Validated options, with model and prompts."""

    config: RlhfConfig
    model: HybridModel
    """The initial policy, with adapters if any; its value head is zero."""
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
        """Create the folder with the manifest of an unfinished run."""
        if kept := make_folder(self.folder, start_over=self.config.overwrite and self.folder.exists(), more=_PICTURES):
            self.say(kept)
        save_manifest(self.manifest, self.folder)

    def opening(self, done: int) -> str:
        """Return the line that a run prints when it starts.

        Args:
            done: Number of steps that are already done.
        """
        config, overlong = self.config, self.prompts.account["overlong"]
        left_out = f" ({overlong} over {config.max_prompt_tokens} tokens left out)" if overlong else ""
        ahead = f"resumes after step {done}" if done else f"{config.steps} steps of {config.batch_size} responses"
        return (
            f"{config.algorithm} on {len(self.prompts.prompts)} prompts{left_out}, rewarded by {config.reward}: {ahead}"
        )

    def finish(self, last: Mapping[str, float]) -> RlhfResult:
        """Save the final policy in the folder, and mark the run as finished in the manifest."""
        save_policy(self.model, self.tokenizer, self.folder)
        save_manifest(self.manifest | {"status": "finished", "steps": self.config.steps}, self.folder)
        return RlhfResult(self.folder, self.config.steps, last)
