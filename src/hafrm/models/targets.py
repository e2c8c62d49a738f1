"""The weights of a model that get LoRA adapters: linear layers, and experts that a mixture stores in one tensor.

transformers 5 stores a mixture's experts as three-dimensional parameters, [experts, out, in], instead of layers. PEFT
adapts such a parameter by its name. For some families it also rewrites the names of layers that used to be experts;
layers of a shared expert with the same name would then lose their adapters, so these are also named by parameter.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peft import LoraConfig
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hafrm.errors import ConfigError

_PARTS = {"gate_up_proj": ({"gate_proj", "up_proj"}, {"w1", "w3"}), "down_proj": ({"down_proj"}, {"w2"})}
"""Former names, in various families, of experts' weights that are now one tensor."""


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
        packed: Whether linear layers are quantized: they can't be adapted by parameter.

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
    """Return the names of the parameters with a weight of all experts, [experts, ., .]."""
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
    """Raise if a name matches nothing: PEFT ignores it if another one matches."""
    leaves = {name.removesuffix(".weight").rsplit(".", 1)[-1] for name in experts}
    parts = {part for leaf in leaves for each in _PARTS.get(leaf, ()) for part in each}
    wrong = [each for each in wanted if not any(_fits(name, [each]) for name in layers) and each not in leaves | parts]
    wrong = [each for each in wrong if not any(_fits(name, [each]) for name in experts)]
    if wrong:
        there = sorted({name.rsplit(".", 1)[-1] for name in layers})
        mixed = f" Its experts: {', '.join(sorted(leaves))}." if leaves else ""
        raise ConfigError(
            f"lora.targets: {', '.join(wrong)} fit no layer of the model. Its linear layers: {', '.join(there)}.{mixed}"
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
