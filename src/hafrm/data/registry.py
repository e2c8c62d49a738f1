"""The named data sets: the paper's five, as described in its section 3.1 and Table 1, and more recent ones.

A set is a `NamedSource` with a pure function from a row in the source's own schema to rows of the contract (see
`hafrm.contract`), or to a `Drop` if the set's rule leaves the row out. A missing or mistyped field makes a row bad.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from hafrm.data.forms import HELPSTEER2, HELPSTEER3, NECTAR, alpaca_farm, answers, chatbot_arena
from hafrm.data.reports import Drop, Outcome
from hafrm.rows import Row, is_list, transcript_turns

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
    mapping: Callable[[Row], Outcome | Iterable[Outcome]]
    """Converts a row in the source's schema to one or several rows of the contract, or drops it."""
    has_test: bool
    """Whether the source has a test split; if not, `TEST_SHARE` of its prompts are drawn."""
    splits: Mapping[str, str] = field(default_factory=dict)
    """The source's names for "train" and "test", where they differ."""
    split_column: str = ""
    """The column that names a row's split, if the source has all splits in one file, which it calls "train"."""
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


def messages_with_prompt(row: Row) -> Outcome:
    """Convert chat messages that begin with the prompt in both columns."""
    return {name: [turn.as_dict() for turn in row.messages(name, "assistant")] for name in ("chosen", "rejected")}


def arena_of_texts(row: Row) -> Outcome:
    """Convert Chatbot Arena, without the conversations about images."""
    sides = [row.sequence(f"conversation_{side}") for side in ("a", "b")]
    contents = [turn.get("content") for side in sides for turn in side if isinstance(turn, Mapping)]
    parts = [part for content in contents if is_list(content) for part in content if isinstance(part, Mapping)]
    if any(part.get("image") or part.get("type") == "image" for part in parts):
        return Drop("image")
    return chatbot_arena(row)


_HELPSTEER_TURN = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")


def helpsteer2(row: Row) -> Iterable[Outcome]:
    """Convert HelpSteer2's preferences, whose prompts of several turns are one text with marks between the turns."""
    first, *rest = _HELPSTEER_TURN.split(row.string("prompt"))
    turns = [{"role": "user", "content": first}] if first else []
    turns += [{"role": role.lower(), "content": text} for role, text in zip(rest[::2], rest[1::2], strict=True)]
    return HELPSTEER2.rows(replace(row, value={**row.fields, "prompt": turns}))


_HH_CITATION = (
    "Bai et al. (2022), Training a Helpful and Harmless Assistant with Reinforcement Learning from Human Feedback, "
    "arXiv:2204.05862"
)
_SINGLE_TURN_NOTE = "single-turn pairs only, as the sizes in the paper's Table 1 imply; `{}-full` has all pairs"

