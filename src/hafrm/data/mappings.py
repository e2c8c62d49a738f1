"""From the paper's sources to pairs: one pure function per schema (section 3.1 of the paper).

Each takes a reader of one row in the source's own schema and returns a pair's row (see `hafrm.pairs`), or a `Drop` for
rows that the paper's preprocessing leaves out. A missing or mistyped field is a bad row.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hafrm.data.collecting import Drop
from hafrm.errors import BadRowReason
from hafrm.pairs import RowReader, transcript_turns


def hh_transcripts(row: RowReader) -> Mapping[str, Any]:
    """Map Anthropic hh-rlhf: two transcripts with a common beginning."""
    return _answers(row, "chosen", "rejected")


def hh_single_turn(row: RowReader) -> Mapping[str, Any] | Drop:
    """Map Anthropic hh-rlhf, keeping only pairs with one question and one answer.

    The paper does not mention this, but its Table 1 implies it: 12,915 Harmless pairs of 42.9 words per QA.
    `harmless-base` has 42,537 pairs; in a sample of 1,484, the average is 109 words per QA, and 42 for the 30% with a
    single turn.
    """
    pair = hh_transcripts(row)
    if any(len(transcript_turns(text)) > 2 for text in pair.values()):
        return Drop("multi_turn")
    return pair


def beaver_safe(row: RowReader) -> Mapping[str, Any] | Drop:
    """Map PKU-SafeRLHF: keep pairs with exactly one safe response, which is the chosen one."""
    safe = [row.boolean(f"is_response_{i}_safe") for i in (0, 1)]
    if safe[0] == safe[1]:
        return Drop("both_safe" if safe[0] else "both_unsafe")
    better, worse = f"response_{safe.index(True)}", f"response_{safe.index(False)}"
    return {"prompt": row.string("prompt"), **_answers(row, better, worse)}


def alpaca_human_pref(row: RowReader) -> Mapping[str, Any] | Drop:
    """Map AlpacaFarm's human preferences: `preference` is 1 or 2; 0 and 1.5 mean a tie in this family of files."""
    preference = row.number_or_none("preference")
    if preference in (0.0, 1.5):
        return Drop("tie")
    if preference not in (1.0, 2.0):
        raise row.error(BadRowReason.WRONG_TYPE, "preference", f"is {preference}", "Expected 1 or 2.")
    better, worse = ("output_1", "output_2") if preference == 1.0 else ("output_2", "output_1")
    prompt = [row.string("instruction"), row.string_or_none("input") or ""]
    return {"prompt": "\n\n".join(part for part in prompt if part.strip()), **_answers(row, better, worse)}


def chatbot_arena(row: RowReader) -> Mapping[str, Any] | Drop:
    """Map Chatbot Arena: two conversations with the same questions; ties of both kinds are dropped.

    The prompt is the common beginning, that is the first question: later turns belong to the responses because they
    follow different answers.
    """
    winner = row.string("winner")
    if winner in ("tie", "tie (bothbad)"):
        return Drop("tie")
    if winner not in ("model_a", "model_b"):
        raise row.error(BadRowReason.WRONG_TYPE, "winner", f"is {winner!r}", "Expected model_a, model_b or a tie.")
    answers = [row.messages(f"conversation_{side}", "user") for side in ("a", "b")]
    better, worse = answers if winner == "model_a" else reversed(answers)
    return {"chosen": [turn.as_dict() for turn in better], "rejected": [turn.as_dict() for turn in worse]}


def _answers(row: RowReader, better: str, worse: str) -> Mapping[str, Any]:
    return {"chosen": row.string(better), "rejected": row.string(worse)}
