"""The commands of `stages`, on tiny models and a local judge."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from hafrm.data import DataOptions
from hafrm.training.config import TrainConfig
from hafrm.training.run import train
from tests.faults.runs import saved_run
from tests.faults.stages import Stage, command
from tests.judging.server import serving
from tests.tiny import save_tiny, some_pairs


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kills")
    save_tiny(folder / "base")
    saved_run(folder / "base", folder / "run")
    rows = [json.dumps(pair.as_row() | {"group": f"../../../{pair.row}"}) for pair in some_pairs(18)]
    (folder / "pairs.jsonl").write_text("\n".join(rows))
    (folder / "more.jsonl").write_text("\n".join(rows[:5]))
    return folder


@pytest.fixture(scope="session")
def stage_of(folder: Path) -> Iterator[Callable[[str], Stage]]:
    """Return each stage, measured on first use; all write to the same folder, because files contain paths."""
    known: dict[str, Stage] = {}
    with serving() as endpoint:

        def stage(name: str) -> Stage:
            if name not in known:
                argv, watched = command(name, folder, endpoint.url), "cache" if name == "precompute" else "out"
                known[name] = Stage(argv, folder / "work", watched, {"OPENAI_API_KEY": "sk-test"})
                known[name].clear()
                known[name].measure()
            known[name].clear()
            return known[name]

        yield stage


@pytest.fixture(scope="session")
def stopped_once(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """A run that was stopped after its second checkpoint."""
    folder = tmp_path_factory.mktemp("stopped")
    rows = folder / "pairs.jsonl"
    rows.write_text("\n".join(json.dumps(pair.as_row()) for pair in some_pairs(12)))
    training = {
        "max_steps": 3,
        "per_device_train_batch_size": 4,
        "save_steps": 1,
        "save_total_limit": 3,
        "use_cpu": True,
        "report_to": [],
    }
    base, out = save_tiny(folder / "base"), str(folder / "run")
    options = DataOptions(max_length=128)
    config = TrainConfig(
        model=str(base), data=[str(rows)], out=out, method="baseline", data_options=options, training=training
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hafrm.training.run._finish", lambda *args: None)
        train(config)
    shutil.rmtree(Path(out) / "checkpoint-3", ignore_errors=True)
    return config


@pytest.fixture
def stopped(stopped_once: TrainConfig, tmp_path: Path) -> TrainConfig:
    """A copy of it for a single test."""
    out = str(tmp_path / "run")
    shutil.copytree(stopped_once.out, out)
    return replace(stopped_once, out=out)
