"""Replies count if they state a verdict; all others are unscored, with a reason."""

from __future__ import annotations

import json
import re
import time
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hafrm.judging.choices import read_choice
from hafrm.judging.judges import Unscored
from hafrm.judging.parsing import parse_reply

A_STATED = [
    "Output (a)",
    " output (A).\n",
    "OUTPUT ( a ) .",
    "Output (a)!",
    "Output a",
    "(a)",
    "A",
    "[[A]]",
    "\uff2f\uff55\uff54\uff50\uff55\uff54\uff08\uff41\uff09",  # full-width
    "**Output (a)**",
    "`Output (a)`",
    "```text\nOutput (a)\n```",
    "### Output (a)",
    "> Output (a)",
    '"Output (a)"',
    "['Output (a)']",
    '{"answer": "Output (a)"}',
    '```json\n{"choice": "a", "reason": "It is accurate."}\n```',
    "\\boxed{\\text{Output (a)}}",
    "<answer>Output (a)</answer>",
    "Output (a)<|im_end|>",
    "Output (a) \u2705",
    "Answer: Output (a)",
    "**Final Verdict:** (a)",
    "The answer is: Output (a).",
    "The better response is **Output (a)**.",
    "The output that best matches the instruction is Output (a).",
    "I prefer Output (a)",
    "Based on the given instruction, I would select Output (a).",
    "Therefore, Output (a).",
    "Output (a), because it does not ramble.",
    "I think Output (a) is better.",
    "**Output (a)** is the better output because it is accurate.",
    "Output (a) best matches the given instruction.",
    "Output (a)\n\nIt is more helpful.",
    "Output (a)\n\nOutput (a) is more helpful than Output (b).",
    "Output (a)\n\nExplanation: Output (a) answers the question, while Output (b) rambles.",
    "Output (b) is concise but wrong. Output (a) is accurate.\n\nOutput (a)",
    "Let me compare. Output (b) rambles.\n\nTherefore, the answer is Output (a).",
    "## Output (b)\nIt rambles.\n## Output (a)\nIt is short.\n## Verdict\nOutput (a)",
]
"""Replies that state (a); with letters and positions swapped they state (b)."""


def exchanged(reply: str) -> str:
    """Return the same reply about the other output: both letters are swapped wherever they name an output."""
    pairs = {"(a)": "(b)", "(A)": "(B)", "( a )": "( b )", "[A]": "[B]", "\uff41": "\uff42", '"a"': '"b"'}
    if reply in ("A", "Output a"):
        return reply[:-1] + chr(ord(reply[-1]) + 1)
    both = {**pairs, **{other: name for name, other in pairs.items()}}
    return re.sub("|".join(map(re.escape, both)), lambda match: both[match[0]], reply)


@pytest.mark.parametrize("reply", A_STATED)
def test_what_states_a_choice_is_read(reply: str) -> None:
    assert parse_reply(reply, 2).ranks == (1, 2)
    assert parse_reply(exchanged(reply), 2).ranks == (2, 1)


@pytest.mark.parametrize("reply", A_STATED[:12])
@pytest.mark.parametrize(
    "thinking",
    [
        "<think>\nOutput (b) is better.\n</think>\n\n{}",
        "So Output (b) is\n</think>\n{}",
        "<THINKING>Output (b)</THINKING>{}",
        "[THINK]Output (b)[/THINK]{}",
        "\u25c1think\u25b7Output (b)\u25c1/think\u25b7{}",
        "<think>one</think><think>Output (b)</think>{}",
        "<|channel|>analysis<|message|>Output (b)<|end|><|start|>assistant<|channel|>final<|message|>{}",
    ],
)
def test_thinking_is_no_part_of_the_answer(thinking: str, reply: str) -> None:
    assert parse_reply(thinking.format(reply), 2).ranks == (1, 2)


