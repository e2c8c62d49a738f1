"""The engines: samples follow the model's distribution and their own seeds; calls of vLLM's API."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from scipy import stats as scipy_stats

from hafrm.errors import MissingExtraError, ModelError
from hafrm.models.checksums import checksums
from hafrm.models.generating import prompt_ids
from hafrm.models.runinfo import RunInfo
from hafrm.pairs import Prompt
from hafrm.sampling.engines import GumbelNoise, TransformersGenerator, prompt_seed
from hafrm.sampling.options import SampleConfig, SampleOptions
from hafrm.sampling.run import sample
from tests.tiny import save_tiny, tiny_lm, tiny_tokenizer

PROMPTS = [Prompt.of(text) for text in ("a", "why is it so", "b" * 20)]


def generator(**options: Any) -> TransformersGenerator:
    return TransformersGenerator(tiny_lm(), tiny_tokenizer(), SampleOptions(**({"max_new_tokens": 8} | options)))


def test_noise_makes_the_highest_score_a_draw_from_the_softmax() -> None:
    scores = torch.log(torch.tensor([0.5, 0.3, 0.2, 0.0]))
    seeds = range(20_000)
    picked = GumbelNoise(seeds, torch.device("cpu"))(torch.zeros(1), scores.expand(len(seeds), -1)).argmax(dim=1)
    counts = torch.bincount(picked, minlength=4).tolist()
    assert counts[3] == 0
    assert scipy_stats.chisquare(counts[:3], [10_000, 6_000, 4_000]).pvalue > 0.001


def test_a_draw_of_0_is_no_infinite_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """With uniform numbers of 24 bits one draw in 2^24 is 0; an unlikely token must not win by it."""
    draws = torch.tensor([1.0, 0.0])
    monkeypatch.setattr(torch.Tensor, "exponential_", lambda row, generator: row.copy_(draws))
    noise = GumbelNoise([0], torch.device("cpu"))(torch.zeros(1), torch.tensor([[0.0, -18.0]]))
    assert noise.argmax(dim=1).tolist() == [0]
    assert noise[0, 1] > -1  # although it is the largest noise


def test_a_response_follows_from_its_own_seed_whatever_the_batch() -> None:
    made = generator()
    together = made.draw(PROMPTS, [1, 2, 3], 2)
    alone = [made.draw([prompt], [seed], 2)[0] for prompt, seed in zip(PROMPTS, (1, 2, 3), strict=True)]
    assert together == alone
    assert made.draw(PROMPTS[:1], [2], 1)[0][0] == together[0][1]  # response j has the seed + j
    assert made.draw(PROMPTS[:1], [9], 2) != together[:1]


def test_the_programs_own_random_numbers_are_left_alone() -> None:
    state = torch.get_rng_state()
    generator().draw(PROMPTS, [1, 2, 3], 2)
    assert torch.equal(state, torch.get_rng_state())


def test_a_tiny_nucleus_and_a_low_temperature_are_greedy() -> None:
    model, tokenizer = tiny_lm(), tiny_tokenizer()
    ids = torch.tensor(
        [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": "a"}], add_generation_prompt=True, return_dict=False
            )
        ]
    )
    greedy = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=8, pad_token_id=3)
    text = tokenizer.decode(greedy[0, ids.shape[1] :], skip_special_tokens=True).strip()
    for options in ({"top_p": 1e-6}, {"temperature": 1e-6}):
        assert {draw.text for draw in generator(**options).draw(PROMPTS[:1], [5], 3)[0]} == {text}


def test_the_first_token_follows_the_models_distribution() -> None:
    """The temperature makes many tokens likely."""
    made = generator()
    row = prompt_ids(made.tokenizer, PROMPTS[0])
    with torch.inference_mode():
        logits = made.causal_lm(torch.tensor([row])).logits[0, -1].float()
    warm = generator(max_new_tokens=1, top_p=1.0, temperature=float(logits.std()))
    shares = torch.softmax(logits / logits.std(), dim=0).double()
    tokens = warm._generate([row] * 4000, range(4000))[:, 0]
    observed = torch.bincount(tokens, minlength=len(shares)).double()
    likely = shares > 0.002
    assert likely.sum() > 50
    pooled = [torch.cat([each[likely], each[~likely].sum()[None]]).numpy() for each in (observed, shares * 4000)]
    assert scipy_stats.chisquare(*pooled, sum_check=False).pvalue > 0.001


def test_an_ended_response_says_so() -> None:
    """If only the end can be drawn, a response is a single token and its text is empty."""
    model = tiny_lm()
    bias = torch.full((model.config.vocab_size,), -1e9)
    bias[2] = 0
    model.lm_head.register_forward_hook(lambda module, args, output: output + bias)
    made = TransformersGenerator(model, tiny_tokenizer(), SampleOptions(max_new_tokens=4))
    (draw,) = made.draw(PROMPTS[:1], [0], 1)[0]
    assert (draw.text, draw.tokens, draw.finished) == ("", 1, True)
    bias[2], bias[50] = -1e9, 0
    (draw,) = made.draw(PROMPTS[:1], [0], 1)[0]
    assert (draw.tokens, draw.finished) == (4, False)


def test_seeds_are_of_the_text_and_the_runs_seed() -> None:
    seeds = {prompt_seed(seed, prompt) for seed in (0, 1) for prompt in PROMPTS}
    assert len(seeds) == 6
    assert all(0 <= seed < 2**48 for seed in seeds)
    assert prompt_seed(0, Prompt.of("a")) == prompt_seed(0, PROMPTS[0])


class FakeLLM:
    """A stand-in for vLLM's `LLM` that records requests."""

    made: dict[str, Any]
    calls: list[tuple[Any, Any]]

    def __init__(self, **arguments: Any) -> None:
        if "broken" in arguments["model"]:
            raise RuntimeError("no such architecture\nand more")
        FakeLLM.made, FakeLLM.calls = arguments, []

    def generate(self, prompts: Any, sampling_params: Any, *, use_tqdm: bool) -> list[Any]:
        assert use_tqdm is False
        assert len(prompts) == len(sampling_params)
        FakeLLM.calls.append((prompts, sampling_params))
        word = tiny_tokenizer()("ok", add_special_tokens=False)["input_ids"]
        ended = SimpleNamespace(token_ids=(*word, 2), finish_reason="stop", text="ok")
        cut = SimpleNamespace(token_ids=tuple(word), finish_reason="length", text="ok")
        return [SimpleNamespace(outputs=[ended, cut, ended][: params.n]) for params in sampling_params]


