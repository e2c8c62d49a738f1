"""Rewards of tokens: where each is paid, their sum, and runs that learn from them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hafrm.errors import ConfigError, DataError, ModelError
from hafrm.models.tokens import TokenRewards
from hafrm.pairs import Conversation
from hafrm.rlhf import groups, ppo, run
from hafrm.rlhf.objectives import ScoreStatistics, group_advantages, shaped_rewards
from hafrm.rlhf.options import Dense, GroupOptions, PpoOptions, RlhfConfig
from hafrm.rlhf.rewards import paid_by_token, token_ends
from hafrm.rlhf.run import rlhf
from tests.models.test_tokens import HARD, TOKENIZERS

Config = Callable[..., RlhfConfig]


def divided(*pieces: tuple[str, float | None], rest: float = 0.0) -> TokenRewards:
    return TokenRewards((pieces,), 0.0, sum(value or 0 for _, value in pieces) + rest)


@pytest.mark.parametrize(
    ("dense", "paid"),
    [("token", [1, 2, 12, 16, 32, 64, 0]), ("line", [0, 0, 0, 0, 63, 64, 0]), ("sentence", [0, 0, 15, 0, 48, 64, 0])],
)
def test_where_tokens_are_paid_by_hand(dense: Dense, paid: list[float]) -> None:
    """The policy has "Hi", " you", "! ", "Go", "\\n\\n", "on", and an end; the reward model cuts otherwise."""
    rewards = divided(("Hi", 1), (" you", 2), ("!", 4), (" ", 8), ("Go", 16), ("\n\n", 32), ("on", 64), rest=5)
    assert paid_by_token(rewards, [2, 6, 8, 10, 12, 14, 14], dense) == paid


def test_a_piece_is_paid_once_the_policy_has_written_all_of_it() -> None:
    rewards = divided(("wo", 1.0), ("rd o", 2.0), ("f", 4.0), (" cut", None))
    assert paid_by_token(rewards, [4, 5, 7, 11], "token") == [1, 0, 6, 0]
    assert paid_by_token(rewards, [1, 11], "token") == [0, 7]
    assert paid_by_token(rewards, [0, 0], "sentence") == [0, 7]  # the policy's tokens have no text


@given(
    st.lists(st.tuples(st.sampled_from([".", " ", "\n", "a", "bc", "? "]), st.floats(-2, 2)), min_size=1, max_size=12),
    st.lists(st.integers(0, 30), min_size=1, max_size=12),
    st.sampled_from(["token", "line", "sentence"]),
)
def test_all_is_paid_and_nothing_early(pieces: list[tuple[str, float]], ends: list[int], dense: Dense) -> None:
    """For any two tokenizers, at most the text up to a token is paid at it, and the total is always paid."""
    ends.sort()
    paid = paid_by_token(divided(*pieces), ends, dense)
    assert len(paid) == len(ends)
    assert sum(paid) == pytest.approx(sum(value for _, value in pieces), abs=1e-9)
    ones = paid_by_token(divided(*((text, 1.0) for text, _ in pieces)), ends, dense)
    for place, end in enumerate(ends[:-1]):
        within = sum(len("".join(text for text, _ in pieces[: i + 1])) <= end for i in range(len(pieces)))
        assert sum(ones[: place + 1]) <= within


@pytest.mark.parametrize("tokenizer", TOKENIZERS[::2], ids=["bytes", "merges", "fallback"])
@pytest.mark.parametrize("text", HARD)
def test_characters_are_complete_where_a_token_ends_them(tokenizer: Any, text: str) -> None:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    shown = tokenizer.decode(ids, skip_special_tokens=True).strip()
    ends = token_ends(tokenizer, [*ids, tokenizer.eos_token_id], shown)
    assert ends == sorted(ends)
    assert ends[-2:] == [len(shown)] * 2
    for count, end in enumerate(ends, 1):
        assert tokenizer.decode(ids[:count], skip_special_tokens=True).lstrip().startswith(shown[:end])


def test_an_emoji_is_complete_at_its_last_byte() -> None:
    ids = TOKENIZERS[0]("a😀", add_special_tokens=False)["input_ids"]
    assert token_ends(TOKENIZERS[0], ids, "a😀") == [1, 1, 1, 1, 2]


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(0, 2**31), st.sampled_from(["raw", "normalised"])
)
def test_dense_rewards_sum_to_the_scaled_score(lengths: list[int], seed: int, scale: Any) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores, early = (torch.randn(n, generator=generator) for n in (len(lengths), sum(lengths)))
    kl = torch.zeros(sum(lengths))
    known = ScoreStatistics().after(5 * torch.randn(8, generator=generator) + 3)
    scaled, dense = known.scaled(scores, scale), early / known.unit(scale)
    rewards = shaped_rewards(scaled, kl, lengths, 0.1, dense)
    torch.testing.assert_close(torch.stack([r.sum() for r in rewards.split(lengths)]), scaled, atol=1e-4, rtol=1e-4)
    for found, part in zip(rewards.split(lengths), dense.split(lengths), strict=True):
        torch.testing.assert_close(found[:-1], part[:-1])


def test_advantages_of_a_group_by_hand() -> None:
    """Scores 4 and 0: mean 2, sd 2.83. The first is paid 3 at its first token, the second -1 at its only one."""
    scores, sd = torch.tensor([4.0, 0.0]), math.sqrt(8)
    of_sequences = (scores - 2) / sd
    found = group_advantages(of_sequences, scores, [[3.0, 1.0, 0.0], [-1.0]], 2)
    expected = [[2 / sd, (2 - (3 - 1)) / sd, (2 - (4 - 1.5)) / sd], [-2 / sd, (-2 + 2) / sd, (-2 + 2.5) / sd]]
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-3, rtol=1e-3)


def test_without_early_payments_and_scores_advantages_are_grpos() -> None:
    scores = torch.tensor([1.0, math.nan, 4.0, 3.0, 3.0, 3.0])
    of_sequences = torch.tensor([-0.7, 0.0, 0.7, 0.0, 0.0, 0.0])
    found = group_advantages(of_sequences, scores, [[0.0], [0.0, 0.0], [0.0], [0.0], [0.0], [0.0]], 3)
    torch.testing.assert_close(found, of_sequences[:, None].expand(6, 2))
    paid = group_advantages(of_sequences, scores, [[1.0], [9.0, 9.0], [0.0], [0.0], [0.0], [0.0]], 3)
    assert paid[1].tolist() == [0, 0]
    assert paid[0, 1] < paid[2, 1]


class Letters:
    """A scorer whose reward is twice the number of letters; each letter gets `part` of it."""

    def __init__(self, aligned: bool = True, part: float = 1.0) -> None:
        self.aligned, self.part, self.seen = aligned, part, list[str]()

    def score(self, conversations: Sequence[Conversation]) -> list[float | None]:
        return [each and each.reward for each in self.token_rewards(conversations)]

    def token_rewards(self, conversations: Sequence[Conversation]) -> list[TokenRewards | None]:
        found = []
        for talk in conversations:
            text = talk.response[0].content
            self.seen.append(text)
            values = [self.part * character.isalpha() if self.aligned else None for character in text]
            found.append(TokenRewards((tuple(zip(text, values, strict=True)),), 0.0, 2.0 * sum(map(str.isalpha, text))))
        return found


@pytest.fixture
def lettered(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    def use(scorer: Any) -> None:
        for module in (run, groups):
            monkeypatch.setattr(module, "load_reward", lambda *_: scorer)
        monkeypatch.setattr(run, "reward_identity", lambda *_: {"the model": "scripted"})

    return use


def rewards_of(folder: str) -> list[float]:
    return [json.loads(line)["reward"] for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]


def test_ppo_learns_from_tokens(
    tiny: Config, lettered: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Half of each score is paid where its letters are, the rest at the end; the curves show whole scores."""
    scorer = Letters()
    lettered(scorer)
    given: list[tuple[list[float], list[float], list[int]]] = []
    real = ppo.shaped_rewards

    def spy(scores: Tensor, kl: Tensor, lengths: list[int], price: float, early: Tensor | None = None) -> Tensor:
        found = real(scores, kl, lengths, 0.0, early)
        given.append((scores.tolist(), found.tolist(), lengths))
        return found

    monkeypatch.setattr(ppo, "shaped_rewards", spy)
    rlhf(tiny(dense="token", steps=1, ppo=PpoOptions(epochs=1, scores="raw"), missing_eos_penalty=0.25))
    ((scores, rewards, lengths),) = given
    parts = torch.tensor(rewards).split(lengths)
    for text, score, part in zip(scorer.seen, scores, parts, strict=True):
        assert part.sum() == pytest.approx(score, abs=1e-5)
        assert sum(part[:-1].tolist()) == pytest.approx(sum(c.isalpha() for c in text), abs=1.01)
    assert {score % 1 for score in scores} <= {0.0, 0.75}
    first = rewards_of(tiny().out)
    assert first == [pytest.approx(sum(2 * sum(map(str.isalpha, text)) for text in scorer.seen) / 4)]
    rlhf(tiny(out=str(tmp_path / "whole"), steps=1, ppo=PpoOptions(epochs=1, scores="raw")))
    assert rewards_of(str(tmp_path / "whole")) == first  # the first draws depend on no reward
    assert (Path(tiny().out) / "model.safetensors").read_bytes() != (tmp_path / "whole/model.safetensors").read_bytes()


