"""The three scales.

`world` is the simulated world with its own small backbones; `small` uses the user's backbones and folder of data files;
`paper` uses the paper's models, published sets and settings (section 3, Table 5, Appendix A). A scale maps the paper's
names of the five sets to their pairs. It loads nothing until a model or a mixture is requested.
"""

from __future__ import annotations

import gzip
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

from hafrm.errors import ConfigError, ModelError, first_line
from hafrm.hub import work_offline_if_unreachable
from hafrm.models.options import LoraOptions
from hafrm.paper.scales import METHODS, Backbone, Overrides, Scale, ScaleName, SetFiles, Split

if TYPE_CHECKING:
    from hafrm.paper.world.backbone import BackboneKind

WORLD_MAX_LENGTH = 256
"""Context length of the world's backbones in tokens; its texts are far shorter."""

MIXED_PAIRS = {"train": 800, "validation": 80}
"""Pairs per set in the world's mixture, as in the demo."""

_NAMES: Mapping[str, tuple[str, str, str]] = {
    "Helpful": ("world/helpful", "qa_eval", "hh-helpful"),
    "Harmless": ("world/harmless", "hh_harmless", "hh-harmless"),
    "CA": ("world/arena", "arguments", "chatbot-arena"),
    "BS": ("world/safe", "pku_safe", "beaver-safe"),
    "AHP": ("world/human-pref", "alpaca_gpt4", "alpaca-human-pref"),
}
"""Each set's data in the world, its file at the scale `small`, and its published data."""

_PHI_LR, _MISTRAL_LR = 1e-5, 3e-5

_Value = TypeVar("_Value")


def _or(asked: _Value | None, default: _Value) -> _Value:
    """Return the requested value, zero included, or the default if it is None."""
    return default if asked is None else asked


def _same_for_all_splits(place: int) -> dict[str, SetFiles]:
    return {name: SetFiles.named(each[place]) for name, each in _NAMES.items()}


def world_training(steps: int) -> dict[str, Any]:
    """Return the world's training options.

    So small a model needs a larger rate than the paper's. Precision is fixed, so that results do not depend on how fast
    a machine is in bfloat16.
    """
    return {"max_steps": steps, "learning_rate": 5e-4, "eval_steps": 60, "save_steps": 60, "bf16": False}


def _scale(
    name: ScaleName,
    overrides: Overrides,
    backbones: Sequence[Backbone],
    sets: Mapping[str, SetFiles],
    training: Mapping[str, Any],
    max_length: int,
    mixed: Mapping[str, int] | None = None,
) -> Scale:
    return Scale(
        name=name,
        backbones={each.name: each for each in backbones},
        sets=sets,
        training=training,
        max_length=_or(overrides.max_length, max_length),
        early_stopping=overrides.early_stopping,
        mixed=mixed,
        cap=overrides.pairs,
    )


def world_scale(overrides: Overrides) -> Scale:
    """Return the simulated world's scale: 2,000 training pairs per set, 240 steps of 16 pairs."""
    training = world_training(_or(overrides.steps, 240))
    rates: dict[str, float] = dict.fromkeys(METHODS, _or(overrides.learning_rate, training.pop("learning_rate")))

    def made(kind: BackboneKind) -> str:
        from hafrm.paper.world.backbone import world_backbone  # loads torch

        return str(world_backbone(kind))

    def backbone(kind: BackboneKind, paper_name: str) -> Backbone:
        shown = f"$(python -m hafrm.paper.world.backbone {kind})"  # a shell replaces it by the folder
        return Backbone(kind, paper_name, partial(made, kind), shown, LoraOptions(), rates)

    backbones = backbone("instruct", "Mistral"), backbone("base", "Mistral-base")
    from hafrm.paper.world.sets import VARIANTS

    sets = _same_for_all_splits(0)
    sets |= {
        f"{name}-{kind}": SetFiles.named(f"{each.train}-{kind}") for name, each in sets.items() for kind in VARIANTS
    }
    return _scale("world", overrides, backbones, sets, training, WORLD_MAX_LENGTH, MIXED_PAIRS)


def small_scale(overrides: Overrides, *, backbones: Sequence[str], data_folder: str | None) -> Scale:
    """Return a scale with the user's backbones and data files, NAME-train.jsonl.gz etc.

    A backbone is identified by its folder's name, however the path is written. Each has a twin NAME-lora, which trains
    rank-8 adapters on every linear layer.

    Raises:
        ConfigError: backbones or folder are not given, two backbones have the same name, one has no name, or a file is
            missing.
    """
    if not backbones or data_folder is None:
        raise ConfigError("scale: small needs --backbone FOLDER and --data_folder FOLDER.")
    names = {folder: Path(folder).resolve().name if folder else "" for folder in backbones}
    if nameless := [folder for folder, name in names.items() if not name]:
        raise ConfigError(f"backbone: {nameless[0]!r} has no name to keep runs by. Give a model's folder.")
    rates: dict[str, float] = dict.fromkeys(METHODS, _or(overrides.learning_rate, 5e-5))
    own = [
        Backbone(f"{names[folder]}{suffix}", None, partial(str, folder), folder, lora, rates)
        for suffix, lora in (("", LoraOptions()), ("-lora", LoraOptions(rank=8)))
        for folder in backbones
    ]
    if len({each.name for each in own}) < len(own):
        raise ConfigError(f"backbone: {', '.join(backbones)} have one name. Rename a folder: runs are kept by it.")
    steps = _or(overrides.steps, 600)
    every = max(20, math.ceil(steps / 10))
    sets = {
        name: _limited(_files(Path(data_folder), file), overrides.validation_pairs, overrides.test_pairs)
        for name, (_, file, _) in _NAMES.items()
    }
    training = {"max_steps": steps, "eval_steps": every, "save_steps": every}
    return _scale("small", overrides, own, sets, training, 512)


