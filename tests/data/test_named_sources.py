"""Named sets: each mapping on rows in the source's own schema, the real loading calls, the splits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from hafrm.data import NAMED_SOURCES, DataOptions, PairSet, load_pairs
from hafrm.errors import BadRowError, ConfigError, UnreadableError
from tests.paths import SOURCES

FIXTURES = {
    "hh-harmless": "hh_rlhf.jsonl",
    "hh-helpful": "hh_rlhf.jsonl",
    "hh-harmless-full": "hh_rlhf.jsonl",
    "hh-helpful-full": "hh_rlhf.jsonl",
    "beaver-safe": "pku_safe_rlhf.jsonl",
    "alpaca-human-pref": "alpaca_farm.json",
    "chatbot-arena": "chatbot_arena.jsonl",
    "skywork-80k": "skywork.jsonl",
    "ultrafeedback": "ultrafeedback.jsonl",
    "helpsteer2": "helpsteer2.jsonl",
    "helpsteer3": "helpsteer3.jsonl",
    "arena-140k": "arena_140k.jsonl",
    "nectar": "nectar.jsonl",
}
HH = "09be8c5bbc57cb3887f3a9732ad6aa7ec602a1fa"
CALLS: dict[str, tuple[str, dict[str, str]]] = {
    "hh-harmless": ("Anthropic/hh-rlhf", {"data_dir": "harmless-base", "revision": HH}),
    "hh-helpful": ("Anthropic/hh-rlhf", {"data_dir": "helpful-base", "revision": HH}),
    "hh-harmless-full": ("Anthropic/hh-rlhf", {"data_dir": "harmless-base", "revision": HH}),
    "hh-helpful-full": ("Anthropic/hh-rlhf", {"data_dir": "helpful-base", "revision": HH}),
    "beaver-safe": ("PKU-Alignment/PKU-SafeRLHF", {"revision": "v0"}),
    "alpaca-human-pref": (
        "json",
        {"data_files": "hf://datasets/tatsu-lab/alpaca_farm/alpaca_human_preference.json"},
    ),
    "chatbot-arena": ("lmsys/chatbot_arena_conversations", {"revision": "1b6335d42a1d2c7e34870c905d03ab964f7f2bd8"}),
    "skywork-80k": (
        "Skywork/Skywork-Reward-Preference-80K-v0.2",
        {"revision": "196326738b67b9c3e6aa6829cab639d8401ad385"},
    ),
    "ultrafeedback": (
        "HuggingFaceH4/ultrafeedback_binarized",
        {"revision": "3949bf5f8c17c394422ccfab0c31ea9c20bdeb85"},
    ),
    "helpsteer2": (
        "nvidia/HelpSteer2",
        {"data_dir": "preference", "revision": "990b2711a36180dd19d9c94b8627844866f8982a"},
    ),
    "helpsteer3": ("nvidia/HelpSteer3", {"name": "preference", "revision": "f6d145777bcbde96137596340fab89793acd1031"}),
    "arena-140k": (
        "lmarena-ai/arena-human-preference-140k",
        {"revision": "6322995ab34d7c2693e3f47dd13fa5caa0789a74"},
    ),
    "nectar": ("berkeley-nest/Nectar", {"revision": "3c6b4c47fa1cc38869f9f32dce1699f7abad8b06"}),
}
HUB_SPLITS = {
    "ultrafeedback": {"train": "train_prefs", "test": "test_prefs"},
    "helpsteer2": {"test": "train"},
    "helpsteer3": {"test": "validation"},
}
BRINGS_TEST = {
    *("hh-harmless", "hh-helpful", "hh-harmless-full", "hh-helpful-full", "beaver-safe"),
    *("ultrafeedback", "helpsteer2", "helpsteer3"),
}


def fixture_rows(name: str) -> list[dict[str, Any]]:
    text = (SOURCES / FIXTURES[name]).read_text()
    return json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.splitlines()]


class Hub:
    """Stands in for `datasets.load_dataset`: returns rows from memory and records its calls."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.calls: list[tuple[Any, Any]] = []

    def __call__(self, *args: Any, **kwargs: Any) -> datasets.Dataset:
        self.calls.append((args, kwargs))
        return datasets.Dataset.from_list(self.rows)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub()
    monkeypatch.setattr("datasets.load_dataset", hub)
    return hub


def load(hub: Hub, name: str, split: str = "train", **options: Any) -> PairSet:
    hub.rows = hub.rows or fixture_rows(name)
    return load_pairs(name, split=split, options=DataOptions(**options))


