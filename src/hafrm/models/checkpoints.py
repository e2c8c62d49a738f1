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
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, cast

import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as hf_logging

from hafrm import atomic
from hafrm.encoding import Overlong
from hafrm.errors import DamagedError, HafrmError, ModelError, UnwritableError, first_line
from hafrm.models import modes
from hafrm.models.advice import advice
from hafrm.models.hybrid import HeadInit, HybridModel, new_reward_head
from hafrm.models.lora import LoraOptions, add_lora, merged_state_dict, quantization_config
from hafrm.models.references import weights_digest
from hafrm.models.tokenizers import load_tokenizer, resize_embeddings

__all__ = [
    "ADAPTER_FOLDER",
    "RUN_FILE",
    "Head",
    "RunInfo",
    "load_causal_lm",
    "load_run",
    "load_whole",
    "loading",
    "new_model",
    "quiet_transformers",
    "read_manifest",
    "require_finished",
    "require_undamaged",
    "restore_weights",
    "save_adapter",
    "save_run",
    "saved_weights",
    "writing",
]

RUN_FILE = "hafrm.json"
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
_FORMAT = 1
_ADDED_LATER = {"reward_loss", "base_digest", "sha256"}

Head = Literal["reward", "policy", "combined"]
"""Which scores a model gives: its reward head, its implicit DPO reward, or the sum of both."""


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """What `hafrm.json` records: how a model was trained and how it scores."""

    method: str
    base_model: str
    """The model that training started from: the reference policy of the implicit reward."""
    reward_weight: float
    policy_ratio: float
    policy_loss: str
    beta: float
    max_length: int
    overlong: Overlong
    pad_token: str
    scored_position: Literal["last_token"] = "last_token"
    """The token whose state gives the reward: the conversation's last, as stock classifiers have it."""
    reward_loss: str = "bradley_terry"
    """How reward differences were judged, which says what a difference means."""
    base_digest: str = ""
    """`weights_digest` of the model at the start, in the run's dtype; empty where it was not taken."""
    lora: dict[str, Any] | None = None
    combined_weight: float | None = None
    """w of the combined score r + w * beta * log-ratio, fitted on validation pairs; None if it was not fitted."""
    sha256: dict[str, str] = field(default_factory=dict)
    """Checksums of the files that were saved with it, by their paths in the folder; older runs have none."""
    versions: dict[str, str] = field(
        default_factory=lambda: {name: version(name) for name in ("hafrm", "torch", "transformers", "peft")}
    )

    @property
    def default_head(self) -> Head:
        """The head that was trained to score."""
        return "reward" if self.reward_weight else "policy"

    def save(self, folder: Path) -> None:
        """Write `hafrm.json` into a folder."""
        atomic.write_json(folder / RUN_FILE, {"format": _FORMAT} | asdict(self))

    @classmethod
    def load(cls, folder: Path) -> RunInfo:
        """Read a run's `hafrm.json`.

        Raises:
            ModelError: the file is missing or not what a run writes.
        """
        path = folder / RUN_FILE
        require_finished(folder)
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if values["format"] != _FORMAT:
                raise ValueError(f"format {values['format']!r}, and this hafrm reads {_FORMAT}")
            names = [f.name for f in fields(cls) if f.name in values or f.name not in _ADDED_LATER]
            return cls(**{name: values[name] for name in names})
        except FileNotFoundError:
            raise ModelError(f"{folder} is not a run of hafrm: it has no {RUN_FILE}.") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelError(f"{path} can't be read ({error}). It is damaged or of another version.") from error


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' progress bars and its report of the other head as an unexpected key."""
    level, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()


