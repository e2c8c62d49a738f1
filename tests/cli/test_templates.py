"""`--chat_template` for training, sampling and RLHF, and the line about hafrm's own template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from hafrm.cli import main
from hafrm.templates import DEFAULT_CHAT_TEMPLATE
from hafrm.training import callbacks
from tests.tiny import save_tiny, some_pairs, tiny_tokenizer

OWN = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}{{ '<assistant>' if add_generation_prompt }}"
)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A model whose tokenizer has no chat template."""
    folder = save_tiny(tmp_path / "base", max_position_embeddings=512)
    tiny_tokenizer(template=None).save_pretrained(folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    return folder


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(pair.as_row()) + "\n" for pair in some_pairs(4)))
    return path


@pytest.fixture
def own(tmp_path: Path) -> str:
    (tmp_path / "own.jinja").write_text(OWN)
    return str(tmp_path / "own.jinja")


def train(base: Path, rows: Path, out: Path, *options: str) -> int:
    words = ["train", "--model", str(base), "--data", str(rows), "--out", str(out), "--method", "baseline"]
    fixed = ["--training.max_steps", "1", "--training.use_cpu", "--training.report_to", "none"]
    return main([*words, *fixed, *options])


def test_training_saves_the_template_that_it_used(base: Path, rows: Path, own: str, tmp_path: Path, capfd) -> None:
    assert train(base, rows, tmp_path / "run", "--chat_template", own) == 0
    assert "has no chat template" not in capfd.readouterr().err
    assert AutoTokenizer.from_pretrained(tmp_path / "run").chat_template == OWN
    assert train(base, rows, tmp_path / "plain", "--chat-template", "default") == 0
    assert AutoTokenizer.from_pretrained(tmp_path / "plain").chat_template == DEFAULT_CHAT_TEMPLATE
    assert "has no chat template" not in capfd.readouterr().err


def test_a_template_that_is_taken_for_lack_of_one_is_said_once(base: Path, rows: Path, tmp_path: Path, capfd) -> None:
    assert train(base, rows, tmp_path / "run") == 0
    assert capfd.readouterr().err.count("has no chat template") == 1
    assert main(["evaluate", str(tmp_path / "run"), "--data", str(rows), "--out", str(tmp_path / "eval")]) == 0
    assert "has no chat template" not in capfd.readouterr().err  # the run has it


def test_a_template_changes_what_is_trained_and_drawn(base: Path, rows: Path, own: str, tmp_path: Path, capfd) -> None:
    words = ["sample", str(base), "--data", str(rows), "--n", "2", "--sampling.max_new_tokens", "4"]
    assert main([*words, "--out", str(tmp_path / "a")]) == 0
    assert "has no chat template" in capfd.readouterr().err
    assert main([*words, "--out", str(tmp_path / "b"), "--chat_template", own]) == 0
    assert "has no chat template" not in capfd.readouterr().err
    assert (tmp_path / "a" / "samples.jsonl").read_text() != (tmp_path / "b" / "samples.jsonl").read_text()
    assert main([*words, "--out", str(tmp_path / "a"), "--chat_template", own]) == 2  # other samples are in there


def test_rlhf_takes_a_template(base: Path, rows: Path, own: str, tmp_path: Path, capfd) -> None:
    words = ["rlhf", str(base), "--reward", "world/helpful", "--data", str(rows), "--steps", "1", "--batch_size", "2"]
    options = ["--sampling.max_new_tokens", "2", "--checkpoints", "1", "--score.device", "cpu"]
    assert main([*words, *options, "--out", str(tmp_path / "run"), "--chat_template", own]) == 0
    assert "has no chat template" not in capfd.readouterr().err
    assert AutoTokenizer.from_pretrained(tmp_path / "run" / "checkpoint-1").chat_template == OWN


def test_a_template_that_cant_be_read_is_named(base: Path, rows: Path, tmp_path: Path, capfd) -> None:
    assert train(base, rows, tmp_path / "run", "--chat_template", str(tmp_path / "none.jinja")) == 2
    assert "chat_template" in capfd.readouterr().err.splitlines()[-1]


@pytest.mark.slow
def test_a_run_does_not_go_on_with_another_template(
    base: Path, rows: Path, own: str, tmp_path: Path, capfd, monkeypatch
) -> None:
    def stop(self: object, args: object, state: Any, control: object, **kwargs: object) -> None:
        if state.global_step == 3:
            raise KeyboardInterrupt

    options = ["--training.max_steps", "4", "--training.save_steps", "2", "--chat_template", own]
    with monkeypatch.context() as patch:
        patch.setattr(callbacks.MetricsFile, "on_step_end", stop)
        assert train(base, rows, tmp_path / "run", *options) == 130
    capfd.readouterr()
    Path(own).write_text(OWN.replace("<", "["))
    assert train(base, rows, tmp_path / "run", *options) == 2
    Path(own).write_text(OWN)
    assert train(base, rows, tmp_path / "run", *options) == 0


def test_a_template_that_does_not_parse_is_the_templates_fault(base: Path, rows: Path, tmp_path: Path, capfd) -> None:
    (tmp_path / "broken.jinja").write_text("{% for m in messages %}{{ m.content }")
    assert train(base, rows, tmp_path / "run", "--chat_template", str(tmp_path / "broken.jinja")) == 2
    error = capfd.readouterr().err
    assert "not valid Jinja (line 1" in error
    assert "on_bad_row" not in error
