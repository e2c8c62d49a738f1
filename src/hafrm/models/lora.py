"""LoRA: small trainable matrices next to frozen weights, as for the paper's 7B models (section 3.2, Table 5)."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Collection, Iterator
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from peft.tuners.lora import LoraLayer, ParamWrapper
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.utils.import_utils import is_bitsandbytes_available

from hafrm.errors import ConfigError, MissingExtraError
from hafrm.models.options import LoraOptions
from hafrm.models.targets import Targets, find_targets


@contextlib.contextmanager
def quiet_peft() -> Iterator[None]:
    """Silence the warning of PEFT 0.21 reading a property that transformers 5.23 deprecates."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        yield


def targets_of(causal_lm: PreTrainedModel, options: LoraOptions, *, but: Collection[str] = ()) -> Targets:
    """Find the weights that get adapters with these options; see `find_targets`.

    Raises:
        ConfigError: a named target does not exist in the model, or an option is incompatible with it.
    """
    targets = find_targets(causal_lm, options.targets, but=but, packed=options.quantize != "none")
    if targets.parameters and options.dropout:
        raise ConfigError(
            f"lora.dropout: {targets.parameters[0]} is adapted as a weight, but dropout applies to a layer's input. "
            "Leave it out, or choose other lora.targets."
        )
    widest = max((min(shape) for shape in _shapes(causal_lm, targets)), default=options.rank)
    if options.rank > widest:
        raise ConfigError(
            f"lora.rank is {options.rank}, but no adapted layer has a rank above {widest}: adapters would be larger "
            "than the layers themselves. Lower it, or train all weights (lora.rank 0)."
        )
    return targets


def _shapes(causal_lm: PreTrainedModel, targets: Targets) -> Iterator[tuple[int, int]]:
    """Yield the sizes, inputs and outputs in either order, of the weights that get adapters."""
    for name in targets.modules:
        layer: Any = causal_lm.get_submodule(name)
        yield (layer.nx, layer.nf) if isinstance(layer, Conv1D) else (layer.in_features, layer.out_features)
    for name in targets.parameters:
        outputs, inputs = causal_lm.get_parameter(name).shape[-2:]
        yield outputs, inputs


def add_lora(causal_lm: PreTrainedModel, options: LoraOptions, targets: Targets | None = None) -> nn.Module:
    """Add LoRA adapters to a causal LM, by default on the result of `targets_of`, and freeze the rest."""
    targets = targets or targets_of(causal_lm, options)
    if options.quantize == "4bit":
        # Only `training.activation_checkpointing` decides whether activations are recomputed.
        causal_lm = prepare_model_for_kbit_training(causal_lm, use_gradient_checkpointing=False)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules=list(targets.modules),
        target_parameters=list(targets.parameters) or None,
        # GPT-2 stores its linear layers transposed.
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in causal_lm.modules()),
    )
    with quiet_peft():
        return get_peft_model(causal_lm, config)


def quantization_config(options: LoraOptions) -> BitsAndBytesConfig | None:
    """Return how to quantize the backbone: 4-bit NF4 for QLoRA, else None.

    Raises:
        ConfigError: 4-bit is requested without a GPU.
        MissingExtraError: bitsandbytes is not installed.
    """
    if options.quantize == "none":
        return None
    if not torch.cuda.is_available():
        raise ConfigError("lora.quantize: 4bit needs a CUDA GPU. Leave it out to train plain LoRA here.")
    if not is_bitsandbytes_available():
        raise MissingExtraError("lora.quantize: 4bit needs bitsandbytes: pip install bitsandbytes")
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def plain_name(name: str) -> str:
    """Return a tensor's name in the model without adapters."""
    return re.sub(r"\.(base_layer\.)+", ".", name)


@torch.no_grad()
def merged_state_dict(stock_lm: PreTrainedModel) -> dict[str, Tensor]:
    """Return the weights of a model with adapters, merged into those of a plain model.

    They are in float32 and on the CPU. In bfloat16, adjacent values of a weight differ by up to 2^-7 of it, and most of
    what adapters learn is smaller: rounding would erase it. On the CPU, because a second whole model would not fit on
    the device, which holds the merged weights of one layer at a time. The model itself is left unchanged: merging in
    place and back would change its weights by rounding.
    """
    state = stock_lm.state_dict()
    merged: dict[str, Tensor] = {}
    for name, module in stock_lm.named_modules():
        if isinstance(module, LoraLayer):
            parameter = module.parameter_name if isinstance(module, ParamWrapper) else "weight"
            merged[plain_name(f"{name}.{parameter}")] = _plain(_merged_weight(module, parameter))
        elif plain_name(f"{name}.weight") not in merged and _is_packed(module):
            merged[plain_name(f"{name}.weight")] = _plain(dequantize_module_weight(module))
    copies: dict[tuple[int, torch.Size], Tensor] = {}  # keeps tied weights tied
    for name, tensor in state.items():
        plain = plain_name(name)
        # skip adapters, the parts of a 4-bit weight, and weights merged above
        if ".lora_" not in name and ".weight." not in name and plain not in merged:
            key = (tensor.data_ptr(), tensor.shape)
            copies[key] = merged[plain] = copies[key] if key in copies else _plain(tensor)
    return {plain: merged[plain] for plain in map(plain_name, state) if plain in merged}


def _merged_weight(layer: Any, parameter: str) -> Tensor:
    """Add the active adapters to a weight, in at least float32, on its device."""
    base = layer.get_base_layer()
    weight = _widened(dequantize_module_weight(base) if parameter == "weight" else getattr(base, parameter))
    for adapter in layer.active_adapters:
        weight = weight + layer.get_delta_weight(adapter).to(weight.dtype)
    return weight


def _is_packed(module: nn.Module) -> bool:
    """Return whether a module's weight is quantized, that is stored as integers."""
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and not weight.is_floating_point()


def _widened(tensor: Tensor) -> Tensor:
    """Widen a floating-point tensor to at least float32; return others unchanged."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32)) if tensor.is_floating_point() else tensor


def _plain(tensor: Tensor) -> Tensor:
    """Copy a tensor, only if necessary, to at least float32 on the CPU."""
    return _widened(tensor.detach()).cpu()
