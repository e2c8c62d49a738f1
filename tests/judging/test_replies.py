"""Replies as judges write them, each with the verdict that a reader would see; None if there is doubt."""

from __future__ import annotations

import pytest

from hafrm.judging.parsing import parse_reply

A, B = (1, 2), (2, 1)

PLAIN = {
    # An explanation may say anything about either output, except that the other one is better.
    "Output (a)\n\nOutput (b) makes a factual mistake about the date.": A,
    "Output (b)\n\nOutput (a) talks about cats instead of dogs.": B,
    "Output (a)\n\nReason: Output (b) contains a mistake.": A,
    "Output (a)\n\nThe former is concise.": A,
    "Output (a)\n\nThe latter is too long.": A,
    "Output (a)\n\nOutput (b) says sorry too often.": A,
    "Output (a)\n\nOutput (b) is mistaken about the year.": A,
    "Output (a)\n\nOutput (b) actually gets the date wrong.": A,
    "Output (a)\n\nOutput (b) fails to select the right format.": A,
    "Output (a)\n\nOutput (b) picks the wrong city.": A,
    "Output (b)\n\nI found that Output (a) rambles.": B,
    "Output (a)\n\nOutput (b) is more verbose.": A,
    "Output (a)\n\nOutput (b) has more errors.": A,
    "Output (a)\n\nOutput (b) is less helpful.": A,
    "Output (a)\n\nOutput (b) is not better.": A,
    "Output (a)\n\nOutput (b) is worse.": A,
    "Output (a)\n\nIt is more accurate than Output (b).": A,
    "Output (a)\n\nUnlike Output (b), it is better organised.": A,
    "Output (a)\n\nAlthough Output (b) is more detailed, it rambles.": A,
    "Output (a)\n\nOutput (b) is more detailed, but it is wrong.": A,
    "Output (a)\n\nOutput (b) is fine. Output (a) is more helpful.": A,
    "Output (a)\n\nOutput (a) is more concise, while Output (b) is more detailed.": A,
    "Output (a)\n\nWait times are given correctly.": A,
    "Output (b)\n\n**Why:** it's more accurate, whereas Output (a) is verbose.": B,
    "Output (a).\nHere the answer is Output (a) because it is accurate. In contrast, output (b) is more of a joke.": A,
    "Output (b) is more detailed.\n\nOutput (a)": A,
    "Output (b)\n\nOutput (a) would be better if it were shorter.": B,
    "Output (a)\n\nOutput (b) could have been better.": A,
    "Output (a)\n\nI did not choose Output (b) because it is vague.": A,
    "Output (a)\n\nOutput (b) is not as good as Output (a).": A,
    "Output (b)\n\nOutput (a) has a better tone but lacks depth.": B,
    "Output (b)\n\nThe instruction asks for the best way to cook. Output (a) mentions the best way but burns it.": B,
    "Output (a)\n\nOutput (b) names the winner of the race incorrectly.": A,
    "**Answer:** Output (a)\n\nOutput (b) is better at some points, but overall Output (a) is more accurate.": A,
    "Output (b) is better in style, but my answer is Output (a).": A,
    # A label, with what may be around it.
    "The answer should be Output (a).": A,
    "The one I would choose is Output (b).": B,
    "It's Output (a).": A,
    "Clearly, Output (b).": B,
    "Output (a), clearly.": A,
    "Output (b) is the correct answer.": B,
    "Output (a) better follows the instruction, while Output (b) drifts.": A,
    "My choice: Output (a) (a close call).": A,
    "My answer: Output (b) (slightly)": B,
    "Final Answer: Output (a)\nConfidence: 0.9": A,
    "Winner: (b)": B,
    "Answer: B": B,
    "Answer - Output (a)": A,
    "Verdict = Output (b)": B,
    "My preference is Output (a) over Output (b).": A,
    "The winner is Output (b)!": B,
    "The better output for the given instruction is Output (b).": B,
    "In my opinion, the best response is Output (a).": A,
    "Worst: Output (a)\nBest: Output (b)": B,
    "Reasoning: Output (a) is off-topic.\nAnswer: Output (b)": B,
    "Instruction-following: Output (a)\nHelpfulness: Output (b)\nOverall winner: Output (b)": B,
    "Answer: Output (b)\n\nOn reflection it fails.\n\nFinal answer: Output (a)": A,
    "Assistant A is fine.\n\n[[B]]": B,
    "b)": B,
    "Option (a)": A,
    "Response B": B,
    # A preference, with its reason.
    "I prefer Output (b) because Output (a) is vague.": B,
    "I prefer Output (a) over Output (b).": A,
    "I'd choose Output (b) since it is more accurate.": B,
    "I choose Output (a) as the better one.": A,
    "I select Output (b) as my preferred output.": B,
    "I would go with Output (a), as it answers the question.": A,
    "I choose Output (b) because Output (a) is worse.": B,
    "Output (b) does not answer the question, so I choose Output (a).": A,
    "Output (a) or Output (b)? I choose Output (b).": B,
    "I would pick Output (a) if it were shorter, but my choice is Output (b).": B,
    "Output (a) is the better output for the given instruction.": A,
    "Both are good, but Output (a) is better.": A,
    "Both outputs are correct. However, Output (b) is better.": B,
    "Between the two, I choose Output (a).": A,
    "Neither is perfect, but Output (a) is the best match.": A,
    "While Output (b) is more detailed, Output (a) is better.": A,
    "Output (a) is better than Output (b)": A,
    "Output (b) is better than Output (a) because it is accurate.": B,
    "Output (a) is better, since Output (b) is too long.": A,
    "In my opinion, Output (b) is preferable.": B,
    "Output (b) wins.": B,
    "I'd say Output (a) is better.": A,
    "Output (a) has errors. Output (b)": B,
    "Output (a) is clearly superior to Output (b).": A,
    "Output (b) would be my choice.": B,
}

