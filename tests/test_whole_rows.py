"""Rows with tools, tool calls, reasoning and documents are rendered completely; dropped text is counted.

The oracle is `apply_chat_template` on the row's own messages, with the chat templates that TRL ships.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from hafrm.contract import parse_conversation, parse_pair
from hafrm.data import DataOptions, ReadOptions, encode_pairs, load_pairs
from hafrm.encoding import ConversationEncoder, TokenGroup
from hafrm.errors import BadRowError, BadRowReason, DataError
from hafrm.models.tokenizers import prepare_tokenizer
from hafrm.pairs import Conversation, Message, Prompt
from tests.tiny import tiny_tokenizer

trl = pytest.importorskip("trl", reason="TRL, which ships the chat templates, is not installed")
TEMPLATES = Path(trl.__file__).parent / "chat_templates"

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Weather now",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]
CALL = [{"type": "function", "id": "abc123def", "function": {"name": "get_weather", "arguments": {"city": "Oslo"}}}]
ROME = {"name": "get_weather", "arguments": {"city": "Rome"}}
RESULT = {"role": "tool", "content": '{"rain": true}', "name": "get_weather", "tool_call_id": "abc123def"}
ASK = {"role": "user", "content": "Is it raining in Oslo?"}


def say(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


ROWS: dict[str, dict[str, Any]] = {
    "calls differ": {
        "prompt": [ASK],
        "chosen": [say("", tool_calls=CALL)],
        "rejected": [
            say("", tool_calls=[{**CALL[0], "function": {"name": "get_weather", "arguments": {"city": "Rome"}}}])
        ],
        "tools": TOOLS,
    },
    "a call without content": {
        "prompt": [ASK],
        "chosen": [{"role": "assistant", "content": None, "tool_calls": CALL}],
        "rejected": [say("No idea.")],
        "tools": json.dumps(TOOLS),
    },
    "a prompt that ends in a tool result": {
        "prompt": [ASK, {"role": "assistant", "tool_calls": CALL}, RESULT],
        "chosen": [say("Yes, it is raining.")],
        "rejected": [say("I like turtles.")],
        "tools": TOOLS,
    },
    "a response of several turns": {
        "prompt": [ASK],
        "chosen": [say("", tool_calls=CALL), RESULT, say("Yes.")],
        "rejected": [say("Perhaps.")],
        "tools": TOOLS,
    },
    "reasoning differs": {
        "prompt": [ASK],
        "chosen": [say("Yes.", reasoning_content="The sky is grey.")],
        "rejected": [say("Yes.", reasoning_content="I guess.")],
    },
    "reasoning by another name": {
        "prompt": [ASK],
        "chosen": [say("Yes.", thinking="The sky is grey.")],
        "rejected": [say("Yes.", reasoning="I guess.")],
    },
    "arguments of the template": {
        "prompt": [ASK],
        "chosen": [say("Yes.")],
        "rejected": [say("No.")],
        "chat_template_kwargs": {"enable_thinking": False, "custom_instructions": "Be brief."},
        "documents": [{"title": "Weather", "text": "It rains."}],
    },
    "nulls of an Arrow table": {
        "prompt": [{**ASK, "tool_calls": None, "name": None}],
        "chosen": [say("Yes.", tool_calls=None, reasoning_content=None)],
        "rejected": [say("No.")],
        "tools": None,
    },
}
# Templates that take tools and reasoning; others are tried where they say so.
TOOL_TEMPLATES = ["qwen3", "qwen2_5", "llama3_1", "glm4moe", "gptoss", "gemma4", "nemotron_3_nano", "lfm2_v2"]


def tokenizer_of(name: str) -> Any:
    template = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    return prepare_tokenizer(tiny_tokenizer(template=template))  # takes the clock out


def stock(tokenizer: Any, row: dict[str, Any], name: str) -> list[int]:
    """Encode the row's messages with transformers itself, omitting nulls as it does."""
    tools = row.get("tools")
    return list(
        tokenizer.apply_chat_template(
            [*row["prompt"], *row[name]],
            tools=json.loads(tools) if isinstance(tools, str) else tools,
            documents=row.get("documents"),
            return_dict=False,
            **row.get("chat_template_kwargs", {}),
        )
    )


