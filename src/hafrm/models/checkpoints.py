"""A run's checkpoint on disk: one folder that stock transformers loads with no custom code.

`model.safetensors` holds the stock causal LM's tensors under their stock names plus `score.weight`, so the folder loads
as `AutoModelForCausalLM` and as `AutoModelForSequenceClassification`; each class only reports the other's head as
unexpected. `hafrm.json` says how the model was trained and how it scores, and holds the other files' checksums: a
checkpoint whose files are not what was saved is refused, and weights are read as safetensors alone. A LoRA run's final
folder holds the merged weights and, in `adapter/`, the adapters themselves; its intermediate checkpoints hold the
adapters alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedConfig

from hafrm import atomic
from hafrm.errors import ModelError, UnwritableError, first_line
from hafrm.models.hybrid import HybridModel, new_reward_head
from hafrm.models.lora import LoraOptions, merged_state_dict
from hafrm.models.references import weights_digest
from hafrm.models.runinfo import RUN_FILE, RunInfo, file_digest, require_undamaged
from hafrm.models.stock import load_causal_lm, loading, new_model, quiet_transformers
from hafrm.models.tokenizers import load_tokenizer

__all__ = [
    "ADAPTER_FOLDER",
    "load_run",
    "restore_weights",
    "save_adapter",
    "save_run",
    "saved_weights",
    "writing",
]

ADAPTER_FOLDER = "adapter"
_ADAPTER_FILE = "adapter_model.safetensors"
_HEAD_KEY = "score.weight"
_STOCK = "causal_lm."  # how the names of the stock model's tensors begin in a `HybridModel`
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
    stock = model.stock_lm
    if model.adapted:
        state = merged_state_dict(stock)
    else:
        whole = model.state_dict() if weights is None else weights
        state = {name.removeprefix(_STOCK): tensor for name, tensor in whole.items() if name.startswith(_STOCK)}
    head = model.score.weight if weights is None else weights[_HEAD_KEY]
    state[_HEAD_KEY] = head.detach().to(stock.dtype)
    if model.adapted and getattr(stock.config, "quantization_config", None) is not None:
        del stock.config.quantization_config  # what is written is merged and whole
    with _checkpoint(tokenizer, info, folder) as temporary:
        with quiet_transformers():
            stock.save_pretrained(temporary, state_dict=state)
        if model.adapted:
            _save_adapter_tensors(model, temporary / ADAPTER_FOLDER)


def save_adapter(model: HybridModel, tokenizer: Any, info: RunInfo, folder: Path) -> None:
    """Write a checkpoint of a LoRA run: adapters and reward head without the frozen weights; see `save_run`."""
    with _checkpoint(tokenizer, info, folder) as temporary:
        _save_adapter_tensors(model, temporary / ADAPTER_FOLDER)
        model.config.save_pretrained(temporary)


@contextlib.contextmanager
def _checkpoint(tokenizer: Any, info: RunInfo, folder: Path) -> Iterator[Path]:
    """A temporary folder for a model's files, which become `folder`'s with the tokenizer's; `hafrm.json` comes last."""
    with writing(folder), atomic.new_files(folder, last=RUN_FILE) as temporary:
        yield temporary
        tokenizer.save_pretrained(temporary)
        files = sorted(path for path in temporary.rglob("*") if path.is_file())
        sha256 = {path.relative_to(temporary).as_posix(): file_digest(path) for path in files}
        replace(info, sha256=sha256).save(temporary)


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


def _save_adapter_tensors(model: HybridModel, folder: Path) -> None:
    """Write adapters as PEFT does for a sequence classifier: the head is a module saved with them."""
    folder.mkdir(parents=True, exist_ok=True)
    peft_model = cast(Any, model.causal_lm)
    # Never the embeddings: the rows that a new token adds are the same each time (`resize_embeddings`).
    adapters = get_peft_model_state_dict(peft_model, save_embedding_layers=False)
    state = {name: tensor.contiguous() for name, tensor in adapters.items()}
    state[f"base_model.model.{_HEAD_KEY}"] = model.score.weight.detach()
    save_file(state, folder / _ADAPTER_FILE, metadata={"format": "pt"})
    config = peft_model.peft_config[peft_model.active_adapter]
    description = config.to_dict() | {
        "task_type": "SEQ_CLS",
        "modules_to_save": ["score"],
        "inference_mode": True,
        "target_modules": sorted(config.target_modules),
    }
    atomic.write_json(folder / "adapter_config.json", description)


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
        saved = type(model.stock_lm).from_pretrained(folder, dtype=model.stock_lm.dtype, use_safetensors=True)
    state = {f"{_STOCK}{name}": tensor for name, tensor in saved.state_dict().items()}
    return state | {_HEAD_KEY: _read_head(folder)}


