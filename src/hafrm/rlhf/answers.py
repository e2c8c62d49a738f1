"""Generate the answers of a run's checkpoints to held-out prompts, and measure their KL from the reference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from hafrm.encoding import TokenGroup
from hafrm.models.generating import prompt_ids
from hafrm.models.tokenizers import load_tokenizer
from hafrm.pairs import Prompt
from hafrm.rlhf.checkpoints import checkpoint_folders, restore_policy
from hafrm.rlhf.objectives import kl_estimates
from hafrm.rlhf.options import RlhfConfig
from hafrm.rlhf.policy import Policy, new_policy, ready_policy, sample_responses

_AT_ONCE = 32
"""Prompts per batch. The drawn responses depend on it."""


@dataclass(frozen=True)
class Answers:
    """One checkpoint's answers, one per prompt, in order."""

    step: int
    texts: list[str]
    kl: list[float]
    """Each response's log-ratio to the reference, in nats: their mean estimates KL(policy || reference)."""
    lengths: list[int]
    """In tokens."""

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> Answers:
        """Restore the answers from `as_dict`."""
        return cls(**value)


def checkpoint_answers(config: RlhfConfig, prompts: Sequence[Prompt], *, seed: int) -> Iterator[Answers]:
    """Yield each checkpoint's answers, starting with those of the initial model (step 0).

    All checkpoints use the same random numbers, so that their answers differ as little as possible. The program's own
    random state is left unchanged.

    Args:
        config: The run's options.
        prompts: The prompts to answer.
        seed: Seed of the draws.
    """
    tokenizer = load_tokenizer(config.model, trust_remote_code=config.trust_remote_code)
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