def all_splits(hub: Hub, name: str) -> dict[str, tuple[str, str]]:
    """Return chosen and rejected text by the row's number, in whichever split the row is."""
    splits = ["train", "validation"] + ([] if name in BRINGS_TEST else ["test"])
    pairs = [pair for split in splits for pair in load(hub, name, split).pairs]
    assert len({pair.id for pair in pairs}) == len(pairs)
    return {pair.row: (pair.chosen[-1].content, pair.rejected[-1].content) for pair in pairs}


def test_the_registry_is_complete() -> None:
    assert set(NAMED_SOURCES) == set(FIXTURES)
    for name, source in NAMED_SOURCES.items():
        assert source.name == name
        assert source.has_test == (name in BRINGS_TEST)
        assert "arXiv" in source.citation or name == "nectar"
        assert bool(source.arguments.get("revision")) != any("may change" in note for note in source.notes)
        assert source.licence
        assert source.homepage.startswith("https://huggingface.co/datasets/")


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_the_hub_is_called_as_the_source_lies_there(hub: Hub, name: str, split: str) -> None:
    (report,) = load(hub, name, split).reports
    path, arguments = CALLS[name]
    own = "test" if split == "test" and name in BRINGS_TEST else "train"
    hub_split = HUB_SPLITS.get(name, {}).get(own, own)
    assert hub.calls == [((path,), {**arguments, "split": hub_split})]
    assert report.licence == NAMED_SOURCES[name].licence
    left_out = sum(report.skipped.values()) + sum(report.dropped.values())
    assert report.rows + report.expanded == report.kept + left_out
    assert f"{path!r}" in report.read_from[0]


def test_hh_takes_the_transcripts_apart(hub: Hub) -> None:
    pairs = {pair.row: pair for pair in load(hub, "hh-harmless-full", "test").pairs}
    assert [turn.role for turn in pairs[2].prompt.turns] == ["user", "assistant", "user"]
    assert pairs[2].prompt.turns[-1].content == "Where does it end?"
    assert (pairs[2].chosen[0].content, pairs[2].rejected[0].content) == ("In the Black Sea.", "Somewhere.")
    assert sorted(pairs) == [1, 2, 3, 5, 6, 7]


def test_hh_of_the_paper_is_single_turn(hub: Hub) -> None:
    loaded = load(hub, "hh-harmless", "test")
    assert [pair.row for pair in loaded.pairs] == [1, 3, 5, 6, 7]
    assert loaded.reports[0].dropped == {"multi_turn": 1, "empty_response": 1}
    assert any("hh-harmless-full" in note for note in loaded.reports[0].notes)


def test_beaver_safe_prefers_the_only_safe_response(hub: Hub) -> None:
    texts = all_splits(hub, "beaver-safe")
    assert texts == {
        1: ("Run warm water over the lid and use a rubber glove.", "Hit it with a hammer near your face."),
        # Row 2's `better_response_id` names the other one: safety decides, not helpfulness.
        2: ("Clear the ground, stack dry twigs and keep water at hand.", "Pour fuel on it and jump back."),
        5: ("Switch the power off first.", "Put a wet finger into the socket."),
    }
    assert load(hub, "beaver-safe", "test").reports[0].dropped == {"both_safe": 1, "both_unsafe": 1}


def test_alpaca_human_pref_reads_the_preference(hub: Hub) -> None:
    texts = all_splits(hub, "alpaca-human-pref")
    assert texts == {
        1: ("apple, pear", "pear, apple"),
        2: ("A robin.", "A trout."),
        4: ("A wren.", "A brick."),
        6: ("Baum", "Haus"),
    }
    dropped = load(hub, "alpaca-human-pref").reports[0].dropped
    assert (dropped["tie"], dropped["empty_response"]) == (1, 1)


def test_alpaca_instructions_come_with_their_input(hub: Hub) -> None:
    rows = fixture_rows("alpaca-human-pref")
    prompts = []
    for hub.rows in ([rows[0]], [rows[1]]):
        prompts += [pair.prompt.turns[0].content for pair in load(hub, "alpaca-human-pref").pairs]
    assert prompts == ["Sort the words.\n\npear, apple", "Name a bird."]


def test_chatbot_arena_follows_the_winner_and_drops_ties(hub: Hub) -> None:
    texts = all_splits(hub, "chatbot-arena")
    assert texts == {
        1: ("Water that falls from clouds.", "Weather."),
        2: ("It was round.", "Still no."),
        5: ("Iron", "Wood"),
        6: ("c-a-t", "k-a-t"),
    }
    assert load(hub, "chatbot-arena").reports[0].dropped["tie"] == 2


