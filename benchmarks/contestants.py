"""The contestants: forward and backward pass of a training step, each in its project's own code.

TRL's contestants run its trainers' own `compute_loss` on batches of its own collators; no code of TRL is rewritten. The
padded hybrid is the paper authors' way: one row per sequence, padded to the longest, and the full logits of every
position. The others are hafrm's `HybridModel` and `Objective` as its trainer calls them.
"""

from __future__ import annotations

import math
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaForSequenceClassification

from benchmarks.workload import VOCABULARY, Shape, new_causal_lm, real_tokenizer
from hafrm.encoding import TokenGroup
from hafrm.losses import PairLogProbs, bradley_terry_loss, dpo_loss, hybrid_loss
from hafrm.models.hybrid import HybridModel, new_reward_head
from hafrm.models.layout import choose_layout
from hafrm.training.batches import PairCollator, PairItem
from hafrm.training.loss import LossConfig
from hafrm.training.objective import Objective

__all__ = [
    "CONTESTANTS",
    "GROUPED",
    "Reference",
    "Step",
    "build",
    "plain_reference",
    "saturated_reference",
    "trl_reward_trainer",
]

Step = Callable[[Sequence[TokenGroup]], Tensor]
"""Runs forward and backward on a batch of pairs and returns the loss; gradients are set to None first."""

Reference = Callable[[TokenGroup], tuple[float, float]]
"""Reference log-probs of a pair, chosen and rejected, as if computed beforehand."""

SATURATION = 80.0
"""The DPO loss's argument for saturated pairs: slopes are about 1e-36, and subnormal times probabilities."""

Maker = Callable[[Shape, Reference], Step]


def plain_reference(group: TokenGroup) -> tuple[float, float]:
    """Some log-probs; all normal numbers cost the same."""
    return -50.0, -50.0


def saturated_reference(group: TokenGroup) -> tuple[float, float]:
    """Reference log-probs for which DPO has long learnt the pair: uniform, and far lower for the chosen response."""
    chosen, rejected = (-math.log(VOCABULARY) * len(response) for response in group.responses)
    return chosen - SATURATION / LossConfig().beta, rejected


def build(name: str, shape: Shape, reference: Reference = plain_reference) -> Step:
    """Create the contestant of this name, with a new random model."""
    return CONTESTANTS[name](shape, reference)


def _timed_step(model: nn.Module, losses: Callable[[Sequence[TokenGroup]], Iterable[Tensor]]) -> Step:
    model.train()

    def step(groups: Sequence[TokenGroup]) -> Tensor:
        model.zero_grad(set_to_none=True)
        total = torch.zeros(())
        for loss in losses(groups):
            loss.backward()
            total += loss.detach()
        return total

    return step


def _ours(reward_weight: float, policy_ratio: float, *, layout: str = "auto") -> Maker:
    def make(shape: Shape, reference: Reference) -> Step:
        causal_lm = new_causal_lm(shape)
        head = new_reward_head(causal_lm.config.hidden_size, init="normal", seed=0, dtype=torch.float32)
        model = HybridModel(causal_lm, head)
        objective = Objective(LossConfig(reward_weight=reward_weight, policy_ratio=policy_ratio))
        model.freeze_unused(rewards=objective.needs_rewards, log_probs=objective.needs_log_probs)
        rows = choose_layout(model, 3, max_length=512, choice=layout)
        assert rows.packed == (layout == "auto")
        collate = PairCollator(rows, 1024)

        def losses(groups: Sequence[TokenGroup]) -> Iterator[Tensor]:
            items = [PairItem(i, group, 0.0, reference(group)) for i, group in enumerate(groups)]
            for part in collate(items).parts:
                yield objective.pair_losses(model, part).loss.sum() / len(items)

        return _timed_step(model, losses)

    return make


