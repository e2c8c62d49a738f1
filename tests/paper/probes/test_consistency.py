"""Figure 2: matching, points and shares by hand; sampling is seeded."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from hafrm.errors import ConfigError, DataError, ModelError
from hafrm.pairs import Prompt
from hafrm.paper.probes import remembered
from hafrm.paper.probes.checkpoints import (
    Checkpoint,
    Match,
    generate_responses,
    match_checkpoints,
    prompts_that_fit,
    run_checkpoints,
)
from hafrm.paper.probes.consistency import consistency
from hafrm.sampling.options import SampleOptions
from tests.tiny import tiny_lm, tiny_tokenizer


def checkpoint(run: str, step: int, **values: float) -> Checkpoint:
    return Checkpoint(step, Path(run) / f"checkpoint-{step}", {"step": float(step), **values})


def evaluation(step: int, accuracy: float) -> str:
    values = {"eval_loss": 1, "eval_loss/policy": 2, "eval_policy/accuracies": accuracy, "eval_policy/margins": 3}
    return json.dumps({"step": step} | values)


def test_checkpoints_are_read_with_the_policy_heads_metrics(tmp_path: Path) -> None:
    lines = [json.dumps({"step": 5, "loss": 1}), evaluation(5, 0.6), evaluation(10, 0.7)]
    lines.append(json.dumps({"step": 10, "train_loss": 1}))  # the run's summary
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    for name in ("checkpoint-10", "checkpoint-5", "checkpoint-15", "checkpoint-x"):
        (tmp_path / name).mkdir()
    found = run_checkpoints(tmp_path)
    assert [(each.step, each.values["acc"], each.values["loss"]) for each in found] == [(5, 0.6, 2), (10, 0.7, 2)]


def test_a_run_without_checkpoints_is_refused_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(evaluation(5, 0.6))
    with pytest.raises(ModelError, match="save_total_limit null"):
        run_checkpoints(tmp_path)


def test_checkpoints_are_matched_once_each_with_the_least_difference() -> None:
    haf = [checkpoint("haf", 1, acc=0.60), checkpoint("haf", 2, acc=0.70), checkpoint("haf", 3, acc=0.71)]
    dpo = [checkpoint("dpo", 2, acc=0.72), checkpoint("dpo", 4, acc=0.61)]
    by_accuracy = match_checkpoints(haf, dpo, "acc")
    assert [(m.first.step, m.second.step) for m in by_accuracy] == [(1, 4), (3, 2)]
    assert by_accuracy[0].gap == pytest.approx(0.01)
    assert [(m.first.step, m.second.step) for m in match_checkpoints(haf, dpo, "step")] == [(2, 2), (3, 4)]
    with pytest.raises(DataError, match="'reward'"):
        match_checkpoints(haf, dpo, "reward")


def two_points() -> list[Match]:
    dpo = checkpoint("dpo", 1, acc=0.6)
    return [Match("step", checkpoint("haf", 1), dpo), Match("acc", checkpoint("haf", 2, acc=0.7), dpo)]


def test_points_are_mean_differences_over_prompts() -> None:
    oracle = {"haf/checkpoint-1": [1.0, 2, None], "haf/checkpoint-2": [5.0, 5, 5], "dpo/checkpoint-1": [0.0, 1, 2]}
    own = {
        (1, "haf/checkpoint-1"): [4.0, 4, 4],
        (1, "dpo/checkpoint-1"): [1.0, 1, 1],
        (2, "haf/checkpoint-2"): [1.0, 1, 1],
        (2, "dpo/checkpoint-1"): [1.0, 2, 3],
    }
    found = consistency(two_points(), oracle, own)
    first, second = found.points
    assert (first.x, first.y, first.prompts) == (1, 3, 2)
    assert (second.x, second.y, second.prompts) == (4, -1, 3)
    assert second.gap == pytest.approx(0.1)
    assert found.share_above.value == 0.5
    assert found.share_above.interval is None
    assert found.by_matching["step"].value == 1
    assert found.by_matching["acc"].value == 0
    assert json.loads(json.dumps(asdict(found)))["points"][0]["x"] == 1


@pytest.mark.parametrize(
    ("prompts", "missing", "known"), [(6, 0, True), (5, 0, False), (40, 35, False), (40, 34, True)]
)
def test_few_prompts_give_no_interval(prompts: int, missing: int, known: bool) -> None:
    """All resamples would agree, and the share would look certain."""
    rewards: list[float | None] = [1.0] * prompts
    partly = [None] * missing + rewards[missing:]
    oracle = {"haf/checkpoint-1": partly, "dpo/checkpoint-1": rewards}
    own = {(1, "haf/checkpoint-1"): [2.0] * prompts, (1, "dpo/checkpoint-1"): rewards}
    found = consistency(two_points()[:1], oracle, own)
    assert found.share_above.value == 1
    expected = (1, 1) if known else None
    assert (found.share_above.interval, found.by_matching["step"].interval) == (expected, expected)


def test_a_scaled_oracle_moves_the_plain_share_alone() -> None:
    oracle = {"haf/checkpoint-1": [1.0, 2, 0], "dpo/checkpoint-1": [0.0, 1, 0.2]}
    own = {(1, "haf/checkpoint-1"): [2.0, 4.0, 1.0], (1, "dpo/checkpoint-1"): [0.0, 2.0, 0.0]}
    plain = consistency(two_points()[:1], oracle, own)
    larger = {name: [10.0 * (value or 0) for value in rewards] for name, rewards in oracle.items()}
    scaled = consistency(two_points()[:1], larger, own)
    assert (plain.share_above.value, scaled.share_above.value) == (1, 0)
    assert plain.share_above_scaled == scaled.share_above_scaled


def test_no_common_prompt_is_an_error() -> None:
    oracle = {"haf/checkpoint-1": [1.0, None], "dpo/checkpoint-1": [None, 1.0]}
    own = {(1, name): [1.0, 1.0] for name in oracle}
    with pytest.raises(DataError, match="No prompt"):
        consistency(two_points()[:1], oracle, own)


PROMPTS = [Prompt.of(text) for text in ("a", "why is it so", "b" * 20)]


def test_sampling_is_seeded_and_leaves_the_programs_numbers_alone() -> None:
    model, tokenizer = tiny_lm(), tiny_tokenizer()
    state = torch.get_rng_state()
    one = generate_responses(model, tokenizer, PROMPTS, SampleOptions(max_new_tokens=8))
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(99)
    assert generate_responses(model, tokenizer, PROMPTS, SampleOptions(max_new_tokens=8)) == one
    assert generate_responses(model, tokenizer, PROMPTS, SampleOptions(max_new_tokens=8, seed=1)) != one
    assert len(one) == 3


def test_a_tiny_nucleus_is_greedy_whatever_the_padding() -> None:
    model, tokenizer = tiny_lm(), tiny_tokenizer()
    together = generate_responses(model, tokenizer, PROMPTS, SampleOptions(max_new_tokens=6, top_p=1e-6))
    alone = generate_responses(model, tokenizer, PROMPTS, SampleOptions(max_new_tokens=6, top_p=1e-6, batch_size=1))
    assert together == alone


def test_prompts_must_leave_room() -> None:
    kept = prompts_that_fit(PROMPTS, tiny_tokenizer(), SampleOptions(max_new_tokens=8), 40)
    assert kept == PROMPTS[:2]
    with pytest.raises(ConfigError, match="top_p"):
        SampleOptions(top_p=0)
    for temperature in (0.0, math.inf, math.nan):
        with pytest.raises(ConfigError, match="temperature must be"):
            SampleOptions(temperature=temperature)


def test_what_was_computed_is_remembered_until_it_depends_on_something_else(tmp_path: Path) -> None:
    calls = []

    def compute() -> int:
        calls.append(1)
        return len(calls)

    assert [remembered(tmp_path, "n", {"a": a}, compute) for a in (1, 1, 2)] == [1, 1, 2]
    for path in tmp_path.iterdir():
        path.write_text(path.read_text()[:-9])
    assert remembered(tmp_path, "n", {"a": 1}, compute) == 3
