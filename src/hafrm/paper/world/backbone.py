"""Small Llamas pretrained on the world's text: trained once, in minutes on a CPU, then cached.

The `base` backbone has read plain prose; the `instruct` backbone is the base trained on with conversations. Each is a
stock transformers folder: model, tokenizer with the default chat template, and `recipe.json` with what it was made by
and how well it predicts held-out text.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Protocol, get_args

import torch
from filelock import FileLock
from torch.utils.data import DataLoader
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from hafrm import pretraining
from hafrm.atomic import cache_folder, new_folder, write_json
from hafrm.encoding import ConversationEncoder
from hafrm.errors import ConfigError
from hafrm.numerics import cpu_tuned
from hafrm.paper.world.corpus import instruct_conversations, pretraining_documents
from hafrm.pretraining import (
    Blocks,
    LlamaShape,
    Sample,
    document_sample,
    new_llama,
    no_progress_bars,
    perplexity,
    response_sample,
)

BackboneKind = Literal["base", "instruct"]

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
        _ = self.shape
        for name in ("base_steps", "instruct_steps", "blocks_per_step", "validation_blocks"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def shape(self) -> LlamaShape:
        """The model's shape.

        Raises:
            ConfigError: there is no such model.
        """
        return LlamaShape(
            hidden=self.hidden,
            layers=self.layers,
            heads=self.heads,
            intermediate=self.intermediate,
            vocabulary=self.vocabulary,
            context=self.context,
        )


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
    """Short digest of the recipe and of the source that a backbone and its text follow from."""
    digest = hashlib.sha256(json.dumps(asdict(recipe), sort_keys=True).encode())
    for package in (Path(__file__).parent, Path(pretraining.__file__).parent):
        for path in sorted(package.glob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _make(
    kind: BackboneKind, start: Path | None, place: Path, recipe: BackboneRecipe, progress: Progress | None
) -> None:
    """Train one stage and write its folder."""
    with torch.random.fork_rng(devices=[]), no_progress_bars(), cpu_tuned():
        torch.manual_seed(recipe.seed)
        if start is None:
            tokenizer = _train_tokenizer(recipe)
            model = new_llama(recipe.shape, tokenizer)
        else:
            tokenizer = PreTrainedTokenizerFast.from_pretrained(start)
            model = LlamaForCausalLM.from_pretrained(start)
        losses = _train(model, tokenizer, kind, recipe, progress)
        if kind == "base":
            pretraining.untie(model)
        held_out = {
            stage: perplexity(
                model,
                Blocks(
                    _samples(stage, tokenizer, recipe.seed, held_out=True), recipe.context, recipe.validation_blocks
                ),
            )
            for stage in get_args(BackboneKind)
        }
        model.save_pretrained(place)
    tokenizer.save_pretrained(place)
    report = {"kind": kind, "recipe": asdict(recipe), "parameters": model.num_parameters()}
    write_json(place / "recipe.json", report | {"perplexity": held_out, "losses": losses})


def _train_tokenizer(recipe: BackboneRecipe) -> PreTrainedTokenizerFast:
    """A tokenizer of the world's prose and conversations."""
    talk = (turn.content for conversation in instruct_conversations(3000, recipe.seed) for turn in conversation.turns)
    return pretraining.train_tokenizer(
        [*pretraining_documents(3000, recipe.seed), *talk, "\n\nHuman: \n\nAssistant: "],
        vocabulary=recipe.vocabulary,
        context=recipe.context,
    )


def _samples(stage: BackboneKind, tokenizer: PreTrainedTokenizerFast, seed: int, *, held_out: bool) -> Iterator[Sample]:
    """A stage's text without end."""
    if stage == "base":
        for document in pretraining_documents(_ENDLESS, -1 - seed if held_out else seed):
            yield document_sample(document, tokenizer)
    else:
        encoder = ConversationEncoder(tokenizer, max_length=_ENDLESS)
        for talk in instruct_conversations(_ENDLESS, seed, split="validation" if held_out else "train"):
            yield response_sample(talk, encoder)


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
    blocks = Blocks(samples, recipe.context, steps * recipe.blocks_per_step)
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _warm_cosine(step, steps))
    model.train()
    losses = []
    for step, batch in enumerate(DataLoader(blocks, recipe.blocks_per_step), 1):
        loss = model(**batch, use_cache=False).loss
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