def read_manifest(folder: Path) -> dict[str, Any]:
    """A run's manifest; empty where there is none that reads."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def require_finished(folder: Path) -> None:
    """Refuse the folder of a run that has not come to its end: its weights are in its checkpoints alone.

    Raises:
        ModelError: names the newest checkpoint.
    """
    if (folder / RUN_FILE).is_file() or read_manifest(folder).get("status") != "running":
        return
    steps = [path.parent.name.removeprefix("checkpoint-") for path in folder.glob(f"checkpoint-*/{RUN_FILE}")]
    newest = max((int(step) for step in steps if step.isdecimal()), default=None)
    remedy = f"Use its newest checkpoint, {folder / f'checkpoint-{newest}'}, or" if newest is not None else "To end it,"
    raise ModelError(f"{folder} holds an unfinished run. {remedy} run the same training command again.")


def require_undamaged(folder: Path) -> None:
    """Refuse a run's folder, or a checkpoint's, whose files are not those that were saved. Reads them all.

    Raises:
        DamagedError: names the file.
    """
    info = RunInfo.load(folder)
    for name, digest in info.sha256.items():
        path = folder / name
        if not path.is_file():
            problem = "is missing"
        elif _digest(path) != digest:
            problem = "is not what was saved: its checksum differs"
        else:
            continue
        raise DamagedError(
            f"{path} {problem}. Restore it from a copy, or use another checkpoint; if it was changed on purpose, take "
            f"its line out of `sha256` in {folder / RUN_FILE}."
        )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def loading(kind: str, model: str) -> Iterator[None]:
    """Whatever goes wrong while transformers loads a model of this kind becomes a `ModelError` that says so."""
    try:
        with quiet_transformers():
            yield
    except HafrmError:
        raise
    except Exception as error:  # transformers raises many kinds: OSError, ValueError, safetensors' own, ...
        here = "" if Path(model).exists() else " There is no such folder here."
        raise ModelError(
            f"No {kind} could be loaded from {model}.{here} ({first_line(error)}){advice(error)}"
        ) from error


def load_whole(
    stock_class: Any, model: str, *, kind: str, dtype: torch.dtype | None = None, **kwargs: Any
) -> PreTrainedModel:
    """Load a stock model none of whose weights start at random.

    Args:
        stock_class: One of transformers' classes, or of their automatic choices.
        model: Folder or hub id.
        kind: What it should be, in words.
        dtype: The weights' dtype; None keeps the checkpoint's.
        **kwargs: More for `from_pretrained`.

    Raises:
        ModelError: nothing loads from there, or weights are missing, or they are pickled.
        DamagedError: it is a run's folder, and not as it was saved.
    """
    if (Path(model) / RUN_FILE).is_file():
        require_undamaged(Path(model))
    with loading(kind, model):
        loaded, report = stock_class.from_pretrained(
            model, dtype=dtype or "auto", use_safetensors=True, output_loading_info=True, **kwargs
        )
    if report["missing_keys"] or report["mismatched_keys"]:
        lost = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
        raise ModelError(
            f"{model} lacks weights of {type(loaded).__name__}: {', '.join(lost[:3])} ({len(lost)} in all). "
            f"They would start at random; give a checkpoint of a {kind}."
        )
    return cast(PreTrainedModel, loaded)


def load_causal_lm(
    model: str, *, dtype: torch.dtype | None = None, trust_remote_code: bool = False, **kwargs: Any
) -> PreTrainedModel:
    """Load a stock causal LM; see `load_whole`."""
    return load_whole(
        AutoModelForCausalLM,
        model,
        kind="causal language model",
        dtype=dtype,
        trust_remote_code=trust_remote_code,  # left out, transformers would ask on the terminal
        **kwargs,
    )


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
) -> HybridModel:
    """A model to train: a pretrained backbone and LM head, with a fresh reward head.

    Args:
        model: Folder or hub id of a causal LM.
        tokenizer: Its prepared tokenizer (`load_tokenizer`): the embeddings grow if it has new tokens.
        lora: Adapters, or none.
        head_init: How the reward head starts.
        seed: Seed of the reward head's start.
        dtype: The weights' dtype; None keeps the checkpoint's.
        disable_dropout: Train the backbone without its own dropout, as TRL does: log-ratios to a reference are noise
            with it. The saved config keeps its values, and adapters have `lora.dropout`.
        trust_remote_code: Run modelling code that comes with the model. Off unless you trust it.
    """
    quantization = quantization_config(lora)
    extra = {"quantization_config": quantization} if quantization else {}
    causal_lm = load_causal_lm(model, dtype=dtype, trust_remote_code=trust_remote_code, **extra)
    resize_embeddings(causal_lm, tokenizer)
    _describe_heads(causal_lm.config, tokenizer)
    if disable_dropout:
        modes.disable_dropout(causal_lm)
    head_dtype = torch.float32 if lora.enabled else causal_lm.dtype
    head = new_reward_head(causal_lm.config, init=head_init, seed=seed, dtype=head_dtype).to(causal_lm.device)
    return HybridModel(add_lora(causal_lm, lora) if lora.enabled else causal_lm, head)


def _describe_heads(config: PreTrainedConfig, tokenizer: Any) -> None:
    """Say in the config what stock classes must know: one label, a raw score, which token is padding."""
    config.num_labels = 1
    config.problem_type = "regression"  # without it pipelines and vLLM pass the reward through a sigmoid
    for part in {id(c): c for c in (config, config.get_text_config())}.values():
        part.pad_token_id = tokenizer.pad_token_id


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
        sha256 = {path.relative_to(temporary).as_posix(): _digest(path) for path in files}
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