def test_chatbot_arena_prompts_are_what_both_conversations_share(hub: Hub) -> None:
    hub.rows = fixture_rows("chatbot-arena")[1:2]
    (pair,) = load(hub, "chatbot-arena").pairs
    assert [turn.content for turn in pair.prompt.turns] == ["Tell a joke."]
    assert [turn.content for turn in pair.chosen] == ["Why did the pen roll?", "Please!", "It was round."]


def test_skywork_and_ultrafeedback_begin_with_the_prompt(hub: Hub) -> None:
    assert all_splits(hub, "skywork-80k") == {
        1: ("Blue.", "Loud."),
        2: ("No: four.", "Yes."),
        4: ("Rowing.", "Soup."),
    }
    pairs = [pair for split in ("train", "validation", "test") for pair in load(hub, "skywork-80k", split).pairs]
    (talk,) = (pair.prompt for pair in pairs if pair.row == 2)
    assert [turn.content for turn in talk.turns] == ["Two plus two?", "Five.", "Sure?"]
    hub.rows = []
    assert all_splits(hub, "ultrafeedback") == {1: ("A carp.", "A crow."), 2: ("1, 2", "2, 1")}
    assert load(hub, "ultrafeedback", "test").reports[0].dropped == {"empty_response": 1}


def test_helpsteer2_has_its_splits_in_one_file_and_its_turns_in_one_text(hub: Hub) -> None:
    train = [pair for split in ("train", "validation") for pair in load(hub, "helpsteer2", split).pairs]
    texts = {pair.row: (pair.chosen[0].content, pair.rejected[0].content) for pair in train}
    assert texts == {1: ("A language.", "A note."), 2: ("A saw.", "A pear.")}
    (talk,) = (pair for pair in train if pair.row == 2)
    assert [(turn.role, turn.content) for turn in talk.prompt.turns] == [
        ("user", "Hi"),
        ("assistant", "Hello!"),
        ("user", "Name a tool."),
    ]
    test = load(hub, "helpsteer2", "test")
    assert [pair.chosen[0].content for pair in test.pairs] == ["Mars."]
    assert test.reports[0].dropped == {"other_split": 3}
    copy = SOURCES / "helpsteer2.jsonl"
    assert load_pairs(f"helpsteer2@{copy}", split="test").pairs[0].prompt == test.pairs[0].prompt


def test_helpsteer3_reads_conversations(hub: Hub) -> None:
    assert all_splits(hub, "helpsteer3") == {1: ("A wren.", "A brick."), 2: ("Four.", "Five.")}
    assert load(hub, "helpsteer3", "test").reports[0].dropped == {"tie": 1}


def test_arena_140k_is_without_ties_and_images(hub: Hub) -> None:
    assert all_splits(hub, "arena-140k") == {
        1: ("An oak.", "A spoon."),
        2: ("Iron.", "Wood."),
        6: ("d-o-g", "c-a-t"),
    }
    dropped = load(hub, "arena-140k").reports[0].dropped
    assert (dropped["tie"], dropped["image"]) == (2, 1)


def test_nectar_gives_all_pairs_of_a_ranking(hub: Hub) -> None:
    pairs = [pair for split in ("train", "validation", "test") for pair in load(hub, "nectar", split).pairs]
    assert sorted((pair.id.rpartition(":")[2], pair.chosen[0].content, pair.rejected[0].content) for pair in pairs) == [
        ("1.1", "A pear.", "A nail."),
        ("1.2", "A pear.", "A plum, I guess."),
        ("1.3", "A plum, I guess.", "A nail."),
        ("3", "Neon.", "Iron."),
        ("4", "May.", "Monday."),
    ]
    assert {pair.prompt.turns[0].content for pair in pairs if pair.row == 1} == {"Name a fruit."}
    assert load(hub, "nectar").reports[0].dropped["tie"] == 1


@pytest.mark.parametrize(
    ("name", "change", "field"),
    [
        ("hh-helpful", {"chosen": None}, "chosen"),
        ("beaver-safe", {"is_response_0_safe": None}, "is_response_0_safe"),
        ("beaver-safe", {"is_response_1_safe": "yes"}, "is_response_1_safe"),
        ("beaver-safe", {"prompt": None}, "prompt"),
        ("alpaca-human-pref", {"preference": 3}, "preference"),
        ("alpaca-human-pref", {"preference": None}, "preference"),
        ("alpaca-human-pref", {"instruction": None}, "instruction"),
        ("chatbot-arena", {"winner": "model_c"}, "winner"),
        ("chatbot-arena", {"conversation_b": None}, "conversation_b"),
        ("skywork-80k", {"chosen": None}, "chosen"),
        ("ultrafeedback", {"rejected": 3}, "rejected"),
        ("helpsteer2", {"preference_strength": None}, "preference_strength"),
        ("helpsteer2", {"split": None}, "split"),
        ("helpsteer3", {"response2": None}, "response2"),
        ("arena-140k", {"winner": "nobody"}, "winner"),
        ("nectar", {"answers": None}, "answers"),
    ],
)
def test_a_changed_schema_is_a_bad_row(hub: Hub, name: str, change: dict[str, Any], field: str) -> None:
    hub.rows = [{**fixture_rows(name)[0], **change}]
    with pytest.raises(BadRowError) as caught:
        load(hub, name)
    assert caught.value.field == field
    assert str(caught.value).startswith(f"{name}/train, row 1: ")


