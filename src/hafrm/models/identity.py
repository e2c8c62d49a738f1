"""What a model's rewards depend on, determined before scoring: its files, those of its reference, and the options.

A folder is identified by the names, sizes and times of its weight files and the contents of its small files; a hub
model by its commit; a server by its address and the name of its model, because its weights are not visible. Missing
models are thus found before any model is scored.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import uuid4

from transformers import AutoConfig

from hafrm.errors import ModelError
from hafrm.losses import uses_reference
from hafrm.models.checkpoints import rounding_would_lose
from hafrm.models.checksums import ADAPTER_FOLDER
from hafrm.models.options import ScoreOptions, ScorerChoice, require_plain
from hafrm.models.remote import RemoteScorer, is_server
from hafrm.models.runinfo import is_run, run_info
from hafrm.models.sources import adapter_source
from hafrm.models.stock import loading

_WEIGHTS = ".safetensors"
_SMALL = (".json", ".jinja", ".model", ".py", ".tiktoken", ".txt")
"""Endings of files that determine how a checkpoint is read: config, tokenizer, chat template, code."""
_OF_TRAINING = {"manifest.json", "trainer_state.json"}


def model_identity(model: str, choice: ScorerChoice, options: ScoreOptions) -> dict[str, Any]:
    """Return what a model's rewards depend on, as plain values under the names that messages use.

    Options that change rewards only by rounding (device, batches, layout) are left out.

    Raises:
        ModelError: the model or its reference does not exist.
    """
    if is_server(model):
        require_plain(model, choice)
        scorer = RemoteScorer(model)
        return {"the server": [scorer.endpoint, scorer.model_name()], "hafrm": version("hafrm")}
    trust = choice.trust_remote_code
    base = _base_in_half_precision(model, options, trust_remote_code=trust)
    return ({"its base": base} if base else {}) | {
        "the model": _checkpoint_identity(model, trust_remote_code=trust),
        "its reference": [_checkpoint_identity(name, trust_remote_code=trust) for name in _references(model, choice)],
        "head": choice.head,
        "combined_weight": choice.combined_weight,
        "trust_remote_code": trust,
        "score.max_length": options.max_length,
        "score.overlong": options.overlong,
        "score.dtype": options.dtype,
        "score.scored_at": options.scored_at,
        "score.special_tokens": options.special_tokens,
        "score.chat_template": _template_identity(options.chat_template),
        **({} if options.objective is None else {"score.objective": options.objective}),
        **({"score.pessimism": options.pessimism} if options.pessimism else {}),
        "hafrm": version("hafrm"),
    }


def _template_identity(template: str | None) -> str | None:
    """Identify a chat template by its content, not its file name."""
    if template == "default":  # the option's keyword, even if a file has this name
        return template
    path = Path(template or "")
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else template


def _base_in_half_precision(model: str, options: ScoreOptions, *, trust_remote_code: bool) -> str:
    """Return the identity of a LoRA run's base if the run is computed from it; empty if merged weights are used.

    The results differ by the rounding of activations, which is large relative to a small log-ratio.
    """
    info = run_info(model)
    if info is None or not rounding_would_lose(info, options.torch_dtype()):
        return ""
    try:
        return _checkpoint_identity(info.base_model, trust_remote_code=trust_remote_code)
    except ModelError:
        return ""


def _references(model: str, choice: ScorerChoice) -> list[str]:
    """Return the other models needed for scoring: a reference, or the base of a checkpoint of adapters."""
    named = [choice.reference] if choice.reference else []
    info = run_info(model)
    if info is None:
        return named
    implicit = (choice.head or info.default_head) != "reward" and uses_reference(info.policy_loss)
    return named + ([info.base_model] if not info.whole or (implicit and not named) else [])


def _checkpoint_identity(model: str, *, trust_remote_code: bool) -> str:
    """Return a folder's digest, or a hub model's commit; for PEFT adapters also that of their base."""
    if not is_run(model) and (adapters := adapter_source(model)) is not None:
        base = _checkpoint_identity(adapters.base, trust_remote_code=trust_remote_code)
        return f"{_folder_digest(adapters.folder)} on {base}"
    with loading("model", model):
        config = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)
    if Path(model).is_dir():
        return _folder_digest(Path(model))
    # Without a commit, the model can't be recognised later, so it is scored each time.
    return getattr(config, "_commit_hash", None) or uuid4().hex


def _folder_digest(folder: Path) -> str:
    digest = hashlib.sha256()
    weights = 0
    for path in _checkpoint_files(folder):
        digest.update(f"{path.relative_to(folder)}\0".encode(errors="surrogatepass"))
        if path.suffix == _WEIGHTS:
            weights += 1
            stat = path.stat()
            digest.update(f"{stat.st_size} {stat.st_mtime_ns}\0".encode())
        else:
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    if not weights:
        raise ModelError(f"{folder} contains no weights ({_WEIGHTS}). Give the folder of a whole model.")
    return digest.hexdigest()


def _checkpoint_files(folder: Path) -> Iterator[Path]:
    """Yield the files of a checkpoint and of its adapters, in order, without the files of training."""
    for place in (folder, folder / ADAPTER_FOLDER):
        if place.is_dir():
            for path in sorted(place.iterdir()):
                if path.suffix in (_WEIGHTS, *_SMALL) and path.name not in _OF_TRAINING and path.is_file():
                    yield path
