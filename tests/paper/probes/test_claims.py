"""Fitted heads compared with autograd, and cases in which the inequality of Appendix D must hold or fail."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
import torch
from pydantic import TypeAdapter
from scipy import stats
from torch import Tensor, nn

from hafrm.encoding import TokenGroup
from hafrm.logprobs import LogitTransform
from hafrm.models.hybrid import HybridModel
from hafrm.models.layout import choose_layout
from hafrm.packing import pad_rows
from hafrm.paper.probes.heads import (
    FitOptions,
    FrozenStates,
    PolicyHead,
    fit_policy_head,
    freeze_states,
    head_losses,
)
from hafrm.paper.probes.inequality import (
    ClaimSide,
    Seed,
    claim_of_seed,
    effective_rank,
    representation_change,
    summarise_claim,
)
from tests.tiny import tiny_lm

PAIRS, HIDDEN, VOCABULARY = 24, 6, 5
GROUPS = [f"g{i // 2}" for i in range(PAIRS)]


def side(states: Tensor, targets: Tensor) -> FrozenStates:
    return FrozenStates(states, targets, torch.ones(2 * PAIRS, dtype=torch.long), LogitTransform())


def one_token_pairs(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of one-token responses whose state shows whether token 0 or token 1 is better.

    A tenth of the labels are wrong, so that no head can drive the loss to 0.
    """
    generator = torch.Generator().manual_seed(seed)
    better = torch.randint(2, (PAIRS,), generator=generator)
    wrong = torch.arange(PAIRS) % 10 == 0
    chosen = torch.where(wrong, 1 - better, better)
    targets = torch.stack([chosen, 1 - chosen], dim=1).flatten()
    informed = torch.nn.functional.one_hot(better, HIDDEN).float().repeat_interleave(2, dim=0)
    return informed, torch.ones(2 * PAIRS, HIDDEN), targets


def measured(hybrid: Tensor, baseline: Tensor, targets: Tensor, head: PolicyHead) -> Seed:
    claim_side = ClaimSide(side(hybrid, targets), side(baseline, targets), torch.zeros(PAIRS, 2), GROUPS)
    heads = {"hybrid": head, "baseline": PolicyHead(torch.zeros(VOCABULARY, HIDDEN))}
    return claim_of_seed(
        "seed", claim_side, claim_side, heads, policy_loss="dpo", beta=0.5, options=FitOptions(max_steps=200)
    )


def good_head() -> PolicyHead:
    weight = torch.zeros(VOCABULARY, HIDDEN)
    weight[0, 0] = weight[1, 1] = 3.0
    return PolicyHead(weight)


def test_the_claim_holds_where_only_the_hybrids_states_know_the_answer() -> None:
    informed, blind, targets = one_token_pairs(0)
    seed = measured(informed, blind, targets, good_head())
    assert seed.train.holds
    assert seed.train.difference.difference < -0.1
    assert seed.train.difference.interval.high < 0
    assert seed.train.refitted <= seed.train.hybrid + 1e-6
    assert seed.fit_baseline.converged


def test_the_claim_fails_where_the_backbones_are_equal_and_the_hybrids_head_is_not_the_best() -> None:
    informed, _, targets = one_token_pairs(1)
    seed = measured(informed, informed, targets, PolicyHead(torch.randn(VOCABULARY, HIDDEN)))
    assert not seed.train.holds
    assert seed.train.difference.difference > 0.01
    assert seed.train.refitted == pytest.approx(seed.train.fitted, abs=1e-5)


