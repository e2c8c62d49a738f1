"""Tables and figures that need no training: they show what the commands use."""

from __future__ import annotations

import hashlib
import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from hafrm.cli import best_of_n, evaluate, main, rlhf, sample, train
from hafrm.paper import numbers
from hafrm.paper.experiments import EXPERIMENTS
from tests.paper.test_plans import small_files


def shown(name: str, out: Path, *words: str) -> dict[str, Any]:
    assert main(["reproduce", name, "--out", str(out), *words]) == 0
    scale = words[words.index("--scale") + 1] if "--scale" in words else "world"
    found: dict[str, Any] = json.loads((out / scale / name / "results.json").read_text())
    assert found["environment"]["versions"]["hafrm"]
    return found


def test_table_1_counts_pairs_before_and_after_the_draw(tiny_world: Path, tmp_path: Path) -> None:
    data = small_files(tmp_path / "data")
    words = ["--scale", "small", "--backbone", str(tiny_world), "--data_folder", str(data), "--sets", "BS", "AHP"]
    sizes = shown("table1", tmp_path / "o", *words)["sizes"]
    for name, file in (("BS", "pku_safe"), ("AHP", "alpaca_gpt4")):
        rows = {
            split: [json.loads(line) for line in (data / f"{file}-{split}.jsonl").read_text().splitlines()]
            for split in ("train", "validation", "test")
        }
        size = sizes[name]
        assert {split: size[split] for split in rows} == {split: len(each) for split, each in rows.items()}
        assert size["both"] == len(rows["train"]) + len(rows["validation"])
        counts = [
            len(row["prompt"][0]["content"].split())
            + sum(len(row[side][0]["content"].split()) for side in ("chosen", "rejected")) / 2
            for row in rows["train"]
        ]
        assert size["words"] == pytest.approx(sum(counts) / len(counts))
        assert size["tokens"] > size["words"]


COMMANDS = {"train": train, "rlhf": rlhf, "evaluate": evaluate, "sample": sample, "best-of-n": best_of_n}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name == "study" else name for name in sorted(EXPERIMENTS)]
)
def test_every_name_has_a_dry_run_at_the_papers_scale(name: str, tmp_path: Path, capfd: Any) -> None:
    """Without a network, plans show runnable commands, and hours, disk and memory if something is trained."""
    judged = ["--judge.kind", "reward", "--judge.model", "m"] * (name in JUDGED)
    single = (
        "figure2",
        "figure6",
        "gradients",
        "claims",
        "ppo",
        "dense",
        "bounds",
        "generators",
        "pessimism",
        "consistency",
    )
    sets = ["--sets", "BS"] * (name in single)
    words = ["reproduce", name, "--scale", "paper", "--out", str(tmp_path / "o"), *judged, *sets, "--dry_run"]
    if name in IN_THE_WORLD:
        assert main([*words, "--sets", "BS"]) == 2
        assert "only the scale world" in capfd.readouterr().err
        return
    assert main(words) == 0
    printed = capfd.readouterr().out
    trains = EXPERIMENTS[name].trains
    assert ("GiB" in printed and "memory:" in printed) is trains
    assert ("hours" in printed) is trains
    for line in printed.splitlines():
        words = shlex.split(line.replace('"$(', "'$(").replace(')"', ")'"))
        if words[:1] == ["hafrm"] and words[1] in COMMANDS:
            COMMANDS[words[1]].parser().parse_args(words[2:])
    assert not (tmp_path / "o").exists()


IN_THE_WORLD = {"rankings", "length", "calibration"}
JUDGED = {
    "figure4",
    "figure5",
    "figure8",
    "figure9",
    "table4",
    "table11",
    "ppo",
    "dense",
    "bounds",
    "generators",
    "pessimism",
}


@pytest.mark.parametrize("backbone", ["phi-2", "mistral-base", "mistral-instruct"])
def test_table_5_at_the_papers_scale_is_the_papers(backbone: str, tmp_path: Path) -> None:
    """All settings of Table 5 and Appendix A, except adapters, which Phi-2 lacks, and rates by method."""
    ours = shown("table5", tmp_path, "--scale", "paper", "--backbones", backbone)["settings"][backbone]
    assert list(ours) == list(numbers.TABLE_5)
    apart = {name for name in ours if ours[name] != numbers.TABLE_5[name]}
    assert apart == {"learning rate"} | ({"lora rank", "lora alpha"} if backbone == "phi-2" else set())
    rates = {"phi-2": "haf 1e-05, baseline 1e-05, dpo 1e-05", "mistral-base": "haf 3e-05, baseline 3e-05, dpo 3e-05"}
    assert ours["learning rate"] == rates.get(backbone, "haf 3e-05, baseline 1e-05, dpo 3e-05")


def test_table_8_counts_what_is_asked(tmp_path: Path) -> None:
    asked = shown("table8", tmp_path)["questions"]
    cost = {name: (len(each), sum(map(len, each))) for name, each in asked.items()}
    printed = numbers.TABLE_8["rank 4 responses"][("top-2", 8)]
    assert cost["best two of eight, by rankings of four"] == (printed.queries, printed.printed) == (3, 12)
    assert cost["rank four at once"] == (1, 4)
    assert cost["compare two, in both orders"] == (2, 4)


def test_figure_10_finds_the_best_two(tmp_path: Path) -> None:
    found = shown("figure10", tmp_path)
    first, second, final = found["questions"]
    assert sorted(map(int, first + second)) == list(range(1, 9))
    assert set(final) == {*sorted(first, key=int)[:2], *sorted(second, key=int)[:2]}
    assert [rank for rank in found["ranks"] if rank] in ([1, 2], [2, 1])


@pytest.mark.parametrize(
    ("name", "digest"),
    [("table9", "ed1c29d06f5b2181"), ("table10", "07069d3ce6cfd4c8")],
)
def test_the_judges_prompts_are_those_that_were_compared_with_the_papers(
    name: str, digest: str, tmp_path: Path
) -> None:
    """The hash of the words, for checkouts without the paper's text; `tests/judging` compares word by word."""
    messages = shown(name, tmp_path)["messages"]
    words = " ".join(word for message in messages for word in message["content"].split())
    assert hashlib.sha256(words.encode()).hexdigest()[:16] == digest