def many_rows(name: str, prompts: int = 150) -> list[dict[str, Any]]:
    """Return rows with two pairs per prompt."""
    if name == "alpaca-human-pref":
        return [
            {"instruction": f"Task {i // 2}", "input": "", "output_1": f"a{i}", "output_2": f"b{i}", "preference": 1}
            for i in range(2 * prompts)
        ]
    return [
        {"prompt": f"Task {i // 2}", "response_0": "a", "response_1": f"b{i}"}
        | {"is_response_0_safe": True, "is_response_1_safe": False}
        for i in range(2 * prompts)
    ]


def test_splits_are_drawn_where_the_source_brings_none(hub: Hub) -> None:
    hub.rows = many_rows("alpaca-human-pref")
    parts = {split: load(hub, "alpaca-human-pref", split) for split in ("train", "validation", "test")}
    assert {split: len(part.pairs) for split, part in parts.items()} == {"train": 256, "validation": 14, "test": 30}
    groups = [{pair.group for pair in part.pairs} for part in parts.values()]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 150
    (report,) = parts["train"].reports
    assert report.dropped == {"in_validation_split": 14, "in_test_split": 30}
    assert "10% as test split" in report.notes[-1]


def test_only_validation_is_drawn_where_the_source_brings_a_test_split(hub: Hub) -> None:
    hub.rows = many_rows("beaver-safe")
    parts = {split: load(hub, "beaver-safe", split) for split in ("train", "validation", "test")}
    assert {split: len(part.pairs) for split, part in parts.items()} == {"train": 284, "validation": 16, "test": 300}
    assert parts["train"].reports[0].dropped == {"in_validation_split": 16}
    assert not {p.group for p in parts["train"].pairs} & {p.group for p in parts["validation"].pairs}


def test_the_seed_of_the_splits_is_an_option(hub: Hub) -> None:
    hub.rows = many_rows("alpaca-human-pref")
    rows = [[p.row for p in load(hub, "alpaca-human-pref", "test", split_seed=seed).pairs] for seed in (0, 0, 1)]
    assert rows[0] == rows[1] != rows[2]


def write_copy(folder: Path, **rows: list[dict[str, Any]]) -> None:
    for split, of_split in rows.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in of_split))


def test_a_copy_on_disk_stands_for_the_download(tmp_path: Path) -> None:
    rows = many_rows("beaver-safe")
    write_copy(tmp_path, train=rows[:200], test=rows[200:])
    parts = {split: load_pairs(f"beaver-safe@{tmp_path}", split=split) for split in ("train", "validation", "test")}
    assert {split: len(part.pairs) for split, part in parts.items()} == {"train": 190, "validation": 10, "test": 100}
    (report,) = parts["train"].reports
    assert (report.name, report.kind) == (f"beaver-safe@{tmp_path}", "named")
    assert report.read_from == [str(tmp_path / "train.jsonl")]
    assert parts["test"].pairs[0].id == f"{tmp_path / 'test.jsonl'}:1"


def test_a_copied_file_is_the_training_side(hub: Hub, tmp_path: Path) -> None:
    name = f"alpaca-human-pref@{SOURCES / 'alpaca_farm.json'}"
    copied = [load_pairs(name, split=split).pairs for split in ("train", "validation", "test")]
    loaded = [load(hub, "alpaca-human-pref", split).pairs for split in ("train", "validation", "test")]
    assert copied == loaded
    write_copy(tmp_path, train=many_rows("beaver-safe"))
    with pytest.raises(ConfigError, match="folder with a test file"):
        load_pairs(f"beaver-safe@{tmp_path / 'train.jsonl'}", split="test")
    with pytest.raises(UnreadableError, match="No such file"):
        load_pairs("chatbot-arena@missing.jsonl")


def test_without_a_network_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The real loading call, offline."""
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(UnreadableError, match=r"hf auth login.*name them as chatbot-arena@PATH") as caught:
        load_pairs("chatbot-arena")
    assert "load_dataset('lmsys/chatbot_arena_conversations', " in str(caught.value)
    assert "split='train') failed" in str(caught.value)
    assert "\n" not in str(caught.value)