def _padded_hybrid(shape: Shape, reference: Reference) -> Step:
    """Both heads on padded rows, log-probs from the full logits of every position."""
    causal_lm = new_causal_lm(shape)
    score = new_reward_head(causal_lm.config.hidden_size, init="normal", seed=0, dtype=torch.float32)
    model = nn.ModuleList([causal_lm, score])

    def loss(groups: Sequence[TokenGroup]) -> Tensor:
        rows = [
            (len(g.prompt), torch.tensor(g.prompt + r)) for side in (0, 1) for g in groups for r in [g.responses[side]]
        ]
        ids = nn.utils.rnn.pad_sequence([row for _, row in rows], batch_first=True, padding_value=3)
        lengths = torch.tensor([len(row) for _, row in rows])
        prompts = torch.tensor([prompt for prompt, _ in rows])
        position = torch.arange(ids.shape[1])
        output = causal_lm(
            input_ids=ids,
            attention_mask=(position < lengths[:, None]).long(),
            output_hidden_states=True,
            use_cache=False,
        )
        last = output.hidden_states[-1][torch.arange(len(rows)), lengths - 1]
        rewards = score(last).squeeze(-1)
        token_log_probs = output.logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
        answer = (position[1:] >= prompts[:, None]) & (position[1:] < lengths[:, None])
        log_probs = (token_log_probs * answer).sum(-1)
        (chosen, rejected), (r_chosen, r_rejected) = log_probs.chunk(2), rewards.chunk(2)
        count = answer.sum(-1).chunk(2)
        known = torch.tensor([reference(group) for group in groups]).unbind(dim=1)
        policy = dpo_loss(PairLogProbs(chosen, rejected, *known, *count))
        return hybrid_loss(bradley_terry_loss(r_chosen, r_rejected), policy).mean()

    return _timed_step(model, lambda groups: [loss(groups)])


def trl_reward_trainer(model: nn.Module) -> Any:
    """TRL's RewardTrainer around a classifier, for its loss and its collator."""
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    rows = Dataset.from_list([{"chosen_ids": [4, 5], "rejected_ids": [4, 6]}])
    return _quietly(RewardTrainer, model=model, args=_arguments(RewardConfig), train_dataset=rows)


def _trl_reward(shape: Shape, reference: Reference) -> Step:
    """TRL's RewardTrainer."""
    config = new_causal_lm(shape).config
    config.num_labels = 1
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(config)
    trainer = trl_reward_trainer(model)

    def loss(groups: Sequence[TokenGroup]) -> Tensor:
        examples = [
            {"chosen_ids": [*g.prompt, *g.responses[0]], "rejected_ids": [*g.prompt, *g.responses[1]]} for g in groups
        ]
        value: Tensor = trainer.compute_loss(model, trainer.data_collator(examples))
        return value

    return _timed_step(model, lambda groups: [loss(groups)])


def _trl_dpo(*, precomputed: bool, compact: bool = True) -> Maker:
    """TRL's DPOTrainer, with its LM head only at response tokens as on a GPU (`compact`), or at every position."""

    def make(shape: Shape, reference: Reference) -> Step:
        import trl.trainer.utils as trl_utils
        from datasets import Dataset
        from trl import DPOConfig, DPOTrainer

        model = new_causal_lm(shape)
        live = None if precomputed else new_causal_lm(shape).eval()
        rows = Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}])
        arguments = _arguments(DPOConfig, max_length=None, precompute_ref_log_probs=precomputed)
        trainer = _quietly(DPOTrainer, model=model, ref_model=live, args=arguments, train_dataset=rows)
        if compact:  # TRL scores only response tokens if it finds Triton, so pretend that it did
            trl_utils._use_triton = lambda device: True

        def loss(groups: Sequence[TokenGroup]) -> Tensor:
            examples = [
                {"prompt_ids": [*g.prompt], "chosen_ids": [*g.responses[0]], "rejected_ids": [*g.responses[1]]}
                | dict(zip(("ref_chosen_logps", "ref_rejected_logps"), reference(g), strict=True))
                for g in groups
            ]
            value: Tensor = trainer.compute_loss(model, trainer.data_collator(examples))
            return value

        return _timed_step(model, lambda groups: [loss(groups)])

    return make


def _arguments(kind: Any, **values: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = tempfile.mkdtemp()
        return kind(
            output_dir=folder,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            bf16=False,
            gradient_checkpointing=False,  # on by default in TRL: saves memory and costs time
            **values,
        )


def _quietly(trainer: Any, **arguments: Any) -> Any:
    """Build a trainer without its warnings and progress bars."""
    from datasets import disable_progress_bars

    disable_progress_bars()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return trainer(processing_class=real_tokenizer(), **arguments)


CONTESTANTS: dict[str, Maker] = {
    "trl_reward": _trl_reward,
    "trl_dpo": _trl_dpo(precomputed=True),
    "trl_dpo_live_reference": _trl_dpo(precomputed=False),
    "trl_dpo_every_position": _trl_dpo(precomputed=True, compact=False),
    "padded_full_logits": _padded_hybrid,
    "padded_hybrid": _ours(1, 0.2, layout="padded"),
    "hybrid": _ours(1, 0.2),
    "reward_only": _ours(1, 0),
    "policy_only": _ours(0, 1),
}
"""By name; the last three are hafrm's methods, those before them what they are compared with."""

GROUPED = {"trl_reward": "trl_reward_grouped", "trl_dpo": "trl_dpo_grouped"}
"""Contestants also measured on batches of similar lengths, TRL's best setting, and their names then."""