@pytest.mark.parametrize("template", TOOL_TEMPLATES)
@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_rows_are_rendered_as_transformers_renders_them(row: dict[str, Any], template: str) -> None:
    tokenizer = tokenizer_of(template)
    try:
        expected = [stock(tokenizer, row, name) for name in ("chosen", "rejected")]
    except Exception:  # the template refuses such conversations, so hafrm does too
        expected = []
    if not expected:
        with pytest.raises(BadRowError) as caught:
            encode(row, tokenizer)
        assert caught.value.reason == BadRowReason.REFUSED_BY_TEMPLATE
        return
    (group,) = encode(row, tokenizer)
    assert [[*group.prompt, *ids] for ids in group.responses] == expected


def encode(row: dict[str, Any], tokenizer: Any) -> list[Any]:
    pair = parse_pair(row, source="s", number=1)
    (outcome,) = ConversationEncoder(tokenizer, 100_000).encode_many([(pair.prompt, (pair.chosen, pair.rejected))])
    if not isinstance(outcome, TokenGroup):
        raise BadRowError.refused(str(outcome), source=pair.source, row=pair.row)
    return [outcome]


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_a_rendering_of_a_pair_as_a_row_loses_nothing(row: dict[str, Any]) -> None:
    pair = parse_pair(row, source="s", number=1)
    assert parse_pair(json.loads(json.dumps(pair.as_row())), source="s", number=1) == pair
    conversation = pair.conversations[0]
    assert parse_conversation(conversation.as_row(), source="s", number=1) == conversation


def test_pairs_that_differ_in_a_call_alone_are_not_identical() -> None:
    pair = parse_pair(ROWS["calls differ"], source="s", number=1)
    assert pair.chosen != pair.rejected
    assert pair.chosen[0].text != pair.rejected[0].text


def test_prompts_that_differ_in_their_tools_alone_are_two() -> None:
    with_tools = parse_pair(ROWS["calls differ"], source="s", number=1)
    without = parse_pair({**ROWS["calls differ"], "tools": None}, source="s", number=1)
    assert with_tools.prompt != without.prompt
    assert with_tools.group != without.group


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown key": ({"prompt": [{**ASK, "weight": 0}]}, "prompt[0].weight"),
    "audio": ({"prompt": [{**ASK, "audio": {"id": "x"}}]}, "prompt[0].audio"),
    "an image part": (
        {"prompt": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]},
        "prompt[0].content[0].image_url",
    ),
    "a part of another type": (
        {"prompt": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image"}]}]},
        "prompt[0].content[1].type",
    ),
    "a part with a key more": (
        {"chosen": [say([{"type": "text", "text": "a", "cache_control": {}}])]},  # type: ignore[arg-type]
        "chosen[0].content[0].cache_control",
    ),
    "images of the row": ({"images": ["a.png"]}, "images"),
    "calls that are no list": ({"chosen": [say("", tool_calls={"name": "f"})]}, "chosen[0].tool_calls"),
    "a name that is no string": ({"prompt": [{**ASK, "name": 3}]}, "prompt[0].name"),
    "tools that are no list": ({"tools": "get_weather"}, "tools"),
    "documents that are no objects": ({"documents": ["text"]}, "documents"),
    "arguments that are ours": ({"chat_template_kwargs": {"add_generation_prompt": True}}, "chat_template_kwargs"),
    "tools among the arguments": ({"chat_template_kwargs": {"tools": TOOLS}}, "chat_template_kwargs"),
    "tools that no JSON can write": ({"tools": [{"limit": float("inf")}]}, "tools"),
}


@pytest.mark.parametrize(("change", "field"), BAD.values(), ids=BAD)
def test_what_would_be_lost_is_refused_by_name(change: dict[str, Any], field: str) -> None:
    row = {"prompt": [ASK], "chosen": [say("Yes.")], "rejected": [say("No.")]} | change
    with pytest.raises(BadRowError) as caught:
        parse_pair(row, source="s", number=1)
    assert caught.value.field == field


def test_parts_of_text_are_joined() -> None:
    parts = [{"type": "text", "text": "Is it"}, {"type": "input_text", "text": "raining?", "image_url": None}]
    row = {"prompt": [{"role": "developer", "content": parts}], "response": [say("Yes.")]}
    found = parse_conversation(row, source="s", number=1)
    assert found.prompt.turns == (Message("developer", "Is it\nraining?"),)


