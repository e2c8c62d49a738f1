"""Loads stock models completely or not at all, and builds models to train from them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as hf_logging

from hafrm.errors import ConfigError, HafrmError, ModelError, first_line
from hafrm.models import modes
from hafrm.models.adapters import merged_into
from hafrm.models.advice import advice, not_here
from hafrm.models.finite import require_finite
from hafrm.models.heads import SavedHead, kept_head
from hafrm.models.hybrid import HybridModel, head_width, new_reward_head
from hafrm.models.lora import add_lora, quantization_config, targets_of, trace_text, without_adapters
from hafrm.models.options import HeadInit, LoraOptions
from hafrm.models.runinfo import require_as_saved
from hafrm.models.sources import AdapterSource, adapter_source
from hafrm.models.tokenizers import resize_embeddings


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
    """Turn errors of loading a model of this kind into a `ModelError`."""
    try:
        with quiet_transformers():
            yield
    except HafrmError:
        raise
    except Exception as error:  # transformers raises many kinds: OSError, ValueError, safetensors' own, ...
        raise ModelError(
            f"No {kind} could be loaded from {model}.{not_here(model)} ({first_line(error)}){advice(error)}"
        ) from error


def load_whole(
    stock_class: Any,
    model: str,
    *,
    kind: str,
    dtype: torch.dtype | None = None,
    optional: Callable[[PreTrainedModel], Collection[str]] = lambda loaded: (),
    **kwargs: Any,
) -> PreTrainedModel:
    """Load a stock model; raise if any of its weights would start at random.

    Args:
        stock_class: One of transformers' model or auto classes.
        model: Folder or hub id.
        kind: The expected kind of model, in words.
        dtype: Dtype of the weights; None keeps the checkpoint's.
        optional: Names of the loaded model's weights that may be missing; they are set to zero.
        **kwargs: Further arguments of `from_pretrained`.

    Raises:
        ModelError: no model can be loaded, or weights are missing or pickled.
        DamagedError: it is a run's folder with changed files.
    """
    require_as_saved(model)
    with loading(kind, model):
        loaded, report = stock_class.from_pretrained(
            model, dtype=dtype or "auto", use_safetensors=True, output_loading_info=True, **kwargs
        )
    detach_from_files(loaded)
    missing = set(map(str, report["missing_keys"])) & set(optional(loaded))
    require_whole(loaded, report, model, kind=kind, but=missing)
    for name in missing:
        loaded.get_parameter(name).data.zero_()
    return cast(PreTrainedModel, loaded)


def detach_from_files(model: nn.Module) -> None:
    """Copy memory-mapped weights one at a time, because their file may change or shrink later.

    safetensors returns views of the mapped file, so later changes of the file change the weights, and accessing a page
    that no longer exists kills the process. Weights that share memory still share it afterwards.
    """
    copies: dict[tuple[int, torch.Size, tuple[int, ...], torch.dtype], torch.Tensor] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type != "cpu":
            continue
        key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if key not in copies:
            copies[key] = tensor.data.clone(memory_format=torch.preserve_format)
        tensor.data = copies[key]


def require_whole(loaded: Any, report: Mapping[str, Any], model: str, *, kind: str, but: Collection[str] = ()) -> None:
    """Raise if some of a model's weights would start at random.

    Args:
        loaded: The model.
        report: transformers' loading report.
        model: Where it was loaded from.
        kind: The expected kind of model, in words.
        but: Weights that may be missing.

    Raises:
        ModelError: names the missing weights.
    """
    lost = sorted(set(map(str, [*report["missing_keys"], *report["mismatched_keys"]])) - set(but))
    if lost:
        raise ModelError(
            f"{model} lacks weights of {type(loaded).__name__}: {', '.join(lost[:3])} ({len(lost)} in all). "
            f"They would be random: give a checkpoint of a {kind}."
        )


def load_causal_lm(
    model: str,
    *,
    dtype: torch.dtype | None = None,
    trust_remote_code: bool = False,
    lm_head: bool = True,
    **kwargs: Any,
) -> PreTrainedModel:
    """Load a stock causal LM, with adapters merged if it consists of them; see `load_whole`.

    Args:
        model: Folder or hub id of a causal LM, a classifier on one, or adapters for either.
        dtype: Dtype of the weights; None keeps the checkpoint's.
        trust_remote_code: Run modelling code that comes with the model. Off unless you trust it.
        lm_head: Whether the LM head is needed. Classifiers without tied embeddings have none; if it is not needed, a
            missing one is set to zero (see `with_lm_head`).
        **kwargs: Further arguments of `from_pretrained`.
    """
    load = partial(load_causal_lm, trust_remote_code=trust_remote_code, lm_head=lm_head, **kwargs)
    if (adapters := adapter_source(model)) is not None:
        require_as_saved(model)
        return _load_merged(adapters, load, dtype)
    return load_whole(
        AutoModelForCausalLM,
        model,
        kind="causal language model",
        dtype=dtype,
        optional=lm_head_names if not lm_head else lambda loaded: (),
        trust_remote_code=trust_remote_code,  # if omitted, transformers would ask on the terminal
        **kwargs,
    )


def _load_merged(
    adapters: AdapterSource, load: Callable[..., PreTrainedModel], dtype: torch.dtype | None
) -> PreTrainedModel:
    """Merge adapters into their base in at least float32, then round to the original dtype."""
    base = load(adapters.base, dtype=dtype)
    rounded = base.dtype
    cast(nn.Module, base).to(torch.promote_types(rounded, torch.float32))
    with loading("adapters", str(adapters.folder)):
        merged = merged_into(base, adapters)
    cast(nn.Module, merged).to(rounded)
    return merged


def lm_head_names(causal_lm: PreTrainedModel) -> list[str]:
    """Return the names of the LM head's own parameters."""
    head = causal_lm.get_output_embeddings()
    names = [name for name, module in causal_lm.named_modules() if module is head and head is not None]
    return [f"{names[0]}.{name}" for name, _ in head.named_parameters()] if names else []


