"""Stock models: loading them whole or not at all, and the model to train that starts from one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as hf_logging

from hafrm.errors import HafrmError, ModelError, first_line
from hafrm.models import modes
from hafrm.models.advice import advice
from hafrm.models.hybrid import HeadInit, HybridModel, new_reward_head
from hafrm.models.lora import LoraOptions, add_lora, quantization_config
from hafrm.models.runinfo import RUN_FILE, require_undamaged
from hafrm.models.tokenizers import resize_embeddings

__all__ = ["load_causal_lm", "load_whole", "loading", "new_model", "quiet_transformers", "require_whole"]


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' progress bars and its report of the other head as an unexpected key."""
    level, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()


@contextlib.contextmanager
def loading(kind: str, model: str) -> Iterator[None]:
    """Whatever goes wrong while transformers loads a model of this kind becomes a `ModelError` that says so."""
    try:
        with quiet_transformers():
            yield
    except HafrmError:
        raise
    except Exception as error:  # transformers raises many kinds: OSError, ValueError, safetensors' own, ...
        here = "" if Path(model).exists() else " There is no such folder here."
        raise ModelError(
            f"No {kind} could be loaded from {model}.{here} ({first_line(error)}){advice(error)}"
        ) from error


def load_whole(
    stock_class: Any, model: str, *, kind: str, dtype: torch.dtype | None = None, **kwargs: Any
) -> PreTrainedModel:
    """Load a stock model none of whose weights start at random.

    Args:
        stock_class: One of transformers' classes, or of their automatic choices.
        model: Folder or hub id.
        kind: What it should be, in words.
        dtype: The weights' dtype; None keeps the checkpoint's.
        **kwargs: More for `from_pretrained`.

    Raises:
        ModelError: nothing loads from there, or weights are missing, or they are pickled.
        DamagedError: it is a run's folder, and not as it was saved.
    """
    if (Path(model) / RUN_FILE).is_file():
        require_undamaged(Path(model))
    with loading(kind, model):
        loaded, report = stock_class.from_pretrained(
            model, dtype=dtype or "auto", use_safetensors=True, output_loading_info=True, **kwargs
        )
    require_whole(loaded, report, model, kind=kind)
    return cast(PreTrainedModel, loaded)


def require_whole(loaded: Any, report: Mapping[str, Any], model: str, *, kind: str) -> None:
    """Refuse a model some of whose weights start at random.

    Args:
        loaded: The model.
        report: What transformers says of its loading.
        model: Where it was loaded from.
        kind: What it should be, in words.

    Raises:
        ModelError: names the weights that are missing.
    """
    lost = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
    if lost:
        raise ModelError(
            f"{model} lacks weights of {type(loaded).__name__}: {', '.join(lost[:3])} ({len(lost)} in all). "
            f"They would start at random; give a checkpoint of a {kind}."
        )


def load_causal_lm(
    model: str, *, dtype: torch.dtype | None = None, trust_remote_code: bool = False, **kwargs: Any
) -> PreTrainedModel:
    """Load a stock causal LM; see `load_whole`."""
    return load_whole(
        AutoModelForCausalLM,
        model,
        kind="causal language model",
        dtype=dtype,
        trust_remote_code=trust_remote_code,  # left out, transformers would ask on the terminal
        **kwargs,
    )


def new_model(
    model: str,
    tokenizer: Any,
    *,
    lora: LoraOptions,
    head_init: HeadInit = "normal",
    seed: int = 0,
    dtype: torch.dtype | None = None,
    disable_dropout: bool = True,
    trust_remote_code: bool = False,
) -> HybridModel:
    """A model to train: a pretrained backbone and LM head, with a fresh reward head.

    Args:
        model: Folder or hub id of a causal LM.
        tokenizer: Its prepared tokenizer (`load_tokenizer`): the embeddings grow if it has new tokens.
        lora: Adapters, or none.
        head_init: How the reward head starts.
        seed: Seed of the reward head's start.
        dtype: The weights' dtype; None keeps the checkpoint's.
        disable_dropout: Train the backbone without its own dropout, as TRL does: log-ratios to a reference are noise
            with it. The saved config keeps its values, and adapters have `lora.dropout`.
        trust_remote_code: Run modelling code that comes with the model. Off unless you trust it.
    """
    quantization = quantization_config(lora)
    extra = {"quantization_config": quantization} if quantization else {}
    causal_lm = load_causal_lm(model, dtype=dtype, trust_remote_code=trust_remote_code, **extra)
    resize_embeddings(causal_lm, tokenizer)
    _describe_heads(causal_lm.config, tokenizer)
    if disable_dropout:
        modes.disable_dropout(causal_lm)
    head_dtype = torch.float32 if lora.enabled else causal_lm.dtype
    head = new_reward_head(causal_lm.config, init=head_init, seed=seed, dtype=head_dtype).to(causal_lm.device)
    return HybridModel(add_lora(causal_lm, lora) if lora.enabled else causal_lm, head)


def _describe_heads(config: PreTrainedConfig, tokenizer: Any) -> None:
    """Say in the config what stock classes must know: one label, a raw score, which token is padding."""
    config.num_labels = 1
    config.problem_type = "regression"  # without it pipelines and vLLM pass the reward through a sigmoid
    for part in {id(c): c for c in (config, config.get_text_config())}.values():
        part.pad_token_id = tokenizer.pad_token_id
