"""Where models are: in a folder here, or under an id on the hub."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from hafrm.errors import ModelError
from hafrm.hub import work_offline_if_unreachable


def require_place(model: str) -> None:
    """Raise for a name that can only be a folder here, and is not; such names are never sent to the hub.

    Args:
        model: Folder or hub id. An id is OWNER/NAME or NAME: names that begin with a separator, a dot or a tilde, that
            have more parts, or whose first part is a folder here are paths.

    Raises:
        ModelError: there is no such folder; the message suggests similar ones beside it.
    """
    path = Path(model)
    if path.exists():
        return
    parts = model.split("/")
    is_id = len(parts) <= 2 and all(parts) and model[0] not in ".~" and "\\" not in model
    if is_id and not (len(parts) == 2 and Path(parts[0]).is_dir()):
        work_offline_if_unreachable()
        return
    beside = [str(each) for each in path.parent.iterdir() if each.is_dir()] if path.parent.is_dir() else []
    near = get_close_matches(str(path), beside, n=2, cutoff=0.7)
    hint = f"Did you mean {' or '.join(near)}?" if near else "Check the path; a model of the hub is OWNER/NAME."
    raise ModelError(f"{model}: there is no such folder. {hint}")
