"""Write the scores of one model on one data set or suite as they are computed, so a killed evaluation can resume.

A part is two files in the evaluation's folder: `parts/NAME.jsonl` grows by one line per pair, and `parts/NAME.json`
records what its lines depend on. The latter is written first; if it does not match, the lines are ignored. Only whole
chunks are kept, because the last bits of a reward depend on the pairs that it was computed with.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic

from hafrm import atomic
from hafrm.data import OnBadRow
from hafrm.errors import BadRowReason, DataError
from hafrm.evaluation import scoring
from hafrm.evaluation.scoring import Kind, RawScore, read_raw_scores, write_scores
from hafrm.options import problem, types_of
from hafrm.store import LineFile, changed_names, read_json

PARTS_FOLDER = "parts"
PARTS = f"{PARTS_FOLDER}/{'[0-9a-f]' * 16}.json*"
"""Pattern that matches the files of parts in an evaluation's folder."""


@dataclass(frozen=True)
class Part(Generic[Kind]):
    """The scores of one model on one data set.

    Args:
        model: The model's name in the results.
        data: The data set's name in the results.
        depends_on: Plain values that the scores depend on, by their names in messages.
        ids: The rows to score, in order.
        kind: The class of the scores.
        what: The noun for rows in messages.
    """

    folder: Path
    model: str
    data: str
    depends_on: Mapping[str, Any]
    ids: Sequence[str]
    kind: type[Kind]
    what: str = "pairs"

    @property
    def name(self) -> str:
        """Return the part's name, "MODEL on DATA"."""
        return f"{self.model} on {self.data}"

    @property
    def _stem(self) -> Path:
        name = json.dumps([self.model, self.data])
        return self.folder / PARTS_FOLDER / hashlib.sha256(name.encode()).hexdigest()[:16]

    @property
    def path(self) -> Path:
        """Return the path of the file of scores."""
        return self._stem.with_suffix(".jsonl")

    @property
    def header(self) -> Path:
        """Return the path of the file that records what the scores depend on."""
        return self._stem.with_suffix(".json")

    def resume(self, say: Callable[[str], None], *, on_bad_row: OnBadRow = "error") -> list[Kind]:
        """Return the usable scores of an earlier evaluation, and truncate the file to these.

        Args:
            say: Called with one line if scores are discarded, or if a stopped evaluation is resumed.
            on_bad_row: With `error`, scores with refused conversations are discarded, so the error is raised again.
        """
        scores, why_not = self._usable(on_bad_row)
        if why_not:
            say(f"{self.name}: {why_not} since the last evaluation, so it is scored again.")
        if not scores:
            self.path.unlink(missing_ok=True)
            described = {"model": self.model, "data": self.data, "depends_on": dict(self.depends_on)}
            atomic.write_json(self.header, described)
        elif len(scores) < len(self.ids):
            say(f"{self.name}: resuming after {len(scores)} of {len(self.ids)} {self.what}.")
            write_scores(scores, self.path)
        return scores

    def extend(self, scores: Iterable[Kind]) -> list[Kind]:
        """Append scores to the file as they arrive, and return them."""
        written = []

        def rows() -> Iterator[dict[str, Any]]:
            for score in scores:
                written.append(score)
                yield asdict(score)  # type: ignore[call-overload]

        LineFile(self.path).extend(rows(), at_once=True)  # unflushed writes could leave half a line on a full disk
        return written

    def _usable(self, on_bad_row: OnBadRow) -> tuple[list[Kind], str]:
        """Return the earlier scores to keep, and the reason if all of them are discarded."""
        if not self.path.exists():
            return [], ""
        before = (read_json(self.header) or {}).get("depends_on")
        if not isinstance(before, dict):
            return [], f"{self.header} was damaged"
        if changed := changed_names(before, self.depends_on):
            return [], f"{', '.join(changed)} changed"
        try:
            LineFile(self.path).drop_half_line()
            scores = read_raw_scores(self.path, self.kind)
        except (DataError, OSError):
            return [], f"{self.path} was damaged"
        if not all(map(_possible, scores)):
            return [], f"{self.path} was damaged"
        if [score.id for score in scores] != list(self.ids[: len(scores)]):
            return [], f"the rows of its {self.what} changed"
        if on_bad_row == "error" and any(s.unscored == BadRowReason.REFUSED_BY_TEMPLATE for s in scores):
            return [], "data_options.on_bad_row changed"
        whole = len(scores) if len(scores) == len(self.ids) else len(scores) // scoring.CHUNK * scoring.CHUNK
        return scores[:whole], ""


def _possible(score: RawScore) -> bool:
    """Return whether all fields have their types, numbers are finite, and only unscored responses lack a reward."""
    fields = asdict(score)  # type: ignore[call-overload]
    kinds = types_of(type(score))
    if any(problem(value, kinds[name]) for name, value in fields.items()):
        return False
    rewards = [value for name, value in fields.items() if name.startswith("reward")]
    flat = [reward for each in rewards for reward in (each if isinstance(each, list) else [each])]
    return (None in flat) == bool(score.unscored)
