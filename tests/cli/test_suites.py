"""`hafrm evaluate --suites`: from published formats to scores, a table and the page; and on after a kill."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoModelForSequenceClassification

from hafrm.cli import main
from hafrm.evaluation import scoring
from hafrm.evaluation.options import EvaluateConfig
from hafrm.evaluation.run import evaluate
from hafrm.models.options import ScorerChoice
from hafrm.pairs import Conversation
from tests.evaluation.test_suites import PATHS
from tests.tiny import save_tiny, tiny_tokenizer

SUITES = [f"{name}@{path}" for name, path in PATHS.items()]


def reward_model(folder: Path) -> str:
    """A tiny stock classifier on disk."""
    config = AutoConfig.from_pretrained(save_tiny(folder), num_labels=1)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def test_suites_end_to_end(tmp_path: Path, capfd: Any) -> None:
    models, out = [reward_model(tmp_path / name) for name in ("one", "two")], tmp_path / "out"
    assert main(["evaluate", *models, "--suites", *SUITES, "--out", str(out)]) == 0
    printed = capfd.readouterr().out
    for title in ("RewardBench", "RewardBench 2", "RM-Bench", "Left out", "fewer than six prompts"):
        assert title in printed
        assert title in (out / "index.html").read_text()
    results = json.loads((out / "results.json").read_text())
    assert list(results["suites"]) == SUITES
    lines = [json.loads(line) for line in (out / "suites.jsonl").read_text().splitlines()]
    assert len(lines) == 2 * (8 + 5 + 3 + 3 + 3)
    facts = [line for line in lines if line["model"] == models[0] and line["subset"] == "Factuality"]
    share = sum(line["rewards"][0] == max(line["rewards"]) for line in facts) / 2
    stated = results["suites"][SUITES[1]]["models"][models[0]]["sections"]["Factuality"]
    assert stated["value"] == pytest.approx(share)
    assert stated["ci95"] is None
    # The longest response wins on one of the two questions.
    assert results["suites"][SUITES[1]]["baselines"]["length"]["sections"]["Factuality"] == 0.5


def test_neither_data_nor_suites(tmp_path: Path, capfd: Any) -> None:
    assert main(["evaluate", "m", "--out", str(tmp_path)]) == 2
    assert "give at least one, or a suite" in capfd.readouterr().err


@pytest.mark.parametrize("stop_after", [0, 2, 5])
def test_a_killed_suite_goes_on(stop_after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    stop = [stop_after]

    class Lengths:
        def score(self, conversations: Sequence[Conversation]) -> list[float | None]:
            if len(calls) == stop[0]:
                raise KeyboardInterrupt
            calls.append(len(conversations))
            return [len(c.response[0].content) + place * 1e-6 for place, c in enumerate(conversations)]

    model = reward_model(tmp_path / "model")
    monkeypatch.setattr(scoring, "CHUNK", 2)
    monkeypatch.setattr(ScorerChoice, "load", lambda self, model, options: Lengths())
    config = EvaluateConfig(models=[model], suites=SUITES, out=str(tmp_path / "out"))
    with pytest.raises(KeyboardInterrupt):
        evaluate(config)
    assert not (tmp_path / "out" / "suites.jsonl").exists()
    stop[0] = -1
    evaluate(config)
    assert len(calls) == 4 + 3 + 2 + 2 + 2, "a chunk was scored twice"
    assert calls[4] == 8, "all four responses of two prompts are scored in one call"
    before = (tmp_path / "out" / "suites.jsonl").read_bytes()
    evaluate(config)
    assert len(calls) == 13
    assert (tmp_path / "out" / "suites.jsonl").read_bytes() == before