DOUBTFUL = [
    # The choice is the lesser one.
    "I choose Output (a) as the worse one.",
    "My answer: Output (a) as the one to reject.",
    "I choose Output (a) as the incorrect answer.",
    "I choose Output (a) because it is the worse one.",
    "I select Output (a) for rejection.",
    "I select Output (a), the weaker one.",
    "My answer: Output (a) (rejected)",
    "My answer: Output (a) (not good)",
    "My answer: Output (a) (or Output (b))",
    "The worse one, in my answer: Output (a)",
    "The answer is worse: Output (a)",
    "The worse output is Output (a).",
    "The loser is Output (a).",
    "The incorrect answer is Output (b).",
    "The less accurate response is (b)",
    "Less helpful: Output (a)",
    "Rejected answer: Output (a)",
    "Discard: Output (b)",
    "Bad answer: Output (a)",
    "Wrong answer: Output (a)",
    "Not my choice: Output (a)",
    "I choose to reject Output (a).",
    "Output (a) is the worst choice.",
    "Output (a) is better at nothing.",
    "Output (a) is not the better output.",
    '{"rejected": "Output (a)"}',
    # The explanation prefers the other one.
    "Output (a)\nOutput (b) is more helpful.",
    "Output (a)\n\nOutput (a) is clear. Output (b) is more accurate and more helpful.",
    "Output (a)\n\nOutput (a) is concise, but Output (b) is more accurate.",
    "Output (a)\n\nOutput (a) is concise, whereas Output (b) is better.",
    "Output (a)\n\nOutput (b) is clear. It is more helpful.",
    "Output (a)\n\nOutput (b) is better, but only slightly.",
    "Output (a)\n\nThe second response is preferable.",
    "Output (a)\n\nThe latter is better.",
    "Output (a)\n\nI would choose (b).",
    "Output (a)\n\nOutput (b) should be chosen.",
    "Output (a)\n\nOutput (b) is the correct answer.",
    "Output (a)\n\nOutput (b) outperforms Output (a).",
    "Output (a)\n\nOutput (a) is worse.",
    "Output (a)\n\nOutput (a) is less helpful.",
    "Output (a)\n\nIt is inferior to Output (b).",
    "I prefer Output (a) because Output (b) is better.",
    "Output (b) is better, so my answer is Output (a).",
    "I prefer Output (a).\n\nI prefer Output (b).",
    "Final answer: Output (a)\n\nOutput (b)",
    "Output (a)\n\nOutput (a) is not as good as Output (b).",
    "Output (a)\n\nOutput (b) has a better tone.",
    "Output (a)\n\nSo the better output is the second.",
    "Output (a)\n\n(b) is clearly the one.",
    "Output (a)\n\nOutput (b) is what I would choose.",
    "Output (a)\n\nHowever, the other one is better.",
    "Output (a)\n\nOutput (a) is inaccurate and should be rejected.",
    "Output (a)\n\nThis is the worse output.",
    "Output (a)\n\nOutput (b) is the most accurate.",
    "Output (a)\n\nI'd rather take Output (b).",
    "I choose Output (a) because I was asked for the worse output.",
    "The output that best shows how not to do it is Output (a).",
    # The choice is taken back.
    "Output (a)\n\nMy real choice is Output (b).",
    "Output (a)\n\nIgnore the above; it is Output (b).",
    "Output (a). Just kidding, Output (b).",
    "Output (a)\nOr maybe Output (b).",
    "Output (a)\nEdit: Output (b)",
    "Output (a) is better. Not.",
    "I choose Output (a), no wait, Output (b).",
    "Output (a)\n\nSorry, I mean Output (b).",
    "Output (a)\n\nWait, Output (b) has the right date.",
    "Output (a)\n\nInstead, I choose Output (b).",
    "Output (a)\n\nActually, Output (b) answers it.",
    "The best is Output (a)\n\nI was mistaken.",
    "Output (a)\n\nLet me reconsider.",
    "I choose Output (a) as second best.",
    "Output (a) is almost the best.",
    "My last choice: Output (a)",
    "The opposite of my answer: Output (a)",
    # It depends, or nothing is said.
    "If I had to pick, Output (a).",
    "If Output (b) were wrong, I would choose Output (a).",
    "Unless accuracy matters, I prefer Output (a).",
    "It would be wrong to choose Output (a).",
    "I might choose Output (a).",
    "Maybe, my answer is Output (a).",
    "Output (a) is better in style.",
    "Answer: Output (a) / Output (b)",
    "Answer: Output (a) or Output (b)",
    "Quality: (a) 7/10, (b) 9/10",
    "Output (a): 3\nOutput (b): 8",
    "Verdict: tie",
    "Both are equally good.",
    "The first output",
    "Rejected: Output (a)",
]


def exchanged(reply: str) -> str:
    """The same reply about the other output."""
    names = [("(a)", "(b)"), ("Answer: A", "Answer: B"), ("[[A]]", "[[B]]"), ("Response A", "Response B")]
    names += [
        ("first response", "second response"),
        ("former", "latter"),
        ("Assistant A", "Assistant B"),
        ("the first.", "the second."),
    ]
    for one, other in names:
        reply = reply.replace(one, "\0").replace(other, one).replace("\0", other)
    return {"a)": "b)", "b)": "a)"}.get(reply, reply)


@pytest.mark.parametrize(("reply", "ranks"), PLAIN.items())
def test_a_plain_verdict_is_read(reply: str, ranks: tuple[int, int]) -> None:
    assert parse_reply(reply, 2).ranks == ranks
    assert parse_reply(exchanged(reply), 2).ranks == ranks[::-1]


@pytest.mark.parametrize("reply", DOUBTFUL)
def test_a_doubtful_reply_is_no_verdict(reply: str) -> None:
    assert parse_reply(reply, 2).ranks is None
    assert parse_reply(exchanged(reply), 2).ranks is None
