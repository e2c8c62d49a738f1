"""Sample with vLLM, if it is installed.

Prompts are passed as token ids, so that they equal those of other engines. Each has its own seed, from which vLLM
derives one per response. vLLM's own batching changes results by rounding, which can change a response.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hafrm.errors import MissingExtraError, ModelError, first_line
from hafrm.models.generating import count_prompt_tokens, prompt_ids
from hafrm.models.runinfo import RUN_FILE
from hafrm.pairs import Prompt
from hafrm.sampling.generators import Draw, SampleOptions


class VllmGenerator:
    """A causal LM in vLLM as `Generator`.

    Args:
        model: Folder or hub id of a causal LM.
        tokenizer: Its prepared tokenizer, with a chat template.
        options: How to draw; vLLM makes its own batches.
        dtype: Dtype of the weights, by vLLM's name.
        max_length: Maximum tokens of a prompt with its response; None: the model's own limit.
        trust_remote_code: Run modelling code that comes with the model.

    Raises:
        MissingExtraError: vLLM is not installed.
        ModelError: the folder is a run, which vLLM does not load, or nothing loads from there.
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
        if (Path(model) / RUN_FILE).is_file():
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
        outputs = self.llm.generate(
            [{"prompt_token_ids": list(prompt_ids(self.tokenizer, prompt))} for prompt in prompts],
            [self._params(seed, n) for seed in seeds],
            use_tqdm=False,
        )
        return [[self._draw(each) for each in output.outputs] for output in outputs]

    def _params(self, seed: int, n: int) -> Any:
        options = self.options
        return self.vllm.SamplingParams(
            n=n, seed=seed, temperature=options.temperature, top_p=options.top_p, max_tokens=options.max_new_tokens
        )

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
