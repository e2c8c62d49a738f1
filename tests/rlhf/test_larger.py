"""Training on more than one machine: the requests of OpenRLHF and the calls of verl, against a real server."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from types import ModuleType
from typing import Any

import httpx
import numpy as np
import pyarrow.parquet
import pytest

from hafrm.models.scorers import HybridScorer
from hafrm.pairs import Conversation
from hafrm.rlhf import verl
from tests.overlays import overlay, told
from tests.serving.conftest import LIMIT, live, tiny_scorer
from tests.tiny import tiny_tokenizer

BOOK = Path(__file__).parents[2] / "docs" / "clients" / "verl.md"
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
def loaded() -> Iterator[ModuleType]:
    """Load the module as verl does: from its path, under verl's own name."""
    spec = importlib.util.spec_from_file_location("custom_module", Path(verl.__file__))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["custom_module"] = module
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        del sys.modules["custom_module"]


def test_openrlhf_asks_with_the_policys_own_rendering(address: str, expected: list[float]) -> None:
    """Requests have whole texts in `query`, prompts and labels; OpenRLHF reads `rewards`, `scores` and `extra_logs`."""
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
    """verl passes keywords, the options of `reward_kwargs`, and further arguments in later versions."""
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
    """Arrays of objects, messages read from Parquet, and the address from the environment."""
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
    """The code in the docs writes the rows; verl reads the file with `datasets`, and a manager uses these keys."""
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
    """verl's trainer always builds its validation set."""
    (command,) = re.findall(r"python3 -m verl\.trainer\.main_ppo.*?\n```", BOOK.read_text(), re.S)
    for files in ("train_files", "val_files"):
        assert f" data.{files}=prompts.parquet" in command


def test_what_has_no_reward_is_named_or_has_the_stated_worth(
    loaded: ModuleType, address: str, expected: list[float]
) -> None:
    answers = ["", "word " * LIMIT, ANSWERS[0]]
    extras: list[dict[str, Any]] = [{"prompt": QUESTION}] * 3
    with pytest.raises(RuntimeError, match=r"no reward to 2 of 3.*empty_response"):
        verl.compute_scores(["chat"] * 3, answers, [None] * 3, extras, url=address)
    found = verl.compute_scores(["chat"] * 3, answers, [None] * 3, extras, url=address, unscored=-5)
    assert found == pytest.approx([-5, -5, expected[0]], abs=1e-5)


