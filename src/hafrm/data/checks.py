"""Checks for problems in a set of pairs.

Pure functions from pairs and their loading report to findings. The severity is "error" if pairs are unusable as labels
or tests (no preference in them, a test prompt among them), and "warning" if they may mislead.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from hafrm.data.collecting import SourceReport
from hafrm.data.statistics import length_accuracy
from hafrm.data.tables import PairTables
from hafrm.errors import CHANGE_ROLES
from hafrm.pairs import PreferencePair, prompt_group, text_group

Severity = Literal["error", "warning"]

_EXAMPLES = 5
"""Number of rows that a finding names."""

_LENGTH_BIAS = 0.1
"""Distance from 0.5 at which the accuracy of "pick the longer" becomes a finding."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One problem of a set of pairs."""

    check: str
    """Stable name, such as "identical_answers"."""
    severity: Severity
    count: int
    """Number of affected rows."""
    examples: list[str]
    """Ids of the first few affected rows."""
    explanation: str
    """What it means, and what to do about it."""

    def as_dict(self) -> dict[str, Any]:
        """Return the finding as plain values for JSON."""
        return asdict(self)


def check_pairs(
    pairs: Sequence[PreferencePair],
    *,
    report: SourceReport | None = None,
    against: Mapping[str, Sequence[PreferencePair]] | None = None,
    encoded: PairTables | None = None,
) -> list[Finding]:
    """Look for problems in a set of pairs.

    Args:
        pairs: The pairs.
        report: Their loading report, whose skipped rows become findings.
        against: Test sets by name, which should share no prompt with the pairs.
        encoded: The same pairs encoded, for checks of their tokens.

    Returns:
        The findings, errors first; empty if there are no problems.
    """
    findings = [
        *(_bad_rows(report) if report else ()),
        *_found("identical_answers", "error", _identical_answers(pairs), _IDENTICAL),
        *(found for name, test in (against or {}).items() for found in _overlap(pairs, name, test)),
        *(_of_tokens(pairs, encoded) if encoded else ()),
        *_found("duplicate_pairs", "warning", _duplicates(pairs), _DUPLICATES),
        *_found("conflicting_labels", "warning", _conflicts(pairs), _CONFLICTS),
        *_found("template_in_text", "warning", _rendered(pairs), _TEMPLATE_IN_TEXT),
        *_found("json_in_text", "warning", _json_messages(pairs), _JSON_IN_TEXT),
        *_found("large_margins", "warning", [pair for pair in pairs if abs(pair.margin or 0) > 50], _LARGE_MARGINS),
        *_found("negative_margins", "warning", [pair for pair in pairs if (pair.margin or 0) < 0], _NEGATIVE_MARGINS),
        *_length_bias(pairs),
    ]
    return sorted(findings, key=lambda finding: finding.severity != "error")


_IDENTICAL = (
    "chosen and rejected are the same text up to case and white space, so the label says nothing. Remove the rows."
)
_DUPLICATES = "the same pair stands there once more and counts double. Remove the copies."
_CONFLICTS = (
    "the same two answers to the same prompt are labelled both ways. Human labels are noisy, and training on both "
    "pulls towards a margin of 0; drop both, or keep the majority's."
)

_TEMPLATE_IN_TEXT = (
    "the text contains a chat template's own marks, such as <|im_start|> or [INST], so the template will be written "
    "twice. Give messages, or the bare text."
)
_LARGE_MARGINS = (
    "the margin is over 50 units of reward, which no reward difference reaches: such pairs outweigh all others. Scale "
    "the margins down, or leave the field out."
)
_NEGATIVE_MARGINS = "the margin is below 0, so it says that `rejected` is the better response. Swap the two."
_SPECIAL_TOKENS = (
    "the text contains special tokens of the tokenizer, such as </s>. Training and `hafrm evaluate` encode them as the "
    "template's own, as stock programs do, so one message can pass for several turns; scoring encodes them as plain "
    "characters unless `--score.special_tokens token` is given. Remove them."
)
_JSON_IN_TEXT = (
    "the text is a JSON list of messages, which will be read as one turn's text. Write the messages as JSON values, "
    "not as a string."
)
_MARKS = re.compile(
    r"<\|(?:im_start|im_end|start_header_id|end_header_id|eot_id|begin_of_text|endoftext|user|assistant|system|end)\|>"
    r"|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|<｜[^｜\n]{1,40}｜>|<\|(?:START|END)_OF_TURN_TOKEN\|>"
)
"""Marks that common chat templates write around turns."""


def shared_prompts(pairs: Sequence[PreferencePair], others: Sequence[PreferencePair]) -> set[str]:
    """Return the prompts common to both sets, by `prompt_group` of their text.

    The pairs' own `group` is not used: each source names its groups differently.
    """
    return {prompt_group(pair.prompt) for pair in pairs} & {prompt_group(pair.prompt) for pair in others}


