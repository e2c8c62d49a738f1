"""The reference policy's log-probs (pi_ref of Eq. 4), precomputed or live.

Three equivalent ways: precomputed before training and cached on disk (the default: no cost during training), the model
itself with its adapters disabled, or a frozen copy of the model.

Shape letters: G groups, S sequences.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import zipfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor

from hafrm import atomic
from hafrm.encoding import TokenGroup
from hafrm.errors import ConfigError, first_line
from hafrm.models.hybrid import HybridModel, SequenceScores
from hafrm.models.layout import Layout
from hafrm.models.lora import plain_name
from hafrm.models.modes import evaluating
from hafrm.packing import SequenceBatch

LiveReference = Callable[[SequenceBatch], Tensor]
"""Function from a batch to its reference log-probs, [S], without gradients."""

_PART = 512  # groups per file: the most that an interrupted computation loses

_ROUNDING = 1e-2
"""Largest positive log-prob of a response accepted as rounding."""

_FORMAT = 1
"""Part of every fingerprint: increase it when hafrm computes other log-probs from the same weights and tokens."""

_NOT_COMPUTED_WITH = {"_name_or_path", "transformers_version", "architectures", "use_cache"}
"""Config fields that do not affect log-probs."""


def adapter_off_reference(model: HybridModel) -> LiveReference:
    """Use the model itself with adapters disabled: no second copy, one more forward pass per step.

    It runs in evaluation mode, like the other references, even while the model is training.
    """

    @torch.no_grad()
    def reference(batch: SequenceBatch) -> Tensor:
        with model.adapters_disabled(), evaluating(model):
            return _log_probs(model, batch)

    return reference


def frozen_copy_reference(model: HybridModel) -> LiveReference:
    """Use a frozen copy of the current model: twice the memory, one more forward pass per step."""
    frozen = copy.deepcopy(model).requires_grad_(False).eval()

    @torch.no_grad()
    def reference(batch: SequenceBatch) -> Tensor:
        return _log_probs(frozen, batch)

    return reference


def precompute_reference(
    model: HybridModel,
    groups: Sequence[TokenGroup],
    *,
    layout: Layout,
    batch_size: int,
    tokens: int = 8192,
    cache: Path,
    progress: Callable[[int], None] = lambda done: None,
    weights: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> np.ndarray:
    """Compute log-probs of all responses under the current model without its adapters, cached on disk by fingerprint.

    The fingerprint covers the weights, the config and the token ids (and thereby the tokenizer, the template and the
    rows). Parts are written atomically: an interrupted computation resumes, and concurrent processes with the same task
    write the same files. Adapters are disabled and not part of the fingerprint, so all runs from one model share the
    cache. With several processes, all must call this; each computes a share of the parts and receives the whole.

    Args:
        model: The reference policy, complete in each process; temporarily in evaluation mode.
        groups: G prompts, each with the same number N of responses.
        layout: How groups become batches.
        batch_size: Groups per forward pass with padded rows.
        tokens: Tokens per forward pass with packed rows.
        cache: Folder of cached references.
        progress: Called with an estimate of the groups done, which assumes that all processes are equally fast.
        weights: The model's `weights_digest` if known, to avoid reading the weights again per data set.
        say: Called with a warning if a cached file is damaged or nothing can be cached; the computation continues.

    Returns:
        Summed response log-probs, [G, N], float32.
    """
    folder = cache / fingerprint(model, groups, weights=weights)
    processes = PartialState()
    starts = range(0, len(groups), _PART)[processes.process_index :: processes.num_processes]
    share, done = [], 0
    with evaluating(model), model.adapters_disabled() if model.adapted else contextlib.nullcontext():
        for start in starts:
            part = groups[start : start + _PART]
            batches = partial(_reference_batches, model, part, layout, batch_size, tokens)
            share.append((start, _cached_part(part, folder / f"{start:09d}.npz", batches, say)))
            done = min(len(groups), done + len(part) * processes.num_processes)
            progress(done)
    # Not through the cache, whose folder may differ between nodes.
    parts: list[tuple[int, np.ndarray]] = gather_object(share)
    return np.concatenate([part for _, part in sorted(parts, key=lambda found: found[0])])


def fingerprint(model: HybridModel, groups: Sequence[TokenGroup], *, weights: str | None = None) -> str:
    """Identify the model without adapters, the tokens and the precision; see `precompute_reference`."""
    precision = str(torch.get_autocast_dtype("cpu")) if torch.is_autocast_enabled("cpu") else ""
    if torch.is_autocast_enabled("cuda"):
        precision = str(torch.get_autocast_dtype("cuda"))
    config = {name: value for name, value in model.config.to_dict().items() if name not in _NOT_COMPUTED_WITH}
    described = json.dumps([_FORMAT, weights or weights_digest(model), precision, config], sort_keys=True, default=str)
    digest = hashlib.blake2b(described.encode(), digest_size=16)
    for group in groups:
        digest.update(repr((group.prompt, group.responses)).encode())
    return digest.hexdigest()


def weights_digest(model: HybridModel) -> str:
    """Hash the backbone's and the policy head's weights, in their dtype and without adapters."""
    digest = hashlib.blake2b(digest_size=16)
    state = {plain_name(name): tensor for name, tensor in model.stock_lm.state_dict().items()}
    for name, tensor in sorted(state.items()):
        if ".lora_" not in name:
            digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            digest.update(tensor.detach().contiguous().cpu().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _cached_part(
    groups: Sequence[TokenGroup],
    path: Path,
    compute: Callable[[], Iterator[tuple[list[int], Tensor]]],
    say: Callable[[str], None],
) -> np.ndarray:
    """Return log-probs of one file's groups, [groups, N]: read if the file is intact, else computed and written."""
    shape = (len(groups), len(groups[0].responses))
    if path.exists():
        cached = _read_part(path)
        if cached is not None and cached.shape == shape and cached.dtype == np.float32 and _possible(cached):
            return cached
        say(f"warning: {path} is damaged, so it is deleted and its log-probs are computed again")
        with contextlib.suppress(OSError):
            path.unlink()
    values = np.empty(shape, dtype=np.float32)
    for rows, log_probs in compute():
        values[rows] = log_probs.view(len(rows), -1).cpu().numpy()
    try:
        with atomic.new_file(path) as file:
            np.savez(file, log_probs=values)
    except (OSError, ConfigError) as error:
        problem = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
        say(f"warning: {path.parents[1]} can't be written to ({problem}), so the next run computes the reference again")
    return values


def _possible(log_probs: np.ndarray) -> bool:
    """Return whether all values can be log-probabilities: at most 0 up to rounding."""
    return bool(np.isfinite(log_probs).all() and (log_probs <= _ROUNDING).all())


def _read_part(path: Path) -> np.ndarray | None:
    """Read a cached file; return None if it is missing or fails the archive's checksum."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open("log_probs.npy") as stored:
            values: np.ndarray = np.lib.format.read_array(stored, allow_pickle=False)
            return values
    except Exception:  # damaged archives raise many types: zipfile's own, NotImplementedError, zlib's, ...
        return None


@torch.no_grad()
def _reference_batches(
    model: HybridModel, groups: Sequence[TokenGroup], layout: Layout, batch_size: int, tokens: int
) -> Iterator[tuple[list[int], Tensor]]:
    device = model.score.weight.device
    for rows in layout.plan(groups, sequences=batch_size * len(groups[0].responses), tokens=tokens):
        batch = layout.batch([groups[row] for row in rows]).to(device)
        yield rows, _log_probs(model, batch)


def _log_probs(model: HybridModel, batch: SequenceBatch) -> Tensor:
    scores: SequenceScores = model(batch, rewards=False)
    assert scores.log_probs is not None
    return scores.log_probs
