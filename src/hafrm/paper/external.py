"""The external half of Table 3: accuracies on the sections of RewardBench."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from hafrm.errors import DataError
from hafrm.evaluation.run import EvaluateConfig, evaluate

__all__ = ["section_accuracies"]


def section_accuracies(rewardbench: str, section: str, runs: Sequence[Path], out: Path) -> Mapping[Path, float]:
    """Each run's pooled accuracy, a share, on one section of RewardBench.

    Args:
        rewardbench: The path of RewardBench's pairs, or "hub".
        section: "Chat" or "Safety".
        runs: The runs' folders.
        out: A folder for the scores.

    Raises:
        DataError: the file holds no pair of the section, or a run could score none of one of its subsets.
    """
    suite = "rewardbench" if rewardbench == "hub" else f"rewardbench@{rewardbench}"
    config = EvaluateConfig(models=[str(run) for run in runs], suites=[suite], out=str(out), token_log_ratios=0)
    models = evaluate(config)["suites"][suite]["models"]
    try:
        return {run: models[str(run)]["pooled"][section]["value"] for run in runs}
    except KeyError as error:
        raise DataError(
            f"{rewardbench} holds no pair of RewardBench's section {section}, or a run could score none of one of its "
            f"subsets. {out} says what each run scored."
        ) from error
