"""Read the body of a chat completion: the text, the reason why it ended, and its tokens.

Endpoints differ: content is a string, a list of parts, or null; reasoning has a separate field (`reasoning_content`,
`reasoning`, parts of the type `thinking`) or none; a refusal may have one too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_THOUGHTS = ("reasoning_content", "reasoning", "thinking")


@dataclass(frozen=True, slots=True)
class Completion:
    """The first choice of a body, and its usage."""

    text: str | None
    """The model's reply; None if the body has no choice."""
    finish_reason: str | None
    thought: bool
    """Whether there is reasoning in addition to the text."""
    prompt_tokens: int
    completion_tokens: int


def read_completion(body: str, asked: str) -> Completion:
    """Read a response's body.

    Args:
        body: The body, in any format.
        asked: The texts of the request, for estimating its tokens if the body has no count.
    """
    values = _object(body)
    choice, message = _first_choice(values)
    text = None if message is None else _text(message)
    thoughts = _thoughts(message or {})
    reason = choice.get("finish_reason")
    prompt, completion = _tokens(values, asked, f"{text or ''}{thoughts}")
    return Completion(text, reason if isinstance(reason, str) else None, bool(thoughts.strip()), prompt, completion)


def _object(body: str) -> dict[str, Any]:
    """Return a body's JSON object; an empty one if there is none."""
    try:
        values = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _first_choice(values: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any] | None]:
    """Return the first choice and its message; an empty mapping and None if there is none."""
    choices = values.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    return (choice, message) if isinstance(choice, dict) and isinstance(message, dict) else ({}, None)


def _text(message: Mapping[str, Any]) -> str:
    """Return the content as one string, or else the refusal."""
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(part["text"] for part in content if _is_part(part, "text"))
    found = content if isinstance(content, str) and content else message.get("refusal")
    text = found if isinstance(found, str) else ""
    return text.encode(errors="replace").decode()  # JSON can contain lone surrogates, SQLite can't


def _thoughts(message: Mapping[str, Any]) -> str:
    """Return the reasoning outside the content, if it is text."""
    parts = message.get("content")
    apart = [json.dumps(part) for part in parts if _is_part(part, "thinking")] if isinstance(parts, list) else []
    return "".join([*apart, *(value for name in _THOUGHTS if isinstance(value := message.get(name), str))])


def _is_part(part: Any, kind: str) -> bool:
    """Return whether this is a non-empty part of a multi-part content."""
    return isinstance(part, dict) and part.get("type") == kind and (kind != "text" or isinstance(part.get(kind), str))


def _tokens(values: Mapping[str, Any], asked: str, said: str) -> list[int]:
    """Return the tokens of a prompt and of its reply, as counted by the endpoint or else estimated."""
    usage = values.get("usage")
    counts = usage if isinstance(usage, dict) else {}
    return [
        count if type(count := counts.get(name)) is int and 0 <= count < 2**53 else _tokens_at_most(text)
        for name, text in (("prompt_tokens", asked), ("completion_tokens", said))
    ]


def _tokens_at_most(text: str) -> int:
    """Estimate a missing count of tokens from above: one token per three bytes."""
    return len(text.encode(errors="replace")) // 3 + 1
