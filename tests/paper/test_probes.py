"""The probes from run folders to files, on tiny runs: outputs, and that nothing is computed twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hafrm.data import DataOptions
from hafrm.errors import ConfigError
from hafrm.models.options import ScoreOptions
from hafrm.paper.probes import claims, consistency, perplexity
from hafrm.paper.probes.agreement import run_agreement
from hafrm.paper.probes.claims import run_claims
from hafrm.paper.probes.consistency import run_consistency
from hafrm.paper.probes.heads import FitOptions
from hafrm.paper.probes.inequality import Claim
from hafrm.paper.probes.perplexity import run_perplexity
from hafrm.sampling.options import SampleOptions
from hafrm.training.config import TrainConfig
from hafrm.training.run import train
from tests.tiny import save_tiny, some_pairs


class Runs:
    """A tiny base model, three runs of it that kept two checkpoints each, and their data."""

    def __init__(self, folder: Path) -> None:
        self.base = str(save_tiny(folder / "base"))
        lines = [json.dumps(each.as_row()) for each in some_pairs(20)]
        self.train, self.test = str(folder / "train.jsonl"), str(folder / "test.jsonl")
        Path(self.train).write_text("\n".join(lines[:14]))
        Path(self.test).write_text("\n".join(lines[12:]))
        steps: dict[str, Any] = {"max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 1e-3}
        steps |= {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
        steps |= {"save_total_limit": None, "use_cpu": True, "report_to": []}
        self.runs = {}
        for method in ("haf", "baseline", "dpo"):
            self.runs[method] = str(folder / method)
            config = TrainConfig(
                model=self.base,
                data=[self.train],
                eval_data=[self.test],
                out=self.runs[method],
                method=method,
                data_options=DataOptions(max_length=128),
                training=steps,
            )
            train(config)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("runs")
        patch.setenv("HAFRM_CACHE", str(folder / "cache"))
        return Runs(folder)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAFRM_CACHE", str(tmp_path / "cache"))


def forbid(monkeypatch: pytest.MonkeyPatch, module: Any, *names: str) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("was to be computed once")

    for name in names:
        monkeypatch.setattr(module, name, fail)


@pytest.mark.slow
def test_perplexities_are_computed_once(runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    halves = []
    for number, part in enumerate((slice(0, 5), slice(4, 9), slice(8, 14))):
        halves.append(str(tmp_path / f"set{number}.jsonl"))
        Path(halves[-1]).write_text("\n".join(Path(runs.train).read_text().splitlines()[part]))
    cells = run_perplexity(runs.base, halves, tmp_path / "pp")
    assert [(cell.data, cell.n) for cell in cells] == list(zip(halves, (5, 5, 6), strict=True))
    forbid(monkeypatch, perplexity, "load_log_prob_scorer")
    assert run_perplexity(runs.base, halves, tmp_path / "pp") == cells
    with pytest.raises(AssertionError, match="once"):  # another limit, other scores
        run_perplexity(runs.base, halves, tmp_path / "pp", score=ScoreOptions(max_length=10))


def test_agreement_is_of_the_pairs_that_both_score(runs: Runs, tmp_path: Path) -> None:
    found = run_agreement(runs.runs["baseline"], runs.runs["dpo"], runs.test, tmp_path)
    assert (found.pairs, found.left_out) == (8, 0)
    assert found.pearson.value == pytest.approx(np.corrcoef(found.x, found.y)[0, 1])


@pytest.mark.parametrize("oracle", ["world", "run"])
def test_consistency_writes_its_points_and_goes_on(
    oracle: str, runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = "world/helpful" if oracle == "world" else runs.runs["baseline"]
    models = runs.runs["haf"], runs.runs["dpo"]
    few = {"prompts": 4, "sampling": SampleOptions(max_new_tokens=6)}
    found = run_consistency(*models, runs.test, judge, tmp_path, **few)
    assert len(found.points) == 10  # two checkpoints, five matchings
    assert {point.matching for point in found.points} == {"reward", "acc", "loss", "margin", "step"}
    assert ({point.prompts for point in found.points}, found.too_long) == ({4}, 0)
    forbid(monkeypatch, consistency, "generate_responses", "load_scorer")
    assert run_consistency(*models, runs.test, judge, tmp_path, **few) == found


def claimed(runs: Runs, out: Path, *, hybrid: str = "haf", baseline: str = "baseline") -> Claim:
    return run_claims(
        [(runs.runs[hybrid], runs.runs[baseline])],
        [runs.train],
        [runs.test],
        out,
        fit=FitOptions(max_steps=20),
        options=DataOptions(),
    )


def test_claims_write_their_numbers_and_go_on(runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    claim = claimed(runs, tmp_path)
    (seed,) = claim.seeds
    manifest = json.loads((Path(runs.runs["haf"]) / "manifest.json").read_text())
    assert seed.held_out.hybrid == pytest.approx(manifest["eval_metrics"]["eval_loss/policy"], rel=1e-4)
    assert seed.train.pairs == 14
    assert seed.fit_baseline.loss == pytest.approx(seed.train.fitted, rel=1e-4)
    assert seed.fit_baseline.loss <= min(seed.fit_baseline.start_losses.values())
    change = claim.representations[0]["train"]["hybrid"]
    assert 0 < change["relative_change"] < 1
    forbid(monkeypatch, claims, "load_scorer")
    assert claimed(runs, tmp_path) == claim


def test_claims_refuse_runs_that_are_no_mates(runs: Runs, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a hybrid run"):
        claimed(runs, tmp_path, hybrid="dpo")
    with pytest.raises(ConfigError, match="not a baseline"):
        claimed(runs, tmp_path, baseline="dpo")
