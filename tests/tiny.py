"""Models and tokenizers of a few thousand parameters, for tests: real architectures with random weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from hafrm.data.tables import Account, PairTables, TableWriter
from hafrm.encoding import TokenGroup
from hafrm.pairs import Message, PreferencePair, Prompt
from hafrm.templates import DEFAULT_CHAT_TEMPLATE

VOCABULARY = 260  # 256 bytes and four special tokens

SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 3,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""Config values for small models, for families with additional fields."""

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": None},
    "phi": {},
    "qwen2": {"tie_word_embeddings": True},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256},
    "gpt_neox": {},
    "gemma2": {"head_dim": 8, "query_pre_attn_scalar": 8, "final_logit_softcapping": 3.0, "sliding_window": 64},
    "cohere": {"logit_scale": 0.25},
    "granite": {"logits_scaling": 4.0},
}
"""Config values by model type: those of the paper and those whose logits, norms or embeddings differ."""


def tiny_tokenizer(*, template: str | None = DEFAULT_CHAT_TEMPLATE, pad: str | None = "<pad>") -> Any:
    """A byte-level tokenizer: every text has tokens, no file is needed."""
    specials = ["<unk>", "<s>", "</s>", "<pad>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*specials, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token=pad
    )
    fast.chat_template = template
    return fast


def tiny_lm(
    name: str = "llama", *, seed: int = 0, dtype: torch.dtype = torch.float32, **values: Any
) -> PreTrainedModel:
    """A random causal LM of a real architecture, about 20k parameters."""
    base: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 3,
        "max_position_embeddings": 256,
        "attn_implementation": "eager" if name == "gemma2" else "sdpa",
    }
    if name != "gpt2":
        base |= {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    if name not in ("gpt2", "gpt_neox", "phi"):
        base |= {"num_key_value_heads": 2}
    torch.manual_seed(seed)
    config = AutoConfig.for_model(name, **(base | ARCHITECTURES[name] | values))
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    with torch.no_grad():  # weights of a size that makes attention and rewards differ between texts
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5)
    return model.eval()


def save_tiny(folder: Path, name: str = "llama", *, tokenizer: Any = None, **values: Any) -> Path:
    """Write a tiny causal LM with its tokenizer, like a user's model on disk."""
    tiny_lm(name, **values).save_pretrained(folder)
    (tokenizer or tiny_tokenizer()).save_pretrained(folder)
    return folder


def pair(prompt: str, chosen: str, rejected: str, *, row: int = 1) -> PreferencePair:
    """A pair of plain strings."""
    return PreferencePair(
        prompt=Prompt((Message("user", prompt),)),
        chosen=(Message("assistant", chosen),),
        rejected=(Message("assistant", rejected),),
        source="test",
        row=row,
    )


def some_pairs(count: int = 12) -> list[PreferencePair]:
    """Pairs of differing lengths; the better one says yes."""
    return [
        pair(f"question {i} " + "why " * (i % 4), "yes " * (1 + i % 3) + str(i), "no " * (1 + i % 5), row=i + 1)
        for i in range(count)
    ]


def tables_of(pairs: Sequence[PreferencePair], groups: Sequence[TokenGroup]) -> PairTables:
    """Create the tables of pairs that were encoded to these groups."""
    writer = TableWriter(None, 2**17)
    for index, (pair, group) in enumerate(zip(pairs, groups, strict=True)):
        writer.add(pair, group, index)
    return writer.finish(Account())
