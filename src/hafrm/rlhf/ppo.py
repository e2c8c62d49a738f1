"""Proximal policy optimisation, one batch of responses per step: sample, score, measure, learn.

Works on options, a `Policy`, prompts and scorers, not on files. A step's draws only depend on the seed and the step's
number, so the only state between steps is that of weights, optimizer, schedule, score statistics and KL coefficient.
Shape letters: S sequences (a prompt with one response), T response tokens of all of them.
"""

from __future__ import annotations

import hashlib
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import get_scheduler

from hafrm.encoding import TokenGroup
from hafrm.errors import ConfigError, NonFiniteLossError
from hafrm.models.generating import prompt_ids
from hafrm.models.scorers import Scorer
from hafrm.pairs import Conversation, Prompt
from hafrm.rewards import DetailedScorer, with_division
from hafrm.rlhf.job import deal
from hafrm.rlhf.objectives import (
    ScoreStatistics,
    clipped_policy_loss,
    clipped_value_loss,
    explained_variance,
    generalised_advantages,
    kl_estimates,
    shaped_rewards,
    whiten,
)
from hafrm.rlhf.options import RlhfConfig
from hafrm.rlhf.policy import Measured, Policy, Response, sample_responses
from hafrm.rlhf.rewards import answered, paid_early, require_scored, scores_of


@dataclass(frozen=True)
class Rollouts:
    """A batch of responses with scores."""

    groups: tuple[TokenGroup, ...]
    scores: Tensor
    """Scores minus the penalty for responses that did not end, [S]."""
    early: Tensor | None
    """Part of the score that is paid at each token, [T]; None if all is paid at the end."""
    measured: Measured
    metrics: dict[str, float]
    """Means over the batch, for the curves."""

    @property
    def lengths(self) -> list[int]:
        """Response tokens of each sequence, [S]."""
        return [len(group.responses[0]) for group in self.groups]


@dataclass(frozen=True)
class _Lessons:
    """Training targets of each drawn token, [T]."""

    log_probs: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor

    def of(self, lengths: Sequence[int], places: Sequence[int]) -> _Lessons:
        """Select the targets of some sequences, in the order of `places`."""
        tensors = (self.log_probs, self.values, self.advantages, self.returns)
        parts = [tensor.split(list(lengths)) for tensor in tensors]
        return _Lessons(*(torch.cat([part[place] for place in places]) for part in parts))


