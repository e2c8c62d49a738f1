"""What a run's policy head writes, and how far it is from the model that training started from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch

from hafrm.encoding import ConversationEncoder, TokenGroup
from hafrm.models.checkpoints import restore_weights
from hafrm.models.generating import prompt_ids
from hafrm.models.layout import choose_layout
from hafrm.models.options import ScoreOptions, chat_template
from hafrm.models.starts import new_model
from hafrm.models.tokenizers import load_tokenizer
from hafrm.pairs import Message, Prompt
from hafrm.paper.probes import remembered
from hafrm.paper.probes.checkpoints import Checkpoint, run_checkpoints, sample_in_batches
from hafrm.paper.runs import Run
from hafrm.paper.scales import Job
from hafrm.rlhf.options import SamplingOptions
from hafrm.rlhf.policy import Policy
from hafrm.stats import Floats
from hafrm.training.manifest import read_manifest

_AT_ONCE = 128
"""Prompts per batch. The drawn responses depend on it."""


@dataclass(frozen=True)
class Written:
    """What a model writes: one value per prompt, in order."""

    step: int
    texts: list[str]
    kl: list[float]
    """KL divergence of each response's distributions from the starting model's, in nats; see `Policy.divergences`."""
    lengths: list[int]
    """In tokens."""
    surprisal: list[float]
    """Minus the log-prob of the prompt's known response, in nats; 0 if it exceeds the run's limit."""
    known_lengths: list[int]
    """Tokens of the known response."""


def written(job: Job, run: Run, prompts: Mapping[Prompt, Sequence[Message]], new_tokens: int) -> list[Written]:
    """Return what the starting model and a run's checkpoints write, each stored once it is sampled.

    All use the same random numbers, so that their responses differ as little as possible, and draw from the whole
    distribution, so that their divergence is that of the distributions they draw from.

    Args:
        run: A finished run that kept its checkpoints.
        prompts: The prompts, each with a known response.
        new_tokens: Maximum tokens of a response.
    """
    writer = _Writer(job, run, prompts, SamplingOptions(max_new_tokens=new_tokens, top_p=1.0))
    rows = [prompt.as_row() | {"known": [turn.as_dict() for turn in known]} for prompt, known in prompts.items()]
    start = {"model": job.model(run.backbone), "seed": run.seed, "new_tokens": new_tokens, "prompts": rows}
    trained = {"run": run.name, "started": (read_manifest(run.folder(job)) or {}).get("started")}
    folder = (job.root / "answers" / run.name).parent
    kept = [remembered(folder / f"start-seed{run.seed}", "written", start, partial(writer.write, None))]
    for each in run_checkpoints(run.folder(job)):
        depends_on = start | trained | {"step": each.step}
        kept.append(remembered(job.root / "answers" / run.name, "written", depends_on, partial(writer.write, each)))
    return [Written(**value) for value in kept]


class _Writer:
    """The policy heads of a run's checkpoints, in one model that is loaded when it is first needed."""

    def __init__(
        self, job: Job, run: Run, prompts: Mapping[Prompt, Sequence[Message]], sampling: SamplingOptions
    ) -> None:
        self.job, self.run, self.prompts, self.sampling = job, run, prompts, sampling

    @cached_property
    def tokenizer(self) -> Any:
        """The backbone's tokenizer, with the run's chat template."""
        backbone = self.job.scale.backbone(self.run.backbone)
        template = chat_template(backbone.chat_template, "chat_template")
        return load_tokenizer(self.job.model(self.run.backbone), instead=template)

    @cached_property
    def policy(self) -> Policy:
        """The starting model, which is also the reference."""
        name, lora = self.job.model(self.run.backbone), self.job.scale.backbone(self.run.backbone).lora
        model = new_model(name, self.tokenizer, lora=lora, head_init="zero", dtype=torch.float32)
        model.to(ScoreOptions().torch_device())
        return Policy(model, choose_layout(model, self.tokenizer.pad_token_id, max_length=self.job.scale.max_length))

    @cached_property
    def known(self) -> dict[int, TokenGroup]:
        """The known responses that fit, by the prompt's index."""
        encoder = ConversationEncoder(self.tokenizer, self.job.scale.max_length)
        outcomes = encoder.encode_many((prompt, [known]) for prompt, known in self.prompts.items())
        return {place: each for place, each in enumerate(outcomes) if isinstance(each, TokenGroup)}

    def write(self, checkpoint: Checkpoint | None) -> dict[str, Any]:
        """Sample a response to each prompt, by a checkpoint or the starting model; return `Written` as a dict."""
        if checkpoint is not None:
            restore_weights(self.policy.model, checkpoint.folder)
        ids = [prompt_ids(self.tokenizer, prompt) for prompt in self.prompts]
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(self.run.seed)
            drawn = sample_in_batches(self.policy.model.causal_lm, self.tokenizer, ids, self.sampling, _AT_ONCE)
        groups = [TokenGroup(prompt, (response.ids,)) for prompt, response in zip(ids, drawn, strict=True)]
        log_probs = dict(zip(self.known, self.policy.log_probs(list(self.known.values())), strict=True))
        found = Written(
            step=0 if checkpoint is None else checkpoint.step,
            texts=[response.text for response in drawn],
            kl=self.policy.divergences(groups),
            lengths=[len(group.responses[0]) for group in groups],
            surprisal=[-log_probs[p] if p in log_probs else 0.0 for p in range(len(groups))],
            known_lengths=[len(self.known[p].responses[0]) if p in self.known else 0 for p in range(len(groups))],
        )
        return asdict(found)


def distinct(texts: Sequence[str], n: int) -> Floats:
    """Count each text's share of all distinct n-grams of words, [2, N].

    An n-gram that occurs k times in all texts together counts 1/k at each place, so that the first row's sum is the
    number of distinct n-grams, and the ratio of the two sums is distinct-n (Li et al., 2016).

    Args:
        texts: The texts; words are divided by white space, and their case is ignored.
        n: Words of an n-gram.

    Returns:
        For each text the sum of its n-grams' 1/k, and their number.
    """
    split = [text.lower().split() for text in texts]
    grams = [[tuple(words[i : i + n]) for i in range(len(words) - n + 1)] for words in split]
    counts = Counter(gram for each in grams for gram in each)
    return np.array([[sum(1 / counts[gram] for gram in each) for each in grams], [len(each) for each in grams]])
