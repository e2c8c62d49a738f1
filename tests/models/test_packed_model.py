"""Whole models on packed rows: loss and every gradient against the padded rows of the stock model, and the probe."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from benchmarks.tiny_configs import tiny_model
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from hafrm.encoding import TokenGroup
from hafrm.errors import ModelError
from hafrm.models.hybrid import HybridModel, new_reward_head
from hafrm.models.layout import choose_layout, probe_packing, probe_padding, random_groups
from hafrm.models.lora import add_lora
from hafrm.models.options import LoraOptions
from hafrm.packing import SequenceBatch, pack_rows, pad_rows

MAX_LENGTH = 64
"""Longer than the windows below, so that the probe must notice them."""

SIZES = {
    "vocab_size": 120,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
WINDOW = {"sliding_window": 8}
ALTERNATING = WINDOW | {"layer_types": ["sliding_attention", "full_attention"]}
GEMMA = ALTERNATING | {"head_dim": 8, "query_pre_attn_scalar": 8}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}

PACKABLE: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": WINDOW,
    "qwen2": {"tie_word_embeddings": True},
    "phi": {},
    "gemma2": GEMMA | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "gpt_neox": {},
    "cohere2": ALTERNATING,
    "gemma3_text": GEMMA,
    "glm": {"head_dim": 8},
    "gpt_oss": ALTERNATING | EXPERTS | {"head_dim": 8, "rope_parameters": {"rope_type": "default"}},
    "granite": {},
    "mixtral": EXPERTS,
    "olmo2": {},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.0},
    "phi3": WINDOW,
    "qwen3": {"head_dim": 8},
    "starcoder2": WINDOW,
}
"""Models whose packed rows are exact; windows, if any, are shorter than the sequences."""

UNPACKABLE: dict[str, dict[str, Any]] = {
    "mamba": {"state_size": 4},
    "jamba": {"mamba_d_state": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2},
    "bloom": {},
    "stablelm": {},
    "phimoe": EXPERTS | WINDOW,
}
"""Models that must fall back."""

REASONS = {
    "mamba": "its layers are not reached",  # no attention at all
    "jamba": "packed rows give different states",  # a state runs along the row
    "bloom": "its layers are not reached",  # attention of its own
    "stablelm": "its layers are not reached",  # decoder layers keep the call's arguments to themselves
    "phimoe": "a rule other than a sliding window",  # the window is in the mask alone
}


def random_tokens(generator: torch.Generator, length: int) -> tuple[int, ...]:
    return tuple(torch.randint(4, 120, (length,), generator=generator).tolist())


def random_group(prompt: int, *responses: int) -> TokenGroup:
    generator = torch.Generator().manual_seed(prompt)
    return TokenGroup(random_tokens(generator, prompt), tuple(random_tokens(generator, n) for n in responses))


GROUPS = [random_group(12, 5, 9), random_group(1, 3), random_group(7, 1, 14, 2, 6), random_group(30, 4, 4, 2)]
"""One to four responses, a prompt of one token, responses of one token."""


def hybrid(name: str, dtype: torch.dtype = torch.float64, **values: Any) -> HybridModel:
    """Create a random model of a real architecture, in training mode, with weights that distinguish texts."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, **(SIZES | (PACKABLE | UNPACKABLE)[name] | values))
    lm: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype, experts_implementation="eager")
    with torch.no_grad():
        for parameter in lm.parameters():
            noise = torch.randn_like(parameter)
            parameter.mul_(5) if parameter.dim() > 1 else parameter.add_(0.1 * noise)
    return HybridModel(lm, new_reward_head(config.hidden_size, init="normal", seed=1, dtype=dtype)).train()


def loss_and_gradients(model: HybridModel, batch: SequenceBatch) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute a loss that weighs both heads and every sequence differently, and all its gradients."""
    model.zero_grad()
    scores = model(batch)
    weight = torch.linspace(-1, 1, batch.num_sequences, dtype=scores.rewards.dtype)
    loss = (torch.tanh(scores.rewards) * weight + 0.1 * scores.log_probs * weight.flip(0)).sum()
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(ours: tuple[Tensor, dict[str, Tensor]], truth: tuple[Tensor, dict[str, Tensor]], tolerance: float):
    """Check that the loss and each gradient agree, relative to their own scale.

    Gradients that are zero up to rounding (key biases cancel in the softmax) must agree to 1e-4 of the largest one's
    scale.
    """
    torch.testing.assert_close(ours[0], truth[0], rtol=tolerance, atol=tolerance)
    assert ours[1].keys() == truth[1].keys()
    floor = 1e-4 * max(gradient.abs().max() for gradient in truth[1].values())
    for name, gradient in truth[1].items():
        error = (ours[1][name] - gradient).abs().max() / max(gradient.abs().max(), floor)
        assert error <= tolerance, f"{name}: {error:.2g}"


class Float64Throughout(TorchFunctionMode):
    """Leave float64 tensors in float64 where stock models round to float32: in norms and in eager softmax.

    The sum of rounded values differs from the rounded sum, so with rounding the gradients of two layouts differ by 1e-7
    whatever the attention does.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if args and isinstance(args[0], Tensor) and args[0].dtype == torch.float64:
            if func is Tensor.float or (func is Tensor.to and torch.float32 in (*args, kwargs.get("dtype"))):
                return args[0]
            if kwargs.get("dtype") == torch.float32:
                kwargs["dtype"] = torch.float64
        return func(*args, **kwargs)