PLAIN_ROWS = [
    {"prompt": [ASK], "chosen": [say("Yes, it is raining hard.")], "rejected": [say("No, it's dry.")]},
    {
        "prompt": [ASK, say("Where are you?"), {"role": "user", "content": "At  home .\n\nIn Oslo"}],
        "chosen": [say("Yes: 1 < 2 & so on\n- a\n- b")],
        "rejected": [say("N")],
    },
]


@pytest.mark.parametrize("template", sorted(path.stem for path in TEMPLATES.glob("*.jinja")))
@pytest.mark.parametrize("row", PLAIN_ROWS, ids=["one turn", "three turns"])
def test_the_border_of_every_template_is_where_the_response_begins(row: dict[str, Any], template: str) -> None:
    tokenizer = tokenizer_of(template)
    try:
        (group,) = encode(row, tokenizer)
    except BadRowError:  # a vision model's template, which only accepts content in parts
        assert template.startswith(("idefics3", "smolvlm", "llava")) or len(row["prompt"]) > 1
        return
    if "text" in str(group.lost):  # a few templates only accept content in parts
        assert template.startswith(("idefics3", "smolvlm", "llava"))
        return
    assert row["prompt"][-1]["content"].split()[-1] in tokenizer.decode(group.prompt)
    for name, ids in zip(("chosen", "rejected"), group.responses, strict=True):
        response = tokenizer.decode(ids)
        assert row[name][0]["content"] in response
        assert row["prompt"][-1]["content"].split()[-1] not in response


SYSTEM_LAST = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}"
    "{% set sys = messages[0].content %}{% set rest = messages[1:] %}"
    "{% else %}{% set rest = messages %}{% endif %}{% for m in rest %}{% if m.role == 'user' %}"
    "{% if loop.last and sys is defined %}[INST] {{ sys + '\n\n' + m.content }}[/INST]"
    "{% else %}[INST] {{ m.content }}[/INST]{% endif %}{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
"""Writes the system text before the last user turn, but only if that is the final turn."""

DECORATES_LAST = (
    "{% for m in messages %}{{ m.role }}: {{ '(answer this) ' if loop.last and m.role == 'user' else '' }}"
    "{{ m.content }}{{ eos_token }}{% endfor %}{{ 'assistant: ' if add_generation_prompt else '' }}"
)


def system_prompt(text: str = "You are kind.") -> Prompt:
    return Prompt((Message("system", text), Message("user", "Please")))


def answer(text: str) -> tuple[Message, ...]:
    return (Message("assistant", text),)


def test_a_template_that_moves_the_system_text_has_a_true_border() -> None:
    tokenizer = tiny_tokenizer(template=SYSTEM_LAST)
    group = ConversationEncoder(tokenizer).encode(system_prompt(), [answer("I will."), answer("I won't.")])
    assert tokenizer.decode(group.prompt) == "<s>[INST] Please[/INST] "
    assert [tokenizer.decode(ids) for ids in group.responses] == ["I will.</s>", "I won't.</s>"]
    assert group.lost == ("system text",)


def test_a_template_that_decorates_the_last_turn_has_a_true_border() -> None:
    tokenizer = tiny_tokenizer(template=DECORATES_LAST)
    group = ConversationEncoder(tokenizer).encode(Prompt.of("Please"), [answer("I will."), answer("I won't.")])
    assert tokenizer.decode(group.prompt) == "user: Please</s>assistant: "
    assert group.lost == ()


def test_a_response_of_several_turns_under_a_moving_template() -> None:
    tokenizer = tiny_tokenizer(template=SYSTEM_LAST)
    turns = (*answer("First."), Message("user", "And?"), *answer("Second."))
    group = ConversationEncoder(tokenizer).encode(system_prompt(), [turns])
    assert tokenizer.decode(group.prompt) == "<s>[INST] Please[/INST] "
    assert tokenizer.decode(group.responses[0]) == "First.</s>[INST] And?[/INST] Second.</s>"


@pytest.mark.parametrize("overlong", ["drop", "truncate"])
def test_an_overlong_prompt_leaves_no_response_under_a_moving_template(overlong: Any) -> None:
    encoder = ConversationEncoder(tiny_tokenizer(template=SYSTEM_LAST), max_length=10, overlong=overlong)
    (outcome,) = encoder.encode_many([(system_prompt(), [answer("I will.")])])
    assert getattr(outcome, "prompt_alone", False)


def lost_of(template: Any, rows: list[dict[str, Any]]) -> list[str]:
    tokenizer = tokenizer_of(template) if isinstance(template, str) else template
    pairs = [parse_pair(row, source="s", number=number) for number, row in enumerate(rows, 1)]
    return list(map(str, encode_pairs(pairs, ConversationEncoder(tokenizer, 10_000), DataOptions()).account.lost))