@pytest.mark.parametrize(
    "reply", ["<think>Output (a)", "<think>hm</think>", "Output (a)\n<think>or Output (b)", "<think>\n</think>\n"]
)
@pytest.mark.parametrize("responses", [2, 4])
def test_thinking_alone_is_named(responses: int, reply: str) -> None:
    assert parse_reply(reply, responses).unscored is Unscored.ONLY_THINKING
    assert parse_reply(reply, responses, finish_reason="length").unscored is Unscored.CUT_OFF
    assert parse_reply("", responses, thought=True).unscored is Unscored.ONLY_THINKING


@pytest.mark.parametrize(
    "reply",
    [
        "Output (c)",
        "\u041eutput (a)",  # a Cyrillic O
        "Output (ab)",
        "Output (a) is worse.",
        "Output (a) is not better.",
        "Not Output (a)",
        "The answer is not Output (a).",
        "The worst output is Output (a).",
        "I would not choose Output (a).",
        "I would choose Output (a) if it were shorter.",
        "If accuracy matters, the answer is Output (a).",
        "Output (a): vague and wrong.",
        "Is Output (a) better?",
        "Output (a)?",
        "~~Output (a)~~",
        "The answer is a list.",
        "The model should output a list.",
        "a. It is short\nb. It is long",
        "Tie",
        "a or b",
    ],
)
def test_what_states_nothing_is_no_choice(reply: str) -> None:
    assert parse_reply(reply, 2).unscored is Unscored.NO_CHOICE


@pytest.mark.parametrize(
    "reply",
    [
        "Output (a) or Output (b)",
        "Output (a)\nOutput (b)",
        "Output (a)\n\n(b)",
        "Output (a) is worse than Output (b)",
        "Neither Output (a) nor Output (b)",
        "Both Output (a) and Output (b) are fine.",
        "(a) and (b)",
        "1. Output (a)\n2. Output (b)",
        "## Output (a)\nIt is vague.\n## Output (b)\nIt is short.",
        "Output (a): wrong.\nOutput (b): right.",
        "Answer: Output (a)\nAnswer: Output (b)",
        "Output (a)\n\nOutput (b) is better.",
        "Output (a)\n\nActually, Output (b).",
        "Output (a)\n\nOn second thought, the second one is better.",
        "Output (a)\n\nOutput (b) is better than Output (a).",
        "Output (a) is better in style, but Output (b) is right.",
        '{"Output (a)": 8, "Output (b)": 6}',
        "~~Output (a)~~ Output (b)",
    ],
)
def test_a_reply_that_names_both_is_not_guessed(reply: str) -> None:
    assert parse_reply(reply, 2).unscored is Unscored.AMBIGUOUS
    assert parse_reply(exchanged(reply), 2).unscored is Unscored.AMBIGUOUS


@pytest.mark.parametrize("reply", ["I'm sorry, but I can't help with that.", "As an AI, I have no preferences."])
def test_a_refusal_is_named(reply: str) -> None:
    assert parse_reply(reply, 2).unscored is Unscored.REFUSAL
    assert parse_reply("", 2, finish_reason="content_filter").unscored is Unscored.FILTERED


@pytest.mark.parametrize("reason", ["length", "max_tokens"])
def test_a_cut_reply_counts_only_if_it_is_the_verdict_alone(reason: str) -> None:
    """A bold first line may be the heading of an analysis, and a draft of a ranking may be followed by another."""
    found = {
        reply: parse_reply(reply, 2, finish_reason=reason).unscored
        for reply in ("Output (a)", "**Output (a)", "**Output (a)**\nIt is vag", "Output (", "", "I prefer Output (a)")
    }
    assert list(found.values()) == [None, None, *[Unscored.CUT_OFF] * 4]
    whole = ranking(2, 1, 3, 4)
    assert parse_reply(f"```json\n{whole}\n```", 4, finish_reason=reason).ranks == (2, 1, 3, 4)
    for cut in (whole[:-20], f"{whole}\nBut"):
        assert parse_reply(cut, 4, finish_reason=reason).unscored is Unscored.CUT_OFF