def with_lm_head(causal_lm: PreTrainedModel) -> bool:
    """Return whether a loaded causal LM has an LM head; a missing one was set to zero."""
    head = causal_lm.get_output_embeddings()
    return head is None or bool(cast(Any, head).weight.any())


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
    lm_head: bool = True,
) -> HybridModel:
    """Build a model to train: a pretrained backbone and LM head, with a new or existing reward head.

    Args:
        model: Folder or hub id of a causal LM, a classifier on one, a run, or adapters for any of these.
        tokenizer: Its prepared tokenizer (`load_tokenizer`): the embeddings grow if it has new tokens.
        lora: Adapters, or none.
        head_init: How the reward head starts.
        seed: Seed of a new reward head.
        dtype: Dtype of the weights; None keeps the checkpoint's.
        disable_dropout: Train the backbone without its own dropout, as in TRL: dropout makes log-ratios to a reference
            noisy. The saved config keeps its values, and adapters have `lora.dropout`.
        trust_remote_code: Run modelling code that comes with the model. Off unless you trust it.
        lm_head: Whether the LM head is needed; see `load_causal_lm`.

    Raises:
        ModelError: no such model can be loaded, or its head can't be kept as requested.
    """
    saved = None
    if head_init in ("auto", "keep"):
        saved = kept_head(model, required=head_init == "keep", trust_remote_code=trust_remote_code)
    quantization = quantization_config(lora)
    if quantization and adapter_source(model) is not None:
        raise ConfigError(
            f"lora.quantize: 4bit can't quantize {model}, which consists of adapters: merge them into their base first."
        )
    extra = {"quantization_config": quantization} if quantization else {}
    causal_lm = load_causal_lm(model, dtype=dtype, trust_remote_code=trust_remote_code, lm_head=lm_head, **extra)
    headed = with_lm_head(causal_lm)
    resize_embeddings(causal_lm, tokenizer)
    reach = trace_text(causal_lm)
    for name in reach.unreached:
        causal_lm.get_parameter(name).requires_grad_(False)
    _describe_heads(causal_lm.config, tokenizer)
    if disable_dropout:
        modes.disable_dropout(causal_lm)
    head_dtype = torch.float32 if lora.enabled else causal_lm.dtype
    head = new_reward_head(
        head_width(causal_lm), init="zero" if head_init == "zero" else "normal", seed=seed, dtype=head_dtype
    )
    if saved is not None:
        _take_over(head, saved, model)
    require_finite([*causal_lm.named_parameters(), ("of the reward head", head.weight)], model)
    head = head.to(causal_lm.device)
    if not lora.enabled:
        return HybridModel(causal_lm, head, with_lm_head=headed)
    targets = targets_of(causal_lm, lora, but=reach.no_adapters)
    bare = None if lora.targets else without_adapters(causal_lm, targets, but=reach.unreached)
    return HybridModel(add_lora(causal_lm, lora, targets), head, with_lm_head=headed, bare=bare)


def _take_over(head: nn.Linear, saved: SavedHead, model: str) -> None:
    assert saved.weight is not None
    if saved.weight.shape != head.weight.shape:
        raise ModelError(
            f"The reward head of {model} has shape {list(saved.weight.shape)}, but hidden states have "
            f"{head.weight.shape[1]} values. Set `--head_init normal` to start with a fresh head."
        )
    with torch.no_grad():
        head.weight.copy_(saved.weight)


def _describe_heads(config: PreTrainedConfig, tokenizer: Any) -> None:
    """Add what stock classes need to the config: one label, a raw score, and the pad token."""
    config.num_labels = 1
    config.problem_type = "regression"  # otherwise pipelines and vLLM apply a sigmoid to the reward
    for part in {id(c): c for c in (config, config.get_text_config())}.values():
        part.pad_token_id = tokenizer.pad_token_id
