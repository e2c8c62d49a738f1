"""Small Llamas pretrained on the world's text: trained once, in minutes on a CPU, then cached.

The `base` backbone has read plain prose; the `instruct` backbone is the base trained on with conversations. Each is a
stock transformers folder: model, tokenizer with the default chat template, and `recipe.json` with what it was made by
and how well it predicts held-out text.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Protocol, get_args

import torch
from filelock import FileLock
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from hafrm.atomic import cache_folder, new_folder, write_json
from hafrm.encoding import DEFAULT_CHAT_TEMPLATE, ConversationEncoder
from hafrm.errors import ConfigError
from hafrm.numerics import cpu_tuned
from hafrm.world.corpus import instruct_conversations, pretraining_documents

__all__ = ["BackboneKind", "BackboneRecipe", "Progress", "world_backbone"]

BackboneKind = Literal["base", "instruct"]

_IGNORED = -100
"""The label of tokens that are not to be predicted, as transformers has it."""

_ENDLESS = 1_000_000_000
"""More text than any recipe reads."""


class Progress(Protocol):
    """Hears of every training step."""

    def __call__(self, stage: BackboneKind, step: int, steps: int, loss: float) -> None:
        """`step` of `steps` is done, counted from 1, with this mean loss per token."""
        ...


@dataclass(frozen=True, kw_only=True)
class BackboneRecipe:
    """How a backbone is made; the defaults take about two minutes on two cores."""

    hidden: int = 128
    """Width of the hidden states."""
    layers: int = 4
    heads: int = 4
    intermediate: int = 384
    """Width of the gated feed-forward layers."""
    vocabulary: int = 1536
    """Tokens of the byte-level BPE, the four special ones included."""
    context: int = 256
    """Tokens of a training block and the most that the model takes."""
    base_steps: int = 640
    """Steps on plain prose."""
    instruct_steps: int = 400
    """Steps on conversations, after those on prose."""
    blocks_per_step: int = 4
    base_learning_rate: float = 4e-3
    instruct_learning_rate: float = 3e-3
    validation_blocks: int = 32
    seed: int = 0
    """Seed of the weights and of the text."""

    def __post_init__(self) -> None:
        if self.hidden % (2 * self.heads):
            raise ConfigError(f"hidden must be a multiple of twice the heads, got {self.hidden} and {self.heads}")
        if self.vocabulary < 300:
            raise ConfigError(f"vocabulary must hold 256 bytes, 4 special tokens and some words, got {self.vocabulary}")
        for name in ("base_steps", "instruct_steps", "blocks_per_step", "validation_blocks"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")


def world_backbone(
    kind: BackboneKind,
    cache_dir: Path | None = None,
    *,
    recipe: BackboneRecipe | None = None,
    progress: Progress | None = None,
) -> Path:
    """The folder of a pretrained backbone; trains it first where the cache has none.

    Args:
        kind: "base" or "instruct". Making the latter makes the former on the way.
        cache_dir: Where backbones are kept. Default: `world` in hafrm's cache folder.
        recipe: How to make it. A folder is found again by its recipe and the source code of this package.
        progress: Called after every training step.

    Raises:
        ConfigError: there is no such kind.
    """
    if kind not in get_args(BackboneKind):
        raise ConfigError(f"A backbone is `base` or `instruct`, not {kind!r}.")
    recipe = recipe or BackboneRecipe()
    cache = cache_dir or cache_folder("world")
    folder = cache / f"{kind}-{_fingerprint(recipe)}"
    if folder.exists():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f".{folder.name}.lock"):  # a second process waits here, then finds the folder
        if not folder.exists():
            start = world_backbone("base", cache, recipe=recipe, progress=progress) if kind == "instruct" else None
            with new_folder(folder) as place:
                _make(kind, start, place, recipe, progress)
    return folder


def _fingerprint(recipe: BackboneRecipe) -> str:
    """Short digest of the recipe and of the package's source: the text that a backbone learns follows from both."""
    digest = hashlib.sha256(json.dumps(asdict(recipe), sort_keys=True).encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _make(
    kind: BackboneKind, start: Path | None, place: Path, recipe: BackboneRecipe, progress: Progress | None
) -> None:
    """Train one stage and write its folder."""
    with torch.random.fork_rng(devices=[]), _no_progress_bars(), cpu_tuned():
        torch.manual_seed(recipe.seed)
        if start is None:
            tokenizer = _train_tokenizer(recipe)
            model = LlamaForCausalLM(_config(recipe, tokenizer))
        else:
            tokenizer = PreTrainedTokenizerFast.from_pretrained(start)
            model = LlamaForCausalLM.from_pretrained(start)
        losses = _train(model, tokenizer, kind, recipe, progress)
        if kind == "base":
            _untie(model)
        held_out = {stage: _perplexity(model, tokenizer, stage, recipe) for stage in get_args(BackboneKind)}
        model.save_pretrained(place)
    tokenizer.save_pretrained(place)
    report = {"kind": kind, "recipe": asdict(recipe), "parameters": model.num_parameters()}
    write_json(place / "recipe.json", report | {"perplexity": held_out, "losses": losses})


@contextlib.contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Keep transformers' bars for loading and saving away: these models are small."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _config(recipe: BackboneRecipe, tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        intermediate_size=recipe.intermediate,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=recipe.context,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _untie(model: LlamaForCausalLM) -> None:
    """Give the model a policy head of its own, equal to its embeddings so far.

    Tied, a small model learns in far fewer steps to repeat what a prompt is about; untied, training the policy head
    leaves the backbone alone, as in the paper's models.
    """
    model.config.tie_word_embeddings = False
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())