def _files(folder: Path, name: str) -> SetFiles:
    found = {}
    for split in get_args(Split):
        path = folder / f"{name}-{split}.jsonl.gz"
        plain = path.with_suffix("")
        found[split] = str(path if path.exists() or not plain.exists() else plain)
        if not Path(found[split]).exists():
            raise ConfigError(
                f"data_folder: {path} is missing. The folder needs NAME-train, -validation and -test "
                f"(.jsonl or .jsonl.gz) for {', '.join(file for _, file, _ in _NAMES.values())}."
            )
    return SetFiles(**found)


def _limited(files: SetFiles, validation: int | None, test: int | None) -> SetFiles:
    """Limit the validation and test pairs of a set; they are drawn at random, always the same ones."""

    def share(name: str, most: int | None) -> str:
        if most is None:
            return name
        with (gzip.open if name.endswith(".gz") else open)(name, "rb") as file:
            rows = sum(1 for line in file if line.strip())
        return name if rows <= most else f"{name}*{most / rows:.6f}"

    return replace(files, validation=share(files.validation, validation), test=share(files.test, test))


PAPER_MODELS: Mapping[str, tuple[str, str]] = {
    "phi-2": ("microsoft/phi-2", "ef382358ec9e382308935a992d908de099b64c23"),
    "mistral-base": ("mistralai/Mistral-7B-v0.3", "d8cadc02ac76bd617a919d50b092e59d2d110aff"),
    "mistral-instruct": ("mistralai/Mistral-7B-Instruct-v0.2", "3ad372fc79158a2148299e3318516c786aeded6c"),
}
"""The paper's models on the hub, each with the revision that is used."""

_FILES = ["*.json", "tokenizer*", "model*.safetensors"]
_TEMPLATES = Path(__file__).parent / "templates"


def _snapshot(model: str, revision: str) -> str:
    """Return the folder of a hub model's revision, after downloading what is missing.

    Raises:
        ModelError: the hub can't be reached, or refuses access.
    """
    work_offline_if_unreachable()
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(model, revision=revision, allow_patterns=_FILES)
    except Exception as error:  # errors of the hub and of the network share no base class
        raise ModelError(
            f"{model} at revision {revision[:8]} could not be downloaded ({first_line(error)}). Check the network; if "
            f"the model is gated, accept its terms on https://huggingface.co/{model} and run `hf auth login`."
        ) from error


def paper_scale(overrides: Overrides, *, data_folder: str | None = None) -> Scale:
    """Return the paper's scale: three models, five published sets, 3200 steps of 16 pairs; LoRA for the 7B models.

    Phi-2 and Mistral-base have no chat template, so they get the formats of their families, as in the authors' code:
    `Instruct: ... Output: ...` and `[INST] ... [/INST]`. Products are float16, as in Table 5, and trained weights
    float32; a frozen base under adapters is float16. Fused AdamW saves one copy of the trained weights.

    Args:
        overrides: The user's settings.
        data_folder: Folder with a copy of each set, a folder named like the set; by default sets are downloaded.
    """
    lora = LoraOptions(rank=64, alpha=16)
    half: Literal["float16", "bfloat16"] = "float16" if overrides.precision == "fp16" else "bfloat16"
    slow, fast = (dict.fromkeys(METHODS, rate) for rate in (_PHI_LR, _MISTRAL_LR))
    described = (
        ("phi-2", "Phi-2", "phi-2.jinja", LoraOptions(), slow),
        ("mistral-base", "Mistral-base", "mistral.jinja", lora, fast),
        # Appendix A: this backbone's baseline uses the lower rate.
        ("mistral-instruct", "Mistral", None, lora, fast | {"baseline": _PHI_LR}),
    )
    backbones = []
    for name, paper_name, template, options, rates in described:
        chosen: dict[str, float] = {method: _or(overrides.learning_rate, rate) for method, rate in rates.items()}
        model, revision = PAPER_MODELS[name]
        backbones.append(
            Backbone(
                name,
                paper_name,
                partial(_snapshot, model, revision),
                f"$(hf download {model} --revision {revision} --quiet)",
                options,
                chosen,
                chat_template=str(_TEMPLATES / template) if template else None,
                dtype=half if options.enabled else "auto",
            )
        )
    training = {
        "max_steps": _or(overrides.steps, 3200),
        "per_device_train_batch_size": 16,
        "activation_checkpointing": True,
        "optim": "adamw_torch_fused",
        overrides.precision: True,
    }
    sets = _same_for_all_splits(2)
    if data_folder is not None:
        sets = {name: _copies(Path(data_folder), _NAMES[name][2]) for name in sets}
    return _scale("paper", overrides, backbones, sets, training, 512)


def _copies(folder: Path, name: str) -> SetFiles:
    """Return the data name of a set's copy on disk.

    Raises:
        ConfigError: there is no such folder.
    """
    if not (folder / name).is_dir():
        raise ConfigError(
            f"data_folder: {folder / name} is missing. At scale paper the folder needs a copy of each set, in a folder "
            f"of its name: {', '.join(each for _, _, each in _NAMES.values())}."
        )
    return SetFiles.named(f"{name}@{folder / name}")
