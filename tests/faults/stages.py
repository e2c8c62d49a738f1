"""The commands that are disturbed by faults, and the content of their files without faults."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest

from tests.faults.processes import Ended, Kill, Setting, hafrm
from tests.faults.whole import files, leftovers, outcome, require_no_half_file

STAGES = ["train", "precompute", "evaluate", "judge", "export"]
TRAINING = {"max_steps": 6, "per_device_train_batch_size": 4, "save_steps": 2, "eval_steps": 2, "learning_rate": 1e-3}


def slow(*values: Any) -> Any:
    """Mark a case for `pytest -m slow` only: the everyday tests should take a minute."""
    return pytest.param(*values, marks=pytest.mark.slow)


@dataclass
class Stage:
    """A command that writes all its files to one folder, and their content without faults."""

    argv: list[str]
    work: Path
    watched: str = "out"
    """The folder in which changes to files count as moments at which to kill the command."""
    environment: dict[str, str] = field(default_factory=dict)

    def setting(self, *faults: Callable[[], None]) -> Setting:
        small_parts = {
            "hafrm.evaluation.scoring.CHUNK": 4,
            "hafrm.models.references._PART": 4,
            "hafrm.judging.run._CHUNK": 4,
        }
        environment = {"HAFRM_CACHE": str(self.work / "cache"), **self.environment}
        return Setting(
            own=self.work,
            work=self.work / self.watched,
            log=self.work.with_suffix(".log"),
            environment=environment,
            values=small_parts,
            faults=faults,
        )

    def run(self, *faults: Callable[[], None], kill: Kill | None = None) -> Ended:
        """Run the command with something broken, or until it is killed."""
        return hafrm(self.argv, self.setting(*faults), kill)

    def measure(self) -> None:
        """Run the command undisturbed."""
        self.undisturbed = self.run()
        assert self.undisturbed.status == 0, self.undisturbed.said
        self.expected = outcome(self.work)
        self.sizes = [path.stat().st_size for path in files(self.work).values()]
        self.clear()

    def clear(self) -> None:
        """Start over with an empty folder."""
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir(exist_ok=True)

    def require_no_half_file(self) -> None:
        """Check that existing files are complete, or are not treated as complete."""
        require_no_half_file(self.work / "out")
        require_no_half_file(self.work / "cache")

    def require_resumed(self) -> None:
        """Check that repeating the command gives the undisturbed result, without leftovers."""
        ended = self.run()
        assert ended.status == 0, ended.said
        self.require_outcome()

    def require_outcome(self) -> None:
        """Check that the files are exactly those of an undisturbed run."""
        found = outcome(self.work)
        assert found.keys() == self.expected.keys()
        for name, content in self.expected.items():
            assert found[name] == content, f"{name}: {_difference(found[name], content)}"
        assert leftovers(self.work) == []


def _difference(found: Any, expected: Any) -> str:
    """Describe where two contents of a file first differ, if readable."""
    if isinstance(found, dict) and isinstance(expected, dict):
        names = sorted(found.keys() | expected.keys())
        return "; ".join(
            f"{name}: {_difference(found.get(name), expected.get(name))}"
            for name in names
            if found.get(name) != expected.get(name)
        )
    if isinstance(found, list) and isinstance(expected, list):
        pairs = enumerate(zip_longest(found, expected))
        return "; ".join(f"{place}: {_difference(a, b)}" for place, (a, b) in pairs if a != b)
    return f"{str(found)[:300]} where an undisturbed run has {str(expected)[:300]}"


def command(name: str, folder: Path, endpoint: str) -> list[str]:
    """Define a command that reads files of the folder and writes into its subfolder `work`."""
    out = ["--out", str(folder / "work" / "out")]
    rows, run = str(folder / "pairs.jsonl"), str(folder / "run")
    if name in ("train", "precompute"):
        data = ["--model", str(folder / "base"), "--data", rows, "--eval_data", rows]
        options = [f"--training.{key}={value}" for key, value in TRAINING.items()]
        more = ["--training.use_cpu=true", "--training.report_to=[]", "--data_options.max_length=128"]
        return ["train", *data, *out, *options, *more]
    if name == "evaluate":
        return ["evaluate", run, "--data", rows, "--calibration_data", str(folder / "more.jsonl"), *out]
    if name == "judge":
        judge = ["--judge.kind=openai", "--judge.model=judge", f"--judge.base_url={endpoint}", "--judge.retries=0"]
        return ["judge", rows, *judge, "--judge.cache", str(folder / "work" / "cache" / "replies.sqlite"), *out]
    return ["export", run, *out]
