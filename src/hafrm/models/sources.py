"""The files of a model, a folder or hub id: weights, adapters on another model, a value head in a separate file.

Only reads JSON and the headers of safetensors files; loads neither models nor torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from hafrm import atomic
from hafrm.errors import ModelError, first_line
from hafrm.hub import work_offline_if_unreachable
from hafrm.models.checksums import ADAPTER_FILE, ADAPTER_FOLDER, INDEX_FILE, WHOLE_FILE
from hafrm.models.runinfo import RUN_FILE, RunInfo, require_as_saved, run_info
from hafrm.store import read_json

if TYPE_CHECKING:
    from torch import Tensor

ADAPTER_CONFIG = "adapter_config.json"
_PICKLED = ("adapter_model.bin", "value_head.bin")


def require_place(model: str) -> None:
    """Raise if a name can only be a local folder, and there is none; such names are not sent to the hub.

    Args:
        model: Folder or hub id. An id is OWNER/NAME or NAME: names that begin with a separator, a dot or a tilde, that
            have more parts, or whose first part is a local folder are paths.

    Raises:
        ModelError: there is no such folder, and the message suggests similar ones in the same place; or the folder
        contains models in subfolders.
        ConfigError: the folder's path is not valid UTF-8.
    """
    path = Path(model)
    if path.exists():
        atomic.require_utf8(path)
        _require_one_model(path)
        return
    parts = model.split("/")
    is_id = len(parts) <= 2 and all(parts) and model[0] not in ".~" and "\\" not in model
    if is_id and not (len(parts) == 2 and Path(parts[0]).is_dir()):
        work_offline_if_unreachable()
        return
    others = [str(each) for each in path.parent.iterdir() if each.is_dir()] if path.parent.is_dir() else []
    near = get_close_matches(str(path), others, n=2, cutoff=0.7)
    hint = f"Did you mean {' or '.join(near)}?" if near else "Check the path; hub models are named OWNER/NAME."
    raise ModelError(f"{model}: there is no such folder. {hint}")


def _require_one_model(folder: Path) -> None:
    descriptions = (RUN_FILE, "config.json", ADAPTER_CONFIG)
    begun = ("manifest.json", "tokenizer.json")  # files of unfinished trainings
    if any((folder / name).exists() for name in (*descriptions, *begun)):
        return
    found = sorted({str(path.parent) for name in descriptions for path in folder.glob(f"*/{name}")})
    if found:
        listed = ", ".join(found[:4]) + (f" and {len(found) - 4} more" if len(found) > 4 else "")
        raise ModelError(f"{folder} is not a model but a folder of models: {listed}. Give one or several of them.")


@dataclass(frozen=True)
class AdapterSource:
    """PEFT adapters and their base model."""

    folder: Path
    base: str
    """Folder or hub id of the base, which may consist of adapters itself."""

    @property
    def weights(self) -> Path:
        """File of the adapters' weights."""
        return self.folder / ADAPTER_FILE


