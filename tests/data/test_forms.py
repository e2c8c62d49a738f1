"""Each form of preference data: rows as other programs write them, against pairs worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hafrm.data import DataOptions, ReadOptions, check_pairs, load_pairs, load_prompts
from hafrm.data.forms import FORMS
from hafrm.errors import BadRowError, BadRowReason, ConfigError, DataError
from hafrm.pairs import PreferencePair

USER, GOOD, BAD = "How hot is it?", "It is 20 degrees.", "Hot."


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def said(speaker: str, value: str) -> dict[str, str]:
    return {"from": speaker, "value": value}


ASKED = [("user", USER)]
ONE = [(ASKED, GOOD, BAD)]
"""The pair that most rows represent: turns of the prompt, chosen, rejected."""

CHAT = [turn("user", USER), turn("assistant", GOOD)], [turn("user", USER), turn("assistant", BAD)]

ROWS: dict[str, tuple[str, dict[str, Any], list[tuple[list[tuple[str, str]], str, str]]]] = {
    "TRL explicit": ("TRL pairs with a prompt", {"prompt": USER, "chosen": GOOD, "rejected": BAD}, ONE),
    "TRL explicit messages": (
        "TRL pairs with a prompt",
        {"prompt": CHAT[0][:1], "chosen": CHAT[0][1:], "rejected": CHAT[1][1:]},
        ONE,
    ),
    "TRL implicit": ("TRL pairs that begin with the prompt", {"chosen": CHAT[0], "rejected": CHAT[1]}, ONE),
    "hh": (
        "hh-rlhf transcripts",
        {
            "chosen": f"\n\nHuman: {USER}\n\nAssistant: {GOOD}",
            "rejected": f"\n\nHuman: {USER}\n\nAssistant: {BAD}",
        },
        ONE,
    ),
    "OpenRLHF": (
        "OpenRLHF context_messages",
        {"context_messages": CHAT[0][:1], "chosen": CHAT[0][1:], "rejected": CHAT[1][1:]},
        ONE,
    ),
    "OpenRLHF, one message": (
        "OpenRLHF context_messages",
        {"context_messages": CHAT[0][:1], "chosen": CHAT[0][1], "rejected": CHAT[1][1]},
        ONE,
    ),
    "LLaMA-Factory alpaca": (
        "LLaMA-Factory alpaca",
        {
            "instruction": "How hot",
            "input": "is it?",
            "chosen": GOOD,
            "rejected": BAD,
            "system": "Be exact.",
            "history": [["Hello", "Hi"]],
        },
        [
            (
                [("system", "Be exact."), ("user", "Hello"), ("assistant", "Hi"), ("user", "How hot\nis it?")],
                GOOD,
                BAD,
            )
        ],
    ),
    "LLaMA-Factory sharegpt": (
        "LLaMA-Factory sharegpt",
        {
            "conversations": [said("human", "Hello"), said("gpt", "Hi"), said("human", USER)],
            "chosen": said("gpt", GOOD),
            "rejected": said("gpt", BAD),
        },
        [([("user", "Hello"), ("assistant", "Hi"), ("user", USER)], GOOD, BAD)],
    ),
    "sharegpt without conversations": (
        "LLaMA-Factory sharegpt",
        {"chosen": [said("human", USER), said("gpt", GOOD)], "rejected": [said("human", USER), said("gpt", BAD)]},
        ONE,
    ),
    "UltraFeedback binarized": (
        "UltraFeedback binarized",
        {"prompt": USER, "chosen": CHAT[0], "rejected": CHAT[1], "score_chosen": 8.5, "score_rejected": 6.0},
        ONE,
    ),
    "UltraFeedback": (
        "UltraFeedback",
        {
            "instruction": USER,
            "completions": [
                {"response": BAD, "overall_score": 10.0, "fine-grained_score": 2.5},
                {"response": GOOD, "overall_score": 8.0, "fine-grained_score": 4.5},
            ],
        },
        ONE,
    ),
    "Nectar": (
        "Nectar",
        {
            "prompt": f"\n\nHuman: {USER}\n\nAssistant: ",
            "answers": [
                {"answer": "Warm.", "rank": 2.0},
                {"answer": BAD, "rank": 3.0},
                {"answer": GOOD, "rank": 1.0},
            ],
        },
        [(ASKED, "Warm.", BAD), (ASKED, GOOD, "Warm."), (ASKED, GOOD, BAD)],
    ),
    "responses with scores": (
        "responses with scores",
        {"prompt": USER, "responses": [BAD, GOOD, "Warm."], "scores": [1, 5, 1]},
        [(ASKED, GOOD, BAD), (ASKED, GOOD, "Warm.")],
    ),
    "responses with ranks": (
        "responses with ranks",
        {"prompt": USER, "responses": [BAD, [turn("assistant", GOOD)]], "ranks": [2, 1]},
        ONE,
    ),
    "SHP": (
        "SHP",
        {"history": USER, "human_ref_A": BAD, "human_ref_B": GOOD, "labels": 0, "score_A": 3, "score_B": 9},
        ONE,
    ),
    "Chatbot Arena": (
        "Chatbot Arena",
        {"conversation_a": CHAT[1], "conversation_b": CHAT[0], "winner": "model_b", "turn": 1},
        ONE,
    ),
    "Chatbot Arena battles": (
        "Chatbot Arena battles",
        {
            "prompt": json.dumps([USER]),
            "response_a": json.dumps([GOOD]),
            "response_b": json.dumps([BAD]),
            "winner_model_a": 1,
            "winner_model_b": 0,
            "winner_tie": 0,
        },
        ONE,
    ),
    "Chatbot Arena battles, plain texts": (
        "Chatbot Arena battles",
        {"prompt": USER, "response_a": "[1, 2]", "response_b": '["a"]', "winner_model_a": 0, "winner_model_b": 1.0},
        [(ASKED, '["a"]', "[1, 2]")],
    ),
    "HelpSteer2": (
        "HelpSteer2 preferences",
        {"prompt": USER, "response_1": GOOD, "response_2": BAD, "preference_strength": -2},
        ONE,
    ),
    "HelpSteer3": (
        "HelpSteer3 preferences",
        {"context": CHAT[0][:1], "response1": BAD, "response2": GOOD, "overall_preference": 1},
        ONE,
    ),
    "PKU": (
        "PKU-SafeRLHF",
        {"prompt": USER, "response_0": BAD, "response_1": GOOD, "better_response_id": 1, "safer_response_id": 0},
        ONE,
    ),
    "PKU, floats": (
        "PKU-SafeRLHF",
        {"prompt": USER, "response_0": BAD, "response_1": GOOD, "better_response_id": 1.0},
        ONE,
    ),
    "AlpacaFarm": (
        "AlpacaFarm preferences",
        {"instruction": "How hot", "input": "is it?", "output_1": BAD, "output_2": GOOD, "preference": 2},
        [([("user", "How hot\n\nis it?")], GOOD, BAD)],
    ),
}
"""The form's name, a row, and its pairs."""


