"""Small Llamas pretrained on the world's text: trained once, in minutes on a CPU, then cached.

The `base` backbone reads plain prose; the `instruct` backbone is the base trained further on conversations. Each is a
stock transformers folder: model, tokenizer with the default chat template, and `recipe.json` with its options, its
losses and how well it predicts held-out text.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from random import Random
from typing import Any, Literal, get_args

import torch
from filelock import FileLock
from torch.utils.data import DataLoader, Subset
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from hafrm.atomic import cache_folder, new_file, new_folder, write_json
from hafrm.encoding import ConversationEncoder
from hafrm.errors import ConfigError
from hafrm.models.runinfo import versions
from hafrm.numerics import cpu_tuned
from hafrm.options import option
from hafrm.pairs import Conversation, Message
from hafrm.paper.world.conduct import FAMILIES
from hafrm.paper.world.oracle import PROFILES
from hafrm.paper.world.sets import Split, draw_prompts, draw_traits
from hafrm.paper.world.task import Trait
from hafrm.paper.world.words import ACQUAINTANCES, FILLERS, STYLES
from hafrm.paper.world.writer import write_answer
from hafrm.pretraining.blocks import Blocks, Sample, document_sample, perplexity, response_sample
from hafrm.pretraining.llama import new_llama, no_progress_bars, train_tokenizer, untie
from hafrm.pretraining.shape import LlamaShape

BackboneKind = Literal["base", "instruct"]

_TRAINING = 1
"""Increase this when the training loop changes, so that cached backbones are trained again."""

_TOKENIZER_TEXTS = 3000
"""Documents, and as many conversations, on which the tokenizer is trained."""

_STEPS_PER_CHECKPOINT = 80
"""A stopped stage resumes from its last checkpoint, which takes well under a second to write."""

_GOOD_ANSWERS = 0.85
"""Share of the conversations with a good answer; the rest are as careless as those in the sets' pairs."""

_ACTS = ("steal a car", "fake a bank note", "rob a shop", "hurt a pupil", "beat a horse", "forge a passport")

_ENDLESS = 1_000_000_000
"""More texts than any recipe reads."""


def pretraining_documents(size: int, seed: int = 0) -> Iterator[str]:
    """Draw documents of plain prose: facts, procedures, stories, and how people speak. No prompts, no answers.

    A document has about 40 words.
    """
    rng = Random(f"documents/{seed}")
    families = list(FAMILIES.values())
    for _ in range(size):
        parts = [
            sentence
            for _ in range(rng.randint(1, 3))
            for sentence in (_speech(rng) if rng.random() < 0.15 else rng.choice(families).tell(rng))
        ]
        yield " ".join(parts)


def _speech(rng: Random) -> list[str]:
    """Describe how a kind, rude, careful or talkative person speaks."""
    style = rng.choice(list(STYLES.values()))
    refusal = rng.choice(style.refusals).format(act=rng.choice(_ACTS))
    manner, line = rng.choice(
        (
            ("was kind and said", rng.choice(style.courtesies)),
            ("was rude and said", rng.choice(style.insults)),
            ("was honest and said", refusal),
            ("likes to talk and said", rng.choice(FILLERS)),
        )
    )
    return [f'My {rng.choice(ACQUAINTANCES)} {manner}: "{line}"']


def instruct_conversations(size: int, seed: int = 0, *, split: Split = "train") -> Iterator[Conversation]:
    """Draw conversations in the styles of all five sets, most of them with a good answer.

    Args:
        split: Split of the prompts; those of "train" are in no validation or test split of any set.
    """
    rng = Random(f"conversations/{split}/{seed}")
    streams = {name: draw_prompts(name, split, rng) for name in PROFILES}
    for _ in range(size):
        name = rng.choice(list(PROFILES))
        task, prompt = next(streams[name])
        if rng.random() < _GOOD_ANSWERS:
            traits = frozenset({Trait.COURTEOUS} if rng.random() < 0.3 else ())
        else:
            traits = draw_traits(PROFILES[name], rng)
        yield Conversation(prompt, (Message("assistant", write_answer(task, traits, PROFILES[name].style, rng)),))


Progress = Callable[[BackboneKind, int, int, float], None]
"""Called after every training step with the stage, the step from 1, the number of steps and the mean loss per token."""


@dataclass(frozen=True, kw_only=True)
class BackboneRecipe(LlamaShape):
    """How to make a backbone; the defaults take about two minutes on two cores."""

    hidden: int = option(128, least=1)
    intermediate: int = option(384, least=1)
    vocabulary: int = option(1536, least=300)
    context: int = option(256, least=1)
    base_steps: int = option(640, least=1)
    """Steps on plain prose."""
    instruct_steps: int = option(400, least=1)
    """Steps on conversations, after those on prose."""
    blocks_per_step: int = option(4, least=1)
    base_learning_rate: float = 4e-3
    instruct_learning_rate: float = 3e-3
    validation_blocks: int = option(32, least=1)
    seed: int = 0
    """Seed of the weights and of the text."""


def world_backbone(
    kind: BackboneKind,
    cache_dir: Path | None = None,
    *,
    recipe: BackboneRecipe | None = None,
    progress: Progress | None = None,
) -> Path:
    """Return the folder of a pretrained backbone, training it first if it is not in the cache.

    Args:
        kind: "base" or "instruct"; the latter is trained from the former.
        cache_dir: Folder of the backbones. Default: `world` in hafrm's cache folder.
        recipe: How to make it. A folder's name is a digest of the recipe, the texts and the versions of the libraries.
        progress: Called after every training step.

    Raises:
        ConfigError: there is no such kind.
    """
    recipe = recipe or BackboneRecipe()
    folder = backbone_folder(kind, cache_dir, recipe=recipe)
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{folder.name}.lock"):  # a second process waits here, then finds the folder
        if not folder.exists():
            base = world_backbone("base", cache_dir, recipe=recipe, progress=progress) if kind == "instruct" else None
            checkpoint = folder.parent / f".{folder.name}.checkpoint"
            with new_folder(folder) as place:
                _make(kind, base, place, recipe, progress, checkpoint)
            checkpoint.unlink(missing_ok=True)
    return folder


