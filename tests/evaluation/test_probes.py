"""Probes correctly measure biases of known size that are built into scorers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO, get_args

import pytest

from hafrm import atomic
from hafrm.cli import main
from hafrm.errors import ConfigError, DataError
from hafrm.evaluation import probes
from hafrm.evaluation.options import Probe, ProbeConfig
from hafrm.evaluation.probes import PROBES, SYCOPHANCY, Probed, probe, probe_scorer, probed_pairs
from hafrm.judging import run as judging
from hafrm.judging.judges import Answer, FreeJudge, Question
from hafrm.pairs import Conversation, Message, PreferencePair, Prompt

WORSE = "It is wrong. We do not know why. Perhaps later."


class Biased:
    """Gives better responses a reward of 10, and others the value of a function of their text."""

    def __init__(self, reward: Callable[[str], float | None]) -> None:
        self.reward = reward

    def score(self, conversations: Sequence[Conversation]) -> list[float | None]:
        texts = [talk.response[-1].content for talk in conversations]
        return [10.0 if text.startswith("Right") else self.reward(text) for text in texts]


def pairs(count: int = 12, worse: str = WORSE) -> list[PreferencePair]:
    return [
        PreferencePair(
            prompt=Prompt.of(f"question {i}"),
            chosen=(Message("assistant", "Right."),),
            rejected=(Message("assistant", f"{worse} {i}."),),
            source="pairs",
            row=i + 1,
        )
        for i in range(count)
    ]


def probed(reward: Callable[[str], float | None], **values: Any) -> dict[str, Probed]:
    return {each.probe: each for each in probe_scorer(Biased(reward), pairs(), "m", **values)}


def test_the_probes_are_those_of_the_options() -> None:
    assert [*PROBES, SYCOPHANCY] == list(get_args(Probe))
    with pytest.raises(ConfigError, match="flatery"):
        ProbeConfig(models=["m"], data=["d"], probes=["flatery"])  # type: ignore[list-item]


def test_length_is_paid_by_the_character() -> None:
    """A tenth for each: the added sentences have 86 characters, of a gap of 10 - 0.1 * 50 or so."""
    found = probed(lambda text: 0.1 * len(text))["length"]
    added = len(PROBES["length"]("")) * 0.1
    assert found.shift == pytest.approx(added)
    assert found.shift_ci95 == pytest.approx((added, added))
    gap = 10 - 0.1 * (len(WORSE) + 3.5)
    assert found.relative == pytest.approx(added / gap, rel=0.02)
    assert (found.raised, found.right, found.lost) == (1.0, 12, 1.0)
    assert found.pairs == 12


@pytest.mark.parametrize(
    ("name", "mark", "size"),
    [
        ("bold", "**", 2.0),
        ("list", "- ", -1.5),
        ("flattery", "great question", 20.0),
        ("self-praise", "accurate", 0.25),
        ("contractions", "don't", 3.0),
        ("line break", "\n", 1.0),
        ("refusal", "sorry", 9.75),
    ],
)
def test_each_bias_is_found_at_its_size_and_by_no_other_probe(name: str, mark: str, size: float) -> None:
    found = probed(lambda text: size * (mark in text))
    assert found[name].shift == pytest.approx(size)
    assert found[name].raised == (size > 0)
    assert found[name].lost == (size >= 10)
    others = {other: each for other, each in found.items() if other != name and mark != "\n"}
    assert all(each.shift == 0 and each.raised == 0.5 and each.lost == 0 for each in others.values())


@pytest.mark.parametrize(("agrees", "both"), [(2.5, 0.0), (-1.0, 0.0), (0.0, 3.0), (12.0, -4.0)])
def test_sycophancy_is_what_the_worse_response_gains_over_the_better_one(agrees: float, both: float) -> None:
    """A model that adds `agrees` if the user said the same, and `both` to all responses if the user has an opinion."""

    class Sycophant(Biased):
        def score(self, conversations: Sequence[Conversation]) -> list[float | None]:
            found = []
            for talk, reward in zip(conversations, super().score(conversations), strict=True):
                assert reward is not None
                asked, said = talk.prompt.turns[-1].content, talk.response[-1].content
                found.append(reward + agrees * (said in asked) + both * ("own answer" in asked))
            return found

    found = {each.probe: each for each in probe_scorer(Sycophant(lambda text: 0.0), pairs(), "m")}
    sycophancy = found.pop(SYCOPHANCY)
    assert sycophancy.shift == pytest.approx(agrees)
    assert sycophancy.raised == (0.5 if agrees == 0 else agrees > 0)
    assert sycophancy.lost == (agrees >= 10)
    assert all(each.shift == 0 for each in found.values())
    (only,) = probe_scorer(Sycophant(lambda text: 0.0), pairs(), "m", [SYCOPHANCY])
    assert only == sycophancy


def test_a_bias_in_some_prompts_has_an_interval() -> None:
    """A quarter of the prompts: 3 of 12, whose bootstrap mean has a standard deviation of .125."""
    found = probed(lambda text: float("great question" in text and text[-2] in "147"))["flattery"]
    assert found.shift == pytest.approx(4 / 12)  # 1, 4, 7, 11
    assert found.shift_ci95 is not None
    low, high = found.shift_ci95
    assert 0 <= low < 4 / 12 < high < 0.75
    assert found.raised == pytest.approx((4 + 8 * 0.5) / 12)


def test_what_does_not_apply_or_has_no_reward_is_left_out() -> None:
    assert "contractions" not in {each.probe for each in probe_scorer(Biased(len), pairs(worse="No."), "m")}
    found = probed(lambda text: None if "3." in text or "sorry" in text else 0.0)
    assert found["length"].pairs == 11
    assert "refusal" not in found
    with pytest.raises(DataError, match="none of 12"):
        probed(lambda text: None)


def test_equal_rewards_are_no_gap_and_not_right() -> None:
    found = probed(lambda text: 10.0)["length"]
    assert (found.shift, found.relative, found.raised) == (0.0, 0.0, 0.5)
    assert (found.right, found.lost, found.lost_ci95) == (0, None, None)


def test_a_typical_gap_is_the_median_and_a_tie_loses_a_right_ranking() -> None:
    """Gaps of 1, but for one of 1010; flattery is worth 1, which makes the others equal."""
    found = probed(lambda text: 9.0 - 1009 * (" 0." in text) + ("great question" in text))["flattery"]
    assert found.relative == pytest.approx(1.0)
    assert (found.right, found.lost) == (12, pytest.approx(11 / 12))


def test_the_pairs_of_a_split_are_read_up_to_a_number(tmp_path: Path) -> None:
    for split in ("train", "test"):
        row = {"prompt": split, "chosen": "a", "rejected": "b"}
        (tmp_path / f"{split}.jsonl").write_text(f"{json.dumps(row)}\n" * 3)
    values = {"models": ["m"], "data": [str(tmp_path)], "pairs": 2}
    found = {split: probed_pairs(ProbeConfig(**values, split=split)) for split in ("train", "test")}
    assert {split: [pair.prompt.turns[0].content for pair in read] for split, read in found.items()} == {
        "train": ["train"] * 2,
        "test": ["test"] * 2,
    }


class Recording(Biased):
    """Remembers what it scored."""

    def __init__(self) -> None:
        super().__init__(lambda text: float(len(text)))
        self.scored: list[Conversation] = []

    def score(self, conversations: Sequence[Conversation]) -> list[float | None]:
        self.scored += conversations
        return super().score(conversations)


def test_no_conversation_is_scored_twice() -> None:
    scorer = Recording()
    assert len(list(probe_scorer(scorer, pairs(), "m"))) == len(PROBES) + 1
    assert len(scorer.scored) == len(set(scorer.scored))


def test_only_the_last_turn_of_a_response_is_changed() -> None:
    earlier = (Message("assistant", "Let me look."), Message("user", "Please do."))
    (pair,) = pairs(1)
    scorer = Recording()
    list(probe_scorer(scorer, [replace(pair, rejected=(*earlier, *pair.rejected))], "m", ["flattery"]))
    changed = Message("assistant", PROBES["flattery"](pair.rejected[0].content))
    assert scorer.scored[-1] == Conversation(pair.prompt, (*earlier, changed))


def test_an_opinion_needs_a_users_turn_and_a_response() -> None:
    (pair,) = pairs(1)
    prompt = Prompt((*pair.prompt.turns, Message("tool", "42")))
    for unchanged in (replace(pair, prompt=prompt), replace(pair, rejected=(Message("assistant", " "),))):
        assert not list(probe_scorer(Recording(), [unchanged], "m", [SYCOPHANCY]))


class Flattered(FreeJudge):
    """Prefers flattery to everything, otherwise the right response; or the first response, if `orders` decide."""

    most_responses = 2
    order_matters = True

    def __init__(self, *, by_order: bool) -> None:
        self.by_order = by_order

    def ask(self, questions: Sequence[Question]) -> list[Answer]:
        return [Answer(ranks=self._ranks(*(each[-1].content for each in found.responses))) for found in questions]

    def _ranks(self, first: str, second: str) -> tuple[int, int]:
        if self.by_order:
            return 1, 2
        wins = [10 * ("great question" in text) + text.startswith("Right") for text in (first, second)]
        return (1, 2) if wins[0] > wins[1] else (2, 1)


@pytest.mark.parametrize("orders", ["both", "one"])
def test_a_judges_bias_is_its_change_of_the_share_of_wins(
    orders: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flattery turns every verdict; a judge that only reads the order ties in both orders and wins half in one."""
    rows = tmp_path / "pairs.jsonl"
    rows.write_text("".join(json.dumps(pair.as_row()) + "\n" for pair in pairs(40)))
    words = ["probe", "--judge.kind", "openai", "--judge.model", "m", "--judge.orders", orders, "--data", str(rows)]
    found = {}
    for by_order in (False, True):
        judge = Flattered(by_order=by_order)
        monkeypatch.setattr(judging, "load_judge", lambda *_, judge=judge: judge)
        assert main([*words, "--probes", "flattery", "length", "--out", str(tmp_path / f"{by_order}")]) == 0
        found[by_order] = json.loads((tmp_path / f"{by_order}" / "results.json").read_text())["probes"]
    flattery, length = found[False]
    assert (flattery["model"], flattery["probe"], flattery["pairs"]) == ("judge m", "flattery", 40)
    assert (flattery["shift"], flattery["raised"], flattery["right"], flattery["lost"]) == (1.0, 1.0, 40, 1.0)
    assert (length["shift"], length["raised"], length["right"], length["lost"]) == (0.0, 0.5, 40, 0.0)
    for each in found[True]:
        assert each["shift"] == 0
        assert each["right"] == 0 if orders == "both" else 10 < each["right"] < 30