def test_a_fit_finds_the_minimum_that_is_known() -> None:
    """Blind states: with chosen = token 0 in a share p of pairs, the best margin is logit(p) / beta."""
    blind = torch.ones(2 * PAIRS, HIDDEN)
    first = torch.arange(PAIRS) % 4 != 0  # p = 3/4
    chosen = torch.where(first, 0, 1)
    targets = torch.stack([chosen, 1 - chosen], dim=1).flatten()
    start = PolicyHead(torch.zeros(VOCABULARY, HIDDEN))
    options = FitOptions(tolerance=1e-4)
    _, fit = fit_policy_head(
        side(blind, targets), {"zero": start}, torch.zeros(PAIRS, 2), policy_loss="dpo", beta=0.5, options=options
    )
    entropy = -(0.75 * torch.tensor(0.75).log() + 0.25 * torch.tensor(0.25).log()).item()
    assert fit.loss == pytest.approx(entropy, abs=1e-4)
    assert fit.converged
    assert fit.gradient_norm < 1e-3
    assert fit.start_losses["zero"] == pytest.approx(0.6931, abs=1e-4)
    assert fit.steps > 0


def test_a_stopped_fit_says_so() -> None:
    informed, _, targets = one_token_pairs(2)
    options = FitOptions(max_steps=1, tolerance=1e-9)
    start = {"start": PolicyHead(torch.randn(VOCABULARY, HIDDEN))}
    _, fit = fit_policy_head(
        side(informed, targets), start, torch.zeros(PAIRS, 2), policy_loss="dpo", beta=0.5, options=options
    )
    assert not fit.converged
    assert fit.gradient_max > 1e-9


@pytest.mark.parametrize("choice", ["auto", "padded"])
def test_frozen_states_under_the_own_head_give_the_models_log_probs(choice: str) -> None:
    model = HybridModel(tiny_lm(), nn.Linear(32, 1, bias=False))
    groups = [
        TokenGroup(tuple(range(10, 14 + i)), (tuple(range(20, 23 + i)), tuple(range(30, 35 - i)))) for i in range(4)
    ]
    with torch.no_grad():
        log_probs = model(pad_rows(groups, pad_token_id=3), rewards=False).log_probs.view(-1, 2)
    layout = choose_layout(model, 3, max_length=64, choice=choice)  # type: ignore[arg-type]
    frozen = freeze_states(model, groups, layout, tokens=20, sequences=4)
    reference = torch.randn(4, 2)
    found = head_losses(frozen, PolicyHead.of(model), reference, policy_loss="dpo", beta=0.1)
    margin = (log_probs - reference)[:, 0] - (log_probs - reference)[:, 1]
    torch.testing.assert_close(found, torch.nn.functional.softplus(-0.1 * margin), rtol=1e-4, atol=1e-5)


def test_seeds_are_summed_up_and_kept_whole() -> None:
    informed, blind, targets = one_token_pairs(0)
    seed = measured(informed, blind, targets, good_head())
    assert TypeAdapter(Seed).validate_python(json.loads(json.dumps(asdict(seed)))) == seed
    differences = [-0.3, 0.1, 0.25]
    seeds = [
        replace(seed, train=replace(train, difference=replace(train.difference, difference=each), holds=each <= 0))
        for train, each in zip([seed.train] * 3, differences, strict=True)
    ]
    claim = summarise_claim(seeds)
    assert (claim.train.differences, claim.train.holds, claim.held_out.holds) == (differences, 1, 3)
    assert claim.train.mean == pytest.approx(0.05 / 3)
    expected = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    assert claim.train.interval == pytest.approx((expected.low, expected.high))
    assert summarise_claim([seed]).train.interval is None
    assert asdict(claim)["seeds"][1]["train"]["holds"] is False


def test_change_and_rank_by_hand() -> None:
    start = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    found = representation_change(start + torch.tensor([[0.0, 5.0], [1.0, 0.0]]), start)
    assert found["relative_change"] == pytest.approx(0.75)  # 5 / 5 and 1 / 2
    assert found["effective_rank_start"] == pytest.approx(1)  # two points lie on a line
    corners = torch.tensor([[1.0, 1, 0], [1, -1, 0], [-1, 1, 0], [-1, -1, 0]])
    assert effective_rank(corners) == pytest.approx(2)
    assert effective_rank(torch.ones(4, 3)) == 0
    with pytest.raises(ValueError, match="one shape"):
        representation_change(start, start[:1])
