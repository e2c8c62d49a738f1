"""The named data sets: the paper's five, as described in its section 3.1 and Table 1.

A set is a `NamedSource` with a pure function from a row in the source's own schema to a row of the contract (see
`hafrm.rows`), or to a `Drop` if the paper's preprocessing leaves the row out. A missing or mistyped field makes a row
bad.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hafrm.data.forms import alpaca_farm, answers, chatbot_arena
from hafrm.data.reports import Drop, Outcome
from hafrm.rows import Row, transcript_turns

TEST_SHARE = 0.10
"""Share of pairs drawn as the test split for sources without one (section 3.1 of the paper)."""

VALIDATION_SHARE = 0.05
"""Share of the training data drawn as the validation split; sources have none, and the paper does not give its size."""


@dataclass(frozen=True, kw_only=True)
class NamedSource:
    """A published data set and its conversion to pairs."""

    name: str
    """Name in `--data`."""
    title: str
    """Name in the paper."""
    path: str
    """First argument of `datasets.load_dataset`."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of `load_dataset`."""
    mapping: Callable[[Row], Outcome]
    """Converts a row in the source's schema to a row of the contract, or drops it."""
    has_test: bool
    """Whether the source has a test split; if not, `TEST_SHARE` of its prompts are drawn."""
    homepage: str
    licence: str
    citation: str
    access: str = ""
    """How to get access on the hub."""
    notes: tuple[str, ...] = ()
    """Facts that users of the data should know."""


def hh_transcripts(row: Row) -> dict[str, Any]:
    """Convert Anthropic hh-rlhf: two transcripts with a common beginning."""
    return answers(row, "chosen", "rejected")


def hh_single_turn(row: Row) -> Outcome:
    """Convert Anthropic hh-rlhf, keeping only pairs with one question and one answer.

    The paper does not mention this, but its Table 1 implies it: 12,915 Harmless pairs of 42.9 words per QA.
    `harmless-base` has 42,537 pairs; in a sample of 1,484, the average is 109 words per QA, and 42 for the 30% with a
    single turn.
    """
    pair = hh_transcripts(row)
    if any(len(transcript_turns(text)) > 2 for text in pair.values()):
        return Drop("multi_turn")
    return pair


def beaver_safe(row: Row) -> Outcome:
    """Convert PKU-SafeRLHF: keep pairs with exactly one safe response, which is the chosen one."""
    safe = [row.boolean(f"is_response_{i}_safe") for i in (0, 1)]
    if safe[0] == safe[1]:
        return Drop("both_safe" if safe[0] else "both_unsafe")
    better, worse = f"response_{safe.index(True)}", f"response_{safe.index(False)}"
    return {"prompt": row.string("prompt"), **answers(row, better, worse)}


_HH_CITATION = (
    "Bai et al. (2022), Training a Helpful and Harmless Assistant with Reinforcement Learning from Human Feedback, "
    "arXiv:2204.05862"
)
_SINGLE_TURN_NOTE = "single-turn pairs only, as the sizes in the paper's Table 1 imply; `{}-full` has all pairs"


_UNPINNED_NOTE = (
    "read at the hub's `main`, which may change; to hold it fixed, download a revision and name it as {}@PATH"
)


def _hh(name: str, title: str, folder: str, *, full: bool) -> NamedSource:
    return NamedSource(
        name=f"{name}-full" if full else name,
        title=f"{title}, all turns" if full else title,
        path="Anthropic/hh-rlhf",
        arguments={"data_dir": folder, "revision": "09be8c5bbc57cb3887f3a9732ad6aa7ec602a1fa"},
        mapping=hh_transcripts if full else hh_single_turn,
        has_test=True,
        homepage="https://huggingface.co/datasets/Anthropic/hh-rlhf",
        licence="MIT",
        citation=_HH_CITATION,
        notes=() if full else (_SINGLE_TURN_NOTE.format(name),),
    )


_SOURCES = (
    _hh("hh-harmless", "HH-Harmless", "harmless-base", full=False),
    _hh("hh-helpful", "HH-Helpful", "helpful-base", full=False),
    _hh("hh-harmless", "HH-Harmless", "harmless-base", full=True),
    _hh("hh-helpful", "HH-Helpful", "helpful-base", full=True),
    NamedSource(
        name="beaver-safe",
        title="Beaver Safe (BS)",
        path="PKU-Alignment/PKU-SafeRLHF",
        # The set of Ji et al. (2023), which the paper cites; `main` was replaced by another in June 2024.
        arguments={"revision": "v0"},
        mapping=beaver_safe,
        has_test=True,
        homepage="https://huggingface.co/datasets/PKU-Alignment/PKU-SafeRLHF",
        licence="CC-BY-NC-4.0",
        citation=(
            "Ji et al. (2023), BeaverTails: Towards Improved Safety Alignment of LLM via a Human-Preference Dataset, "
            "arXiv:2307.04657"
        ),
        notes=(
            "pairs with exactly one safe response, which is the chosen one",
            "revision v0, by inference: the paper cites this set, and the later one can hardly have Table 1's "
            "47,625 pairs",
        ),
    ),
    NamedSource(
        name="alpaca-human-pref",
        title="Alpaca Human Pref (AHP)",
        # `datasets` no longer runs the repository's loading script, so read the file that the script reads.
        path="json",
        arguments={"data_files": "hf://datasets/tatsu-lab/alpaca_farm/alpaca_human_preference.json"},
        mapping=alpaca_farm,
        has_test=False,
        homepage="https://huggingface.co/datasets/tatsu-lab/alpaca_farm",
        licence="CC-BY-NC-4.0",
        citation=(
            "Dubois et al. (2023), AlpacaFarm: A Simulation Framework for Methods that Learn from Human Feedback, "
            "arXiv:2305.14387"
        ),
        notes=(_UNPINNED_NOTE.format("alpaca-human-pref"),),
    ),
    NamedSource(
        name="chatbot-arena",
        title="Chatbot Arena (CA)",
        path="lmsys/chatbot_arena_conversations",
        mapping=chatbot_arena,
        has_test=False,
        homepage="https://huggingface.co/datasets/lmsys/chatbot_arena_conversations",
        licence="CC-BY-4.0 (prompts), CC-BY-NC-4.0 (responses)",
        citation="Zheng et al. (2023), Judging LLM-as-a-Judge with MT-Bench and Chatbot Arena, arXiv:2306.05685",
        access="The set is gated: accept its terms on its page and run `hf auth login`. ",
        notes=("ties dropped", _UNPINNED_NOTE.format("chatbot-arena")),
    ),
)

NAMED_SOURCES = {source.name: source for source in _SOURCES}
"""The named sources, by name."""
