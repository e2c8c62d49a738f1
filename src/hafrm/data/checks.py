"""What is wrong, or may be wrong, with a set of pairs.

Pure: pairs and the account of their loading in, findings out. A finding is an "error" where the pairs can't mean what
they say (no label in them, a test prompt among them), a "warning" where they may mislead.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from hafrm.data.reports import SourceReport
from hafrm.data.statistics import length_accuracy
from hafrm.pairs import PreferencePair, prompt_group

__all__ = ["Finding", "Severity", "check_pairs", "shared_prompts"]

Severity = Literal["error", "warning"]

_EXAMPLES = 5
"""How many rows a finding names."""

_LENGTH_BIAS = 0.1
"""How far from one half the accuracy of "pick the longer" may be before it is a finding."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing to know about a set of pairs."""

    check: str
    """A stable name, such as "identical_answers"."""
    severity: Severity
    count: int
    """Rows concerned."""
    examples: list[str]
    """Ids of the first few rows concerned."""
    explanation: str
    """What it means, and what to do."""

    def as_dict(self) -> dict[str, Any]:
        """The finding as plain values for JSON."""
        return asdict(self)


def check_pairs(
    pairs: Sequence[PreferencePair],
    *,
    report: SourceReport | None = None,
    against: Mapping[str, Sequence[PreferencePair]] | None = None,
) -> list[Finding]:
    """Look for what may be wrong with a set of pairs.

    Args:
        pairs: The pairs.
        report: The account of their loading, whose skipped rows become findings.
        against: Test sets by name, which should share no prompt with the pairs.

    Returns:
        The findings, errors first; none is good news.
    """
    findings = [
        *(_bad_rows(report) if report else ()),
        *_found("identical_answers", "error", _identical_answers(pairs), _IDENTICAL),
        *(found for name, test in (against or {}).items() for found in _overlap(pairs, name, test)),
        *_found("duplicate_pairs", "warning", _duplicates(pairs), _DUPLICATES),
        *_found("conflicting_labels", "warning", _conflicts(pairs), _CONFLICTS),
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


def shared_prompts(pairs: Sequence[PreferencePair], others: Sequence[PreferencePair]) -> set[str]:
    """The prompts that stand in both sets, each by `prompt_group` of its text.

    Not by the pairs' own `group`: two sources name their groups each in their own way.
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


def _identical_answers(pairs: Sequence[PreferencePair]) -> list[PreferencePair]:
    return [pair for pair in pairs if prompt_group(pair.chosen) == prompt_group(pair.rejected)]


def _duplicates(pairs: Sequence[PreferencePair]) -> list[PreferencePair]:
    """The second and further copies."""
    seen = set()
    copies = []
    for pair in pairs:
        key = (pair.prompt, pair.chosen, pair.rejected)
        if key in seen:
            copies.append(pair)
        seen.add(key)
    return copies


def _conflicts(pairs: Sequence[PreferencePair]) -> list[PreferencePair]:
    keys = [(prompt_group(pair.prompt), prompt_group(pair.chosen), prompt_group(pair.rejected)) for pair in pairs]
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
    # Two standard errors of a fair coin: a small set strays from one half by chance.
    if abs(accuracy - 0.5) < max(_LENGTH_BIAS, 1 / math.sqrt(len(pairs))):
        return []
    which = "longer" if accuracy > 0.5 else "shorter"
    explanation = (
        f"picking the {which} response is right {max(accuracy, 1 - accuracy):.1%} of the time: a model can score that "
        "well by length alone. Report this number beside every accuracy."
    )
    return [Finding(check="length_bias", severity="warning", count=len(pairs), examples=[], explanation=explanation)]