def test_dropped_turns_are_counted_by_role() -> None:
    tool = {**ROWS["a prompt that ends in a tool result"], "tools": None}
    found = lost_of("phi3", [{**tool, "prompt": [ASK, RESULT]}] * 3 + [PLAIN_ROWS[0]])
    assert any("3 of 3" in line and "role tool" in line for line in found)
    thought = {**PLAIN_ROWS[0], "chosen": [say("<think>Is it?</think>Yes.")]}
    (line,) = lost_of("deepseek_r1_distill", [thought] * 8)
    assert "8 of 16" in line
    assert "role assistant" in line


def test_tools_and_calls_that_a_template_ignores_are_counted() -> None:
    found = lost_of(tiny_tokenizer(template=SYSTEM_LAST), [ROWS["calls differ"]])
    assert any("tool_calls of 2 of 2" in line for line in found)
    assert any("tools of 1 of 1 rows" in line for line in found)
    (line,) = lost_of("qwen2_5", [ROWS["reasoning differs"]])
    assert "reasoning of 2 of 2" in line


@pytest.mark.parametrize("template", TOOL_TEMPLATES)
def test_nothing_is_said_to_be_dropped_that_is_there(template: str) -> None:
    rows = [ROWS["calls differ"], ROWS["a prompt that ends in a tool result"]]
    assert [line for line in lost_of(template, rows) if "text" in line or "tools " in line] == []


def test_the_plain_template_writes_all_but_who_called_what() -> None:
    rows = [row for name, row in ROWS.items() if name != "arguments of the template"]
    found = {line.split(" drops the ")[1].split()[0] for line in lost_of(tiny_tokenizer(), rows)}
    assert found == {"tool_call_id", "name"}


