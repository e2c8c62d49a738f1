"""`hafrm probe`: biases of reward models and judges."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from jsonargparse import Namespace
from rich.console import Console

from hafrm.cli.options import options_of, parser_of
from hafrm.errors import ConfigError
from hafrm.evaluation.options import ProbeConfig
from hafrm.judging.options import JudgeOptions
from hafrm.progress import ProgressLine


@dataclass(frozen=True, kw_only=True)
class ProbeCommand(ProbeConfig):
    """Find out whether reward models or judges like length, markdown, flattery, self-praise, refusals or the user's own
    opinion, or react to rewrites.
    """

    models: list[str] = field(default_factory=list)
    """What to probe: anything that `hafrm evaluate` accepts, or `world/NAME`, the true reward of a simulated set."""

    judge: JudgeOptions | None = None
    """A judge to probe, which compares the two responses of each pair."""

    needed: ClassVar[tuple[str, ...]] = ("data",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.models and self.judge is None:
            raise ConfigError("models: give at least one, or a judge (--judge.kind, --judge.model).")


parser = parser_of(ProbeCommand, positional="models", lists=("models", "data", "probes"))


def run(args: Namespace) -> None:
    """Probe, print a table per model, and write the page if a folder is given."""
    config = options_of(ProbeCommand, parser(), args, models=("models", "reference"), data=("data",))
    if config.out is None:
        _probe(config)
        return
    from hafrm.outputs import require_results
    from hafrm.store import alone

    written = ("results.json", "index.html", "table.md")
    require_results(Path(config.out), config, written, "results.json", ("probes",), by="hafrm probe")
    with alone(Path(config.out)):
        _probe(config)


def _probe(config: ProbeCommand) -> None:
    from hafrm.cli.printing import print_findings, say
    from hafrm.evaluation.probes import probe
    from hafrm.report.findings import write_findings
    from hafrm.report.probes import probe_findings
    from hafrm.training.manifest import environment

    with ProgressLine("probing"):
        found = probe(config) if config.models else []
        if config.judge is not None:
            found += _of_judge(config, config.judge)
    findings = probe_findings(found, [str(name) for name in config.data], environment())
    console = Console(highlight=False, soft_wrap=True)
    print_findings(findings, console)
    if config.out is not None:
        say(console, f"Numbers, table and a page: {write_findings(findings, Path(config.out))}")


def _of_judge(config: ProbeConfig, options: JudgeOptions) -> list[Any]:
    """Return the effect of each change on a judge's verdicts, as `Probed`, whose module would import torch."""
    from hafrm.evaluation.probes import probe_rewards, probed_pairs
    from hafrm.judging.run import load_judge, shares_of_wins

    pairs = probed_pairs(config)  # an error in the data comes before a model is loaded
    with closing(load_judge(options, config, config.score)) as judge:
        rewards = partial(shares_of_wins, judge, orders=options.orders)
        return list(probe_rewards(rewards, pairs, f"judge {options.model}", config.probes))
