"""The order of pairs is transformers' own and known before training, so only visited pairs get references."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from transformers import Trainer, TrainingArguments

from hafrm.data import DataOptions
from hafrm.errors import ConfigError
from hafrm.models.references import ReferenceCache
from hafrm.training.config import TrainConfig
from hafrm.training.order import PairOrder, pair_order
from hafrm.training.run import train
from tests.tiny import save_tiny, some_pairs


def stock_order(pairs: int, epochs: int, folder: Path, **options: Any) -> list[list[int]]:
    """The rows that transformers' trainer draws, epoch by epoch."""
    from torch import nn

    args = TrainingArguments(str(folder), per_device_train_batch_size=1, use_cpu=True, report_to=[], **options)
    trainer = Trainer(nn.Linear(1, 1), args, train_dataset=list(range(pairs)), data_collator=lambda rows: rows[0])
    found = []
    for epoch in range(epochs):
        loader = trainer.get_train_dataloader()
        loader.set_epoch(epoch)
        found.append(list(loader))
    return found


@pytest.mark.parametrize(
    "options", [{"seed": 3}, {"seed": 3, "data_seed": 5}, {"seed": 1, "train_sampling_strategy": "sequential"}], ids=str
)
def test_pairs_are_drawn_as_transformers_draws_them(options: dict[str, Any], tmp_path: Path) -> None:
    expected = stock_order(11, 3, tmp_path, **options)
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to=[], **options)
    order = pair_order(args, range(11), batch_by="pair")
    assert [order.of_epoch(epoch) for epoch in range(3)] == expected
    assert [list(order) for _ in range(3)] == expected


@pytest.mark.parametrize(("steps", "batch", "visited"), [(1, 4, 4), (2, 4, 8), (3, 4, 10), (9, 4, 10), (1, 99, 10)])
def test_the_visited_pairs_are_the_first_of_the_order(steps: int, batch: int, visited: int) -> None:
    order = PairOrder(range(10), 7)
    assert order.visited(steps, batch) == order.of_epoch(0)[:visited]
    assert len(order) == 10


def test_a_short_run_computes_references_for_its_own_pairs_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    log_probs = ReferenceCache.log_probs

    def counted(self: ReferenceCache, groups: Any, *rest: Any) -> Any:
        asked.append(sum(len(group.responses) for group in groups))
        return log_probs(self, groups, *rest)

    monkeypatch.setattr(ReferenceCache, "log_probs", counted)
    base = save_tiny(tmp_path / "base")
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(pair.as_row()) + "\n" for pair in some_pairs(24)))
    fast = {"max_steps": 2, "per_device_train_batch_size": 3, "use_cpu": True, "report_to": []}
    options = DataOptions(max_length=128)
    train(
        TrainConfig(model=str(base), data=[str(path)], out=str(tmp_path / "run"), data_options=options, training=fast)
    )
    assert 6 <= sum(asked) <= 2 * 2 * 3


def test_pairs_of_a_prompt_are_visited_together() -> None:
    prompts = [0, 1, 0, 2, 1, 0, 3]
    order = PairOrder(prompts, 7, by_prompt=True)
    for epoch in range(4):
        rows = order.of_epoch(epoch)
        assert sorted(rows) == list(range(7))
        seen = [prompts[row] for row in rows]
        assert len([1 for a, b in pairwise(seen) if a != b]) == 3
        assert [row for row in rows if prompts[row] == 0] == [0, 2, 5]
    assert len({tuple(order.of_epoch(epoch)) for epoch in range(9)}) > 3
    sequential = TrainingArguments("x", use_cpu=True, report_to=[], train_sampling_strategy="sequential")
    with pytest.raises(ConfigError, match="batch_by"):
        pair_order(sequential, prompts, batch_by="prompt")
