"""Chunked log-probs against the full log-softmax: values, gradients, and what is computed when."""

from collections import Counter

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hafrm.logprobs import LogitTransform, linear_log_probs, sum_by_sequence

T, H, V = 7, 5, 11
ONE_ROW, THREE_ROWS, ALL_ROWS = 1, 3 * V * 8, 2**20  # chunk_bytes, for float64
TRANSFORMS = [LogitTransform(), LogitTransform(scale=0.3), LogitTransform(softcap=2.0), LogitTransform(-1.7, 1.5)]

each_transform = pytest.mark.parametrize("transform", TRANSFORMS, ids=str)


def draw(*size: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def inputs(*, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Create states, weight and bias that all require gradients."""
    values = draw(T, H, dtype=dtype, seed=1), draw(V, H, dtype=dtype, seed=2), draw(V, dtype=dtype, seed=3)
    return tuple(value.requires_grad_() for value in values)


TARGETS = torch.tensor([0, 10, 3, 3, 7, 1, 9])


def full_log_probs(
    states: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    transform: LogitTransform = TRANSFORMS[0],
) -> Tensor:
    """The definition, with all T x V logits at once."""
    logits = transform.scale * torch.nn.functional.linear(states, weight, bias)
    if transform.softcap is not None:
        logits = transform.softcap * torch.tanh(logits / transform.softcap)
    return torch.log_softmax(logits, dim=1)[torch.arange(len(targets)), targets]


# Values and gradients


@each_transform
@pytest.mark.parametrize("chunk_bytes", [ONE_ROW, THREE_ROWS, ALL_ROWS])
@pytest.mark.parametrize("with_bias", [False, True])
def test_equals_the_full_log_softmax(transform, chunk_bytes, with_bias):
    states, weight, bias = inputs()
    leaves = (states, weight, bias) if with_bias else (states, weight)
    bias = bias if with_bias else None
    ours = linear_log_probs(states, weight, TARGETS, bias=bias, transform=transform, chunk_bytes=chunk_bytes)
    theirs = full_log_probs(states, weight, TARGETS, bias, transform)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
    upstream = draw(T, seed=4)
    for mine, stock in zip(
        torch.autograd.grad(ours, leaves, upstream), torch.autograd.grad(theirs, leaves, upstream), strict=True
    ):
        torch.testing.assert_close(mine, stock, rtol=0, atol=1e-10)


@each_transform
def test_gradients_are_those_of_the_values(transform):
    def log_probs(states, weight, bias):
        return linear_log_probs(states, weight, TARGETS, bias=bias, transform=transform, chunk_bytes=THREE_ROWS)

    assert torch.autograd.gradcheck(log_probs, inputs())


def test_one_value_by_hand():
    """Logits (log 2, log 6): the second token has probability 3/4."""
    weight = torch.tensor([2.0, 6.0]).log()[:, None]
    log_prob = linear_log_probs(torch.ones(1, 1), weight, torch.tensor([1]))
    assert log_prob.exp().item() == pytest.approx(0.75)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)], ids=str)
def test_only_the_gradients_that_are_wanted(wanted):
    leaves = [leaf.detach().requires_grad_(i in wanted) for i, leaf in enumerate(inputs())]
    linear_log_probs(leaves[0], leaves[1], TARGETS, bias=leaves[2], chunk_bytes=THREE_ROWS).sum().backward()
    expected = [leaf.detach().requires_grad_(i in wanted) for i, leaf in enumerate(leaves)]
    full_log_probs(expected[0], expected[1], TARGETS, expected[2]).sum().backward()
    for mine, stock in zip(leaves, expected, strict=True):
        if stock.grad is None:
            assert mine.grad is None
        else:
            torch.testing.assert_close(mine.grad, stock.grad)


def test_memory_layout_makes_no_difference():
    states, weight, bias = (leaf.detach() for leaf in inputs())
    strided = (
        draw(H, 2 * T)[:, ::2].t().copy_(states).requires_grad_(),
        draw(H, V).t().copy_(weight).requires_grad_(),
        draw(2 * V)[::2].copy_(bias).requires_grad_(),
    )
    targets = TARGETS.repeat_interleave(2)[::2]
    ours = linear_log_probs(strided[0], strided[1], targets, bias=strided[2], chunk_bytes=THREE_ROWS)
    leaves = inputs()
    theirs = full_log_probs(leaves[0], leaves[1], TARGETS, leaves[2])
    torch.testing.assert_close(ours, theirs)
    upstream = draw(1).expand(T)  # stride 0, as the backward of a sum hands it down
    for mine, stock in zip(
        torch.autograd.grad(ours, strided, upstream), torch.autograd.grad(theirs, leaves, upstream), strict=True
    ):
        torch.testing.assert_close(mine, stock)


def test_no_tokens():
    states, weight, bias = inputs()
    empty = linear_log_probs(states[:0], weight, TARGETS[:0], bias=bias)
    assert empty.shape == (0,)
    empty.sum().backward()
    assert states.grad.eq(0).all()
    assert weight.grad.eq(0).all()
    assert bias.grad.eq(0).all()


def test_far_out_logits_stay_finite():
    states = torch.tensor([[1e4], [-1e4]], requires_grad=True)
    weight = torch.tensor([[1.0], [-1.0]], requires_grad=True)
    log_probs = linear_log_probs(states, weight, torch.tensor([1, 1]))
    log_probs.sum().backward()
    assert log_probs.tolist() == [-2e4, 0.0]
    assert states.grad.tolist() == [[-2.0], [0.0]]
    assert torch.isfinite(weight.grad).all()


# Narrow dtypes


def test_bfloat16_products_and_float32_sums():
    leaves = inputs(dtype=torch.bfloat16)
    ours = linear_log_probs(leaves[0], leaves[1], TARGETS, bias=leaves[2], chunk_bytes=3 * V * 4)
    assert ours.dtype == torch.float32
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    theirs = full_log_probs(exact[0], exact[1], TARGETS, exact[2])
    torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=0.03)
    ours.sum().backward()
    theirs.sum().backward()
    for mine, stock in zip(leaves, exact, strict=True):
        assert mine.grad.dtype == torch.bfloat16
        torch.testing.assert_close(mine.grad.double(), stock.grad, rtol=0.03, atol=0.03)


def test_a_sure_token_keeps_its_gradient_in_bfloat16():
    """p = .9997 is 1 in bfloat16; 1 - p must not be taken there."""
    states = torch.tensor([[8.0]], dtype=torch.bfloat16, requires_grad=True)
    weight = torch.tensor([[1.0], [0.0]], dtype=torch.bfloat16)
    linear_log_probs(states, weight, torch.tensor([0])).backward()
    assert states.grad.item() == pytest.approx(torch.sigmoid(torch.tensor(-8.0)).item(), rel=0.01)


def test_weight_gradients_are_summed_in_float32():
    """A bfloat16 sum of 600 equal terms would stop growing at 256 of them."""
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    bias = torch.zeros(2, dtype=torch.bfloat16, requires_grad=True)
    states = torch.ones(600, 1, dtype=torch.bfloat16)
    targets = torch.zeros(600, dtype=torch.int64)
    linear_log_probs(states, weight, targets, bias=bias, chunk_bytes=1).sum().backward()
    assert weight.grad.tolist() == [[300.0], [-300.0]]
    assert bias.grad.tolist() == [300.0, -300.0]


def test_autocast_takes_products_in_its_dtype_and_gradients_in_that_of_the_leaves():
    leaves = inputs(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = linear_log_probs(leaves[0], leaves[1], TARGETS, bias=leaves[2])
    narrow = [leaf.detach().bfloat16().requires_grad_() for leaf in leaves]
    theirs = linear_log_probs(narrow[0], narrow[1], TARGETS, bias=narrow[2])
    assert torch.equal(ours, theirs)
    ours.sum().backward()
    theirs.sum().backward()
    for mine, other in zip(leaves, narrow, strict=True):
        assert mine.grad.dtype == torch.float32
        torch.testing.assert_close(mine.grad, other.grad.float(), rtol=0.01, atol=0.01)


def test_a_backward_under_autocast_changes_nothing():
    plain, under = inputs(dtype=torch.float32), inputs(dtype=torch.float32)
    linear_log_probs(plain[0], plain[1], TARGETS, bias=plain[2]).sum().backward()
    log_probs = linear_log_probs(under[0], under[1], TARGETS, bias=under[2])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        log_probs.sum().backward()
    for mine, other in zip(under, plain, strict=True):
        assert torch.equal(mine.grad, other.grad)


def test_autocast_leaves_float64_alone():
    states, weight, bias = inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = linear_log_probs(states, weight, TARGETS, bias=bias)
    torch.testing.assert_close(ours, full_log_probs(states, weight, TARGETS, bias))


# What is computed when


class Recorder(TorchDispatchMode):
    """Counts matrix products and notes the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.products = Counter()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.products[func.overloadpacket.__name__] += 1
        self.largest = max([self.largest, *(leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor))])
        return result

    @property
    def matmuls(self) -> int:
        return sum(self.products[name] for name in ("mm", "addmm", "addmm_"))


@pytest.mark.parametrize(
    ("states_grad", "weight_grad", "forward", "backward"),
    [(False, False, 1, 0), (True, False, 2, 0), (False, True, 1, 2), (True, True, 2, 2)],
    ids=["no gradients", "frozen head", "head alone", "both"],
)
def test_products_a_chunk(states_grad, weight_grad, forward, backward):
    chunks = 3
    states, weight, _ = inputs()
    states.requires_grad_(states_grad)
    weight.requires_grad_(weight_grad)
    with Recorder() as recorder:
        log_probs = linear_log_probs(states, weight, TARGETS, chunk_bytes=THREE_ROWS)
    assert recorder.matmuls == forward * chunks
    if log_probs.requires_grad:
        with Recorder() as recorder:
            log_probs.sum().backward()
        assert recorder.matmuls == backward * chunks


def test_without_grad_mode_nothing_is_prepared_for_a_backward():
    states, weight, bias = inputs()
    with Recorder() as recorder, torch.no_grad():
        log_probs = linear_log_probs(states, weight, TARGETS, bias=bias)
    assert recorder.matmuls == 1
    assert not log_probs.requires_grad


def test_the_logits_never_exist():
    tokens, vocabulary, rows = 64, 1000, 8
    states, weight = draw(tokens, 4, dtype=torch.float32), draw(vocabulary, 4, dtype=torch.float32)
    states.requires_grad_()
    weight.requires_grad_()
    with Recorder() as recorder:
        targets = torch.arange(tokens)
        linear_log_probs(states, weight, targets, chunk_bytes=4 * vocabulary * rows).sum().backward()
    assert recorder.largest == rows * vocabulary


def test_no_second_derivative():
    states, weight, _ = inputs()
    loss = linear_log_probs(states, weight, TARGETS).square().sum()
    (grad,) = torch.autograd.grad(loss, states, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


# How stock models compute logits from products


@pytest.mark.parametrize(
    ("model_type", "options", "transform"),
    [
        ("gemma2", {"final_logit_softcapping": 0.5}, LogitTransform(softcap=0.5)),
        ("cohere", {"logit_scale": 0.25}, LogitTransform(scale=0.25)),
        ("granite", {"logits_scaling": 4.0}, LogitTransform(scale=1 / 4.0)),
    ],
)
def test_transforms_are_those_of_stock_models(model_type, options, transform):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 40}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(model_type, **sizes, **heads, **tokens, **options)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    torch.nn.init.normal_(model.get_output_embeddings().weight)
    ids = torch.arange(3, 11)[None]
    with torch.no_grad():
        stock = torch.log_softmax(model(ids).logits[0, :-1].float(), dim=1).gather(1, ids[0, 1:, None])[:, 0]
        states = model.get_decoder()(ids).last_hidden_state[0, :-1]
        ours = linear_log_probs(states, model.get_output_embeddings().weight, ids[0, 1:], transform=transform)
    torch.testing.assert_close(ours, stock)


# Wrong arguments


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"states": torch.zeros(2, 3, 4)}, r"states must be \[T, H\]"),
        ({"weight": torch.zeros(6, 5)}, r"weight \[V, H\], got \[3, 4\] and \[6, 5\]"),
        ({"targets": torch.zeros(2, dtype=torch.int64)}, r"targets must be \[T\], T = 3, got \[2\]"),
        ({"targets": torch.zeros(3, 1, dtype=torch.int64)}, r"targets must be \[T\]"),
        ({"targets": torch.zeros(3)}, "int64 token ids"),
        ({"bias": torch.zeros(4)}, r"bias must be \[V\], V = 6, got \[4\]"),
        ({"chunk_bytes": 0}, "chunk_bytes must be positive"),
        ({"weight": torch.zeros(6, 4).half()}, r"float32 and weight is torch\.float16"),
    ],
)
def test_arguments_that_do_not_fit(changes, message):
    fitting = {"states": torch.zeros(3, 4), "weight": torch.zeros(6, 4), "targets": torch.zeros(3, dtype=torch.int64)}
    with pytest.raises(ValueError, match=message):
        linear_log_probs(**(fitting | changes))


@pytest.mark.parametrize("options", [{"scale": 0.0}, {"scale": float("inf")}, {"softcap": 0.0}, {"softcap": -1.0}])
def test_transforms_that_can_not_be(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        LogitTransform(**options)


# Sums by sequence


def test_sums_by_sequence():
    tokens = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0], requires_grad=True)
    sums = sum_by_sequence(tokens, torch.tensor([0, 0, 2, 2, 2]), 4)
    assert sums.tolist() == [3.0, 0.0, 28.0, 0.0]
    (sums * torch.tensor([1.0, 2.0, 3.0, 4.0])).sum().backward()
    assert tokens.grad.tolist() == [1.0, 1.0, 3.0, 3.0, 3.0]


def test_sums_of_no_tokens():
    assert sum_by_sequence(torch.zeros(0), torch.zeros(0, dtype=torch.int64), 2).tolist() == [0.0, 0.0]


@pytest.mark.parametrize(("tokens", "index"), [((3,), (2,)), ((3, 1), (3, 1))])
def test_sums_by_sequence_refuse_other_shapes(tokens, index):
    with pytest.raises(ValueError, match=r"must both be \[T\]"):
        sum_by_sequence(torch.zeros(tokens), torch.zeros(index, dtype=torch.int64), 3)
