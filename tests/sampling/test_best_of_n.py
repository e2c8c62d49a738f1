"""Best-of-N from candidates to results, with scorers whose rewards are known."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from hafrm.data import ReadOptions
from hafrm.data.simulated import SimulatedReward
from hafrm.errors import BadRowError, ConfigError, DataError, UnknownDataError
from hafrm.judging import local
from hafrm.judging.options import JudgeOptions
from hafrm.paper.world import world_pairs
from hafrm.sampling.best_of_n import best_of_n
from hafrm.sampling.candidates import load_candidates
from hafrm.sampling.options import BestOfNConfig
from tests.judging.server import Endpoint, serving
from tests.tiny import save_tiny

ORACLE = JudgeOptions(kind="oracle", model="helpful")


def rows(path: Path, count: int = 12) -> Path:
    """The world's own pairs as candidates, the labelled response second, and drawn twice."""
    made = [
        {
            "prompt": [message.as_dict() for message in pair.prompt.turns],
            "responses": [pair.rejected[0].content, pair.chosen[0].content, "Word the no."],
            "counts": [1, 2, 1],
        }
        for pair in world_pairs("helpful", "test", size=count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return path


def config(tmp_path: Path, **more: Any) -> BestOfNConfig:
    values: dict[str, Any] = {"models": ["world/helpful", "world/safe"], "judge": ORACLE}
    values |= {"samples": str(tmp_path / "rows.jsonl"), "out": str(tmp_path / "out")}
    if "samples" not in more:
        rows(tmp_path / "rows.jsonl")
    return BestOfNConfig(**(values | more))


def test_the_oracle_agrees_with_itself(tmp_path: Path) -> None:
    found = best_of_n(config(tmp_path))
    results = found.results
    assert results["models"]["world/helpful"]["gold"] == results["baselines"]["the best"]["gold"]
    assert results["models"]["world/helpful"]["top_2"]["value"] == 1
    assert results["models"]["world/safe"]["gold"]["value"] < results["models"]["world/helpful"]["gold"]["value"]
    assert results["curve"]["gold"]["world/helpful"] == results["curve"]["gold"]["the best"]
    assert results["curve"]["n"] == [1, 2, 3, 4]
    assert (results["prompts"], results["draws"], results["distinct"]) == (12, 48, 36)
    lines = [json.loads(line) for line in (tmp_path / "out" / "selections.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [f"{tmp_path / 'rows.jsonl'}:{row}" for row in range(1, 13)]
    for line, prompt in zip(lines, found.prompts, strict=True):
        assert line["rewards"]["world/helpful"] == line["gold"]
        assert max(line["gold"]) == line["gold"][prompt.selected("world/helpful")]
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == json.loads(json.dumps(results))


def test_scores_are_kept_until_the_candidates_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    best_of_n(config(tmp_path))
    scored: list[int] = []
    whole = SimulatedReward.score
    monkeypatch.setattr(SimulatedReward, "score", lambda self, each: (scored.append(len(each)), whole(self, each))[1])
    best_of_n(config(tmp_path, models=["world/helpful"]))
    assert scored == []
    said: list[str] = []
    best_of_n(config(tmp_path, samples=str(rows(tmp_path / "rows.jsonl", 5))), say=said.append)
    assert scored == [15, 15, 15]
    assert all("the candidates changed" in line for line in said)


def test_two_runs_do_not_share_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second would append to the first's unfinished scores, or start them again."""
    asked, begun, released = config(tmp_path), threading.Event(), threading.Event()
    whole = SimulatedReward.score

    def held(self: SimulatedReward, each: Any) -> Any:
        begun.set()
        assert released.wait(60)
        return whole(self, each)

    monkeypatch.setattr(SimulatedReward, "score", held)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(best_of_n, asked)
        assert begun.wait(60)
        second = pool.submit(best_of_n, asked, wait=True)
        try:
            with pytest.raises(ConfigError, match="Another command is writing"):
                best_of_n(asked)
        finally:
            released.set()
        assert first.result().results == second.result().results
    parts = [path.read_text().splitlines() for path in (tmp_path / "out" / "parts").glob("*.jsonl")]
    assert [len(lines) for lines in parts] == [12, 12, 12]


class Deaf(SimulatedReward):
    """A scorer without a reward for one response."""

    def score(self, conversations: Any) -> list[float | None]:
        return [None if place == 1 else float(place) for place in range(len(conversations))]


def test_prompts_without_all_rewards_are_left_out_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hafrm.rewards.SimulatedReward", Deaf)
    found = best_of_n(config(tmp_path))
    assert (found.results["prompts"], found.results["unscored"]) == (11, {"overlong": 1})
    one = str(rows(tmp_path / "one.jsonl", 1))
    with pytest.raises(DataError, match="1 overlong"):
        best_of_n(config(tmp_path, samples=one, out=str(tmp_path / "b")))


@pytest.mark.parametrize("trusted", [False, True])
def test_a_local_judge_may_bring_its_own_code_only_where_it_is_trusted(
    trusted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []
    load = local.load_local_judge
    monkeypatch.setattr(local, "load_local_judge", lambda *words, **options: (asked.append(options), load(*words))[1])
    judge = JudgeOptions(kind="local", model=str(save_tiny(tmp_path / "lm", max_position_embeddings=4096)))
    best_of_n(config(tmp_path, judge=judge, trust_remote_code=trusted))
    assert asked == [{"trust_remote_code": trusted}]


def test_mistakes_are_named_before_anything_is_scored(tmp_path: Path) -> None:
    with pytest.raises(UnknownDataError, match="helpfull"):
        best_of_n(config(tmp_path, models=["world/helpfull"]))
    judge = JudgeOptions(kind="openai", model="m", base_url="http://localhost:1/v1")
    odd = tmp_path / "odd.jsonl"
    odd.write_text(json.dumps({"prompt": "a", "responses": ["b", "c"]}))
    with pytest.raises(ConfigError, match=r"ranks four or eight responses, and .*odd.jsonl:1 has 2"):
        best_of_n(config(tmp_path, samples=str(odd), judge=judge))
    with pytest.raises(ConfigError, match="twice"):
        config(tmp_path, models=["m", "m"])
    assert not (tmp_path / "out").exists()


def at_endpoint(endpoint: Endpoint, tmp_path: Path, **more: Any) -> JudgeOptions:
    words: dict[str, Any] = {"model": "judge", "base_url": endpoint.url, "retries": 0, "concurrency": 1}
    return JudgeOptions(kind="openai", cache=str(tmp_path / "replies.sqlite"), **(words | more))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"base_url": "https://api.openai.com/v1"}, "OPENAI_API_KEY has no API key"),
        ({"max_cost": 1.0}, "judge.max_cost needs `judge.prices`"),
        ({"prices": "nowhere.json"}, "judge.prices: nowhere.json can't be read"),
    ],
    ids=["key", "cost", "prices"],
)
def test_what_a_judge_lacks_is_met_before_anything_is_scored(
    more: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(SimulatedReward, "score", lambda *words: pytest.fail("this was scored"))
    judge = at_endpoint(Endpoint(str, url="http://localhost:1/v1"), tmp_path, **more)
    with pytest.raises(ConfigError, match=said):
        best_of_n(config(tmp_path, judge=judge))


def test_rankings_and_comparisons_share_one_budget(tmp_path: Path) -> None:
    with serving() as endpoint:
        found = best_of_n(config(tmp_path, judge=at_endpoint(endpoint, tmp_path, max_requests=13)))
        assert sum(endpoint.asked.values()) == 13
        runs = [found.results["judge_runs"][name]["run"] for name in ("ranking", "comparisons")]
        assert [run["requests_sent"] for run in runs] == [12, 1]
        assert [run["tokens"] for run in runs] == [12 * 110, 110]
        assert [run["stopped"] for run in runs] == [None, "the budget of 13 requests is spent"]


def test_in_another_folder_a_judge_is_asked_nothing_twice(tmp_path: Path) -> None:
    with serving() as endpoint:
        judge = at_endpoint(endpoint, tmp_path)
        one = best_of_n(config(tmp_path, judge=judge))
        asked = dict(endpoint.asked)
        two = best_of_n(config(tmp_path, judge=judge, out=str(tmp_path / "other")))
        assert endpoint.asked == asked
    assert one.prompts == two.prompts


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "a"}, "`responses` is missing"),
        ({"prompt": "a", "responses": []}, "contains 0 responses"),
        ({"prompt": "a", "responses": ["b"], "counts": [0]}, "`counts`"),
        ({"prompt": "a", "responses": ["b"], "counts": [1, 2]}, "`counts`"),
        ({"prompt": "a", "responses": [3]}, r"`responses\[0\]`"),
        ({"responses": ["b"]}, "`prompt` is missing"),
    ],
)
def test_rows_that_break_the_contract(row: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n" + json.dumps({"prompt": "a", "responses": ["b", "", "b"]}) + "\n")
    with pytest.raises(BadRowError, match=said):
        load_candidates(str(path), ReadOptions())
    found = load_candidates(str(path), ReadOptions(on_bad_row="skip"))
    assert [(each.texts, each.counts, each.id) for each in found.rows] == [(("b", ""), (2, 1), f"{path}:2")]
    assert sum(found.left_out.values()) == 1


def test_a_file_without_responses_is_no_choice(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "a", "responses": [], "unsampled": "overlong"}) + "\n")
    with pytest.raises(DataError, match="1 overlong"):
        load_candidates(str(path), ReadOptions())
