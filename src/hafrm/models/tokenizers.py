"""Tokenizers prepared for reward models: with a chat template, and a pad token distinct from end-of-sequence.

Stock sequence classifiers read the reward at the last token that is not padding. If the pad token is also the
end-of-sequence token, a text's final token counts as padding, and the reward is read at the token before it. So every
tokenizer gets a distinct pad token, which is saved with the model.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import re
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoTokenizer, PreTrainedModel

from hafrm.errors import ModelError
from hafrm.models.runinfo import require_as_saved
from hafrm.models.sources import find_file, owner_of, require_place
from hafrm.models.stock import explaining
from hafrm.pairs import Conversation
from hafrm.templates import DEFAULT_CHAT_TEMPLATE, TemplateRefusalError, render

PAD_TOKEN = "<|pad|>"
"""Pad token added if a tokenizer has no suitable one."""

FIXED_DATE = date(2024, 7, 26)
"""Date that chat templates write as today's: the one that Llama 3's template uses without a clock."""

_TODAY = re.compile(r"""strftime_now\(\s*(?P<quote>["'])(?P<format>[^"'\\{}]*)(?P=quote)\s*\)""")
"""A chat template's call for the date, with its format."""

_TOKENIZER_CONFIG = "tokenizer_config.json"
_TOKENIZER_FILES = ("tokenizer.json", _TOKENIZER_CONFIG, "tokenizer.model", "vocab.json", "vocab.txt")

_KNOWN_PADS = ("<pad>", "[PAD]", PAD_TOKEN, "<|finetune_right_pad_id|>", "<|padding|>", "<|endoftext|>", "<unk>")
"""Tokens that are reserved for padding, or that never end a text, best first."""


def load_tokenizer(
    model: str,
    *,
    trust_remote_code: bool = False,
    template: str | None = DEFAULT_CHAT_TEMPLATE,
    instead: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Any:
    """Load a model's tokenizer and prepare it; see `prepare_tokenizer`.

    Args:
        template: Chat template for a tokenizer without one; None raises an error for such tokenizers.
        instead: Chat template that replaces the tokenizer's own.
        say: Called with a line if hafrm's plain template is used because the tokenizer has none.

    Raises:
        ModelError: the tokenizer can't be loaded, or it lacks what `prepare_tokenizer` needs.
    """
    require_place(model)
    model = owner_of(model, _TOKENIZER_CONFIG)
    require_as_saved(model)
    with explaining("tokenizer", model, remedy=" Give a folder or hub id that contains a tokenizer."):
        tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code)
    tokenizer.chat_template = instead or tokenizer.chat_template
    if not tokenizer.chat_template and template is None:
        raise ModelError(
            f"The tokenizer of {model} has no chat template, so the format of its training texts is unknown. "
            "Give the template with `--score.chat_template FILE`, or use hafrm's plain one with "
            "`--score.chat_template default`."
        )
    if not tokenizer.chat_template and template == DEFAULT_CHAT_TEMPLATE:
        say(
            f"{model} has no chat template, so turns are written as `Human: ...` and `Assistant: ...`; "
            "use --chat_template FILE for another one"
        )
    _require_plain_names(tokenizer, model)
    return prepare_tokenizer(tokenizer, template=template or DEFAULT_CHAT_TEMPLATE)


def _require_plain_names(tokenizer: Any, model: str) -> None:
    """Raise if a chat template's name, which becomes a file name when it is saved, is a path."""
    templates = tokenizer.chat_template if isinstance(tokenizer.chat_template, dict) else {}
    for name in templates:
        if Path(name).name != name:
            raise ModelError(
                f"The tokenizer of {model} has a chat template whose name leads outside its folder: {name!r}."
            )


def prepare_tokenizer(tokenizer: Any, *, template: str = DEFAULT_CHAT_TEMPLATE) -> Any:
    """Give a tokenizer a chat template and a distinct pad token if it lacks them (in place).

    Templates that write today's date are changed to a fixed date: otherwise rewards would change at midnight.

    Raises:
        ModelError: the tokenizer has no end-of-sequence token, which the plain template needs.
    """
    if not tokenizer.chat_template:
        if tokenizer.eos_token is None and template == DEFAULT_CHAT_TEMPLATE:
            raise ModelError("The tokenizer has neither a chat template nor an end-of-sequence token. Add one of them.")
        tokenizer.chat_template = template
    _fix_date(tokenizer)
    taken = {tokenizer.eos_token, tokenizer.bos_token}
    if tokenizer.pad_token is None or tokenizer.pad_token in taken:
        vocabulary = tokenizer.get_vocab()
        spare = next((token for token in _KNOWN_PADS if token in vocabulary and token not in taken), None)
        # Tokens missing from the vocabulary are added; `resize_embeddings` then makes room in the model.
        tokenizer.add_special_tokens({"pad_token": spare or PAD_TOKEN})
    return tokenizer


def _fix_date(tokenizer: Any) -> None:
    """Replace the current date in a tokenizer's chat templates by `FIXED_DATE` if its format is a literal."""
    fixed = functools.partial(_TODAY.sub, lambda found: f'"{FIXED_DATE.strftime(found["format"])}"')
    templates = tokenizer.chat_template
    tokenizer.chat_template = (
        {name: fixed(text) for name, text in templates.items()} if isinstance(templates, dict) else fixed(templates)
    )


def resize_embeddings(model: PreTrainedModel | PeftModel, tokenizer: Any) -> None:
    """Grow the model's embeddings if they have fewer rows than the tokenizer has tokens; never shrink them.

    New rows, also of the LM head, are the mean of the old ones. transformers would draw them at random, so a policy and
    its reference, which are loaded separately, would give different log-probs with the same weights.
    """
    embeddings: Any = model.get_input_embeddings()
    rows = embeddings.weight.shape[0]
    if len(tokenizer) <= rows:
        return
    added = [token for token, place in tokenizer.get_vocab().items() if place >= rows and token != PAD_TOKEN]
    if added:
        _say_grown(model.name_or_path, rows, len(tokenizer), min(added))
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        for tensor in (getattr(layer, "weight", None), getattr(layer, "bias", None)):
            if tensor is not None:
                wide = torch.promote_types(tensor.dtype, torch.float32)
                tensor.data[rows:] = tensor.data[:rows].mean(dim=0, dtype=wide)


@functools.cache
def _say_grown(model: str, rows: int, tokens: int, example: str) -> None:
    """Report, once per model, that its tokenizer has tokens that the model never saw, other than hafrm's pad token."""
    logging.getLogger("hafrm").warning(
        "%s: its tokenizer has %d tokens, but its embeddings have %d rows; new rows were added for the tokens that it "
        "lacks, such as %r, with the mean of the others. Check that model and tokenizer belong together.",
        model,
        tokens,
        rows,
        example,
    )


_PROBE = "Is 12,345 > 6.7? Yes:  it's\n\tdef f(x):\n    return x**2  # naïve café, 東京, Москва, مرحبا, 🙂 <b>&amp;</b>"
"""Text on which tokenizers differ: numbers, white space, code, scripts, symbols."""


def require_same_tokenizer(tokenizer: Any, model: str, reference: str, *, trust_remote_code: bool = False) -> None:
    """Raise if a reference's own tokenizer gives different ids, since it would then score a different text.

    Tokens that one of them lacks only matter if the probe or the chat template contains them; pad tokens never matter.
    References without a tokenizer are accepted.

    Args:
        tokenizer: The policy's, which encodes for both.
        model: The policy, for the message.
        reference: Folder or hub id of the reference.

    Raises:
        ModelError: names both, and the difference.
    """
    place = owner_of(reference, _TOKENIZER_CONFIG)
    if not any(find_file(place, name) for name in _TOKENIZER_FILES):
        return
    require_as_saved(place)
    other = AutoTokenizer.from_pretrained(place, trust_remote_code=trust_remote_code)
    ours, theirs = tokenizer.get_vocab(), other.get_vocab()
    probe = Conversation.of(_PROBE, _PROBE)
    texts = [_PROBE]
    with contextlib.suppress(TemplateRefusalError):  # the template needs other roles or keys: compare the plain text
        texts += render(tokenizer, [(probe.prompt, probe.response)])
    moved = min((token for token, place in ours.items() if theirs.get(token, place) != place), default=None)
    if moved is not None:
        problem = f"{moved!r} is token {ours[moved]} in the first and {theirs[moved]} in the second"
    elif any(_ids(tokenizer, text) != _ids(other, text) for text in texts):
        problem = "they split the same text differently"
    else:
        return
    raise ModelError(
        f"{reference} can't be the reference of {model}: their tokenizers differ ({problem}). Give the model "
        f"from which {model} was tuned."
    )


def _ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids
