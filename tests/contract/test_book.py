"""The documentation is correct: its commands parse, its tutorial runs, and its results match the linked pages."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest
from jsonargparse import ArgumentParser
from transformers import TrainingArguments

from hafrm.cli import COMMANDS, main
from hafrm.cli.options import options_of
from hafrm.contract import parse_pair
from hafrm.data.forms import FORMS
from hafrm.data.rowfiles import SUFFIXES
from hafrm.report.findings import made_with_note
from tests.paper.recorded import require_intervals_of_the_record, require_results_of_the_record

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
INCLUDED = ROOT / "SECURITY.md"
"""The file that docs/security.md includes."""

PAGES = [ROOT / "README.md", INCLUDED, *sorted({*DOCS.rglob("*.md")} - {DOCS / "security.md"})]

OPTIONS = {
    "best-of-n": "BestOfNConfig",
    "demo": "DemoConfig",
    "evaluate": "EvaluateConfig",
    "doctor": "DoctorConfig",
    "export": "ExportConfig",
    "judge": "JudgeConfig",
    "pretrain": "PretrainConfig",
    "probe": "ProbeCommand",
    "reproduce": "ReproduceConfig",
    "rlhf": "RlhfConfig",
    "sample": "SampleConfig",
    "score": "ScoreConfig",
    "serve": "ServeConfig",
    "train": "TrainConfig",
    "data": "DataCommand",
}
"""The dataclass of each command's options, by its name in the command's module."""

OTHERS_OPTIONS = {
    "README.md": "--reward.remote_url --remote_rm_url",
    "comparison.md": "--packing_samples",
    "distributed.md": "--machine_rank",
    "log.md": "--only",
    "openrlhf.md": (
        "--reward.remote_url --reward.model_name_or_path --pretrain --remote_rm_url --prompt_data --input_key "
        "--apply_chat_template --rollout_batch_size --train_batch_size --generate_max_len --top_p "
        "--actor_learning_rate --init_kl_coef --vllm_num_engines --save_path"
    ),
}
"""Options of other programs (accelerate, OpenRLHF, a benchmark) that a page's text mentions."""

HISTORY = "log.md"
"""The page of dated entries, each of which may mention many commands."""

PLACEHOLDERS = {
    "$i/4": "1/4",
    "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT": "1/64",
    "NAME": "table2",
    "ACTION": "check",
    "URL": "http://localhost:1",
    "http://HOST:PORT": "http://host:1",
}
"""Placeholders for values that a parser only accepts in a certain form."""


SHELL = {"do", "time", "$"}
"""Words that may precede `hafrm` in a line of a shell, besides assignments."""


@cache
def command_module(command: str) -> Any:
    return importlib.import_module(f"hafrm.cli.{command.replace('-', '_')}")


@cache
def options_in_help(command: str) -> frozenset[str]:
    return frozenset(re.findall(r"--[\w.]+", command_module(command).parser().format_help()))