@pytest.fixture
def fake_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    module = SimpleNamespace(LLM=FakeLLM, SamplingParams=lambda **values: SimpleNamespace(**values))
    monkeypatch.setitem(sys.modules, "vllm", module)


def by_vllm(tmp_path: Path, model: Path) -> SampleConfig:
    data = tmp_path / "prompts.jsonl"
    data.write_text('{"prompt": "a"}\n{"prompt": "why"}\n')
    return SampleConfig(
        model=str(model),
        data=[str(data)],
        out=str(tmp_path / "out"),
        n=3,
        engine="vllm",
        dtype="float32",
        sampling=SampleOptions(max_new_tokens=8, temperature=0.7),
    )


def test_vllm_gets_token_ids_and_a_seed_a_prompt(fake_vllm: None, tmp_path: Path) -> None:
    asked = by_vllm(tmp_path, save_tiny(tmp_path / "model"))
    manifest = sample(asked)
    assert FakeLLM.made == {
        "model": asked.model,
        "dtype": "float32",
        "seed": 0,
        "max_model_len": 256,
        "trust_remote_code": False,
    }
    ((prompts, params),) = FakeLLM.calls  # all in one call: vLLM makes its own batches
    tokenizer = tiny_tokenizer()
    shown = [tokenizer.decode(prompt["prompt_token_ids"], skip_special_tokens=True) for prompt in prompts]
    assert ["why" in text for text in shown] == [True, False]
    assert [(p.n, p.temperature, p.top_p, p.max_tokens) for p in params] == [(3, 0.7, 0.9, 8)] * 2
    assert [p.seed for p in params] == [prompt_seed(0, Prompt.of(text)) for text in ("why", "a")]
    assert (manifest["responses"], manifest["distinct"]) == (6, 2)
    assert (manifest["tokens"], manifest["unfinished"]) == (2 * (3 + 2 + 3), 2)  # one of each three is cut


def test_vllms_absence_and_failures_are_clear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = save_tiny(tmp_path / "model")
    monkeypatch.setitem(sys.modules, "vllm", None)  # makes its import fail
    with pytest.raises(MissingExtraError, match="pip install vllm"):
        sample(by_vllm(tmp_path, model))
    info = {"method": "haf", "base_model": "b", "reward_weight": 1.0, "policy_ratio": 0.2, "policy_loss": "dpo"}
    info |= {"sha256": checksums(model)}
    RunInfo(**info, dtype="float32", beta=0.1, max_length=64, overlong="drop", pad_token="<pad>").save(model)
    with pytest.raises(ModelError, match=r"hafrm export .* and give its policy/"):
        sample(by_vllm(tmp_path, model))


def test_what_vllm_can_not_load_is_one_clear_line(fake_vllm: None, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"vLLM could not load .*broken: no such architecture"):
        sample(by_vllm(tmp_path, save_tiny(tmp_path / "broken")))
