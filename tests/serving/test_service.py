"""Small and large requests are read on separate threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from hafrm.serving.reading import Reader, pieces
from tests.serving.conftest import live, tiny_scorer


@pytest.mark.parametrize(
    ("query", "threads"),
    [(["a b"] * 3, {"small"}), (["a b " * 20] * 900, {"large"}), (["a b", "c " * 10**5, "d"], {"large"})],
    ids=["small", "large", "long"],
)
def test_small_requests_wait_for_no_large_ones(
    query: list[str], threads: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    readers: list[str] = []

    def noted(function: Callable[..., Any]) -> Callable[..., Any]:
        def read(self: Reader, inputs: Any) -> Any:
            readers.append(threading.current_thread().name.split("-")[1].split("_")[0])
            return function(self, inputs)

        return read

    monkeypatch.setattr(Reader, "read", noted(Reader.read))
    scorer = tiny_scorer(overlong="truncate")
    with live(scorer) as address:
        rewards = httpx.post(f"{address}/get_reward", json={"query": query}, timeout=60).raise_for_status().json()
        alone = [
            httpx.post(f"{address}/get_reward", json={"query": [text]}, timeout=60).json()["rewards"][0]
            for text in dict.fromkeys(query)
        ]
    assert set(readers[: len(readers) - len(alone)]) == threads
    expected = dict(zip(dict.fromkeys(query), alone, strict=True))
    assert rewards["rewards"] == pytest.approx([expected[text] for text in query], abs=1e-5)


@pytest.mark.parametrize("lengths", [[], [5], [2000], [1, 2, 3], [900, 1, 900, 1, 5000, 1, 1], [10] * 50])
def test_pieces_hold_all_inputs_in_order(lengths: list[int]) -> None:
    inputs = [chr(97 + i % 26) * length for i, length in enumerate(lengths)]
    found = list(pieces(inputs, 1500))
    assert [text for piece in found for text in piece] == inputs
    assert all(len(piece) == 1 or sum(map(len, piece)) <= 1500 for piece in found)