UNPINNED = "read at the hub's `main`, which may change; to hold it fixed, download a revision and name it as {}@PATH"
"""Note on a source for which no revision is known."""


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
        notes=(UNPINNED.format("alpaca-human-pref"),),
    ),
    NamedSource(
        name="chatbot-arena",
        title="Chatbot Arena (CA)",
        path="lmsys/chatbot_arena_conversations",
        arguments={"revision": "1b6335d42a1d2c7e34870c905d03ab964f7f2bd8"},
        mapping=chatbot_arena,
        has_test=False,
        homepage="https://huggingface.co/datasets/lmsys/chatbot_arena_conversations",
        licence="CC-BY-4.0 (prompts), CC-BY-NC-4.0 (responses)",
        citation="Zheng et al. (2023), Judging LLM-as-a-Judge with MT-Bench and Chatbot Arena, arXiv:2306.05685",
        access="The set is gated: accept its terms on its page and run `hf auth login`. ",
        notes=("ties dropped",),
    ),
    NamedSource(
        name="skywork-80k",
        title="Skywork Reward Preference 80K v0.2",
        path="Skywork/Skywork-Reward-Preference-80K-v0.2",
        arguments={"revision": "196326738b67b9c3e6aa6829cab639d8401ad385"},
        mapping=messages_with_prompt,
        has_test=False,
        homepage="https://huggingface.co/datasets/Skywork/Skywork-Reward-Preference-80K-v0.2",
        licence="see the homepage; the pairs come from other sets",
        citation="Liu et al. (2024), Skywork-Reward: Bag of Tricks for Reward Modeling in LLMs, arXiv:2410.18451",
    ),
    NamedSource(
        name="ultrafeedback",
        title="UltraFeedback, binarized",
        path="HuggingFaceH4/ultrafeedback_binarized",
        arguments={"revision": "3949bf5f8c17c394422ccfab0c31ea9c20bdeb85"},
        mapping=messages_with_prompt,
        has_test=True,
        splits={"train": "train_prefs", "test": "test_prefs"},
        homepage="https://huggingface.co/datasets/HuggingFaceH4/ultrafeedback_binarized",
        licence="MIT",
        citation="Cui et al. (2023), UltraFeedback: Boosting Language Models with Scaled AI Feedback, arXiv:2310.01377",
    ),
    NamedSource(
        name="helpsteer2",
        title="HelpSteer2, preferences",
        path="nvidia/HelpSteer2",
        arguments={"data_dir": "preference", "revision": "990b2711a36180dd19d9c94b8627844866f8982a"},
        mapping=helpsteer2,
        has_test=True,
        splits={"test": "val"},
        split_column="split",
        homepage="https://huggingface.co/datasets/nvidia/HelpSteer2",
        licence="CC-BY-4.0",
        citation="Wang et al. (2024), HelpSteer2-Preference: Complementing Ratings with Preferences, arXiv:2410.01257",
        notes=("ties dropped", "the test split is the source's `val`"),
    ),
    NamedSource(
        name="helpsteer3",
        title="HelpSteer3, preferences",
        path="nvidia/HelpSteer3",
        arguments={"name": "preference", "revision": "f6d145777bcbde96137596340fab89793acd1031"},
        mapping=HELPSTEER3.rows,
        has_test=True,
        splits={"test": "validation"},
        homepage="https://huggingface.co/datasets/nvidia/HelpSteer3",
        licence="CC-BY-4.0",
        citation=(
            "Wang et al. (2025), HelpSteer3-Preference: Open Human-Annotated Preference Data across Diverse Tasks and "
            "Languages, arXiv:2505.11475"
        ),
        notes=("ties dropped", "the test split is the source's `validation`"),
    ),
    NamedSource(
        name="arena-140k",
        title="Arena human preference 140k",
        path="lmarena-ai/arena-human-preference-140k",
        arguments={"revision": "6322995ab34d7c2693e3f47dd13fa5caa0789a74"},
        mapping=arena_of_texts,
        has_test=False,
        homepage="https://huggingface.co/datasets/lmarena-ai/arena-human-preference-140k",
        licence="CC-BY-4.0 (prompts), the providers' terms (responses)",
        citation=(
            "Chiang et al. (2024), Chatbot Arena: An Open Platform for Evaluating LLMs by Human Preference, "
            "arXiv:2403.04132"
        ),
        notes=("ties dropped", "conversations with images dropped"),
    ),
    NamedSource(
        name="nectar",
        title="Nectar",
        path="berkeley-nest/Nectar",
        arguments={"revision": "3c6b4c47fa1cc38869f9f32dce1699f7abad8b06"},
        mapping=NECTAR.rows,
        has_test=False,
        homepage="https://huggingface.co/datasets/berkeley-nest/Nectar",
        licence="Apache-2.0",
        citation="Zhu et al. (2023), Starling-7B: Improving LLM Helpfulness and Harmlessness with RLAIF",
        notes=("all pairs of a row's seven answers, ranked by GPT-4; ties dropped",),
    ),
)

NAMED_SOURCES = {source.name: source for source in _SOURCES}
"""The named sources, by name."""
