"""`samples.jsonl` and its manifest, written batch by batch, so that a stopped run can resume.

A line has a prompt and its distinct responses, each with its number of draws and its length. Equal texts may have been
drawn as different tokens (surrounding white space is stripped), so the tokens of all draws of a text are also summed.
`manifest.json` records what the lines depend on before the first is written, and counts after the last.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hafrm import atomic
from hafrm.data import PromptRow
from hafrm.errors import ConfigError, DataError
from hafrm.judging.rows import SAMPLES_FILE
from hafrm.models.runinfo import MANIFEST_FILE, versions
from hafrm.sampling.engines import Draw
from hafrm.store import LineFile, RunFolder, read_json
from hafrm.training.manifest import git_revision, read_manifest


def sample_line(row: PromptRow, draws: Sequence[Draw], unsampled: str = "") -> dict[str, Any]:
    """Return a line of `samples.jsonl`: each distinct response once, in the order of its first draw."""
    alike: dict[str, list[Draw]] = {}
    for draw in draws:
        alike.setdefault(draw.text, []).append(draw)
    groups = alike.values()
    line: dict[str, Any] = {
        "id": row.id,
        "group": row.group,
        **row.prompt.as_row(),
        "responses": list(alike),
        "counts": list(map(len, groups)),
        "tokens": [group[0].tokens for group in groups],
        "finished": [group[0].finished for group in groups],
        "total_tokens": [sum(draw.tokens for draw in group) for group in groups],
        "unfinished": [sum(not draw.finished for draw in group) for group in groups],
    }
    return line | {"unsampled": unsampled} if unsampled else line


class Samples:
    """The lines of a folder's `samples.jsonl`, from an earlier run and newly added.

    Args:
        depends_on: What the lines depend on, under the names that messages use.
        rows: The prompts, in the final order of their lines.

    Raises:
        ConfigError: the folder has other samples.
        DataError: its files are damaged.
    """

    def __init__(self, folder: Path, depends_on: dict[str, Any], rows: Sequence[PromptRow]) -> None:
        self._file = LineFile(folder / SAMPLES_FILE)
        self._place = {row.id: place for place, row in enumerate(rows)}
        if self._file.empty:  # without samples, nothing is lost
            write_manifest(folder, depends_on, "sampling")
            self._rewrite([])
            return
        RunFolder(folder, MANIFEST_FILE, "samples").require_same(depends_on)
        self.lines: list[dict[str, Any]] = self._file.read(_line)
        if not self.ids <= self._place.keys() or len(self.ids) < len(self.lines):
            raise DataError(f"{self._file.path} has lines of other prompts, or repeated lines. Choose another --out.")

    @property
    def ids(self) -> set[str]:
        """Ids of the prompts that have a line."""
        return {line["id"] for line in self.lines}

    def keep(self, ids: set[str]) -> None:
        """Remove the lines of all other prompts."""
        if not self.ids <= ids:
            self._rewrite([line for line in self.lines if line["id"] in ids])

    def extend(self, lines: Iterable[dict[str, Any]]) -> None:
        """Append lines; they are on disk when this returns."""
        new = list(lines)
        self._file.extend(new)
        self.lines += new

    def finish(self) -> None:
        """Sort the lines into the order of the prompts; a sorted file is not rewritten."""
        ordered = sorted(self.lines, key=lambda line: self._place[line["id"]])
        if ordered != self.lines:
            self._rewrite(ordered)

    def _rewrite(self, lines: list[dict[str, Any]]) -> None:
        self.lines = lines
        self._file.replace(lines)


def _line(value: Any) -> dict[str, Any]:
    return {"id": value["id"], **value}


def refuse_other_manifests(folder: Path) -> None:
    """Raise ConfigError if the folder contains the manifest of another command, which must not be overwritten."""
    path = folder / MANIFEST_FILE
    if path.exists() and "depends_on" not in (read_json(path) or {}):
        found = "a training run" if read_manifest(folder) else f"a {MANIFEST_FILE} that `hafrm sample` did not write"
        raise ConfigError(f"{folder} contains {found}. Choose another --out.")


def write_manifest(folder: Path, depends_on: dict[str, Any], status: str, **counts: Any) -> dict[str, Any]:
    """Write a folder's manifest, and return it."""
    manifest = {
        "status": status,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "depends_on": depends_on,
        "git_revision": git_revision(),
        "versions": versions("hafrm", "torch", "transformers"),
        **counts,
    }
    atomic.write_json(folder / MANIFEST_FILE, manifest)
    return manifest


def sample_counts(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Count what was drawn, duplicates included."""
    texts = [(text, count) for line in lines for text, count in zip(line["responses"], line["counts"], strict=True)]
    return {
        "prompts": len(lines),
        "unsampled": dict(Counter(line["unsampled"] for line in lines if "unsampled" in line)),
        "responses": sum(count for _, count in texts),
        "distinct": len(texts),
        "empty": sum(count for text, count in texts if not text),
        "unfinished": sum(sum(line["unfinished"]) for line in lines),
        "tokens": sum(sum(line["total_tokens"]) for line in lines),
    }