def test_what_is_missing_is_said(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(verl.ADDRESS, raising=False)
    with pytest.raises(ValueError, match=r"reward_kwargs\.url"):
        verl.compute_score("chat", "x", extra_info={"prompt": QUESTION})
    for extra in (None, {}, {"prompt": 3}):
        with pytest.raises(ValueError, match=r"chat: .*extra_info\.prompt"):
            verl.compute_score("chat", "x", extra_info=extra, url=address)


def test_the_file_imports_only_the_standard_library() -> None:
    """Run without the folder of installed packages, because verl's environment does not have hafrm."""
    script = "import runpy, sys; runpy.run_path(sys.argv[1]); print('hafrm' in sys.modules)"
    found = subprocess.run([sys.executable, "-I", "-S", "-c", script, verl.__file__], capture_output=True, text=True)
    assert found.stdout.strip() == "False", found.stderr


def test_async_calls_run_together(loaded: ModuleType, address: str, expected: list[float]) -> None:
    async def ask() -> list[float]:
        calls = (
            loaded.compute_score_async(
                data_source="chat", solution_str=answer, ground_truth="", extra_info={"prompt": QUESTION}, url=address
            )
            for answer in ANSWERS * 4
        )
        return list(await asyncio.gather(*calls))

    assert asyncio.run(ask()) == pytest.approx(expected * 4, abs=1e-5)


def test_a_busy_server_is_asked_again(loaded: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests are retried after the statuses of a proxy, but not after a refusal."""
    statuses = [503, 429, 200, 422]

    class Busy(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            status = statuses.pop(0)
            self.rfile.read(int(self.headers["Content-Length"]))
            body = json.dumps({"rewards": [{"reward": 1.5}]}).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            pass

    monkeypatch.setattr(loaded, "_PAUSES", (0.01,) * 3)
    with HTTPServer(("127.0.0.1", 0), Busy) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        assert loaded.compute_score("chat", "x", extra_info={"prompt": QUESTION}, url=url) == 1.5
        with pytest.raises(RuntimeError, match="answers 422"):
            loaded.compute_score("chat", "x", extra_info={"prompt": QUESTION}, url=url)
        server.shutdown()
    assert statuses == []
    with pytest.raises(RuntimeError, match="can't be reached"):
        loaded.compute_score("chat", "x", extra_info={"prompt": QUESTION}, url=url)


VERL = """
import asyncio, json, sys
import numpy as np, torch
from hydra import compose, initialize_config_module
from transformers import PreTrainedTokenizerFast
from verl import DataProto
from verl.trainer.ppo.reward import load_reward_manager

tokenizer = PreTrainedTokenizerFast.from_pretrained(sys.argv[1])
question, answers, several = json.loads(sys.argv[2])

async def score(manager, answer):
    ids = torch.tensor([tokenizer(answer, add_special_tokens=False)["input_ids"]])
    prompt = [{"role": "user", "content": question}]
    row = {"data_source": "chat", "reward_model": {"ground_truth": ""}}
    row["extra_info"] = {"prompt": np.array(prompt, object)}
    data = DataProto.from_dict(
        tensors={"responses": ids, "prompts": ids[:, :1], "attention_mask": torch.ones(1, ids.shape[1] + 1).long()},
        non_tensors={name: np.array([value], dtype=object) for name, value in row.items()},
    )
    return float((await manager.run_single(data))["reward_score"])

async def scores(config):
    manager = load_reward_manager(config, tokenizer)
    return await asyncio.gather(*(score(manager, answer) for answer in answers))

found = []
with initialize_config_module("verl.trainer.config", version_base=None):
    for overrides in several:
        found.append(asyncio.run(scores(compose("ppo_trainer", overrides))))
print(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.parametrize("version", ["0.7.1", "0.8.0", "0.9.1"])
def test_verls_managers_give_the_rewards_of_the_server(
    version: str, address: str, expected: list[float], tmp_path: Path
) -> None:
    """Use verl's own configuration with the options of the docs, its function loader, and its managers."""
    tiny_tokenizer().save_pretrained(tmp_path)
    packages = overlay(
        tmp_path / "packages", f"verl=={version}", "tensordict<=0.10.0", "pyvers", "cloudpickle", "codetiming", "orjson"
    )
    overlay(packages, "hydra-core", "aiohttp", with_dependencies=True)
    (command,) = re.findall(r"python3 -m verl\.trainer\.main_ppo.*?\n```", BOOK.read_text(), re.S)
    options = [word for word in shlex.split(command.removesuffix("```").replace("\\\n", " ")) if "reward" in word]
    several = [
        _changed(options, {".path": verl.__file__, ".url": address, "function.name": function, "manager.name": manager})
        for manager in ("naive", "dapo")
        for function in ("compute_score", "compute_score_async")
    ]
    found = told(VERL, tmp_path, json.dumps([QUESTION, ANSWERS, several]), path=packages)
    assert found == [pytest.approx(expected, abs=1e-5)] * 4


def _changed(options: list[str], values: dict[str, str]) -> list[str]:
    """Return the options, with the values of those whose names have these endings."""
    ends = [next((end for end in values if option.partition("=")[0].endswith(end)), None) for option in options]
    assert {*ends} >= values.keys()
    return [
        option if end is None else f"{option.partition('=')[0]}={values[end]}"
        for option, end in zip(options, ends, strict=True)
    ]
