"""Progress is also printed without a terminal, but not too often."""

from __future__ import annotations

import time

import pytest

from hafrm import progress
from hafrm.progress import ProgressLine, time_left


def test_a_log_file_gets_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with ProgressLine("loading") as line:
        for count in range(100):
            line.show(f"[b]: {count} done")
            now += 1
        line.say("[i] said at once")
    assert capfd.readouterr().err.splitlines() == [
        *(f"[b]: {count} done" for count in (30, 60, 90)),
        "[i] said at once",
    ]


def test_the_time_left_is_that_of_the_speed_so_far() -> None:
    assert time_left(time.monotonic() - 60, 20, 40) == ", 0:02:00 left"
    assert time_left(time.monotonic(), 0, 40) == time_left(time.monotonic() - 60, 20, 0) == ""
