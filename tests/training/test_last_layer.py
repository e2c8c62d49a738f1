"""Reward heads drawn from a posterior: its Hessian by autograd, the draws' moments, and runs that have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from torch.nn.functional import logsigmoid
from transformers import TrainerCallback, TrainerState

from hafrm.errors import ConfigError
from hafrm.models.hybrid import HybridModel
from hafrm.models.layout import Layout, choose_layout
from hafrm.models.loading import load_scorer
from hafrm.models.options import LoraOptions, ScoreOptions
from hafrm.packing import pad_rows
from hafrm.training import last_layer
from hafrm.training.batches import PairCollator, PairDataset
from hafrm.training.last_layer import fit_head, laplace_heads, posterior, posterior_draws
from hafrm.training.loss import LossConfig
from hafrm.training.objective import Objective
from hafrm.training.run import train
from tests.models.test_packed_model import MAX_LENGTH, hybrid, random_group
from tests.models.test_several_heads import TALKS, config
from tests.tiny import pair, tables_of

GROUPS = [random_group(size, 3 + size % 4, 6) for size in range(2, 9)]


@pytest.mark.parametrize("packed", [True, False])
def test_the_precision_is_the_hessian_of_loss_and_prior(packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(last_layer, "_PAIRS", 3)  # not all at a time
    model = hybrid("llama")
    layout = choose_layout(model, 3, max_length=MAX_LENGTH) if packed else Layout(False, 3)
    tables = tables_of([pair(f"{i}", "a", "b", row=i + 1) for i in range(len(GROUPS))], GROUPS)
    tables.pairs["margin"][:] = torch.linspace(0, 1, len(GROUPS)).numpy()
    rows = [5, 0, 3, 1]
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
    precision, level = posterior(model, Objective(LossConfig(), 0.5), tables, rows, PairCollator(layout, 40))
    assert model.training

    model.eval()
    batch = pad_rows([GROUPS[row] for row in rows], pad_token_id=3)
    output = model.stock_lm(batch.input_ids, attention_mask=batch.attention_mask, output_hidden_states=True)
    states = output.hidden_states[-1].detach().flatten(0, 1)[batch.score_index]
    chosen, rejected = torch.tensor(batch.lengths, dtype=torch.float64).log().view(-1, 2).unbind(1)
    margins = torch.tensor([PairDataset(tables)[row].margin for row in rows]) - 0.5 * (chosen - rejected)

    def negative_log_posterior(weight: torch.Tensor) -> torch.Tensor:
        gaps = (states[0::2] - states[1::2]) @ weight - margins
        return -logsigmoid(gaps).sum() + weight.square().sum() * (len(weight) + 1) / 2

    weight = model.score.weight.detach()[0]
    hessian = torch.autograd.functional.hessian(negative_log_posterior, weight)
    torch.testing.assert_close(precision, hessian, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(level, states.sum(0), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("packed", [True, False])
def test_a_fitted_head_is_the_best_on_a_fifth_of_the_prompts(packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scikit-learn's logistic regression on the stock model's states gives the same weights for a penalty of the grid,
    and no other penalty has a lower loss on the held-out pairs.
    """
    monkeypatch.setattr(last_layer, "_PAIRS", 7)
    groups = [random_group(100 + size, 2 + size % 5, 3 + size % 4) for size in range(40)]
    model = hybrid("llama")
    layout = choose_layout(model, 3, max_length=MAX_LENGTH) if packed else Layout(False, 3)
    tables = tables_of([pair(f"{i}", "a", "b", row=i + 1) for i in range(len(groups))], groups)
    fit_head(model, tables, range(len(groups)), PairCollator(layout, 60))
    found = model.score.weight.detach()[0].numpy()

    batch = pad_rows(groups, pad_token_id=3)
    output = model.eval().stock_lm(batch.input_ids, attention_mask=batch.attention_mask, output_hidden_states=True)
    states = output.hidden_states[-1].detach().flatten(0, 1)[batch.score_index]
    x = (states[0::2] - states[1::2]).double().numpy()
    x, scale = x / x.std(axis=0), x.std(axis=0)

    def fitted(rows: np.ndarray, penalty: float) -> np.ndarray:
        both = np.concatenate([x[rows], -x[rows]])  # the pairs in both orders, so that there are two classes
        labels = np.repeat([1, 0], len(rows))
        regression = LogisticRegression(C=1 / (2 * penalty), fit_intercept=False, tol=1e-10, max_iter=10_000)
        return regression.fit(both, labels).coef_[0]

    held_out = np.arange(0, len(x), 5)
    rest = np.setdiff1d(np.arange(len(x)), held_out)
    margins = {10.0**power: x[held_out] @ fitted(rest, 10.0**power) for power in range(-1, 6)}
    best = min(margins, key=lambda penalty: np.logaddexp(0, -margins[penalty]).mean())
    np.testing.assert_allclose(
        found, fitted(np.arange(len(x)), best) / scale, rtol=2e-2, atol=1e-4 * np.abs(found).max()
    )


