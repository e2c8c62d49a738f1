"""Scripted generators for tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from hafrm.errors import RefusedError
from hafrm.pairs import Prompt
from hafrm.sampling.engines import Draw


class ScriptedGenerator:
    """Draws one of three words by the seed, records requests, and may fail."""

    def __init__(self, *, fail: Callable[[int], bool] = lambda calls: False, refuse: str = "\0") -> None:
        self.fail, self.refuse = fail, refuse
        self.batches: list[list[str]] = []

    def count_tokens(self, prompts: Sequence[Prompt]) -> list[int]:
        refused = {i: "not this one." for i, prompt in enumerate(prompts) if self.refuse in prompt.turns[-1].content}
        if refused:
            raise RefusedError(refused)
        return [len(prompt.turns[-1].content) for prompt in prompts]

    def draw(self, prompts: Sequence[Prompt], seeds: Sequence[int], n: int) -> list[list[Draw]]:
        if self.fail(len(self.batches)):
            raise KeyboardInterrupt
        self.batches.append([prompt.turns[-1].content for prompt in prompts])
        return [[self._one(seed + j) for j in range(n)] for seed in seeds]

    def _one(self, seed: int) -> Draw:
        word = Random(seed).choice(["yes", "no", ""])
        return Draw(word, len(word) + 1, word != "no")
