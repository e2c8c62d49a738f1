"""PPO learns: a tiny random model learns its reward, and a small trained one the world's true reward."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from statistics import fmean

import pytest

from hafrm.cli import main
from hafrm.paper.world import backbone
from hafrm.paper.world.backbone import BackboneRecipe, world_backbone
from hafrm.rlhf.options import KlOptions, PpoOptions, RlhfConfig, SamplingOptions
from hafrm.rlhf.run import rlhf


@pytest.mark.slow
@pytest.mark.parametrize("sign", [1, -1])
def test_a_policy_learns_what_it_is_rewarded_for(
    sign: int,
    tiny: Callable[..., RlhfConfig],
    rewarded: Callable[[Callable[[str], float]], None],
) -> None:
    """Reward letters or non-letters: about half of the random model's visible characters are letters."""
    rewarded(lambda text: sign * sum(character.isalpha() for character in text) / 8)
    config = tiny(
        steps=25,
        batch_size=32,
        learning_rate=5e-3,
        lr_scheduler_type="constant",
        checkpoints=1,
        kl=KlOptions(coefficient=0.01, target=None),
        ppo=PpoOptions(),
        sampling=SamplingOptions(max_new_tokens=8, top_p=1.0),
    )
    rewards: list[float] = []
    rlhf(config, progress=lambda step, told: rewards.append(told["reward"]))
    assert fmean(rewards[-5:]) > fmean(rewards[:3]) + 0.15


@pytest.mark.slow
def test_the_true_reward_rises_on_new_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gain exceeds the interval over prompts for each of three seeds; takes minutes, including pretraining."""
    recipe = BackboneRecipe(hidden=64, layers=2, heads=2, intermediate=192, base_steps=300, instruct_steps=300)
    folder = world_backbone("instruct", recipe=recipe)
    monkeypatch.setattr(backbone, "world_backbone", lambda kind: folder)
    assert main(["reproduce", "ppo", "--seeds", "0", "1", "2", "--sets", "Helpful", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "world" / "ppo" / "results.json").read_text())["learnt"]["instruct"]
    assert found["ci95"][0] > 0
    assert min(found["by_seed"]) > 0
