"""Tables 6 and 7: variance of perplexity under the untrained backbone, and its correlation with DPO's gain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hafrm.errors import ConfigError
from hafrm.paper import numbers, table2
from hafrm.paper.plans import Job, Plan
from hafrm.paper.probes.perplexity import PerplexityConfig, PerplexityVariance, run_perplexity
from hafrm.paper.probes.variance import VarianceCorrelation, variance_correlation
from hafrm.report.findings import Findings, Table

_COLUMNS = {"win": "pp_win", "lose": "pp_lose", "win - lose": "pp_difference"}
"""Table 7's columns, mapped to our field names."""


def plan(job: Job) -> Plan:
    """Plan nothing: the backbones are used untrained."""
    return Plan(())


def find(job: Job) -> Findings:
    """Build Table 6, ours above the paper's."""
    cells = {backbone: _variances(job, backbone) for backbone in job.backbones}
    rows = [
        (f"{backbone}, {row}", *(f"{getattr(each, field):.3f}" for each in table.values()))
        for backbone, table in cells.items()
        for row, field in (("pp win", "var_win"), ("pp lose", "var_lose"))
    ]
    return Findings(
        title="Table 6: variances of token-wise perplexity",
        intro="Perplexity, in nats a token, of the test pairs' responses under the untrained backbone. "
        f"{table2.setting(job, ())}",
        results={
            "scale": job.scale.name,
            "variances": {
                backbone: {name: each.as_dict() for name, each in table.items()} for backbone, table in cells.items()
            },
        },
        tables=(Table("Ours", ("sample variance", *job.sets), tuple(rows)), _papers(job)),
        notes=table2.scale_notes(job),
    )


def plan_correlation(job: Job) -> Plan:
    """Plan the runs and evaluations of Table 2.

    Raises:
        ConfigError: fewer than three sets, too few for a correlation.
    """
    if len(job.sets) < 3:
        raise ConfigError("sets: table7 correlates over sets, so it needs three or more.")
    return table2.plan(job)


def find_correlation(job: Job) -> Findings:
    """Build Table 7, ours above the paper's."""
    found = {backbone: _correlation(job, backbone) for backbone in job.backbones}
    rows = [
        (f"{backbone}, {name}", *(f"{getattr(getattr(each, field), value):.4f}" for field in _COLUMNS.values()))
        for backbone, each in found.items()
        for name, value in (("corr", "value"), ("p", "p_value"))
    ]
    printed = [
        (name, *(f"{getattr(numbers.TABLE_7[column], field):.4f}" for column in _COLUMNS))
        for name, field in (("corr", "value"), ("p", "p_value"))
    ]
    header = ("Pearson", *(f"pp {column}" for column in _COLUMNS))
    return Findings(
        title="Table 7: do spread-out perplexities foretell where DPO falls behind?",
        intro="Variances of Table 6 against accuracy(DPO) less accuracy(baseline) of Table 2. "
        f"{table2.setting(job, job.seeds)}",
        results={"scale": job.scale.name, "correlations": {name: each.as_dict() for name, each in found.items()}},
        tables=(Table("Ours", header, tuple(rows)), Table("The paper's, Mistral-Instruct", header, tuple(printed))),
        notes=(*dict.fromkeys(each.warning for each in found.values() if each.warning), *table2.scale_notes(job)),
    )


def _variances(job: Job, backbone: str) -> Mapping[str, PerplexityVariance]:
    """Compute the perplexity variances of each set under a backbone."""
    names = {name: job.scale.sets[name].test for name in job.sets}
    config = PerplexityConfig(
        models=[job.scale.backbone(backbone).model()],
        data=list(names.values()),
        out=str(job.root / "perplexity" / backbone),
    )
    return dict(zip(names, run_perplexity(config), strict=True))


def _correlation(job: Job, backbone: str) -> VarianceCorrelation:
    accuracies: dict[str, Any] = {
        name: (row["dpo"].accuracy, row["baseline"].accuracy) for name, row in table2.own_cells(job, backbone).items()
    }
    return variance_correlation(_variances(job, backbone), accuracies)


def _papers(job: Job) -> Table:
    rows = tuple(
        (f"{backbone}, pp {side}", *(f"{getattr(table[name], side):.2f}" for name in job.sets))
        for backbone, table in numbers.TABLE_6.items()
        for side in ("win", "lose")
    )
    return Table("The paper's", ("variance", *job.sets), rows)