def write(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def plain(pair: PreferencePair) -> tuple[list[tuple[str, str]], str, str]:
    (chosen,), (rejected,) = pair.chosen, pair.rejected
    return [(each.role, each.content) for each in pair.prompt.turns], chosen.content, rejected.content


@pytest.mark.parametrize("name", ROWS)
def test_a_row_becomes_its_pairs(name: str, tmp_path: Path) -> None:
    form, row, pairs = ROWS[name]
    path = write(tmp_path / "a.jsonl", row, row)
    loaded = load_pairs(path)
    assert [plain(pair) for pair in loaded.pairs] == pairs * 2
    (report,) = loaded.reports
    assert report.form == form
    assert report.rows + report.expanded == report.kept + sum(report.dropped.values())
    assert [pair.row for pair in loaded.pairs] == [1] * len(pairs) + [2] * len(pairs)
    assert len({pair.id for pair in loaded.pairs}) == len(loaded.pairs)


def test_every_form_has_a_row() -> None:
    single = {form.name for form in FORMS if form.single}
    assert {form for form, _, _ in ROWS.values()} == {form.name for form in FORMS} - single


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("responses with scores", {"scores": [1, 1, 1]}),
        ("Chatbot Arena", {"winner": "tie"}),
        ("Chatbot Arena", {"winner": "both_bad"}),
        ("Chatbot Arena battles", {"winner_model_a": 0}),
        ("HelpSteer2", {"preference_strength": 0}),
        ("AlpacaFarm", {"preference": 0}),
    ],
    ids=str,
)
def test_a_tie_is_counted(name: str, change: dict[str, Any], tmp_path: Path) -> None:
    _, row, pairs = ROWS[name]
    loaded = load_pairs(write(tmp_path / "a.jsonl", row, row | change))
    (report,) = loaded.reports
    assert [plain(pair) for pair in loaded.pairs] == pairs
    assert report.dropped["tie"] >= 1
    assert report.rows + report.expanded == report.kept + report.dropped["tie"]


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("SHP", "labels", None),
        ("SHP", "labels", 2),
        ("Chatbot Arena", "winner", "model_c"),
        ("HelpSteer3", "overall_preference", "1"),
        ("Chatbot Arena battles", "response_b", "[null]"),
        ("Chatbot Arena battles", "response_a", json.dumps([GOOD, BAD])),
        ("PKU", "better_response_id", 2),
        ("PKU", "response_1", 3),
        ("UltraFeedback", "completions", [{"response": 1, "overall_score": 1}, {}]),
        ("Nectar", "answers", [{"answer": "a"}, {"answer": "b"}]),
        ("responses with scores", "scores", [1, 2]),
        ("responses with ranks", "ranks", ["first", "second"]),
        ("LLaMA-Factory alpaca", "history", ["Hello"]),
        ("LLaMA-Factory sharegpt", "chosen", said("robot", "Hi")),
        ("LLaMA-Factory sharegpt", "conversations", "Hello"),
        ("OpenRLHF", "context_messages", [{"role": "user"}]),
    ],
    ids=str,
)
def test_a_bad_value_is_named_by_its_column(name: str, field: str, value: Any, tmp_path: Path) -> None:
    _, row, _ = ROWS[name]
    with pytest.raises(BadRowError) as caught:
        load_pairs(write(tmp_path / "a.jsonl", row, row | {field: value}))
    assert caught.value.row == 2
    assert str(caught.value.field).split("[")[0].split(".")[0] == field
    assert "\n" not in str(caught.value)


def test_tool_calls_of_sharegpt_are_calls(tmp_path: Path) -> None:
    call = {"name": "weather", "arguments": {"city": "Oslo"}}
    row = {
        "conversations": [
            said("human", USER),
            said("function_call", json.dumps(call)),
            said("observation", '{"degrees": 20}'),
        ],
        "chosen": said("gpt", GOOD),
        "rejected": said("gpt", BAD),
        "tools": json.dumps([{"name": "weather", "description": "Weather", "parameters": {}}]),
    }
    (pair,) = load_pairs(write(tmp_path / "a.jsonl", row)).pairs
    assert [each.role for each in pair.prompt.turns] == ["user", "assistant", "tool"]
    assert pair.prompt.turns[1].extras["tool_calls"] == [{"type": "function", "function": call}]
    assert pair.prompt.columns["tools"][0]["name"] == "weather"
    with pytest.raises(BadRowError, match=r"conversations\[0\]\.value"):
        load_pairs(write(tmp_path / "b.jsonl", row | {"conversations": [said("function_call", "now")]}))


LABELLED = [
    ("TRL KTO labels", {"prompt": USER, "completion": GOOD, "label": True}, {"completion": BAD, "label": False}),
    (
        "LLaMA-Factory KTO labels",
        {"instruction": USER, "input": "", "output": GOOD, "kto_tag": True},
        {"output": BAD, "kto_tag": False},
    ),
    (
        "LLaMA-Factory KTO labels",
        {"messages": CHAT[0], "label": True},
        {"messages": CHAT[1], "label": False},
    ),
    (
        "LLaMA-Factory KTO labels",
        {"conversations": [said("human", USER), said("gpt", GOOD)], "kto_tag": True},
        {"conversations": [said("human", USER), said("gpt", BAD)], "kto_tag": False},
    ),
    ("scored responses", {"prompt": USER, "response": GOOD, "score": 4}, {"response": BAD, "score": 1}),
    ("scored responses", {"prompt": USER, "response": GOOD, "helpfulness": 4}, {"response": BAD, "helpfulness": 1}),
]


