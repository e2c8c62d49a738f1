"""`hafrm probe`: biases of reward models."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import Namespace
from rich.console import Console

from hafrm.cli.options import options_of, parser_of
from hafrm.evaluation.options import ProbeConfig
from hafrm.progress import ProgressLine

parser = parser_of(ProbeConfig, positional="models", lists=("models", "data", "probes"))


def run(args: Namespace) -> None:
    """Probe, print a table per model, and write the page if a folder is given."""
    config = options_of(ProbeConfig, parser(), args, models=("models", "reference"), data=("data",))
    from hafrm.cli.printing import print_findings
    from hafrm.evaluation.probes import probe
    from hafrm.outputs import require_results
    from hafrm.paper.record import environment
    from hafrm.paper.tables import made_with_note
    from hafrm.report.findings import write_findings
    from hafrm.report.probes import probe_findings

    if config.out is not None:
        written = ("results.json", "index.html", "table.md")
        require_results(Path(config.out), config, written, "results.json", ("probes",), by="hafrm probe")
    with ProgressLine("probing"):
        made_with = environment()
        names = [str(name) for name in config.data]
        findings = probe_findings(probe(config), names, made_with, made_with_note(made_with))
    console = Console(highlight=False, soft_wrap=True)
    print_findings(findings, console)
    if config.out is not None:
        console.print(f"Numbers, table and a page: {write_findings(findings, Path(config.out))}")
