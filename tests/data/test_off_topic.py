"""Off-topic pairs: a good response to another prompt is rejected, and the data do not change otherwise."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hafrm.data import DataOptions, load_tables
from hafrm.data.off_topic import with_off_topic
from hafrm.data.reports import SourceReport
from hafrm.encoding import ConversationEncoder
from hafrm.errors import ConfigError
from hafrm.pairs import PreferencePair
from tests.tiny import pair, some_pairs, tiny_tokenizer


def augmented(pairs: list[PreferencePair], share: float, seed: int = 0) -> tuple[list[PreferencePair], int]:
    report = SourceReport(name="data", kind="memory")
    return list(with_off_topic(iter(pairs), report, share, seed)), report.off_topic


def parts(found: list[PreferencePair], pairs: list[PreferencePair]) -> list[tuple[PreferencePair, PreferencePair]]:
    """Check that the pairs are there, in order; return the others, each with the pair before it."""
    added, waiting = [], iter(pairs)
    before = pairs[0]
    expected = next(waiting, None)
    for each in found:
        if each is expected:
            before, expected = each, next(waiting, None)
        else:
            added.append((before, each))
    assert expected is None
    return added


@given(prompts=st.lists(st.integers(0, 4), min_size=2, max_size=40), share=st.floats(0, 1), seed=st.integers(0, 9))
def test_only_the_rejected_response_is_of_another_prompt(prompts: list[int], share: float, seed: int) -> None:
    """Several pairs may have the same prompt, and responses to different prompts may be equal."""
    pairs = [
        replace(pair(f"question {prompt}", f"yes {prompt % 3}", f"no {row}", row=row), margin=1.0)
        for row, prompt in enumerate(prompts)
    ]
    answers = {each.chosen: {other.group for other in pairs if other.chosen == each.chosen} for each in pairs}
    if len(answers) < 2:
        return
    found, counted = augmented(pairs, share, seed)
    added = parts(found, pairs)
    assert len(added) == counted <= round(share * len(pairs))
    for before, each in added:
        assert (each.prompt, each.chosen, each.id) == (before.prompt, before.chosen, before.id)
        assert each.rejected != each.chosen
        assert answers[each.rejected] - {each.group}
        assert each.margin is None
    assert augmented(pairs, share, seed)[0] == found


def test_the_share_is_right_and_draws_are_spread() -> None:
    """The source spans several chunks, of which the last has a single pair."""
    pairs = some_pairs(2049)
    found, counted = augmented(pairs, 0.25)
    added = parts(found, pairs)
    assert len(added) == counted == 256 + 256
    assert 1000 < sum(before.row for before, _ in added) / counted < 1050
    assert len({each.rejected for _, each in added}) > 400
    assert {each.rejected for _, each in added} <= {each.chosen for each in pairs}
    last, _ = augmented(pairs, 1.0)
    assert last[-1].prompt == pairs[-1].prompt
    assert last[-1].rejected != pairs[-1].rejected
    assert augmented(pairs, 0.25, seed=1)[0] != found


def test_tables_have_them_and_count_them() -> None:
    pairs = some_pairs(20)
    encoder = ConversationEncoder(tiny_tokenizer(), 256)
    plain = load_tables(pairs, encoder, DataOptions())
    more = load_tables(pairs, encoder, DataOptions(off_topic=0.5))
    (report,) = more.account.reports
    assert (report.rows, report.kept, report.off_topic, len(more)) == (20, 20, 10, 30)
    assert report.sha256 == plain.account.reports[0].sha256
    assert [group for group in plain if group not in list(more)] == []
    chosen = {group.responses[0] for group in plain}
    assert sum(group.responses[1] in chosen for group in more) == 10
    assert load_tables(pairs, encoder, DataOptions(off_topic=0.0))[:] == plain[:]
    assert load_tables(pairs, encoder, DataOptions(off_topic=0.5))[:] == more[:]
    assert load_tables(pairs, encoder, DataOptions(off_topic=0.5, split_seed=1))[:] != more[:]


def test_what_has_no_other_prompt_is_refused() -> None:
    with pytest.raises(ConfigError, match="off_topic"):
        augmented([pair("Why?", f"yes {row}", "no", row=row) for row in range(5)], 0.5)
    with pytest.raises(ConfigError, match="off_topic"):
        DataOptions(off_topic=1.5)