def find_file(model: str, name: str) -> Path | None:
    """Find a file of a model in its folder or on the hub; return None if it does not exist."""
    if Path(model).is_dir():
        path = Path(model) / name
        return path if path.is_file() else None
    from transformers.utils.hub import cached_file

    try:
        found = cached_file(
            model,
            name,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    except OSError:  # no such model, for which the loader has a better error
        return None
    return None if found is None else Path(found)


def read_config(path: Path) -> dict[str, Any]:
    """Read a JSON file of a model.

    Raises:
        ModelError: the file is not a JSON object.
    """
    values = read_json(path)
    if values is None:
        raise ModelError(f"{path} can't be read. Restore it from a copy.")
    return values


def adapter_source(model: str) -> AdapterSource | None:
    """Find the adapters of a model that consists of them, in PEFT's format or a LoRA run's checkpoint; else None.

    Raises:
        ModelError: the adapters do not name their base, or are pickled.
    """
    if (info := run_info(model)) is not None:
        alone = info.with_adapters and not info.whole
        return AdapterSource(Path(model) / ADAPTER_FOLDER, _base_of_run(model, info)) if alone else None
    description = find_file(model, ADAPTER_CONFIG)
    if description is None or any(find_file(model, name) for name in (WHOLE_FILE, INDEX_FILE)):
        return None
    weights = find_file(model, ADAPTER_FILE)
    if weights is None:
        raise ModelError(f"{model} has an {ADAPTER_CONFIG} but no {ADAPTER_FILE}.{_pickled(model)}")
    return AdapterSource(weights.parent, _base_of_peft(model, description))


def _base_of_run(folder: str, info: RunInfo) -> str:
    if info.quantized:
        raise ModelError(
            f"{folder} is a checkpoint of adapters on a 4-bit base, from which training can't start. Finish that run, "
            "and give its folder."
        )
    return info.base_model


def _base_of_peft(model: str, description: Path) -> str:
    base = read_config(description).get("base_model_name_or_path")
    remedy = f"Set `base_model_name_or_path` in {description} to the model on which the adapters were trained."
    if not base:
        raise ModelError(f"{model} consists of adapters but does not name their base model. {remedy}")
    if Path(base).is_absolute() and not Path(base).exists():
        raise ModelError(f"{model} consists of adapters for {base}, which does not exist. {remedy}")
    return str(base)


def _pickled(model: str) -> str:
    names = [name for name in _PICKLED if find_file(model, name)]
    return f" {names[0]} is a pickle, which can run code: save it as safetensors." if names else ""


def root_model(model: str) -> str:
    """Follow adapters to the whole model at their base, whose config applies.

    Raises:
        ModelError: adapters do not name their base.
    """
    for _ in range(9):
        adapters = adapter_source(model)
        if adapters is None:
            return model
        model = adapters.base
    raise ModelError(f"{model} consists of adapters on adapters on adapters, without a whole model as their base.")


class SavedWeights:
    """Names, shapes and values of the weights saved with a model, or with its adapters but not their base."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.files: dict[str, Path] = {}
        for path in _weight_files(model):
            try:
                with safe_open(path, "pt") as file:
                    for name in file.keys():  # noqa: SIM118 (not a mapping)
                        plain = name.removeprefix("base_model.model.")
                        self.shapes[plain] = tuple(file.get_slice(name).get_shape())
                        self.files[plain] = path
            except (OSError, SafetensorError) as error:
                raise ModelError(f"{path} can't be read ({first_line(error)}). Restore it from a copy.") from error

    def read(self, name: str) -> Tensor:
        """Read a weight's values, on the CPU."""
        path = self.files[name]
        with safe_open(path, "pt") as file:
            found = name if name in file.keys() else f"base_model.model.{name}"  # noqa: SIM118 (not a mapping)
            tensor: Tensor = file.get_tensor(found)
        return tensor


def _weight_files(model: str) -> Iterator[Path]:
    require_as_saved(model)
    adapters = adapter_source(model)
    if adapters is not None:
        yield adapters.weights
    elif whole := find_file(model, WHOLE_FILE):
        yield whole
    elif index := find_file(model, INDEX_FILE):
        yield from _parts(model, index)
    if head := find_file(model, "value_head.safetensors"):
        yield head
    elif find_file(model, "value_head.bin"):
        raise ModelError(f"{model} has a value head in value_head.bin.{_pickled(model)}")


def _parts(model: str, index: Path) -> Iterator[Path]:
    names = read_config(index).get("weight_map")
    if not isinstance(names, dict):
        raise ModelError(f"{index} has no `weight_map`. Restore it from a copy.")
    for name in sorted(set(names.values())):
        if (path := find_file(model, name)) is None:
            raise ModelError(f"{index} names {name}, which is missing. Restore it from a copy.")
        yield path


def owner_of(model: str, file: str) -> str:
    """Return a model that consists of adapters if it has this file, or else their base; any other model itself."""
    while (adapters := adapter_source(model)) is not None and find_file(model, file) is None:
        model = adapters.base
    return model


def stop_tokens(model: str) -> list[int]:
    """Return distinct ids of stop tokens in a model's configs, if any; adapters without configs use their base's."""
    model = owner_of(model, "config.json")
    found: dict[int, None] = {}
    for name in ("generation_config.json", "config.json"):
        path = find_file(model, name)
        values = read_config(path).get("eos_token_id") if path else None
        ids = values if isinstance(values, list) else [values]
        found |= dict.fromkeys(token for token in ids if isinstance(token, int))
    return list(found)
