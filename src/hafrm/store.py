"""Output folders of commands: locks, records of what the results depend on, and files that grow line by line.

Commands that can be interrupted and run again share these:

- `alone` locks the folder, so that two commands never write into it.
- `RunFolder` records in a header file what the folder's results depend on (options, fingerprints of data and weights).
  A later command reuses the results only if nothing has changed, and otherwise names what changed.
- `LineFile` is a JSON-lines file whose complete lines are on disk after each `extend`. A killed writer leaves at most
  one partial line, which the next writer drops.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from filelock import BaseFileLock, FileLock, Timeout

from hafrm import atomic
from hafrm.errors import ConfigError, DataError

T = TypeVar("T")

LOCK_FILE = ".lock"


@contextmanager
def alone(folder: Path, *, beside: bool = False, wait: bool = False) -> Iterator[None]:
    """Lock a command's output folder against other commands.

    At the end the lock is removed, and if nothing was written to the folder, also the folders made for it.

    Args:
        folder: The folder; it is created unless the lock is next to it.
        beside: Put the lock file next to the folder instead of inside, for commands that may delete the folder's
            contents, unless the parent is not writable (as with a mounted volume). Such a lock is re-entrant.
        wait: Wait for the other command instead of raising.

    Raises:
        ConfigError: another command is writing there, or the location is not writable.
    """
    atomic.require_folder(folder.absolute())
    folder = folder.resolve()  # links and other spellings of a path lead to one lock
    inside = not beside or (folder.exists() and not (folder.name and os.access(folder.parent, os.W_OK)))
    place = folder / LOCK_FILE if inside else folder.with_name(f".{folder.name}{LOCK_FILE}")
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        lock = FileLock(place, is_singleton=beside)
        _acquire(lock, place.parent, timeout=-1 if wait else 0)
    except Timeout:
        raise ConfigError(f"Another command is writing to {folder}. Wait for it, or choose another --out.") from None
    except OSError as error:
        raise unwritable(folder, error) from error
    try:
        yield
    finally:
        if lock.lock_counter == 1:
            _remove_lock(folder, place, made)
        lock.release()


def _acquire(lock: BaseFileLock, home: Path, *, timeout: float) -> None:
    for attempt in range(10):
        try:
            home.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=timeout)
            return
        except (FileNotFoundError, FileExistsError):  # the lock's last owner is just removing the empty folder
            if attempt == 9:
                raise


def _remove_lock(folder: Path, place: Path, made: Sequence[Path]) -> None:
    """Delete a lock that is held, and those of the folders made for it that are empty.

    Another command may be opening the file: filelock notices that it was deleted, and tries again.
    """
    with contextlib.suppress(OSError):
        if place.parent != folder and folder in made:
            folder.rmdir()  # while the lock keeps others from making it again
    with contextlib.suppress(OSError):  # Windows can't delete a file that is open
        place.unlink()
        for each in made:
            if each.exists():
                each.rmdir()


def unwritable(folder: Path, error: OSError) -> ConfigError:
    """Create the error for an output folder that can't be written to."""
    return ConfigError(f"out: {folder} can't be written to ({error.strerror or error}). Choose another --out.")


