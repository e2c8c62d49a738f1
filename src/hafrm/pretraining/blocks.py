"""Blocks of tokens: documents and conversations, concatenated and cut into equal lengths without padding.

Shape letters: B blocks, T tokens per block.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from hafrm.encoding import ConversationEncoder
from hafrm.pairs import Conversation

IGNORED = -100
"""Label of tokens that are not predicted, as in transformers."""

Sample = tuple[Sequence[int], Sequence[int]]
"""The token ids of a text, and the labels to predict."""


def document_sample(document: str, tokenizer: PreTrainedTokenizerFast) -> Sample:
    """Encode a document between the tokenizer's BOS and EOS tokens, if it has them; every token is predicted."""
    text = f"{tokenizer.bos_token or ''}{document}{tokenizer.eos_token or ''}"
    ids = tokenizer.encode(text, add_special_tokens=False, verbose=False)
    return ids, ids


def response_sample(talk: Conversation, encoder: ConversationEncoder) -> Sample:
    """Encode a conversation; only its response is predicted.

    Raises:
        OverlongError: it is longer than the encoder's limit.
        DataError: the tokenizer's chat template refuses the conversation.
    """
    group = encoder.encode(talk.prompt, [talk.response])
    (response,) = group.responses
    return group.prompt + response, (IGNORED,) * len(group.prompt) + response


class Blocks(Dataset[dict[str, Tensor]]):
    """Concatenated samples, cut into blocks; an incomplete last block is dropped.

    Args:
        samples: The texts.
        length: Tokens per block.
        count: Maximum number of blocks; None for as many as the samples fill.
    """

    def __init__(self, samples: Iterable[Sample], length: int, count: int | None = None) -> None:
        ids, labels = array("i"), array("i")  # four bytes per token; a list would need ten times as much
        for more_ids, more_labels in samples:
            ids.extend(more_ids)
            labels.extend(more_labels)
            if count is not None and len(ids) >= count * length:
                break
        whole = min(len(ids) // length, len(ids) if count is None else count)
        self.ids, self.labels = (
            torch.from_numpy(np.array(row[: whole * length], dtype=np.int32)).view(whole, length)
            for row in (ids, labels)
        )

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, place: int) -> dict[str, Tensor]:
        return {"input_ids": self.ids[place].long(), "labels": self.labels[place].long()}


@torch.no_grad()
def perplexity(model: PreTrainedModel, blocks: Blocks) -> float:
    """Compute the perplexity over all predicted tokens of the blocks; NaN if there are none."""
    model.eval()
    nats, tokens = 0.0, 0
    for batch in DataLoader(blocks, 8):
        logits = model(input_ids=batch["input_ids"].to(model.device), use_cache=False).logits[:, :-1]
        labels = batch["labels"][:, 1:].to(model.device)
        nats += float(cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), reduction="sum"))
        tokens += int((labels != IGNORED).sum())
    return math.exp(nats / tokens) if tokens else math.nan
