"""Settings for all tests: no network, caches in a temporary folder."""

from __future__ import annotations

import gc
import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"  # threads slow tiny models down

from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest
from hypothesis import settings

settings.register_profile("unhurried", deadline=None)  # a shared machine stalls at times
settings.load_profile("unhurried")


TOGETHER = ("tests/faults/test_", "tests/report/test_browser")
"""Prefixes of paths of test files that run in one worker, because they share processes that start slowly."""

_number = count()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Let `--dist loadfile` also run files of `TOGETHER` in one worker."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Files(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return next(filter(nodeid.startswith, TOGETHER), super()._split_scope(nodeid))

    return Files(config, log)


def pytest_collection_finish() -> None:
    """Exclude imported objects from garbage collection: transformers collects before every training."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep test caches out of the user's folder."""
    monkeypatch.setenv("HAFRM_CACHE", str(tmp_path_factory.getbasetemp() / f"cache-{next(_number)}"))


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Don't flush files to disk: no test cuts the power."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture(autouse=True, scope="session")
def float32_by_default() -> Iterator[None]:
    """Train in float32 on every machine, even if bfloat16 is measured to be faster."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hafrm.numerics.bfloat16_speedup", lambda: 1.0)
        yield