@pytest.mark.parametrize("name", PACKABLE)
def test_loss_and_every_gradient_are_those_of_padded_rows(name: str) -> None:
    """The stock model with its own attention, on padded rows in float64, is the oracle."""
    model = hybrid(name)
    with Float64Throughout():
        truth = loss_and_gradients(model, pad_rows(GROUPS, pad_token_id=3))
    assert probe_packing(model, max_length=MAX_LENGTH) is None
    with Float64Throughout():
        assert_same(loss_and_gradients(model, pack_rows(GROUPS)), truth, 1e-10)
        assert_same(loss_and_gradients(model, pad_rows(GROUPS, pad_token_id=3)), truth, 1e-10)


@pytest.mark.parametrize(("name", "tolerance"), [("phi", 1e-10), ("gpt2", 1e-10), ("gpt_neox", 1e-10), ("llama", 1e-6)])
def test_exactness_as_the_stock_models_are(name: str, tolerance: float) -> None:
    """With the models' own rounding, results are exact with float64 norms, else as exact as float32 norms allow."""
    model = hybrid(name)
    truth = loss_and_gradients(model, pad_rows(GROUPS, pad_token_id=3))
    assert probe_packing(model, max_length=MAX_LENGTH) is None
    assert_same(loss_and_gradients(model, pack_rows(GROUPS)), truth, tolerance)


@pytest.mark.parametrize("group", GROUPS, ids=str)
def test_a_batch_of_one_group(group: TokenGroup) -> None:
    model = hybrid("phi")
    truth = loss_and_gradients(model, pad_rows([group], pad_token_id=3))
    assert probe_packing(model, max_length=MAX_LENGTH) is None
    assert_same(loss_and_gradients(model, pack_rows([group])), truth, 1e-10)


@pytest.mark.parametrize("name", UNPACKABLE)
def test_models_that_would_be_wrong_fall_back_and_say_why(name: str) -> None:
    model = hybrid(name)
    before = model.config._attn_implementation
    reason = probe_packing(model, max_length=MAX_LENGTH)
    assert reason is not None
    assert REASONS[name] in reason
    assert model.config._attn_implementation == before
    assert not model.supports_packing
    with pytest.raises(ModelError, match="pad_rows"):
        model(pack_rows(GROUPS))
    assert torch.isfinite(model(pad_rows(GROUPS, pad_token_id=3)).rewards).all()


def test_a_hidden_rule_does_not_matter_beyond_the_longest_sequence() -> None:
    assert probe_packing(hybrid("phimoe", sliding_window=32), max_length=32) is None
    assert probe_packing(hybrid("phimoe", sliding_window=32), max_length=33) is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_probe_tells_right_from_wrong_in_every_dtype(dtype: torch.dtype) -> None:
    assert probe_packing(hybrid("gemma2", dtype), max_length=MAX_LENGTH) is None
    assert "packed rows give" in probe_packing(hybrid("jamba", dtype), max_length=MAX_LENGTH)


def test_the_probe_turns_an_exception_into_a_reason() -> None:
    model = hybrid("llama")
    before = model.config._attn_implementation

    def fail(*args: Any, **kwargs: Any) -> None:
        raise TypeError("no such argument\nand more")

    model.stock_lm.model.layers[1].self_attn.forward = fail
    assert probe_packing(model, max_length=MAX_LENGTH) == "it fails with TypeError: no such argument"
    assert model.config._attn_implementation == before


def test_states_that_are_not_numbers_prove_nothing() -> None:
    """A single wrong token of the probe is enough."""
    model = hybrid("llama")
    last = pack_rows(random_groups(model)).input_ids[0, -1]
    with torch.no_grad():
        model.stock_lm.get_input_embeddings().weight[last] = torch.nan
    assert "by nan" in probe_packing(model, max_length=MAX_LENGTH)


@pytest.mark.parametrize("name", ["llama", "jamba"])
def test_the_probe_leaves_nothing_behind(name: str) -> None:
    """The probe changes neither modes nor random numbers, gradients or weights."""
    model = hybrid(name)
    model.stock_lm.get_input_embeddings().eval()
    modes = [module.training for module in model.modules()]
    weights = copy.deepcopy(model.state_dict())
    torch.manual_seed(7)
    state = torch.get_rng_state()
    probe_packing(model, max_length=MAX_LENGTH)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(weights[key], value) for key, value in model.state_dict().items())