def test_a_reply_is_shown_short_and_harmless() -> None:
    """Control characters, line breaks and marks of direction are escaped; a long reply shows both its ends."""
    shown = parse_reply("\x1b[31mred\x00\n\u202egone", 2).reply
    assert shown == "\\x1b[31mred\\x00\\n\\u202egone"
    shown = parse_reply("start" + "x" * 10**6 + "end", 2).reply
    assert shown is not None
    assert len(shown) < 400
    assert (shown[:5], shown[-3:]) == ("start", "end")
    assert parse_reply("Output (a)", 2).reply is None


@pytest.mark.parametrize("responses", [2, 4])
@pytest.mark.parametrize("reply", ["", " \n\t"])
def test_empty_replies(reply: str, responses: int) -> None:
    assert parse_reply(reply, responses).unscored is Unscored.EMPTY_REPLY


def ranking(*ranks: object, names: tuple[str, ...] = ("model_1", "model_2", "model_3", "model_4")) -> str:
    return json.dumps([{"model": name, "rank": rank} for name, rank in zip(names, ranks, strict=True)])


@pytest.mark.parametrize("ranks", list(permutations((1, 2, 3, 4))), ids=str)
def test_every_permutation_is_read(ranks: tuple[int, ...]) -> None:
    text = ranking(*ranks)
    assert parse_reply(text, 4).ranks == ranks
    assert parse_reply(f"```json\n{text}\n```", 4).ranks == ranks
    shuffled = json.dumps(json.loads(text)[::-1])
    assert parse_reply(shuffled, 4).ranks == ranks


@pytest.mark.parametrize(
    "form",
    [
        "Here is the ranking:\n{}\n\nmodel_2 is the best.",
        "**Ranking**\n```python\n{}\n```\nBecause it is.",
        '{{"ranking": {}}}',
        "<think>{}</think>{}",
        "{}\n\nSo once more:\n{}",
    ],
)
def test_a_ranking_is_found_in_what_is_around_it(form: str) -> None:
    text = ranking(2, 1, 4, 3)
    assert parse_reply(form.format(text, text), 4).ranks == (2, 1, 4, 3)
    assert parse_reply(form.format(text, text).replace('"', "'"), 4).ranks == (2, 1, 4, 3)


@pytest.mark.parametrize(
    "reply",
    [
        "\n".join(json.dumps({"model": f"model_{i}", "rank": r}) for i, r in ((1, 2), (2, 1), (3, 4), (4, 3))),
        '{"model_1": 2, "model_2": 1, "model_3": 4, "model_4": 3}',
        ranking("2", "1", "4", "3"),
        ranking(2, 1, 4, 3).replace("}]", "},]"),
        ranking(2, 1, 4, 3).replace("model_", "Model ").replace('"rank"', '"why": "it is", "Rank"'),
        ranking(2, 1, 4, 3).replace('"', "\u201d"),
    ],
    ids=["lines", "mapping", "numerals", "comma", "names", "quotes"],
)
def test_forms_of_a_ranking(reply: str) -> None:
    assert parse_reply(reply, 4).ranks == (2, 1, 4, 3)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("model_1 is best", Unscored.NOT_JSON),
        ("[" * 100_000, Unscored.NOT_JSON),
        ("__import__('os').abort()", Unscored.NOT_JSON),
        (f"{ranking(1, 2, 3, 4)}\n{ranking(4, 3, 2, 1)}", Unscored.AMBIGUOUS),
        ("{}", Unscored.NOT_A_RANKING),
        ("null", Unscored.NOT_A_RANKING),
        ("[1, 2, 3, 4]", Unscored.NOT_A_RANKING),
        ('["model_2", "model_1", "model_3", "model_4"]', Unscored.NOT_A_RANKING),
        (ranking(1, 2, 3, "fourth"), Unscored.NOT_A_RANKING),
        (ranking(True, 2, 3, 4), Unscored.NOT_A_RANKING),
        (ranking(1.0, 2, 3, 4), Unscored.NOT_A_RANKING),
        (ranking(1, 2, 3, 4).replace('"rank": 1', '"rank": 4, "rank": 1'), Unscored.WRONG_MODELS),
        ('[{"model": "model_1", "rank": 1}]', Unscored.WRONG_MODELS),
        (ranking(1, 2, 3, 4, names=("model_1", "model_2", "model_3", "model_5")), Unscored.WRONG_MODELS),
        (ranking(1, 2, 3, 4, names=("model_1", "model_2", "model_3", "model_3")), Unscored.WRONG_MODELS),
        (ranking(1, 1, 3, 4), Unscored.NOT_A_PERMUTATION),
        (ranking(0, 1, 2, 3), Unscored.NOT_A_PERMUTATION),
        (ranking(1, 2, 3, 10**30), Unscored.NOT_A_PERMUTATION),
    ],
)
def test_anything_else_is_no_ranking(reply: str, reason: Unscored) -> None:
    assert parse_reply(reply, 4).unscored is reason


