"""A policy's checkpoints, which stock transformers loads, and the responses of each to held-out prompts.

A folder contains the whole causal LM, or a LoRA run's adapters in PEFT's format, which `AutoModelForCausalLM` loads
with their base, and `checksums.json`. Only PPO's newest checkpoint has a `trainer.pt` (optimizer, schedule, KL
coefficient, value head; an archive with its own checksums), from which training resumes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file

from hafrm import atomic
from hafrm.encoding import TokenGroup
from hafrm.errors import TrainingError, first_line
from hafrm.models.checkpoints import save_merged, writing
from hafrm.models.checksums import ADAPTER_FILE, require_listed, save_checksums
from hafrm.models.generating import prompt_ids
from hafrm.models.hybrid import HybridModel
from hafrm.models.options import chat_template
from hafrm.models.runinfo import checkpoint_folders
from hafrm.models.stock import load_adapters, loading, quiet_transformers
from hafrm.models.tokenizers import load_tokenizer
from hafrm.pairs import Prompt
from hafrm.rlhf.objectives import kl_estimates
from hafrm.rlhf.options import RlhfConfig
from hafrm.rlhf.policy import Policy, new_policy, ready_policy, sample_responses
from hafrm.training.resuming import require_whole_archives, without_checkpoint

STATE_FILE = "trainer.pt"

_AT_ONCE = 32
"""Prompts per batch. The drawn responses depend on it."""


def save_checkpoint(model: HybridModel, tokenizer: Any, state: dict[str, Any], folder: Path) -> None:
    """Write a checkpoint, then delete the trainer state of older ones.

    Raises:
        UnwritableError: the disk is full, or the folder is not writable.
    """
    with writing(folder), atomic.new_folder(folder) as place:
        with quiet_transformers():
            if model.adapted:
                cast(Any, model.causal_lm).save_pretrained(place, save_embedding_layers=False)
            else:
                model.stock_lm.save_pretrained(place)
        tokenizer.save_pretrained(place)
        save_checksums(place)
        torch.save(state | {"value_head": model.score.state_dict()}, place / STATE_FILE)
    for other in checkpoint_folders(folder.parent).values():
        if other != folder:
            (other / STATE_FILE).unlink(missing_ok=True)


def save_policy(model: HybridModel, tokenizer: Any, folder: Path) -> None:
    """Write only the policy, adapters merged, as a stock causal LM; its config is written last.

    Raises:
        UnwritableError: the disk is full, or the folder is not writable.
    """
    stock = model.stock_lm
    with writing(folder), atomic.new_files(folder, last="config.json") as place:
        if model.adapted:
            save_merged(stock, place)
        else:
            with quiet_transformers():
                stock.save_pretrained(place)
        tokenizer.save_pretrained(place)
        save_checksums(place)


def newest_checkpoint(run: Path) -> tuple[int, Path] | None:
    """Return the newest checkpoint from which a run can resume, as its step and folder; None if there is none."""
    whole = {step: path for step, path in checkpoint_folders(run).items() if (path / STATE_FILE).is_file()}
    return max(whole.items()) if whole else None


def require_as_saved(folder: Path) -> None:
    """Raise DamagedError if the files of a checkpoint are not those that were saved."""
    require_whole_archives(folder)
    require_listed(folder, remedy=without_checkpoint(folder))


def restore(model: HybridModel, folder: Path) -> dict[str, Any]:
    """Load a checkpoint's weights into a model of the same shape, in place; return the state for `PpoTrainer`.

    Raises:
        DamagedError: a file is not what was saved.
        TrainingError: the state can't be read.
        ModelError: the weights can't be read.
    """
    require_as_saved(folder)
    try:
        state: dict[str, Any] = torch.load(folder / STATE_FILE, map_location=model.score.weight.device)
    except Exception as error:  # torch raises pickle's, zip's and other errors for a damaged file
        raise TrainingError(
            f"{folder / STATE_FILE} can't be read ({first_line(error)}). Remove {folder} and restart with "
            "--overwrite, or choose another --out."
        ) from error
    _load_policy(model, folder)
    model.score.load_state_dict(state.pop("value_head"))
    return state


def restore_policy(model: HybridModel, folder: Path) -> None:
    """Load a checkpoint's policy into a model of the same shape, in place; the value head is unchanged.

    Raises:
        ModelError: the weights can't be read, or are not what was saved.
    """
    require_listed(folder, remedy="Restore it from a copy, or train the policy again")
    _load_policy(model, folder)


def _load_policy(model: HybridModel, folder: Path) -> None:
    with loading("checkpoint", str(folder)):
        if model.adapted:
            load_adapters(model.causal_lm, load_file(folder / ADAPTER_FILE), folder, "the model")
        else:
            saved = type(model.stock_lm).from_pretrained(folder, dtype=model.stock_lm.dtype)
            model.stock_lm.load_state_dict(saved.state_dict())


@dataclass(frozen=True)
class Answers:
    """A checkpoint's responses, one per prompt, in order."""

    step: int
    texts: list[str]
    kl: list[float]
    """Each response's log-ratio to the reference, in nats: their mean estimates KL(policy || reference)."""
    lengths: list[int]
    """In tokens."""


def checkpoint_answers(config: RlhfConfig, prompts: Sequence[Prompt], *, seed: int) -> Iterator[Answers]:
    """Yield each checkpoint's responses, starting with those of the initial model (step 0).

    All checkpoints use the same random numbers, so that their responses differ as little as possible. The random state
    of the program is left unchanged.
    """
    template = chat_template(config.chat_template, "chat_template")
    tokenizer = load_tokenizer(config.model, trust_remote_code=config.trust_remote_code, instead=template)
    model = new_policy(config, tokenizer)
    policy = ready_policy(config, model, tokenizer)
    ids = [prompt_ids(tokenizer, prompt) for prompt in prompts]
    folders: dict[int, Path | None] = {0: None, **checkpoint_folders(Path(config.out))}
    for step, folder in folders.items():
        if folder is not None:
            restore_policy(model, folder)
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(seed)
            yield _answers(step, policy, config, tokenizer, ids)


def _answers(step: int, policy: Policy, config: RlhfConfig, tokenizer: Any, ids: Sequence[tuple[int, ...]]) -> Answers:
    texts: list[str] = []
    kl: list[float] = []
    lengths: list[int] = []
    for start in range(0, len(ids), _AT_ONCE):
        part = ids[start : start + _AT_ONCE]
        responses = sample_responses(policy.model.causal_lm, tokenizer, part, config.sampling)
        groups = [TokenGroup(prompt, (response.ids,)) for prompt, response in zip(part, responses, strict=True)]
        measured = policy.measure(groups)
        of_tokens = kl_estimates(measured.log_probs, measured.reference)
        sizes = [len(response.ids) for response in responses]
        kl += [each.sum().item() for each in of_tokens.split(sizes)]
        texts += [response.text for response in responses]
        lengths += sizes
    return Answers(step, texts, kl, lengths)