def test_neither_a_model_nor_a_judge_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pairs.jsonl").write_text(json.dumps(pairs(1)[0].as_row()))
    assert main(["probe", "--data", str(tmp_path / "pairs.jsonl")]) == 2
    assert "judge" in capfd.readouterr().err


def test_text_stays_but_for_the_change() -> None:
    text = "It is so. **Bold**? We cannot say: a\n\nb"
    assert PROBES["list"](text).replace("- ", "").split() == text.split()
    assert PROBES["list"]("Is it? Yes! It is.") == "- Is it?\n- Yes!\n- It is."
    assert PROBES["bold"]("One longest word. Two.") == "One **longest** word. **Two**."
    assert PROBES["bold"]("Yes, yes. Yes then.") == "**Yes**, yes. Yes **then**."
    assert PROBES["flattery"](" Yes.").endswith("! Yes.")
    assert PROBES["self-praise"]("Yes.\n").startswith("Yes. ")
    assert PROBES["contractions"]("I do not; it is. Credit is nothing.") == "I don't; it's. Credit is nothing."
    assert PROBES["line break"]("One. Two. Three.") == "One.\n\nTwo. Three."


def test_the_command_writes_what_it_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(probes, "load_reward", lambda *_: Biased(lambda text: 0.1 * len(text)))
    rows = tmp_path / "pairs.jsonl"
    rows.write_text("".join(json.dumps(pair.as_row()) + "\n" for pair in pairs(20)))
    out = tmp_path / "out"
    words = ["probe", "m", "--data", str(rows), "--probes", "length", "refusal", "--pairs", "8", "--out", str(out)]
    assert main(words) == 0
    results = json.loads((out / "results.json").read_text())
    found = results["probes"]
    assert results["environment"]["versions"]["hafrm"] == version("hafrm")
    assert f"torch {version('torch')}" in (out / "table.md").read_text()
    assert [(each["probe"], each["pairs"]) for each in found] == [("length", 8), ("refusal", 8)]
    printed = capfd.readouterr().out
    table = (out / "table.md").read_text()
    for text in (printed, table):
        assert f"{found[0]['shift']:+.3g}" in text
    assert main(words) == 0  # its own files may be replaced
    config = ProbeConfig(models=["a", "b"], data=[str(rows)], probes=["length"])
    assert [each.model for each in probe(config)] == ["a", "b"]


@pytest.mark.parametrize("missing", ["results.json", "table.md", "index.html"])
def test_a_command_stopped_between_its_files_can_run_again(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probes, "load_reward", lambda *_: Biased(lambda text: 0.1 * len(text)))
    rows, out, new_file = tmp_path / "pairs.jsonl", tmp_path / "out", atomic.new_file
    rows.write_text("".join(json.dumps(pair.as_row()) + "\n" for pair in pairs(8)))
    words = ["probe", "m", "--data", str(rows), "--probes", "length", "--out", str(out)]

    @contextmanager
    def stopping(path: Path) -> Iterator[BinaryIO]:
        if path.name == missing:
            raise KeyboardInterrupt
        with new_file(path) as file:
            yield file

    with monkeypatch.context() as patch:
        patch.setattr(atomic, "new_file", stopping)
        assert main(words) == 130
    assert main(words) == 0
    assert {path.name for path in out.iterdir()} == {"results.json", "table.md", "index.html"}
