"""PPO's random draws in each step, and the scale of its scores."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from hafrm.rlhf import ppo
from hafrm.rlhf.options import PpoOptions, RlhfConfig
from hafrm.rlhf.run import rlhf

Config = Callable[..., RlhfConfig]
Rewarded = Callable[[Callable[[str], float | None]], None]


def test_each_step_draws_other_responses(tiny: Config, rewarded: Rewarded, tmp_path: Path) -> None:
    """The prompt and the policy are the same in all steps: only the step's number makes draws differ.

    Another run with the same seed draws the same; one with another seed does not.
    """
    (tmp_path / "one.jsonl").write_text(json.dumps({"prompt": "question"}))
    drawn: list[str] = []
    rewarded(lambda text: drawn.append(text) or float(len(text)))
    ppo_options = PpoOptions(epochs=1, minibatches=1)
    config = tiny(data=[str(tmp_path / "one.jsonl")], batch_size=1, learning_rate=1e-12, ppo=ppo_options)
    rlhf(config)
    assert len(set(drawn)) == len(drawn) == 4
    first = list(drawn)
    for seed, same in ((config.seed, True), (config.seed + 1, False)):
        drawn.clear()
        rlhf(replace(config, out=str(tmp_path / f"again-{seed}"), seed=seed))
        assert (drawn == first) == same
        assert set(drawn).isdisjoint(first) != same


@pytest.mark.parametrize("scores", ["normalised", "centred"])
def test_a_batchs_scores_count_before_they_are_scaled(
    scores: str, tiny: Config, rewarded: Rewarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mean and the spread are those of all scores so far, the batch's own among them; so the first batch's are 0
    and 1 whatever the rewards' level."""
    given: list[float] = []
    learnt: list[list[float]] = []
    real = ppo.shaped_rewards

    def spy(scores: Tensor, *others: Any) -> Tensor:
        learnt.append(scores.tolist())
        return real(scores, *others)

    monkeypatch.setattr(ppo, "shaped_rewards", spy)
    rewarded(lambda text: given.append(1000 + 7.0 * len(given) ** 2) or given[-1])
    rlhf(tiny(steps=3, ppo=PpoOptions(epochs=1, minibatches=1, scores=scores)))  # type: ignore[arg-type]
    assert len(given) == 12
    for step, found in enumerate(learnt):
        known = given[: 4 * (step + 1)]
        unit = statistics.pstdev(known) if scores == "normalised" else 1.0
        expected = [(score - statistics.fmean(known)) / unit for score in known[-4:]]
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-4)
