"""Files and folders whose names are not UTF-8, as old systems and archives leave them, are read and written."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from hafrm.cli import main
from tests.tiny import save_tiny

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")


ODD = os.fsdecode(b"caf\xe9")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained run, and rows in a file of such a name."""
    folder = tmp_path_factory.mktemp("names")
    base = save_tiny(folder / "base")
    rows = [{"prompt": f"a{n}", "chosen": "b" * n, "rejected": "c"} for n in range(2, 8)]
    (folder / f"{ODD}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "text.jsonl").write_text(json.dumps({"text": "a b c"}))
    train = f"train --model {base} --data {folder}/{ODD}.jsonl --out {folder}/run --training.max_steps 1"
    assert main([*train.split(), "--data_options.max_length", "64"]) == 0
    return folder


COMMANDS = (
    "evaluate PLACE/run --data ROWS --out PLACE/ODD/evaluated",
    "evaluate PLACE/run --head policy --data ROWS --out PLACE/ODD/policy",
    "score PLACE/run --data ROWS --out PLACE/ODD.out.jsonl",
    "probe PLACE/run --data ROWS --out PLACE/ODD/probed",
    "judge ROWS --judge.kind reward --judge.model PLACE/run --out PLACE/ODD/judged",
    "data check ROWS --tokenizer PLACE/base",
    "best-of-n PLACE/run --samples PLACE/ODD/samples --out PLACE/ODD/best",
)


def words_of(command: str, place: Path) -> list[str]:
    names = {"PLACE": str(place), "ROWS": f"{place}/{ODD}.jsonl"}
    for name, value in names.items():
        command = command.replace(name, value)
    return command.replace("ODD", ODD).split()


@pytest.mark.parametrize("command", COMMANDS)
def test_rows_are_read_and_results_written(command: str, place: Path) -> None:
    if command.startswith("best-of-n"):
        sample = "sample PLACE/run --data ROWS --out PLACE/ODD/samples --n 2 --sampling.max_new_tokens 2"
        assert main(words_of(sample, place)) == 0
    assert main(words_of(command, place)) == 0


REFUSED = (
    "train --model PLACE/base --data ROWS --out PLACE/ODD/run --training.max_steps 1 --data_options.max_length 64",
    "rlhf PLACE/base --reward PLACE/run --data ROWS --out PLACE/ODD/policy --steps 1",
    "pretrain --data PLACE/text.jsonl --out PLACE/ODD/base",
    "export PLACE/run --out PLACE/ODD/export",
    "score PLACE/ODD-run --data ROWS --out PLACE/out.jsonl",
    "evaluate PLACE/run --head policy --reference PLACE/ODD-run --data ROWS --out PLACE/out",
)


@pytest.mark.parametrize("command", REFUSED)
def test_models_in_folders_of_such_names_are_refused_at_once(
    command: str, place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The libraries that read and write their files can't open them."""
    if not (place / f"{ODD}-run").exists():
        (place / f"{ODD}-run").symlink_to(place / "run")
    assert main(words_of(command, place)) == 2
    assert "UTF-8" in capfd.readouterr().err
