"""The sets' pairs, drawn once for all tests."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from hafrm.pairs import PreferencePair
from hafrm.paper.world import WORLD_SETS, world_pairs


@pytest.fixture(scope="session")
def train_pairs() -> Mapping[str, list[PreferencePair]]:
    return {name: world_pairs(name) for name in WORLD_SETS}


@pytest.fixture(scope="session")
def test_pairs() -> Mapping[str, list[PreferencePair]]:
    return {name: world_pairs(name, "test") for name in WORLD_SETS}
