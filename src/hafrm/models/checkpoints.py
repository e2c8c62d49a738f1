"""A run's checkpoint on disk: a folder that stock transformers loads without custom code.

`model.safetensors` contains the stock causal LM's tensors under their stock names plus `score.weight` (or the stock
classifier's name for its head), so the folder loads as `AutoModelForCausalLM` and as
`AutoModelForSequenceClassification`; each class only reports the other's head as unexpected. An untrained reward head
is not saved, nor is an LM head that the model never had. Several reward heads are saved twice: their mean as the reward
head, and all of them under a separate name. `hafrm.json` describes training and scoring and contains the
other files' checksums: checkpoints with changed files are refused, and weights are only read from safetensors. A LoRA
run's final folder contains the merged weights, in float32, and the adapters, in `adapter/`; its intermediate
checkpoints contain only the adapters.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from peft import get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel
from transformers.utils import CONFIG_NAME

from hafrm import atomic
from hafrm.errors import HafrmError, ModelError, UnwritableError, first_line
from hafrm.models.checksums import ADAPTER_FILE, ADAPTER_FOLDER, checksums, save_checksums
from hafrm.models.heads import HEADS, SCORE, head_name
from hafrm.models.hybrid import HybridModel, head_width, new_reward_head
from hafrm.models.lora import add_lora, merged_state_dict, targets_of
from hafrm.models.modules import trace_text
from hafrm.models.options import LoraOptions
from hafrm.models.references import weights_digest
from hafrm.models.runinfo import RUN_FILE, RunInfo, require_undamaged
from hafrm.models.sources import SavedWeights
from hafrm.models.starts import new_model
from hafrm.models.stock import lm_head_names, load_adapters, load_causal_lm, loading, quiet_transformers, with_lm_head
from hafrm.models.tokenizers import load_tokenizer
from hafrm.store import read_json

_HEAD_KEY = SCORE  # name in a `HybridModel`
_STOCK = "causal_lm."  # prefix of the stock model's tensors in a `HybridModel`
_PEFT = "base_model.model."  # prefix of the stock model's tensors in PEFT's files
_WRITERS = (
    "while serializing",
    "PytorchStreamWriter",
    "inline_container",
    "iostream error",
    "Parent directory",
    "cannot be opened",
    "(os error ",
)
"""Words in the errors of the writers of safetensors, torch and tokenizers, which have no specific type."""

_RESUMES = "Earlier checkpoints are intact, and the same command resumes from them."


def save_run(model: HybridModel, tokenizer: Any, info: RunInfo, folder: Path) -> None:
    """Write a loadable checkpoint: weights, config, tokenizer, any adapters, and last `info` with dtype and checksums.

    Raises:
        UnwritableError: the disk is full, or the folder can't be written to.
    """
    with _checkpoint(model, tokenizer, info, folder) as temporary:
        lost = [] if model.with_lm_head else lm_head_names(model.stock_lm)
        if model.adapted:
            save_merged(model.stock_lm, temporary, more=_head(model, info, model.score.weight), without=lost)
            _save_adapter_tensors(model, info, temporary / ADAPTER_FOLDER)
            return
        whole = model.state_dict()
        state = {name.removeprefix(_STOCK): tensor for name, tensor in whole.items() if name.startswith(_STOCK)}
        state |= _head(model, info, whole[_HEAD_KEY].to(model.stock_lm.dtype))
        with quiet_transformers():
            model.stock_lm.save_pretrained(
                temporary, state_dict={name: tensor for name, tensor in state.items() if name not in lost}
            )


def _head(model: HybridModel, info: RunInfo, weight: Tensor) -> dict[str, Tensor]:
    """Return the reward head under its name in files, and several heads also by themselves; empty if not trained."""
    if not info.reward_weight:
        return {}
    mean = {head_name(model.config): weight.detach().mean(0, keepdim=True)}
    return mean | ({HEADS: weight.detach()} if len(weight) > 1 else {})


def save_merged(
    stock_lm: PreTrainedModel, folder: Path, *, more: Mapping[str, Tensor] | None = None, without: Collection[str] = ()
) -> None:
    """Write a model with adapters as a plain stock model: merged, unquantized, in float32, with a matching config.

    Args:
        stock_lm: The transformers model, with adapters in its layers. It is left unchanged.
        more: Further tensors for the file, by name.
        without: Tensors of the model to leave out.
    """
    dtype = torch.promote_types(stock_lm.dtype, torch.float32)
    merged = {name: tensor for name, tensor in merged_state_dict(stock_lm).items() if name not in without}
    state = merged | {name: tensor.detach().to("cpu", dtype) for name, tensor in (more or {}).items()}
    with _unquantized(stock_lm), quiet_transformers():
        stock_lm.save_pretrained(folder, state_dict=state)
    path = folder / CONFIG_NAME
    atomic.write_json(path, _with_dtype(read_json(path) or {}, str(dtype).removeprefix("torch.")))


@contextlib.contextmanager
def _unquantized(stock_lm: PreTrainedModel) -> Iterator[None]:
    """Hide from transformers that the model is quantized; otherwise it would write the packed weights.

    Afterwards the config also gets its dtype back, which is that of the model's weights, not of the written ones.
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
    """Set the dtype in a config and its nested configs, as read from a file."""
    changed = {name: _with_dtype(value, dtype) if isinstance(value, dict) else value for name, value in config.items()}
    return changed | ({"dtype": dtype} if "dtype" in config else {})