def _train_tokenizer(recipe: BackboneRecipe) -> PreTrainedTokenizerFast:
    """A byte-level BPE of the world's prose and conversations."""
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary,
        special_tokens=list(special.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    talk = (
        turn.content
        for conversation in instruct_conversations(3000, recipe.seed)
        for turn in (*conversation.prompt, *conversation.response)
    )
    bpe.train_from_iterator([*pretraining_documents(3000, recipe.seed), *talk, "\n\nHuman: \n\nAssistant: "], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, model_max_length=recipe.context, **special)
    tokenizer.chat_template = DEFAULT_CHAT_TEMPLATE
    return tokenizer


def _samples(
    stage: BackboneKind, tokenizer: PreTrainedTokenizerFast, seed: int, *, held_out: bool
) -> Iterator[tuple[Sequence[int], Sequence[int]]]:
    """A stage's text without end: token ids, and the labels to predict, which leave prompts out."""
    if stage == "base":
        for document in pretraining_documents(_ENDLESS, -1 - seed if held_out else seed):
            ids = tokenizer.encode(f"{tokenizer.bos_token}{document}{tokenizer.eos_token}", add_special_tokens=False)
            yield ids, ids
    else:
        encoder = ConversationEncoder(tokenizer, max_length=_ENDLESS)
        for talk in instruct_conversations(_ENDLESS, seed, split="validation" if held_out else "train"):
            group = encoder.encode(talk.prompt, [talk.response])
            (response,) = group.responses
            yield group.prompt + response, (_IGNORED,) * len(group.prompt) + response


def _blocks(samples: Iterable[tuple[Sequence[int], Sequence[int]]], count: int, length: int) -> TensorDataset:
    """Samples one after the other, cut into `count` blocks of `length`: ids and labels."""
    ids: list[int] = []
    labels: list[int] = []
    for more_ids, more_labels in samples:
        ids += more_ids
        labels += more_labels
        if len(ids) >= count * length:
            break
    return TensorDataset(*(torch.tensor(row[: count * length]).view(count, length) for row in (ids, labels)))


def _train(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    stage: BackboneKind,
    recipe: BackboneRecipe,
    progress: Progress | None,
) -> list[float]:
    """Predict the next token of a stage's text, each block seen once; returns the loss of every step."""
    steps = recipe.base_steps if stage == "base" else recipe.instruct_steps
    peak = recipe.base_learning_rate if stage == "base" else recipe.instruct_learning_rate
    samples = _samples(stage, tokenizer, recipe.seed, held_out=False)
    blocks = _blocks(samples, steps * recipe.blocks_per_step, recipe.context)
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _warm_cosine(step, steps))
    model.train()
    losses = []
    for step, (ids, labels) in enumerate(DataLoader(blocks, recipe.blocks_per_step), 1):
        loss = model(input_ids=ids, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if progress:
            progress(stage, step, steps, losses[-1])
    return losses


def _warm_cosine(step: int, steps: int) -> float:
    """A twentieth of the steps up from zero, then a cosine down to a twentieth of the peak."""
    warm = max(1, steps // 20)
    if step < warm:
        return (step + 1) / warm
    return 0.05 + 0.95 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm))) / 2


@torch.no_grad()
def _perplexity(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, stage: BackboneKind, recipe: BackboneRecipe
) -> float:
    """Perplexity per token on held-out text of a stage: of all tokens for prose, of responses for conversations."""
    model.eval()
    blocks = _blocks(_samples(stage, tokenizer, recipe.seed, held_out=True), recipe.validation_blocks, recipe.context)
    losses = [model(input_ids=ids, labels=labels, use_cache=False).loss for ids, labels in DataLoader(blocks, 8)]
    return float(torch.stack(losses).mean().exp())
