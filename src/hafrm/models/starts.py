"""How training starts: checks of the initial model before any data are read, and the model to train.

The checks only read the config and the names of weights, which takes a second and little memory.
"""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from hafrm import atomic
from hafrm.errors import ConfigError, ModelError
from hafrm.models import modules
from hafrm.models.heads import OPENRLHF, SavedHead, architectures, kept_head, stock_classifier
from hafrm.models.hybrid import HybridModel, backbone_of, head_width, max_positions, new_reward_head
from hafrm.models.lora import add_lora, quantization_config, targets_of, without_adapters
from hafrm.models.modules import require_finite, trace_text
from hafrm.models.options import HeadInit, LoraOptions
from hafrm.models.runinfo import require_as_saved
from hafrm.models.sources import SavedWeights, adapter_source, require_place, root_model
from hafrm.models.stock import lm_head_names, load_causal_lm, loading, quiet_transformers, require_decoder, with_lm_head
from hafrm.models.tokenizers import resize_embeddings

_NO_LORA = LoraOptions()


@dataclass(frozen=True)
class Start:
    """The resolved start of a training run."""

    head_init: Literal["keep", "normal", "zero", "fit"]
    head: str
    """Description of the reward head, in one line."""
    notes: tuple[str, ...]
    """Further notes, one line each."""
    positions: int | None
    """Maximum number of tokens of a sequence; None if the model sets no limit."""


def saved_start(model: PreTrainedModel) -> str:
    """Save a loaded model to hafrm's cache, in a folder named by the digest of its files, and return the folder.

    Equal weights have the same folder, so a resumed run finds its initial model.
    """
    cache = atomic.cache_folder("models")
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as temporary, quiet_transformers():
        made = Path(temporary) / "model"
        model.save_pretrained(made)
        digest = hashlib.sha256()
        for path in sorted(made.iterdir()):
            digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
        folder = cache / digest.hexdigest()[:24]
        if not folder.exists():
            made.rename(folder)
    return str(folder)


def check_start(
    model: str,
    *,
    head_init: HeadInit = "auto",
    rewards: bool = True,
    log_probs: bool = True,
    lora: LoraOptions = _NO_LORA,
    trust_remote_code: bool = False,
) -> Start:
    """Raise unless a model can be trained and saved; return how training starts.

    Raises:
        ModelError: gives the reason.
        ConfigError: adapters are requested but there is nothing to adapt.
    """
    require_place(model)
    require_as_saved(model)
    causal_lm, notes = _without_weights(model, trust_remote_code=trust_remote_code)
    backbone_of(causal_lm)
    if log_probs:
        _require_lm_head(model, causal_lm)
    positions = max_positions(causal_lm.config)
    if lora.enabled:
        targets_of(causal_lm, lora)
        quantization_config(lora)
    if not rewards:
        return Start("normal", "reward head: neither trained nor saved", notes, positions)
    resolved, line = _head(model, head_init, trust_remote_code=trust_remote_code)
    if resolved == "keep" and OPENRLHF.intersection(architectures(model)):
        notes += (
            "OpenRLHF trained the reward head at the stop token; this run trains and scores it at the end of "
            "everything that the chat template writes",
        )
    return Start(resolved, line, (*_classifier_notes(causal_lm), *notes), positions)


