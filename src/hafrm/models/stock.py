"""Stock models, loaded completely or not at all, with PEFT adapters attached to them or merged into their weights."""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as hf_logging

from hafrm.errors import HafrmError, ModelError, first_line
from hafrm.models.lora import quiet_peft
from hafrm.models.runinfo import require_as_saved
from hafrm.models.sources import AdapterSource, adapter_source

_BY_WORD = {
    "trust_remote_code": "It contains Python code, which `--trust_remote_code true` would run. Such code can do "
    "anything that you can: read it first.",
    "gated": "Its owners ask for consent: accept the terms on the model's page and run `hf auth login`.",
    "ignore_mismatched_sizes": "Its weights have other shapes than its config.json says: restore either of them.",
    "safetensors": "Weights are only read from safetensors, because pickles can run code. If you trust this model, "
    "load it with transformers and save it again.",
}
"""Advice by a word in the message of an error."""


ONE_THREAD = threading.RLock()
"""Held while models are built or a function of the Python API runs: torch and transformers keep settings per process,
such as the default dtype, seeds and how tensors are created, that other threads would change or inherit.
"""


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' progress bars and its report of the other head as an unexpected key, in one thread."""
    with ONE_THREAD:
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
    """Silence transformers while a model of this kind is loaded, and turn errors into a `ModelError`."""
    with explaining(kind, model), quiet_transformers():
        yield


@contextlib.contextmanager
def explaining(kind: str, model: str, remedy: str = "") -> Iterator[None]:
    """Turn errors of loading something of this kind into a `ModelError`, with advice if their text suggests any."""
    try:
        yield
    except HafrmError:
        raise
    except Exception as error:  # transformers raises many kinds: OSError, ValueError, safetensors' own, ...
        nowhere = "" if Path(model).exists() else " There is no such folder here."
        advice = next((f" {text}" for word, text in _BY_WORD.items() if word in str(error)), remedy)
        raise ModelError(f"No {kind} could be loaded from {model}.{nowhere} ({first_line(error)}){advice}") from error


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
        kind: The expected kind of model, in words.
        dtype: Dtype of the weights; None keeps the checkpoint's.
        optional: Returns the names of weights that may be missing from the loaded model; they are set to zero.
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
    """Copy memory-mapped weights, one at a time, because their file may change or shrink later.

    safetensors returns views of the mapped file: changes of the file would change the weights, and accessing a page
    that no longer exists would kill the process. Weights that share memory still share it afterwards.
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
    """Raise ModelError if weights of a model, of the `kind` in words, would start at random, except those in `but`."""
    lost = sorted(set(map(str, [*report["missing_keys"], *report["mismatched_keys"]])) - set(but))
    if lost:
        raise ModelError(
            f"{model} lacks weights of {type(loaded).__name__}: {', '.join(lost[:3])} ({len(lost)} in all). "
            f"They would be random. Give a checkpoint of a {kind}."
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
        lm_head: Whether the LM head is needed. Classifiers without tied embeddings have none; if it is not needed, a
            missing one is set to zero (see `with_lm_head`).
        **kwargs: Further arguments of `from_pretrained`.
    """
    if (adapters := adapter_source(model)) is not None:
        require_as_saved(model)
        base = load_causal_lm(
            adapters.base, dtype=dtype, trust_remote_code=trust_remote_code, lm_head=lm_head, **kwargs
        )
        return _merged(base, adapters)
    loaded = load_whole(
        AutoModelForCausalLM,
        model,
        kind="causal language model",
        dtype=dtype,
        optional=lm_head_names if not lm_head else lambda loaded: (),
        trust_remote_code=trust_remote_code,  # if omitted, transformers would ask on the terminal
        **kwargs,
    )
    require_decoder(loaded, model)
    return loaded


