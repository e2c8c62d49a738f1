"""Collect what is known about the models, data sets and runs that a page shows: short facts, and the command."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from hafrm.errors import HafrmError
from hafrm.models.runinfo import RUN_FILE, RunInfo, read_manifest
from hafrm.options import command_line
from hafrm.report.wording import listed, moment, percent, short_names
from hafrm.training.arguments import pairs_per_step
from hafrm.training.config import TrainConfig

Facts = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Card:
    """What is known about one model or data set."""

    name: str
    full_name: str
    facts: Facts
    """Pairs of a word and its value."""
    command: str = ""


def model_card(model: str, name: str, server: Mapping[str, str] | None = None) -> Card:
    """Describe a model.

    Args:
        model: Its folder, hub id or address.
        name: Its name on the page.
        server: What a reward server reported about itself.
    """
    folder = Path(model)
    if server:
        return Card(name, model, (("server of", server["model"]), ("note", server["note"])))
    if not (folder / RUN_FILE).is_file():
        return Card(name, model, (("model", model), ("training", f"unknown: it has no {RUN_FILE}")))
    try:
        info = RunInfo.load(folder)
    except HafrmError as error:  # the page shows existing scores, even if the model has changed or disappeared
        return Card(name, model, (("model", model), ("note", str(error))))
    manifest = read_manifest(folder)
    return Card(name, model, (*method_facts(info), *run_facts(manifest)), train_command(manifest))


def method_facts(info: RunInfo) -> Facts:
    """Describe a model by its base and its losses."""
    losses = ((info.reward_weight, info.reward_loss), (info.policy_ratio, info.policy_loss))
    worded = " + ".join(f"{weight:g} × {loss}" for weight, loss in losses if weight)
    adapters = (("adapters", f"LoRA, rank {info.lora['rank']}"),) if info.lora else ()
    return (("method", info.method), ("loss", worded), ("base", info.base_model), *adapters)


def run_facts(manifest: Mapping[str, Any]) -> Facts:
    """Describe a training run by its manifest; empty without one."""
    if not manifest:
        return ()
    effective, train = manifest.get("effective") or {}, manifest["data"].get("train") or {}
    batch = pairs_per_step(effective, int(effective.get("world_size", 1)))
    facts = []
    if "pairs" in train:
        names = short_names(manifest["config"]["data"]).values()
        facts.append(("pairs", f"{train['pairs']:,} ({listed(list(names))})"))
    if "steps" in manifest:
        facts.append(("steps", f"{manifest['steps']:,} of {batch} pairs"))
    if manifest.get("best_step"):
        facts.append(("kept", f"the checkpoint of step {manifest['best_step']:,}"))
    if "learning_rate" in effective:
        facts.append(("learning rate", f"{effective['learning_rate']:g}"))
    accuracy = (manifest.get("eval_metrics") or {}).get("eval_rewards/accuracies")
    if accuracy is not None:
        facts.append(("validation", f"{percent(accuracy)}% right"))
    if "started" in manifest:
        facts.append(("started", moment(datetime.fromisoformat(manifest["started"]))))
    return tuple(facts)


def train_command(manifest: Mapping[str, Any]) -> str:
    """Return the `hafrm train` command of a run; empty without a manifest."""
    return command_line("hafrm train", TrainConfig, manifest["config"]) if manifest else ""


def data_card(name: str, short: str, sources: Sequence[Mapping[str, Any]]) -> Card:
    """Describe a data set by the reports of its sources."""
    left_out: Counter[str] = sum((Counter(each["skipped"]) + Counter(each["dropped"]) for each in sources), Counter())
    facts = {
        "pairs": f"{sum(each['kept'] for each in sources):,} of {sum(each['rows'] for each in sources):,} rows",
        "left out": ", ".join(f"{count:,} {reason}" for reason, count in left_out.items()),
        **{
            name: ", ".join(dict.fromkeys(filter(None, (each.get(name) for each in sources))))
            for name in ("form", "split", "licence")
        },
        "fingerprint": ", ".join(each["sha256"][:12] for each in sources),
    }
    return Card(short, name, tuple((what, value) for what, value in facts.items() if value))
