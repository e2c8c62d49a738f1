"""Runs the tests that need a pretend device in a process of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_training_steps_leave_no_tensor_behind() -> None:
    checks = Path(__file__).with_name("on_device.py")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(checks)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout[-4000:]
