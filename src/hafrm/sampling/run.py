"""`hafrm sample`: form batches of prompts, draw the missing responses, and write each batch as it is drawn.

Batches are formed of all prompts, including finished ones, and a half-written batch is drawn again, so that a resumed
run writes the same file as an uninterrupted one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from hafrm import atomic
from hafrm.data import PromptRow, Prompts, load_prompts
from hafrm.errors import BadRowReason, ConfigError, DataError, ModelError
from hafrm.judging.rows import SAMPLES_FILE
from hafrm.models.checkpoints import load_run
from hafrm.models.generating import prompt_lengths
from hafrm.models.hybrid import max_positions
from hafrm.models.identity import model_identity
from hafrm.models.options import ScorerChoice, chat_template
from hafrm.models.remote import OVERLONG
from hafrm.models.runinfo import MANIFEST_FILE, is_run
from hafrm.models.stock import load_causal_lm, loading
from hafrm.models.tokenizers import load_tokenizer, resize_embeddings
from hafrm.outputs import require_apart, require_unread
from hafrm.sampling.engines import Generator, TransformersGenerator, VllmGenerator, prompt_seed
from hafrm.sampling.options import SampleConfig
from hafrm.sampling.samples import Samples, refuse_other_manifests, sample_counts, sample_line, write_manifest
from hafrm.store import LineFile, alone

_BATCHES_AT_ONCE = {"transformers": 1, "vllm": 64}
"""Batches per call of an engine: vLLM is only fast with many prompts at once."""


def sample(
    config: SampleConfig,
    *,
    generator: Generator | None = None,
    progress: Callable[[int, int], None] = lambda done, prompts: None,
    say: Callable[[str], None] = lambda line: None,
    wait: bool = False,
) -> dict[str, Any]:
    """Draw the missing responses, and write `samples.jsonl` and `manifest.json`.

    Args:
        config: What to sample.
        generator: Generates instead of the model, whose name is only recorded.
        progress: Called with the number of finished prompts, and the number of all prompts.
        say: Called with a line if a stopped run is resumed.
        wait: Wait for another command that is writing to the folder, instead of raising.

    Returns:
        The manifest: what the samples depend on, and counts.

    Raises:
        ConfigError: the folder has other samples, is a model's or in use, or options are incompatible.
        ModelError: the model can't be loaded, or consists only of adapters, which vLLM does not take.
        BadRowError: the chat template refuses a prompt, and `on_bad_row` is not `skip`.
    """
    require_apart(Path(config.out))
    for name in (SAMPLES_FILE, MANIFEST_FILE):
        atomic.require_plain(Path(config.out) / name)
        require_unread(Path(config.out) / name, config)
    prompts = load_prompts(config.data, config.data_options, split=config.split, limit=config.prompts)
    folder = Path(config.out)
    if generator is None and config.chosen_engine == "vllm":
        _refuse_bare_adapters(config.model)
    if LineFile(folder / SAMPLES_FILE).empty:
        refuse_other_manifests(folder)  # before a lock file is left there
    with alone(folder, wait=wait):
        depends_on = _depends_on(config, prompts, identify=generator is None)
        samples = Samples(folder, depends_on, prompts.rows)
        if len(samples.lines) < len(prompts.rows):
            generator, limit = _load(config, say) if generator is None else (generator, config.max_length)
            run = _Run(config, generator, prompts.rows, samples, limit)
            run.draw_missing(progress, say)
        samples.finish()  # even if none was missing: a killed run may have drawn the last batch without sorting
        read = {
            "model": config.model,
            "rows": prompts.read,
            "repeated": prompts.repeated,
            "skipped": dict(prompts.skipped),
        }
        return write_manifest(folder, depends_on, "finished", **read, **sample_counts(samples.lines))


def _refuse_bare_adapters(model: str) -> None:
    """Raise ModelError for a LoRA checkpoint, such as those of `hafrm rlhf`: vLLM is given whole models."""
    if (Path(model) / "adapter_config.json").is_file() and not (Path(model) / "config.json").is_file():
        raise ModelError(
            f"{model} contains only LoRA adapters, which are not given to vLLM. Use --engine transformers, or the "
            "run's own folder, which has the whole policy."
        )


def _load(config: SampleConfig, say: Callable[[str], None]) -> tuple[Generator, int | None]:
    """Load the engine, and return the maximum tokens of a prompt with its response."""
    tokenizer, causal_lm, model_config = _read_model(config, say)
    positions = max_positions(model_config)
    if config.max_length is not None and positions is not None and config.max_length > positions:
        raise ConfigError(f"max_length is {config.max_length}, but the model has {positions} positions.")
    limit = config.max_length or positions
    if causal_lm is not None:
        causal_lm = causal_lm.to(config.score_options.torch_device())
        return TransformersGenerator(causal_lm, tokenizer, config.sampling), limit
    made = VllmGenerator(
        config.model,
        tokenizer,
        config.sampling,
        dtype=config.dtype,
        max_length=limit,
        trust_remote_code=config.trust_remote_code,
    )
    return made, limit


def _read_model(config: SampleConfig, say: Callable[[str], None]) -> tuple[Any, Any, PreTrainedConfig]:
    """Return the tokenizer, the causal LM (None if vLLM loads its own), and the model's config."""
    trust, dtype = config.trust_remote_code, config.score_options.torch_dtype()
    template = chat_template(config.chat_template, "chat_template")
    if config.chosen_engine == "transformers" and is_run(config.model):
        run, tokenizer, _ = load_run(config.model, dtype=dtype, trust_remote_code=trust)
        if template is not None:
            tokenizer = load_tokenizer(config.model, trust_remote_code=trust, instead=template)
        return tokenizer, run.causal_lm, run.config
    tokenizer = load_tokenizer(config.model, trust_remote_code=trust, instead=template, say=say)
    if config.chosen_engine == "vllm":
        with loading("causal language model", config.model):
            return tokenizer, None, AutoConfig.from_pretrained(config.model, trust_remote_code=trust)
    causal_lm = load_causal_lm(config.model, dtype=dtype, trust_remote_code=trust)
    resize_embeddings(causal_lm, tokenizer)
    return tokenizer, causal_lm, causal_lm.config


