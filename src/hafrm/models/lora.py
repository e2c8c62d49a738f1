"""LoRA: small trainable matrices next to frozen weights, as for the paper's 7B models (section 3.2, Table 5)."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from peft.tuners.lora import LoraLayer, ParamWrapper
from peft.utils.integrations import dequantize_module_weight
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.utils.import_utils import is_bitsandbytes_available

from hafrm.errors import ConfigError, MissingExtraError
from hafrm.models.options import LoraOptions

_PARTS = {"gate_up_proj": ({"gate_proj", "up_proj"}, {"w1", "w3"}), "down_proj": ({"down_proj"}, {"w2"})}
"""Names in various families of the parts of experts' weights that transformers stores as one tensor."""


@dataclass(frozen=True)
class Targets:
    """Full names of the weights that get adapters."""

    modules: tuple[str, ...]
    parameters: tuple[str, ...]
    """Weights adapted by parameter name: of experts, and of layers whose names PEFT rewrites."""


def find_targets(
    causal_lm: PreTrainedModel, wanted: Sequence[str], *, but: Collection[str] = (), packed: bool = False
) -> Targets:
    """Find the weights of a model's backbone that get adapters.

    Args:
        causal_lm: The model, without adapters.
        wanted: Names, or ends of names; empty for all.
        but: Names of parameters that get none.
        packed: Whether linear layers are quantized, and therefore can't be adapted by parameter name.

    Raises:
        ConfigError: a name matches nothing in the model, or only half of a weight.
    """
    layers = [name for name in _linear_layers(causal_lm) if f"{name}.weight" not in but]
    experts = [name for name in expert_weights(causal_lm) if name not in but]
    if wanted:
        _require_known(wanted, layers, experts)
        layers = [name for name in layers if _fits(name, wanted)]
        experts = [name for name in experts if _fits_expert(name, wanted)]
    rewritten = _rewritten(causal_lm, {name.rsplit(".", 1)[-1] for name in layers})
    by_name = [name for name in layers if name.rsplit(".", 1)[-1] in rewritten]
    return Targets(
        tuple(name for name in layers if name not in set(by_name)),
        (*experts, *(f"{name}.weight" for name in by_name if not packed)),
    )


def _linear_layers(causal_lm: PreTrainedModel) -> Iterator[str]:
    """Yield the names of the backbone's linear layers that can have adapters.

    A state-space mixer passes its other weights to fused kernels, which would bypass adapters.
    """
    head = causal_lm.get_output_embeddings()
    modules = dict(causal_lm.named_modules())
    for name, module in modules.items():
        if isinstance(module, nn.Linear | Conv1D) and module is not head:
            parent, _, leaf = name.rpartition(".")
            if leaf == "in_proj" or not (hasattr(modules[parent], "A_log") and hasattr(modules[parent], "D")):
                yield name


def expert_weights(causal_lm: PreTrainedModel) -> list[str]:
    """Return the names of the parameters that contain a weight of all experts, [experts, ., .]."""
    counts = set(_expert_counts(causal_lm.config.to_dict()))
    return [
        name
        for name, weight in causal_lm.named_parameters()
        if weight.ndim == 3 and min(weight.shape[1:]) > 1 and ("expert" in name or weight.shape[0] in counts)
    ]


def _expert_counts(config: Mapping[str, Any]) -> Iterator[int]:
    """Yield the numbers of experts in a config and its nested configs."""
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _expert_counts(value)
        elif "expert" in str(name) and type(value) is int and value > 1:
            yield value


def _fits(name: str, wanted: Collection[str]) -> bool:
    return any(name == each or name.endswith(f".{each}") for each in wanted)


def _fits_expert(name: str, wanted: Collection[str]) -> bool:
    """Return whether the weight of experts is wanted, by its own name or by the names of all its parts.

    Raises:
        ConfigError: only some of its parts are wanted.
    """
    if _fits(name, wanted) or _fits(name.removesuffix(".weight"), wanted):
        return True
    for parts in _PARTS.get(name.rsplit(".", 1)[-1], ()):
        here = parts & set(wanted)
        if here and here != parts:
            raise ConfigError(
                f"lora.targets: {' and '.join(sorted(parts))} are one weight in this model's experts. Name both, or "
                f"{name.rsplit('.', 1)[-1]}."
            )
        if here:
            return True
    return False


def _require_known(wanted: Sequence[str], layers: Collection[str], experts: Collection[str]) -> None:
    """Raise if a name matches nothing; PEFT would ignore it if another name matches."""
    leaves = {name.removesuffix(".weight").rsplit(".", 1)[-1] for name in experts}
    parts = {part for leaf in leaves for each in _PARTS.get(leaf, ()) for part in each}
    known = (*layers, *experts)
    wrong = [each for each in wanted if each not in leaves | parts and not any(_fits(name, [each]) for name in known)]
    if wrong:
        there = sorted({name.rsplit(".", 1)[-1] for name in layers})
        mixed = f" Its experts: {', '.join(sorted(leaves))}." if leaves else ""
        raise ConfigError(
            f"lora.targets: no layer of the model matches {', '.join(wrong)}. "
            f"Its linear layers: {', '.join(there)}.{mixed}"
        )


def _rewritten(causal_lm: PreTrainedModel, leaves: Collection[str]) -> set[str]:
    """Return the names of layers that PEFT mistakes for experts in this family."""
    found = set()
    for leaf in leaves:
        config = LoraConfig(target_modules=[leaf])
        try:
            convert_peft_config_for_transformers(config, causal_lm, None)
        except ValueError:  # raised for one part of a merged weight
            found.add(leaf)
        else:
            if leaf not in (config.target_modules or ()):
                found.add(leaf)
    return found


def without_adapters(causal_lm: PreTrainedModel, targets: Targets, *, but: Collection[str] = ()) -> str | None:
    """Describe the backbone weights without adapters if they exceed 1% of the backbone.

    Embeddings, the LM head, vectors and experts' biases do not count.

    Args:
        causal_lm: The model, without adapters.
        targets: The weights that get adapters.
        but: Names of further parameters that do not count.
    """
    chosen = {*(f"{name}.weight" for name in targets.modules), *targets.parameters}
    left_out = {
        f"{name}.weight"
        for name, module in causal_lm.named_modules()
        if isinstance(module, nn.Embedding) or module is causal_lm.get_output_embeddings()
    }
    sizes = {
        name: weight.numel()
        for name, weight in causal_lm.named_parameters()
        if weight.ndim > 1 and not name.endswith("bias") and name not in left_out and name not in but
    }
    bare = {name: size for name, size in sizes.items() if name not in chosen}
    share = sum(bare.values()) / max(1, sum(sizes.values()))
    if share <= 0.01:
        return None
    largest = sorted(bare, key=lambda name: -bare[name])
    kinds = list(dict.fromkeys(".".join(name.split(".")[-2:]) for name in largest))
    return f"LoRA: {share:.0%} of the backbone's weights get no adapters ({', '.join(kinds[:4])})"


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
            "than the layers. Lower it, or train all weights (lora.rank 0)."
        )
    return targets


def _shapes(causal_lm: PreTrainedModel, targets: Targets) -> Iterator[tuple[int, int]]:
    """Yield the two dimensions, in either order, of each weight that gets adapters."""
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

    The weights are in float32, because rounding to bfloat16 would erase most of what adapters learn: adjacent values
    differ by up to 2^-7. They are on the CPU, because a second model may not fit on the device; merging needs room for
    one layer there. The model itself is left unchanged: merging and unmerging in place would round its weights.
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
