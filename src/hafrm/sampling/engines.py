"""Engines that draw responses: their interface, stock transformers, and vLLM."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import LogitsProcessor, LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

from hafrm.errors import MissingExtraError, ModelError, first_line
from hafrm.models.generating import continuations, count_prompt_tokens, prompt_ids, stop_tokens
from hafrm.models.runinfo import is_run
from hafrm.pairs import Prompt
from hafrm.sampling.options import SampleOptions

_LEAST = 2.0**-25


@dataclass(frozen=True, slots=True)
class Draw:
    """One sampled response."""

    text: str
    """The text without special tokens and surrounding white space; may be empty."""
    tokens: int
    """Number of drawn tokens, including the one that ends the response."""
    finished: bool
    """Whether the model ended it, as opposed to the limit of tokens."""


class Generator(Protocol):
    """Samples responses."""

    def count_tokens(self, prompts: Sequence[Prompt]) -> list[int]:
        """Count the tokens of each prompt, to form batches and find over-long prompts.

        Raises:
            RefusedError: some prompts can't be rendered; lists them, so that callers can leave them out.
        """
        ...

    def draw(self, prompts: Sequence[Prompt], seeds: Sequence[int], n: int) -> list[list[Draw]]:
        """Return N responses to each prompt, in order; response j to a prompt is determined by its seed + j."""
        ...


def prompt_seed(seed: int, prompt: Prompt) -> int:
    """Return a prompt's seed, which only depends on the run's seed and the prompt."""
    turns = (f"{turn.role}\x1f{turn.content}{turn.more}" for turn in prompt.turns)
    text = "\x1e".join([str(seed), *turns]) + prompt.arguments
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6])  # 48 bits: seed + j fits every engine


class GumbelNoise(LogitsProcessor):
    """Adds standard Gumbel noise to log-probabilities, with one seed per row.

    The token with the highest sum is then a draw from the softmax (the Gumbel-max trick), so greedy search samples.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        self.streams = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the scores with noise, [S, V]."""
        noise = torch.empty_like(scores, dtype=torch.float32)
        for row, stream in zip(noise, self.streams, strict=True):
            row.exponential_(generator=stream)
        # With uniform numbers of 24 bits, one exponential draw in 2^24 is 0, that is infinite noise; with a large
        # vocabulary this happens every few hundred steps. Replace 0 by 2^-25, the mean of the draws below 2^-24.
        return scores.float() - noise.clamp_min_(_LEAST).log_()


class TransformersGenerator:
    """A stock causal LM, on its device, as `Generator`, with a separate stream of random numbers for each response.

    `generate` itself draws a whole batch from one stream, so that a response depends on its batch. With `GumbelNoise`,
    only rounding depends on the batch.
    """

    def __init__(self, causal_lm: nn.Module, tokenizer: Any, options: SampleOptions) -> None:
        self.causal_lm, self.tokenizer, self.options = causal_lm, tokenizer, options

    def count_tokens(self, prompts: Sequence[Prompt]) -> list[int]:
        """See `Generator`."""
        return count_prompt_tokens(self.tokenizer, prompts)

    def draw(self, prompts: Sequence[Prompt], seeds: Sequence[int], n: int) -> list[list[Draw]]:
        """See `Generator`."""
        rows = [prompt_ids(self.tokenizer, prompt) for prompt in prompts for _ in range(n)]
        new = self._generate(rows, [seed + j for seed in seeds for j in range(n)])
        texts = self.tokenizer.batch_decode(new, skip_special_tokens=True)
        stops = stop_tokens(self.causal_lm, self.tokenizer)
        draws = [_draw(ids, text, stops) for ids, text in zip(new.tolist(), texts, strict=True)]
        return [draws[start : start + n] for start in range(0, len(draws), n)]

    def _generate(self, rows: Sequence[Sequence[int]], seeds: Sequence[int]) -> Tensor:
        noise = GumbelNoise(seeds, next(self.causal_lm.parameters()).device)
        return continuations(
            self.causal_lm,
            self.tokenizer,
            rows,
            processors=LogitsProcessorList([*self._warpers(), noise]),
            do_sample=False,
            max_new_tokens=self.options.max_new_tokens,
        )

    def _warpers(self) -> list[LogitsProcessor]:
        warpers: list[LogitsProcessor] = []
        if self.options.temperature != 1:
            warpers.append(TemperatureLogitsWarper(self.options.temperature))
        if self.options.top_p < 1:
            warpers.append(TopPLogitsWarper(self.options.top_p))
        return warpers


def _draw(ids: Sequence[int], text: str, stops: Sequence[int]) -> Draw:
    end = next((place for place, token in enumerate(ids) if token in stops), None)
    return Draw(text.strip(), len(ids) if end is None else end + 1, end is not None)


class VllmGenerator:
    """A causal LM in vLLM as `Generator`, if vLLM is installed.

    Prompts are passed as token ids, so that they equal those of other engines. Each has its own seed, from which vLLM
    derives one per response. vLLM's own batching changes results by rounding, which can change a response.

    Args:
        model: Folder or hub id of a causal LM.
        tokenizer: Its prepared tokenizer, with a chat template.
        options: How to draw; `batch_size` has no effect.
        dtype: Dtype of the weights, by vLLM's name.
        max_length: Maximum tokens of a prompt with its response; None: the model's own limit.

    Raises:
        MissingExtraError: vLLM is not installed.
        ModelError: the folder is a run, which vLLM does not load, or vLLM can't load the model.
    """

    def __init__(
        self,
        model: str,
        tokenizer: Any,
        options: SampleOptions,
        *,
        dtype: str = "auto",
        max_length: int | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        if is_run(model):
            raise ModelError(
                f"{model} is a run, whose reward head vLLM refuses. Run `hafrm export {model}` and give its policy/."
            )
        self.vllm = _import_vllm()
        self.tokenizer, self.options = tokenizer, options
        try:
            self.llm: Any = self.vllm.LLM(
                model=model,
                dtype=dtype,
                seed=options.seed,
                max_model_len=max_length,
                trust_remote_code=trust_remote_code,
            )
        except Exception as error:  # vLLM raises many types
            raise ModelError(f"vLLM could not load {model}: {first_line(error)}") from error

    def count_tokens(self, prompts: Sequence[Prompt]) -> list[int]:
        """See `Generator`."""
        return count_prompt_tokens(self.tokenizer, prompts)

    def draw(self, prompts: Sequence[Prompt], seeds: Sequence[int], n: int) -> list[list[Draw]]:
        """See `Generator`."""
        options = self.options
        drawing = {"temperature": options.temperature, "top_p": options.top_p, "max_tokens": options.max_new_tokens}
        outputs = self.llm.generate(
            [{"prompt_token_ids": list(prompt_ids(self.tokenizer, prompt))} for prompt in prompts],
            [self.vllm.SamplingParams(n=n, seed=seed, **drawing) for seed in seeds],
            use_tqdm=False,
        )
        return [[self._draw(each) for each in output.outputs] for output in outputs]

    def _draw(self, completion: Any) -> Draw:
        text = self.tokenizer.decode(completion.token_ids, skip_special_tokens=True)
        return Draw(text.strip(), len(completion.token_ids), completion.finish_reason == "stop")


def _import_vllm() -> Any:
    try:
        return importlib.import_module("vllm")
    except ImportError as error:
        raise MissingExtraError(
            "--engine vllm needs vLLM, which is not installed. Install it for your GPU (`pip install vllm`), or use "
            "--engine transformers."
        ) from error
