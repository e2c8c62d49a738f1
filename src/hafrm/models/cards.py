"""Model cards of exported checkpoints: what the model is, how to use it, how it was trained and measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from hafrm.losses import USES_REFERENCE
from hafrm.models.listing import CARD_MARK
from hafrm.models.runinfo import RunInfo

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

The reward is the raw logit at the conversation's last token. Only differences between responses to one prompt mean
something{{ meaning }}.

"""

_POLICY_USE = """\
## Use

It is a plain causal language model. Its implicit reward of a response is
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
Accuracy on the validation pairs that chose the checkpoint: {{ "%.3f" | format(accuracy) }} (optimistic, for that
reason; measure on other data with `hafrm evaluate`).

{% endif -%}
{% if info.lora -%}
`adapter/` holds the adapters alone, for the base model. With them the base needs the tokenizer of this folder, a row
for each of its tokens, and its pad token:

```python
if len(tokenizer) > base.get_input_embeddings().num_embeddings:
    base.resize_token_embeddings(len(tokenizer), mean_resizing=False)
base.config.pad_token_id = tokenizer.pad_token_id
```

{% endif -%}
## Limits

{% if not info.policy_ratio -%}
No loss trained a policy head: the backbone was changed for rewards alone, and what an LM head says on it means nothing.

{% endif -%}
{% if not info.reward_weight -%}
No loss trained a reward head, and none is saved.

{% endif -%}
It reflects the preferences of its training data, their mistakes and biases included. Check it against a length-only
baseline and on your own data before you optimise anything against it.

{{ mark }}, after *HAF-RM: A Hybrid Alignment Framework for Reward Model Training* (Liu et al.).
"""


_DIFFERENCE = {
    "bradley_terry": ": sigma(r1 - r2) is the probability that the first is preferred",
    "probit": ": Phi(r1 - r2), the standard normal distribution's, is the probability that the first is preferred",
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
        "and loads with no custom code.",
        meaning=_DIFFERENCE.get(info.reward_loss, f"; the loss was {info.reward_loss}, with no probability behind it"),
    )


def policy_card(info: RunInfo, manifest: dict[str, Any]) -> str:
    """Write the card of `policy/`."""
    ratio = "log(pi(y | x) / pi_ref(y | x)), where pi_ref is the base model above"
    mean = "log(pi(y | x)) / |y|, the mean log-probability of its tokens: its loss knows no reference"
    return _render(
        _POLICY_USE,
        info,
        manifest,
        pipeline="text-generation",
        kind="preference-optimization",
        title="Policy model",
        opening="The policy head of a preference-trained model: a stock causal language model.",
        meaning=f"{info.beta} * {ratio if info.policy_loss in USES_REFERENCE else mean}",
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
        # Use only the name of a local folder: its path reveals details of the machine.
        base_model=Path(info.base_model).name if Path(info.base_model).is_absolute() else info.base_model,
        lora=f"rank {info.lora['rank']}, alpha {info.lora['alpha']}" if info.lora else "none, all weights trained",
        sources=manifest.get("data", {}).get("train", {}).get("sources", []),
        versions=", ".join(f"{name} {number}" for name, number in info.versions.items()),
        accuracy=manifest.get("eval_metrics", {}).get("eval_rewards/accuracies"),
    )
