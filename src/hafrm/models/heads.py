"""Reward heads of saved models: their names and forms, also in stock classifiers, and which ones training can keep.

Known forms: `score.weight` (transformers' classifiers, TRL's and OpenRLHF's reward models, runs of hafrm),
`value_head.weight` (older versions of OpenRLHF), `v_head.weight` (InternLM2), `v_head.summary.weight` (TRL's value
heads, which LLaMA-Factory saves in `value_head.safetensors`), and the name of the single linear layer in an
architecture's own stock classifier. Each may be prefixed by `model.`, and have shape [H] instead of [1, H]. For scoring
also GRM's `v_head.summary.0` and so on: linear layers with ReLU between them.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
)
from transformers.utils import CONFIG_NAME

from hafrm.errors import ModelError
from hafrm.models.runinfo import is_run
from hafrm.models.sources import SavedWeights, adapter_source, find_file, read_config, root_model

SCORE = "score.weight"
"""Name of the reward head's weight in most models."""

HEADS = "reward_heads.weight"
"""Name of the weights of several reward heads in a run's files, [K, H], which stock classes ignore."""


@dataclass(frozen=True)
class StockClassifier:
    """transformers' sequence classifier for an architecture."""

    name: str
    """Name of the class."""
    head: str | None
    """Name of its head's weight, [1, H]; None if its head is not a single linear layer without bias."""
    width: int | None
    """H of that weight."""
    own: tuple[str, ...]
    """Names of all parameters that the causal LM lacks."""


def stock_classifier(config: PreTrainedConfig) -> StockClassifier | None:
    """Find transformers' sequence classifier for the causal LM of a config; None if there is none."""
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:  # a config with custom code
        return None
    key = type(config), config.to_json_string()
    if key not in _classifiers:
        _classifiers[key] = _new_stock_classifier(config)
    return _classifiers[key]


_classifiers: dict[tuple[type, str], StockClassifier | None] = {}
"""Known classifiers: building a large model takes seconds, even without weights, and each checkpoint asks."""