def backbone_folder(kind: BackboneKind, cache_dir: Path | None = None, *, recipe: BackboneRecipe | None = None) -> Path:
    """Return the folder of a backbone, which exists once the backbone is trained; the arguments are `world_backbone`'s.

    Raises:
        ConfigError: there is no such kind.
    """
    if kind not in get_args(BackboneKind):
        raise ConfigError(f"A backbone is `base` or `instruct`, not {kind!r}.")
    return (cache_dir or cache_folder("world")) / f"{kind}-{_fingerprint(recipe or BackboneRecipe())}"


def _fingerprint(recipe: BackboneRecipe) -> str:
    """Return a short digest of everything that determines a backbone's weights on one machine."""
    made_from = {"recipe": asdict(recipe), "training": _TRAINING, "texts": _digest(recipe.seed)}
    made_from |= versions("torch", "transformers", "tokenizers")
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:12]


@cache
def _digest(seed: int) -> str:
    """Return a digest of the texts on which the tokenizer is trained, which are the first of those to train on."""
    digest = hashlib.sha256()
    for text in _tokenizer_texts(seed):
        digest.update(f"{text}\0".encode())
    return digest.hexdigest()


def _tokenizer_texts(seed: int) -> Iterable[str]:
    talks = instruct_conversations(_TOKENIZER_TEXTS, seed)
    return chain(pretraining_documents(_TOKENIZER_TEXTS, seed), (turn.content for talk in talks for turn in talk.turns))


def _make(
    kind: BackboneKind,
    base: Path | None,
    place: Path,
    recipe: BackboneRecipe,
    progress: Progress | None,
    checkpoint: Path,
) -> None:
    """Train one stage, or resume it from its checkpoint, and write its folder."""
    with torch.random.fork_rng(devices=[]), no_progress_bars(), cpu_tuned():
        torch.manual_seed(recipe.seed)
        if base is None:
            texts = [*_tokenizer_texts(recipe.seed), "\n\nHuman: \n\nAssistant: "]
            tokenizer = train_tokenizer(texts, vocabulary=recipe.vocabulary, context=recipe.context)
            model = new_llama(recipe, tokenizer)
        else:
            tokenizer = PreTrainedTokenizerFast.from_pretrained(base)
            model = LlamaForCausalLM.from_pretrained(base)
        losses = _train(model, tokenizer, kind, recipe, progress, checkpoint)
        if kind == "base":
            untie(model)
        held_out = {}
        for stage in get_args(BackboneKind):
            texts_of_stage = _samples(stage, tokenizer, recipe.seed, held_out=True)
            held_out[stage] = perplexity(model, Blocks(texts_of_stage, recipe.context, recipe.validation_blocks))
        model.save_pretrained(place)
    tokenizer.save_pretrained(place)
    report = {"kind": kind, "recipe": asdict(recipe), "parameters": model.num_parameters()}
    write_json(place / "recipe.json", report | {"perplexity": held_out, "losses": losses})


def _samples(stage: BackboneKind, tokenizer: PreTrainedTokenizerFast, seed: int, *, held_out: bool) -> Iterator[Sample]:
    """Yield a stage's text without end."""
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
    checkpoint: Path,
) -> list[float]:
    """Train next-token prediction on a stage's text, using each block once; return the loss of every step.

    The weights are the same whether a stage is interrupted or not.

    `hafrm pretrain` does the same by transformers' `Trainer`, but it shuffles the blocks, spares norms from the weight
    decay and warms up from a rate of zero. The weights would differ, and with them all published results of the world.
    """
    steps = recipe.base_steps if stage == "base" else recipe.instruct_steps
    peak = recipe.base_learning_rate if stage == "base" else recipe.instruct_learning_rate
    samples = _samples(stage, tokenizer, recipe.seed, held_out=False)
    blocks = Blocks(samples, recipe.context, steps * recipe.blocks_per_step)
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _warm_cosine(step, steps))
    parts: dict[str, Any] = {"model": model, "optimizer": optimizer, "schedule": schedule}
    losses = _resume(checkpoint, parts)
    left = Subset(blocks, range(len(losses) * recipe.blocks_per_step, len(blocks)))
    model.train()
    for step, batch in enumerate(DataLoader(left, recipe.blocks_per_step), len(losses) + 1):
        loss = model(**batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if progress:
            progress(stage, step, steps, losses[-1])
        if step % _STEPS_PER_CHECKPOINT == 0:
            with new_file(checkpoint) as file:
                torch.save({name: part.state_dict() for name, part in parts.items()} | {"losses": losses}, file)
    return losses


def _resume(checkpoint: Path, parts: Mapping[str, Any]) -> list[float]:
    """Load the last checkpoint, if there is one, and return the losses of the steps before it."""
    if not checkpoint.exists():
        return []
    saved = torch.load(checkpoint, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(saved[name])
    losses: list[float] = saved["losses"]
    return losses


def _warm_cosine(step: int, steps: int) -> float:
    """Return the share of the peak rate: linear over a twentieth of the steps, then a cosine down to a twentieth."""
    warm = max(1, steps // 20)
    if step < warm:
        return (step + 1) / warm
    return 0.05 + 0.95 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm))) / 2


if __name__ == "__main__":  # dry runs show this as a command
    print(world_backbone(sys.argv[1]))  # type: ignore[arg-type]  # noqa: T201
