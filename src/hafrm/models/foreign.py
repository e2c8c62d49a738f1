"""Loads reward models that hafrm did not train as stock sequence classifiers, with their own heads."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch
from peft import PeftModel
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from hafrm.errors import ModelError
from hafrm.models.adapters import lay_on
from hafrm.models.classifiers import SCORE, stock_classifier
from hafrm.models.heads import SavedHead, architectures, unknown_head
from hafrm.models.runinfo import require_as_saved
from hafrm.models.sources import adapter_source, root_model
from hafrm.models.stock import load_whole, loading
from hafrm.models.tokenizers import resize_embeddings


def has_stock_class(model: str, head: SavedHead, *, trust_remote_code: bool) -> bool:
    """Return whether a stock classifier can load this head: it has the same name, or no plain linear form.

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
    if width is not None and head.weight.shape[1] != width:
        raise ModelError(
            f"The reward head of {model} does not fit its backbone: {head.name} has shape {list(head.weight.shape)}, "
            f"but hidden states have {width} values. Use the checkpoint in which the head was trained."
        )
    return stock is not None and stock.head == head.name and not head.bias and not head.flat


def pad_of_classifier(classifier: PreTrainedModel | PeftModel, tokenizer: Any) -> int:
    """Return the pad token by which a stock classifier finds the last token; set one if it has none.

    A pad token that is also the end-of-sequence token is kept: the model was then trained to be read at the token
    before it, like TRL's models whose tokenizer had no pad token.
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
    require_as_saved(model)
    root = root_model(model)
    with loading(kind, root):
        config = AutoConfig.from_pretrained(root, trust_remote_code=trust_remote_code)
    classes = architectures(model)
    plain = head is not None and head.weight is not None
    if not plain and not any("SequenceClassification" in name for name in classes):
        if head is not None:
            raise _unreadable(model, head)
        if found := unknown_head(model):
            raise ModelError(
                f"{model} has {found}, which looks like a reward head but has no known form. Rename it to {SCORE} to "
                "score with it."
            )
        raise ModelError(
            f"{model} is not a reward model: {', '.join(classes) or 'unknown architecture'}. Use a run of "
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
        return lay_on(base, adapters, head=head.name.split(".", 1)[0] if head is not None and own else None)


def _unreadable(model: str, head: SavedHead) -> ModelError:
    return ModelError(
        f"The reward head of {model} can't be read: it {head.problem}. Use a reward model whose head is one linear "
        "layer with one label, or for which transformers has a class."
    )
