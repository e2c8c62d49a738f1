"""PEFT adapters on a stock model: attaching them, and merging them into its weights."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from peft import PeftConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel

from hafrm.errors import ModelError
from hafrm.models.lora import quiet_peft
from hafrm.models.sources import AdapterSource

_HEADS = ("score", "classifier", "v_head", "value_head")
_PREFIX = "base_model.model."


def lay_on(model: PreTrainedModel, source: AdapterSource, *, head: str | None = None) -> PeftModel:
    """Attach saved adapters to the model on which they were trained.

    Args:
        model: That model, as a causal LM or classifier. Its embeddings grow to the size of those saved with the
            adapters.
        source: The adapters.
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
        state = {name: tensor for name, tensor in state.items() if _module(name) not in _HEADS}
    _grow_embeddings(model, state)
    with quiet_peft():
        adapted = cast(PeftModel, get_peft_model(model, config))
    report: Any = set_peft_model_state_dict(adapted, state)
    lost = [name for name in report.missing_keys if ".lora_" in name or ".modules_to_save." in name]
    if strangers := [*report.unexpected_keys, *lost]:
        raise ModelError(
            f"The adapters in {source.folder} do not match {source.base}: {strangers[0]} is missing from one of them."
        )
    return adapted.eval()


def merged_into(model: PreTrainedModel, source: AdapterSource) -> PreTrainedModel:
    """Merge saved adapters into a model's weights, in place, ignoring their reward head.

    Raises:
        ModelError: the adapters do not fit the model, or are of a kind that can't be merged.
    """
    merge = getattr(lay_on(model, source).base_model, "merge_and_unload", None)
    if merge is None:
        raise ModelError(
            f"The adapters in {source.folder} are of a type that can't be merged into weights. Use LoRA adapters."
        )
    return cast(PreTrainedModel, merge())


def _module(name: str) -> str:
    """Return the outermost module of a saved weight."""
    return name.removeprefix(_PREFIX).split(".", 1)[0]


def _grow_embeddings(model: PreTrainedModel, state: dict[str, torch.Tensor]) -> None:
    """Grow the embeddings to those saved with adapters: tokens had been added before training."""
    embeddings = cast(nn.Embedding, model.get_input_embeddings())
    name = next(name for name, module in model.named_modules() if module is embeddings)
    saved = state.get(f"{_PREFIX}{name}.weight")
    if saved is not None and saved.shape[0] != embeddings.num_embeddings:
        model.resize_token_embeddings(saved.shape[0], mean_resizing=False)