def packing(name: str, dtype: torch.dtype = torch.float64, **values: Any) -> HybridModel:
    """A model that supports packed rows."""
    model = hybrid(name, dtype, **values)
    assert probe_packing(model, max_length=MAX_LENGTH) is None
    return model


@pytest.mark.parametrize("name", ["gemma2", "gpt2", "llama"])
def test_gradient_checkpointing_changes_nothing(name: str) -> None:
    model = packing(name)
    truth = loss_and_gradients(model, pack_rows(GROUPS))
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    assert_same(loss_and_gradients(model, pack_rows(GROUPS)), truth, 1e-12)


def test_lora_trains_the_same() -> None:
    model = hybrid("llama")
    model.causal_lm = add_lora(model.causal_lm, LoraOptions(rank=4))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    with Float64Throughout():
        truth = loss_and_gradients(model, pad_rows(GROUPS, pad_token_id=3))
    assert probe_packing(model, max_length=MAX_LENGTH) is None
    with Float64Throughout():
        assert_same(loss_and_gradients(model, pack_rows(GROUPS)), truth, 1e-10)
    with model.adapters_disabled(), torch.no_grad():
        off = [model(batch).log_probs for batch in (pack_rows(GROUPS), pad_rows(GROUPS, pad_token_id=3))]
    torch.testing.assert_close(*off, rtol=1e-6, atol=1e-6)


def test_bf16_autocast_is_as_good_as_on_padded_rows() -> None:
    model = packing("llama", torch.float32)
    with torch.no_grad():
        exact = model(pack_rows(GROUPS)).log_probs
        with torch.autocast("cpu", dtype=torch.bfloat16):
            packed, padded = (model(batch).log_probs for batch in (pack_rows(GROUPS), pad_rows(GROUPS, pad_token_id=3)))
    worst = [(rough - exact).abs().max() for rough in (packed, padded)]
    assert 0 < worst[0] < 1.5 * worst[1]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # raised by the compiler
def test_a_compiled_backbone_computes_the_same_and_is_not_compiled_for_every_layout() -> None:
    model = packing("llama", torch.float32, num_hidden_layers=1)
    batches = [pack_rows([random_group(2 + i, 3, 1 + j) for j in range(1 + i % 3)]) for i in range(4)]
    truth = [loss_and_gradients(model, batch) for batch in batches]
    torch._dynamo.reset()
    counter = CompileCounter()  # compiles to the same operations, but counts graphs
    model.backbone.compile(backend=counter, dynamic=True)
    counts = []
    for batch, expected in zip(batches, truth, strict=True):
        assert_same(loss_and_gradients(model, batch), expected, 1e-4)
        counts.append(counter.frame_count)
    assert counts[0] > 0
    assert counts[-1] == counts[1], "a layout must not need a compilation of its own"


def test_a_copy_takes_packed_rows_too() -> None:
    """Copy the model, as for a frozen live reference."""
    model = packing("gemma2")
    copied = copy.deepcopy(model)
    assert torch.equal(copied(pack_rows(GROUPS)).log_probs, model(pack_rows(GROUPS)).log_probs)


@pytest.mark.parametrize("name", ["gemma2", "gpt_oss", "mistral"])
def test_generation_goes_on_as_before(name: str) -> None:
    """Generate with a cache, one token at a time, from a prompt with left padding."""
    model = hybrid(name, torch.float32).eval()
    prompts = torch.tensor([[3, 3, 3, 10, 11, 12], [20, 21, 22, 23, 24, 25]])
    asked = {"input_ids": prompts, "attention_mask": (prompts != 3).long(), "max_new_tokens": 12, "do_sample": False}
    before = model.stock_lm.generate(**asked)
    assert probe_packing(model, max_length=MAX_LENGTH) is None
    assert torch.equal(model.stock_lm.generate(**asked), before)


def small(name: str) -> HybridModel:
    """A small model of any architecture."""
    lm = tiny_model(name)
    return HybridModel(lm, new_reward_head(32, init="normal", seed=1, dtype=torch.float32))


def test_what_only_shows_in_long_rows_is_found() -> None:
    """DeepSeek-V4's layers of this size compress 128 tokens to one, and use plain attention for shorter texts."""
    assert probe_packing(small("deepseek_v4"), max_length=100) is None
    assert probe_packing(small("deepseek_v4"), max_length=200) is not None


def test_a_model_whose_padding_counts_is_refused() -> None:
    """CPM-Ant detects padding by token 0, whatever the mask says."""
    with pytest.raises(ModelError, match=r"CpmAntForCausalLM can't run batches.*padded row"):
        choose_layout(small("cpmant"), 3, max_length=64)
    for name in ("bloom", "mamba"):
        for side in ("right", "left"):
            assert probe_padding(small(name), pad_token_id=3, side=side) is None
