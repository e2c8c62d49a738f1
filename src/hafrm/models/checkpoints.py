"""A run's checkpoint on disk: one folder that stock transformers loads with no custom code.

`model.safetensors` holds the stock causal LM's tensors under their stock names plus `score.weight` (or what the stock
classifier calls its head), so the folder loads as `AutoModelForCausalLM` and as `AutoModelForSequenceClassification`;
each class only reports the other's head as unexpected. A reward head that no loss trained is not saved, nor is an LM
head that the model never had. `hafrm.json` says how the model was trained and how it scores, and holds the other files'
checksums: a checkpoint whose files are not what was saved is refused, and weights are read as safetensors alone. A LoRA
run's final folder holds the merged weights, in float32, and, in `adapter/`, the adapters themselves; its intermediate
checkpoints hold the adapters alone.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import CONFIG_NAME

from hafrm import atomic
from hafrm.errors import HafrmError, ModelError, UnwritableError, first_line
from hafrm.models.classifiers import SCORE, head_name
from hafrm.models.hybrid import HybridModel, head_width, new_reward_head
from hafrm.models.listing import ADAPTER_FILE, ADAPTER_FOLDER, checksums, save_checksums
from hafrm.models.lora import LoraOptions, add_lora, merged_state_dict, targets_of
from hafrm.models.reach import trace_text
from hafrm.models.references import weights_digest
from hafrm.models.runinfo import RUN_FILE, RunInfo, require_undamaged
from hafrm.models.sources import SavedWeights
from hafrm.models.stock import lm_head_names, load_causal_lm, loading, new_model, quiet_transformers, with_lm_head
from hafrm.models.tokenizers import load_tokenizer

__all__ = [
    "cast_weights",
    "load_packed_start",
    "load_run",
    "restore_weights",
    "rounding_would_lose",
    "save_adapter",
    "save_merged",
    "save_run",
    "saved_weights",
    "writing",
]

_HEAD_KEY = SCORE  # of a `HybridModel`
_STOCK = "causal_lm."  # how the names of the stock model's tensors begin in a `HybridModel`
_PEFT = "base_model.model."  # and how those in PEFT's files begin
_WRITERS = (
    "while serializing",
    "PytorchStreamWriter",
    "inline_container",
    "iostream error",
    "Parent directory",
    "cannot be opened",
)
"""By which errors of safetensors' and torch's writers are known: they have no kind of their own."""


def save_run(
    model: HybridModel, tokenizer: Any, info: RunInfo, folder: Path, *, weights: Mapping[str, Tensor] | None = None
) -> None:
    """Write a loadable checkpoint: merged weights, config, tokenizer, adapters if any, and `hafrm.json` last.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        info: How it was trained and scores.
        folder: Where to write.
        weights: The model's state dict where its own weights are sharded; such a model has no adapters.

    Raises:
        UnwritableError: the disk is full, or the folder can't be written to.
    """
    with _checkpoint(model, tokenizer, info, folder) as temporary:
        lost = [] if model.with_lm_head else lm_head_names(model.stock_lm)
        if model.adapted:
            save_merged(model.stock_lm, temporary, more=_head(model, info, model.score.weight), but=lost)
            _save_adapter_tensors(model, info, temporary / ADAPTER_FOLDER)
            return
        whole = model.state_dict() if weights is None else weights
        state = {name.removeprefix(_STOCK): tensor for name, tensor in whole.items() if name.startswith(_STOCK)}
        state |= _head(model, info, whole[_HEAD_KEY].to(model.stock_lm.dtype))
        with quiet_transformers():
            model.stock_lm.save_pretrained(
                temporary, state_dict={name: tensor for name, tensor in state.items() if name not in lost}
            )


def _head(model: HybridModel, info: RunInfo, weight: Tensor) -> dict[str, Tensor]:
    """The reward head by its name in a file; empty where no loss trained it."""
    return {head_name(model.config): weight.detach()} if info.reward_weight else {}


def save_merged(
    stock_lm: PreTrainedModel, folder: Path, *, more: Mapping[str, Tensor] | None = None, but: Collection[str] = ()
) -> None:
    """Write a model with adapters as a stock model without any: merged, unpacked, in float32, and its config says so.

    Args:
        stock_lm: The transformers model, with adapters in its layers. It stays as it is.
        folder: Where to write.
        more: Further tensors for the file, by name.
        but: Tensors of the model that are left out.
    """
    dtype = torch.promote_types(stock_lm.dtype, torch.float32)
    merged = {name: tensor for name, tensor in merged_state_dict(stock_lm).items() if name not in but}
    state = merged | {name: tensor.detach().to("cpu", dtype) for name, tensor in (more or {}).items()}
    with _unquantized(stock_lm), quiet_transformers():
        stock_lm.save_pretrained(folder, state_dict=state)
    path = folder / CONFIG_NAME
    config = json.loads(path.read_text(encoding="utf-8"))
    atomic.write_json(path, _with_dtype(config, str(dtype).removeprefix("torch.")))


@contextlib.contextmanager
def _unquantized(stock_lm: PreTrainedModel) -> Iterator[None]:
    """Within the context transformers takes the model for one that never was quantized.

    It would write the packed weights, and not those that it is given. The config's dtype, too, is kept: it is of the
    weights that the model has, not of those that are written.
    """
    stock: Any = stock_lm
    config, quantizer = stock.config, getattr(stock, "hf_quantizer", None)
    stock.hf_quantizer = None
    saved = {name: getattr(config, name) for name in ("dtype", "quantization_config") if hasattr(config, name)}
    if "quantization_config" in saved:
        del config.quantization_config
    try:
        yield
    finally:
        stock.hf_quantizer = quantizer
        for name, value in saved.items():
            setattr(config, name, value)


def _with_dtype(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """A config, as its file has it, whose weights are of this dtype; so are those of the configs within."""
    changed = {name: _with_dtype(value, dtype) if isinstance(value, dict) else value for name, value in config.items()}
    return changed | ({"dtype": dtype} if "dtype" in config else {})


def save_adapter(model: HybridModel, tokenizer: Any, info: RunInfo, folder: Path) -> None:
    """Write a checkpoint of a LoRA run: adapters and reward head without the frozen weights; see `save_run`."""
    with _checkpoint(model, tokenizer, info, folder) as temporary:
        _save_adapter_tensors(model, info, temporary / ADAPTER_FOLDER)
        model.config.save_pretrained(temporary)


@contextlib.contextmanager
def _checkpoint(model: HybridModel, tokenizer: Any, info: RunInfo, folder: Path) -> Iterator[Path]:
    """A temporary folder for a model's files, which become `folder`'s with the tokenizer's; `hafrm.json` comes last."""
    dtype = info.dtype or _loaded_dtype(model)  # before saving, which says in the config what was written
    with writing(folder), atomic.new_files(folder, last=RUN_FILE) as temporary:
        yield temporary
        tokenizer.save_pretrained(temporary)
        replace(info, sha256=checksums(temporary), dtype=dtype).save(temporary)


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """A file of this folder that can't be written becomes an `UnwritableError` that says so; other errors stay."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        of_writer = type(error) in (SafetensorError, RuntimeError) and any(words in str(error) for words in _WRITERS)
        if not (of_writer or isinstance(error, OSError)):
            raise
        raise UnwritableError(
            f"{folder} can't be written ({first_line(error)}). Free some space, or choose another folder; what was "
            "written before is whole, and the same command goes on from it."
        ) from error


def _save_adapter_tensors(model: HybridModel, info: RunInfo, folder: Path) -> None:
    """Write adapters as PEFT does for a sequence classifier: the head is a module saved with them."""
    folder.mkdir(parents=True, exist_ok=True)
    peft_model = cast(Any, model.causal_lm)
    # Never the embeddings: the rows that a new token adds are the same each time (`resize_embeddings`).
    adapters = get_peft_model_state_dict(peft_model, save_embedding_layers=False)
    state = {name: tensor.contiguous() for name, tensor in adapters.items()}
    head = _head(model, info, model.score.weight)
    state |= {f"{_PEFT}{name}": weight for name, weight in head.items()}
    save_file(state, folder / ADAPTER_FILE, metadata={"format": "pt"})
    config = peft_model.peft_config[peft_model.active_adapter]
    description = config.to_dict() | {
        "task_type": "SEQ_CLS" if head else "CAUSAL_LM",
        "modules_to_save": [name.removesuffix(".weight") for name in head] or None,
        "inference_mode": True,
    }
    description |= {name: sorted(value) for name, value in description.items() if isinstance(value, set)}
    atomic.write_json(folder / "adapter_config.json", description)
    save_checksums(folder)


def restore_weights(model: HybridModel, folder: Path) -> None:
    """Load a checkpoint's weights into a model of the same shape, in place.

    Raises:
        ModelError: the checkpoint is damaged or of another model.
    """
    if model.adapted:
        require_undamaged(folder)
        _restore_adapters(model, folder)
        return
    with loading("checkpoint", str(folder)):
        model.load_state_dict(saved_weights(model, folder))


def saved_weights(model: HybridModel, folder: Path) -> dict[str, Tensor]:
    """The state dict that a model without adapters had when a checkpoint was made of it.

    Raises:
        ModelError: the checkpoint is damaged or of another model.
    """
    require_undamaged(folder)
    # Through transformers and not straight from the file, whose tensor names can differ from the module's; and by the
    # class that the model has, so that code which came with it needs no second leave to run.
    with loading("checkpoint", str(folder)):
        stock_class: Any = type(model.stock_lm)
        saved, report = stock_class.from_pretrained(
            folder, dtype=model.stock_lm.dtype, use_safetensors=True, output_loading_info=True
        )
    for name in report["missing_keys"]:  # an LM head that the model never had
        saved.get_parameter(str(name)).data.zero_()
    state = {f"{_STOCK}{name}": tensor for name, tensor in saved.state_dict().items()}
    head = _read_head(folder)
    return state | {_HEAD_KEY: torch.zeros(1, head_width(saved), dtype=saved.dtype) if head is None else head}


def _restore_adapters(model: HybridModel, folder: Path) -> None:
    with loading("adapters", str(folder)):
        state = load_file(folder / ADAPTER_FOLDER / ADAPTER_FILE)
        name = _saved_head_name(folder, state, prefix=_PEFT)
        if name is not None:
            model.score.weight.data.copy_(state.pop(name))
        report: Any = set_peft_model_state_dict(cast(Any, model.causal_lm), state)
    strangers = [*report.unexpected_keys, *(name for name in report.missing_keys if ".lora_" in name)]
    if strangers:
        raise ModelError(f"The adapters of {folder} do not fit the model: {strangers[0]}.")


def _read_head(folder: Path) -> Tensor | None:
    """The reward head's weight, [1, H], of a run's folder; None where no loss trained one."""
    saved = SavedWeights(str(folder))
    name = _saved_head_name(folder, saved.shapes)
    return None if name is None else saved.read(name)


def _saved_head_name(folder: Path, names: Collection[str], *, prefix: str = "") -> str | None:
    """By which name the reward head is saved in a run's folder; None where no loss trained one.

    Raises:
        ModelError: it should be there, and is not.
    """
    if f"{prefix}{_HEAD_KEY}" in names:
        return f"{prefix}{_HEAD_KEY}"
    if not RunInfo.load(folder).reward_weight:
        return None
    name = prefix + head_name(AutoConfig.from_pretrained(folder))
    if name not in names:
        raise ModelError(f"{folder} holds no reward head ({name.removeprefix(prefix)}).")
    return name


def load_run(
    folder: str | Path, *, dtype: torch.dtype | None = None, trust_remote_code: bool = False
) -> tuple[HybridModel, Any, RunInfo]:
    """Load a run's folder, or one of its checkpoints, for scoring.

    Args:
        folder: The folder. That of a run in half precision with LoRA is loaded from its base and its adapters, whose
            rewards are those that were validated; where the base has gone or changed, from its merged float32 weights,
            unless a dtype is asked for in which these would be rounded.
        dtype: The weights' dtype; None keeps the run's.
        trust_remote_code: Run modelling code that comes with the model. Off unless you trust it.

    Returns:
        The model in evaluation mode, its tokenizer, and its description.

    Raises:
        ModelError: the folder is no run, unfinished or damaged, or it holds adapters whose base has gone or changed.
    """
    folder = Path(folder)
    info = require_undamaged(folder)
    tokenizer = load_tokenizer(str(folder), trust_remote_code=trust_remote_code)
    merged = info.whole
    if not merged or rounding_would_lose(folder, info, dtype):
        try:
            model = _base_of_adapters(folder, info, tokenizer, dtype=dtype, trust_remote_code=trust_remote_code)
        except HafrmError as error:
            if merged and dtype is not None:
                raise ModelError(
                    f"{error} Or leave the dtype out: the merged weights in {folder} are float32, and need no base."
                ) from error
            if not merged:
                raise
        else:
            restore_weights(model, folder)
            return model.eval(), tokenizer, info
    return _whole(folder, dtype=dtype, trust_remote_code=trust_remote_code).eval(), tokenizer, info


def rounding_would_lose(folder: Path, info: RunInfo, dtype: torch.dtype | None) -> bool:
    """Whether merged weights in this dtype (None: the run's) would lose what adapters learnt, which lie beside them.

    Only for runs that know their base's weights: with others than those the adapters would be worth less still.
    """
    dtype = dtype or _trained_dtype(folder, info) or torch.float32
    return bool(info.base_digest) and info.with_adapters and dtype.itemsize < torch.float32.itemsize


def _whole(folder: Path, *, dtype: torch.dtype | None, trust_remote_code: bool) -> HybridModel:
    """The model whose weights are all in a run's folder."""
    causal_lm = load_causal_lm(str(folder), dtype=dtype, trust_remote_code=trust_remote_code, lm_head=False)
    head = new_reward_head(head_width(causal_lm), init="zero", seed=0, dtype=causal_lm.dtype)
    if (saved := _read_head(folder)) is not None:
        head.weight.data.copy_(saved)
    return HybridModel(causal_lm, head, with_lm_head=with_lm_head(causal_lm))


def _base_of_adapters(
    folder: Path, info: RunInfo, tokenizer: Any, *, dtype: torch.dtype | None, trust_remote_code: bool
) -> HybridModel:
    """The model that a run started from, with fresh adapters, for the adapters of its folder or of a checkpoint."""
    lora = LoraOptions(**(info.lora or {}))
    remedy = f"Put it back, or set `base_model` in {folder / RUN_FILE} to where it is now."
    try:
        model = new_model(
            info.base_model,
            tokenizer,
            lora=lora,
            dtype=_trained_dtype(folder, info),
            trust_remote_code=trust_remote_code,
            lm_head=bool(info.policy_ratio),
        )
    except ModelError as error:
        raise ModelError(f"The base model of the adapters in {folder} can't be loaded. {error} {remedy}") from error
    if info.base_digest and weights_digest(model) != info.base_digest:
        raise ModelError(
            f"{info.base_model} no longer holds the weights that the adapters in {folder} were trained on. {remedy}"
        )
    if dtype is not None and lora.quantize == "none":
        cast_weights(model, dtype)
    return model


def load_packed_start(
    folder: Path, policy: HybridModel, info: RunInfo, tokenizer: Any, *, trust_remote_code: bool = False
) -> HybridModel:
    """The model that a QLoRA run started from: its base as it was packed, not as it lies on disk.

    Args:
        folder: The run's folder, or a checkpoint's.
        policy: What `load_run` made of it. With adapters, the start is loaded packed; else they are taken out of the
            merged weights again.
        info: The run's description.
        tokenizer: Its tokenizer.
        trust_remote_code: Run modelling code that comes with the model. Off unless you trust it.

    Raises:
        ModelError: base or adapters have gone or changed.
    """
    if policy.adapted:
        return _base_of_adapters(folder, info, tokenizer, dtype=None, trust_remote_code=trust_remote_code).eval()
    merged = _whole(folder, dtype=torch.float32, trust_remote_code=trust_remote_code)
    options = replace(LoraOptions(**(info.lora or {})), quantize="none")
    targets = targets_of(merged.stock_lm, options, but=trace_text(merged.stock_lm).no_adapters)
    start = HybridModel(add_lora(merged.stock_lm, options, targets), merged.score)
    restore_weights(start, folder)
    for name, parameter in start.named_parameters():
        if ".lora_B." in name:
            parameter.data.neg_()
    start.causal_lm = cast(Any, start.causal_lm).merge_and_unload()
    cast_weights(start, policy.stock_lm.dtype)
    return start.eval()


def cast_weights(model: HybridModel, dtype: torch.dtype) -> None:
    """Cast a model's frozen weights, in place. Adapters and reward head stay as they are trained, in float32."""
    for name, parameter in model.stock_lm.named_parameters():
        if ".lora_" not in name:
            parameter.data = parameter.data.to(dtype)


def _trained_dtype(folder: Path, info: RunInfo) -> torch.dtype | None:
    """The dtype in which a run trained; adapters alone do not show it. Older runs say it in their config alone."""
    name = info.dtype or PreTrainedConfig.get_config_dict(folder)[0].get("dtype")
    saved = getattr(torch, str(name), None)
    return saved if isinstance(saved, torch.dtype) else None


def _loaded_dtype(model: HybridModel) -> str:
    """The dtype that a model's weights were loaded in; a few are kept in another where the others are packed."""
    return str(getattr(model.config, "dtype", None) or model.stock_lm.dtype).removeprefix("torch.")
