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
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

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
from hafrm.models.modules import evaluating
from hafrm.packing import SequenceBatch, split_group

LiveReference = Callable[[SequenceBatch], Tensor]
"""Function from a batch to its reference log-probs, [S], without gradients."""

_PART = 512  # groups per file: the most that an interrupted computation loses

_ROUNDING = 1e-2
"""Largest positive log-prob of a response accepted as rounding."""

_FORMAT = 2
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


class ReferenceCache:
    """Log-probs of responses under one model without its adapters, computed once and kept on disk by content.

    A response's value is found by a digest of its token ids and its prompt's, in a folder named after the weights, the
    config and the precision. Runs, methods, epochs and data sets therefore share what any of them computed. Values are
    written in parts, atomically: an interrupted computation resumes, and concurrent processes can't disturb each other.
    With several processes, all must call `log_probs`; each computes a share of what is missing and receives the whole.

    Args:
        model: The reference policy, complete in each process; in evaluation mode while it computes.
        layout: How groups become batches.
        batch_size: Groups per forward pass with padded rows.
        tokens: Tokens per forward pass with packed rows.
        cache: Folder of all cached references.
        weights: The model's `weights_digest` if known, to avoid reading the weights again.
        say: Called with a warning if a cached file is damaged or nothing can be cached; the computation continues.
    """

    def __init__(
        self,
        model: HybridModel,
        *,
        layout: Layout,
        batch_size: int,
        tokens: int = 8192,
        cache: Path,
        weights: str | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._model, self._layout, self._batch_size, self._tokens = model, layout, batch_size, tokens
        self._say = say
        self.folder = cache / fingerprint(model, weights=weights)
        self._known = _Values.joined([self._read(path) for path in sorted(self.folder.glob("*.npz"))])

    def log_probs(
        self, groups: Sequence[TokenGroup], progress: Callable[[int], None] = lambda done: None
    ) -> list[np.ndarray]:
        """Return the log-probs of each group's responses, summed over tokens, as float32 arrays.

        Args:
            groups: Prompts with their responses.
            progress: Called with an estimate of the groups done, which assumes that all processes are equally fast.
        """
        processes = PartialState()
        names = [_names(group) for group in groups]
        computed, share = [], [_Values.none().names]
        with evaluating(self._model), self._model.adapters_disabled() if self._model.adapted else nullcontext():
            for start in range(0, len(groups), _PART)[processes.process_index :: processes.num_processes]:
                part = slice(start, start + _PART)
                share += names[part]
                if missing := self._missing(groups[part], names[part]):
                    computed.append(self._computed(missing))
                progress(min(len(groups), (start + _PART) * processes.num_processes))
        self._known = _Values.joined([self._known, *computed])
        if processes.num_processes > 1:  # the caches may differ, in folders of different nodes
            mine = np.concatenate(share)
            self._known = _Values.joined([self._known, *gather_object([_Values(mine, self._known.of(mine))])])
        ends = np.cumsum([len(group.responses) for group in groups])[:-1]
        return np.split(self._known.of(np.concatenate(names)), ends)

    def _missing(self, groups: Sequence[TokenGroup], names: Sequence[np.ndarray]) -> list[TokenGroup]:
        """Return the responses whose values are not known, by prompt."""
        unknown = [np.isnan(self._known.of(each)) for each in names]
        return [_only(group, wanted) for group, wanted in zip(groups, unknown, strict=True) if wanted.any()]

    @torch.no_grad()
    def _computed(self, groups: Sequence[TokenGroup]) -> _Values:
        """Compute one part and write it."""
        parts = [each for group in groups for each in split_group(group, self._tokens)]
        device = self._model.score.weight.device
        sequences = self._batch_size * max(len(group.responses) for group in parts)
        names, values = [], []
        for rows in self._layout.plan(parts, sequences=sequences, tokens=self._tokens):
            chosen = [parts[row] for row in rows]
            values.append(_log_probs(self._model, self._layout.batch(chosen).to(device)).float().cpu().numpy())
            names += [_names(group) for group in chosen]
        found = _Values.joined([_Values(np.concatenate(names), np.concatenate(values))])
        self._write(found)
        return found

    def _write(self, found: _Values) -> None:
        path = self.folder / f"{hashlib.blake2b(found.names.tobytes(), digest_size=8).hexdigest()}.npz"
        try:
            with atomic.new_file(path) as file:
                np.savez(file, names=found.names, log_probs=found.values)
        except (OSError, ConfigError) as error:
            problem = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
            place = self.folder.parent
            self._say(f"warning: {place} can't be written to ({problem}), so the next run computes the reference again")

    def _read(self, path: Path) -> _Values:
        """Return the values of a cached file; delete it if it is damaged."""
        found = _read_part(path)
        if found is None:
            self._say(f"warning: {path} is damaged, so it is deleted and its log-probs are computed again")
            with contextlib.suppress(OSError):
                path.unlink()
        return found or _Values.none()


class _Values(NamedTuple):
    """Values by name, in the order of the names: 20 bytes each, where a dictionary takes 200."""

    names: np.ndarray
    """[K, 2], uint64."""
    values: np.ndarray
    """[K], float32."""

    @classmethod
    def none(cls) -> _Values:
        return cls(np.empty((0, 2), dtype=np.uint64), np.empty(0, dtype=np.float32))

    @classmethod
    def joined(cls, parts: Sequence[_Values]) -> _Values:
        """Sort the values of all parts by name; a name of several parts keeps the first one's value."""
        parts = [cls.none(), *parts]
        names, values = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        order = np.lexsort((names[:, 1], names[:, 0]))  # stable
        names, values = names[order], values[order]
        first = np.ones(len(names), dtype=bool)
        first[1:] = (names[1:] != names[:-1]).any(axis=1)
        return cls(names[first], values[first])

    def of(self, names: np.ndarray) -> np.ndarray:
        """Return the values of names, [S]; NaN for unknown ones."""
        if not len(self.values):
            return np.full(len(names), np.nan, dtype=np.float32)
        place = np.searchsorted(self.names[:, 0], names[:, 0]).clip(max=len(self.values) - 1)
        known = (self.names[place] == names).all(axis=1)
        return np.where(known, self.values[place], np.float32(np.nan))


def precompute_reference(model: HybridModel, groups: Sequence[TokenGroup], **options: Any) -> np.ndarray:
    """Return the log-probs of groups with the same number N of responses, [G, N], float32.

    Args:
        model: The reference policy.
        groups: G prompts with their responses.
        options: Further arguments of `ReferenceCache`.
    """
    return np.stack(ReferenceCache(model, **options).log_probs(groups))


def _names(group: TokenGroup) -> np.ndarray:
    """Name each response by its token ids and its prompt's: 16 bytes of a hash, as [n, 2] uint64."""
    prompt = hashlib.blake2b(np.array(group.prompt, dtype="<u4").tobytes(), digest_size=16).digest()
    digests = [
        hashlib.blake2b(np.array(ids, dtype="<u4").tobytes(), digest_size=16, key=prompt).digest()
        for ids in group.responses
    ]
    return np.frombuffer(b"".join(digests), dtype="<u8").reshape(-1, 2)


def _only(group: TokenGroup, wanted: np.ndarray) -> TokenGroup:
    """Return the group with some of its responses."""
    return TokenGroup(group.prompt, tuple(ids for ids, keep in zip(group.responses, wanted, strict=True) if keep))


def fingerprint(model: HybridModel, *, weights: str | None = None) -> str:
    """Identify the model without adapters and the precision; see `ReferenceCache`."""
    precision = str(torch.get_autocast_dtype("cpu")) if torch.is_autocast_enabled("cpu") else ""
    if torch.is_autocast_enabled("cuda"):
        precision = str(torch.get_autocast_dtype("cuda"))
    config = {name: value for name, value in model.config.to_dict().items() if name not in _NOT_COMPUTED_WITH}
    described = json.dumps([_FORMAT, weights or weights_digest(model), precision, config], sort_keys=True, default=str)
    return hashlib.blake2b(described.encode(), digest_size=16).hexdigest()


def weights_digest(model: HybridModel) -> str:
    """Hash the backbone's and the policy head's weights, in their dtype and without adapters."""
    digest = hashlib.blake2b(digest_size=16)
    state = {plain_name(name): tensor for name, tensor in model.stock_lm.state_dict().items()}
    for name, tensor in sorted(state.items()):
        if ".lora_" not in name:
            digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            digest.update(tensor.detach().contiguous().cpu().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _read_part(path: Path) -> _Values | None:
    """Read a cached file; None if it fails the archive's checksum, or a value can't be a log-probability."""
    try:
        with zipfile.ZipFile(path) as archive:
            names, values = (_array(archive, name) for name in ("names", "log_probs"))
    except Exception:  # damaged archives raise many types: zipfile's own, NotImplementedError, zlib's, ...
        return None
    fits = names.dtype == np.uint64 and values.dtype == np.float32 and names.shape == (*values.shape, 2)
    possible = np.isfinite(values).all() and (values <= _ROUNDING).all()
    return _Values(names, values) if fits and possible else None


def _array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with archive.open(f"{name}.npy") as stored:
        values: np.ndarray = np.lib.format.read_array(stored, allow_pickle=False)
        return values


def _log_probs(model: HybridModel, batch: SequenceBatch) -> Tensor:
    scores: SequenceScores = model(batch, rewards=False)
    assert scores.log_probs is not None
    return scores.log_probs
