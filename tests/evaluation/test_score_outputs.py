"""`hafrm score --out` writes to the intended place, and replaces only regular files that it wrote."""

from __future__ import annotations

import gzip
import json
import os
import stat
import threading
import time
from pathlib import Path

import pytest

from hafrm import atomic
from hafrm.errors import ConfigError
from hafrm.evaluation.bulk import score_rows
from hafrm.evaluation.options import ScoreConfig
from hafrm.models.options import ScoreOptions
from tests.models.test_scorers import save_classifier

ROWS = [{"prompt": "a", "response": text} for text in ("b", "c")]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_classifier(tmp_path / "model")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)), encoding="utf-8")
    return path


def score(model: Path, data: Path, out: Path) -> None:
    score_rows(ScoreConfig(model=str(model), data=str(data), out=str(out), score=ScoreOptions(device="cpu")))


def rewards(text: str) -> int:
    return sum("reward" in json.loads(line) for line in text.splitlines())


def test_a_pipe_is_written_to_and_stays(model: Path, data: Path, tmp_path: Path) -> None:
    pipe, found = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: found.append(pipe.read_text(encoding="utf-8")))
    reader.start()
    score(model, data, pipe)
    reader.join(20)
    assert rewards(found[0]) == 2
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_pipe_without_a_reader_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic, "_READER_WAIT", 0.2)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(ConfigError, match="reader"), atomic.new_file(pipe):
        pass
    assert list(tmp_path.iterdir()) == [pipe]


def test_a_pipes_reader_may_come_a_little_later_and_read_slowly(tmp_path: Path) -> None:
    """More bytes than a pipe holds are written completely: writing blocks, as opening does."""
    pipe, found = tmp_path / "pipe", []
    os.mkfifo(pipe)

    def read() -> None:
        time.sleep(0.3)
        with pipe.open("rb") as file:
            time.sleep(0.2)
            found.append(file.read())

    reader = threading.Thread(target=read)
    reader.start()
    with atomic.new_file(pipe) as file:
        file.write(b"x" * 300_000)
    reader.join(20)
    assert found == [b"x" * 300_000]


def test_a_device_is_written_to_and_stays(tmp_path: Path) -> None:
    link = tmp_path / "null"
    link.symlink_to("/dev/null")
    before = Path("/dev/null").stat()
    for place in (Path("/dev/null"), link):
        with atomic.new_file(place) as file:
            file.write(b"gone")
    assert Path("/dev/null").stat().st_rdev == before.st_rdev
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    assert link.is_symlink()


def test_a_link_is_followed(model: Path, data: Path, tmp_path: Path) -> None:
    target, link = tmp_path / "target.jsonl", tmp_path / "link.jsonl"
    target.write_text("old")
    link.symlink_to(target)
    score(model, data, link)
    assert link.is_symlink()
    assert rewards(target.read_text(encoding="utf-8")) == 2


def test_a_folder_is_not_written_over(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a file"), atomic.new_file(tmp_path):
        pass
    assert tmp_path.is_dir()


def test_a_name_that_ends_in_gz_is_compressed(model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "scored.jsonl.gz"
    score(model, data, out)
    packed = out.read_bytes()
    assert rewards(gzip.decompress(packed).decode()) == 2
    assert packed[4:8] == bytes(4), "a time in the file: the same scores at another time would be other bytes"


@pytest.mark.parametrize("name", ["model.safetensors", "hafrm.json", "new.jsonl"])
def test_the_models_folder_is_left_alone(name: str, model: Path, data: Path) -> None:
    before = sorted((path.name, path.read_bytes()) for path in model.iterdir())
    with pytest.raises(ConfigError, match=r"model's folder|JSON lines"):
        score(model, data, model / name)
    assert sorted((path.name, path.read_bytes()) for path in model.iterdir()) == before


def test_the_data_is_left_alone(model: Path, data: Path, tmp_path: Path) -> None:
    link, before = tmp_path / "link.jsonl", data.read_bytes()
    link.symlink_to(data)
    for out in (data, link):
        with pytest.raises(ConfigError, match="what `data` reads"):
            score(model, data, out)
    assert data.read_bytes() == before


def test_a_link_to_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises((ConfigError, OSError), match="loop"), atomic.new_file(tmp_path / "loop"):
        pass
    assert (tmp_path / "loop").is_symlink()