@pytest.mark.parametrize("responses", [2, 4])
@pytest.mark.parametrize(
    "part", ["Output (a)", "Output (a) ", "the answer is ", "[think]", "<think>", "{", "\n", "so, ", "i would "]
)
def test_long_replies_take_no_long_time(part: str, responses: int) -> None:
    start = time.process_time()
    parse_reply(part * 20_000, responses)
    assert time.process_time() - start < 3


SAID = st.lists(
    st.sampled_from(
        ["Output", "(a)", "(b)", "is", "better", "the answer", "not", ",", ".", "\n", "I prefer", "**", "than"]
    )
).map(" ".join)


@given(before=SAID, after=SAID)
def test_a_reply_and_its_exchange_agree(before: str, after: str) -> None:
    """No position or letter is favoured: if the names are swapped, the verdict is swapped too, or there is none."""
    reply = f"{before} Output (a) {after}"
    one, other = parse_reply(reply, 2), parse_reply(exchanged(reply), 2)
    assert one.unscored == other.unscored
    assert other.ranks == (one.ranks and one.ranks[::-1])


@given(reply=st.text(max_size=60), responses=st.integers(2, 8))
def test_no_text_breaks_the_parser(reply: str, responses: int) -> None:
    answer = parse_reply(reply, responses)
    assert answer.unscored is not None or sorted(answer.ranks or ()) == list(range(1, responses + 1))


@pytest.mark.parametrize(
    ("explanation", "found"),
    [
        ("Output (b) repeats itself, while Output (a) is more accurate and is the better answer.", "a"),
        ("While Output (b) is more detailed, Output (a) is better.", "a"),
        ("Output (a) is better, whereas Output (b) is not.", "a"),
        ("Output (b) contains errors, so Output (a) is the better answer.", "a"),
        ("Output (b) is the better answer, since Output (a) is wrong.", Unscored.AMBIGUOUS),
        ("Output (b) beats Output (a) and is better.", Unscored.AMBIGUOUS),
        ("On the whole, I prefer Output (b).", Unscored.AMBIGUOUS),
    ],
)
def test_an_explanation_agrees_or_takes_the_verdict_back(explanation: str, found: str) -> None:
    """The clause of a preference decides to which output it belongs, under either name."""
    assert read_choice(f"**Output (a)**\n\n{explanation}") == found
    swapped = explanation.replace("(a)", "(x)").replace("(b)", "(a)").replace("(x)", "(b)")
    assert read_choice(f"**Output (b)**\n\n{swapped}") == ("b" if found == "a" else found)


def test_a_reply_beyond_reason_is_not_read() -> None:
    assert parse_reply("Output (a)\n" + "Output (b) is longer. " * 700_000, 2).unscored is Unscored.TOO_LONG
