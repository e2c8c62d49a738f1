"""Model cards say what the numbers mean under the training loss."""

from __future__ import annotations

from pathlib import Path

import pytest

from hafrm.losses import POLICY_LOSSES, REWARD_LOSSES, uses_reference
from hafrm.models.export import policy_card, reward_card
from tests.models.test_checkpoints import info

MEANINGS = {"bradley_terry": "sigma(r1 - r2) is", "probit": "Phi(r1 - r2)", "cauchy": "1/2 + atan(r1 - r2) / pi"}


@pytest.mark.parametrize("loss", REWARD_LOSSES)
def test_a_difference_is_a_probability_by_its_loss(loss: str) -> None:
    card = reward_card(info(Path("/models/base"), reward_loss=loss), {})
    assert f"1.0 * {loss} + 0.2 * dpo (beta 0.1)" in card
    for name, words in MEANINGS.items():
        assert (words in card) == (name == loss)
    assert ("no probability" in card) == (loss == "hinge")


@pytest.mark.parametrize("loss", POLICY_LOSSES)
def test_an_implicit_reward_is_what_its_loss_rewards(loss: str) -> None:
    card = policy_card(info(Path("/models/base"), policy_loss=loss), {})
    assert ("0.1 * log(pi(y | x) / pi_ref(y | x))" in card) == uses_reference(loss)
    assert ("0.1 * log(pi(y | x)) / |y|" in card) == (not uses_reference(loss))


def test_a_card_names_the_losses_that_were_trained() -> None:
    base = Path("/models/base")
    assert "| loss | 1.0 * bradley_terry |" in reward_card(info(base, policy_ratio=0.0), {})
    assert "| loss | 1.0 * dpo (beta 0.1) |" in policy_card(info(base, reward_weight=0.0, policy_ratio=1.0), {})


def test_a_card_says_which_head_no_loss_trained() -> None:
    base = Path("/models/base")
    both = reward_card(info(base), {})
    assert "not trained" not in both
    assert "policy head was not trained" in reward_card(info(base, policy_ratio=0.0), {})
    assert "reward head was not trained" in policy_card(info(base, reward_weight=0.0, policy_ratio=1.0), {})
