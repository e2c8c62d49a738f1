"""Continuations follow the given options only, not the model's own generation config."""

from __future__ import annotations

import pytest
import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from hafrm.models.generating import continuations, prompt_ids, stop_tokens
from hafrm.models.lora import add_lora
from hafrm.models.options import LoraOptions
from hafrm.pairs import Prompt
from tests.tiny import tiny_lm, tiny_tokenizer

PROMPTS = [(1, 40), (1, 41, 51, 61, 71)]


def greedy(model: torch.nn.Module) -> list[list[int]]:
    return continuations(model, tiny_tokenizer(), PROMPTS, do_sample=False, max_new_tokens=6).tolist()


class Broken(LogitsProcessor):
    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("broken")


def test_a_models_own_habits_do_not_shape_what_is_chosen() -> None:
    """A ban on repetition and on the likeliest token would show in greedy search as well."""
    model = tiny_lm()
    plain = greedy(model)
    habits = GenerationConfig(suppress_tokens=[plain[0][0]], repetition_penalty=9.0, no_repeat_ngram_size=1)
    model.generation_config = habits
    assert greedy(model) == plain
    assert model.generation_config is habits
    with pytest.raises(RuntimeError, match="broken"):
        continuations(model, tiny_tokenizer(), PROMPTS, processors=LogitsProcessorList([Broken()]), max_new_tokens=2)
    assert model.generation_config is habits


def test_adapters_answer_and_the_mode_stays() -> None:
    model = tiny_lm()
    plain = greedy(model)
    adapted = add_lora(model, LoraOptions(rank=4)).train()
    assert greedy(adapted) == plain  # adapters begin at zero
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=2.0)
    assert greedy(adapted) != plain
    assert adapted.training


def test_ends_are_the_tokenizers_and_the_models() -> None:
    model, tokenizer = tiny_lm(), tiny_tokenizer()
    model.generation_config = GenerationConfig(eos_token_id=[77, 2])
    assert stop_tokens(model, tokenizer) == [2, 77]
    model.generation_config = GenerationConfig(eos_token_id=78)
    assert stop_tokens(model, tokenizer) == [2, 78]


def test_a_response_ends_at_an_end_that_the_model_names() -> None:
    model, pad = tiny_lm(), tiny_tokenizer().pad_token_id
    first, *more = greedy(model)[0]
    assert more != [pad] * 5
    model.generation_config = GenerationConfig(eos_token_id=first)
    ended = greedy(model)[0]
    assert ended == [first] + [pad] * (len(ended) - 1)


def test_a_prompt_ends_where_the_answer_begins() -> None:
    tokenizer = tiny_tokenizer()
    ids = prompt_ids(tokenizer, Prompt.of("why"))
    whole = tokenizer.apply_chat_template(
        [{"role": "user", "content": "why"}, {"role": "assistant", "content": "so"}], return_dict=False
    )
    assert tuple(whole[: len(ids)]) == ids
    assert len(ids) < len(whole)