class PpoTrainer:
    """Trains a policy step by step; `gold` only monitors it.

    Raises:
        ConfigError: transformers has no such schedule.
        ModelError: rewards of tokens are wanted, but the scorer has none.
    """

    def __init__(
        self,
        config: RlhfConfig,
        policy: Policy,
        tokenizer: Any,
        prompts: Sequence[Prompt],
        scorer: Scorer,
        gold: Scorer | None = None,
    ) -> None:
        self.config, self.policy, self.tokenizer = config, policy, tokenizer
        self.prompts, self.gold = prompts, gold
        self.scorer = scorer if config.dense == "none" else with_division(scorer, config.reward)
        self.parameters = [p for p in policy.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=config.learning_rate, weight_decay=0.0)
        try:
            self.schedule = get_scheduler(
                config.lr_scheduler_type, self.optimizer, num_warmup_steps=0, num_training_steps=config.steps
            )
        except (ValueError, TypeError) as error:
            raise ConfigError(f"lr_scheduler_type: {error}") from error
        self.controller = config.controller
        self.statistics = ScoreStatistics()

    def state_dict(self) -> dict[str, Any]:
        """Return what a step depends on in addition to the policy's weights and the step's number."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "kl_coefficient": self.controller.coefficient,
            "scores": asdict(self.statistics),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state returned by `state_dict`."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.controller = replace(self.controller, coefficient=state["kl_coefficient"])
        self.statistics = ScoreStatistics(**state["scores"])

    def step(self, number: int) -> dict[str, float]:
        """Learn from the batch of a step, counted from 1; return means over the batch, for the curves.

        Raises:
            DataError: no response could be scored.
            ModelError: a reward is NaN or infinite.
            NonFiniteLossError: the loss or its gradient is NaN or infinite.
        """
        start = time.monotonic()
        torch.manual_seed(_seed(self.config.seed, number))
        rollouts = self.collect(number)
        sampled = time.monotonic()
        kl = kl_estimates(rollouts.measured.log_probs, rollouts.measured.reference, self.config.kl.estimator)
        metrics = rollouts.metrics | self._learn(number, rollouts, kl)
        metrics |= {"kl_coefficient": self.controller.coefficient, "learning_rate": self.schedule.get_last_lr()[0]}
        self.controller = self.controller.after(metrics["kl"], len(rollouts.groups))
        self.schedule.step()
        return metrics | {"seconds/sampling": sampled - start, "seconds/learning": time.monotonic() - sampled}

    def _autocast(self) -> torch.autocast:
        """Return the autocast context for the policy's forward passes; the reward model has its own dtype."""
        return torch.autocast(self.policy.device.type, dtype=torch.bfloat16, enabled=self.config.mixed)

    def collect(self, number: int) -> Rollouts:
        """Sample responses to a step's prompts, score and measure them; those without a score are left out."""
        places = deal(len(self.prompts), self.config.batch_size, number, self.config.seed)
        prompts = [self.prompts[place] for place in places]
        ids = [prompt_ids(self.tokenizer, prompt) for prompt in prompts]
        with self._autocast():
            responses = sample_responses(self.policy.model.causal_lm, self.tokenizer, ids, self.config.sampling)
        talks = [answered(prompt, response.text) for prompt, response in zip(prompts, responses, strict=True)]
        scores = scores_of(self.scorer, talks)
        require_scored(scores, self.config.reward, number)
        known = {place: score for place, score in enumerate(scores) if score is not None}
        kept = [responses[place] for place in known]
        groups = tuple(TokenGroup(ids[place], (responses[place].ids,)) for place in known)
        with self._autocast():
            measured = self.policy.measure(groups)
        raw = torch.tensor(list(known.values()), device=self.policy.device)
        cut = torch.tensor([not response.ended for response in kept], device=raw.device)
        early = self._early(number, [talks[place] for place in known], kept)
        metrics = {
            "unscored": float(len(scores) - len(known)),
            **_metrics_of(raw, measured, kept),
            **self._watched(talks),
        }
        return Rollouts(groups, raw - self.config.missing_eos_penalty * cut, early, measured, metrics)

    def _early(self, number: int, talks: Sequence[Conversation], responses: Sequence[Response]) -> Tensor | None:
        """Return the part of the score that is paid at each token of the responses, [T]."""
        if not isinstance(self.scorer, DetailedScorer):
            return None
        paid = paid_early(self.scorer, self.config, number, self.tokenizer, talks, [each.ids for each in responses])
        return torch.tensor([value for each in paid for value in each], device=self.policy.device)

    def _watched(self, talks: Sequence[Conversation]) -> dict[str, float]:
        known = [gold for gold in scores_of(self.gold, talks) if gold is not None] if self.gold is not None else []
        return {"gold": sum(known) / len(known)} if known else {}

    def _learn(self, number: int, rollouts: Rollouts, kl: Tensor) -> dict[str, float]:
        options, lengths, measured = self.config.ppo, rollouts.lengths, rollouts.measured
        self.statistics = self.statistics.after(rollouts.scores)
        scores = self.statistics.scaled(rollouts.scores, options.scores)
        early = None if rollouts.early is None else rollouts.early / self.statistics.unit(options.scores)
        rewards = shaped_rewards(scores, kl, lengths, self.controller.coefficient, early)
        advantages, returns = generalised_advantages(
            rewards, measured.values, lengths, gamma=options.gamma, lam=options.gae_lambda
        )
        lessons = _Lessons(measured.log_probs, measured.values, whiten(advantages), returns)
        sums: dict[str, float] = defaultdict(float)
        norms: list[float] = []
        self.policy.model.train()
        for _ in range(options.epochs):
            order = torch.randperm(len(lengths))
            for places in order.tensor_split(options.minibatches):
                if len(places):  # unscored responses can leave fewer sequences than minibatches
                    norms.append(self._update(number, rollouts.groups, lessons, places.tolist(), sums))
        tokens = options.epochs * sum(lengths)
        return {name: total / tokens for name, total in sums.items()} | {
            "grad_norm": sum(norms) / len(norms),
            "explained_variance": explained_variance(measured.values, returns),
        }

    def _update(
        self,
        number: int,
        groups: Sequence[TokenGroup],
        lessons: _Lessons,
        places: Sequence[int],
        sums: dict[str, float],
    ) -> float:
        """Take one optimizer step on some sequences and return the gradient's norm.

        The loss is the mean over the tokens of all batches.
        """
        options, lengths = self.config.ppo, [len(group.responses[0]) for group in groups]
        tokens = sum(lengths[place] for place in places)
        self.optimizer.zero_grad(set_to_none=True)
        for part, batch in self.policy.batches([groups[place] for place in places]):
            lesson = lessons.of(lengths, [places[i] for i in part])
            with self._autocast():
                log_probs, values = self.policy.log_probs_and_values(batch)
            policy = clipped_policy_loss(log_probs, lesson.log_probs, lesson.advantages, options.clip)
            value = clipped_value_loss(values, lesson.values, lesson.returns, options.value_clip)
            loss = (policy.loss.sum() + options.value_weight * value.loss.sum()) / tokens
            _require_finite(loss, "loss", number)
            loss.backward()
            moved = kl_estimates(lesson.log_probs, log_probs.detach(), "k3")
            for name, each in (
                ("loss/policy", policy.loss),
                ("loss/value", value.loss),
                ("clip_fraction", policy.clipped),
                ("value_clip_fraction", value.clipped),
                ("kl_moved", moved),
            ):
                sums[name] += each.detach().sum().item()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm)
        _require_finite(norm, "gradient", number)  # before the step, which would make the weights NaN
        self.optimizer.step()
        return norm.item()


def _require_finite(value: Tensor, what: str, number: int) -> None:
    if not torch.isfinite(value):
        raise NonFiniteLossError(
            f"The {what} is not finite at step {number}. Start a new run (another --out, or --overwrite true) with a "
            "lower learning_rate or a higher kl.coefficient. The last checkpoint is intact."
        )


def _metrics_of(scores: Tensor, measured: Measured, responses: Sequence[Response]) -> dict[str, float]:
    lengths = [len(response.ids) for response in responses]
    return {
        "reward": scores.mean().item(),
        "reward_sd": scores.std(correction=0).item(),
        "kl": kl_estimates(measured.log_probs, measured.reference).sum().item() / len(lengths),
        "entropy": measured.entropies.mean().item(),
        "length": sum(lengths) / len(lengths),
        "ended": sum(response.ended for response in responses) / len(responses),
    }


def _seed(seed: int, number: int) -> int:
    """Return the seed of a step's draws; neighbouring seeds and steps get independent seeds."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{number}".encode()).digest()[:8], "big") >> 1
