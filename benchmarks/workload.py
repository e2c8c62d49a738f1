"""Workloads: shapes of models, and batches with the lengths of real preference pairs.

Token ids are those of a byte-level BPE trained on English text (`../shared/text`, 32,000 tokens, made once and cached),
so that lengths are those of a real tokenizer. Weights are random: a step costs the same whatever they are.
"""

from __future__ import annotations

import gzip
import json
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hafrm.atomic import cache_folder, new_folder
from hafrm.data import DataOptions, encode_pairs, load_pairs
from hafrm.encoding import ConversationEncoder, TokenGroup
from hafrm.models.checkpoints import save_run
from hafrm.models.hybrid import HybridModel, new_reward_head
from hafrm.models.runinfo import RunInfo
from hafrm.templates import DEFAULT_CHAT_TEMPLATE

__all__ = [
    "SHAPES",
    "Shape",
    "draw_batches",
    "model_folder",
    "new_causal_lm",
    "random_group",
    "real_groups",
    "real_tokenizer",
]

SHARED = Path(__file__).resolve().parents[2] / "shared"
VOCABULARY = 32_000
_SPECIALS = ("<unk>", "<s>", "</s>", "<pad>")
_TEXTS = 6_000  # documents that the tokenizer is trained on


@dataclass(frozen=True)
class Shape:
    """A Llama's size."""

    hidden: int
    layers: int
    vocabulary: int
    heads: int = 8

    @property
    def intermediate(self) -> int:
        """Width of the gated feed-forward layers: Llama's 8/3 of the hidden width, up to a multiple of 32."""
        return -(-self.hidden * 8 // 3 // 32) * 32

    @property
    def backbone_weights(self) -> int:
        """Weights of the layers' matrices, through which every token goes."""
        return self.layers * (4 * self.hidden**2 + 3 * self.hidden * self.intermediate)


SHAPES = {
    "small": Shape(hidden=512, layers=8, vocabulary=32_768),
    "tiny": Shape(hidden=64, layers=2, vocabulary=32_768, heads=2),
    "smollm2-135m": Shape(hidden=576, layers=30, vocabulary=49_152, heads=9),
    "gemma-3-270m": Shape(hidden=640, layers=18, vocabulary=262_144, heads=4),
}
"""`small` is used for the figures in docs/results; `tiny` is for trying out a benchmark."""


def new_causal_lm(shape: Shape, *, seed: int = 0) -> LlamaForCausalLM:
    """A random Llama in float32."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=4096,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
    )
    return LlamaForCausalLM(config)


@contextmanager
def model_folder(name: str) -> Iterator[str]:
    """A model by its folder, or a new one of random weights by the name of its shape, as `hafrm train` leaves it."""
    if name not in SHAPES:
        yield name
        return
    with tempfile.TemporaryDirectory() as place:
        causal_lm, tokenizer = new_causal_lm(SHAPES[name]), real_tokenizer()
        head = new_reward_head(causal_lm.config.hidden_size, init="normal", seed=0, dtype=causal_lm.dtype)
        info = RunInfo(
            method="baseline",
            base_model=name,
            reward_weight=1.0,
            policy_ratio=0.0,
            policy_loss="dpo",
            beta=0.1,
            max_length=512,
            overlong="drop",
            pad_token=tokenizer.pad_token,
        )
        save_run(HybridModel(causal_lm, head), tokenizer, info, Path(place) / name)
        yield str(Path(place) / name)


def real_tokenizer() -> Any:
    """Return the BPE tokenizer, which is trained if the cache has none (half a minute)."""
    folder = cache_folder("benchmarks") / f"bpe-{VOCABULARY}"
    if not folder.exists():
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=list(_SPECIALS),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(_texts(), trainer)
        fast = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
        )
        fast.chat_template = DEFAULT_CHAT_TEMPLATE
        with new_folder(folder) as place:
            fast.save_pretrained(place)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def _texts() -> Iterator[str]:
    for name in ("instruct", "prose"):
        with gzip.open(SHARED / "text" / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
            for _, line in zip(range(_TEXTS // 2), file, strict=False):
                row = json.loads(line)
                yield row["text"] if name == "prose" else "\n".join(m["content"] for m in row["messages"])


def real_groups(data: str, *, max_length: int = 512) -> list[TokenGroup]:
    """Return the training pairs of a set of `../shared/data`, encoded as `hafrm train` does."""
    path = SHARED / "data" / f"{data}-train.jsonl.gz"
    options = DataOptions(max_length=max_length)
    encoder = ConversationEncoder(real_tokenizer(), max_length, options.overlong)
    return encode_pairs(load_pairs(str(path), options=options).pairs, encoder, options)[:]


def draw_batches(
    groups: list[TokenGroup], *, pairs: int, batches: int, grouped: bool = False
) -> list[list[TokenGroup]]:
    """Draw batches of pairs.

    Args:
        groups: All pairs.
        pairs: Pairs a batch.
        batches: How many.
        grouped: Draw each batch from pairs of similar length, as length grouping does: a batch is a run of neighbours,
        sorted by the longer sequence. Over all batches the lengths are those of the data in either case.
    """
    generator = random.Random(0)
    if not grouped:
        drawn = generator.sample(groups, pairs * batches)
        return [drawn[start : start + pairs] for start in range(0, len(drawn), pairs)]
    ordered = sorted(groups, key=lambda group: max(group.lengths))
    starts = [round((i + 0.5) * (len(ordered) - pairs) / batches) for i in range(batches)]
    return [ordered[start : start + pairs] for start in starts]


def random_group(prompt: int, *responses: int, seed: int = 0, vocabulary: int = VOCABULARY) -> TokenGroup:
    """A group of given lengths."""
    generator = random.Random(seed)

    def tokens(length: int) -> tuple[int, ...]:
        return tuple(generator.randrange(len(_SPECIALS), vocabulary) for _ in range(length))

    return TokenGroup(tokens(prompt), tuple(tokens(length) for length in responses))