def _without_weights(model: str, *, trust_remote_code: bool) -> tuple[PreTrainedModel, tuple[str, ...]]:
    """Build a model's causal class on the meta device; also return notes about it.

    Raises:
        ModelError: there is none, or the trained model could not be loaded after saving.
    """
    root = root_model(model)
    with loading("causal language model", root), torch.device("meta"):
        config = AutoConfig.from_pretrained(root, trust_remote_code=trust_remote_code)
        found: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    require_decoder(found, root)
    if type(found.config) is type(config):
        return found, ()
    name = type(found).__name__
    if type(found.config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelError(
            f"{root} would be trained as {name}, the part of it that reads text, but transformers can't load that part "
            "by itself after saving. Use another model."
        )
    return found, (f"only {name}, the part of the model that reads text, is trained and saved",)


def _require_lm_head(model: str, causal_lm: PreTrainedModel) -> None:
    """Raise if a policy head is to be trained and the LM head is not linear or was not saved."""
    head = causal_lm.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise ModelError(
            f"{type(causal_lm).__name__} has no linear LM head, which the policy loss needs. Train only its reward "
            "head: --method baseline."
        )
    embeddings = cast(nn.Embedding, causal_lm.get_input_embeddings())
    if head.weight is embeddings.weight:
        return
    ending = ".".join(lm_head_names(causal_lm)[0].split(".")[-2:])
    saved = SavedWeights(root_model(model)).shapes
    # Also by shape: some families save weights under other names than they load.
    shapes = [tuple(head.weight.shape), tuple(embeddings.weight.shape)]
    found = list(saved.values()).count(shapes[0])
    if saved and not any(name.endswith(ending) for name in saved) and found < shapes.count(shapes[0]):
        raise ModelError(
            f"{model} was saved without an LM head ({ending}), like classifiers without tied embeddings. Train only "
            "its reward head: --method baseline."
        )


def _head(
    model: str, init: HeadInit, *, trust_remote_code: bool
) -> tuple[Literal["keep", "normal", "zero", "fit"], str]:
    """Return how the reward head starts, and a line that describes it."""
    if init == "fit":
        return init, "reward head: fitted to the training pairs before the first step, with the backbone frozen"
    if init in ("normal", "zero"):
        return init, f"reward head: fresh ({init})"
    head = kept_head(model, required=init == "keep", trust_remote_code=trust_remote_code)
    if head is None:
        return "normal", "reward head: fresh (normal), because the model has none"
    bias = f"; its bias of {head.bias:.3g} is dropped, which shifts all rewards equally" if head.bias else ""
    return "keep", f"reward head: kept ({head.name} of {head.file}){bias}"


def _classifier_notes(causal_lm: PreTrainedModel) -> tuple[str, ...]:
    """Return notes on the stock classifier that will load the run.

    Raises:
        ModelError: the classifier's head is not a linear layer, so it would be random after loading the run.
    """
    found, name = stock_classifier(causal_lm.config), type(causal_lm).__name__
    if found is None:
        return (
            f"transformers has no sequence classifier for {name}: hafrm scores and serves the run, but other programs "
            "can't load its reward head",
        )
    if found.head is None:
        raise ModelError(
            f"transformers' own classifier for {name}, {found.name}, has a head with other layers "
            f"({', '.join(found.own[-3:])}) than a reward head, so it would load the run with a random head. Train "
            "only the policy head (--method dpo), or use another architecture."
        )
    return ()


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
    heads: int = 1,
) -> HybridModel:
    """Build a model to train: a pretrained backbone and LM head, with a new or kept reward head.

    Args:
        model: Folder or hub id of a causal LM, a classifier on one, a run, or adapters for any of these.
        tokenizer: Its prepared tokenizer (`load_tokenizer`): the embeddings grow if it has new tokens.
        dtype: Dtype of the weights; None keeps the checkpoint's.
        disable_dropout: Train the backbone without its own dropout, as in TRL: dropout makes log-ratios to a reference
            noisy. The saved config keeps its values, and adapters have `lora.dropout`.
        lm_head: Whether the LM head is needed; see `load_causal_lm`.
        heads: Number of reward heads; a kept head is the start of each.

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
        modules.disable_dropout(causal_lm)
    head_dtype = torch.float32 if lora.enabled else causal_lm.dtype
    init: Literal["zero", "normal"] = "zero" if head_init in ("zero", "fit") else "normal"
    head = new_reward_head(head_width(causal_lm), init=init, seed=seed, dtype=head_dtype, count=heads)
    if saved is not None:
        _copy_head(head, saved, model)
    require_finite([*causal_lm.named_parameters(), ("of the reward head", head.weight)], model)
    head = head.to(causal_lm.device)
    if not lora.enabled:
        return HybridModel(causal_lm, head, with_lm_head=headed)
    targets = targets_of(causal_lm, lora, but=reach.no_adapters)
    bare = None if lora.targets else without_adapters(causal_lm, targets, but=reach.unreached)
    return HybridModel(add_lora(causal_lm, lora, targets), head, with_lm_head=headed, bare=bare)


def _copy_head(head: nn.Linear, saved: SavedHead, model: str) -> None:
    assert saved.weight is not None
    if saved.weight.shape[1] != head.weight.shape[1]:
        raise ModelError(
            f"The reward head of {model} has shape {list(saved.weight.shape)}, but hidden states have "
            f"{head.weight.shape[1]} values. Set `--head_init normal` to start with a fresh head."
        )
    with torch.no_grad():
        head.weight.copy_(saved.weight)


def _describe_heads(config: PreTrainedConfig, tokenizer: Any) -> None:
    """Describe the reward head in the config for stock classes: one label, a raw score, and the pad token."""
    config.num_labels = 1
    config.problem_type = "regression"  # otherwise pipelines and vLLM apply a sigmoid to the reward
    for part in {id(c): c for c in (config, config.get_text_config())}.values():
        part.pad_token_id = tokenizer.pad_token_id
