"""The server's log lines are bounded and escaped."""

from __future__ import annotations

import httpx
import pytest

from hafrm.models.scorers import HybridScorer
from hafrm.pairs import Conversation
from hafrm.serving.errors import traceback_text
from tests.serving.conftest import Wrapped, body, live

HOSTILE = "\x1b[2J\r\n\x00\u202e" + "x" * 10**6


def failure(causes: int) -> Exception:
    error: Exception = ValueError(HOSTILE + "\n" * 10**5)
    for _ in range(causes):
        try:
            raise RuntimeError(HOSTILE) from error
        except RuntimeError as caught:
            error = caught
    return error


@pytest.mark.parametrize("causes", [0, 1, 50])
def test_tracebacks_are_bounded(causes: int) -> None:
    text = traceback_text(failure(causes))
    assert len(text) < 20_000
    assert all(line.isprintable() for line in text.split("\n"))
    assert "ValueError" in text  # the first cause
    assert traceback_text(KeyError("a")).split("\n")[-1] == "KeyError: 'a'"


def test_a_500_logs_one_bounded_traceback(scorer: HybridScorer, caplog: pytest.LogCaptureFixture) -> None:
    def score(groups: object) -> list[float]:
        raise failure(3)

    with live(Wrapped(scorer, score)) as address:
        answer = httpx.post(f"{address}/v1/rewards", json=body(Conversation.of("a", "b")), timeout=20)
    assert answer.status_code == 500
    assert answer.json()["error"]["id"] in caplog.text
    assert len(caplog.records) == 1
    assert len(caplog.text) < 20_000
    assert "RuntimeError" in caplog.text
    assert "\x1b" not in caplog.text
    assert "\x00" not in caplog.text
