"""The README's numbers match the files written by `make demo` and the study; its Python and curl examples run."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from hafrm.pairs import Conversation
from hafrm.paper.publishing import markdown_path, page_of, results_path, with_block
from hafrm.paper.scales import MAIN_PAGE
from tests.serving.conftest import live
from tests.tiny import save_tiny, some_pairs

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results" / "demo" / "results.json"


def test_the_results_table_is_the_demos() -> None:
    text = (ROOT / "docs" / "results" / "demo.md").read_text(encoding="utf-8")
    table = re.search(r"<!-- results: .*?-->(.*?)<!-- end of results -->", text, re.DOTALL)
    assert table is not None
    rows = {line.split("|")[1].strip(): line for line in table[1].splitlines() if line.startswith("|")}
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    for model, entry in results["models"].items():
        cells = [cell.strip() for cell in rows[Path(model).name].split("|")[2:-1]]
        expected = [
            f"{100 * found['accuracy']:.1f} [{100 * found['ci95'][0]:.1f}, {100 * found['ci95'][1]:.1f}]"
            for found in entry["data"].values()
        ]
        assert cells == expected


def read_results(page: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / results_path(page)).read_text(encoding="utf-8"))
    return found


def study_pages() -> list[str]:
    return sorted(path.stem for path in (ROOT / markdown_path(MAIN_PAGE)).parent.glob(f"{MAIN_PAGE}*.md"))


@pytest.mark.parametrize("page", study_pages())
def test_a_studys_page_is_made_of_its_numbers(page: str) -> None:
    results = read_results(page)
    assert (ROOT / markdown_path(page)).read_text(encoding="utf-8") == page_of(results, page)


def test_the_readmes_study_is_the_main_page() -> None:
    """Either no study is published and the README shows none, or its table matches the page's numbers."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    if MAIN_PAGE not in study_pages():
        assert "| bag of words |" not in readme
        return
    assert "<!-- study:" in readme
    assert with_block(readme, read_results(MAIN_PAGE)) == readme


def blocks(language: str) -> list[str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Run the README's Python blocks in order, on a tiny model and a few pairs; return what they define."""
    folder = tmp_path_factory.mktemp("readme")
    save_tiny(folder / "MODEL", max_position_embeddings=512)
    for name in ("train", "valid"):
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps(pair.as_row()) for pair in some_pairs()))
    names: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HAFRM_CACHE", str(folder / "cache"))
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        for text in blocks("python"):
            few = text.replace('out="runs/mine")', 'out="runs/mine", training={"max_steps": 4})')
            exec(few.replace("runs/haf", "runs/mine"), names)
    return names


def test_the_readmes_python_trains_scores_and_loads(ran: dict[str, Any]) -> None:
    """The stock reward model gives the scorer's reward, and the stock policy has the same backbone."""
    (expected,) = ran["scorer"].score([Conversation.of("How are you?", "Fine, thank you.")])
    chat = [{"role": "user", "content": "How are you?"}, {"role": "assistant", "content": "Fine, thank you."}]
    ids = ran["scorer"].encoder.tokenizer.apply_chat_template(chat, return_tensors="pt", return_dict=True)["input_ids"]
    with torch.no_grad():
        assert ran["reward_model"](ids).logits.item() == pytest.approx(expected, abs=1e-5)
        hidden = ran["policy"].model(ids).last_hidden_state
        assert torch.equal(hidden, ran["reward_model"].model(ids).last_hidden_state)


def test_the_served_model_answers_the_readmes_curl(ran: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    ((asked,),) = [re.findall(r"^curl .*", text, re.DOTALL | re.MULTILINE) for text in blocks("bash") if "curl" in text]
    with live(ran["scorer"]) as address:
        command = asked.replace("curl localhost:8000", f"curl --fail --silent {address}")
        told = subprocess.run(["bash", "-c", command], capture_output=True, check=True, text=True, timeout=60)
    (entry,) = json.loads(told.stdout)["rewards"]
    (expected,) = ran["scorer"].score([Conversation.of("How are you?", "Fine.")])
    assert entry["unscored"] is None
    assert entry["reward"] == pytest.approx(expected, abs=1e-5)
