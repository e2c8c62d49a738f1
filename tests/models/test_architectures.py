"""The sweep over every architecture of transformers: a few in everyday tests, all of them in slow tests."""

from __future__ import annotations

import re
from importlib.metadata import version

import pytest
from benchmarks.architectures import PAGE, WORKS, Found, Outcome, in_process, page
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


@pytest.mark.parametrize(("name", "outcome"), [("qwen2_moe", "packed"), ("bloom", "padded"), ("bert", "refused")])
def test_some_architectures(name: str, outcome: str) -> None:
    found = in_process(name)
    assert found.full is not None
    assert found.lora is not None
    assert (found.full.outcome, found.lora.outcome) == (outcome, outcome), found
    if outcome in WORKS:
        assert found.full.classifier
        assert found.full.rewards is not None
        assert 0 < found.full.rewards < 1e-3


@pytest.mark.slow
def test_no_architecture_fails() -> None:
    """Each architecture works, with full training and LoRA, or is refused before training with a reason."""
    failing = []
    for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        found = in_process(name)
        for outcome in (found.full, found.lora):
            if outcome is not None and outcome.outcome not in (*WORKS, "refused"):
                failing.append((name, outcome))
    assert not failing


def test_the_page_speaks_of_every_architecture() -> None:
    text = PAGE.read_text(encoding="utf-8")
    if f"transformers {version('transformers')} " not in text:
        pytest.skip("the page is of another version of transformers")
    rows = re.findall(r"^\| (\S+) \| `", text, flags=re.MULTILINE)
    lists = [line[2:].split(": ", 1)[0].split(", ") for line in text.splitlines() if line.startswith("- ")]
    named = {*rows, *(name for names in lists for name in names)}
    assert named == set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    assert "## Failing" not in text


def test_a_page_lists_what_was_found() -> None:
    works = Found("a", "A", full=Outcome("packed", classifier="AC"), lora=Outcome("refused", "no layer"))
    padded = Found("b", "B", full=Outcome("padded", "it has a state"), lora=Outcome("padded", "it has a state"))
    wrong = Found("c", "C", full=Outcome("wrong", "off by 1"), lora=Outcome("wrong", "off by 1"))
    text = page([works, padded, wrong, Found("d", "D", not_built="ValueError: x")])
    assert "| a | `A` | packed | refused | `AC` |" in text
    assert "- b: it has a state" in text
    assert "## Failing\n\n- c: off by 1" in text
    assert "- a: no layer" in text
    assert "- d: ValueError: x" in text