class _Run:
    """The prompts to draw for, in batches."""

    def __init__(
        self,
        config: SampleConfig,
        generator: Generator,
        rows: Sequence[PromptRow],
        samples: Samples,
        limit: int | None,
    ) -> None:
        self.config, self.generator, self.rows, self.samples = config, generator, rows, samples
        skip = config.data_options.on_bad_row == "skip"
        lengths = prompt_lengths({row.id: row.prompt for row in rows}, generator.count_tokens, skip=skip)
        room = math.inf if limit is None else limit - config.sampling.max_new_tokens
        fit = [row for row in rows if row.id in lengths and lengths[row.id] <= room]
        if not fit:
            raise _nothing_fits(config, limit, refused=len(rows) - len(lengths), overlong=len(lengths))
        refused = BadRowReason.REFUSED_BY_TEMPLATE.value
        answered = {row.id for row in fit}
        unfit = [row for row in rows if row.id not in answered]
        self.unfit = [(row, OVERLONG if row.id in lengths else refused) for row in unfit]
        size = max(1, config.sampling.batch_size // config.n) * _BATCHES_AT_ONCE[config.chosen_engine]
        fit.sort(key=lambda row: -lengths[row.id])  # longest first, to fail early if memory is short
        self.batches = [fit[start : start + size] for start in range(0, len(fit), size)]

    def draw_missing(self, progress: Callable[[int, int], None], say: Callable[[str], None]) -> None:
        """Draw all batches that lack a line."""
        samples, total = self.samples, len(self.rows)
        there = samples.ids
        whole = [batch for batch in self.batches if all(row.id in there for row in batch)]
        samples.keep({row.id for batch in whole for row in batch})
        if samples.lines:
            say(f"{self.config.out} has samples of {len(samples.lines)} of {total} prompts; the run resumes.")
        samples.extend(sample_line(row, [], reason) for row, reason in self.unfit)
        done = {batch[0].id for batch in whole}
        for batch in self.batches:
            progress(len(samples.lines), total)
            if batch[0].id not in done:
                samples.extend(self._drawn(batch))
        progress(len(samples.lines), total)

    def _drawn(self, batch: Sequence[PromptRow]) -> list[dict[str, Any]]:
        prompts = [row.prompt for row in batch]
        seeds = [prompt_seed(self.config.sampling.seed, prompt) for prompt in prompts]
        drawn = self.generator.draw(prompts, seeds, self.config.n)
        return [sample_line(row, draws) for row, draws in zip(batch, drawn, strict=True)]


def _nothing_fits(config: SampleConfig, limit: int | None, *, refused: int, overlong: int) -> DataError:
    """Explain why nothing can be sampled: the chat template refuses all prompts, or they are too long."""
    if not overlong:
        return DataError(
            f"The chat template of {config.model} refuses every prompt ({refused} of {refused}). Give another model or "
            "other prompts; `--data_options.on_bad_row error` shows what is wrong with the first."
        )
    besides = f" (the chat template refuses {refused} of {refused + overlong} prompts)" if refused else ""
    return DataError(
        f"No prompt leaves room for {config.sampling.max_new_tokens} new tokens within {limit}{besides}. Lower "
        "sampling.max_new_tokens."
    )


def _depends_on(config: SampleConfig, prompts: Prompts, *, identify: bool) -> dict[str, Any]:
    """Return what samples depend on, under the names that messages use."""
    choice = ScorerChoice(head="reward", trust_remote_code=config.trust_remote_code)  # needs no reference
    identity: dict[str, Any] = {"generator": config.model}
    if identify:
        found = model_identity(config.model, choice, config.score_options)
        parts = ("its base", "the model", "its reference", "hafrm")  # "its base": of adapters in half precision
        identity = {name: found[name] for name in parts if name in found} | {"dtype": config.dtype}
    return {
        **identity,
        "engine": config.chosen_engine,
        "n": config.n,
        "max_length": config.max_length,
        **({"chat_template": chat_template(config.chat_template, "chat_template")} if config.chat_template else {}),
        **{f"sampling.{name}": value for name, value in asdict(config.sampling).items()},
        "set of prompts": prompts.sha256,
    }
