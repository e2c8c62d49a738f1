"""Find problems in a set of pairs.

Pure functions that compute findings from pairs and their loading report. The severity is "error" if pairs are unusable
as labels or for tests (they express no preference, or contain a test prompt), and "warning" if they may mislead.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from hafrm.data.reports import SourceReport
from hafrm.data.statistics import length_accuracy
from hafrm.data.tables import PairTables
from hafrm.errors import CHANGE_ROLES
from hafrm.pairs import PreferencePair, prompt_group, text_group
from hafrm.rows import Cell

Severity = Literal["error", "warning"]

_EXAMPLES = 5
"""Number of rows that a finding lists."""

_LENGTH_BIAS = 0.1
"""Distance from 0.5 at which the accuracy of picking the longer response becomes a finding."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One problem of a set of pairs."""

    check: str
    """Stable name of the check, such as "identical_answers"."""
    severity: Severity
    count: int
    """Number of affected rows."""
    examples: list[str]
    """Ids of the first few affected rows."""
    explanation: str
    """Meaning and remedy."""

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
        report: Their loading report, whose skipped rows and contradicted labels become findings.
        against: Test sets by name, which should share no prompt with the pairs.
        encoded: The same pairs encoded, for checks of their tokens.

    Returns:
        The findings, errors first; empty if there are no problems.
    """
    identical = [pair for pair in pairs if text_group(pair.chosen) == text_group(pair.rejected)]
    findings = [
        *(_of_report(report) if report else ()),
        *_found("identical_answers", "error", identical, _IDENTICAL),
        *(found for name, test in (against or {}).items() for found in _overlap(pairs, name, test)),
        *(_of_tokens(pairs, encoded) if encoded else ()),
        *_found("duplicate_pairs", "warning", _duplicates(pairs), _DUPLICATES),
        *_found("conflicting_labels", "warning", _conflicts(pairs), _CONFLICTS),
        *_found("template_in_text", "warning", _with_turn(pairs, _MARKS.search), _TEMPLATE_IN_TEXT),
        *_found("json_in_text", "warning", _with_turn(pairs, _is_messages), _JSON_IN_TEXT),
        *_found("large_margins", "warning", [pair for pair in pairs if abs(pair.margin or 0) > 50], _LARGE_MARGINS),
        *_found("negative_margins", "warning", [pair for pair in pairs if (pair.margin or 0) < 0], _NEGATIVE_MARGINS),
        *_length_bias(pairs),
    ]
    return sorted(findings, key=lambda finding: finding.severity != "error")


_IDENTICAL = (
    "chosen and rejected are the same text up to case and white space, so they express no preference. Remove the rows."
)
_DUPLICATES = "the same pair occurs earlier, so it counts twice. Remove the copies."
_CONFLICTS = (
    "the same two answers to the same prompt are labelled both ways. Human labels are noisy, and training on both "
    "labels pulls the margin towards 0. Remove both, or keep the more frequent label."
)
_CONTRADICTED = (
    "`score_chosen` is below `score_rejected`, so the scores contradict the label. Swap the two responses, or remove "
    "the rows."
)
_TEMPLATE_IN_TEXT = (
    "the text contains marks of a chat template, such as <|im_start|> or [INST], so the template would be applied "
    "twice. Give messages, or text without the marks."
)
_LARGE_MARGINS = (
    "the margin is over 50 units of reward, which reward differences don't reach, so such pairs outweigh all others. "
    "Scale the margins down, or leave the field out."
)
_NEGATIVE_MARGINS = "the margin is negative, which means that `rejected` is better. Swap the two responses."
_SPECIAL_TOKENS = (
    "the text contains special tokens of the tokenizer, such as </s>. Training and `hafrm evaluate` encode them as the "
    "template's own, as other programs do, so one message can look like several turns; scoring encodes them as plain "
    "characters unless `--score.special_tokens token` is given. Remove them."
)
_JSON_IN_TEXT = (
    "the text is a list of messages, as JSON or as a Python literal, but will be read as the text of one turn. Write "
    "the messages as JSON values instead of a string."
)
_MARKS = re.compile(
    r"<\|(?:im_start|im_end|start_header_id|end_header_id|eot_id|begin_of_text|endoftext|user|assistant|system|end)\|>"
    r"|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|<｜[^｜\n]{1,40}｜>|<\|(?:START|END)_OF_TURN_TOKEN\|>"
)
"""Matches marks that common chat templates write around turns."""


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


def _of_report(report: SourceReport) -> Iterator[Finding]:
    """Find bad rows, and pairs whose scores contradict their labels."""
    for reason, count in report.skipped.items():
        yield Finding(
            check=f"bad_rows.{reason}",
            severity="error",
            count=count,
            examples=report.examples.get(reason, []),
            explanation="the rows break the data contract, and loading stops at the first unless "
            "`data_options.on_bad_row: skip` is set. Repair or remove them.",
        )
    if report.contradicted:
        yield Finding(
            check="contradicted_labels",
            severity="warning",
            count=report.contradicted,
            examples=[report.first_contradicted],
            explanation=_CONTRADICTED,
        )


def _of_tokens(pairs: Sequence[PreferencePair], encoded: PairTables) -> Iterator[Finding]:
    """Find problems that only tokens show: refused or dropped text, and pairs that become identical."""
    for reason, count in encoded.account.dropped.items():
        explanation = f"the tokenizer's chat template can't render the rows. {CHANGE_ROLES}"
        yield Finding(check=reason, severity="error", count=count, examples=[], explanation=explanation)
    kept = [pairs[index] for index in encoded.kept]
    equal = encoded.pairs["chosen"] == encoded.pairs["rejected"]
    same = [kept[row] for row in equal.nonzero()[0] if text_group(kept[row].chosen) != text_group(kept[row].rejected)]
    yield from _found(
        "identical_tokens", "error", same, "both responses have the same tokens, so they express no preference."
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


def _with_turn(pairs: Sequence[PreferencePair], fits: Callable[[str], object]) -> list[PreferencePair]:
    """Return the pairs that have a turn with such a text."""
    return [pair for pair in pairs if any(fits(turn.content) for turn in pair.turns)]


def _is_messages(text: str) -> bool:
    """Return whether a text is a list of messages, as JSON or as a Python literal."""
    found = Cell(text.strip()).turns
    turns = [found] if isinstance(found, Mapping) else found
    return not isinstance(turns, str) and all(turn.keys() & {"content", "value"} for turn in turns)


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
    all_keys = set(keys)
    return [
        pair
        for pair, (prompt, chosen, rejected) in zip(pairs, keys, strict=True)
        if chosen != rejected and (prompt, rejected, chosen) in all_keys
    ]


def _overlap(pairs: Sequence[PreferencePair], name: str, test: Sequence[PreferencePair]) -> list[Finding]:
    prompts = shared_prompts(pairs, test)
    shared = [pair for pair in pairs if prompt_group(pair.prompt) in prompts]
    explanation = f"the prompt also occurs in {name}, so the accuracy there would be too high. Remove the rows."
    return _found("overlap", "error", shared, explanation)


def _length_bias(pairs: Sequence[PreferencePair]) -> list[Finding]:
    accuracy = length_accuracy(pairs)
    # Two standard errors of a fair coin: small sets deviate from one half by chance.
    if abs(accuracy - 0.5) < max(_LENGTH_BIAS, 1 / math.sqrt(len(pairs))):
        return []
    which = "longer" if accuracy > 0.5 else "shorter"
    explanation = (
        f"picking the {which} response is right {max(accuracy, 1 - accuracy):.1%} of the time, so a model can reach "
        "this accuracy by length alone. Report this number with every accuracy."
    )
    return [Finding(check="length_bias", severity="warning", count=len(pairs), examples=[], explanation=explanation)]
