"""Score the items of a suite, each of which becomes one JSON line, and write results in the formats of leaderboards."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hafrm import atomic
from hafrm.data import OnBadRow
from hafrm.errors import ConfigError
from hafrm.evaluation.scoring import response_length, scored_chunks
from hafrm.evaluation.suites.items import Item, ItemSet, ListScore
from hafrm.models.scorers import Scorer
from hafrm.store import LineFile

SUITES_FILE = "suites.jsonl"
SUBMISSIONS = "leaderboards"
"""The folder with a file of results per model in the form of each suite's own program."""
_OURS = ".hafrm"
"""The file that marks this folder as written here, so that it may be replaced."""


def score_items(
    scorer: Scorer,
    items: Sequence[Item],
    *,
    model: str,
    data: str,
    on_bad_row: OnBadRow = "error",
    progress: Callable[[int], None] = lambda done: None,
) -> Iterator[ListScore]:
    """Score all responses of every item; see `score_pairs`."""
    for item, rewards, unscored in scored_chunks(scorer, items, on_bad_row=on_bad_row, progress=progress):
        yield ListScore(
            model=model,
            data=data,
            id=item.id,
            key=item.key,
            subset=item.subset,
            group=item.group,
            correct=item.correct,
            rewards=rewards,
            lengths=[response_length(response) for response in item.responses],
            unscored=unscored,
        )


def require_submissions(folder: Path) -> None:
    """Raise ConfigError if an evaluation's folder has a folder `leaderboards` that was not written here."""
    place = folder / SUBMISSIONS
    if place.is_symlink() or (place.exists() and not (place / _OURS).is_file()):
        raise ConfigError(
            f"{place} was not written by an earlier `hafrm evaluate` and would be overwritten. Move it away, or choose "
            "another --out."
        )


def write_submissions(
    folder: Path,
    suites: Mapping[str, ItemSet],
    scores: Sequence[ListScore],
    kinds: Mapping[str, str],
    say: Callable[[str], None],
) -> None:
    """Write the files of results that each suite's own program would write, as `leaderboards/SUITE/...`.

    Args:
        folder: The evaluation's folder, whose earlier files of this kind are removed.
        kinds: The type of each model, by its name: "Seq. Classifier" or "DPO", as on RewardBench's leaderboard.
        say: Called with a line for each model that did not score all items of a suite, and so gets no file.
    """
    require_submissions(folder)
    shutil.rmtree(folder / SUBMISSIONS, ignore_errors=True)
    written = Counter[str]()
    for name, found in suites.items():
        if found.suite.submission is None:
            continue
        written[found.suite.name] += 1
        _write(folder / SUBMISSIONS / _OURS, {})
        again = f"-{written[found.suite.name]}" if written[found.suite.name] > 1 else ""  # two copies of one suite
        place = folder / SUBMISSIONS / f"{found.suite.name}{again}"
        for model, kind in kinds.items():
            rows = [score for score in scores if (score.model, score.data) == (model, name)]
            if unscored := sum(bool(score.unscored) for score in rows):
                say(f"{model} on {name}: {unscored} of {len(rows)} rows unscored, so there is no leaderboard file.")
                continue
            run = {"model": _two_levels(model), "model_type": kind, "chat_template": "tokenizer"}
            scored = list(zip(found.items, rows, strict=True))
            for file, content in found.suite.submission(run, scored).items():
                _write(place / file, content)


def _two_levels(model: str) -> str:
    """Return a model's name as OWNER/NAME, which leaderboards use as a path; folders above become part of OWNER."""
    *above, name = re.findall(r"[\w.-]*\w[\w.-]*", model)
    return f"{'_'.join(above) or 'local'}/{name}"


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        LineFile(path).replace(content)
    else:
        atomic.write_text(path, atomic.json_text(content, indent=2, ensure_ascii=False, default=str) + "\n")
