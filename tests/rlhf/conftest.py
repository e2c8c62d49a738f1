"""Fixtures: a tiny policy, prompts, and simple rewards."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from hafrm.pairs import Conversation
from hafrm.rlhf import groups, run
from hafrm.rlhf.options import PpoOptions, RlhfConfig, SamplingOptions
from tests.tiny import save_tiny


class Scripted:
    """A scorer whose reward is a function of the answer's text."""

    def __init__(self, reward: Callable[[str], float | None]) -> None:
        self.reward = reward

    def score(self, conversations: Sequence[Conversation]) -> list[float | None]:
        return [self.reward(conversation.response[-1].content) for conversation in conversations]


Reward = Callable[[str], float | None]


def reward_by(reward: Reward, patch: pytest.MonkeyPatch) -> None:
    """Reward every run by a function of the answer's text."""
    for module in (run, groups):
        patch.setattr(module, "load_reward", lambda *_: Scripted(reward))
    patch.setattr(run, "reward_identity", lambda *_: {"the model": "scripted"})


@pytest.fixture
def rewarded(monkeypatch: pytest.MonkeyPatch) -> Callable[[Reward], None]:
    """Rewards every run by a function of the answer's text."""
    return lambda reward: reward_by(reward, monkeypatch)


def tiny_inputs(folder: Path) -> Callable[..., RlhfConfig]:
    """Write a policy and prompts, and return a function that makes options of a run that takes a second."""
    model = save_tiny(folder / "model")
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"question {i}"}) + "\n" for i in range(6)))

    def config(**values: Any) -> RlhfConfig:
        plain = {
            "model": str(model),
            "reward": "scripted",
            "data": [str(prompts)],
            "out": str(folder / "run"),
            "steps": 4,
            "batch_size": 4,
            "learning_rate": 1e-3,
            "max_prompt_tokens": 64,
            "checkpoints": 2,
            "sampling": SamplingOptions(max_new_tokens=8),
        }
        if values.get("algorithm", "ppo") == "ppo":
            plain["ppo"] = PpoOptions(epochs=2, minibatches=2)
        return RlhfConfig(**(plain | values))

    return config


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., RlhfConfig]:
    """Options of a run that takes a second."""
    return tiny_inputs(tmp_path)