@pytest.mark.parametrize(("form", "good", "change"), LABELLED)
def test_single_labels_are_paired_by_prompt(
    form: str, good: dict[str, Any], change: dict[str, Any], tmp_path: Path
) -> None:
    """The bad response comes first, the third row repeats a label, and the last row's prompt occurs only once."""
    alone = json.loads(json.dumps(good).replace(USER, "Why?"))
    loaded = load_pairs(write(tmp_path / "a.jsonl", good | change, good, good | change, alone))
    assert [plain(pair) for pair in loaded.pairs] == ONE * 2
    assert [pair.row for pair in loaded.pairs] == [1, 1]
    (report,) = loaded.reports
    assert report.form == form
    assert (report.rows, report.kept, report.dropped) == (4, 2, {"tie": 1, "one_response": 1})
    assert report.rows + report.expanded == 4
    with pytest.raises(DataError, match=rf"{form}.*one_response.*two responses"):
        load_pairs(write(tmp_path / "b.jsonl", good, alone))


def test_a_bad_single_label_is_named_by_its_row(tmp_path: Path) -> None:
    _, good, change = LABELLED[0]
    path = write(tmp_path / "a.jsonl", good, good | change, good | {"label": "yes"}, good | {"completion": " "})
    with pytest.raises(BadRowError) as caught:
        load_pairs(path)
    assert (caught.value.row, caught.value.field) == (3, "label")
    loaded = load_pairs(path, options=DataOptions(on_bad_row="skip"))
    assert len(loaded.pairs) == 1
    assert loaded.reports[0].skipped == {"wrong_type": 1, "empty_response": 1}


def test_scores_are_margins_on_request(tmp_path: Path) -> None:
    for name, margin in (("UltraFeedback binarized", 2.5), ("UltraFeedback", 2.0), ("HelpSteer2", 2.0), ("SHP", 6.0)):
        path = write(tmp_path / "a.jsonl", ROWS[name][1])
        assert load_pairs(path).pairs[0].margin is None
        assert load_pairs(path, options=DataOptions(score_margins=True)).pairs[0].margin == margin
    for name in ("Nectar", "TRL explicit"):
        with pytest.raises(BadRowError, match="`score_chosen` is missing"):
            load_pairs(write(tmp_path / "b.jsonl", ROWS[name][1]), options=DataOptions(score_margins=True))
    assert load_pairs(path).reports[0].unread == []