def require_decoder(causal_lm: PreTrainedModel, model: str) -> None:
    """Raise ModelError if a model's tokens see later ones, as in the encoders that transformers loads as causal LMs."""
    config: Any = causal_lm.config
    # GPT-NeoX's config also has an `is_decoder` that is false, which means nothing there.
    if getattr(config, "is_decoder", None) is False and hasattr(config, "add_cross_attention"):
        raise ModelError(
            f"{model} is an encoder: in {type(causal_lm).__name__} each token sees the later ones unless the config "
            "has `is_decoder: true`. Use a decoder."
        )


def _merged(base: PreTrainedModel, adapters: AdapterSource) -> PreTrainedModel:
    """Merge adapters, without a reward head, into their base in at least float32; round to the original dtype."""
    rounded = base.dtype
    cast(nn.Module, base).to(torch.promote_types(rounded, torch.float32))
    with loading("adapters", str(adapters.folder)):
        merge = getattr(attach_adapters(base, adapters).base_model, "merge_and_unload", None)
        if merge is None:
            raise ModelError(
                f"The adapters in {adapters.folder} are of a type that can't be merged into weights. Use LoRA adapters."
            )
        merged = cast(PreTrainedModel, merge())
    cast(nn.Module, merged).to(rounded)
    return merged


def lm_head_names(causal_lm: PreTrainedModel) -> list[str]:
    """Return the names of the LM head's own parameters."""
    head = causal_lm.get_output_embeddings()
    names = [name for name, module in causal_lm.named_modules() if module is head and head is not None]
    return [f"{names[0]}.{name}" for name, _ in head.named_parameters()] if names else []


def with_lm_head(causal_lm: PreTrainedModel) -> bool:
    """Return whether a loaded causal LM has an LM head, as opposed to a missing one that was set to zero."""
    head = causal_lm.get_output_embeddings()
    return head is None or bool(cast(Any, head).weight.any())


_HEADS = ("score", "classifier", "v_head", "value_head")
_PREFIX = "base_model.model."


def attach_adapters(model: PreTrainedModel, source: AdapterSource, *, head: str | None = None) -> PeftModel:
    """Attach saved adapters to the model on which they were trained.

    Args:
        model: The model, as a causal LM or classifier. Its embeddings grow to those saved with the adapters.
        head: The module of the model that receives the saved reward head; None skips the head.

    Raises:
        ModelError: the adapters do not fit the model.
    """
    config = copy.deepcopy(PeftConfig.from_pretrained(str(source.folder)))
    state = load_file(source.weights)
    saved_whole = [name for name in getattr(config, "modules_to_save", None) or [] if name not in _HEADS]
    config.modules_to_save = [*saved_whole, *([head] if head else [])] or None
    config.task_type, config.inference_mode = None, True
    if head is None:
        state = {
            name: tensor for name, tensor in state.items() if name.removeprefix(_PREFIX).split(".", 1)[0] not in _HEADS
        }
    _grow_embeddings(model, state)
    with quiet_peft():
        adapted = cast(PeftModel, get_peft_model(model, config))
    load_adapters(adapted, state, source.folder, source.base)
    return adapted.eval()


def load_adapters(model: nn.Module, state: dict[str, torch.Tensor], folder: Path, base: str) -> None:
    """Load the weights of adapters into a model that has them, in place.

    Raises:
        ModelError: names a weight that only one of them has.
    """
    report: Any = set_peft_model_state_dict(model, state)
    lost = [name for name in report.missing_keys if ".lora_" in name or ".modules_to_save." in name]
    if unmatched := [*report.unexpected_keys, *lost]:
        raise ModelError(f"The adapters in {folder} do not match {base}: {unmatched[0]} is missing from one of them.")


def _grow_embeddings(model: PreTrainedModel, state: dict[str, torch.Tensor]) -> None:
    """Grow the embeddings to those saved with adapters, which are larger if tokens were added before training."""
    embeddings = cast(nn.Embedding, model.get_input_embeddings())
    name = next(name for name, module in model.named_modules() if module is embeddings)
    saved = state.get(f"{_PREFIX}{name}.weight")
    if saved is not None and saved.shape[0] != embeddings.num_embeddings:
        model.resize_token_embeddings(saved.shape[0], mean_resizing=False)
