"""LoRA: small trainable matrices beside frozen weights, as the paper trains its 7B models (section 3.2, Table 5)."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.utils.import_utils import is_bitsandbytes_available

from hafrm.errors import ConfigError, MissingExtraError

__all__ = ["LoraOptions", "add_lora", "merged_state_dict", "quantization_config", "quiet_peft"]


@dataclass(frozen=True, kw_only=True)
class LoraOptions:
    """Low-rank adapters on the backbone; the reward head is always trained in full."""

    rank: int = 0
    """Rank of the adapters; 0 trains every weight. The paper's Mistral runs use 64 (Table 5)."""

    alpha: int = 16
    """LoRA's own scaling numerator (Table 5: 16). Not the paper's alpha, which is `loss.policy_ratio`."""

    dropout: float = 0.0
    """Dropout before the adapters. The paper does not say."""

    targets: list[str] = field(default_factory=list)
    """Names of the linear layers that get adapters. Empty: every linear layer of the backbone, never the heads."""

    quantize: Literal["none", "4bit"] = "none"
    """`4bit` freezes the backbone in 4-bit NF4 (QLoRA); needs a GPU and bitsandbytes."""

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise ConfigError(f"lora.rank must be 0 (no LoRA) or more, got {self.rank}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"lora.dropout must be in [0, 1), got {self.dropout}")
        if self.alpha < 1:
            raise ConfigError(f"lora.alpha must be at least 1, got {self.alpha}")
        heads = {"lm_head", "embed_out", "score"} & set(self.targets)
        if heads:
            raise ConfigError(f"lora.targets names a head ({', '.join(heads)}); adapters go on the backbone alone.")
        for each in fields(self) if self.rank == 0 else ():
            default = [] if each.name == "targets" else each.default
            if getattr(self, each.name) != default:
                raise ConfigError(f"lora.{each.name} needs adapters to train: set lora.rank (the paper uses 64).")

    @property
    def enabled(self) -> bool:
        """Whether adapters are trained at all."""
        return self.rank > 0


@contextlib.contextmanager
def quiet_peft() -> Iterator[None]:
    """Within the context PEFT 0.21 may read a property that transformers 5.23 deprecates."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        yield


def add_lora(causal_lm: PreTrainedModel, options: LoraOptions) -> nn.Module:
    """Wrap a causal LM with LoRA adapters, freezing the rest.

    Raises:
        ConfigError: a named target does not exist in the model.
    """
    _require_targets(causal_lm, options.targets)
    if options.quantize == "4bit":
        # Activations are recomputed where `training.activation_checkpointing` says so, not because of this.
        causal_lm = prepare_model_for_kbit_training(causal_lm, use_gradient_checkpointing=False)
    config = LoraConfig(
        task_type="CAUSAL_LM",  # PEFT then leaves the LM head out of "all-linear"
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules=options.targets or "all-linear",
        # GPT-2 keeps its linear layers transposed.
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in causal_lm.modules()),
    )
    with quiet_peft():
        return get_peft_model(causal_lm, config)


def _require_targets(causal_lm: PreTrainedModel, targets: Sequence[str]) -> None:
    """Refuse a target that fits no layer: PEFT passes over it where another one fits."""
    linear = [name for name, module in causal_lm.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    wrong = [each for each in targets if not any(name == each or name.endswith(f".{each}") for name in linear)]
    if wrong:
        there = sorted({name.rsplit(".", 1)[-1] for name in linear})
        raise ConfigError(
            f"lora.targets: {', '.join(wrong)} fit no layer of the model. Its linear layers: {', '.join(there)}."
        )


def quantization_config(options: LoraOptions) -> BitsAndBytesConfig | None:
    """How to load the backbone for these options: 4-bit NF4 for QLoRA, else as it is.

    Raises:
        ConfigError: 4-bit was asked for and there is no GPU.
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


@torch.no_grad()
def merged_state_dict(stock_lm: PreTrainedModel) -> dict[str, Tensor]:
    """The weights of a model with adapters, as a plain model without them would have them.

    They are in float32 and on the CPU. In bfloat16 a weight's neighbours are up to 2^-7 of it apart, and most of what
    adapters learn is less: rounded so, it would be lost. On the CPU, since a whole model more would not fit beside the
    one that was trained; of the merged weights its device holds one layer's at a time. The model itself stays as it is:
    merging in place and back would move its weights by rounding.
    """
    state = stock_lm.state_dict()
    merged: dict[str, Tensor] = {}
    for name, module in stock_lm.named_modules():
        if isinstance(module, LoraLayer):
            merged[f"{name}.base_layer.weight"] = _plain(_merged_weight(module))
        elif f"{name}.weight" not in merged and _is_packed(module):
            merged[f"{name}.weight"] = _plain(dequantize_module_weight(module))
    copies: dict[tuple[int, torch.Size], Tensor] = {}  # tied weights stay one
    for name, tensor in state.items():
        if ".lora_" not in name and ".weight." not in name and name not in merged:  # nor what unpacks a 4-bit weight
            key = (tensor.data_ptr(), tensor.shape)
            copies[key] = merged[name] = copies[key] if key in copies else _plain(tensor)
    return {name.replace(".base_layer.", "."): merged[name] for name in state if name in merged}


def _merged_weight(layer: Any) -> Tensor:
    """A layer's weight with what its active adapters add, in float32 at least, on its device."""
    weight = _widened(dequantize_module_weight(layer.get_base_layer()))
    for adapter in layer.active_adapters:
        weight = weight + layer.get_delta_weight(adapter).to(weight.dtype)
    return weight


def _is_packed(module: nn.Module) -> bool:
    """Whether a module's weight is quantized: stored as whole numbers, which alone say nothing."""
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and not weight.is_floating_point()


def _widened(tensor: Tensor) -> Tensor:
    """The tensor in float32 at least; whole numbers and truth values as they are."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32)) if tensor.is_floating_point() else tensor


def _plain(tensor: Tensor) -> Tensor:
    """A copy, or a view where none is needed, in float32 at least and on the CPU."""
    return _widened(tensor.detach()).cpu()
