"""Packages of other programs, in folders that only the subprocess of a test uses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def overlay(folder: Path, *requirements: str, with_dependencies: bool = False) -> Path:
    """Install packages into a folder; skip the test if they can't be downloaded."""
    command = [sys.executable, "-m", "pip", "install", "-q", "--target", str(folder), *requirements]
    found = subprocess.run(
        command + ["--no-deps"] * (not with_dependencies), capture_output=True, text=True, cwd=folder.parent
    )
    if found.returncode:
        pytest.skip(f"{requirements[0]} can't be installed here: {found.stderr.strip().splitlines()[-1]}")
    return folder


def told(script: str, *args: object, path: Path) -> Any:
    """Run a script with the packages in a folder before the installed ones; return the JSON in its last line."""
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, *map(str, args)],
        env=os.environ | {"PYTHONPATH": str(path)},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr[-3000:]
    return json.loads(found.stdout.splitlines()[-1])
