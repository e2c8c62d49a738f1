"""The data contract: what counts as a pair, and the reason given for each violation."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hafrm.contract import parse_conversation, parse_pair, row_schema
from hafrm.errors import BadRowError, BadRowReason
from hafrm.pairs import Conversation, Message, PreferencePair, Prompt, text_group
from hafrm.rows import Row, transcript_turns

USER, OTHER = Message("user", "Why is the sky blue?"), Message("user", "And at night?")
GOOD, BAD = Message("assistant", "Because of scattering."), Message("assistant", "It is not.")


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def parse(**row: Any) -> PreferencePair:
    return parse_pair(row, source="rows.jsonl", number=7)


def refusal(**row: Any) -> BadRowError:
    with pytest.raises(BadRowError) as caught:
        parse(**row)
    return caught.value


WAYS_TO_WRITE_ONE_PAIR = {
    "strings": {"prompt": USER.content, "chosen": GOOD.content, "rejected": BAD.content},
    "messages": {
        "prompt": [USER.as_dict()],
        "chosen": [GOOD.as_dict()],
        "rejected": [BAD.as_dict()],
    },
    "prompt as messages, responses as strings": {
        "prompt": [USER.as_dict()],
        "chosen": GOOD.content,
        "rejected": BAD.content,
    },
    "one message instead of a list": {
        "prompt": USER.as_dict(),
        "chosen": GOOD.as_dict(),
        "rejected": BAD.as_dict(),
    },
    "implicit prompt": {
        "chosen": [USER.as_dict(), GOOD.as_dict()],
        "rejected": [USER.as_dict(), BAD.as_dict()],
    },
    "implicit prompt beside the stated one": {
        "prompt": f"  {USER.content}\n",
        "chosen": [USER.as_dict(), GOOD.as_dict()],
        "rejected": [USER.as_dict(), BAD.as_dict()],
    },
    "transcripts": {
        "chosen": f"\n\nHuman: {USER.content}\n\nAssistant: {GOOD.content}",
        "rejected": f"\n\nHuman: {USER.content}\n\nAssistant: {BAD.content}",
    },
    "transcripts, prompt null": {
        "prompt": None,
        "chosen": f"Human: {USER.content}\n\nAssistant: {GOOD.content}",
        "rejected": f"Human: {USER.content}\n\nAssistant: {BAD.content}",
    },
}


@pytest.mark.parametrize("row", WAYS_TO_WRITE_ONE_PAIR.values(), ids=WAYS_TO_WRITE_ONE_PAIR)
def test_all_schemas_say_the_same_pair(row: dict[str, Any]) -> None:
    pair = parse(**row)
    assert pair == PreferencePair(prompt=Prompt((USER,)), chosen=(GOOD,), rejected=(BAD,))
    assert pair.id == "rows.jsonl:7"


def test_implicit_prompt_ends_where_the_conversations_part() -> None:
    system = {"role": "system", "content": "Be brief."}
    shared = [system, USER.as_dict(), GOOD.as_dict(), OTHER.as_dict()]
    pair = parse(chosen=[*shared, assistant("Black.")], rejected=[*shared, assistant("Green.")])
    assert [turn.role for turn in pair.prompt.turns] == ["system", "user", "assistant", "user"]
    assert pair.chosen == (Message("assistant", "Black."),)


def test_turns_after_different_answers_belong_to_the_responses() -> None:
    pair = parse(
        chosen=[user("Hi"), assistant("Hello"), user("More"), assistant("Yes")],
        rejected=[user("Hi"), assistant("Go"), user("More"), assistant("No")],
    )
    assert pair.prompt == Prompt((Message("user", "Hi"),))
    assert [turn.content for turn in pair.rejected] == ["Go", "More", "No"]


def test_equal_conversations_keep_their_last_answer_as_response() -> None:
    same = [user("Hi"), assistant("Hello")]
    pair = parse(chosen=same, rejected=same)
    assert pair.prompt == Prompt((Message("user", "Hi"),))
    assert pair.chosen == pair.rejected == (Message("assistant", "Hello"),)


def test_a_transcript_beside_a_prompt_is_plain_text() -> None:
    text = "\n\nHuman: what?\n\nAssistant: that."
    assert parse(prompt="Write a dialogue.", chosen=text, rejected="No.").chosen == (Message("assistant", text),)


def test_margin_and_group_are_read() -> None:
    pair = parse(prompt="a", chosen="b", rejected="c", margin=2, group=17)
    assert (pair.margin, pair.group) == (2.0, "17")


R = BadRowReason
FAULTS: dict[str, tuple[dict[str, Any], BadRowReason, str | None]] = {
    "no chosen": ({"prompt": "a", "rejected": "c"}, R.MISSING_FIELD, "chosen"),
    "null rejected": ({"prompt": "a", "chosen": "b", "rejected": None}, R.MISSING_FIELD, "rejected"),
    "no prompt": ({"chosen": "b", "rejected": "c"}, R.MISSING_FIELD, "prompt"),
    "empty prompt": ({"prompt": " \n", "chosen": "b", "rejected": "c"}, R.EMPTY_PROMPT, "prompt"),
    "no turns in prompt": ({"prompt": [], "chosen": "b", "rejected": "c"}, R.EMPTY_PROMPT, "prompt"),
    "empty response": ({"prompt": "a", "chosen": "", "rejected": "c"}, R.EMPTY_RESPONSE, "chosen"),
    "blank response": ({"prompt": "a", "chosen": "b", "rejected": "\t "}, R.EMPTY_RESPONSE, "rejected"),
    "no turns in response": ({"prompt": "a", "chosen": [], "rejected": "c"}, R.EMPTY_RESPONSE, "chosen"),
    "prompt a number": ({"prompt": 3, "chosen": "b", "rejected": "c"}, R.WRONG_TYPE, "prompt"),
    "chosen a number": ({"prompt": "a", "chosen": 3.5, "rejected": "c"}, R.WRONG_TYPE, "chosen"),
    "a turn is a string": ({"prompt": ["a"], "chosen": "b", "rejected": "c"}, R.WRONG_TYPE, "prompt[0]"),
    "unknown role": (
        {"prompt": [{"role": "human", "content": "a"}], "chosen": "b", "rejected": "c"},
        R.WRONG_TYPE,
        "prompt[0].role",
    ),
    "role a list": (
        {"prompt": [{"role": [], "content": "a"}], "chosen": "b", "rejected": "c"},
        R.WRONG_TYPE,
        "prompt[0].role",
    ),
    "no role": ({"prompt": [{"content": "a"}], "chosen": "b", "rejected": "c"}, R.MISSING_FIELD, "prompt[0].role"),
    "no content": (
        {"prompt": [{"role": "user"}], "chosen": "b", "rejected": "c"},
        R.MISSING_FIELD,
        "prompt[0].content",
    ),
    "content a list": (
        {"prompt": [{"role": "user", "content": ["a"]}], "chosen": "b", "rejected": "c"},
        R.WRONG_TYPE,
        "prompt[0].content[0]",
    ),
    "response begins with a user turn": (
        {"prompt": "a", "chosen": [user("x"), assistant("b")], "rejected": "c"},
        R.WRONG_TYPE,
        "chosen",
    ),
    "response ends with a user turn": (
        {"prompt": "a", "chosen": "b", "rejected": [assistant("c"), user("x")]},
        R.WRONG_TYPE,
        "rejected",
    ),
    "nothing in common": (
        {"chosen": [user("a"), assistant("b")], "rejected": [user("x"), assistant("c")]},
        R.MISSING_FIELD,
        "prompt",
    ),
    "the stated prompt says more": (
        {
            "prompt": [{"role": "system", "content": "Be brief."}, user("a")],
            "chosen": [user("a"), assistant("b")],
            "rejected": [user("a"), assistant("c")],
        },
        R.WRONG_TYPE,
        "prompt",
    ),
    "lone surrogate": ({"prompt": "a", "chosen": "b\ud800", "rejected": "c"}, R.INVALID_TEXT, "chosen"),
    "lone surrogate in a turn": (
        {"prompt": [user("\udfff")], "chosen": "b", "rejected": "c"},
        R.INVALID_TEXT,
        "prompt[0].content",
    ),
    "margin NaN": ({"prompt": "a", "chosen": "b", "rejected": "c", "margin": float("nan")}, R.WRONG_TYPE, "margin"),
    "margin infinite": ({"prompt": "a", "chosen": "b", "rejected": "c", "margin": -1e999}, R.WRONG_TYPE, "margin"),
    "margin beyond floats": (
        {"prompt": "a", "chosen": "b", "rejected": "c", "margin": 10**400},
        R.WRONG_TYPE,
        "margin",
    ),
    "margin beyond reason": ({"prompt": "a", "chosen": "b", "rejected": "c", "margin": 1e30}, R.WRONG_TYPE, "margin"),
    "margin a string": ({"prompt": "a", "chosen": "b", "rejected": "c", "margin": "2"}, R.WRONG_TYPE, "margin"),
    "margin true": ({"prompt": "a", "chosen": "b", "rejected": "c", "margin": True}, R.WRONG_TYPE, "margin"),
    "group a list": ({"prompt": "a", "chosen": "b", "rejected": "c", "group": ["g"]}, R.WRONG_TYPE, "group"),
    "group not Unicode": ({"prompt": "a", "chosen": "b", "rejected": "c", "group": "\ud800"}, R.INVALID_TEXT, "group"),
}


@pytest.mark.parametrize(("row", "reason", "field"), FAULTS.values(), ids=FAULTS)
def test_each_fault_has_its_name(row: dict[str, Any], reason: BadRowReason, field: str | None) -> None:
    error = refusal(**row)
    assert (error.reason, error.field, error.row) == (reason, field, 7)
    assert str(error).startswith("rows.jsonl, row 7: ")
    assert "on_bad_row: skip" in str(error)


@pytest.mark.parametrize("row", [None, 3, "text", ["prompt"], True])
def test_a_row_must_be_an_object(row: Any) -> None:
    with pytest.raises(BadRowError, match="not an object") as caught:
        parse_pair(row, source="rows.jsonl", number=1)
    assert caught.value.reason == BadRowReason.WRONG_TYPE


def test_deeply_nested_values_are_described_briefly() -> None:
    deep: Any = "x"
    for _ in range(5000):
        deep = [deep]
    error = refusal(prompt="a", chosen="b", rejected="c", margin=deep)
    assert len(str(error)) < 300


def test_groups_ignore_case_and_white_space_but_not_roles_or_turns() -> None:
    group = text_group([Message("user", "Hello  there\n")])
    assert group == text_group([Message("user", "hello there")])
    assert group != text_group([Message("system", "hello there")])
    assert group != text_group([Message("user", "hello"), Message("user", "there")])


def test_the_group_of_a_prompt_is_stable() -> None:
    """Splits and result files use group names: changing the rule would move prompts between splits."""
    assert text_group([Message("user", "Why is the sky blue?")]) == "75d608a1d1a3a38b"


@pytest.mark.parametrize(
    ("row", "schema"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": [assistant("c")]}, ("string", "string", "messages")),
        ({"chosen": assistant("b"), "rejected": []}, ("absent", "messages", "messages")),
        ({"prompt": None}, ("absent", "absent", "absent")),
    ],
)
def test_row_schema(row: dict[str, Any], schema: tuple[str, ...]) -> None:
    assert row_schema(row) == schema


def test_transcripts_split_at_their_marks_only() -> None:
    text = "\n\nHuman: I said: Human: hi\nAssistant: no\n\nAssistant: One.\n\nTwo.\n\nSystem: x"
    assert transcript_turns(text) == (
        Message("user", "I said: Human: hi\nAssistant: no"),
        Message("assistant", "One.\n\nTwo."),
        Message("system", "x"),
    )
    assert transcript_turns("Well.\n\nHuman: no transcript") == ()


def test_parse_conversation() -> None:
    row = {"prompt": "Hi", "response": "\n\nHuman: kept as it is"}
    assert parse_conversation(row, source="s", number=1) == Conversation.of("Hi", "\n\nHuman: kept as it is")
    with pytest.raises(BadRowError, match="`response` is empty"):
        parse_conversation({"prompt": "Hi", "response": []}, source="s", number=1)


def test_conversations_are_chosen_before_rejected() -> None:
    chosen, rejected = PreferencePair(prompt=Prompt((USER,)), chosen=(GOOD,), rejected=(BAD,)).conversations
    assert (chosen.response, rejected.response) == ((GOOD,), (BAD,))


@pytest.mark.parametrize(
    ("value", "reason"), [(None, R.MISSING_FIELD), (1, R.WRONG_TYPE), ("yes", R.WRONG_TYPE)], ids=str
)
def test_reader_wants_booleans_where_it_says_so(value: Any, reason: BadRowReason) -> None:
    reader = Row({"safe": value, "other": False}, "s")
    assert reader.boolean("other") is False
    with pytest.raises(BadRowError) as caught:
        reader.boolean("safe")
    assert caught.value.reason == reason


text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)
prompts = st.lists(st.builds(Message, st.sampled_from(["system", "user", "assistant", "tool"]), text), min_size=1)
responses = st.builds(lambda content: (Message("assistant", content),), text)
margins = st.none() | st.floats(-1e6, 1e6)


@given(prompt=prompts, chosen=responses, rejected=responses, margin=margins, group=st.just("") | text)
def test_rows_of_pairs_parse_back(
    prompt: list[Message], chosen: tuple[Message], rejected: tuple[Message], margin: float | None, group: str
) -> None:
    pair = PreferencePair(prompt=Prompt(tuple(prompt)), chosen=chosen, rejected=rejected, margin=margin, group=group)
    assert parse_pair(pair.as_row(), source="", number=0) == pair


@given(prompt=text, chosen=text, rejected=text)
def test_strings_and_messages_agree(prompt: str, chosen: str, rejected: str) -> None:
    messages = {"prompt": [user(prompt)], "chosen": [assistant(chosen)], "rejected": [assistant(rejected)]}
    assert parse(prompt=prompt, chosen=chosen, rejected=rejected) == parse(**messages)