class Killed(TrainerCallback):
    def on_step_end(self, args: Any, state: TrainerState, control: Any, **others: Any) -> None:
        if state.global_step == 3:
            raise KeyboardInterrupt


@pytest.mark.parametrize("lora", [LoraOptions(), LoraOptions(rank=4)], ids=["full", "lora"])
def test_a_run_begins_with_the_fitted_head_and_resumes_without_fitting(
    lora: LoraOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a learning rate of 0, every head of the run is the one that was fitted."""
    fitted = []

    def fit(model: HybridModel, *args: Any) -> None:
        fit_head(model, *args)
        fitted.append(model.score.weight.detach().clone())

    monkeypatch.setattr("hafrm.training.run.fit_head", fit)
    still = {"max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 0.0, "use_cpu": True, "report_to": []}
    options = config(tmp_path, head_init="fit", training=still | {"save_steps": 2}, lora=lora)
    with pytest.raises(KeyboardInterrupt):
        train(options, callbacks=[Killed()])
    found = train(options)
    (weight,) = fitted
    assert weight.abs().amax(1).min() > 0
    torch.testing.assert_close(load_file(found.folder / "model.safetensors")["reward_heads.weight"], weight)
    assert json.loads((found.folder / "manifest.json").read_text())["reward_head"] == "fit"


def test_draws_have_the_posteriors_moments() -> None:
    """Conditioned on one direction: covariance C - C v v^T C / v^T C v, and exactly the mean."""
    generator = torch.Generator().manual_seed(0)
    half, level = (torch.randn(*size, generator=generator, dtype=torch.float64) for size in ((4, 4), (4,)))
    precision, weight = half @ half.T + torch.eye(4), torch.arange(4.0, dtype=torch.float64)
    draws = posterior_draws(weight, precision, level, count=40_000, seed=1)
    torch.testing.assert_close(draws.mean(0), weight)
    torch.testing.assert_close(draws @ level, (weight @ level).expand(len(draws)))
    covariance = precision.inverse()
    along = covariance @ level
    expected = covariance - along[:, None] * along / (along @ level)
    torch.testing.assert_close(draws.T.cov(), expected, rtol=0.05, atol=0.01)
    assert torch.equal(posterior_draws(weight, precision, level, count=40_000, seed=1), draws)


def test_heads_follow_from_a_seed_around_the_models_own() -> None:
    model = hybrid("llama", torch.float32)
    tables = tables_of([pair(f"{i}", "a", "b", row=i + 1) for i in range(len(GROUPS))], GROUPS)

    def drawn(seed: int) -> torch.Tensor:
        layout = PairCollator(Layout(False, 3), 40)
        return laplace_heads(model, Objective(LossConfig()), tables, range(7), layout, count=6, seed=seed).weight

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))
    assert drawn(1).dtype == torch.float32
    torch.testing.assert_close(drawn(1).mean(0), model.score.weight[0])


@pytest.mark.parametrize("rank", [0, 4])
def test_a_run_with_drawn_heads_is_the_run_with_one(rank: int, tmp_path: Path) -> None:
    """Rewards are unchanged, and every scoring command has standard errors."""
    lora = LoraOptions(rank=rank)
    plain = config(tmp_path, loss=LossConfig(), out=str(tmp_path / "plain"), lora=lora)
    drawn = config(tmp_path, loss=LossConfig(heads=32, heads_from="laplace"), lora=lora)
    for each in (plain, drawn):
        train(each)
    ours, theirs = (load_file(Path(each.out) / "model.safetensors") for each in (drawn, plain))
    heads = ours.pop("reward_heads.weight")
    assert heads.shape == (32, 32)
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight)
    rewards = load_scorer(plain.out).score(TALKS)
    assert load_scorer(drawn.out).score(TALKS) == pytest.approx(rewards, abs=1e-5)
    bounds = load_scorer(drawn.out, options=ScoreOptions(pessimism=1.0)).score(TALKS)
    assert all(bound < reward - 1e-4 for bound, reward in zip(bounds, rewards, strict=True))  # type: ignore[operator]


@pytest.mark.parametrize(
    "values", [{"heads": 5}, {"heads": 4, "reward_loss": "hinge"}, {"heads": 4, "reward_weight": 0.0}]
)
def test_heads_that_no_posterior_gives_are_refused(values: dict) -> None:
    with pytest.raises(ConfigError, match="heads"):
        LossConfig(heads_from="laplace", **values)
    with pytest.raises(ConfigError, match="heads_from"):
        LossConfig(heads_from="laplace")
