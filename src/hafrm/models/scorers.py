"""Scorers: from text to rewards, whatever the model.

Everything downstream (evaluation, best-of-N, RLHF, serving) takes a `Scorer`, so HAF, the baseline and DPO are compared
by changing one argument.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from hafrm.contract import conversations_of
from hafrm.encoding import ConversationEncoder, OverlongError, TokenGroup
from hafrm.errors import BadRowReason, ModelError, RefusedError
from hafrm.logprobs import sum_by_sequence
from hafrm.memory import enough_memory
from hafrm.models.hybrid import HybridModel, SequenceScores
from hafrm.models.layout import Layout
from hafrm.models.options import ScoreOptions
from hafrm.models.remote import OVERLONG
from hafrm.models.tokens import PrefixRewards, TokenRatios, TokenRewards, align_with_text, text_pieces
from hafrm.packing import SequenceBatch, split_group
from hafrm.pairs import Conversation

POLICY_HEAD = "a run's policy head: --head policy, or --head combined for the sum of both heads"
"""What rewards of tokens come from, for messages."""

_REFUSED = BadRowReason.REFUSED_BY_TEMPLATE.value

_LESS_MEMORY = (
    "Lower score.tokens_per_batch (or score.batch_size if rows are padded). If a single conversation is too large, set "
    "a lower score.max_length or a narrower score.dtype."
)


class Scorer(Protocol):
    """Gives each conversation a reward."""

    def score(self, conversations: Sequence[Conversation]) -> list[float | None]:
        """Return rewards in the order of the conversations; None for over-long ones that are to be dropped.

        Raises:
            RefusedError: some conversations can't be rendered; lists them, so that callers can leave them out.
        """
        ...


def rewards_or_reasons(
    scorer: Scorer, conversations: Sequence[Conversation], *, skip: bool = True
) -> list[float | str]:
    """Return each conversation's reward, or why it has none: it is over-long, or the scorer refuses it.

    Args:
        skip: Whether to score the others if some are refused; otherwise the scorer's RefusedError is raised.
    """
    try:
        found = dict(enumerate(scorer.score(conversations)))
    except RefusedError as error:
        if not skip:
            raise
        kept = [place for place in range(len(conversations)) if place not in error.reasons]
        found = dict(error.finished or {})
        if error.finished is None and kept:
            found = dict(zip(kept, scorer.score([conversations[place] for place in kept]), strict=True))
    rewards = (found.get(place, _REFUSED) for place in range(len(conversations)))
    return [OVERLONG if reward is None else reward for reward in rewards]


@runtime_checkable
class DenseScorer(Scorer, Protocol):
    """A scorer that can divide rewards among the tokens of responses."""

    def token_rewards(self, conversations: Sequence[Conversation]) -> list[TokenRewards | None]:
        """Return divided rewards in the order of the conversations; None for over-long ones that are to be dropped.

        A reward whose tokens can't be aligned with the text is not divided; see `TokenRewards.divided`.

        Raises:
            ModelError: this score does not come from tokens.
            RefusedError: some conversations can't be rendered.
        """
        ...


@runtime_checkable
class TokenScorer(Scorer, Protocol):
    """A scorer whose model runs in this process, which also accepts token ids; used by the server."""

    encoder: ConversationEncoder
    options: ScoreOptions

    @property
    def reads_responses(self) -> bool:
        """Whether the reward depends on where the response starts, as implicit rewards do."""
        ...

    def score_tokens(self, sequences: Sequence[TokenGroup]) -> list[float]:
        """Return rewards of token groups with one response each, in their order.

        Raises:
            ModelError: a reward is not finite.
        """
        ...


def special_tokens_met(scorer: Scorer) -> str:
    """Return a line that says how many scored conversations contain special tokens; empty if none does."""
    if not isinstance(scorer, BatchedScorer) or not scorer.with_special_tokens:
        return ""
    rule = scorer.encoder.special_tokens
    read = "plain characters" if rule == "text" else "tokens, so a response can imitate further turns"
    return (
        f"{scorer.with_special_tokens} conversations contain special tokens of the tokenizer, read as {read} "
        "(score.special_tokens)"
    )


def _enough_memory(batch: SequenceBatch) -> AbstractContextManager[None]:
    size = f"a batch of {batch.num_sequences} responses and {batch.input_ids.numel()} tokens"
    return enough_memory(size, _LESS_MEMORY)


class BatchedScorer:
    """Encodes conversations, batches them by length, and returns the rewards in the original order."""

    def __init__(self, encoder: ConversationEncoder, layout: Layout, options: ScoreOptions) -> None:
        self.encoder, self.layout, self.options = encoder, layout, options
        self.with_special_tokens = 0
        """Number of scored conversations whose messages contain special tokens; see `ScoreOptions.special_tokens`."""

    @property
    def reads_responses(self) -> bool:
        """See `TokenScorer`."""
        return False

    def score(self, conversations: Sequence[Any]) -> list[float | None]:
        """Return rewards in the order of the conversations; see `Scorer.score`.

        Args:
            conversations: Conversations, (prompt, response) pairs or lists of chat messages; see `conversations_of`.
        """
        found = self._score_rows(self._encoded(conversations_of(conversations)), self._score_batch)
        return [found.get(row) for row in range(len(conversations))]

    def score_tokens(self, sequences: Sequence[TokenGroup]) -> list[float]:
        """Return rewards in the order of the sequences; see `TokenScorer.score_tokens`."""
        found = self._score_rows(dict(enumerate(sequences)), self._score_batch)
        return [found[row] for row in range(len(sequences))]

    @torch.inference_mode()
    def _score_rows(
        self, encoded: Mapping[int, TokenGroup], compute: Callable[[SequenceBatch], Tensor]
    ) -> dict[int, Any]:
        """Score encoded sequences, equal ones once.

        Args:
            encoded: The sequences by index.
            compute: Returns the rewards of a batch, [S], or several numbers of each sequence, [S, C].

        Returns:
            Rewards by index, or lists of numbers.
        """
        first: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}
        same_as = {row: first.setdefault((group.prompt, group.responses[0]), row) for row, group in encoded.items()}
        rewards: dict[int, Any] = {}
        for rows, batch in self._batches({row: encoded[row] for row in first.values()}):
            with _enough_memory(batch):
                scores = compute(batch)
            if not torch.isfinite(scores).all():
                raise ModelError(
                    "The model gave a reward that is not finite. Its weights are damaged, or its dtype overflows."
                )
            rewards.update(zip(rows, scores.tolist(), strict=True))
        return {row: rewards[other] for row, other in same_as.items()}

    def _batches(self, encoded: Mapping[int, TokenGroup]) -> Iterator[tuple[list[int], SequenceBatch]]:
        parts = [part for found in self._groups(encoded) for part in self._split(*found)]
        groups = [group for _, group in parts]
        plan = self.layout.plan(groups, sequences=self.options.batch_size, tokens=self.options.tokens_per_batch)
        for chosen in plan:
            batch = self.layout.batch([groups[i] for i in chosen])
            yield [row for i in chosen for row in parts[i][0]], batch.to(self.options.torch_device())

    def _encoded(self, conversations: Sequence[Conversation]) -> dict[int, TokenGroup]:
        """Encode conversations by index, leaving out those over the limit."""
        outcomes = self.encoder.encode_many([(c.prompt, [c.response]) for c in conversations])
        encoded: dict[int, TokenGroup] = {}
        refused: dict[int, str] = {}
        for row, outcome in enumerate(outcomes):
            if isinstance(outcome, TokenGroup):
                encoded[row] = outcome
                self.with_special_tokens += bool(outcome.special_tokens)
            elif not isinstance(outcome, OverlongError):
                refused[row] = str(outcome)
        if refused:
            raise RefusedError(refused)
        return encoded

    def _groups(self, encoded: Mapping[int, TokenGroup]) -> Iterator[tuple[list[int], TokenGroup]]:
        """Yield token groups with the indices of their sequences; in packed rows, sequences share their prompt."""
        rows_of: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for row, group in encoded.items():
            rows_of[group.prompt].append(row)
        for prompt, rows in rows_of.items():
            for shared in [rows] if self.layout.packed else [[row] for row in rows]:
                yield shared, TokenGroup(prompt, tuple(encoded[row].responses[0] for row in shared))

    def _split(self, rows: list[int], group: TokenGroup) -> Iterator[tuple[list[int], TokenGroup]]:
        """Split a prompt with more responses than fit into one batch."""
        start = 0
        for part in split_group(group, self.options.tokens_per_batch):
            yield rows[start : start + len(part.responses)], part
            start += len(part.responses)

    def _score_batch(self, batch: SequenceBatch) -> Tensor:
        raise AssertionError("a scorer computes its own batches")


@dataclass(frozen=True)
class TokenTerms:
    """What each token of a response adds to the reward, before the weight of log-ratios or of the reward head."""

    reward: float
    """The whole reward."""
    start: int
    """Number of tokens before the response."""
    ids: list[int]
    """The response's tokens."""
    values: list[float]


