"""Export: a run's two heads as two plain checkpoints for any program, with model cards.

`reward/` is a stock sequence classifier and `policy/` a stock causal LM, without extra keys or custom code. A LoRA run
also gets separate adapters for its base model, `reward/adapter` and `policy/adapter`. hafrm only reads the files listed
in `checksums.json`; other programs ignore it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from hafrm import atomic
from hafrm.errors import ConfigError, ModelError, first_line
from hafrm.models.cards import policy_card, reward_card
from hafrm.models.checkpoints import writing
from hafrm.models.finite import require_finite
from hafrm.models.listing import (
    ADAPTER_FILE,
    ADAPTER_FOLDER,
    CARD_FILE,
    CARD_MARK,
    CHECKSUMS_FILE,
    listed,
    save_checksums,
)
from hafrm.models.options import ExportConfig
from hafrm.models.runinfo import RunInfo, read_manifest, require_undamaged
from hafrm.models.stock import loading, quiet_transformers, require_whole

Task = Literal["SEQ_CLS", "CAUSAL_LM"]


def export(config: ExportConfig) -> list[Path]:
    """Export the heads that the run trained.

    Returns:
        The folders written: `reward`, unless the run was pure DPO, and `policy`, unless it was the baseline.

    Raises:
        ModelError: the folder is not a finished run, a weight is not finite, or a head has no stock class; the other
            head is exported.
        ConfigError: the target contains files that are not an export's.
        DamagedError: the run's files have changed.
        UnwritableError: the disk is full, or the folder can't be written to.
    """
    run = Path(config.run)
    out = Path(config.out) if config.out else run / "export"
    info = require_undamaged(run)
    if not info.whole:
        raise ModelError(
            f"{run} contains only adapters: it is a checkpoint of an unfinished run. Export a finished run."
        )
    manifest = read_manifest(run)
    for name in ("policy", "reward"):
        _require_own(out / name)
    written = []
    if info.policy_ratio:  # first: every model has a causal class, but not a classifier
        card = policy_card(info, manifest)
        written.append(_export_head(config, info, out / "policy", AutoModelForCausalLM, "CAUSAL_LM", card))
    if info.reward_weight:
        card = reward_card(info, manifest)
        reward = _export_head(config, info, out / "reward", AutoModelForSequenceClassification, "SEQ_CLS", card)
        written.insert(0, reward)
    return written


def _export_head(config: ExportConfig, info: RunInfo, folder: Path, stock_class: Any, task: Task, card: str) -> Path:
    run, trust = Path(config.run), config.trust_remote_code
    with quiet_transformers():
        try:
            model, report = stock_class.from_pretrained(
                run, trust_remote_code=trust, use_safetensors=True, output_loading_info=True
            )
        except ValueError as error:
            raise ModelError(
                f"transformers has no {stock_class.__name__} for {run}: {first_line(error)} "
                "hafrm itself can score with the run's folder."
            ) from error
        require_whole(model, report, str(run), kind="finished run")
        require_finite(model.state_dict().items(), run)
        tokenizer = AutoTokenizer.from_pretrained(run, trust_remote_code=trust)
        with writing(folder), atomic.new_folder(folder) as temporary:
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
            if info.with_adapters:
                _export_adapter(run / ADAPTER_FOLDER, temporary / ADAPTER_FOLDER, task)
            save_checksums(temporary)
            atomic.write_text(temporary / CARD_FILE, card)
    return folder


def _require_own(folder: Path) -> None:
    """Raise unless the folder is free or contains an earlier export and nothing else.

    Raises:
        ConfigError: names the other files.
    """
    atomic.require_folder(folder)
    if not folder.exists():
        return
    card = folder / CARD_FILE
    if not (card.is_file() and CARD_MARK in card.read_text(encoding="utf-8", errors="replace")):
        raise ConfigError(
            f"{folder} exists and is not an earlier export of hafrm. Choose another --out, or move it away."
        )
    written = {CARD_FILE, CHECKSUMS_FILE, *listed(folder)}
    files = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_symlink() or path.is_file())
    if own := sorted(set(files) - written):
        raise ConfigError(
            f"{folder} contains {own[0]} ({len(own)} such files), which the earlier export did not write and this one "
            "would delete. Move it away, or choose another --out."
        )


def _export_adapter(source: Path, folder: Path, task: Task) -> None:
    """Copy an adapter for one stock class; only the classifier gets the reward head."""
    folder.mkdir()
    with loading("adapters", str(source)):  # otherwise `writing` would report read errors as write errors
        tensors = load_file(source / ADAPTER_FILE)
        description = json.loads((source / "adapter_config.json").read_text(encoding="utf-8"))
    description |= {"task_type": task}
    if task == "CAUSAL_LM":
        tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith("score.weight")}
        description |= {"modules_to_save": None}
    require_finite(tensors.items(), source)
    save_file(tensors, folder / ADAPTER_FILE, metadata={"format": "pt"})
    atomic.write_json(folder / "adapter_config.json", description)
    save_checksums(folder)
