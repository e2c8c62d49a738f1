"""Jobs on a real Ray of this machine: the local engine's rewards, and kills of the driver and of actors."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from filelock import FileLock

from hafrm.cli import main
from hafrm.data import RawRow
from hafrm.errors import ConfigError, DataError, MissingExtraError, ModelError
from hafrm.evaluation.bulk import ScoredRow
from hafrm.models.scorers import ScoreOptions, Scorer
from hafrm.scale import BulkConfig, run, score_folder
from hafrm.scale.actors import PartScorer
from tests.scale.conftest import LIMIT, answer, pair, read_lines, write_lines

ray = pytest.importorskip("ray", reason="needs Ray: pip install 'hafrm[ray]'")

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One Ray for this module's tests: a job uses the connection that its process has."""
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


def config(model: str, data: Path, out: Path, **values: Any) -> BulkConfig:
    return BulkConfig(
        **({"model": model, "data": str(data), "out": str(out), "engine": "ray", "num_actors": 1} | values)
    )


def rewards(line: dict[str, Any]) -> list[float | None]:
    return [line[name] for name in ("reward", "reward_chosen", "reward_rejected") if name in line]


def near(rows: list[dict[str, Any]]) -> list[Any]:
    return [None if value is None else pytest.approx(value, abs=1e-5) for row in rows for value in rewards(row)]


def scored_locally(model: str, rows: list[Any], place: Path, *more: str) -> list[dict[str, Any]]:
    """What the local engine makes of rows."""
    data, out = write_lines(place / "rows.jsonl", rows), place / "local.jsonl"
    skip = ["--data_options.on_bad_row", "skip"]
    assert main(["score", model, "--data", str(data), "--out", str(out), *skip, *more]) == 0
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_lines_by_the_command(cluster: None, run_folder: str, tmp_path: Path, capfd) -> None:
    """The local engine's implicit rewards, of answers, pairs, rows too long and rows broken, in several files."""
    rows = [answer(i) if i % 3 else pair(i) for i in range(40)]
    rows[7]["response"] = "y" * 2 * LIMIT
    rows[11]["response"] = ""
    rows[13] = "{broken"
    expected = scored_locally(run_folder, rows, tmp_path, "--head", "policy")
    local_said = capfd.readouterr().err.splitlines()[-1]
    for start in (0, 20):
        write_lines(tmp_path / "in" / f"{start:02}.jsonl", rows[start : start + 20])
    out = tmp_path / "out"
    options = ["--engine", "ray", "--num_actors", "2", "--rows_per_part", "7", "--head", "policy"]
    assert main(["score", run_folder, *options, "--data", str(tmp_path / "in"), "--out", str(out)]) == 0
    assert local_said in capfd.readouterr().err.splitlines()
    found = read_lines(out / "scored")
    kept = [line for i, line in enumerate(expected) if i not in (11, 13)]
    assert [value for row in found for value in rewards(row)] == near(kept)
    assert [line["id"] for line in found] == [line["id"] for line in kept]
    assert found[7]["unscored"] == "overlong"
    assert [(line["file"], line["row"]) for line in read_lines(out / "errors")] == [("00.jsonl", 12), ("00.jsonl", 14)]
    assert json.loads((out / "result.json").read_text())["rows"] == 40


def test_parquet_in_and_out(cluster: None, run_folder: str, tmp_path: Path) -> None:
    """The local engine's rewards of the reward head, with responses cut to the limit."""
    rows = [pair(i) for i in range(30)]
    rows[3]["chosen"] = "y" * 2 * LIMIT
    expected = scored_locally(run_folder, rows, tmp_path, "--score.overlong", "truncate")
    (tmp_path / "in").mkdir()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "in" / "rows.parquet", row_group_size=8)
    options = ScoreOptions(overlong="truncate")
    counts = score_folder(config(run_folder, tmp_path / "in", tmp_path / "out", rows_per_part=7, score=options))
    assert (counts.scored, counts.unscored.total()) == (30, 0)
    found = pyarrow.parquet.read_table(tmp_path / "out" / "scored").to_pylist()
    assert [value for row in found for value in rewards(row)] == near(expected)
    assert [{name: row[name] for name in rows[0]} for row in found] == rows
    assert not (tmp_path / "out" / "errors").exists()


def test_an_actor_that_is_killed_is_replaced(cluster: None, run_folder: str, tmp_path: Path) -> None:
    """The same Ray goes on: the part in the dead actor's hands is scored by its successor."""
    data, out = write_lines(tmp_path / "in" / "rows.jsonl", [answer(i) for i in range(400)]), tmp_path / "out"
    watcher = subprocess.Popen([sys.executable, "-c", KILL_ONE_ACTOR, str(out)])
    assert score_folder(config(run_folder, data, out, rows_per_part=2)).scored == 400
    assert watcher.wait(30) == 0
    assert [line["id"] for line in read_lines(out / "scored")] == list(range(400))


