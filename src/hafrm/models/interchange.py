"""Additions to exported checkpoints for programs that read other forms than transformers 5 writes.

- transformers 4 reads `rope_theta` where 5 writes `rope_parameters`, and would use its default without a warning; it
  also knows neither the tokenizer class `TokenizersBackend` nor its list of extra special tokens.
- sentence-transformers' CrossEncoder applies a sigmoid unless the config names another activation.
- LLaMA-Factory reads reward heads from `value_head.safetensors`. An index keeps vLLM and SGLang, which load every
  safetensors file that no index excludes, from loading it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from hafrm import atomic
from hafrm.models.checksums import INDEX_FILE, WHOLE_FILE
from hafrm.models.sources import read_config

VALUE_HEAD = "value_head.safetensors"
"""LLaMA-Factory's file of a reward head."""


def add_older_names(folder: Path) -> None:
    """Add what transformers 4 reads to the config and the tokenizer's config in a folder."""
    path = folder / "config.json"
    atomic.write_json(path, _with_rope(read_config(path)))
    path = folder / "tokenizer_config.json"
    tokenizer = read_config(path)
    if tokenizer.get("tokenizer_class") == "TokenizersBackend":
        tokenizer["tokenizer_class"] = "PreTrainedTokenizerFast"
        # By default transformers 4 adds token types, which most causal models don't accept.
        tokenizer.setdefault("model_input_names", ["input_ids", "attention_mask"])
    if isinstance(tokenizer.get("extra_special_tokens"), list):
        tokenizer["additional_special_tokens"] = tokenizer.pop("extra_special_tokens")
    atomic.write_json(path, tokenizer)


def add_plain_activation(folder: Path) -> None:
    """Tell sentence-transformers to return the logit of the classifier in a folder."""
    path = folder / "config.json"
    plain = {"activation_fn": "torch.nn.modules.linear.Identity"}
    atomic.write_json(path, read_config(path) | {"sentence_transformers": plain})


def add_value_head(folder: Path, weight: Tensor) -> None:
    """Write a reward head's weight, [1, H], in LLaMA-Factory's form, and exclude it from the model's index."""
    head = {"v_head.summary.weight": weight.float().contiguous(), "v_head.summary.bias": torch.zeros(1)}
    save_file(head, folder / VALUE_HEAD, metadata={"format": "pt"})
    whole = folder / WHOLE_FILE
    if whole.is_file():
        with safe_open(whole, "pt") as file:
            names = dict.fromkeys(file.keys(), WHOLE_FILE)
        index = {"metadata": {"total_size": whole.stat().st_size}, "weight_map": names}
        atomic.write_json(folder / INDEX_FILE, index)


def _with_rope(config: dict[str, Any]) -> dict[str, Any]:
    """Add the older names of rotary embeddings to a config and its nested ones."""
    config = {name: _with_rope(value) if isinstance(value, dict) else value for name, value in config.items()}
    rope = config.get("rope_parameters")
    if not isinstance(rope, dict):
        return config
    local = rope.get("sliding_attention")
    main = rope.get("full_attention", rope)
    if "rope_theta" not in main:
        return config
    added = {"rope_theta": main["rope_theta"]}
    if isinstance(local, dict) and "rope_theta" in local:
        added["rope_local_base_freq"] = local["rope_theta"]
    if "partial_rotary_factor" in main:
        added["partial_rotary_factor"] = main["partial_rotary_factor"]
    if str(config.get("model_type")).startswith("gpt_neox"):
        added |= {"rotary_emb_base": main["rope_theta"], "rotary_pct": main.get("partial_rotary_factor", 1.0)}
    if main.get("rope_type", "default") != "default":
        added["rope_scaling"] = {name: main[name] for name in main.keys() - {"rope_theta", "partial_rotary_factor"}}
    return added | config
