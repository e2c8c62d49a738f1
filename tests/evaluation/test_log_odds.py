"""Only margins of Bradley-Terry are log-odds: results and page show no calibration error for other losses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from hafrm.evaluation.options import EvaluateConfig
from hafrm.evaluation.run import evaluate
from hafrm.models.checksums import checksums
from hafrm.models.options import Head, ScorerChoice
from hafrm.pairs import Conversation
from hafrm.report.page import write_page
from tests.models.test_checkpoints import info
from tests.tiny import some_pairs


class Lengths:
    """A scorer without a training loss."""

    def score(self, conversations: Sequence[Conversation]) -> list[float | None]:
        return [len(conversation.response[0].content) / 10 for conversation in conversations]


def run_folder(folder: Path, reward_loss: str) -> str:
    """Create as much of a run's folder as a stand-in for a scorer needs."""
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]}')
    (folder / "model.safetensors").write_text("")
    listed = checksums(folder)
    info(
        Path("base"), policy_loss="simpo", max_length=64, reward_loss=reward_loss, dtype="float32", sha256=listed
    ).save(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("loss", "head", "stated"),
    [
        ("bradley_terry", None, True),
        ("probit", None, False),
        ("cauchy", "reward", False),
        ("hinge", "combined", False),
        ("hinge", "policy", True),
    ],
)
def test_other_losses_state_no_log_odds(
    loss: str, head: Head | None, stated: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ScorerChoice, "load", lambda self, model, options: Lengths())
    for name, first in (("held-out", 0), ("calibration", 3)):
        rows = [json.dumps(pair.as_row()) + "\n" for pair in some_pairs(24)[first:]]
        (tmp_path / f"{name}.jsonl").write_text("".join(rows))
    model, plain = run_folder(tmp_path / "run", loss), run_folder(tmp_path / "plain", "bradley_terry")
    config = EvaluateConfig(
        models=[model, plain],
        data=[str(tmp_path / "held-out.jsonl")],
        calibration_data=str(tmp_path / "calibration.jsonl"),
        head=head,
        out=str(tmp_path / "out"),
    )
    models = evaluate(config).as_dict()["models"]
    found, other = (next(iter(models[name]["data"].values())) for name in (model, plain))
    assert {found[name] is not None for name in ("ece", "brier", "ece_calibrated", "temperature")} == {stated}
    assert None not in {other[name] for name in ("ece", "brier", "ece_calibrated", "temperature")}
    assert found["accuracy"] == other["accuracy"]
    page = write_page(tmp_path / "out", title="t").read_text(encoding="utf-8")
    assert page.count("Reliability (ECE") == 1 + stated
    assert page.count("there is no calibration error") == 1 - stated
