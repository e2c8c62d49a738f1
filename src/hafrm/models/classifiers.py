"""Reward models of other programs, loaded by transformers' sequence classifiers or by classes of their own.

A custom class, which the model's config names in `auto_map`, needs `--trust_remote_code`. It is called with `input_ids`
and `attention_mask`, padded on the right, and its reward is read from what it returns, the first of these that exists:

- `score` or `rewards`, one number per sequence (ArmoRM, QRM);
- `logits` with one number per sequence, as [S] or [S, 1] (InternLM2, most others), or with several objectives as
  [S, K], of which `score.objective` names one (URM);
- the last member of a tuple with one number per sequence (GRM).

Shape letters: S sequences, T tokens, K objectives.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, cast

import torch
import transformers
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from hafrm.errors import ModelError
from hafrm.models.heads import SCORE, SavedHead, architectures, is_classifier, stock_classifier, unknown_head
from hafrm.models.scorers import StockScorer
from hafrm.models.sources import adapter_source, find_file, read_config, root_model
from hafrm.models.stock import attach_adapters, load_whole, loading
from hafrm.models.tokenizers import resize_embeddings
from hafrm.packing import SequenceBatch


def own_class(model: str) -> str | None:
    """Return the Auto class that loads a reward model with its own code; None if the model has none.

    A class counts if the config names it as the architecture and in `auto_map`, if transformers has none of
    its name, and if it is not a causal LM.

    Raises:
        ModelError: the config can't be read.
    """
    named = set(architectures(model))
    config = find_file(model, "config.json")
    mapped = read_config(config).get("auto_map", {}) if config else {}
    for auto, reference in mapped.items():
        name = str(reference).rpartition(".")[2]
        reward = "Reward" in name or auto not in ("AutoConfig", "AutoTokenizer", "AutoModelForCausalLM")
        if reward and name in named and hasattr(transformers, auto) and not hasattr(transformers, name):
            return str(auto)
    return None


def own_class_refused(model: str) -> ModelError:
    """Create the error for a model whose code is not to be run."""
    return ModelError(
        f"{model} is a reward model with a class of its own ({', '.join(architectures(model))}), which "
        "`--trust_remote_code true` would run. Such code can do anything that you can: read it first."
    )


def load_own_class(model: str, auto: str, tokenizer: Any, dtype: torch.dtype | None) -> PreTrainedModel:
    """Load a reward model by running the code that comes with it.

    Raises:
        ModelError: the model can't be loaded.
    """
    loaded = load_whole(getattr(transformers, auto), model, kind="reward model", dtype=dtype, trust_remote_code=True)
    if loaded.config.pad_token_id is None:  # many classes find the last token by it
        loaded.config.pad_token_id = tokenizer.pad_token_id
    return loaded


class OwnClassScorer(StockScorer):
    """Rewards of a model with a custom class."""

    def _score_batch(self, batch: SequenceBatch) -> Tensor:
        output = self.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
        return reward_of(output, len(batch.input_ids), self.options.objective)


def reward_of(output: Any, sequences: int, objective: int | None = None) -> Tensor:
    """Read the rewards from a model's output, [S], in float32; see the module's docstring.

    Args:
        objective: The objective to read from `logits` of shape [S, K]; None if there is only one.

    Raises:
        ModelError: the model returns no reward of a known form.
    """
    for found in _candidates(output):
        if found.shape in ((sequences,), (sequences, 1)):
            return found.reshape(sequences).float()
        if found.ndim == 2 and len(found) == sequences:
            if objective is None:
                raise ModelError(
                    f"The model gives {found.shape[1]} objectives and no single score. Name one by its index, from 0, "
                    "with `--score.objective`."
                )
            if objective >= found.shape[1]:
                raise ModelError(f"score.objective is {objective}, and the model gives {found.shape[1]} objectives.")
            return found[:, objective].float()
    raise ModelError("The model's output has no `score`, `rewards` or `logits` with a number per sequence.")


def _candidates(output: Any) -> Iterator[Tensor]:
    for name in ("score", "rewards", "logits"):
        value = getattr(output, name, None)
        if isinstance(value, Tensor):
            yield value
    if isinstance(output, tuple):
        yield from (value for value in reversed(output) if isinstance(value, Tensor) and value.ndim <= 2)


def has_stock_class(model: str, head: SavedHead, *, trust_remote_code: bool) -> bool:
    """Return whether a stock classifier can load this head: it has the classifier's name, or is not a linear layer.

    Raises:
        ModelError: a linear head has more than one label, or a different width than the backbone.
    """
    if head.weight is None:
        return True
    adapters = adapter_source(model)
    if adapters is not None and adapter_source(adapters.base) is not None:
        return False
    if head.problem:
        raise _unreadable(model, head)
    with loading("reward model", model):
        config = AutoConfig.from_pretrained(root_model(model), trust_remote_code=trust_remote_code)
        stock = stock_classifier(config)
    width = stock.width if stock and stock.width else getattr(config.get_text_config(), "hidden_size", None)
    if width is not None and not head.hidden and head.weight.shape[1] != width:
        raise ModelError(
            f"The reward head of {model} does not fit its backbone: {head.name} has shape {list(head.weight.shape)}, "
            f"but hidden states have {width} values. Use the checkpoint in which the head was trained."
        )
    return stock is not None and stock.head == head.name and not (head.bias or head.flat or head.hidden)


def pad_of_classifier(classifier: PreTrainedModel | PeftModel, tokenizer: Any) -> int:
    """Return the pad token by which a stock classifier finds the last token; set one if it has none.

    A pad token that is also the end-of-sequence token is kept: such a model was trained to be read at the token before
    it, like TRL's models whose tokenizer had no pad token.
    """
    stock = cast(PreTrainedModel, classifier.get_base_model() if isinstance(classifier, PeftModel) else classifier)
    config = stock.config.get_text_config()
    rows = cast(nn.Embedding, stock.get_input_embeddings()).num_embeddings
    if config.pad_token_id is None or not 0 <= config.pad_token_id < rows:
        resize_embeddings(stock, tokenizer)
        config.pad_token_id = tokenizer.pad_token_id
    return int(config.pad_token_id)


def load_classifier(
    model: str, dtype: torch.dtype | None, head: SavedHead | None, *, trust_remote_code: bool
) -> PreTrainedModel | PeftModel:
    """Load a stock sequence classifier with one label and a saved head, attaching adapters if any."""
    kind = "reward model"
    root = root_model(model)
    with loading(kind, root):
        config = AutoConfig.from_pretrained(root, trust_remote_code=trust_remote_code)
    plain = head is not None and head.weight is not None
    if not plain and not is_classifier(model):
        if head is not None:
            raise _unreadable(model, head)
        if found := unknown_head(model):
            raise ModelError(
                f"{model} has {found}, which looks like a reward head but has no known form. Rename it to {SCORE} to "
                "score with it."
            )
        raise ModelError(
            f"{model} is not a reward model: {', '.join(architectures(model)) or 'unknown architecture'}. Use a run of "
            "hafrm, a sequence classifier, or a causal model with `--head policy --reference MODEL`."
        )
    if not plain and config.num_labels != 1:
        raise ModelError(f"{model} has {config.num_labels} labels. Use a reward model, which has one.")
    load = partial(
        load_whole,
        AutoModelForSequenceClassification,
        kind=kind,
        trust_remote_code=trust_remote_code,
        num_labels=1,  # a config may lack it: the head's weight decides
    )
    adapters = adapter_source(model)
    if adapters is None:
        return load(model, dtype=dtype)
    own = head is not None and head.file == adapters.weights  # otherwise the base's
    optional = {head.name} if head is not None and own else set()
    base = load(adapters.base, dtype=dtype, optional=lambda loaded: optional)
    with loading("adapters", str(adapters.folder)):
        return attach_adapters(base, adapters, head=head.name.split(".", 1)[0] if head is not None and own else None)


def _unreadable(model: str, head: SavedHead) -> ModelError:
    return ModelError(
        f"The reward head of {model} can't be read: it {head.problem}. Use a reward model whose head is one linear "
        "layer with one label, or for which transformers has a class."
    )