@pytest.mark.filterwarnings("ignore")
def test_grpo_learns_from_tokens(tiny: Config, lettered: Callable[[Any], None], tmp_path: Path) -> None:
    """If no token has a part, everything is paid at the end, as without dense rewards."""
    pytest.importorskip("trl")
    weights = []
    for name, dense, part in (("whole", "none", 1.0), ("nothing", "token", 0.0), ("dense", "token", 1.0)):
        lettered(Letters(part=part))
        rlhf(tiny(algorithm="grpo", group=GroupOptions(generations=2), dense=dense, out=str(tmp_path / name)))
        weights.append((tmp_path / name / "model.safetensors").read_bytes())
    assert weights[0] == weights[1] != weights[2]


@pytest.mark.parametrize(
    "values",
    [
        {"head": "reward"},
        {"reward": "world/helpful"},
        {"reward": "http://localhost:1"},
        {"algorithm": "rloo", "group": GroupOptions(generations=2)},
    ],
)
def test_whole_rewards_are_not_dense(values: dict[str, Any], tiny: Config) -> None:
    with pytest.raises(ConfigError, match="dense"):
        tiny(dense="token", **values)


def test_a_scorer_without_tokens_is_refused_before_the_first_step(
    tiny: Config, rewarded: Callable[[Callable[[str], float | None]], None], lettered: Callable[[Any], None]
) -> None:
    rewarded(lambda text: 1.0)
    with pytest.raises(ModelError, match="--head policy"):
        rlhf(tiny(dense="token"))
    assert not Path(tiny().out).exists()
    lettered(Letters(aligned=False))
    with pytest.raises(DataError, match="dense"):
        rlhf(tiny(dense="token"))
