"""External half of Table 3: accuracies on the sections of RewardBench."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from hafrm.errors import DataError
from hafrm.evaluation.run import EvaluateConfig, evaluate


def section_accuracies(rewardbench: str, section: str, runs: Sequence[Path], out: Path) -> Mapping[Path, float]:
    """Return each run's pooled accuracy (0 to 1) on one section of RewardBench.

    Args:
        rewardbench: Path to RewardBench's pairs, or "hub".
        section: "Chat" or "Safety".
        runs: Run folders.
        out: Output folder for the scores.

    Raises:
        DataError: the file has no pairs of the section, or a run could not score any pair of one of its subsets.
    """
    suite = "rewardbench" if rewardbench == "hub" else f"rewardbench@{rewardbench}"
    config = EvaluateConfig(models=[str(run) for run in runs], suites=[suite], out=str(out), token_log_ratios=0)
    models = evaluate(config).suites[suite]["models"]
    try:
        return {run: models[str(run)]["pooled"][section]["value"] for run in runs}
    except KeyError as error:
        raise DataError(
            f"{rewardbench} holds no pair of RewardBench's section {section}, or a run could score none of one of its "
            f"subsets. {out} says what each run scored."
        ) from error
