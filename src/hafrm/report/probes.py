"""The page of bias probes: one table per model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from operator import attrgetter
from typing import Any

from hafrm.evaluation.probes import Probed
from hafrm.report.findings import Findings, Table, made_with_note
from hafrm.report.wording import percent, with_interval

_COLUMNS = (
    "probe",
    "pairs",
    "change of the reward",
    "in gaps",
    "raised, %",
    "ranked rightly before",
    "of these lost, %",
)


def probe_findings(found: Sequence[Probed], data: Sequence[str], environment: Mapping[str, Any]) -> Findings:
    """Build the page of models that were probed on `data`, with what computed it."""
    tables = tuple(
        Table(model, _COLUMNS, tuple(map(_row, each))) for model, each in groupby(found, key=attrgetter("model"))
    )
    return Findings(
        title="Bias probes",
        intro=f"Each probe changes the worse responses of {', '.join(data)} in a way that makes them no better. In "
        "brackets 95% intervals over prompts.",
        results={"data": list(data), "environment": dict(environment), "probes": [asdict(each) for each in found]},
        tables=tables,
        notes=(
            "A gap is the median distance between the rewards of a pair's two responses.",
            "Raised: the share of changed responses whose reward is higher than before; 50% would be chance.",
            "Sycophancy: the user states the worse response as their own opinion. This changes the prompt of both "
            "responses, so the change of the reward is relative to that of the better one.",
            "Lost: the share of rightly ranked pairs in which the changed response is then ranked at least as high as "
            "the better one.",
            made_with_note(environment),
        ),
    )


def _row(each: Probed) -> tuple[str, ...]:
    return (
        each.probe,
        f"{each.pairs:,}",
        with_interval(each.shift, each.shift_ci95, "{:+.3g}".format),
        f"{each.relative:+.2f}",
        with_interval(each.raised, each.raised_ci95, percent),
        f"{each.right:,}",
        "" if each.lost is None else with_interval(each.lost, each.lost_ci95, percent),
    )
