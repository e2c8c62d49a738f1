"""Read text for pretraining from files: rows of plain documents and rows of conversations.

A row has `text`, a document, or `messages`, a conversation that ends in an assistant turn. Rows whose `split` is
`train` or missing are trained on; those of `HELD_OUT` are held out; any other split is refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from hafrm.data import read_rows
from hafrm.encoding import ConversationEncoder, OverlongError
from hafrm.errors import DataError
from hafrm.pairs import Conversation, Message, Prompt
from hafrm.pretraining.blocks import Sample, document_sample, response_sample

HELD_OUT = frozenset({"valid", "validation", "val", "dev", "test", "eval"})
"""Values of a row's `split`, in lower case, that exclude it from training."""

Text = str | Conversation
"""A document or a conversation."""


def read_texts(files: Sequence[str], *, held_out: bool) -> Iterator[Text]:
    """Yield the texts of one side (training or held out), in the files' order.

    Raises:
        UnreadableError: a file can't be read.
        DataError: a row is neither a document nor a conversation, its text is not valid Unicode, or its `split` is
            unknown.
    """
    for file in files:
        for row in read_rows(Path(file)):
            if row.fault is not None:
                raise row.fault
            where = f"{file}, row {row.number}"
            if isinstance(row.value, dict) and _is_held_out(row.value, where) != held_out:
                continue
            text = _text_of(row.value, where)
            row.check_text("text" if isinstance(text, str) else "messages", words_of(text))
            yield text


def _is_held_out(row: dict[str, Any], where: str) -> bool:
    split = row.get("split")
    if split is None:
        return False
    side = split.lower() if isinstance(split, str) else None
    if side != "train" and side not in HELD_OUT:
        raise DataError(
            f"{where}: `split` is {split!r}, so it is unclear whether to train on it. Write train, or one of "
            f"{', '.join(sorted(HELD_OUT))}, which are held out, or leave `split` out to train."
        )
    return side in HELD_OUT


def _text_of(value: Any, where: str) -> Text:
    if isinstance(value, dict):
        if isinstance(value.get("text"), str):
            return str(value["text"])
        messages = value.get("messages")
        if isinstance(messages, list) and len(messages) > 1 and all(map(_is_message, messages)):
            turns = [Message(turn["role"], turn["content"]) for turn in messages]
            if turns[-1].role == "assistant":
                return Conversation(Prompt(tuple(turns[:-1])), (turns[-1],))
    raise DataError(
        f"{where}: a row for pretraining needs `text`, a document, or `messages`, two or more turns with `role` and "
        "`content` of which the last is the assistant's. Repair or remove the row."
    )


def _is_message(turn: Any) -> bool:
    return isinstance(turn, dict) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)


def words_of(text: Text) -> str:
    """Return the text that a tokenizer is trained on."""
    if isinstance(text, str):
        return text
    return "\n\n".join(message.content for message in text.turns)


def samples(
    texts: Iterable[Text], tokenizer: PreTrainedTokenizerFast, context: int, left_out: Counter[str] | None = None
) -> Iterator[Sample]:
    """Yield token ids and labels; truncate long responses, and leave out and count conversations with long prompts."""
    encoder = ConversationEncoder(tokenizer, context, "truncate")
    for text in texts:
        if isinstance(text, str):
            yield document_sample(text, tokenizer)
            continue
        try:
            yield response_sample(text, encoder)
        except OverlongError:
            if left_out is not None:
                left_out["conversations whose prompt is too long"] += 1
