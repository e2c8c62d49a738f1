"""`hafrm pretrain`: train a small causal language model on text, for studying reward models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from markupsafe import Markup
from rich.console import Console

from hafrm import atomic
from hafrm.cli.options import options_of, parser_of
from hafrm.training.config import PretrainConfig

_LOSSES_PICTURE = "losses.svg"


parser = parser_of(PretrainConfig, lists=("data",))


def run(args: Namespace) -> None:
    """Train, draw the losses, and print the perplexity."""
    config = options_of(PretrainConfig, parser(), args)
    from hafrm.report.charts import standalone
    from hafrm.training.pretrain import RECIPE_FILE, pretrain

    errors = Console(stderr=True)
    recipe = pretrain(config, lambda line: errors.print(line, markup=False, highlight=False, soft_wrap=True))
    atomic.write_text(Path(config.out) / _LOSSES_PICTURE, standalone(loss_curves(recipe)))
    print(  # noqa: T201
        f"{recipe['parameters']:,} parameters, {recipe['tokens']:,} tokens, perplexity {recipe['perplexity']:.2f} on "
        f"held-out text. The model is in {config.out}, its losses in {RECIPE_FILE} and {_LOSSES_PICTURE}."
    )


def loss_curves(recipe: Mapping[str, Any]) -> Markup:
    """Draw the losses in a model's `recipe.json` over the steps, in training and on held-out text."""
    from hafrm.report.figures import Curve, Panel, curve_panels

    shown = {"training": ("zero", recipe["losses"]), "held out": ("haf", recipe["validation"])}
    curves = tuple(Curve(label, kind, tuple(map(tuple, points))) for label, (kind, points) in shown.items() if points)
    return curve_panels(
        f"Pretraining {recipe['parameters']:,} parameters on {recipe['tokens']:,} tokens, to perplexity "
        f"{recipe['perplexity']:.1f} on held-out text",
        [Panel("loss, nats per token", curves)],
    )
