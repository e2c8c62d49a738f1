"""The five real sets: counts, no prompt across splits, and the length-only numbers of their README."""

from __future__ import annotations

import pytest

from hafrm.data import DataOptions, check_pairs, encode_pairs, length_accuracy, load_pairs, pair_statistics
from hafrm.encoding import ConversationEncoder
from hafrm.pairs import prompt_group
from tests.paths import shared_data
from tests.tiny import tiny_tokenizer

SPLITS = ("train", "validation", "test")
SIZES = {
    "hh_harmless": (1_484, 99, 308),
    "pku_safe": (2_860, 136, 513),
    "alpaca_gpt4": (6_791, 390, 1_224),
    "qa_eval": (6_723, 321, 1_221),
    "arguments": (9_255, 568, 1_625),
}
LENGTH_ACCURACY = {"hh_harmless": 0.45, "pku_safe": 0.49, "alpaca_gpt4": 0.50, "qa_eval": 0.60, "arguments": 0.74}


@pytest.mark.parametrize("name", SIZES)
def test_counts_splits_and_length_bias(name: str) -> None:
    parts = {split: load_pairs(str(shared_data(name, split))).pairs for split in SPLITS}
    assert tuple(map(len, parts.values())) == SIZES[name]
    for key in (lambda pair: pair.group, lambda pair: prompt_group(pair.prompt)):
        groups = [{key(pair) for pair in pairs} for pairs in parts.values()]
        assert sum(map(len, groups)) == len(set.union(*groups))
    # Two standard errors of an accuracy at n = 308 are .057.
    assert length_accuracy(parts["test"]) == pytest.approx(LENGTH_ACCURACY[name], abs=0.04)
    findings = {finding.check for finding in check_pairs(parts["train"], against={"test": parts["test"]})}
    assert "overlap" not in findings
    assert ("length_bias" in findings) == (name == "arguments")


def test_single_turn_harmless_pairs_are_as_long_as_those_of_table_1() -> None:
    """Why `hh-harmless` is single-turn: Table 1 has 42.9 words per QA, 30% of `harmless-base` in number."""
    pairs = load_pairs(str(shared_data("hh_harmless", "train"))).pairs
    single = [pair for pair in pairs if len(pair.prompt.turns) == len(pair.chosen) == len(pair.rejected) == 1]
    assert 42_537 * len(single) / len(pairs) == pytest.approx(12_915, rel=0.08)
    assert pair_statistics(single).words_per_qa == pytest.approx(42.9, rel=0.05)
    assert pair_statistics(pairs).words_per_qa > 100


def test_beaver_safe_words_per_qa_are_those_of_table_1() -> None:
    """This determines what a QA is: the prompt with one response, averaged over both responses."""
    pairs = load_pairs(str(shared_data("pku_safe", "train"))).pairs
    assert pair_statistics(pairs).words_per_qa == pytest.approx(69.3, rel=0.02)


def test_real_pairs_encode_and_are_all_accounted_for() -> None:
    pairs = load_pairs(str(shared_data("hh_harmless", "validation"))).pairs
    encoded = encode_pairs(pairs, ConversationEncoder(tiny_tokenizer(), max_length=512), DataOptions())
    assert len(encoded) + sum(encoded.account.dropped.values()) == len(pairs) == 99
    assert max(max(group.lengths) for group in encoded) <= 512
