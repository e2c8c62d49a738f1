"""The objective in training, with packed rows and foresight, equals the stock model's full logits in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hafrm.encoding import TokenGroup
from hafrm.losses import PairLogProbs, bradley_terry_loss, dpo_loss, hybrid_loss
from hafrm.models.hybrid import HybridModel
from hafrm.models.layout import Layout, choose_layout
from hafrm.models.lora import add_lora
from hafrm.models.options import LoraOptions
from hafrm.packing import SequenceBatch, pad_rows
from hafrm.training.batches import PairCollator, PairItem
from hafrm.training.loss import LossConfig
from hafrm.training.objective import Objective
from tests.models.test_packed_model import MAX_LENGTH, Float64Throughout, assert_same, hybrid, random_group

_RANKED = random_group(11, 6, 3, 8)
"""A prompt with three responses, all of whose pairs are in the batch, but not next to each other."""


def _ranked(better: int, worse: int) -> TokenGroup:
    return TokenGroup(_RANKED.prompt, (_RANKED.responses[better], _RANKED.responses[worse]))


GROUPS = [
    *(random_group(12, 5, 9), _ranked(0, 1), random_group(1, 3, 1), _ranked(2, 1)),
    *(random_group(7, 14, 2), random_group(30, 4, 6), _ranked(2, 0)),
]
REFERENCE = [(-8.0, -9.5), (-5.0, -6.5), (-9.0, -8.5), (-4.0, -6.5), (-10.0, -7.5), (-11.0, -6.5), (-4.0, -5.0)]

Found = tuple[Tensor, dict[str, Tensor]]


def gradients(model: HybridModel, loss: Tensor) -> Found:
    model.zero_grad()
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def consistency(rewards: Tensor, tokens: Tensor, lengths: list[int]) -> Tensor:
    """Sum the consistency loss over pairs, token by token, from rewards and log-probs of two responses per pair."""
    by_response = list(zip(rewards.split(lengths), tokens.split(lengths), strict=True))
    total = rewards.new_zeros(())
    for pair in zip(by_response[0::2], by_response[1::2], strict=True):
        for sign, (own, log_probs), (rival, _) in ((1, *pair), (-1, *pair[::-1])):
            right = torch.sigmoid(sign * (own - rival.detach().mean()))
            weights = log_probs.detach().exp()[1:]
            for t, weight in enumerate(weights):
                one, other = right[t], right[t + 1]
                loss = -(other.detach() * one.log() + one.detach() * other.log()) / 2
                total = total + weight / weights.sum() * loss / 2
    return total


def stock(model: HybridModel, weight: float = 0.0) -> Found:
    """Eq. 5 by definition, and the consistency loss: one padded row per sequence, with the stock model's logits."""
    batch: SequenceBatch = pad_rows(GROUPS, pad_token_id=3)
    output = model.stock_lm(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        position_ids=batch.position_ids,
        output_hidden_states=True,
        use_cache=False,
    )
    tokens = output.logits.flatten(0, 1)[batch.predictor_index].log_softmax(-1).gather(1, batch.target_ids[:, None])
    log_probs = torch.zeros(2 * len(GROUPS), dtype=torch.float64).index_add(0, batch.sequence_index, tokens[:, 0])
    rewards = model.score(output.hidden_states[-1].flatten(0, 1)[batch.score_index])[:, 0]
    reference = torch.tensor(REFERENCE, dtype=torch.float64)
    lengths = batch.response_lengths
    pairs = PairLogProbs(log_probs[0::2], log_probs[1::2], *reference.unbind(1), lengths[0::2], lengths[1::2])
    loss = hybrid_loss(bradley_terry_loss(rewards[0::2], rewards[1::2]), dpo_loss(pairs))
    states = output.hidden_states[-1].flatten(0, 1)
    ends = torch.tensor(batch.lengths).cumsum(0) - 1
    read = batch.predictor_index + 1  # the state of the token itself: a padded row is in order
    assert read[ends].tolist() == batch.score_index.tolist()
    found = consistency(model.score(states[read])[:, 0], tokens[:, 0], list(batch.lengths))
    return gradients(model, loss.mean() + weight * found / len(GROUPS))


def trained(model: HybridModel, layout: Layout, tokens_per_batch: int, weight: float = 0.0) -> Found:
    """Compute the same as the trainer does, part by part."""
    objective = Objective(LossConfig(consistency_weight=weight))
    items = [PairItem(i, group, 0.0, REFERENCE[i]) for i, group in enumerate(GROUPS)]
    parts = PairCollator(layout, tokens_per_batch)(items).parts
    return gradients(model, sum(objective.pair_losses(model, part).loss.sum() for part in parts) / len(GROUPS))


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "phi", "gemma2", "gpt2", "gpt_neox"])
def test_loss_and_every_gradient_are_those_of_the_definition(name: str) -> None:
    model = hybrid(name)
    with Float64Throughout():
        truth = stock(model)
    layout = choose_layout(model, 3, max_length=MAX_LENGTH)
    assert layout.packed
    with Float64Throughout():
        for tokens_per_batch in (30, 1000):  # about one pair per part; all in one row
            assert_same(trained(model, layout, tokens_per_batch), truth, 1e-10)


@pytest.mark.parametrize(("name", "packed"), [("llama", True), ("qwen2", True), ("gemma2", True), ("llama", False)])
def test_the_consistency_loss_is_that_of_the_definition(name: str, packed: bool) -> None:
    """Responses of one token to fourteen, some in several pairs, packed once or padded on either side."""
    model = hybrid(name)
    with Float64Throughout():
        truth = stock(model, 0.7)
        assert truth[0] > stock(model)[0] + 0.1
    layouts = [choose_layout(model, 3, max_length=MAX_LENGTH)]
    assert layouts[0].packed
    if not packed:
        layouts = [Layout(False, 3, side) for side in ("left", "right")]
    with Float64Throughout():
        for layout in layouts:
            for tokens_per_batch in (30, 1000):
                assert_same(trained(model, layout, tokens_per_batch, 0.7), truth, 1e-10)


def test_adapters_learn_from_the_consistency_loss() -> None:
    model = hybrid("llama")
    adapted = HybridModel(add_lora(model.stock_lm, LoraOptions(rank=4)), model.score)
    for parameter in (p for name, p in adapted.named_parameters() if ".lora_B." in name):
        torch.nn.init.normal_(parameter, std=0.1)
    adapted.to(torch.float64)
    layout = choose_layout(adapted, 3, max_length=MAX_LENGTH)
    with Float64Throughout():
        truth = stock(adapted, 0.7)
        found = trained(adapted, layout, 1000, 0.7)
        without = trained(adapted, layout, 1000)
    assert_same(found, truth, 1e-10)
    assert all(not torch.allclose(found[1][name], slope) for name, slope in without[1].items())


def test_a_response_of_several_pairs_is_laid_out_once() -> None:
    (batch,) = PairCollator(Layout(True, 3), 1000)(
        [PairItem(i, group, 0.0, REFERENCE[i]) for i, group in enumerate(GROUPS)]
    ).parts
    assert batch.sequences.num_sequences == 2 * 4 + 3
    assert batch.sequences.input_ids.numel() == sum(group.unique_tokens for group in GROUPS) - 2 * 11 - 6 - 3 - 8
    assert batch.units == ((2, 1), (3, 3), (2, 1), (2, 1), (2, 1))
    assert batch.reference is not None
    found = torch.stack([batch.reference[batch.chosen], batch.reference[batch.rejected]], dim=1)
    assert found.tolist() == [list(REFERENCE[row]) for row in batch.rows.tolist()]
