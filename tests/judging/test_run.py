"""Runs of `hafrm judge`: what their verdicts depend on, locking of the folder, and options without effect."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from hafrm.cli import main
from hafrm.errors import ConfigError
from hafrm.judging.options import JudgeConfig, JudgeOptions
from hafrm.judging.run import judge_rows
from hafrm.models.options import ScoreOptions, ScorerChoice
from hafrm.models.remote import RemoteScorer
from hafrm.pairs import Conversation
from tests.judging.server import Endpoint, serving
from tests.models.test_identity import describe, touch
from tests.tiny import save_tiny


class Lengths:
    """Rewards are lengths."""

    def score(self, conversations: Sequence[Conversation]) -> list[float | None]:
        return [float(len(c.response[0].content)) for c in conversations]


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """Options of a run judged by a reward model with a given reference."""
    monkeypatch.setattr(ScorerChoice, "load", lambda self, model, options: Lengths())
    save_tiny(tmp_path / "base")
    describe(save_tiny(tmp_path / "run", seed=1), tmp_path / "base")
    (tmp_path / "template.jinja").write_text("{{ messages[0].content }}")
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"prompt": "p", "chosen": "yes, yes", "rejected": "no"}))
    return {
        "data": str(tmp_path / "pairs.jsonl"),
        "out": str(tmp_path / "out"),
        "judge": JudgeOptions(kind="reward", model=str(tmp_path / "run")),
        "head": "policy",
        "reference": str(tmp_path / "base"),
        "score": ScoreOptions(chat_template=str(tmp_path / "template.jinja")),
    }


@pytest.mark.parametrize("name", ["base/model.safetensors", "run/model.safetensors", "template.jinja"])
def test_verdicts_of_another_judge_are_refused(name: str, job: dict[str, Any], tmp_path: Path) -> None:
    """The judge has other weights, another reference, or a different template."""
    assert judge_rows(JudgeConfig(**job))["judged"] == 1
    if name.endswith(".jinja"):
        (tmp_path / name).write_text("{{ messages[1].content }}")
    else:
        touch(tmp_path / name)
    with pytest.raises(ConfigError, match=r"other settings: .*judge"):
        judge_rows(JudgeConfig(**job))


def test_what_lies_beside_a_model_makes_no_other_judge(job: dict[str, Any], tmp_path: Path) -> None:
    judge_rows(JudgeConfig(**job))
    (tmp_path / "run" / "notes.md").write_text("a fine model")
    (tmp_path / "run" / "metrics.jsonl").write_text("{}")
    assert judge_rows(JudgeConfig(**job))["judged"] == 1


def test_a_server_with_another_model_is_another_judge(job: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    del job["head"], job["reference"], job["score"]
    job["judge"] = JudgeOptions(kind="reward", model="http://127.0.0.1:1")
    monkeypatch.setattr(RemoteScorer, "model_name", lambda self: "one")
    judge_rows(JudgeConfig(**job))
    assert judge_rows(JudgeConfig(**job))["judged"] == 1
    monkeypatch.setattr(RemoteScorer, "model_name", lambda self: "other")
    with pytest.raises(ConfigError, match=r"other settings: .*judge"):
        judge_rows(JudgeConfig(**job))


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("openai", {"head": "policy"}, "--head has no effect"),
        ("oracle", {"reference": "m", "combined_weight": 1.0}, "--reference and --combined_weight has no effect"),
        ("local", {"head": "policy"}, "--head has no effect"),
        ("openai", {"score": ScoreOptions(max_length=9, dtype="float16")}, "--score.dtype and --score.max_length"),
        ("oracle", {"trust_remote_code": True}, "--trust_remote_code has no effect"),
    ],
    ids=str,
)
def test_options_that_nothing_reads(kind: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        JudgeConfig(data="d", out="o", judge=JudgeOptions(kind=kind, model="m"), **options)


def test_a_server_judges_as_it_was_started() -> None:
    judge = JudgeOptions(kind="reward", model="http://127.0.0.1:1")
    JudgeConfig(data="d", out="o", judge=judge, score=ScoreOptions(batch_size=3))
    with pytest.raises(ConfigError, match=r"--score\.overlong has no effect"):
        JudgeConfig(data="d", out="o", judge=judge, score=ScoreOptions(overlong="drop"))


def test_two_runs_do_not_share_a_folder(job: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / ".lock"), pytest.raises(ConfigError, match="Another command is writing"):
        judge_rows(JudgeConfig(**job))
    assert not (tmp_path / "out" / "verdicts.jsonl").exists()
    assert judge_rows(JudgeConfig(**job))["judged"] == 1


ROWS = [{"prompt": f"q{i}", "responses": ["a", "bb", "ccc", "dddd"]} for i in (0, 1, 2, 2)]


def asked(endpoint: Endpoint, folder: Path, out: Path, **options: Any) -> JudgeConfig:
    """Rank the rows of a file, with results in a folder and an endpoint whose replies all such runs share."""
    folder.mkdir(exist_ok=True)
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    words: dict[str, Any] = {"kind": "openai", "model": "judge", "base_url": endpoint.url, "retries": 0}
    words |= {"concurrency": 1, "cache": str(out.parent / "replies.sqlite")}
    return JudgeConfig(
        data=str(folder / "rows.jsonl"), out=str(out), mode="rank", judge=JudgeOptions(**(words | options))
    )


def verdicts(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "verdicts.jsonl").read_text().splitlines()]


def test_what_is_shown_depends_neither_on_the_path_nor_on_the_folder(tmp_path: Path) -> None:
    """Rows whose file has moved are not asked about again; equal rows have separate orders."""
    with serving() as endpoint:
        for name in "one", "two":
            judge_rows(asked(endpoint, tmp_path / name, tmp_path / f"out-{name}"))
        assert list(endpoint.asked.values()) == [1] * len(ROWS)
    places = [[verdict.pop("id") for verdict in verdicts(tmp_path / f"out-{name}")] for name in ("one", "two")]
    assert places == [[f"{tmp_path}/{name}/rows.jsonl:{row}" for row in range(1, 5)] for name in ("one", "two")]
    one, two = ([{**v, "id": ""} for v in verdicts(tmp_path / f"out-{name}")] for name in ("one", "two"))
    assert one == two


def test_a_run_goes_on_with_a_file_that_was_moved(tmp_path: Path) -> None:
    with serving() as endpoint:
        first = asked(endpoint, tmp_path / "one", tmp_path / "out", max_requests=2)
        assert judge_rows(first)["judged"] == 2
        moved = asked(endpoint, tmp_path / "two", tmp_path / "out")
        found = judge_rows(moved)
        assert (found["judged"], found["run"]["requests_sent"]) == (4, 2)
    assert [verdict["id"] for verdict in verdicts(tmp_path / "out")] == [f"{moved.data}:{row}" for row in range(1, 5)]


def test_a_folder_without_an_answer_binds_nobody(tmp_path: Path) -> None:
    """A folder without an answer, even after failed requests, can be reused; the first answer fixes its settings."""
    with serving() as endpoint:
        mistaken = asked(endpoint, tmp_path / "rows", tmp_path / "out", max_requests=0, model="jugde")
        assert judge_rows(mistaken)["judged"] == 0
        endpoint.always = 500
        failing = asked(endpoint, tmp_path / "rows", tmp_path / "out", model="judged")
        assert judge_rows(failing)["unscored"] == {"server_error": 4}
        endpoint.always = None
        config = asked(endpoint, tmp_path / "rows", tmp_path / "out", max_requests=1)
        assert judge_rows(config)["judged"] == 1
        with pytest.raises(ConfigError, match=r"other settings: .*judge"):
            judge_rows(replace(config, judge=failing.judge))


def samples(folder: Path, answers: dict[str, list[str]]) -> Path:
    """Write a folder as `hafrm sample` does."""
    folder.mkdir()
    rows = [{"prompt": prompt, "responses": found, "counts": [1] * len(found)} for prompt, found in answers.items()]
    rows.append({"prompt": "long", "responses": [], "counts": [], "unsampled": "overlong"})
    (folder / "samples.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder


def test_two_models_samples_are_joined_by_prompt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The longer answer wins; each model's first answer counts."""
    monkeypatch.setattr(ScorerChoice, "load", lambda self, model, options: Lengths())
    save_tiny(tmp_path / "judge")
    ours = samples(tmp_path / "haf", {"a": ["xxx", "y"], "b": ["x"], "c": ["xx"], "only ours": ["x"], "d": [""]})
    theirs = samples(tmp_path / "baseline", {"c": ["yy"], "b": ["yyy"], "a": ["y", "xxxxxx"], "d": ["z"]})
    words = ["--judge.kind", "reward", "--judge.model", str(tmp_path / "judge"), "--out", str(tmp_path / "o")]
    assert main(["judge", str(ours / "samples.jsonl"), str(theirs), *words]) == 0
    results = json.loads((tmp_path / "o" / "results.json").read_text())
    won = {name: (each["wins"], each["ties"], each["losses"]) for name, each in results["responses"].items()}
    assert won == {"haf": (1, 1, 1), "baseline": (1, 1, 1)}
    assert results["skipped"] == {"overlong": 2, "empty_response": 1, "answered_by_one": 2}
    printed = capfd.readouterr().out
    assert all(f"{count} {reason}" in printed for reason, count in results["skipped"].items())
    by_option = ["judge", str(ours), "--against", str(theirs), *words[:-1], str(tmp_path / "p")]
    assert main(by_option) == 0
    assert json.loads((tmp_path / "p" / "results.json").read_text())["responses"] == results["responses"]
    assert main(["judge", str(ours), str(theirs), "--against", str(theirs), *words]) == 2
    assert "compare two models' samples" in capfd.readouterr().err
    assert main(["judge", str(ours), str(theirs), str(theirs), *words]) == 2
    assert "compare two models' samples" in capfd.readouterr().err
    with pytest.raises(ConfigError, match="--mode pair"):
        judge = JudgeOptions(kind="reward", model="m")
        JudgeConfig(data="a", against="b", out="o", judge=judge, mode="rank")