def test_a_prompt_before_transcripts_is_taken_off(tmp_path: Path) -> None:
    talk = "\n\nHuman: {}\n\nAssistant: {}"
    rows = [
        {"prompt": "Why?", "chosen": talk.format("Why?", "Because."), "rejected": talk.format("Why?", "No.")},
        {"prompt": "\n\nHuman: Why?\n\nAssistant:", "chosen": " Because.", "rejected": " No."},
        {"prompt": "Write a dialogue.", "chosen": talk.format("Hi", "Hello"), "rejected": "No."},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    one, two, three = load_pairs(str(path)).pairs
    assert (one.prompt, one.chosen, one.rejected) == (Prompt.of("Why?"), answer("Because."), answer("No."))
    assert (two.prompt, two.chosen) == (Prompt.of("Why?"), answer(" Because."))
    assert three.chosen == answer(talk.format("Hi", "Hello"))


def test_a_response_that_repeats_its_prompt_is_scored_without_it() -> None:
    row = {"prompt": [ASK], "response": [ASK, say("Yes.")]}
    assert parse_conversation(row, source="s", number=1) == Conversation.of(ASK["content"], "Yes.")


def test_calls_of_an_arrow_table_have_no_fields_of_other_calls(tmp_path: Path) -> None:
    """Arrow gives every call the arguments of all calls, so nulls that the call did not have would be rendered."""
    other = [{"type": "function", "function": {"name": "get_time", "arguments": {"zone": "UTC"}}}]
    rows = [{**ROWS["calls differ"], "chosen": [say("", tool_calls=calls)]} for calls in (CALL, other)]
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    tokenizer = tokenizer_of("qwen3")
    for pair, row in zip(load_pairs(str(path)).pairs, rows, strict=True):
        (group,) = encode_pairs([pair], ConversationEncoder(tokenizer, 10_000), DataOptions())
        assert [*group.prompt, *group.responses[0]] == stock(tokenizer, row, "chosen")


def test_a_conversation_may_end_at_the_stop_token_as_openrlhf_trains() -> None:
    """OpenRLHF's rule: no line break at the end, and an end-of-sequence token if the text has none."""
    chatml = "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}</s>\n{% endfor %}"
    bare = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    for template, ending in ((chatml, "No.</s>"), (bare, "No. </s>")):
        tokenizer = tiny_tokenizer(template=template)
        group = ConversationEncoder(tokenizer, scored_at="stop_token").encode(Prompt.of("Why?"), [answer("No.")])
        assert tokenizer.decode([*group.prompt, *group.responses[0]]).endswith(ending)


def test_responses_under_which_a_prompt_is_rendered_differently_are_refused_together() -> None:
    """Qwen3 drops reasoning before the last user turn: with one more user turn, the prompts differ."""
    thought = {"role": "assistant", "content": "", "reasoning_content": "I must look.", "tool_calls": CALL}
    row = {
        "prompt": [ASK, thought, RESULT],
        "chosen": [say("Yes.")],
        "rejected": [say("Wait."), {"role": "user", "content": "Well?"}, say("No.")],
        "tools": TOOLS,
    }
    with pytest.raises(BadRowError) as caught:
        encode(row, tokenizer_of("qwen3"))
    assert caught.value.reason == BadRowReason.REFUSED_BY_TEMPLATE
    plain = {**row, "prompt": [ASK]}
    (group,) = encode(plain, tokenizer_of("qwen3"))
    assert [[*group.prompt, *ids] for ids in group.responses] == [
        stock(tokenizer_of("qwen3"), plain, name) for name in ("chosen", "rejected")
    ]


def test_empty_calls_and_tools_are_not_dropped() -> None:
    row = {**PLAIN_ROWS[0], "chosen": [say("Yes.", tool_calls=[])], "tools": []}
    assert lost_of("qwen2_5", [row]) == []


def test_a_dropped_turn_is_counted_though_its_text_stands_in_another_turn() -> None:
    row = {"prompt": [ASK, {**RESULT, "content": "18"}], "chosen": [say("It is 18 degrees.")], "rejected": [say("No.")]}
    assert any("1 of 1" in line and "role tool" in line for line in lost_of("phi3_5", [row]))
    assert not any("text" in line and "role tool" in line for line in lost_of("qwen3", [row]))
    greeting = {"role": "developer", "content": "Hi"}
    row = {
        "prompt": [greeting, {"role": "user", "content": "Hi there"}],
        "chosen": [say("Yes.")],
        "rejected": [say("No")],
    }
    assert any("role developer" in line for line in lost_of("qwen3", [row]))


TRUTHY = {"prompt": "Is it cheese?", "chosen": "No, rock.", "rejected": "Yes."}


def test_a_system_column_is_the_prompt_s_system_turn() -> None:
    row = {**TRUTHY, "system": "You are honest."}
    turns = (Message("system", "You are honest."), Message("user", "Is it cheese?"))
    assert parse_pair(row, source="s", number=1).prompt.turns == turns
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    implicit = {name: [*messages[1:], say(TRUTHY[name])] for name in ("chosen", "rejected")}
    assert parse_pair({**implicit, "system": "You are honest."}, source="s", number=1).prompt.turns == turns
    assert parse_pair({**row, "prompt": messages}, source="s", number=1).prompt.turns == turns
    for repeated in (messages, messages[1:]):
        single = {**row, "response": [*repeated, say("No.")]}
        assert parse_conversation(single, source="s", number=1) == Conversation(Prompt(turns), answer("No."))
    for empty in ("", None, " "):
        assert parse_pair({**row, "system": empty}, source="s", number=1).prompt == Prompt.of("Is it cheese?")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("history", [["Hi.", "Hello."]]),
        ("input", "cat"),
        ("instruction", "Translate."),
        ("system_prompt", "Be kind."),
        ("system", ["Be kind."]),
    ],
)
def test_a_column_of_the_prompt_s_text_is_read_or_refused_by_name(name: str, value: Any) -> None:
    for row in ({**TRUTHY, name: value}, {"prompt": "Is it?", "response": "No.", name: value}):
        with pytest.raises(BadRowError) as caught:
            (parse_conversation if "response" in row else parse_pair)(row, source="s", number=1)
        assert caught.value.field == name


def test_a_column_whose_text_is_in_the_prompt_is_not_lost() -> None:
    row = {**TRUTHY, "prompt": "Translate.\ncat", "instruction": "Translate.", "input": "cat", "history": []}
    assert parse_pair(row, source="s", number=1).prompt == Prompt.of("Translate.\ncat")


def test_another_system_turn_than_the_column_s_is_refused() -> None:
    row = {**TRUTHY, "prompt": [{"role": "system", "content": "Be kind."}, ASK], "system": "Be curt."}
    with pytest.raises(BadRowError) as caught:
        parse_pair(row, source="s", number=1)
    assert (caught.value.field, caught.value.reason) == ("system", BadRowReason.UNSUPPORTED)


