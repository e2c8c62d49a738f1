"""`hafrm export`: a run's two heads as two plain checkpoints for any program, with model cards.

`reward/` is a stock sequence classifier and `policy/` a stock causal LM, without extra keys or custom code; `reward/`
also has LLaMA-Factory's form of the head (see `interchange`). A LoRA run also gets separate adapters for its base
model, `reward/adapter` and `policy/adapter`. hafrm only reads the files listed in `checksums.json`; other programs
ignore it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from jinja2 import Environment, StrictUndefined
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from hafrm import atomic
from hafrm.errors import ConfigError, ModelError, first_line
from hafrm.losses import PLACKETT_LUCE, uses_reference
from hafrm.models.checkpoints import writing
from hafrm.models.checksums import (
    ADAPTER_FILE,
    ADAPTER_FOLDER,
    CARD_FILE,
    CARD_MARK,
    CHECKSUMS_FILE,
    listed,
    save_checksums,
)
from hafrm.models.heads import HEADS, SCORE, head_name
from hafrm.models.interchange import add_older_names, add_plain_activation, add_value_head
from hafrm.models.modules import require_finite
from hafrm.models.options import ExportConfig
from hafrm.models.runinfo import RunInfo, read_manifest, require_outside_models, require_undamaged
from hafrm.models.sources import ADAPTER_CONFIG, read_config
from hafrm.models.stock import loading, quiet_transformers, require_whole
from hafrm.store import alone

Task = Literal["SEQ_CLS", "CAUSAL_LM"]


def export(config: ExportConfig) -> list[Path]:
    """Export the heads that the run trained.

    Returns:
        The folders written: `reward`, unless the run was pure DPO, and `policy`, unless it was the baseline.

    Raises:
        ModelError: the folder is not a finished run, a weight is not finite, or a head has no stock class. The other
            head may have been exported.
        ConfigError: the target is in a model's folder, or contains other files than an export's, or is in use.
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
    atomic.require_utf8(out)
    for name in ("policy", "reward"):
        _require_own(out / name)
        if out.resolve() != (run / "export").resolve():  # known to be none of the run's files
            require_outside_models(out / name)
    written = []
    with alone(out):
        if info.policy_ratio:  # first: every model has a causal class, but not a classifier
            written.append(_export_head(config, info, out / "policy", "CAUSAL_LM"))
        if info.reward_weight:
            written.insert(0, _export_head(config, info, out / "reward", "SEQ_CLS"))
    return written


def _export_head(config: ExportConfig, info: RunInfo, folder: Path, task: Task) -> Path:
    run, trust = Path(config.run), config.trust_remote_code
    stock_class: Any = AutoModelForSequenceClassification if task == "SEQ_CLS" else AutoModelForCausalLM
    card = (reward_card if task == "SEQ_CLS" else policy_card)(info, read_manifest(run))
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
        with writing(folder, "The run is unchanged."), atomic.new_folder(folder) as temporary:
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
            add_older_names(temporary)
            if task == "SEQ_CLS":
                add_plain_activation(temporary)
                add_value_head(temporary, model.get_parameter(head_name(model.config)).detach())
            if info.with_adapters:
                _export_adapter(run / ADAPTER_FOLDER, temporary / ADAPTER_FOLDER, task)
            save_checksums(temporary)
            atomic.write_text(temporary / CARD_FILE, card)
    return folder


def _require_own(folder: Path) -> None:
    """Raise ConfigError unless the folder does not exist, or only contains an earlier export."""
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
        description = read_config(source / ADAPTER_CONFIG)
    description |= {"task_type": task}
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith(HEADS)}
    heads = [name for name in tensors if name.endswith(SCORE)]
    if task == "CAUSAL_LM":
        tensors = {name: tensor for name, tensor in tensors.items() if name not in heads}
        description |= {"modules_to_save": None}
    for name in heads if task == "SEQ_CLS" else ():
        add_value_head(folder, tensors[name])
    require_finite(tensors.items(), source)
    save_file(tensors, folder / ADAPTER_FILE, metadata={"format": "pt"})
    atomic.write_json(folder / ADAPTER_CONFIG, description)
    save_checksums(folder)


_HEADER = """\
---
library_name: transformers
pipeline_tag: {{ pipeline }}
tags:
- {{ kind }}
- hafrm
base_model: {{ base_model }}
---

# {{ title }}

{{ opening }}

"""

_REWARD_USE = """\
## Use

```python
from transformers import AutoModelForSequenceClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(FOLDER)
model = AutoModelForSequenceClassification.from_pretrained(FOLDER).eval()
conversation = [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]
inputs = tokenizer.apply_chat_template(conversation, return_dict=True, return_tensors="pt")
reward = model(**inputs).logits[0, 0].item()
```

The reward is the raw logit at the conversation's last token. Only differences between responses to the same prompt are
meaningful{{ meaning }}.

"""

