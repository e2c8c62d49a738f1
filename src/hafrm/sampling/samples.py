"""`samples.jsonl` and its manifest, written batch by batch, so that a stopped run can be resumed.

A line is a prompt with its distinct responses, how often each was drawn, and its length. Equal texts may have been
drawn as different tokens (surrounding white space is stripped), so the tokens of all draws of a text are summed too.
`manifest.json` records what the lines depend on before the first of them, and counts after the last.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hafrm import atomic
from hafrm.data import PromptRow
from hafrm.errors import ConfigError, DataError
from hafrm.sampling.generators import Draw
from hafrm.training.manifest import git_revision, read_manifest

SAMPLES_FILE = "samples.jsonl"
MANIFEST_FILE = "manifest.json"


def sample_line(row: PromptRow, draws: Sequence[Draw], unsampled: str = "") -> dict[str, Any]:
    """Return a line of `samples.jsonl`: each distinct response once, in the order of first occurrence."""
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
        folder: The folder.
        depends_on: What the lines depend on, keyed by what messages call it.
        rows: The prompts, in the final order of their lines.

    Raises:
        ConfigError: the folder has other samples, or files of another command.
        DataError: its files are damaged.
    """

    def __init__(self, folder: Path, depends_on: dict[str, Any], rows: Sequence[PromptRow]) -> None:
        self.folder, self.path = folder, folder / SAMPLES_FILE
        self._place = {row.id: place for place, row in enumerate(rows)}
        if self.path.exists() and self.path.stat().st_size:  # an empty run may be reused with any options
            self.lines = self._resume(depends_on)
        else:
            _refuse_other_manifests(folder)
            write_manifest(folder, depends_on, "sampling")
            atomic.write_text(self.path, "")
            self.lines = []

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
        with atomic.naming(self.path), self.path.open("ab") as file:
            for line in lines:
                file.write(atomic.json_line(line))
                self.lines.append(line)
            file.flush()
            os.fsync(file.fileno())

    def finish(self) -> None:
        """Sort the lines into the order of the prompts; a sorted file is not rewritten."""
        ordered = sorted(self.lines, key=lambda line: self._place[line["id"]])
        if ordered != self.lines:
            self._rewrite(ordered)

    def _rewrite(self, lines: list[dict[str, Any]]) -> None:
        self.lines = lines
        with atomic.new_file(self.path) as file:
            file.writelines(atomic.json_line(line) for line in lines)

    def _resume(self, depends_on: dict[str, Any]) -> list[dict[str, Any]]:
        header = self.folder / MANIFEST_FILE
        try:
            before = json.loads(header.read_text(encoding="utf-8"))["depends_on"]
            changed = [name for name in {**before, **depends_on} if before.get(name) != depends_on.get(name)]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{header} is missing or damaged, so nobody knows what {self.path} is of. Give another --out."
            ) from error
        if changed:
            raise ConfigError(f"{self.folder} holds samples with another {', '.join(changed)}. Give another --out.")
        atomic.drop_half_line(self.path)
        try:
            lines = [json.loads(line) for line in self.path.read_bytes().split(b"\n") if line]
            ids = [line["id"] for line in lines]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{self.path} holds a line that is no sample ({error}). Give another --out.") from error
        if not set(ids) <= self._place.keys() or len(set(ids)) < len(ids):
            raise DataError(f"{self.path} holds lines that are not of these prompts, or twice. Give another --out.")
        return lines


def _refuse_other_manifests(folder: Path) -> None:
    """Raise rather than overwrite another command's manifest, which identifies its run.

    Raises:
        ConfigError: there is one.
    """
    path = folder / MANIFEST_FILE
    if not path.exists():
        return
    try:
        ours = "depends_on" in json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        ours = False
    if not ours:
        held = "a run" if read_manifest(folder) else f"a {MANIFEST_FILE} that no `hafrm sample` wrote"
        raise ConfigError(f"{folder} holds {held}. Give another --out.")


def write_manifest(folder: Path, depends_on: dict[str, Any], status: str, **counts: Any) -> dict[str, Any]:
    """Write a folder's manifest, and return it."""
    manifest = {
        "status": status,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "depends_on": depends_on,
        "git_revision": git_revision(),
        "versions": {name: version(name) for name in ("hafrm", "torch", "transformers")},
        **counts,
    }
    atomic.write_json(folder / MANIFEST_FILE, manifest)
    return manifest


def sample_counts(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Count what was drawn, duplicates included."""
    drawn = [each for line in lines for each in zip(line["responses"], line["counts"], *_sums(line), strict=True)]
    return {
        "prompts": len(lines),
        "unsampled": dict(Counter(line["unsampled"] for line in lines if "unsampled" in line)),
        "responses": sum(count for _, count, _, _ in drawn),
        "distinct": len(drawn),
        "empty": sum(count for text, count, _, _ in drawn if not text),
        "unfinished": sum(unfinished for _, _, _, unfinished in drawn),
        "tokens": sum(tokens for _, _, tokens, _ in drawn),
    }


def _sums(line: dict[str, Any]) -> tuple[list[int], list[int]]:
    """Return the tokens and the number of truncated draws of each distinct response, summed over its draws."""
    if "total_tokens" in line:
        return line["total_tokens"], line["unfinished"]
    counts = line["counts"]  # older lines only record the first draw
    tokens = [count * tokens for count, tokens in zip(counts, line["tokens"], strict=True)]
    return tokens, [count * (not finished) for count, finished in zip(counts, line["finished"], strict=True)]
