"""Follow the recipes of CONTRIBUTING.md as a newcomer would: code added to one file is available in a command."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

import hafrm
from hafrm.cli import main
from hafrm.data import NAMED_SOURCES
from hafrm.evaluation.suites.loading import SUITES
from tests.faults.runs import saved_run
from tests.serving.conftest import live, tiny_scorer
from tests.tiny import save_tiny, some_pairs

PACKAGE = Path(hafrm.__file__).parent
RECIPES = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_every_recipe_is_followed_here_and_names_files_that_exist() -> None:
    assert re.findall(r"^\*\*Add (.+?)\.\*\*", RECIPES, re.MULTILINE) == [
        "a loss",
        "a data set",
        "a benchmark suite",
        "a protocol to the server",
    ]
    root = Path(__file__).parents[2]
    named = re.findall(r"`((?:src|tests|docs|examples)/[^`\s]+)`", RECIPES)
    assert len(named) > 10
    assert [path for path in named if not (root / path).exists()] == []


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_module(folder: Path, text: str) -> dict[str, Any]:
    """Write a newcomer's file, run it, and return its names."""
    (folder / "new_module.py").write_text(text)
    return runpy.run_path(str(folder / "new_module.py"))


def copy_with_loss(folder: Path, module: str, definition: str) -> None:
    """Make a copy of the package in which a module of `losses` has one more function, in its table (and `Literal`).

    All other files are links to those of the package.
    """
    losses = folder / "hafrm" / "losses"
    if not losses.exists():
        losses.mkdir(parents=True)
        for place, copied in ((PACKAGE, losses.parent), (PACKAGE / "losses", losses)):
            for path in place.iterdir():
                if path.name not in ("losses", "__pycache__"):
                    (copied / path.name).symlink_to(path)
    (function,) = re.findall(r"^def (\w+)_loss\(", definition, re.MULTILINE)
    text = re.sub(r"^(\w+Name = Literal\[)", rf'\1"{function}", ', (losses / module).read_text(), flags=re.M)
    text, tables = re.subn(
        r"^(\w+: dict\[.*\] = \{\n)", rf'{definition}\n\n\1    "{function}": {function}_loss,\n', text, flags=re.M
    )
    assert tables == 1
    (losses / module).unlink()
    (losses / module).write_text(text)


REWARD_LOSS = """
def squared_loss(chosen, rejected, *, margin=None, label_smoothing=0.0):
    return (1 - reward_difference(chosen, rejected, margin)) ** 2
"""

POLICY_LOSS = """
def squared_mean_loss(log_probs, *, beta=0.1):
    return (1 - beta * (log_probs.chosen_mean - log_probs.rejected_mean)) ** 2
"""


