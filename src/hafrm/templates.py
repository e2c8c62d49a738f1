"""Render conversations as text with chat templates.

Uses messages and the public methods of tokenizers; independent of files, models and tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from jinja2 import TemplateSyntaxError

from hafrm.errors import DataError, ModelError, first_line
from hafrm.pairs import Message, Prompt
from hafrm.timeouts import TimedOutError, time_limit

DEFAULT_CHAT_TEMPLATE = (
    "{{ bos_token if bos_token is defined and bos_token is not none else '' }}"
    "{{ 'Tools: ' ~ (tools | tojson) ~ '\\n\\n' if tools else '' }}"
    "{{ 'Documents: ' ~ (documents | tojson) ~ '\\n\\n' if documents else '' }}"
    "{% for message in messages %}"
    "{{ '' if loop.first else '\\n\\n' }}"
    "{{ {'user': 'Human'}.get(message['role'], message['role'] | capitalize) }}: "
    "{{ message['reasoning_content'] ~ '\\n\\n' if message['reasoning_content'] else '' }}"
    "{{ message['content'] }}"
    "{{ (message['tool_calls'] | tojson) if message['tool_calls'] else '' }}"
    "{{ eos_token if message['role'] == 'assistant' else '' }}"
    "{% endfor %}"
    "{{ '\\n\\nAssistant:' if add_generation_prompt else '' }}"
)
"""Template for tokenizers without one; assistant turns end with the end-of-sequence token."""


class ChatTokenizer(Protocol):
    """The methods of a transformers tokenizer that hafrm uses."""

    def apply_chat_template(self, conversation: Any, **kwargs: Any) -> Any:
        """Render messages."""
        ...

    def __call__(self, text: Any, **kwargs: Any) -> Any:
        """Tokenize rendered texts."""
        ...


class TemplateRefusalError(DataError):
    """The tokenizer's chat template refuses a conversation or fails on it."""


_SECONDS = 30.0
"""Time limit of one call of a template in seconds; 1024 long conversations take about one second."""


def render(
    tokenizer: Any,
    conversations: Sequence[tuple[Prompt, Sequence[Message]]],
    *,
    opening: bool = False,
    change: Callable[[Any], Any] | None = None,
) -> list[str]:
    """Render conversations with the tokenizer's chat template.

    Args:
        tokenizer: A transformers tokenizer with a chat template.
        conversations: Prompts with their responses; all prompts have the same `arguments`.
        opening: Whether to append the text that opens a response.
        change: Applied to the messages (as lists of dictionaries) and to the template arguments before rendering.

    Raises:
        TemplateRefusalError: the template refuses a conversation or fails on it.
        ModelError: the template exceeds the time limit, or is not valid Jinja.
    """
    turns: Any = [[turn.as_dict() for turn in (*prompt.turns, *response)] for prompt, response in conversations]
    arguments: Any = conversations[0][0].template_arguments
    if change is not None:
        turns, arguments = change(turns), change(arguments)
    try:
        with time_limit(_SECONDS):
            texts: list[str] = tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=opening, **arguments
            )
    except TimedOutError as error:
        raise ModelError(
            f"The tokenizer's chat template did not finish within {_SECONDS:g} seconds. Use another template."
        ) from error
    except TemplateSyntaxError as error:
        raise ModelError(
            f"The tokenizer's chat template is not valid Jinja (line {error.lineno}: {first_line(error)}). Correct the "
            "template, or use another one."
        ) from error
    except Exception as error:  # a template can raise anything
        raise TemplateRefusalError(
            f"The tokenizer's chat template refuses the conversation: {first_line(error)}"
        ) from error
    return texts