def save_adapter(model: HybridModel, tokenizer: Any, info: RunInfo, folder: Path) -> None:
    """Write a checkpoint of a LoRA run: adapters and reward head without the frozen weights; see `save_run`."""
    with _checkpoint(model, tokenizer, info, folder) as temporary:
        _save_adapter_tensors(model, info, temporary / ADAPTER_FOLDER)
        model.config.save_pretrained(temporary)


@contextlib.contextmanager
def _checkpoint(model: HybridModel, tokenizer: Any, info: RunInfo, folder: Path) -> Iterator[Path]:
    """Create a temporary folder whose files move to `folder` together with the tokenizer's, `hafrm.json` last."""
    # Before saving, which changes the config's dtype; in quantized models a few weights have another one.
    dtype = info.dtype or str(getattr(model.config, "dtype", None) or model.stock_lm.dtype).removeprefix("torch.")
    with writing(folder), atomic.new_files(folder, last=RUN_FILE) as temporary:
        yield temporary
        tokenizer.save_pretrained(temporary)
        replace(info, sha256=checksums(temporary), dtype=dtype).save(temporary)


@contextlib.contextmanager
def writing(folder: Path, remedy: str = _RESUMES) -> Iterator[None]:
    """Turn write errors in the block into an `UnwritableError` that names the folder; other errors pass."""
    try:
        yield
    except Exception as error:  # tokenizers raises the base class itself
        kinds = (SafetensorError, RuntimeError, Exception)
        of_writer = type(error) in kinds and any(words in str(error) for words in _WRITERS)
        if not (of_writer or isinstance(error, OSError)):
            raise
        raise UnwritableError(
            f"{folder} can't be written ({first_line(error)}). Free some space, or choose another folder. {remedy}"
        ) from error


