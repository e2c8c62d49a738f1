"""Candidates: a prompt with its distinct responses, and a scorer's rewards for them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hafrm.data import ReadOptions, SourceReport, fingerprint, nothing_left, read_records
from hafrm.data.reports import Drop
from hafrm.errors import BadRowReason, DataError
from hafrm.judging.rows import SAMPLES_FILE
from hafrm.models.runinfo import MANIFEST_FILE
from hafrm.pairs import Conversation, Message, Prompt, prompt_group
from hafrm.rows import Row
from hafrm.store import read_json


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """A prompt with the distinct responses that were drawn for it."""

    group: str
    prompt: Prompt
    responses: tuple[tuple[Message, ...], ...]
    counts: tuple[int, ...]
    """How often each was drawn."""
    source: str
    row: int

    @property
    def id(self) -> str:
        """The row as `source:row`."""
        return f"{self.source}:{self.row}"

    @property
    def conversations(self) -> tuple[Conversation, ...]:
        """One conversation per response. Scored in one call, they share the computation of the prompt."""
        return tuple(Conversation(self.prompt, response) for response in self.responses)

    @property
    def texts(self) -> tuple[str, ...]:
        """The responses as plain text."""
        return tuple("\n\n".join(message.text for message in response) for response in self.responses)

    def as_row(self) -> dict[str, Any]:
        """Return the row as plain values."""
        return {
            "group": self.group,
            **self.prompt.as_row(),
            "responses": [[message.as_dict() for message in response] for response in self.responses],
            "counts": list(self.counts),
        }


@dataclass(frozen=True)
class CandidateScore:
    """One scorer's rewards for the responses to one prompt."""

    model: str
    id: str
    rewards: list[float | None]
    """One per distinct response; None if it could not be scored."""
    unscored: str = ""
    """Why a response has no reward, such as "overlong"; empty if all have one."""

    @property
    def complete(self) -> tuple[float, ...]:
        """The rewards, if all responses have one."""
        assert not self.unscored
        return tuple(reward for reward in self.rewards if reward is not None)


@dataclass
class CandidateSet:
    """The candidates of a file, and the number of rows left out."""

    rows: list[Candidates] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    """Number of rows that are invalid, or for which nothing was sampled, by reason."""

    @property
    def sha256(self) -> str:
        """A fingerprint of all texts, in order."""
        return fingerprint(self.rows)


def load_candidates(samples: str, options: ReadOptions) -> CandidateSet:
    """Read candidates.

    Args:
        samples: The folder of a `hafrm sample`, or a file whose rows have `prompt` and `responses` (strings or chat
            messages; optional `counts`, and `group`). Equal responses are merged.

    Raises:
        BadRowError: a row is invalid, and `on_bad_row` is not `skip`.
        UnreadableError: the file can't be read.
        DataError: no row has responses, or the `hafrm sample` of the folder is unfinished.
    """
    path = Path(samples)
    if path.is_dir():
        _require_finished(path)
        path = path / SAMPLES_FILE
    report = SourceReport(name=str(path), kind="file")
    rows = list(read_records(str(path), report, options, _candidates))
    if not rows:
        raise nothing_left(str(path), "are no responses to choose from", [report])
    return CandidateSet(rows, report.left_out)


def _require_finished(folder: Path) -> None:
    """Raise if sampling is unfinished: it starts with the longest prompts, which are not representative.

    A folder without a manifest contains samples from elsewhere.
    """
    path = folder / MANIFEST_FILE
    if not path.exists():
        return
    manifest = read_json(path)
    if manifest is None or "status" not in manifest:
        raise DataError(
            f"{path} is damaged, so whether the samples are complete is unknown. Sample again into another folder."
        )
    if manifest["status"] != "finished":
        raise DataError(
            f"{folder} contains an unfinished `hafrm sample`, which has only sampled for the longest prompts so far. "
            "Run the same `hafrm sample` again to finish it."
        )


def _candidates(reader: Row) -> Candidates | Drop:
    """Read a prompt with its responses, which may be empty because a model may stop at once."""
    if reader.fields.get("unsampled"):
        return Drop(str(reader.fields["unsampled"]))
    prompt = reader.prompt()
    responses = reader.responses("Give at least one response.", bool)
    counts = reader.fields.get("counts", [1] * len(responses))
    whole = isinstance(counts, list) and all(type(count) is int and count > 0 for count in counts)
    if not whole or len(counts) != len(responses):
        problem, remedy = "does not contain a number above 0 for each response", "Correct it, or leave the field out."
        raise reader.error(BadRowReason.WRONG_TYPE, "counts", problem, remedy)
    drawn: Counter[tuple[Message, ...]] = Counter()
    for response, count in zip(responses, counts, strict=True):
        drawn[response] += count
    return Candidates(
        group=reader.string_or_none("group") or prompt_group(prompt),
        prompt=prompt,
        responses=tuple(drawn),
        counts=tuple(drawn.values()),
        source=reader.source,
        row=reader.number,
    )