@pytest.mark.parametrize("margins", [False, True])
def test_scores_that_contradict_labels_are_counted(margins: bool, tmp_path: Path) -> None:
    """Equal scores and cells without a number are no contradiction; a skipped row is not counted."""
    pair = {"prompt": USER, "chosen": GOOD, "rejected": BAD}
    scores = [(3, 1), (1, 3), (2, 2), (0.5, 0.75)]
    rows = [pair | {"score_chosen": better, "score_rejected": worse} for better, worse in scores]
    path = write(tmp_path / "a.jsonl", *rows, pair | {"chosen": " ", "score_chosen": 1, "score_rejected": 2})
    loaded = load_pairs(path, options=DataOptions(score_margins=margins, on_bad_row="skip"))
    (report,) = loaded.reports
    assert (report.kept, report.contradicted, report.first_contradicted) == (4, 2, f"{path}:2")
    (finding,) = (each for each in check_pairs(loaded.pairs, report=report) if each.check == "contradicted_labels")
    assert (finding.severity, finding.count, finding.examples) == ("warning", 2, [f"{path}:2"])
    (tmp_path / "a.csv").write_text("prompt,chosen,rejected,score_chosen,score_rejected\na,b,c,9,10\na,b,d,n/a,10\n")
    assert load_pairs(str(tmp_path / "a.csv")).reports[0].contradicted == 1
    shp = ROWS["SHP"][1] | {"labels": 1 - ROWS["SHP"][1]["labels"]}
    assert load_pairs(write(tmp_path / "b.jsonl", shp)).reports[0].contradicted == 1


def test_columns_that_no_form_uses_are_named(tmp_path: Path) -> None:
    row = ROWS["Chatbot Arena"][1]
    assert load_pairs(write(tmp_path / "a.jsonl", row)).reports[0].unread == ["turn"]
    row = ROWS["UltraFeedback binarized"][1]
    assert load_pairs(write(tmp_path / "a.jsonl", row)).reports[0].unread == ["score_chosen", "score_rejected"]


def test_rows_of_another_form_are_bad_rows(tmp_path: Path) -> None:
    rows = [ROWS["LLaMA-Factory alpaca"][1], ROWS["Nectar"][1], ROWS["LLaMA-Factory alpaca"][1]]
    path = write(tmp_path / "a.jsonl", *rows)
    with pytest.raises(BadRowError, match=r"row 2: .*Nectar.*LLaMA-Factory alpaca") as caught:
        load_pairs(path)
    assert caught.value.reason == BadRowReason.MIXED_SCHEMA
    loaded = load_pairs(path, options=DataOptions(on_bad_row="skip"))
    assert [pair.row for pair in loaded.pairs] == [1, 3]
    assert loaded.reports[0].skipped == {"mixed_schema": 1}


def test_the_first_row_in_a_known_form_decides(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"question": "?"}, [], ROWS["PKU"][1])
    loaded = load_pairs(path, options=DataOptions(on_bad_row="skip"))
    assert loaded.reports[0].form == "PKU-SafeRLHF"
    assert loaded.reports[0].skipped == {"missing_field": 1, "wrong_type": 1}


@pytest.mark.parametrize(
    ("row", "missing", "form"),
    [
        ({"question": "a", "response_j": "b", "response_k": "c"}, "prompt", "TRL"),
        ({"prompt": "a", "chosen": "b", "worse": "c"}, "rejected", "TRL"),
        ({"conversations": [], "chosen": "b", "worst": "c"}, "rejected", "sharegpt"),
        ({"prompt": "a", "response": "c", "quality": 3}, "score", "scored responses"),
        ({"history": "a", "human_ref_A": "b", "human_ref_B": "c"}, "labels", "SHP"),
    ],
)
def test_an_unknown_form_is_told_by_its_columns(row: dict[str, Any], missing: str, form: str, tmp_path: Path) -> None:
    """The error names what is missing, the existing columns, the nearest form, and the two options."""
    with pytest.raises(BadRowError) as caught:
        load_pairs(write(tmp_path / "a.jsonl", row))
    text = str(caught.value)
    assert caught.value.field == missing
    for expected in (*row, form, "data_options.columns", "data_options.mapping"):
        assert expected in text
    assert "on_bad_row" not in text


STACK = {"question": USER, "response_j": GOOD, "response_k": BAD, "date": "2026-01-01"}
COLUMNS = "prompt: question, chosen: response_j, rejected: response_k"


