"""Training on more than one machine: the requests of OpenRLHF and the calls of verl, against a real server."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import numpy as np
import pyarrow.parquet
import pytest

from hafrm.errors import ConfigError, DataError, ModelError
from hafrm.models.scorers import HybridScorer
from hafrm.pairs import Conversation
from hafrm.rlhf import verl
from tests.serving.conftest import LIMIT, live, tiny_scorer
from tests.tiny import tiny_tokenizer

BOOK = Path(__file__).parents[2] / "docs" / "rlhf.md"
QUESTION, ANSWERS = "How are you?", ["Fine, thanks.", "Go away."]


@pytest.fixture(scope="module")
def scorer() -> HybridScorer:
    return tiny_scorer()


@pytest.fixture(scope="module")
def address(scorer: HybridScorer) -> Iterator[str]:
    with live(scorer) as found:
        yield found


@pytest.fixture(scope="module")
def expected(scorer: HybridScorer) -> list[float]:
    return [reward for reward in scorer.score([Conversation.of(QUESTION, a) for a in ANSWERS]) if reward is not None]


@pytest.fixture(scope="module")
def loaded(address: str) -> Iterator[ModuleType]:
    """The module as verl has it: run from its path, under a name of verl's."""
    spec = importlib.util.spec_from_file_location("custom_module", Path(verl.__file__))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["custom_module"] = module
    try:
        spec.loader.exec_module(module)
        yield module
        for asked in (module, verl):  # both keep their connections for the whole of a training run
            asked._scorer(address)._client.close()
    finally:
        del sys.modules["custom_module"]


def test_openrlhf_asks_with_the_policys_own_rendering(address: str, expected: list[float]) -> None:
    """Whole texts in `query`, prompts and labels beside; it reads `rewards`, then `scores` and `extra_logs`."""
    prompt = [{"role": "user", "content": QUESTION}]
    texts = [
        tiny_tokenizer().apply_chat_template([*prompt, {"role": "assistant", "content": answer}], tokenize=False)
        for answer in ANSWERS
    ]
    prompts = [tiny_tokenizer().apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)] * 2
    body = {"query": texts, "prompts": prompts, "labels": ["", ""]}
    answer = httpx.post(f"{address}/get_reward", json=body, headers={"Content-Type": "application/json"}, timeout=180)
    assert answer.raise_for_status().json()["rewards"] == pytest.approx(expected, abs=1e-5)
    assert answer.json()["scores"] == answer.json()["rewards"]
    assert answer.json()["extra_logs"] == {}


def test_verl_scores_one_response_at_a_time(loaded: ModuleType, address: str, expected: list[float]) -> None:
    """By keyword, with the options of `reward_kwargs` beside, and what later versions hand over as well."""
    for answer, reward in zip(ANSWERS, expected, strict=True):
        found = loaded.compute_score(
            data_source="chat",
            solution_str=answer,
            ground_truth="",
            extra_info={"prompt": QUESTION, "index": 3, "num_turns": None},
            reward_router_address=None,
            url=address,
        )
        assert found == pytest.approx(reward, abs=1e-5)


def test_verl_scores_a_batch(
    loaded: ModuleType, address: str, expected: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arrays of objects, messages that went through Parquet, the address from the environment."""
    monkeypatch.setenv(verl.ADDRESS, address)
    messages = np.array([{"role": "user", "content": QUESTION}], dtype=object)
    found = loaded.compute_scores(
        data_sources=np.array(["chat", "chat"], dtype=object),
        solution_strs=ANSWERS,
        ground_truths=[None, None],
        extra_infos=np.array([{"prompt": messages}, {"prompt": QUESTION}], dtype=object),
    )
    assert found == pytest.approx(expected, abs=1e-5)


def test_the_rows_of_the_book_have_what_verls_managers_read(
    loaded: ModuleType, address: str, expected: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The book's own lines write them; verl reads the file with `datasets`, and a manager takes these keys of a row."""
    monkeypatch.chdir(tmp_path)
    prompt = [{"role": "user", "content": QUESTION}]
    Path("prompts.jsonl").write_text(json.dumps({"prompt": prompt}) + "\n")
    (block,) = re.findall(r"```python\n(import datasets\n.*?)```", BOOK.read_text(), re.S)
    exec(block, {})
    (row,) = pyarrow.parquet.read_table("prompts.parquet").to_pylist()
    assert row["prompt"] == prompt
    found = loaded.compute_scores(
        data_sources=[row["data_source"]] * 2,
        solution_strs=ANSWERS,
        ground_truths=[row["reward_model"]["ground_truth"]] * 2,
        extra_infos=[row["extra_info"]] * 2,
        url=address,
    )
    assert found == pytest.approx(expected, abs=1e-5)


def test_the_books_command_gives_verl_both_of_its_sets() -> None:
    """verl's trainer builds its validation set always."""
    (command,) = re.findall(r"python3 -m verl\.trainer\.main_ppo.*?\n```", BOOK.read_text(), re.S)
    for files in ("train_files", "val_files"):
        assert f" data.{files}=prompts.parquet" in command


def test_what_has_no_reward_is_named_or_has_the_stated_worth(
    loaded: ModuleType, address: str, expected: list[float]
) -> None:
    answers = ["", "word " * LIMIT, ANSWERS[0]]
    extras: list[dict[str, Any]] = [{"prompt": QUESTION}] * 3
    with pytest.raises(ModelError, match="no reward to 2 of 3"):
        verl.compute_scores(["chat"] * 3, answers, [None] * 3, extras, url=address)
    found = verl.compute_scores(["chat"] * 3, answers, [None] * 3, extras, url=address, unscored=-5)
    assert found == pytest.approx([-5, -5, expected[0]], abs=1e-5)


def test_what_is_missing_is_said(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(verl.ADDRESS, raising=False)
    with pytest.raises(ConfigError, match=r"reward_kwargs\.url"):
        verl.compute_score("chat", "x", extra_info={"prompt": QUESTION})
    for extra in (None, {}, {"prompt": 3}):
        with pytest.raises(DataError, match=r"chat: a row's extra_info.prompt"):
            verl.compute_score("chat", "x", extra_info=extra, url=address)