@pytest.mark.slow
def test_a_loss_is_a_function_and_a_name_in_one_file(tmp_path: Path) -> None:
    copy_with_loss(tmp_path / "src", "rewards.py", REWARD_LOSS)
    copy_with_loss(tmp_path / "src", "policies.py", POLICY_LOSS)
    base = save_tiny(tmp_path / "base", max_position_embeddings=512)
    rows = write_rows(tmp_path / "rows.jsonl", [pair.as_row() for pair in some_pairs(4)])
    command = f"train --model {base} --data {rows} --out {tmp_path / 'out'} --training.max_steps 1"
    command += " --loss.reward_loss squared --loss.policy_loss squared_mean"
    done = subprocess.run(
        [sys.executable, "-m", "hafrm", *command.split()],
        env=os.environ | {"PYTHONPATH": str(tmp_path / "src")},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    described = json.loads((tmp_path / "out" / "hafrm.json").read_text())
    assert (described["reward_loss"], described["policy_loss"]) == ("squared", "squared_mean")


DATA_SET = '''
from hafrm.data.registry import NamedSource


def votes(row):
    """Map a question whose second answer got the votes."""
    return {"prompt": row.string("question"), "chosen": row.string("voted"), "rejected": row.string("other")}


SOURCE = NamedSource(
    name="votes",
    title="Votes",
    path="someone/votes",
    mapping=votes,
    has_test=False,
    homepage="https://example.org/votes",
    licence="CC0-1.0",
    citation="Someone (2026), Votes",
)
'''


def test_a_data_set_is_a_mapping_and_a_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    source = write_module(tmp_path, DATA_SET)["SOURCE"]
    monkeypatch.setitem(NAMED_SOURCES, source.name, source)
    rows = [{"question": f"Question {i}?", "voted": f"Yes {i}.", "other": "No."} for i in range(40)]
    path = write_rows(tmp_path / "votes.jsonl", rows)
    assert main(["data", "show", f"votes@{path}"]) == 0
    shown = capfd.readouterr().out
    assert "CC0-1.0" in shown
    assert "Question" in shown
    assert main(["data", "list"]) == 0
    assert "votes" in capfd.readouterr().out
    write_rows(path, [*rows, {"question": "Which?", "voted": "This."}])
    assert main(["data", "show", f"votes@{path}"]) != 0
    assert "row 41: `other`" in capfd.readouterr().err


SUITE = """
from hafrm.evaluation.suites.items import Item, Observation, Score, Suite, response_list, win


def parse(reader, part):
    return Item(
        prompt=reader.prompt(),
        responses=response_list(reader, "right", size=1) + response_list(reader, "wrong", size=1),
        correct=1,
        subset=reader.string("topic"),
        key="",
        source=reader.source,
        row=reader.number,
    )


def observe(scores):
    return [Observation((s.subset, "accuracy"), s.group, win(s.rewards[0], s.rewards[1])) for s in scores]


def chance(scores):
    return [Observation((s.subset, "accuracy"), s.group, 0.5) for s in scores]


def scores(strata):
    return [Score("overall", "overall", {stratum: 1 / len(strata) for stratum in strata})], []


SUITE = Suite(
    name="quiz",
    title="The Quiz",
    path="someone/quiz",
    split="test",
    files=("quiz",),
    homepage="https://example.org/quiz",
    licence="CC0-1.0",
    citation="Someone (2026), The Quiz",
    parse=parse,
    observe=observe,
    chance=chance,
    scores=scores,
)
"""


def test_a_suite_is_a_loader_and_its_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = write_module(tmp_path, SUITE)["SUITE"]
    monkeypatch.setitem(SUITES, suite.name, suite)
    rows = [{"prompt": f"{i} + 1?", "right": [f"{i + 1}"], "wrong": ["No."], "topic": "sums"} for i in range(8)]
    path = write_rows(tmp_path / "quiz.jsonl", rows)
    model, out = saved_run(save_tiny(tmp_path / "base"), tmp_path / "run"), tmp_path / "out"
    assert main(["evaluate", str(model), "--suites", f"quiz@{path}", "--out", str(out)]) == 0
    lines = [json.loads(line) for line in (out / "suites.jsonl").read_text().splitlines()]
    right = sum(line["rewards"][0] > line["rewards"][1] for line in lines)
    (numbers,) = json.loads((out / "results.json").read_text())["suites"].values()
    assert numbers["models"][str(model)]["overall"]["overall"]["value"] == pytest.approx(right / 8)
    assert "The Quiz" in (out / "index.html").read_text()


PROTOCOL_BODIES = """
class PairRequest(StrictBody, ScoringRequest):
    question: Text
    answers: list[Text]

    def inputs(self, bare: Bare) -> list[Input]:
        return [answered(self.question, answer, bare) for answer in self.answers]


class PairResponse(BaseModel):
    best: int


def _best(request: PairRequest, scored: Scored) -> PairResponse:
    return PairResponse(best=scored.rewards.index(max(scored.rewards)))


"""

PROTOCOL_ENTRY = """    Protocol("quiz", ["/best_answer"], _best, {"question": "a", "answers": ["b"]}),

"""


def test_a_protocol_is_a_request_a_response_and_an_entry_of_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (PACKAGE / "serving" / "protocols.py").read_text()
    text = text.replace("    answered,\n", "").replace("    Bare,\n", "    Bare,\n    answered,\n")
    for before, added in (("PROTOCOLS = (", PROTOCOL_BODIES), ("    *VLLM,\n", PROTOCOL_ENTRY)):
        assert text.count(before) == 1
        text = text.replace(before, added + before)
    (tmp_path / "protocols.py").write_text(text)
    spec = importlib.util.spec_from_file_location("changed_protocols", tmp_path / "protocols.py")
    assert spec is not None
    assert spec.loader is not None
    changed = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "changed_protocols", changed)
    spec.loader.exec_module(changed)
    monkeypatch.setattr("hafrm.serving.app.router", changed.router)
    scorer = tiny_scorer()
    answers = ["Four.", "No idea.", "Five, or maybe six."]
    rewards = scorer.score([hafrm.Conversation.of("2 + 2?", answer) for answer in answers])
    with live(scorer) as address:
        found = httpx.post(f"{address}/best_answer", json={"question": "2 + 2?", "answers": answers})
        assert found.json() == {"best": max(range(3), key=lambda i: rewards[i] or 0)}
        assert httpx.post(f"{address}/best_answer", json={"question": "2 + 2?"}).status_code in (400, 422)
        assert "/best_answer" in httpx.get(f"{address}/openapi.json").json()["paths"]