def test_columns_are_read_under_other_names(tmp_path: Path) -> None:
    loaded = load_pairs(write(tmp_path / "a.jsonl", STACK), options=DataOptions(columns=COLUMNS))
    assert [plain(pair) for pair in loaded.pairs] == ONE
    assert loaded.reports[0].unread == ["date"]
    ranking = {"prompt": USER, "answers": [GOOD, BAD], "votes": [2, 1]}
    options = DataOptions(columns="responses: answers, scores: votes")
    assert [plain(p) for p in load_pairs(write(tmp_path / "a.jsonl", ranking), options=options).pairs] == ONE


def test_columns_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", STACK)
    with pytest.raises(ConfigError, match=r"no column response_l.*question, response_j"):
        load_pairs(path, options=DataOptions(columns="prompt: question, chosen: response_l"))
    for columns in ("prompt", "prompt:", ":question", "prompt: a, prompt: b"):
        with pytest.raises(ConfigError, match=r"data_options\.columns"):
            DataOptions(columns=columns)
    with pytest.raises(ConfigError, match="no effect"):
        load_pairs("world/helpful[:2]", options=DataOptions(columns=COLUMNS))


MAPPING = """
from hafrm import PreferencePair

def pair(row):
    if row["date"] < "2025":
        return None
    return {"prompt": row["question"], "chosen": row["response_j"], "rejected": row["response_k"]}

def several(row):
    return [pair(row), pair(row)]

def fails(row):
    return row["nothing"]

def wrong(row):
    return ["text"]

constant = 3
"""


@pytest.mark.parametrize("by", ["file", "module"])
def test_a_function_maps_rows(by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = f"rows_of_{by}"
    (tmp_path / f"{module}.py").write_text(MAPPING)
    monkeypatch.chdir(tmp_path)
    place = f"{tmp_path}/{module}.py" if by == "file" else module
    path = write(tmp_path / "a.jsonl", STACK, STACK | {"date": "2024"})
    loaded = load_pairs(path, options=DataOptions(mapping=f"{place}:pair"))
    assert [plain(pair) for pair in loaded.pairs] == ONE
    assert loaded.reports[0].dropped == {"mapping": 1}
    assert loaded.reports[0].form == f"{place}:pair"
    pairs = load_pairs(write(tmp_path / "b.jsonl", STACK), options=DataOptions(mapping=f"{place}:several")).pairs
    assert [pair.id for pair in pairs] == [f"{tmp_path}/b.jsonl:1.1", f"{tmp_path}/b.jsonl:1.2"]
    for function, message in (("fails", "KeyError"), ("wrong", "type str")):
        with pytest.raises(BadRowError, match=rf"row 1: .*mapping.*{message}"):
            load_pairs(path, options=DataOptions(mapping=f"{place}:{function}"))
    for name in (f"{place}:constant", f"{place}:missing", "no_such_module:pair", f"{tmp_path}/none.py:pair"):
        with pytest.raises(ConfigError, match=r"data_options\.mapping"):
            load_pairs(path, options=DataOptions(mapping=name))
    with pytest.raises(ConfigError, match=r"data_options\.mapping"):
        DataOptions(mapping="pair")
    with pytest.raises(ConfigError, match="no effect"):
        DataOptions(mapping="a:b", columns=COLUMNS)


def test_prompts_are_read_from_every_form_of_a_pair(tmp_path: Path) -> None:
    """As in sampling, each prompt occurs once, under the row's number."""
    for name in ("LLaMA-Factory sharegpt", "LLaMA-Factory alpaca", "OpenRLHF", "hh", "TRL implicit"):
        _, row, ((turns, _, _),) = ROWS[name]
        path = write(tmp_path / "a.jsonl", row, row)
        prompts = load_prompts([path], ReadOptions())
        assert [[(turn.role, turn.content) for turn in found.prompt.turns] for found in prompts.rows] == [turns]
        assert prompts.rows[0].id == f"{path}:1"
    swap = ReadOptions(columns="prompt: chosen, chosen: prompt")
    (found,) = load_prompts([write(tmp_path / "a.jsonl", ROWS["TRL explicit"][1])], swap).rows
    assert found.prompt.turns[0].content == GOOD