KILL_ONE_ACTOR = """
import os, signal, sys, time
from pathlib import Path
import psutil
done = Path(sys.argv[1]) / "done"
while not (done.is_dir() and len(list(done.iterdir())) > 3):
    time.sleep(0.01)
actors = [p for p in psutil.process_iter() if p.name().startswith("ray::Map") or "PartScorer" in p.name()]
actors = actors or [p for p in psutil.process_iter() if "PartScorer" in " ".join(p.cmdline())]
assert actors, [p.name() for p in psutil.process_iter()]
os.kill(actors[0].pid, signal.SIGKILL)
"""


def command(model: str, data: Path, out: Path, address: str) -> list[str]:
    """Score on a Ray that is there or, at `local`, one of the driver's own."""
    options = ["--engine", "ray", "--num_actors", "1", "--rows_per_part", "2", "--ray_address", address]
    return ["score", model, *options, "--data", str(data), "--out", str(out)]


def written(folder: Path) -> dict[str, int]:
    """When each of a job's finished parts was written."""
    done = {path.stem for path in (folder / "done").glob("part-*")}
    paths = [path for kind in ("scored", "errors") for path in (folder / kind).glob("part-*") if path.stem in done]
    return {str(path): path.stat().st_mtime_ns for path in paths}


def kill_and_finish(model: str, place: Path, kills: list[int], address: str) -> None:
    """Kill drivers after so many more parts, one after another, then let one finish; compare with no kill at all."""
    rows = [answer(i) if i % 50 else "{broken" for i in range(600)]
    data, out = write_lines(place / "in" / "rows.jsonl", rows), place / "out"
    before: dict[str, int] = {}
    for more in kills:
        words = [sys.executable, "-m", "hafrm.cli", *command(model, data, out, address)]
        process = subprocess.Popen(words, stderr=subprocess.DEVNULL)
        while process.poll() is None and len(written(out)) < len(before) + more:
            time.sleep(0.005)
        assert process.poll() is None, "the job was done before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (out / "result.json").exists()
        kept = written(out)
        assert {name: kept[name] for name in before} == before  # nothing that was done was scored again
        before = kept
    assert main(command(model, data, out, address)) == 0
    assert {name: written(out)[name] for name in before} == before
    assert [line["id"] for line in read_lines(out / "scored")] == [i for i in range(600) if i % 50]
    assert [line["row"] for line in read_lines(out / "errors")] == [i + 1 for i in range(0, 600, 50)]
    result = json.loads((out / "result.json").read_text())
    assert (result["rows"], result["scored"], result["unscored"]) == (600, 588, {"invalid_json": 12})
    assert not list(out.rglob(".part-*"))


def test_a_killed_job_goes_on(cluster: None, run_folder: str, tmp_path: Path) -> None:
    """On a cluster, which outlives its driver."""
    kill_and_finish(run_folder, tmp_path, [3], ray.get_runtime_context().gcs_address)


@pytest.mark.slow
def test_a_job_killed_again_and_again(run_folder: str, tmp_path: Path) -> None:
    """With a Ray that its driver has started, and that goes with it."""
    drawn = random.Random(0)
    kill_and_finish(run_folder, tmp_path, [drawn.randrange(1, 15) for _ in range(10)], "local")


class Deadly(PartScorer):
    """Dies of the second part, as of a row at which a library crashes."""

    def _score(self, scorer: Scorer, rows: list[RawRow], source: str) -> list[ScoredRow]:
        if rows[0].number == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._score(scorer, rows, source)