def _restore_adapters(model: HybridModel, folder: Path) -> None:
    with loading("adapters", str(folder)):
        state = load_file(folder / ADAPTER_FOLDER / _ADAPTER_FILE)
        head = state.pop(f"base_model.model.{_HEAD_KEY}", None)
        if head is None:
            raise ModelError(f"{folder} holds no reward head ({_HEAD_KEY}).")
        model.score.weight.data.copy_(head)
        report: Any = set_peft_model_state_dict(cast(Any, model.causal_lm), state)
    strangers = [*report.unexpected_keys, *(name for name in report.missing_keys if ".lora_" in name)]
    if strangers:
        raise ModelError(f"The adapters of {folder} do not fit the model: {strangers[0]}.")


def _read_head(folder: Path) -> Tensor:
    """The reward head's weight, [1, H]."""
    for path in sorted(folder.glob("model*.safetensors")):
        with safe_open(path, "pt") as file:
            if _HEAD_KEY in file.keys():  # noqa: SIM118 (not a mapping)
                return cast(Tensor, file.get_tensor(_HEAD_KEY))
    raise ModelError(f"{folder} holds no reward head ({_HEAD_KEY}).")


def load_run(
    folder: str | Path, *, dtype: torch.dtype | None = None, trust_remote_code: bool = False
) -> tuple[HybridModel, Any, RunInfo]:
    """Load a run's folder, or one of its checkpoints, for scoring.

    Args:
        folder: The folder.
        dtype: The weights' dtype; None keeps the run's.
        trust_remote_code: Run modelling code that comes with the model. Off unless you trust it.

    Returns:
        The model in evaluation mode, its tokenizer, and its description.

    Raises:
        ModelError: the folder is no run, unfinished or damaged, or it holds adapters whose base has gone or changed.
    """
    folder = Path(folder)
    info = RunInfo.load(folder)
    tokenizer = load_tokenizer(str(folder), trust_remote_code=trust_remote_code)
    if any(folder.glob("model*.safetensors")):
        causal_lm = load_causal_lm(str(folder), dtype=dtype, trust_remote_code=trust_remote_code)
        weight = _read_head(folder).to(causal_lm.dtype)
        head = new_reward_head(causal_lm.config, init="zero", seed=0, dtype=causal_lm.dtype)
        head.weight.data.copy_(weight)
        model = HybridModel(causal_lm, head)
    else:
        model = _base_of_adapters(folder, info, tokenizer, dtype=dtype, trust_remote_code=trust_remote_code)
        restore_weights(model, folder)
    return model.eval(), tokenizer, info


def _base_of_adapters(
    folder: Path, info: RunInfo, tokenizer: Any, *, dtype: torch.dtype | None, trust_remote_code: bool
) -> HybridModel:
    """The model that a run started from, with fresh adapters, for the adapters of one of its checkpoints."""
    lora = LoraOptions(**(info.lora or {}))
    remedy = f"Put it back, or set `base_model` in {folder / RUN_FILE} to where it is now."
    try:
        model = new_model(
            info.base_model,
            tokenizer,
            lora=lora,
            dtype=dtype or _saved_dtype(folder),
            trust_remote_code=trust_remote_code,
        )
    except ModelError as error:
        raise ModelError(f"The base model of the adapters in {folder} can't be loaded. {error} {remedy}") from error
    if dtype is None and info.base_digest and weights_digest(model) != info.base_digest:
        raise ModelError(
            f"{info.base_model} no longer holds the weights that the adapters in {folder} were trained on. {remedy}"
        )
    return model


def _saved_dtype(folder: Path) -> torch.dtype | None:
    """The dtype in which a run trained, from its config; adapters alone do not show it."""
    config = PreTrainedConfig.get_config_dict(folder)[0]
    saved = getattr(torch, str(config.get("dtype")), None)
    return saved if isinstance(saved, torch.dtype) else None
