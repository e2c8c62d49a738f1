"""A world for experiments that take seconds: a tiny backbone and a few pairs."""

from __future__ import annotations

from pathlib import Path

import pytest

from hafrm.data import loading
from hafrm.paper import presets
from hafrm.paper.world import backbone, source, world_pairs
from tests.tiny import save_tiny


@pytest.fixture
def tiny_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny backbone, whose byte tokens are more than the world's own tokens, and 24 pairs per split."""
    base = save_tiny(tmp_path / "base", max_position_embeddings=512)
    monkeypatch.setattr(backbone, "world_backbone", lambda kind: base)
    monkeypatch.setattr(presets, "WORLD_MAX_LENGTH", 512)
    monkeypatch.setattr(presets, "MIXED_PAIRS", {"train": 8, "validation": 4})
    monkeypatch.setattr(source, "world_pairs", lambda name, split, size: world_pairs(name, split, size=size or 24))
    monkeypatch.setattr(loading, "_drawn", loading._drawn.__wrapped__)
    return base