@pytest.mark.slow
def test_a_part_that_kills_its_actors_stops_the_job(
    cluster: None, run_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not for ever; and the same command scores what is left, once the cause is mended."""
    data, out = write_lines(tmp_path / "in" / "rows.jsonl", [answer(i) for i in range(3)]), tmp_path / "out"
    job = config(run_folder, data, out, rows_per_part=1)
    with monkeypatch.context() as patch:
        patch.setattr(run, "PartScorer", Deadly)
        with pytest.raises(ModelError, match="actors died 4 times of rows 2 to 2"):
            score_folder(job)
    assert not (out / "result.json").exists()
    assert score_folder(job).scored == 3
    assert [line["id"] for line in read_lines(out / "scored")] == [0, 1, 2]


def test_another_job_in_the_folder_is_refused(cluster: None, run_folder: str, tmp_path: Path) -> None:
    data, out = write_lines(tmp_path / "in" / "rows.jsonl", [answer(i) for i in range(4)]), tmp_path / "out"
    score_folder(config(run_folder, data, out))
    again = score_folder(config(run_folder, data, out, cpus_per_actor=0.5))
    assert again.scored == 4
    for values, said in (({"head": "policy"}, "head"), ({"rows_per_part": 9}, "rows_per_part")):
        with pytest.raises(ConfigError, match=f"{said} changed"):
            score_folder(config(run_folder, data, out, **values))
    os.utime(data, ns=(0, 0))
    with pytest.raises(ConfigError, match="the input changed"):
        score_folder(config(run_folder, data, out))


def test_what_an_actor_meets_is_said_by_the_command(cluster: None, run_folder: str, tmp_path: Path, capfd) -> None:
    """A reference that is no model: the actor can't load it, and the driver says so in one line."""
    data = write_lines(tmp_path / "in" / "rows.jsonl", [answer(1)])
    damaged = tmp_path / "run"
    damaged.mkdir()
    for path in Path(run_folder).iterdir():
        if path.is_file():
            (damaged / path.name).write_bytes(path.read_bytes())
    (damaged / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ModelError, match=str(damaged)):
        score_folder(config(str(damaged), data, tmp_path / "out"))


def test_room_is_asked_for_before_anything_waits(cluster: None, run_folder: str, tmp_path: Path) -> None:
    data = write_lines(tmp_path / "in" / "rows.jsonl", [answer(1)])
    for values in ({"num_actors": 3}, {"gpus_per_actor": 1.0}, {"num_actors": None, "cpus_per_actor": 4.0}):
        with pytest.raises(ConfigError, match="room for"):
            score_folder(config(run_folder, data, tmp_path / "out", **values))


def test_what_can_not_be_a_job_is_refused(run_folder: str, tmp_path: Path) -> None:
    data = write_lines(tmp_path / "in" / "rows.jsonl", [answer(1)])
    with pytest.raises(ConfigError, match="lies in the input"):
        score_folder(config(run_folder, tmp_path / "in", tmp_path / "in" / "out"))
    write_lines(tmp_path / "thesis" / "rows.jsonl", [])
    with pytest.raises(ConfigError, match="no scoring job"):
        score_folder(config(run_folder, data, tmp_path / "thesis"))
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / ".lock"), pytest.raises(ConfigError, match="Another command"):
        score_folder(config(run_folder, data, tmp_path / "out"))


@pytest.mark.parametrize("change", ["{}", "", "[]", '"parts": '])
def test_a_damaged_job_is_named(change: str, run_folder: str, tmp_path: Path) -> None:
    """One that is another file's, or lacks its parts."""
    data = write_lines(tmp_path / "in" / "rows.jsonl", [])
    job, described = config(run_folder, data, tmp_path / "out"), tmp_path / "out" / "job.json"
    score_folder(job)
    assert '"parts": ' in described.read_text()
    described.write_text(described.read_text().replace(change, '"": ') if ":" in change else change)
    with pytest.raises(DataError, match=r"job\.json is damaged"):
        score_folder(job)


def test_the_local_engine_writes_no_folder(tmp_path: Path) -> None:
    """Found at the end, that would cost all rewards."""
    with pytest.raises(ConfigError, match="is a folder"):
        BulkConfig(model="m", data="d", out=str(tmp_path))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_cluster_that_is_not_there_is_said_at_once(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray itself would try for minutes."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda *args, **options: pytest.fail("Ray was asked"))
    job = BulkConfig(model="m", data="d", out="o", engine="ray", ray_address=f"{host}:{port}")
    with pytest.raises(ConfigError, match=rf"Ray at {host}:{port} can't be reached: .*refused"), run._ray(job):
        pass


@pytest.mark.parametrize("address", ["auto", "local", "ray://127.0.0.1:9", "127.0.0.1:port", "[::1"])
def test_what_is_no_host_with_a_port_is_left_to_ray(address: str) -> None:
    run._require_listener(address)


def test_nothing_to_score_is_done_at_once(run_folder: str, tmp_path: Path) -> None:
    data = write_lines(tmp_path / "in" / "rows.jsonl", [])
    assert score_folder(config(run_folder, data, tmp_path / "out")).scored == 0


def test_a_missing_ray_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(run.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"hafrm\[ray\]"):
        score_folder(config("m", tmp_path, tmp_path / "out"))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"engine": "spark"}, "engine"),
        ({"engine": "local", "num_actors": 2}, "--num_actors need"),
        ({"out": None}, "--out"),
        ({"num_actors": 0}, "num_actors"),
        ({"rows_per_part": 0}, "rows_per_part"),
        ({"gpus_per_actor": -1.0}, "gpus_per_actor"),
        ({"cpus_per_actor": float("nan")}, "cpus_per_actor"),
    ],
)
def test_options_that_can_not_work(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        BulkConfig(**({"model": "m", "data": "d", "out": "o", "engine": "ray"} | values))


def test_actors_find_a_template_by_its_path_and_know_the_word_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("default", "mine"):
        Path(name).write_text("{{ messages[0].content }}")

    def template(name: str | None) -> str | None:
        options = ScoreOptions(chat_template=name)
        job = BulkConfig(model="m", data="d", out="o", engine="ray", score=options)
        return job.for_actors().score.chat_template

    assert [template(name) for name in (None, "default", "mine")] == [None, "default", str(tmp_path / "mine")]


def test_actors_compute_where_ray_gave_them_room() -> None:
    def device(**values: Any) -> str | None:
        return BulkConfig(model="m", data="d", out="o", engine="ray", **values).for_actors().score.device

    assert (device(), device(gpus_per_actor=0.5)) == ("cpu", "cuda")
