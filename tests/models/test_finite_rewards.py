"""A reward that is not finite is refused everywhere, and never ranked, averaged or written."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from hafrm.errors import ModelError
from hafrm.evaluation.scoring import score_conversations, score_pairs
from hafrm.judging.judges import Question
from hafrm.judging.local import RewardJudge
from hafrm.models.options import ScoreOptions, ScorerChoice
from hafrm.pairs import Conversation, Message
from tests.models.test_scorers import save_classifier
from tests.tiny import save_tiny, some_pairs

BAD = [math.nan, math.inf, -math.inf]


def spoil(folder: Path, name: str, value: float) -> None:
    """Put a value into a tensor of a folder's weights."""
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors[name] = tensors[name].clone()
    tensors[name].view(-1)[0] = value
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize("value", BAD, ids=str)
def test_a_reward_heads(value: float, tmp_path: Path) -> None:
    folder = Path(save_classifier(tmp_path / "classifier"))
    spoil(folder, "score.weight", value)
    scorer = ScorerChoice().load(str(folder), ScoreOptions())
    with pytest.raises(ModelError, match="not finite"):
        scorer.score([some_pairs(1)[0].conversations[0]])


def test_an_implicit_one(tmp_path: Path) -> None:
    """The weights overflow after loading: damaged weights are refused earlier."""
    model, base = save_tiny(tmp_path / "model"), save_tiny(tmp_path / "base", seed=1)
    scorer: Any = ScorerChoice(head="policy", reference=str(base)).load(str(model), ScoreOptions())
    with torch.no_grad():
        scorer.model.stock_lm.lm_head.weight[5] = math.inf
    with pytest.raises(ModelError, match="not finite"):
        scorer.score([some_pairs(1)[0].conversations[0]])


class Spoiled:
    """A custom scorer, whose second reward is not finite."""

    def __init__(self, value: float) -> None:
        self.value = value

    def score(self, conversations: Sequence[Conversation]) -> list[float | None]:
        return [self.value if place == 1 else float(place) for place in range(len(conversations))]


@pytest.mark.parametrize("value", BAD, ids=str)
def test_one_of_a_scorer_of_ones_own(value: float) -> None:
    """An evaluation names the row; a judge that uses rewards gives it no rank."""
    pairs = some_pairs(2)
    with pytest.raises(ModelError, match=rf"{pairs[0].source}, row {pairs[0].row}: .*{value}"):
        list(score_pairs(Spoiled(value), pairs, model="m", data="d"))
    (conversation, other) = pairs[0].conversations
    with pytest.raises(ModelError, match=r"rows\.jsonl, row 7"):
        score_conversations(
            Spoiled(value), [conversation, other], [("rows.jsonl", 3), ("rows.jsonl", 7)], on_bad_row="skip"
        )
    question = Question((Message("user", "?"),), ((Message("assistant", "a"),), (Message("assistant", "b"),)))
    with pytest.raises(ModelError, match=str(value)):
        RewardJudge(Spoiled(value)).ask([question])


def test_finite_ones_pass(tmp_path: Path) -> None:
    scorer = ScorerChoice().load(str(save_classifier(tmp_path / "classifier")), ScoreOptions())
    (reward,) = scorer.score([some_pairs(1)[0].conversations[0]])
    assert reward is not None
    assert torch.isfinite(torch.tensor(reward))
    assert json.loads(json.dumps(reward)) == reward
