"""`hafrm train`: train one model."""

from __future__ import annotations

from jsonargparse import Namespace
from rich.console import Console

from hafrm.cli.options import options_of, parser_of
from hafrm.training.config import TrainConfig

parser = parser_of(TrainConfig, lists=("data", "eval_data"))


def run(args: Namespace) -> None:
    """Train, and print where the result is and how to use it."""
    config = options_of(TrainConfig, parser(), args, data=("data", "eval_data"))
    from accelerate import PartialState

    from hafrm.report.training import train_with_page
    from hafrm.training.owned import PAGE_FILE

    result = train_with_page(config)
    processes = PartialState()
    console = Console(quiet=not processes.is_main_process, markup=False, highlight=False, soft_wrap=True)
    accuracy = result.metrics.get("eval_rewards/accuracies")
    validation = f", validation accuracy {accuracy:.3f}" if accuracy is not None else ""
    console.print(f"Trained {result.steps} steps{validation}. The model is in {result.folder}.")
    console.print(f"Its curves: {result.folder / PAGE_FILE}")
    console.print(f"Next: hafrm evaluate {result.folder} --data TEST --out eval")
    processes.destroy_process_group()