_POLICY_USE = """\
## Use

This is a plain causal language model. Its implicit reward for a response is
{{ meaning }}.

"""

_FOOTER = """\
## Training

| | |
|---|---|
| method | {{ info.method }} |
| loss | {{ losses }} |
| started from | {{ base_model }} |
| LoRA | {{ lora }} |
| longest conversation | {{ info.max_length }} tokens; longer ones: {{ info.overlong }} |
| steps | {{ manifest.get("steps", "unknown") }} |
| seed | {{ manifest.get("seed", "unknown") }} |
{%- for source in sources %}
| data | {{ source.name }}: {{ source.kept }} pairs{{ ", licence " ~ source.licence if source.licence else "" }} |
{%- endfor %}
| versions | {{ versions }} |

{% if accuracy is not none -%}
Accuracy on the validation pairs by which the checkpoint was chosen: {{ "%.3f" | format(accuracy) }} (and therefore
optimistic; measure on other data with `hafrm evaluate`).

{% endif -%}
{% if info.lora -%}
`adapter/` contains only the adapters, for the base model
{%- if pipeline == "text-classification" %}, loaded as a classifier with `num_labels=1`{% endif %}.
To use them, give the base the tokenizer of this folder, an
embedding for each of its tokens, and its pad token:

```python
if len(tokenizer) > base.get_input_embeddings().num_embeddings:
    base.resize_token_embeddings(len(tokenizer), mean_resizing=False)
base.config.pad_token_id = tokenizer.pad_token_id
```

{% endif -%}
## Limits

{% if not info.policy_ratio -%}
The policy head was not trained: the backbone was trained for rewards only, so text generated by an LM head on it is
meaningless.

{% endif -%}
{% if not info.reward_weight -%}
The reward head was not trained and is not saved.

{% endif -%}
The model reflects the preferences in its training data, including their mistakes and biases. Compare it with a
length-only baseline and check it on your own data before you optimise anything against it.

{{ mark }}, after *HAF-RM: A Hybrid Alignment Framework for Reward Model Training* (Liu et al.).
"""


_LOG_ODDS = ": sigma(r1 - r2) is the probability that the first is preferred"
_DIFFERENCE = {
    "bradley_terry": _LOG_ODDS,
    PLACKETT_LUCE: _LOG_ODDS,
    "probit": ": Phi(r1 - r2), the normal distribution function, is the probability that the first is preferred",
    "cauchy": ": 1/2 + atan(r1 - r2) / pi is the probability that the first is preferred",
}
"""Meaning of a difference of rewards, by training loss. The hinge loss defines no probability."""


def reward_card(info: RunInfo, manifest: dict[str, Any]) -> str:
    """Write the card of `reward/`."""
    return _render(
        _REWARD_USE,
        info,
        manifest,
        pipeline="text-classification",
        kind="reward-model",
        title="Reward model",
        opening="A reward model: it scores a response to a prompt. It is a stock sequence classifier with one label "
        "and loads without custom code.",
        meaning=_DIFFERENCE.get(info.reward_loss, f"; the loss, {info.reward_loss}, defines no probability"),
    )


def policy_card(info: RunInfo, manifest: dict[str, Any]) -> str:
    """Write the card of `policy/`."""
    ratio = "log(pi(y | x) / pi_ref(y | x)), where pi_ref is the base model above"
    mean = "log(pi(y | x)) / |y|, the mean log-probability of its tokens (the loss uses no reference)"
    return _render(
        _POLICY_USE,
        info,
        manifest,
        pipeline="text-generation",
        kind="preference-optimization",
        title="Policy model",
        opening="The policy head of a preference-trained model: a stock causal language model.",
        meaning=f"{info.beta} * {ratio if uses_reference(info.policy_loss) else mean}",
    )


def _losses(info: RunInfo) -> str:
    terms = []
    if info.reward_weight:
        terms.append(f"{info.reward_weight} * {info.reward_loss}")
    if info.policy_ratio:
        terms.append(f"{info.policy_ratio} * {info.policy_loss} (beta {info.beta})")
    return " + ".join(terms)


def _render(use: str, info: RunInfo, manifest: dict[str, Any], **words: str) -> str:
    template = Environment(undefined=StrictUndefined, autoescape=False, keep_trailing_newline=True).from_string(
        _HEADER + use + _FOOTER
    )
    return template.render(
        **words,
        mark=CARD_MARK,
        losses=_losses(info),
        info=info,
        manifest=manifest,
        # only the name of a local folder: its path would reveal details of the machine
        base_model=Path(info.base_model).name if Path(info.base_model).is_absolute() else info.base_model,
        lora=f"rank {info.lora['rank']}, alpha {info.lora['alpha']}" if info.lora else "none, all weights were trained",
        sources=manifest.get("data", {}).get("train", {}).get("sources", []),
        versions=", ".join(f"{name} {number}" for name, number in info.versions.items()),
        accuracy=manifest.get("eval_metrics", {}).get("eval_rewards/accuracies"),
    )