def test_the_papers_protocol_asks_once_in_a_random_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A judge that always says (a) disagrees with itself in both orders; asked once, it picks the first one shown."""
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    rows = [{"prompt": f"p{number}", "chosen": "yes", "rejected": "no"} for number in range(40)]
    (tmp_path / "pairs.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    with serving(lambda user: "Output (a)") as endpoint:
        found = {}
        for orders in ("both", "one"):
            judge = JudgeOptions(
                kind="openai", model="m", base_url=endpoint.url, orders=orders, cache=str(tmp_path / f"{orders}.sqlite")
            )
            config = JudgeConfig(data=str(tmp_path / "pairs.jsonl"), out=str(tmp_path / orders), judge=judge)
            found[orders] = judge_rows(config)
    assert (found["both"]["requests"], found["one"]["requests"]) == (80, 40)
    assert found["both"]["responses"]["chosen"]["ties"] == 40
    assert found["one"]["responses"]["chosen"]["ties"] == 0
    assert found["one"]["flip_rate"] is None
    assert 8 < found["one"]["responses"]["chosen"]["wins"] < 32  # the order is drawn at random
    with pytest.raises(ConfigError, match="orders"):  # verdicts of the other protocol
        judge_rows(replace(config, judge=replace(config.judge, orders="both")))
