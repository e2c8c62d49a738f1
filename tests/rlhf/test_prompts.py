"""Prompts from files and sets, and their order."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hafrm.data import ReadOptions
from hafrm.errors import BadRowError, DataError
from hafrm.pairs import Message, Prompt
from hafrm.rlhf.job import deal, prompt_set
from tests.tiny import tiny_tokenizer

NO_SYSTEM = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('No system turn.') }}"
    "{% endif %}{{ m['content'] }}{% endfor %}"
)
SYSTEM = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]


def write(path: Path, rows: list[object]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_prompts_of_all_forms_are_read_once_and_accounted_for(tmp_path: Path) -> None:
    chat = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    pair = {
        "chosen": [*chat, {"role": "assistant", "content": "a"}],
        "rejected": [*chat, {"role": "assistant", "content": "b"}],
    }
    name = write(
        tmp_path / "p.jsonl", [{"prompt": "Hi"}, {"prompt": "Hi"}, {"prompt": chat}, pair, {"prompt": "x" * 99}]
    )
    found = prompt_set([name], tiny_tokenizer(), max_tokens=60)
    system = Prompt((Message("system", "Be kind."), Message("user", "Hi")))
    assert found.prompts == (Prompt.of("Hi"), system)
    assert found.account["overlong"] == 1
    assert found.account["repeated"] == 2
    assert found.account["pairs"] == 2
    assert found.account["sources"][0]["kept"] == 5


def test_bad_rows_stop_or_are_counted(tmp_path: Path) -> None:
    name = write(tmp_path / "p.jsonl", [{"prompt": " "}, {"question": "x"}, {"prompt": "Hi"}])
    with pytest.raises(BadRowError, match="row 1"):
        prompt_set([name], tiny_tokenizer(), max_tokens=60)
    found = prompt_set([name], tiny_tokenizer(), max_tokens=60, options=ReadOptions(on_bad_row="skip"))
    assert found.account["sources"][0]["skipped"] == {"empty_prompt": 1, "missing_field": 1}
    with pytest.raises(DataError, match="at most 5 tokens"):
        prompt_set([name], tiny_tokenizer(), max_tokens=5, options=ReadOptions(on_bad_row="skip"))


def test_prompts_that_the_chat_template_refuses_stop_or_are_counted(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(template=NO_SYSTEM)
    name = write(tmp_path / "p.jsonl", [{"prompt": "Hi"}, {"prompt": SYSTEM}])
    with pytest.raises(BadRowError, match=r"p.jsonl, row 2: .*No system turn"):
        prompt_set([name], tokenizer, max_tokens=60)
    found = prompt_set([name], tokenizer, max_tokens=60, options=ReadOptions(on_bad_row="skip"))
    assert found.prompts == (Prompt.of("Hi"),)
    assert (found.account["refused_by_template"], found.account["overlong"]) == (1, 0)


@pytest.mark.parametrize(
    ("prompts", "why"),
    [
        ([SYSTEM], r"p.jsonl: the policy's chat template refuses all of 1 prompts\. Change their roles"),
        ([SYSTEM, "x" * 99], "none of 1 prompts has at most 60 tokens; the policy's chat template refuses 1 of 2"),
        (["x" * 99], r"none of 1 prompts has at most 60 tokens\. Raise max_prompt_tokens"),
        ([" "], "there is no prompt to answer"),
    ],
)
def test_why_no_prompt_is_left_is_told(prompts: list[object], why: str, tmp_path: Path) -> None:
    name = write(tmp_path / "p.jsonl", [{"prompt": prompt} for prompt in prompts])
    with pytest.raises(DataError, match=why):
        prompt_set([name], tiny_tokenizer(template=NO_SYSTEM), max_tokens=60, options=ReadOptions(on_bad_row="skip"))


def test_the_world_has_prompts() -> None:
    found = prompt_set(["world/helpful[:40]"], tiny_tokenizer(), max_tokens=400)
    assert len(found.prompts) > 20


def test_prompts_are_dealt_evenly_and_by_the_step_alone() -> None:
    """Ten prompts in batches of four: each once per epoch, batches that span two epochs, different orders."""
    dealt = [place for step in range(1, 11) for place in deal(10, 4, step, seed=3)]
    epochs = [dealt[start : start + 10] for start in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 4
    assert deal(10, 4, 1, seed=4) != dealt[:4]
    assert len(deal(3, 8, 1, seed=0)) == 8
