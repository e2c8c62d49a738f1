"""Claim, lock and create a run's folder."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hafrm import atomic
from hafrm.errors import ConfigError
from hafrm.models.runinfo import require_outside_models
from hafrm.store import LOCK_FILE, alone, unwritable
from hafrm.training.manifest import is_finished, read_manifest, require_same_config
from hafrm.training.owned import remove_own, require_no_strangers, require_own_checkpoints, require_plain_files

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def claim_folder(
    config: DataclassInstance, folder: Path, inputs: Mapping[str, Path], *, overwrite: bool
) -> dict[str, Any] | None:
    """Return the manifest of the interrupted run to resume, or None; raise if the folder is not free for this run.

    Args:
        inputs: The paths that it reads, by the options that name them.
        overwrite: Whether to delete what another run wrote there.

    Raises:
        ConfigError: the folder is not free for this run; the message says why.
    """
    atomic.require_folder(folder)
    atomic.require_utf8(folder)
    require_outside_models(folder)
    _refuse_inputs_in(folder, inputs)
    manifest = read_manifest(folder)
    if manifest is not None:
        require_plain_files(folder)
        require_no_strangers(folder)
    if overwrite and manifest is not None:
        require_own_checkpoints(folder)
        return None
    if is_finished(folder):
        raise ConfigError(f"{folder} already contains a finished run. Choose another --out, or --overwrite true.")
    if manifest is not None:
        require_same_config(manifest, config, folder)
    elif folder.exists() and not all(path.name == LOCK_FILE or atomic.leftover_of(path) for path in folder.iterdir()):
        raise ConfigError(f"{folder} contains files that no run of hafrm wrote. Choose another --out.")
    return manifest


def _refuse_inputs_in(folder: Path, inputs: Mapping[str, Path]) -> None:
    """Raise if an input is in the run's folder, where `overwrite` could delete it."""
    for what, path in inputs.items():
        if path.exists() and path.resolve().is_relative_to(folder.resolve()):
            raise ConfigError(f"{what} is in the run's own folder {folder}. Choose another --out.")


def hold_folder(folder: Path) -> AbstractContextManager[None]:
    """Lock a run's folder against other commands that would train there; only the run's first process takes the lock.

    The lock is next to the folder if possible, as `overwrite` empties it.

    Raises:
        ConfigError: another command has the lock, or the location is not writable.
    """
    return alone(folder, beside=True) if os.environ.get("RANK", "0") == "0" else nullcontext()


def make_folder(folder: Path, *, start_over: bool = False, more: Collection[str] = ()) -> str:
    """Create the run's folder; call it once data, model and options have been checked.

    Args:
        start_over: Delete what an earlier run wrote there.
        more: Files that this kind of run writes in addition to model, checkpoints, manifest and metrics.

    Returns:
        A line that names the files that were kept because no run wrote them; empty if there are none.

    Raises:
        ConfigError: the location is not writable.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        kept = remove_own(folder, more) if start_over else []
    except OSError as error:
        raise unwritable(folder, error) from error
    more = f" and {len(kept) - 3} more" if len(kept) > 3 else ""
    return f"kept in {folder}, since no run wrote them: {', '.join(kept[:3])}{more}" if kept else ""