def code_blocks(text: str) -> Iterator[str]:
    """Fenced blocks, and indented ones, with lines that end in a backslash joined to the next."""
    for block in re.findall(r"^```\w*[^\n]*\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        yield re.sub(r"\\\n\s*", " ", block)
    yield from re.findall(r"^ {4}(hafrm [^\n]+)", text, re.MULTILINE)


def commands_of(line: str) -> Iterator[list[str]]:
    """Return the arguments of each `hafrm` command in a shell line."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|")
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, ";"]:
        if set(word) <= set(";&|"):
            for start in ([i for i, w in enumerate(words) if w in ("hafrm", "hafrm.cli")])[:1]:
                if words[start] == "hafrm" or words[start - 1] == "-m":
                    yield words[start + 1 :]
            words = []
        else:
            words.append(word)


A_COMMAND = "|".join(sorted(map(re.escape, COMMANDS), key=len, reverse=True))


def spoken(page: Path) -> tuple[list[list[str]], list[list[str]]]:
    """Return a page's complete commands, and those that it gives in part: in its text, or with `...`."""
    text = page.read_text(encoding="utf-8")
    lines = [line for block in code_blocks(text) for line in block.splitlines()]
    found = [words for line in lines if re.search(r"hafrm(\.cli)? [a-z]", line) for words in commands_of(line)]
    outside = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    inline = [words for code in re.findall(r"`(hafrm [^`]+)`", outside) for words in commands_of(code)]
    inline += [code.split() for code in re.findall(rf"`((?:{A_COMMAND}) --[^`]+)`", outside)]
    remarks = [re.findall(rf"hafrm (?:{A_COMMAND})|--[a-z][\w.]*", line) for line in lines if re.search("#.* --", line)]
    inline += [[words[0].removeprefix("hafrm "), *words[1:]] for words in remarks]
    whole = [words for words in found if "..." not in words]
    return whole, [*inline, *(words for words in found if "..." in words)]


WHOLE = [pytest.param(words, id=f"{page.name}: {' '.join(words)}"[:80]) for page in PAGES for words in spoken(page)[0]]
PARTS = [pytest.param(words, id=f"{page.name}: {' '.join(words)}"[:80]) for page in PAGES for words in spoken(page)[1]]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_copied_line_starts_with_the_command(page: Path) -> None:
    """Before `hafrm` there is nothing but assignments and words of the shell; a wrapped comment would be run."""
    lines = [line for block in code_blocks(page.read_text(encoding="utf-8")) for line in block.splitlines()]
    before = [match[1].split() for line in lines if (match := re.match(r"([^#;&|]*?)\bhafrm [a-z]", line))]
    before = [words for words in before if words[-1:] != ["-m"]]  # a program that starts Python
    assert [words for words in before if any(word not in SHELL and "=" not in word for word in words)] == []


@pytest.mark.parametrize("words", WHOLE)
def test_a_command_is_one_that_its_parser_and_its_options_accept(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)  # configs are named from here
    monkeypatch.setattr("hafrm.cli.options.require_place", lambda model: None)  # the book's models are not there
    command, *arguments = words
    module = command_module(command)
    parser: ArgumentParser = module.parser()
    args = parser.parse_args([PLACEHOLDERS.get(word, word) for word in arguments])
    if command == "judge":
        args.data = args.data[0]  # the command reads a second file as `against`
    options_of(getattr(module, OPTIONS[command]), parser, args)


@pytest.mark.parametrize("words", PARTS)
def test_a_command_in_passing_names_options_that_exist(words: list[str]) -> None:
    command, *arguments = words
    if command.startswith("--") or command == "COMMAND":
        return
    assert command in COMMANDS
    for word in arguments:
        if word.startswith("--"):
            assert has(command, word.split("=")[0]), word


def sections(text: str) -> list[str]:
    """Return a page's text by heading; a line of code that begins with # is not a heading."""
    marked = re.sub(r"^```.*?^```", lambda block: block[0].replace("\n#", "\n #"), text, flags=re.DOTALL | re.MULTILINE)
    return re.split(r"^(?=#+ )", marked, flags=re.MULTILINE)


def named_in(section: str) -> tuple[set[str], list[str]]:
    """Return the commands that a section mentions, also in its blocks, and the options that its text mentions."""
    running = re.sub(r"^```.*?^```", "", section, flags=re.DOTALL | re.MULTILINE)
    codes = re.findall(r"`([^`]+)`", running)
    commands = re.findall(rf"\bhafrm(?:\.cli)?\s({A_COMMAND})\b", section)
    commands += re.findall(rf"`({A_COMMAND}) --", running)
    return set(commands), [option for code in codes for option in re.findall(r"(?<![\w-])--[a-z][\w.]*\w", code)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_an_option_named_in_running_text_is_of_a_command_that_the_section_names(page: Path) -> None:
    """If a section mentions no command, its options belong to a command that the page's introduction mentions."""
    _, opening, *rest = sections("\n" + page.read_text(encoding="utf-8"))
    others = OTHERS_OPTIONS.get(page.name, "").split()
    subject, _ = named_in(opening)
    found = []
    for section in (opening, *rest):
        commands, options = named_in(section)
        among = COMMANDS if page.name == HISTORY else commands or subject
        wrong = [each for each in options if each not in others and not any(has(command, each) for command in among)]
        found += [(section.splitlines()[0], option) for option in wrong]
    assert found == []


def has(command: str, option: str) -> bool:
    """Return whether a command has an option; `--training` has the fields of TrainingArguments."""
    known = options_in_help(command)
    group, _, field = option.removeprefix("--").partition(".")
    if group == "training" and field:
        return "--training" in known and field in {each.name for each in fields(TrainingArguments)}
    return option in known


def test_another_commands_option_is_found() -> None:
    assert has("train", "--training.bf16")
    assert not has("evaluate", "--training.bf16")
    text = "# A\n```bash\nhafrm train --model M\n# no heading\n```\nWith `--head x` and `score --head x`.\n## B\n"
    opening, second = sections(text)[1:]
    assert named_in(opening) == ({"train", "score"}, ["--head", "--head"])
    assert named_in(second) == (set(), [])
    assert not has("train", "--head")


def test_the_combined_weights_help_says_that_tau_is_a_factor() -> None:
    text = " ".join(command_module("score").parser().format_help().split())
    assert "reward + w * tau * log-ratio" in text


def test_each_row_of_the_page_of_data_is_read() -> None:
    found = re.findall(r"^```json\n(.*?)^```", (DOCS / "data.md").read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    rows = [json.loads(text) for text in found]
    assert len(rows) == 6
    for row in rows:
        pair = parse_pair(row, source="data.md", number=1)
        assert pair.prompt.turns[-1].role in ("user", "tool")
        assert bool(pair.prompt.arguments) == ("tools" in row)
        assert pair.chosen != pair.rejected


def test_the_page_of_data_names_every_form_and_format() -> None:
    page = (DOCS / "data.md").read_text(encoding="utf-8")
    for form in FORMS:
        (row,) = (line for line in page.splitlines() if line.startswith(f"| {form.name} |"))
        assert all(f"`{column}`" in row for column in form.columns), form.name
    assert all(f"`.{suffix.split('.')[1]}`" in page for suffix in SUFFIXES)


def test_there_are_commands() -> None:
    """There must be something to test, even if the format of the pages changes."""
    assert len(WHOLE) > 30
    assert len(PARTS) > 30
    assert {words.values[0][0] for words in WHOLE} >= set(OPTIONS) - {"demo"}


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and text of each fenced block that is not marked as one that is not run."""
    found = re.findall(
        r"^```(\w*)\n(.*?)^```\n(<!-- [^>]* -->)?", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    return [(language, text) for language, text, mark in found if not mark]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a scorer's connections stay open
def test_the_tutorial_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every block, in its order: Python in one namespace, `hafrm` in this process, the server in a separate one."""
    monkeypatch.chdir(tmp_path)
    port, names = free_port(), {}
    with ExitStack() as servers:
        for language, text in blocks(DOCS / "tutorial.md"):
            text = text.replace("localhost:8000", f"127.0.0.1:{port}").replace("--port 8000", f"--port {port}")
            if language == "python":
                exec(text, names)
            elif text.startswith("curl "):
                told = subprocess.run(["bash", "-c", text], capture_output=True, check=True, text=True)
                (entry,) = json.loads(told.stdout)["rewards"]
                assert entry["reward"] == pytest.approx(names["rude"], abs=1e-4)
            else:
                for line in text.replace("\\\n", " ").splitlines():
                    program, *words = shlex.split(line)
                    assert program == "hafrm"
                    if words[0] == "serve":
                        servers.enter_context(running([sys.executable, "-m", "hafrm", *words], port))
                    else:
                        assert main(words) == 0
    local, served = json.loads(Path("eval-served/results.json").read_text())["models"].values()
    (found,), (again,) = local["data"].values(), served["data"].values()
    assert found["accuracy"] == again["accuracy"] > 0.8


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def running(command: list[str], port: int) -> Iterator[None]:
    """Run a server that is ready at the start of the block and stopped at its end."""
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as server:
        try:
            deadline = time.monotonic() + 120
            while not ready(port):
                assert server.poll() is None, "the server has ended"
                assert time.monotonic() < deadline
                time.sleep(0.2)
            yield
        finally:
            server.terminate()


def ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/ready", trust_env=False).is_success
    except httpx.TransportError:
        return False


RESULTS = DOCS / "results" / "index.md"


def result_lines() -> list[tuple[str, Path, str]]:
    """Return the title, page and summary in each line of the page of results."""
    found = re.findall(r"^\| \[(.+?)\]\((.+?)\) \| (.+) \|$", RESULTS.read_text(encoding="utf-8"), re.MULTILINE)
    return [(title, RESULTS.parent / target, said) for title, target, said in found]


@pytest.mark.parametrize(("title", "page", "said"), result_lines(), ids=lambda value: str(value)[:40])
def test_what_is_said_of_a_result_stands_on_its_page(title: str, page: Path, said: str) -> None:
    text = page.read_text(encoding="utf-8")
    assert text.startswith(f"# {title}\n")
    said = re.sub(r"Table \d|Figure \d|Appendix \w", "", said)
    numbers = re.findall(r"\d[\d.,]*\d|\d", said)
    assert [number for number in numbers if not re.search(rf"(?<![\d.]){re.escape(number)}(?!\d)", text)] == []


@pytest.mark.parametrize(
    "page", sorted((DOCS / "results" / "world").glob("*/table.md")), ids=lambda path: path.parent.name
)
def test_a_page_says_what_it_was_computed_with(page: Path) -> None:
    found = json.loads(page.with_name("results.json").read_text(encoding="utf-8"))
    assert f"- {made_with_note(found['environment'])}" in page.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("name", ["table2", "figure3", "table3"])
def test_published_accuracies_follow_from_the_published_margins(name: str) -> None:
    require_results_of_the_record(DOCS / "results" / "world" / name)


RECORDED = sorted(
    path.parent
    for path in (DOCS / "results" / "world").glob("*/record.jsonl")
    if '{"values":' in path.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("folder", RECORDED, ids=lambda path: path.name)
def test_published_intervals_follow_from_the_published_values(folder: Path) -> None:
    require_intervals_of_the_record(folder)


@pytest.mark.parametrize(
    "folder", sorted(path.parent for path in (DOCS / "results").rglob("study.json")), ids=lambda path: path.name
)
def test_a_published_study_follows_from_its_record(folder: Path, tmp_path: Path) -> None:
    for name in ("record.jsonl", "runs.jsonl", "study.json"):
        shutil.copy(folder / name, tmp_path)
    assert main(["reproduce", "study", "--recompute", str(tmp_path)]) == 0
    assert (tmp_path / "table.md").read_text(encoding="utf-8") == (folder / "table.md").read_text(encoding="utf-8")


SELF_MADE = DOCS / "results" / "self-made.md"
COMPARED = (
    ("table2", "haf", "baseline"),
    ("table2", "haf", "dpo"),
    ("ood", "haf", "baseline"),
    ("ood", "haf", "dpo"),
    ("mixed", "haf", "baseline"),
    ("mixed", "haf", "dpo"),
    ("heads", "both heads", "reward head"),
)
"""The comparisons of the columns of the table of self-made backbones."""


def study_rows() -> list[tuple[Path, list[str]]]:
    """Return the file and the cells of each study on the page."""
    rows = re.findall(
        r"^\| \[[\w-]+\]\(([^)]+\.json)\)((?: \|[^|\n]*){8})$", SELF_MADE.read_text(encoding="utf-8"), re.M
    )
    return [(SELF_MADE.parent / path, [cell.strip() for cell in cells.split("|")[1:8]]) for path, cells in rows]


@pytest.mark.parametrize(("path", "cells"), study_rows(), ids=lambda value: getattr(value, "stem", ""))
def test_the_differences_of_a_study_are_those_of_its_file(path: Path, cells: list[str]) -> None:
    comparisons = json.loads(path.read_text(encoding="utf-8"))["comparisons"]
    for compared, cell in zip(COMPARED, cells, strict=True):
        averages = {
            len(each["column"]): [
                each["difference"],
                *each["ci95"],
            ]  # the average of 6 prompts or more, if there is one
            for each in comparisons
            if (each["part"], each["a"], each["b"]) == compared and each["column"].startswith("Avg")
        }
        found = [float(number) for number in re.findall(r"[+-]?[\d.]+", cell.replace("\N{MINUS SIGN}", "-"))]
        expected = [100 * number for number in averages[max(averages)]] if averages else []
        assert found == pytest.approx(expected, abs=0.0501)


def test_what_is_said_of_the_studies_follows_from_their_differences() -> None:
    """Count the studies in which HAF is ahead of the baseline in domain, behind it, or neither."""
    assert len(study_rows()) == 10
    signs = []
    for path, _ in study_rows():
        (interval,) = [
            each["ci95"]
            for each in json.loads(path.read_text(encoding="utf-8"))["comparisons"]
            if (each["part"], each["a"], each["b"]) == COMPARED[0]
            and each["column"] == ("Avg" if path.stem == "world" else "Avg of 6 prompts or more")
        ]
        signs.append((interval[0] > 0) - (interval[1] < 0))
    assert (signs.count(1), signs.count(0), signs.count(-1)) == (2, 7, 1)
    assert "seven of the ten" in SELF_MADE.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "path", sorted((DOCS / "results" / "self-made" / "backbones").glob("*.json")), ids=lambda path: path.stem
)
def test_a_backbones_numbers_are_its_recipes(path: Path) -> None:
    recipe = json.loads(path.read_text(encoding="utf-8"))
    sizes = " | ".join(f"{recipe[name]:,}" for name in ("parameters", "steps", "tokens"))
    row = f"| [{path.stem}](self-made/backbones/{path.name}) | {sizes} | {recipe['perplexity']:.1f} |"
    assert row in SELF_MADE.read_text(encoding="utf-8")


def test_every_page_of_results_is_linked() -> None:
    pages = {page for page in (DOCS / "results").rglob("*.md") if page != RESULTS}
    assert pages == {page for _, page, _ in result_lines()}


def test_figures_of_the_comparison_are_those_of_the_measurements() -> None:
    measured = (DOCS / "results" / "speed.md").read_text(encoding="utf-8")
    said = re.findall(r"\b\d\.\d{3}\b", (DOCS / "comparison.md").read_text(encoding="utf-8"))
    assert len(said) == 9
    assert all(f"| {number} |" in measured for number in said)


def test_blocks_name_their_language_and_python_compiles() -> None:
    """Each fenced block has a language, and each Python block of each page compiles."""
    for page in PAGES:
        for language, text in re.findall(
            r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
        ):
            assert language, f"{page.name}: {text[:60]}"
            if language == "python":
                compile(text, page.name, "exec")


def test_the_index_lists_every_decision_by_number_and_title() -> None:
    folder = DOCS / "decisions"
    listed = re.findall(r"^- \[(\d{4})\]\((\S+)\) (.+)$", (folder / "index.md").read_text(encoding="utf-8"), re.M)
    records = sorted(folder.glob("[0-9]*.md"))
    assert [int(number) for number, _, _ in listed] == list(range(1, len(records) + 1))
    for path, (number, name, title) in zip(records, listed, strict=True):
        text = path.read_text(encoding="utf-8")
        assert (path.name[:5], path.name) == (f"{number}-", name)
        assert text.startswith(f"# {number}. {title}\n")
        assert re.findall(r"^\*\*(\w+)\.\*\*", text, re.MULTILINE) == ["Context", "Decision", "Why", "Consequences"]
        assert len(text.splitlines()) <= 25
