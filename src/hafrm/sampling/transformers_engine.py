"""Sample with stock transformers, with separate random numbers for each response.

`generate` draws a whole batch from one stream of random numbers, so that a response would depend on its batch. Here a
logits processor adds Gumbel noise from a stream per response, and greedy search takes the highest sum: that is a draw
from the softmax (the Gumbel-max trick), and only rounding depends on the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from hafrm.models.generating import continuations, count_prompt_tokens, prompt_ids, stop_tokens
from hafrm.pairs import Prompt
from hafrm.sampling.generators import Draw, SampleOptions

_LEAST = 2.0**-25


class GumbelNoise(LogitsProcessor):
    """Adds standard Gumbel noise to log-probabilities, seeded per row.

    Args:
        seeds: One per row.
        device: The device of the scores.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        self.streams = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the scores with noise, [S, V]."""
        noise = torch.empty_like(scores, dtype=torch.float32)
        for row, stream in zip(noise, self.streams, strict=True):
            row.exponential_(generator=stream)
        # If uniform numbers have 24 bits, one exponential draw in 2^24 is 0, which is infinite noise; with a large
        # vocabulary that affects one token in hundreds. Replace it by 2^-25, the mean of the draws below 2^-24.
        return scores.float() - noise.clamp_min_(_LEAST).log_()


class TransformersGenerator:
    """A stock causal LM as `Generator`.

    Args:
        causal_lm: The model, on its device.
        tokenizer: Its prepared tokenizer, with a chat template.
        options: How to draw.
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
        """Generate the new tokens of each row, [S, T]."""
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
