"""Both heads against the stock models, which are the oracle."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from hafrm.encoding import TokenGroup
from hafrm.errors import ModelError
from hafrm.models.hybrid import HybridModel, new_reward_head
from hafrm.packing import pad_rows
from tests.tiny import ARCHITECTURES, tiny_lm

GROUPS = [
    TokenGroup((1, 10, 11, 12), ((20, 21, 22, 2), (30, 2))),
    TokenGroup((1, 40, 41, 42, 43, 44, 45), ((50, 51, 2), (60, 61, 62, 63, 64, 2))),
    TokenGroup((1,), ((70, 2), (80, 81, 82, 83, 84, 85, 86, 87, 88, 2))),
]


def hybrid(name: str, **kwargs) -> HybridModel:
    lm = tiny_lm(name, **kwargs)
    return HybridModel(lm, new_reward_head(lm.config.hidden_size, init="normal", seed=1, dtype=lm.dtype)).eval()


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_log_probs_are_the_stock_models(name: str, side: str) -> None:
    """The stock causal LM, run on single sequences, gives the log-probs of the padded batch."""
    # Stock eager attention takes its softmax in float32, where a float64 mask overflows on rows of left padding alone.
    exact = name != "gemma2"
    model = hybrid(name, dtype=torch.float64 if exact else torch.float32)
    with torch.no_grad():
        ours = model(pad_rows(GROUPS, pad_token_id=3, padding_side=side)).log_probs
        stock = []
        for group in GROUPS:
            for response in group.responses:
                ids = torch.tensor([group.prompt + response])
                log_probs = model.stock_lm(input_ids=ids).logits[0].log_softmax(-1)
                steps = range(len(group.prompt) - 1, ids.shape[1] - 1)
                stock.append(sum(log_probs[t, ids[0, t + 1]] for t in steps))
    tolerance = 1e-6 if name == "gpt_neox" else 1e-9  # GPT-NeoX's softmax is in float32 too
    tolerance = tolerance if exact else 1e-4
    torch.testing.assert_close(ours, torch.stack(stock), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", sorted({*ARCHITECTURES} - {"cohere", "granite"}))  # these two have no stock classifier
def test_rewards_are_the_stock_classifiers(name: str, side: str) -> None:
    """The stock sequence classifier with the same weights gives the same rewards."""
    model = hybrid(name)
    config = model.config
    config.num_labels, config.problem_type = 1, "regression"
    stock = AutoModelForSequenceClassification.from_config(config).eval()
    missing, unexpected = stock.load_state_dict(
        {**model.stock_lm.state_dict(), "score.weight": model.score.weight}, strict=False
    )
    assert not missing, missing
    assert all("lm_head" in key or "embed_out" in key for key in unexpected)
    batch = pad_rows(GROUPS, pad_token_id=3, padding_side=side)
    with torch.no_grad():
        ours = model(batch).rewards
        alone = [
            stock(input_ids=torch.tensor([group.prompt + response])).logits[0, 0]
            for group in GROUPS
            for response in group.responses
        ]
    torch.testing.assert_close(ours, torch.stack(alone), rtol=1e-5, atol=1e-5)


def test_chosen_stands_before_rejected() -> None:
    """Sequences keep the order of their groups and responses."""
    model = hybrid("llama")
    with torch.no_grad():
        together = model(pad_rows(GROUPS, pad_token_id=3)).rewards.view(-1, 2)
        for group, both in zip(GROUPS, together, strict=True):
            alone = model(pad_rows([TokenGroup(group.prompt, group.responses[1:])], pad_token_id=3)).rewards
            torch.testing.assert_close(both[1:], alone)


def test_a_head_that_is_not_asked_for_is_not_computed() -> None:
    batch = pad_rows(GROUPS, pad_token_id=3)
    scores = hybrid("llama")(batch, rewards=False, log_probs=False)
    assert scores.rewards is None
    assert scores.log_probs is None


@pytest.mark.parametrize("name", ["gemma2", "cohere", "granite", "phi"])
def test_the_probe_accepts_what_the_config_tells(name: str) -> None:
    hybrid(name).check_policy_head(pad_rows(GROUPS[:1], pad_token_id=3))


def test_the_probe_refuses_unknown_logits() -> None:
    """A model that computes its logits differently must not be trained with a policy loss silently."""
    model = hybrid("llama")
    forward = model.stock_lm.forward

    def louder(*args, **kwargs):
        output = forward(*args, **kwargs)
        output.logits = output.logits * 3
        return output

    model.stock_lm.forward = louder
    with pytest.raises(ModelError, match="--method baseline"):
        model.check_policy_head(pad_rows(GROUPS, pad_token_id=3))


@pytest.mark.parametrize(("change", "refused"), [("one rounding", False), ("a scale", True)])
def test_the_probe_forgives_one_rounding_in_half_precision(change: str, refused: bool) -> None:
    """Two kernels may round a large logit to adjacent values, 0.125 apart; an unknown scale is still an error."""
    model = hybrid("llama")
    with torch.no_grad():
        model.stock_lm.lm_head.weight *= 2
    model.to(torch.bfloat16)
    forward = model.stock_lm.forward

    def otherwise(*args, **kwargs):
        output = forward(*args, **kwargs)
        if change == "a scale":
            output.logits = output.logits / 2
        else:
            output.logits[0, 3, 20] += 0.125  # where the first response's first token is predicted
        return output

    model.stock_lm.forward = otherwise
    with pytest.raises(ModelError) if refused else nullcontext():
        model.check_policy_head(pad_rows(GROUPS, pad_token_id=3))


def test_unused_heads_are_frozen_but_tied_embeddings_are_not() -> None:
    baseline = hybrid("llama")
    baseline.freeze_unused(rewards=True, log_probs=False)
    assert not baseline.policy_head.weight.requires_grad
    assert baseline.score.weight.requires_grad
    tied = hybrid("qwen2")
    tied.freeze_unused(rewards=False, log_probs=False)
    assert tied.policy_head.weight.requires_grad
    assert not tied.score.weight.requires_grad


def test_reward_head_init_rules() -> None:
    config = tiny_lm().config
    normal = new_reward_head(config.hidden_size, init="normal", seed=0, dtype=torch.float32)
    again = new_reward_head(config.hidden_size, init="normal", seed=0, dtype=torch.float32)
    other = new_reward_head(config.hidden_size, init="normal", seed=1, dtype=torch.float32)
    assert torch.equal(normal.weight, again.weight)
    assert not torch.equal(normal.weight, other.weight)
    assert normal.weight.shape == (1, 32)
    assert normal.weight.std().item() == pytest.approx(33**-0.5, rel=0.4)
    assert normal.bias is None
    assert not new_reward_head(config.hidden_size, init="zero", seed=0, dtype=torch.float32).weight.any()


def test_gradients_reach_both_heads_and_the_backbone() -> None:
    model = hybrid("llama").train()
    scores = model(pad_rows(GROUPS, pad_token_id=3))
    (scores.rewards.sum() + scores.log_probs.sum()).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


def test_gradient_checkpointing_changes_nothing() -> None:
    gradients = []
    for checkpointing in (False, True):
        model = hybrid("llama", dtype=torch.float64).train()
        if checkpointing:
            model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        scores = model(pad_rows(GROUPS, pad_token_id=3))
        (scores.rewards.sum() + scores.log_probs.sum()).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)
