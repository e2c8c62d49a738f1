"""Reward heads drawn from a posterior: its Hessian by autograd, the draws' moments, and runs that have them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import logsigmoid

from hafrm.errors import ConfigError
from hafrm.models.layout import Layout, choose_layout
from hafrm.models.loading import load_scorer
from hafrm.models.options import LoraOptions, ScoreOptions
from hafrm.packing import pad_rows
from hafrm.training import laplace
from hafrm.training.batches import PairCollator, PairDataset
from hafrm.training.last_layer import laplace_heads, posterior, posterior_draws
from hafrm.training.loss import LossConfig
from hafrm.training.objective import Objective
from hafrm.training.run import train
from tests.models.test_packed_model import MAX_LENGTH, hybrid, random_group
from tests.models.test_several_heads import TALKS, config
from tests.tiny import pair, tables_of

GROUPS = [random_group(size, 3 + size % 4, 6) for size in range(2, 9)]


@pytest.mark.parametrize("packed", [True, False])
def test_the_precision_is_the_hessian_of_loss_and_prior(packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(laplace, "_PAIRS", 3)  # not all at a time
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