def changed_names(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the top-level names whose values differ after a round trip through JSON; absent differs from null."""
    now = json.loads(json.dumps(now))
    missing = object()
    return [name for name in {**before, **now} if before.get(name, missing) != now.get(name, missing)]


def changed_values(
    before: Mapping[str, Any], now: Mapping[str, Any], *, free: Callable[[str], bool] = lambda name: False
) -> str:
    """Describe up to five nested values that differ as "a.b (was 1, now 2)"; "" if there are none.

    `free` returns whether the value with a dotted name may differ.
    """
    before, now = _flat(before), _flat(now)
    changed = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    shown = [name for name in changed if not free(name)][:5]
    return ", ".join(was(name, before.get(name), now.get(name)) for name in shown)


def was(name: str, before: Any, now: Any) -> str:
    """Describe one value that differs."""
    return f"{name} (was {before}, now {now})"


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, item in value.items():
        if isinstance(item, dict):
            flat |= _flat(item, f"{prefix}{name}.")
        else:
            flat[prefix + name] = item
    return flat


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in a file; None if the file is missing or damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


@dataclass(frozen=True)
class RunFolder:
    """A folder of results with a header file that records what they depend on.

    Args:
        path: The folder.
        header: Name of the header file.
        what: What messages call the results, such as "verdicts".
    """

    path: Path
    header: str
    what: str

    def require_same(self, depends_on: Mapping[str, Any]) -> None:
        """Raise unless the recorded results depend on the same values.

        Raises:
            ConfigError: names the values that changed.
            DataError: the header is missing or damaged.
        """
        header = self.path / self.header
        values = read_json(header)
        before = values and values.get("depends_on")
        if not isinstance(before, dict):
            raise DataError(
                f"{header} is missing or damaged, so it is unknown what the {self.what} in {self.path} depend on. "
                "Choose another --out."
            )
        if changed := changed_names(before, depends_on):
            raise ConfigError(
                f"{self.path} contains {self.what} made with other settings: {', '.join(changed)}. "
                "Choose another --out."
            )

    def write_header(self, depends_on: Mapping[str, Any], **more: Any) -> dict[str, Any]:
        """Record what the results depend on, with further fields; return the header."""
        values = {**more, "depends_on": dict(depends_on)}
        atomic.write_json(self.path / self.header, values)
        return values


def parsed_lines(path: Path, parse: Callable[[Any], T], *, remedy: str | None, since: int = 0) -> Iterator[T]:
    """Yield the parsed lines of a JSON-lines file.

    Args:
        path: The file.
        parse: Makes a result of a line's value; it raises a ValueError, KeyError or TypeError for an unexpected value.
        remedy: What to do about a damaged line; None leaves damaged lines out.
        since: How many bytes to skip at the start.

    Raises:
        DataError: a line is damaged, and there is a remedy.
        OSError: the file can't be read.
    """
    with path.open("rb") as file:  # as text, lines would also end at a carriage return
        file.seek(since)
        for number, line in enumerate(file, 1):
            if line == b"\n":
                continue
            try:
                found = parse(json.loads(line))
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                if remedy:
                    raise DataError(f"{path}, line {number}, is damaged ({error}). {remedy}") from error
            else:
                yield found


class LineFile:
    """A JSON-lines file that grows and need not exist at first; its complete lines survive a kill at any moment."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def empty(self) -> bool:
        """Whether the file is missing or empty."""
        return not self.path.exists() or not self.path.stat().st_size

    def drop_half_line(self) -> None:
        """Truncate the file after its last complete line; do nothing if it is missing."""
        if self.path.exists():
            os.truncate(self.path, self.path.read_bytes().rfind(b"\n") + 1)

    def read(self, parse: Callable[[Any], T]) -> list[T]:
        """Drop a partial last line, and return the parsed lines.

        Raises:
            DataError: a line is not JSON, or `parse` raises a ValueError, KeyError or TypeError for its value.
        """
        self.drop_half_line()
        return list(parsed_lines(self.path, parse, remedy="Choose another --out.")) if self.path.exists() else []

    def extend(self, rows: Iterable[Mapping[str, Any]], *, at_once: bool = False) -> None:
        """Append rows, which are on disk when this returns.

        Args:
            rows: The rows; an iterator may compute them while they are written.
            at_once: Write each row to the file before the next one is computed.
        """
        with atomic.naming(self.path), self.path.open("ab") as file:
            for row in rows:
                file.write(atomic.json_line(row))
                if at_once:
                    file.flush()
            file.flush()
            os.fsync(file.fileno())

    def replace(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Rewrite the file atomically with these rows."""
        with atomic.new_file(self.path) as file:
            file.writelines(map(atomic.json_line, rows))
