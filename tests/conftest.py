"""What every test runs under: no network, caches in a temporary folder."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"  # tiny models: threads cost more than they bring

import pytest
from hypothesis import settings

settings.register_profile("unhurried", deadline=None)  # a shared machine stalls at times
settings.load_profile("unhurried")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what a test caches out of the user's folder."""
    monkeypatch.setenv("HAFRM_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(autouse=True)
def float32_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train in float32 on every machine, also where bfloat16 would be measured to be faster."""
    monkeypatch.setattr("hafrm.numerics.bfloat16_speedup", lambda: 1.0)
