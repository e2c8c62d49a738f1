"""Requests drawn from the server's own OpenAPI document: whatever it is sent, it does not fail."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error

from tests.serving.conftest import live, tiny_scorer

SECONDS = 2.0  # a path; what is drawn after that is not sent
QUICK = settings(max_examples=40, deadline=None, database=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def served() -> Iterator[str]:
    with live(tiny_scorer()) as address:
        yield address


@pytest.mark.parametrize("mode", schemathesis.GenerationMode, ids=lambda mode: mode.value)
@pytest.mark.parametrize(
    "path", ["/v1/rewards", "/get_reward", "/v1/score/evaluation", "/classify", "/pooling", "/rerank"]
)
def test_no_drawn_request_fails(path: str, mode: schemathesis.GenerationMode, served: str) -> None:
    schema = schemathesis.openapi.from_url(f"{served}/openapi.json")
    end = time.monotonic() + SECONDS / 2
    statuses = set()

    @QUICK
    @given(case=schema[path]["POST"].as_strategy(generation_mode=mode))
    def check(case: schemathesis.Case) -> None:
        if time.monotonic() < end:
            answer = case.call()
            case.validate_response(answer, checks=[not_a_server_error])
            assert "Traceback" not in answer.text
            statuses.add(answer.status_code)

    check()
    assert statuses