class HybridScorer(BatchedScorer):
    """Score of a two-headed model: reward_weight * F(phi(x, y)) + ratio_weight * log(pi(y | x) / pi_ref(y | x)).

    The weights (1, 0) give the reward head, (0, beta) the implicit reward of the policy head (Appendix C.2), and
    (1, w * beta) a combination of both, which the paper's limitations section leaves open.

    Args:
        model: The two-headed model.
        encoder: From text to token ids.
        layout: How conversations become batches.
        options: How to run.
        reward_weight: Weight of the reward head.
        ratio_weight: Weight of the log-ratio.
        reference: The reference policy. None: the mean log-prob of the response's tokens replaces the log-ratio, which
            is the implicit reward of policy losses without a reference (SimPO, ORPO, SFT).
        summed: Whether their sum replaces it instead of their mean.
    """

    def __init__(
        self,
        model: HybridModel,
        encoder: ConversationEncoder,
        layout: Layout,
        options: ScoreOptions,
        *,
        reward_weight: float = 1.0,
        ratio_weight: float = 0.0,
        reference: HybridModel | None = None,
        summed: bool = False,
    ) -> None:
        super().__init__(encoder, layout, options)
        self.model, self.reference, self.summed = model, reference, summed
        self.reward_weight, self.ratio_weight = reward_weight, ratio_weight
        self.by_prefix = False
        """Whether to divide the reward head's rewards too: by how much each token changes the reward of the response so
        far. It learns from whole responses, so without a consistency loss these are guesses.
        """

    @property
    def reads_responses(self) -> bool:
        """See `TokenScorer`."""
        return bool(self.ratio_weight)

    @property
    def has_errors(self) -> bool:
        """Whether the model has several reward heads, so that its rewards have standard errors."""
        return bool(self.reward_weight) and self.model.heads > 1

    def score_with_errors(self, conversations: Sequence[Any]) -> list[tuple[float, float] | None]:
        """Return each reward with its standard error, the standard deviation of the reward heads times their weight.

        Arguments, order and None are those of `score`.

        Raises:
            ModelError: the model has a single reward head, or the score doesn't use it.
            RefusedError: some conversations can't be rendered.
        """
        if not self.has_errors:
            raise ModelError("Standard errors of rewards need several reward heads. Train them with `--loss.heads 5`.")
        found = self._score_rows(self._encoded(conversations_of(conversations)), self._rewards_and_errors)
        return [(found[row][0], found[row][1]) if row in found else None for row in range(len(conversations))]

    def _score_batch(self, batch: SequenceBatch) -> Tensor:
        return self._rewards_and_terms(self._scores(batch), batch)[0]

    def _scores(self, batch: SequenceBatch) -> SequenceScores:
        scores: SequenceScores = self.model(batch, rewards=bool(self.reward_weight), log_probs=bool(self.ratio_weight))
        return scores

    def _rewards_and_errors(self, batch: SequenceBatch) -> Tensor:
        """Compute rewards and their standard errors, [S, 2]."""
        scores = self._scores(batch)
        assert scores.of_heads is not None
        errors = abs(self.reward_weight) * scores.of_heads.std(1)
        return torch.stack([self._rewards_and_terms(scores, batch)[0], errors], 1)

    def _rewards_and_terms(self, scores: SequenceScores, batch: SequenceBatch) -> tuple[Tensor, Tensor]:
        """Compute rewards, [S], and the response tokens' terms of the implicit reward before its weight, [T]."""
        total = torch.zeros(batch.num_sequences, device=batch.input_ids.device)
        terms = total[:0]
        if scores.rewards is not None:
            total += self._weighted(scores.rewards, scores.of_heads)
        if scores.token_log_probs is not None:
            terms = self._terms(scores.token_log_probs, batch)
            total += self.ratio_weight * sum_by_sequence(terms, batch.sequence_index, batch.num_sequences)
        return total, terms

    def _weighted(self, rewards: Tensor, of_heads: Tensor | None) -> Tensor:
        """Return the reward head's part of rewards, [S], from the means of its heads and, if it has several, each."""
        weighted = self.reward_weight * rewards
        if of_heads is not None and self.options.pessimism:
            weighted = weighted - self.reward_weight * self.options.pessimism * of_heads.std(1)
        return weighted

    def _terms(self, log_probs: Tensor, batch: SequenceBatch) -> Tensor:
        """Return what each response token adds to its sequence's implicit reward, [T], from its log-probs."""
        if self.reference is None:
            return log_probs if self.summed else log_probs / batch.response_lengths[batch.sequence_index]
        reference: SequenceScores = self.reference(batch, rewards=False)
        assert reference.token_log_probs is not None
        return log_probs - reference.token_log_probs

    def _rewards_and_changes(self, batch: SequenceBatch) -> tuple[Tensor, Tensor]:
        """Compute rewards, [S], and by how much each response token changes the reward of the response so far, [T]."""
        states = self.model.hidden_states(batch)
        places = (batch.score_index, batch.token_index, batch.predictor_index)
        whole, after, before = (self.model.rewards_of(states[at]) for at in places)
        rewards = self._weighted(whole.mean(-1), whole if self.model.heads > 1 else None)
        return rewards, (after - before).mean(-1)

    def _rewards_so_far(self, batch: SequenceBatch) -> tuple[Tensor, Tensor]:
        """Compute the reward head's rewards, [S], and its reward after each response token, [T]."""
        scores: SequenceScores = self.model(batch, log_probs=False, prefixes=True)
        assert scores.rewards is not None
        assert scores.prefixes is not None
        return scores.rewards, scores.prefixes

    @torch.inference_mode()
    def token_log_ratios(self, conversations: Sequence[Conversation]) -> list[TokenRatios | None]:
        """Compute the log-ratio of each token of the responses, aligned with their texts.

        Returns:
            Results in the order of the conversations; None if a conversation is over-long, or its tokens can't be
            aligned with its text.

        Raises:
            ModelError: there is no reference policy, or a log-ratio is not finite.
            RefusedError: some conversations can't be rendered.
        """
        if self.reference is None:
            raise ModelError("Per-token log-ratios need a reference policy. Give one with `--reference`.")
        terms = self.token_terms(self._encoded(conversations))
        tokenizer = self.encoder.tokenizer
        return [
            self._aligned(terms[i], talk, tokenizer) if i in terms else None for i, talk in enumerate(conversations)
        ]

    @torch.inference_mode()
    def prefix_rewards(self, conversations: Sequence[Conversation]) -> list[PrefixRewards | None]:
        """Compute the reward head's reward of the responses up to each token, aligned with their texts.

        Returns:
            As `token_log_ratios`.
        """
        found: list[PrefixRewards | None] = [None] * len(conversations)
        for row, each in self._by_row(self._encoded(conversations), self._rewards_so_far).items():
            turns = text_pieces(
                self.encoder.tokenizer, conversations[row], each.start, each.ids, each.values, lambda _, last: last
            )
            found[row] = None if turns is None else PrefixRewards(turns, each.reward)
        return found

    @torch.inference_mode()
    def token_rewards(self, conversations: Sequence[Conversation]) -> list[TokenRewards | None]:
        """Divide rewards among the tokens of the responses; see `DenseScorer.token_rewards`.

        Without a reference, a token's reward is its log-prob divided by the number of tokens, since such a score is the
        mean log-prob.
        """
        self.require_divisible()
        terms = self.token_terms(self._encoded(conversations))
        tokenizer = self.encoder.tokenizer
        return [self.divided(terms[i], talk, tokenizer) if i in terms else None for i, talk in enumerate(conversations)]

    def require_divisible(self) -> None:
        """Raise ModelError unless rewards can be divided among tokens."""
        if not (self.ratio_weight or self.by_prefix):
            raise ModelError(f"The reward head gives whole rewards only. Rewards of tokens need {POLICY_HEAD}.")

    @torch.inference_mode()
    def token_terms(self, encoded: Mapping[int, TokenGroup]) -> dict[int, TokenTerms]:
        """Compute what each token of the responses adds to the rewards of encoded conversations, by index.

        Raises:
            ModelError: a term is not finite.
        """
        if not self.ratio_weight:
            return self._by_row(encoded, self._rewards_and_changes)
        return self._by_row(encoded, lambda batch: self._rewards_and_terms(self._scores(batch), batch))

    def _by_row(
        self, encoded: Mapping[int, TokenGroup], compute: Callable[[SequenceBatch], tuple[Tensor, Tensor]]
    ) -> dict[int, TokenTerms]:
        """Compute rewards, [S], and a number for each response token, [T], in batches; return them by index."""
        found: dict[int, TokenTerms] = {}
        for rows, batch in self._batches(encoded):
            with _enough_memory(batch):
                rewards, terms = compute(batch)
            if not torch.isfinite(terms).all():
                raise ModelError(
                    "The reward of a token is not finite. The weights are damaged, or their dtype overflows."
                )
            starts = batch.position_ids.flatten()[batch.score_index] + 1 - batch.response_lengths
            parts = (starts.tolist(), batch.target_ids.split(batch.lengths), terms.split(batch.lengths))
            for row, reward, start, ids, values in zip(rows, rewards.tolist(), *parts, strict=True):
                found[row] = TokenTerms(reward, start, ids.tolist(), values.tolist())
        return found

    def divided(self, terms: TokenTerms, conversation: Conversation, tokenizer: Any) -> TokenRewards:
        """Divide a reward among the texts of a response, with a tokenizer that no other thread uses meanwhile."""
        ratios = self._aligned(terms, conversation, tokenizer)
        if ratios is None:
            return TokenRewards(tuple(((turn.content, None),) for turn in conversation.response), 0.0, terms.reward)
        weight = self.ratio_weight or self.reward_weight
        turns = tuple(
            tuple((text, None if value is None else weight * value) for text, value in pieces)
            for pieces in ratios.turns
        )
        return TokenRewards(turns, weight * ratios.template, terms.reward)

    def _aligned(self, terms: TokenTerms, conversation: Conversation, tokenizer: Any) -> TokenRatios | None:
        return align_with_text(tokenizer, conversation, terms.start, terms.ids, terms.values)


class StockScorer(BatchedScorer):
    """Raw logit of any stock sequence-classification model with one label, as computed by transformers."""

    def __init__(self, model: nn.Module, encoder: ConversationEncoder, layout: Layout, options: ScoreOptions) -> None:
        super().__init__(encoder, layout, options)
        self.model = model

    def _score_batch(self, batch: SequenceBatch) -> Tensor:
        logits = self.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        return cast(Tensor, logits[:, 0].float())