def _found(check: str, severity: Severity, rows: Sequence[PreferencePair], explanation: str) -> list[Finding]:
    if not rows:
        return []
    examples = [pair.id for pair in rows[:_EXAMPLES]]
    return [Finding(check=check, severity=severity, count=len(rows), examples=examples, explanation=explanation)]


def _bad_rows(report: SourceReport) -> list[Finding]:
    return [
        Finding(
            check=f"bad_rows.{reason}",
            severity="error",
            count=count,
            examples=report.examples.get(reason, []),
            explanation="the rows break the data contract; loading stops at the first unless "
            "`data_options.on_bad_row: skip` is set. Repair or remove them.",
        )
        for reason, count in report.skipped.items()
    ]


def _of_tokens(pairs: Sequence[PreferencePair], encoded: PairTables) -> Iterator[Finding]:
    """Find problems visible only in tokens: refused or dropped text, and pairs that become identical."""
    for reason, count in encoded.account.dropped.items():
        explanation = "the tokenizer's chat template can't render the rows. " + CHANGE_ROLES
        yield Finding(check=reason, severity="error", count=count, examples=[], explanation=explanation)
    kept = [pairs[index] for index in encoded.kept]
    equal = encoded.pairs["chosen"] == encoded.pairs["rejected"]
    same = [kept[row] for row in equal.nonzero()[0] if text_group(kept[row].chosen) != text_group(kept[row].rejected)]
    yield from _found(
        "identical_tokens", "error", same, "both responses become the same tokens, so the label says nothing."
    )
    yield from _found("special_tokens", "warning", [kept[row] for row in encoded.with_special_tokens], _SPECIAL_TOKENS)
    for lost in encoded.account.lost:
        yield Finding(
            check="text_dropped",
            severity="warning",
            count=lost.count,
            examples=lost.examples,
            explanation=f"{lost}, so rewards do not depend on it. Use a tokenizer with another chat template, or "
            "remove the rows.",
        )


def _rendered(pairs: Sequence[PreferencePair]) -> list[PreferencePair]:
    """Return pairs with a turn that contains a template's marks."""
    return [pair for pair in pairs if any(_MARKS.search(turn.content) for turn in pair.turns)]


def _json_messages(pairs: Sequence[PreferencePair]) -> list[PreferencePair]:
    """Return pairs with a turn whose text is a JSON list of messages."""
    return [pair for pair in pairs if any(_is_json_messages(turn.content) for turn in pair.turns)]


def _is_json_messages(text: str) -> bool:
    if not text.lstrip().startswith(("[", "{")) or '"content"' not in text:
        return False
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return False
    messages = value if isinstance(value, list) else [value]
    return bool(messages) and all(isinstance(each, dict) and {"role", "content"} <= each.keys() for each in messages)


def _identical_answers(pairs: Sequence[PreferencePair]) -> list[PreferencePair]:
    return [pair for pair in pairs if text_group(pair.chosen) == text_group(pair.rejected)]


def _duplicates(pairs: Sequence[PreferencePair]) -> list[PreferencePair]:
    """Return copies of earlier pairs."""
    seen = set()
    copies = []
    for pair in pairs:
        key = (pair.prompt, pair.chosen, pair.rejected)
        if key in seen:
            copies.append(pair)
        seen.add(key)
    return copies


def _conflicts(pairs: Sequence[PreferencePair]) -> list[PreferencePair]:
    keys = [(prompt_group(pair.prompt), text_group(pair.chosen), text_group(pair.rejected)) for pair in pairs]
    held = set(keys)
    return [
        pair
        for pair, (prompt, chosen, rejected) in zip(pairs, keys, strict=True)
        if chosen != rejected and (prompt, rejected, chosen) in held
    ]


def _overlap(pairs: Sequence[PreferencePair], name: str, test: Sequence[PreferencePair]) -> list[Finding]:
    prompts = shared_prompts(pairs, test)
    shared = [pair for pair in pairs if prompt_group(pair.prompt) in prompts]
    explanation = f"the prompt also stands in {name}, so an accuracy there would be too good. Remove the rows."
    return _found("overlap", "error", shared, explanation)


def _length_bias(pairs: Sequence[PreferencePair]) -> list[Finding]:
    accuracy = length_accuracy(pairs)
    # Two standard errors of a fair coin: small sets deviate from one half by chance.
    if abs(accuracy - 0.5) < max(_LENGTH_BIAS, 1 / math.sqrt(len(pairs))):
        return []
    which = "longer" if accuracy > 0.5 else "shorter"
    explanation = (
        f"picking the {which} response is right {max(accuracy, 1 - accuracy):.1%} of the time: a model can score that "
        "well by length alone. Report this number beside every accuracy."
    )
    return [Finding(check="length_bias", severity="warning", count=len(pairs), examples=[], explanation=explanation)]