def _new_stock_classifier(config: PreTrainedConfig) -> StockClassifier | None:
    with torch.device("meta"):
        causal = AutoModelForCausalLM.from_config(copy.deepcopy(config))
        own_config = copy.deepcopy(causal.config)  # some classes use only a part of a composite config
        if type(own_config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
            return None
        own_config.num_labels = 1
        classifier = AutoModelForSequenceClassification.from_config(own_config)
    known = {name for name, _ in causal.named_parameters()}
    own = {name: tuple(weight.shape) for name, weight in classifier.named_parameters() if name not in known}
    plain = len(own) == 1 and all(len(shape) == 2 and shape[0] == 1 for shape in own.values())
    name, width = next((name, shape[1]) for name, shape in own.items()) if plain else (None, None)
    return StockClassifier(type(classifier).__name__, name, width, tuple(own))


def head_name(config: PreTrainedConfig) -> str:
    """Return the name under which the stock classifier, if any, finds a saved reward head."""
    found = stock_classifier(config)
    return SCORE if found is None or found.head is None else found.head


_VALUE_HEADS = ("v_head.summary.weight", "v_head.weight", "value_head.weight")
VALUE_SUMMARY = "v_head.summary."
"""Beginning of the names of a value head of TRL or GRM, which is read without its own code."""
_LAYER = VALUE_SUMMARY + "{}.{}"
_UNDER = "model."
_HEAD_MODULES = ("score.", "value_head.", "v_head.", "classifier.", "classification_head.", "regression_layer.")

OPENRLHF = frozenset({"RewardModel", "CriticModel"})
"""Classes of reward models saved by OpenRLHF, which reads them at the stop token."""
_LIKE_A_HEAD = ("head", "score", "reward", "value", "regress")
_OF_REWARD_MODELS = ("SequenceClassification", "Reward", "Regression")
"""Substrings of the class names of reward models."""


@dataclass(frozen=True)
class SavedHead:
    """A reward head among a model's saved weights."""

    name: str
    """Name of the weight, or of the first parameter of a head that is not one linear layer."""
    file: Path
    weight: Tensor | None
    """[labels, H]; None if the head is not one linear layer."""
    bias: float
    """Constant that a head of one label adds to every reward; 0 without a bias."""
    names: tuple[str, ...]
    """Names of all parameters of the head."""
    flat: bool = False
    """Whether the weight was saved as [H], which no stock class loads."""
    hidden: tuple[tuple[Tensor, Tensor], ...] = ()
    """Weight and bias of the layers before the last one, each followed by ReLU."""

    @property
    def labels(self) -> int:
        """Number of outputs per token."""
        return 1 if self.weight is None else self.weight.shape[0]

    @property
    def problem(self) -> str:
        """Why this is not a linear layer with one label, as a clause after "it"; empty if it is one."""
        if self.weight is None:
            return f"is not one linear layer ({', '.join(self.names[:4])})"
        if self.labels != 1:
            return f"has {self.labels} labels ({self.name}) instead of one"
        return ""


def find_head(model: str, *, trust_remote_code: bool = False) -> SavedHead | None:
    """Find the reward head of a saved run, classifier, causal LM, or adapters for one; return None if there is none.

    Raises:
        ModelError: its files can't be read.
    """
    saved = SavedWeights(model)
    known = [prefix + name for prefix in ("", _UNDER) for name in (SCORE, *_VALUE_HEADS)]
    found = next((name for name in known if len(saved.shapes.get(name, ())) in (1, 2)), None)
    if found is None and is_classifier(model):
        config = AutoConfig.from_pretrained(root_model(model), trust_remote_code=trust_remote_code)
        stock = stock_classifier(config)
        found = stock.head if stock is not None and stock.head in saved.shapes else None
    if found is not None:
        return _linear(saved, found)
    if (layered := _layered(saved)) is not None:
        return layered
    if names := tuple(sorted(name for name in saved.shapes if name.removeprefix(_UNDER).startswith(_HEAD_MODULES))):
        return SavedHead(names[0], saved.files[names[0]], None, 0.0, names)
    adapters = adapter_source(model)
    return None if adapters is None else find_head(adapters.base, trust_remote_code=trust_remote_code)


def _linear(saved: SavedWeights, name: str) -> SavedHead:
    """Read a head of one linear layer; a head with further parameters is returned without its weight."""
    stem = name.removesuffix("weight")
    names = tuple(sorted(other for other in saved.shapes if other.startswith(stem.removesuffix("summary."))))
    if not {name} <= set(names) <= {name, f"{stem}bias"}:
        return SavedHead(name, saved.files[name], None, 0.0, names)
    bias = saved.read(f"{stem}bias").double() if f"{stem}bias" in names else torch.zeros(1)
    weight = saved.read(name)
    flat = weight.ndim == 1
    shift = bias[0].item() if len(bias) == 1 else 0.0
    return SavedHead(name, saved.files[name], weight[None] if flat else weight, shift, names, flat)


def _layered(saved: SavedWeights) -> SavedHead | None:
    """Read GRM's head of several layers; None if there is none."""
    places = [0]
    while _LAYER.format(places[-1] + 2, "weight") in saved.shapes:  # a ReLU is between two layers
        places.append(places[-1] + 2)
    names = tuple(_LAYER.format(place, kind) for place in places for kind in ("weight", "bias"))
    if len(places) < 2 or not saved.shapes.keys() >= set(names) or saved.shapes[names[-2]][0] != 1:
        return None
    weights = [saved.read(name) for name in names]
    *hidden, (weight, bias) = zip(weights[::2], weights[1::2], strict=True)
    return SavedHead(names[-2], saved.files[names[-2]], weight, bias.double().item(), names, hidden=tuple(hidden))


def is_classifier(model: str) -> bool:
    """Return whether a model was saved as a stock sequence classifier."""
    return any("SequenceClassification" in name for name in architectures(model))


def architectures(model: str) -> list[str]:
    """Return the classes named in a model's config; for adapters, in that of their base."""
    config = find_file(root_model(model), CONFIG_NAME)
    return list(read_config(config).get("architectures") or []) if config else []


def kept_head(model: str, *, required: bool = False, trust_remote_code: bool = False) -> SavedHead | None:
    """Find the reward head from which training can start; return None if the model has none and none is required.

    The bias of a value head is ignored: it shifts all rewards equally, and cancels in the difference of a pair. Any
    other bias belongs to the model's own class.

    Raises:
        ModelError: the head is not one linear layer with one label and no bias, or is required but missing.
    """
    head = find_head(model, trust_remote_code=trust_remote_code)
    if head is None:
        _refuse_unknown(model)
        if required:
            raise ModelError(
                f"head_init: {model} has no reward head to keep. Leave head_init out, or set it to normal."
            )
        return None
    problem = f"has {len(head.hidden) + 1} layers ({head.name})" if head.hidden else head.problem
    if not problem and head.bias and head.name.removeprefix(_UNDER) not in _VALUE_HEADS:
        problem = f"has a bias ({head.names[0]})"
    if problem:
        raise ModelError(
            f"The reward head of {model} can't be kept: it {problem}. Stock classes only load a linear layer with "
            "one label and no bias. Set `--head_init normal` to start with a fresh head on this backbone."
        )
    return head


def unknown_head(model: str) -> str | None:
    """Return the name and shape of a weight that may be a reward head of unknown form; None if there is none.

    Such a weight has shape [1, H], or [H] and a suggestive name, and is outside the backbone's layers.
    """
    for part in dict.fromkeys((model, root_model(model))):
        for name, shape in sorted(SavedWeights(part).shapes.items()):
            parts = name.removeprefix(_UNDER).split(".")
            suggestive = any(word in parts[0] for word in _LIKE_A_HEAD)
            row = len(shape) == 2 and shape[0] == 1 < shape[1] and len(parts) <= 3 and "embed" not in name
            if parts[-1] == "weight" and (row or (suggestive and len(shape) == 1 and len(parts) == 2)):
                return f"{name} {list(shape)}"
    return None


def _refuse_unknown(model: str) -> None:
    """Raise if a model seems to have a reward head, but none of a known form."""
    if is_run(model):
        return
    remedy = "Set `--head_init normal` to start with a fresh head on its backbone."
    if found := unknown_head(model):
        raise ModelError(
            f"{model} has {found}, which looks like a reward head but has no known form. Rename it to {SCORE} to "
            f"keep it. {remedy}"
        )
    for name in architectures(model):
        if any(word in name for word in _OF_REWARD_MODELS):
            raise ModelError(f"{model} is a {name}, but its weights contain no reward head of a known form. {remedy}")