def _save_adapter_tensors(model: HybridModel, info: RunInfo, folder: Path) -> None:
    """Write adapters as PEFT does for a sequence classifier: the head is among the saved modules."""
    folder.mkdir(parents=True, exist_ok=True)
    peft_model = cast(Any, model.causal_lm)
    # Embeddings are left out: `resize_embeddings` computes the rows of new tokens again.
    adapters = get_peft_model_state_dict(peft_model, save_embedding_layers=False)
    state = {name: tensor.contiguous() for name, tensor in adapters.items()}
    head = _head(model, info, model.score.weight)
    state |= {f"{_PEFT}{name}": weight for name, weight in head.items()}
    save_file(state, folder / ADAPTER_FILE, metadata={"format": "pt"})
    config = peft_model.peft_config[peft_model.active_adapter]
    description = config.to_dict() | {
        "task_type": "SEQ_CLS" if head else "CAUSAL_LM",
        "modules_to_save": [name.removesuffix(".weight") for name in head if name != HEADS] or None,
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
    require_undamaged(folder)
    if model.adapted:
        _restore_adapters(model, folder)
        return
    with loading("checkpoint", str(folder)):
        model.load_state_dict(_saved_weights(model, folder))


def _saved_weights(model: HybridModel, folder: Path) -> dict[str, Tensor]:
    """Return the state dict of a model without adapters from a checkpoint of it."""
    # Load through transformers because tensor names in the file can differ from the module's, and with the model's own
    # class so that its custom code needs no second permission to run.
    with loading("checkpoint", str(folder)):
        stock_class: Any = type(model.stock_lm)
        saved, report = stock_class.from_pretrained(
            folder, dtype=model.stock_lm.dtype, use_safetensors=True, output_loading_info=True
        )
    for name in report["missing_keys"]:  # an LM head that the model never had
        saved.get_parameter(str(name)).data.zero_()
    state = {f"{_STOCK}{name}": tensor for name, tensor in saved.state_dict().items()}
    head = _read_head(folder)
    return state | {_HEAD_KEY: torch.zeros_like(model.score.weight) if head is None else head}


def _restore_adapters(model: HybridModel, folder: Path) -> None:
    with loading("adapters", str(folder)):
        state = load_file(folder / ADAPTER_FOLDER / ADAPTER_FILE)
        name = _saved_head_name(folder, state, prefix=_PEFT)
        if name is not None:
            mean = state.pop(name)
            model.score.weight.data.copy_(state.pop(f"{_PEFT}{HEADS}", mean))
        load_adapters(model.causal_lm, state, folder, "the model")


def _read_head(folder: Path) -> Tensor | None:
    """Read the reward heads' weight, [K, H], from a run's folder; None if they were not trained."""
    saved = SavedWeights(str(folder))
    name = _saved_head_name(folder, saved.shapes)
    return None if name is None else saved.read(HEADS if HEADS in saved.shapes else name)


def _saved_head_name(folder: Path, names: Collection[str], *, prefix: str = "") -> str | None:
    """Return the name of the saved reward head in a run's folder; None if it was not trained.

    Raises:
        ModelError: it was trained but is missing.
    """
    if f"{prefix}{_HEAD_KEY}" in names:
        return f"{prefix}{_HEAD_KEY}"
    if not RunInfo.load(folder).reward_weight:
        return None
    name = prefix + head_name(AutoConfig.from_pretrained(folder))
    if name not in names:
        raise ModelError(f"The weights in {folder} lack the reward head ({name.removeprefix(prefix)}).")
    return name


def load_run(
    folder: str | Path, *, dtype: torch.dtype | None = None, trust_remote_code: bool = False
) -> tuple[HybridModel, Any, RunInfo]:
    """Load a run's folder, or one of its checkpoints, for scoring.

    Args:
        folder: The folder. A LoRA run in half precision is loaded from its base and adapters, because these gave the
            rewards that were validated. If the base is missing or changed, the merged float32 weights are loaded
            instead, unless the requested dtype would round them.
        dtype: Dtype of the weights; None keeps the run's.

    Returns:
        The model in evaluation mode, its tokenizer, and its description.

    Raises:
        ModelError: the folder is not a run, is unfinished or damaged, or contains adapters whose base is missing or
            changed.
    """
    folder = Path(folder)
    info = require_undamaged(folder)
    tokenizer = load_tokenizer(str(folder), trust_remote_code=trust_remote_code)
    merged = info.whole
    if not merged or rounding_would_lose(info, dtype):
        try:
            model = _base_of_adapters(folder, info, tokenizer, dtype=dtype, trust_remote_code=trust_remote_code)
        except HafrmError as error:
            if merged and dtype is not None:
                raise ModelError(
                    f"{error} Or leave the dtype out: the merged weights in {folder} are float32 and need no base."
                ) from error
            if not merged:
                raise
        else:
            restore_weights(model, folder)
            return model.eval(), tokenizer, info
    return _whole(folder, dtype=dtype, trust_remote_code=trust_remote_code).eval(), tokenizer, info


def rounding_would_lose(info: RunInfo, dtype: torch.dtype | None) -> bool:
    """Return whether merged weights in this dtype (None: the run's) would lose what the adapters learnt.

    False for runs without the digest of their base: adapters on a changed base would be worse than rounding.
    """
    dtype = dtype or getattr(torch, info.dtype)
    return bool(info.base_digest) and info.with_adapters and dtype.itemsize < torch.float32.itemsize


def _whole(folder: Path, *, dtype: torch.dtype | None, trust_remote_code: bool) -> HybridModel:
    """Load the model whose weights are all in a run's folder."""
    causal_lm = load_causal_lm(str(folder), dtype=dtype, trust_remote_code=trust_remote_code, lm_head=False)
    saved = _read_head(folder)
    count = 1 if saved is None else len(saved)
    head = new_reward_head(head_width(causal_lm), init="zero", seed=0, dtype=causal_lm.dtype, count=count)
    if saved is not None:
        head.weight.data.copy_(saved)
    return HybridModel(causal_lm, head, with_lm_head=with_lm_head(causal_lm))


def _base_of_adapters(
    folder: Path, info: RunInfo, tokenizer: Any, *, dtype: torch.dtype | None, trust_remote_code: bool
) -> HybridModel:
    """Build the model from which a run started, with new adapters into which the saved ones can be loaded."""
    lora = LoraOptions(**(info.lora or {}))
    remedy = f"Put it back, or set `base_model` in {folder / RUN_FILE} to its new location."
    try:
        model = new_model(
            info.base_model,
            tokenizer,
            lora=lora,
            dtype=getattr(torch, info.dtype),
            trust_remote_code=trust_remote_code,
            lm_head=bool(info.policy_ratio),
            heads=info.heads,
        )
    except ModelError as error:
        raise ModelError(f"The base model of the adapters in {folder} can't be loaded. {error} {remedy}") from error
    if info.base_digest and weights_digest(model) != info.base_digest:
        raise ModelError(
            f"{info.base_model} no longer contains the weights on which the adapters in {folder} were trained. {remedy}"
        )
    if dtype is not None and lora.quantize == "none":
        cast_weights(model, dtype)
    return model


def load_packed_start(
    folder: Path, policy: HybridModel, info: RunInfo, tokenizer: Any, *, trust_remote_code: bool = False
) -> HybridModel:
    """Load the model from which a QLoRA run started, with its base as quantized in training.

    Args:
        folder: The run's folder, or a checkpoint's.
        policy: The run's model from `load_run`. If it has adapters, the start is loaded quantized; otherwise the
            adapters are subtracted from the merged weights.

    Raises:
        ModelError: the base or the adapters are missing or changed.
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
    """Cast a model's frozen weights in place. Adapters and reward head keep their training dtype, float32."""
    for name, parameter in model.stock_lm.named_parameters():
        if ".lora_" not in name:
            parameter.data = parameter.data.to(dtype)
