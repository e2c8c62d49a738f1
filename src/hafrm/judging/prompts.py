"""The paper's two judge prompts: comparing two responses (Table 9) and ranking several (Table 10).

The wording is that of the tables. Inserted texts can't be mistaken for parts of the prompt: in the ranking prompt they
are JSON strings; in the pair prompt, where the table inserts them unquoted, lines that look like one of its headings
are escaped with a backslash. Placeholders in inserted texts are not filled.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from hafrm.judging.judges import Question
from hafrm.pairs import Message, Prompt

PROMPT_VERSION = "haf-rm-tables-9-10/1"
"""Part of every cache key; increase it whenever the wording changes."""

CHOICES = ("Output (a)", "Output (b)")
"""The two valid replies about two responses."""

_PAIR_SYSTEM = (
    "You are a helpful instruction-following assistant that prints the best model by selecting the best outputs for a "
    "given instruction."
)

_PAIR_INTRODUCTION = """\
Select the output (a) or (b) that best matches the given instruction. Choose your preferred output, which can be \
subjective. Your answer should ONLY contain: Output (a) or Output (b).
Here's an example:

# Example:
## Instruction:
Give a description of the following job: "ophthalmologist"

## Output (a):
An ophthalmologist is a medical doctor who pokes and prods at your eyes while asking you to read letters from a chart.

## Output (b):
An ophthalmologist is a medical doctor who specializes in the diagnosis and treatment of eye diseases and conditions.

## Which is best, Output (a) or Output (b)?
Output (b)

Here the answer is Output (b) because it provides a comprehensive and accurate description of the job of an \
ophthalmologist. In contrast, output (a) is more of a joke.

# Task:
Now is the real task, do not explain your answer, just say Output (a) or Output (b).
"""

_PAIR_QUESTION = "## Which is best, Output (a) or Output (b)?"

_RANK_SYSTEM = "You are a helpful assistant, that ranks models by the quality of their answers"

_COUNTS = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 7: "seven", 8: "eight"}

_HEADING = re.compile(
    r"(?:^|(?<=[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]))"
    r"(?=[^\S\n\r]*#+[^\S\n\r]*(?:example|task|instruction|output[^\S\n\r]*\(|which[^\S\n\r]+is[^\S\n\r]+best))",
    re.IGNORECASE,
)


def judge_messages(question: Question) -> list[dict[str, str]]:
    """Return the chat messages of a question: Table 9 for two responses, Table 10 for more.

    Raises:
        ValueError: there are more than eight responses.
    """
    if len(question.responses) == 2:
        return _chat(_PAIR_SYSTEM, _pair_text(question))
    if len(question.responses) not in _COUNTS:
        raise ValueError(f"a judge ranks at most {max(_COUNTS)} responses at once, got {len(question.responses)}")
    return _chat(_RANK_SYSTEM, _rank_text(question))


def model_names(count: int) -> list[str]:
    """Return the names under which a ranking prompt shows the responses."""
    return [f"model_{place}" for place in range(1, count + 1)]


def _chat(system: str, user: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": system}, {"role": "user", "content": user}]


def _pair_text(question: Question) -> str:
    first, second = question.responses
    return "\n".join(
        [
            _PAIR_INTRODUCTION,
            f"## Instruction:\n{_bare(_prompt_text(question.prompt))}\n",
            f"## Output (a):\n{_bare(_text(first))}\n",
            f"## Output (b):\n{_bare(_text(second))}\n",
            _PAIR_QUESTION,
        ]
    )


def _rank_text(question: Question) -> str:
    names = model_names(len(question.responses))
    answers = ",\n".join(
        f'  {{\n    "model": "{name}",\n    "answer": {_quoted(_text(response))}\n  }}'
        for name, response in zip(names, question.responses, strict=True)
    )
    ranks = ",\n".join(f'  {{"model": "{name}", "rank": <model-rank>}}' for name in names)
    return f"""\
I want you to create a leaderboard of different models. To do so, I will give you the instructions (prompts) given to \
the models, and the responses of {_COUNTS[len(names)]} models. Please rank the models based on which responses would \
be preferred by humans. All inputs and outputs should be python dictionaries.

Here is the prompt:
{{
  "instruction": {_quoted(_prompt_text(question.prompt))},
}}

Here are the outputs of the models:
[
{answers}
]

Now please rank the models by the quality of their answers, so that the model with rank 1 has the best output. Then \
return a list of the model names and ranks, i.e., produce the following output:
[
{ranks}
]

Your response must be a valid Python dictionary and should contain nothing else because we will directly execute it \
in Python. Please provide the ranking that the majority of humans would give."""


def _prompt_text(prompt: Prompt) -> str:
    """Return a prompt's turns, after the tools and documents that the responses could use."""
    columns = prompt.columns
    given = [
        f"{name.capitalize()}: {json.dumps(columns[name], ensure_ascii=False)}"
        for name in ("tools", "documents")
        if columns.get(name)
    ]
    return "\n\n".join([*given, _text(prompt.turns)])


def _text(messages: Sequence[Message]) -> str:
    """Format turns: a single one as its text, several with their roles."""
    if len(messages) == 1:
        return messages[0].text
    return "\n\n".join(f"{message.role.capitalize()}: {message.text}" for message in messages)


def _bare(text: str) -> str:
    return _HEADING.sub(r"\\", text)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
