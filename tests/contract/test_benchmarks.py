"""The benchmarks' pages match their files, and their counts are correct."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from benchmarks.limit import hybrid_operations
from benchmarks.measure import median_ratio
from benchmarks.report import PAGES, README, page, with_table
from benchmarks.serving import growth, judge, make_pool
from benchmarks.workload import Shape, draw_batches, random_group

RESULTS = Path(__file__).parents[2] / "docs" / "results"


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_that_of_its_files(name: str) -> None:
    assert (RESULTS / f"{name}.md").read_text(encoding="utf-8") == page(name)


def test_the_table_of_speed_is_that_of_its_files() -> None:
    readme = README.read_text(encoding="utf-8")
    assert "<!-- speed: " in readme
    assert with_table(readme) == readme


def test_operations_by_hand() -> None:
    """One layer of width 4, one pair: 3 prompt tokens, answers of 2 and 1."""
    shape = Shape(hidden=4, layers=1, vocabulary=10, heads=1)
    group = random_group(3, 2, 1, vocabulary=10)
    weights = 4 * 4 * 4 + 3 * 4 * 32
    keys = (1 + 2 + 3) + (4 + 5) + 4  # prompt, first answer, second answer
    expected = 6 * weights * 6 + 6 * 2 * 4 * keys + 6 * 4 * 10 * 3
    assert hybrid_operations(shape, [group]) == expected
    assert hybrid_operations(shape, [group], head=False) == expected - 6 * 4 * 10 * 3


def test_ratios_are_taken_round_by_round() -> None:
    """A machine that becomes ten times slower between rounds does not change the ratios."""
    assert median_ratio([1, 10, 2], [2, 20, 4]) == 0.5


def test_served_answers_are_judged() -> None:
    pool = [(conversation, float(i)) for i, conversation in enumerate(make_pool(5))]
    assert len({conversation for conversation, _ in pool}) == 5

    def judged(status: int, reward: float | None) -> str:
        return judge(httpx.Response(status, json={"rewards": [{"reward": reward}]}), 2.0, pool)

    assert [judged(200, reward) for reward in (2.00001, 3.0, 2.5, None)] == ["right", "crossed", "wrong", "wrong"]
    assert [judged(status, 2.0) for status in (429, 503, 500)] == ["refused", "refused", "lost"]


def test_growth_is_that_of_the_last_third() -> None:
    """Buffers that fill once do not count as growth; memory that still grows at the end does."""
    assert growth([0, 50, 100, 100, 100, 100]) == 0
    assert growth([0, 10, 20, 30, 40, 50]) == 20
    assert growth([7]) == 0


def test_pools_of_several_responses_share_prompts_unless_they_are_apart() -> None:
    shared, apart = (make_pool(24, 8, apart=each) for each in (False, True))
    assert [len({c.prompt for c in pool}) for pool in (shared, apart)] == [3, 24]
    assert [c.response for c in shared] == [c.response for c in apart]
    assert len(set(shared)) == 24


def test_grouped_batches_hold_like_lengths() -> None:
    groups = [random_group(n, n, n, seed=n) for n in range(1, 65)]
    spread = {
        grouped: max(
            max(g.lengths[0] for g in batch) - min(g.lengths[0] for g in batch)
            for batch in draw_batches(groups, pairs=4, batches=4, grouped=grouped)
        )
        for grouped in (False, True)
    }
    assert spread[True] < 10 < spread[False]
    drawn = [group for batch in draw_batches(groups, pairs=4, batches=4) for group in batch]
    assert len(set(drawn)) == 16


def test_a_step_is_measured_from_end_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every contestant computes a loss and gradients on a tiny model; ours agree with the padded full logits."""
    pytest.importorskip("trl", reason="needs TRL: pip install 'hafrm[trl]'")
    from benchmarks import contestants, workload

    from tests.tiny import tiny_tokenizer

    monkeypatch.setattr(contestants, "real_tokenizer", lambda: tiny_tokenizer())
    shape = workload.Shape(hidden=32, layers=1, vocabulary=300, heads=2)
    batch = [random_group(9, 4, 6, seed=i, vocabulary=250) for i in range(3)]
    losses = {name: contestants.build(name, shape)(batch).item() for name in contestants.CONTESTANTS}
    assert losses["hybrid"] == pytest.approx(losses["padded_full_logits"], rel=1e-4)
    assert losses["hybrid"] == pytest.approx(losses["padded_hybrid"], rel=1e-4)
    assert losses["policy_only"] == pytest.approx(losses["trl_dpo"], rel=1e-4)
    assert losses["trl_dpo"] == pytest.approx(losses["trl_dpo_every_position"], rel=1e-4)