@pytest.mark.parametrize("name", ["tools", "documents", "chat_template_kwargs"])
def test_a_template_column_of_blank_text_is_absent(name: str) -> None:
    row = {"prompt": "a", "response": "b"}
    assert parse_conversation(row | {name: " "}, source="file", number=1) == parse_conversation(
        row, source="file", number=1
    )


@pytest.mark.parametrize("name", ["bos_token", "eos_token", "pad_token", "image_token", "additional_special_tokens"])
def test_template_arguments_do_not_rename_special_tokens(name: str) -> None:
    """transformers gives a template the tokenizer's special tokens under these names, below the row's arguments."""
    row = {"prompt": "a", "response": "b", "chat_template_kwargs": {name: "</s>"}}
    with pytest.raises(BadRowError, match=name) as caught:
        parse_conversation(row, source="file", number=1)
    assert caught.value.reason == BadRowReason.UNSUPPORTED
    parse_conversation(row | {"chat_template_kwargs": {"enable_thinking": False}}, source="file", number=1)


def test_columns_that_are_not_read_are_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{**TRUTHY, "id": "1", "source": "x", "margin": 1.0, "empty": ""}, {**TRUTHY, "context": "c"}]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (report,) = load_pairs(str(path)).reports
    assert report.unread == ["context", "id", "source"]
    assert "context, id, source" in report.unread_columns


def test_the_first_fault_is_said_where_no_row_is_left(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({**TRUTHY, "history": [["Hi.", "Hello."]]}), encoding="utf-8")
    with pytest.raises(DataError, match=r"row 1: `history`"):
        load_pairs(str(path), options=ReadOptions(on_bad_row="skip"))


def test_dropped_reasoning_is_counted_though_its_words_stand_elsewhere() -> None:
    row = {"prompt": [ASK], "chosen": [say("It is Paris.", reasoning_content="Paris")], "rejected": [say("No.")]}
    (line,) = lost_of("deepseek_r1_distill", [row])
    assert "reasoning of 1 of 1" in line
    assert lost_of("qwen3", [row]) == []


def test_a_dropped_turn_is_counted_though_calls_or_the_template_contain_its_text() -> None:
    called = {"role": "assistant", "content": "", "tool_calls": CALL}
    row = {
        "prompt": [ASK, called, {"role": "tool", "content": "Oslo"}],
        "chosen": [say("Yes.")],
        "rejected": [say("N")],
    }
    writes_calls = (
        "{% for m in messages %}{% if m.role != 'tool' %}[{{ m.role }}] {{ m.content }}"
        "{{ m.tool_calls | tojson if m.tool_calls else '' }}{{ eos_token }}{% endif %}{% endfor %}"
    )
    assert any(
        "text of 1 of 1 turns (role tool)" in line for line in lost_of(tiny_tokenizer(template=writes_calls), [row])
    )
    row = {**row, "prompt": [ASK, called, {"role": "tool", "content": "user"}]}
    assert any(
        "text of 1 of 1 turns (role tool)" in line for line in lost_of(tiny_tokenizer(template=writes_calls), [row])
    )


def test_keys_and_arguments_that_change_nothing_are_counted() -> None:
    responses = [{"name": "get_weather", "response": "rain"}]
    prompt = [
        {**ASK, "name": "ann"},
        {"role": "assistant", "tool_calls": CALL},
        {**RESULT, "tool_responses": responses},
    ]
    row = {
        "prompt": prompt,
        "chosen": [say("Yes.", name="bob")],
        "rejected": [say("No.")],
        "chat_template_kwargs": {"foo": 1, "enable_thinking": False},
    }
    found = "\n".join(lost_of("qwen3", [row]))
    for part in ("name of 1 of 1 turns (role user)", "name of 1 of 1 turns (role assistant)"):
        assert part in found
    for key in ("tool_call_id", "tool_responses", "name"):
        assert f"{key} of 1 of 1 turns (role tool)" in found
    assert "chat_template_kwargs.foo changes nothing in 1 of 1 rows" in found
    names = (
        "{% for m in messages %}{{ m.role }} {{ m.name }} {{ m.tool_call_id }}{{ m.tool_responses }}{{ m.tool_calls }}"
        "{{ m.content }}{{ eos_token }}{% endfor %}{{ foo }}{{ enable_thinking }}"
    )
    assert lost_of(tiny_tokenizer(template=names), [row]) == []
