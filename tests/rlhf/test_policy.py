"""Draws and their measurements, compared with stock models; the reference must not change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from hafrm.encoding import TokenGroup
from hafrm.models.generating import stop_tokens
from hafrm.models.hybrid import HybridModel
from hafrm.models.layout import Layout, choose_layout
from hafrm.models.options import LoraOptions
from hafrm.models.starts import new_model
from hafrm.rlhf.options import SamplingOptions
from hafrm.rlhf.policy import Policy, sample_responses
from tests.tiny import save_tiny, tiny_lm, tiny_tokenizer

GROUPS = [
    TokenGroup((1, 40, 50, 60), ((70, 80, 2),)),
    TokenGroup((1, 41), ((90, 91, 92, 93, 2),)),
    TokenGroup((1, 42, 52), ((99,),)),
]
TOKENS = sum(len(group.responses[0]) for group in GROUPS)


def policy_of(folder: Path, *, rank: int = 0, packed: bool = True, name: str = "llama", **values: Any) -> Policy:
    tokenizer = tiny_tokenizer()
    model = new_model(str(save_tiny(folder, name)), tokenizer, lora=LoraOptions(rank=rank), head_init="normal", seed=1)
    pad = tokenizer.pad_token_id
    layout = choose_layout(model, pad, max_length=64) if packed else Layout(False, pad)
    return Policy(model, layout, **values)


def stock_log_probs(model: HybridModel, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Each response token's log-prob and its distribution's entropy, one sequence at a time, by the stock model."""
    log_probs, entropies = [], []
    with torch.no_grad():
        for group in GROUPS:
            (response,) = group.responses
            ids = torch.tensor([[*group.prompt, *response]])
            every = (model.causal_lm(input_ids=ids).logits[0] / temperature).log_softmax(-1)
            of_response = every[len(group.prompt) - 1 : -1]
            log_probs.append(of_response.gather(1, torch.tensor(response)[:, None])[:, 0])
            entropies.append(torch.distributions.Categorical(logits=of_response).entropy())
    return torch.cat(log_probs), torch.cat(entropies)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize(
    ("name", "packed"), [("llama", True), ("llama", False), ("gemma2", False), ("granite", False), ("gpt2", False)]
)
def test_tokens_are_measured_as_the_stock_model_has_them(
    name: str, packed: bool, temperature: float, tmp_path: Path
) -> None:
    """Whatever the layout and the batch neighbours, with soft caps and scales, at the temperature of sampling."""
    policy = policy_of(tmp_path, name=name, packed=packed, temperature=temperature, tokens_per_batch=16)
    found = policy.measure(GROUPS)
    log_probs, entropies = stock_log_probs(policy.model, temperature)
    torch.testing.assert_close(found.log_probs, log_probs, atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(found.entropies, entropies, atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(found.reference, found.log_probs)


def test_a_value_is_of_the_state_before_its_token(tmp_path: Path) -> None:
    """The value must not depend on the token whose value it predicts."""
    policy = policy_of(tmp_path)
    values = policy.measure(GROUPS[:1]).values
    (batch,) = [batch for _, batch in policy.batches(GROUPS[:1])]
    states = policy.model.hidden_states(batch)
    torch.testing.assert_close(values, (states @ policy.model.score.weight.T).squeeze(1)[3:6].detach())
    other = TokenGroup(GROUPS[0].prompt, ((70, 80, 111),))
    torch.testing.assert_close(policy.measure([other]).values, values)


@pytest.mark.parametrize("rank", [0, 4])
def test_the_reference_stays_while_the_policy_moves(rank: int, tmp_path: Path) -> None:
    policy = policy_of(tmp_path, rank=rank)
    before = policy.measure(GROUPS)
    optimizer = torch.optim.SGD([p for p in policy.model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(2):  # the first step only changes one half of an adapter
        ((_, batch),) = list(policy.batches(GROUPS))
        log_probs, values = policy.log_probs_and_values(batch)
        optimizer.zero_grad()
        (log_probs.mean() + values.mean()).backward()
        optimizer.step()
    after = policy.measure(GROUPS)
    torch.testing.assert_close(after.reference, before.reference)
    assert (after.log_probs - before.log_probs).abs().max() > 1e-3
    assert (after.values - before.values).abs().max() > 1e-3


def test_responses_are_drawn_from_the_distribution_that_is_measured() -> None:
    """First tokens of many draws follow the stock probabilities, at a temperature and with top-p."""
    model, tokenizer = tiny_lm(), tiny_tokenizer()
    prompt, draws = (1, 40, 50), 4000
    for sampling in (SamplingOptions(max_new_tokens=1, top_p=1.0, temperature=0.1), SamplingOptions(max_new_tokens=1)):
        torch.manual_seed(0)
        responses = sample_responses(model, tokenizer, [prompt] * draws, sampling)
        counts = torch.bincount(torch.tensor([r.ids[0] for r in responses]), minlength=260) / draws
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt])).logits[0, -1]
        plain, probabilities = logits.softmax(-1), (logits / sampling.temperature).softmax(-1)
        ordered, places = probabilities.sort(descending=True)
        kept = places[ordered.cumsum(0) - ordered < sampling.top_p]
        expected = torch.zeros(260).index_copy(0, kept, probabilities[kept] / probabilities[kept].sum())
        assert (counts - expected).abs().max() < 0.03
        if sampling.temperature < 1:
            assert (counts - plain).abs().max() > 0.1
        assert counts[expected == 0].sum() == 0


def test_a_models_own_habits_do_not_shape_what_is_drawn() -> None:
    """Top-k 1 or min-p 1 from a generation config would make all draws equal."""
    model, tokenizer = tiny_lm(), tiny_tokenizer()
    model.generation_config = GenerationConfig(top_k=1, min_p=1.0, do_sample=True, eos_token_id=[2, 77])
    torch.manual_seed(0)
    responses = sample_responses(model, tokenizer, [(1, 40)] * 200, SamplingOptions(max_new_tokens=1, top_p=1.0))
    assert len({response.ids for response in responses}) > 2
    assert model.generation_config.top_k == 1
    assert stop_tokens(model, tokenizer) == [2, 77]


def test_neighbours_and_padding_do_not_change_a_greedy_answer() -> None:
    model, tokenizer = tiny_lm("gpt2"), tiny_tokenizer()
    greedy = SamplingOptions(max_new_tokens=6, top_p=1e-9)
    prompts = [(1, 40), (1, 41, 51, 61, 71), (1, 42, 52)]
    together = sample_responses(model, tokenizer, prompts, greedy)
    assert together == [sample_responses(model, tokenizer, [prompt], greedy)[0] for prompt in prompts]


def test_a_response_ends_behind_its_first_end() -> None:
    """A model that ends at once, and one that never does."""
    model, tokenizer = tiny_lm(tie_word_embeddings=False), tiny_tokenizer()
    with torch.no_grad():
        model.lm_head.weight.zero_()
    hidden = model.get_output_embeddings()
    bias = torch.zeros(260)
    hidden.bias = torch.nn.Parameter(bias.index_fill(0, torch.tensor([2]), 1e4))
    (ended,) = sample_responses(model, tokenizer, [(1, 40)], SamplingOptions(max_new_tokens=5))
    assert (ended.ids, ended.text, ended.ended) == ((2,), "", True)
    letter = tokenizer.convert_tokens_to_ids("a")
    hidden.bias = torch.nn.Parameter(bias.index_fill(0, torch.tensor([letter]), 1e4))
    (cut,) = sample_responses(model, tokenizer, [(1, 40)], SamplingOptions(max_new_tokens=5))
    assert (cut.ids, cut.text, cut.ended) == ((letter,) * 5, "aaaaa", False)
