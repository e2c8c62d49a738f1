"""Hostile requests, drawn and made: whatever the server is sent, it does not fail. `benchmarks.fuzz` sends 10,000."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from benchmarks.fuzz import MAKERS, VALID, Findings, Request, from_document, hostile_requests, send

from tests.serving.conftest import live, tiny_scorer


@pytest.fixture(scope="module")
def served() -> Iterator[str]:
    with live(tiny_scorer(), body_timeout=0.3) as address:
        yield address


@pytest.mark.slow
def test_no_drawn_request_fails(served: str) -> None:
    pytest.importorskip("schemathesis")
    findings = Findings()
    assert from_document(served, 120, 0, findings) >= 60
    assert findings.failures == []
    assert {"200", "422"} <= set(findings.statuses)


@pytest.mark.slow
def test_no_hostile_request_fails(served: str) -> None:
    findings = Findings()
    for request in hostile_requests(20 * len(MAKERS), seed=1):
        findings.add(request.kind, repr(request.raw[:500]), *send(served, request))
    assert findings.failures == []
    assert set(findings.requests) == set(MAKERS)
    assert {"200", "400", "403", "404", "405", "413", "422"} <= set(findings.statuses)


def test_the_requests_that_hostile_ones_are_made_from_are_right(served: str) -> None:
    import httpx

    for path, body in VALID.items():
        assert httpx.post(served + path, json=body).status_code == 200


def test_what_counts_as_a_failure() -> None:
    findings = Findings()
    for status, body in ((200, "{}"), (422, "{}"), (499, "")):
        findings.add("a", "b", status, body)
    assert not findings.failures
    for status, body in ((500, "{}"), (None, ""), (400, "Traceback (most recent call last)")):
        findings.add("a", "b", status, body)
    assert len(findings.failures) == 3


def test_equal_seeds_make_equal_requests() -> None:
    def made(seed: int) -> list[Request]:
        return list(hostile_requests(60, seed))

    assert made(3) == made(3) != made(4)
