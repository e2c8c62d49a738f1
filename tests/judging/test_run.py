"""Runs of `hafrm judge`: what their verdicts depend on, one at a time in a folder, and options that do nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from hafrm.errors import ConfigError
from hafrm.judging.options import JudgeOptions
from hafrm.judging.run import JudgeConfig, judge_rows
from hafrm.models.loading import ScorerChoice
from hafrm.models.remote import RemoteScorer
from hafrm.models.scorers import ScoreOptions
from hafrm.pairs import Conversation
from tests.models.test_identity import describe, touch
from tests.tiny import save_tiny


class Lengths:
    """Rewards are lengths."""

    def score(self, conversations: Sequence[Conversation]) -> list[float | None]:
        return [float(len(c.response[0].content)) for c in conversations]


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """Options of a run that a reward model judges, whose reference is named."""
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
    """One of other weights, of another reference, or of a template that reads otherwise."""
    assert judge_rows(JudgeConfig(**job))["judged"] == 1
    if name.endswith(".jinja"):
        (tmp_path / name).write_text("{{ messages[1].content }}")
    else:
        touch(tmp_path / name)
    with pytest.raises(ConfigError, match="another judge"):
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
    with pytest.raises(ConfigError, match="another judge"):
        judge_rows(JudgeConfig(**job))


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("openai", {"head": "policy"}, "--head: nothing"),
        ("oracle", {"reference": "m", "combined_weight": 1.0}, "--reference and --combined_weight: nothing"),
        ("local", {"head": "policy"}, "--head: nothing"),
        ("openai", {"score": ScoreOptions(max_length=9, dtype="float16")}, "--score.dtype and --score.max_length"),
        ("oracle", {"trust_remote_code": True}, "--trust_remote_code: nothing"),
    ],
    ids=str,
)
def test_options_that_nothing_reads(kind: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        JudgeConfig(data="d", out="o", judge=JudgeOptions(kind=kind, model="m"), **options)


def test_a_server_judges_as_it_was_started() -> None:
    judge = JudgeOptions(kind="reward", model="http://127.0.0.1:1")
    JudgeConfig(data="d", out="o", judge=judge, score=ScoreOptions(batch_size=3))
    with pytest.raises(ConfigError, match=r"--score\.overlong can't change that"):
        JudgeConfig(data="d", out="o", judge=judge, score=ScoreOptions(overlong="drop"))


def test_two_runs_do_not_share_a_folder(job: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / ".lock"), pytest.raises(ConfigError, match="Another command is writing"):
        judge_rows(JudgeConfig(**job))
    assert not (tmp_path / "out" / "verdicts.jsonl").exists()
    assert judge_rows(JudgeConfig(**job))["judged"] == 1
