"""`hafrm judge` from rows to results: every kind of judge, every failure, and runs that were cut off."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from hafrm.cli import main
from tests.judging.server import Endpoint, longer_wins, serving
from tests.paths import shared_model
from tests.tiny import save_tiny

KEY = "sk-secret-0123456789"


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def pairs(folder: Path, count: int = 6) -> Path:
    """Pairs of which the first is the only one whose better response is the shorter one."""
    path = folder / "pairs.jsonl"
    rows = [
        {"prompt": f"Question {i}?", "chosen": "yes " * (9 if i else 1), "rejected": "no " * 4} for i in range(count)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def ranked(folder: Path, size: int, count: int = 3) -> Path:
    """Responses of different lengths; the second is the longest, and the third the second longest."""
    path = folder / "rows.jsonl"
    lengths = [3, 9, 8, 2, 7, 6, 5, 4][:size]
    rows = [{"prompt": f"Question {i}?", "responses": ["x" * length for length in lengths]} for i in range(count)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def command(data: Path | str, out: Path, endpoint: Endpoint, *more: str) -> list[str]:
    judge = ["--judge.kind", "openai", "--judge.model", "judge", "--judge.base_url", endpoint.url]
    quick = ["--judge.retries", "0", "--judge.timeout", "5", "--judge.concurrency", "1"]
    return ["judge", str(data), *judge, *quick, "--out", str(out), *more]


def results(out: Path) -> dict[str, Any]:
    return json.loads((out / "results.json").read_text())


def verdicts(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "verdicts.jsonl").read_text().splitlines()]


def printed_row(printed: str, name: str) -> list[str]:
    """Return the cells of a row of the printed table."""
    (line,) = [line for line in printed.splitlines() if line.startswith(f"│ {name} ")]
    return [cell.strip() for cell in line.strip("│").split("│")]


def test_pairs_at_an_endpoint(tmp_path: Path, capfd) -> None:
    out = tmp_path / "out"
    with serving() as endpoint:
        assert main(command(pairs(tmp_path), out, endpoint)) == 0
        printed = capfd.readouterr().out
        assert main(command(pairs(tmp_path), out, endpoint)) == 0
        assert set(endpoint.asked.values()) == {1}
    assert "Agreement with the labels: 83.3 [" in printed
    assert "the longer response: 83.3" in printed
    assert printed_row(printed, "chosen")[2:] == ["5", "0", "1"]
    assert "The two orders disagree on 0.0 [0.0, 0.0] of the pairs" in printed
    assert "Asked 12 questions with 24 responses, 1200 + 120 tokens" in printed
    found = results(out)
    assert found["responses"]["chosen"]["wins"] == 5
    assert found["agreement"]["value"] == pytest.approx(5 / 6)
    assert found["agreement"]["ci95"][0] < 5 / 6
    assert (found["requests"], found["run"]) == (12, {"stopped": None})  # the second run had nothing to do
    assert [verdict["ranks"] for verdict in verdicts(out)] == [[2, 1]] + [[1, 2]] * 5
    for path in out.iterdir():
        assert KEY not in path.read_text()


def test_a_judge_of_places_is_found_out(tmp_path: Path, capfd) -> None:
    """A judge that always says (a) gives only ties, and every pair flips."""
    with serving(reply=lambda user: "Output (a)") as endpoint:
        assert main(command(pairs(tmp_path), tmp_path / "out", endpoint)) == 0
    assert "disagree on 100.0" in capfd.readouterr().out
    found = results(tmp_path / "out")
    assert (found["responses"]["chosen"]["win_rate"], found["responses"]["chosen"]["ties"]) == (0.5, 6)


@pytest.mark.parametrize(("size", "questions"), [(4, 1), (8, 3)])
def test_rankings_at_an_endpoint(size: int, questions: int, tmp_path: Path, capfd) -> None:
    """The order in which responses are shown is drawn; the ranks come back in the row's order."""
    out = tmp_path / "out"
    with serving() as endpoint:
        assert main(command(ranked(tmp_path, size), out, endpoint, "--mode", "rank")) == 0
    expected = [3, 1, 2, 4] if size == 4 else [None, 1, 2, None, None, None, None, None]
    assert [verdict["ranks"] for verdict in verdicts(out)] == [expected] * 3
    found = results(out)
    assert found["responses"]["response 2"]["first"]["value"] == 1
    assert found["responses"]["response 3"]["best_two"]["value"] == 1
    assert (found["requests"], found["responses_shown"]) == (3 * questions, 3 * questions * 4)
    shown = [body["messages"][1]["content"] for body in endpoint.bodies]
    assert len({text.split("Here are the outputs")[1] for text in shown}) > 1
    printed = capfd.readouterr().out
    assert "among the best two" in printed
    assert [cell.partition(" ")[0] for cell in printed_row(printed, "response 3")[1:]] == ["0.0", "100.0"]


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        (429, "rate_limited ("),
        (500, "server_error ("),
        (400, "bad_request ("),
        ("garbage", "bad_response ("),
        ("half", "connection ("),
        ("hang", "timeout ("),
    ],
    ids=str,
)
def test_a_failure_is_one_clear_line_and_asked_again(fault: Any, line: str, tmp_path: Path, capfd) -> None:
    out = tmp_path / "out"
    with serving(faults=[None, None, fault]) as endpoint:
        arguments = command(pairs(tmp_path), out, endpoint, "--judge.timeout", "0.5")
        assert main(arguments) == 0
        printed = capfd.readouterr().out
        assert f"Unscored: 1 {line}" in printed
        assert f"Failed requests: 1 {line}" in printed
        assert (results(out)["judged"], sum(results(out)["unscored"].values())) == (5, 1)
        assert main(arguments) == 0
    assert (results(out)["judged"], results(out)["unscored"]) == (6, {})
    assert sum(endpoint.asked.values()) == 12 + 1  # the failed one again, and no other


def test_replies_that_say_nothing_are_counted(tmp_path: Path, capfd) -> None:
    def mostly(user: str) -> str:
        return "Both are fine." if "Question 3?" in user else longer_wins(user)

    out = tmp_path / "out"
    with serving(reply=mostly) as endpoint:
        for _ in range(2):  # such a reply is kept, because asking again would give the same one
            assert main(command(pairs(tmp_path), out, endpoint)) == 0
            printed = capfd.readouterr().out
            assert "Not scored: 1 of 6 rows (16.7 %)" in printed
            assert "Unscored: 1 no_choice" in printed
            assert "Both are fine." in printed
        assert set(endpoint.asked.values()) == {1}
    assert results(out)["judged"] == 5


@pytest.mark.parametrize(
    ("mode", "reply", "said"),
    [
        ("pair", "\x1b[2JWhat?\nNo " + "x" * 5000, ["no_choice", r"\x1b[2JWhat?\nNo xx"]),
        ("rank", "model_1 is best", ["not_json", "model_1 is best"]),
        ("pair", "<think>So", ["only_thinking", "judge.max_reply_tokens", "<think>So"]),
    ],
)
def test_a_run_without_a_verdict_fails_and_shows_a_reply(
    mode: str, reply: str, said: list[str], tmp_path: Path, capfd
) -> None:
    """The error is one bounded line without control characters, and does not restrict later runs in the folder."""
    data, out = pairs(tmp_path) if mode == "pair" else ranked(tmp_path, 4), tmp_path / "out"
    with serving(reply=lambda user: reply) as endpoint:
        assert main(command(data, out, endpoint, "--mode", mode)) == 2
        captured = capfd.readouterr()
        (line,) = [line for line in captured.err.splitlines() if line.startswith("hafrm judge:")]
        assert all(word in line for word in said)
        assert f"{results(out)['rows']} rows" in line
        assert len(line) < 1000
        assert "100.0 %" in captured.out
        assert "\x1b[2J" not in captured.out + captured.err
        endpoint.reply = longer_wins
        assert main(command(data, out, endpoint, "--mode", mode, "--judge.max_reply_tokens", "512")) == 0


def test_a_run_that_may_ask_nothing_fails(tmp_path: Path, capfd) -> None:
    with serving() as endpoint:
        assert main(command(pairs(tmp_path), tmp_path / "out", endpoint, "--judge.max_requests", "0")) == 2
    assert "budget of 0 requests" in capfd.readouterr().err


@pytest.mark.parametrize("kind", ["local", "reward"])
def test_a_model_in_this_process_that_scores_nothing_fails(kind: str, tmp_path: Path, capfd) -> None:
    """All texts are too long; the share and the reason are reported as for an endpoint."""
    model = str(save_tiny(tmp_path / "model"))
    options = ["--judge.kind", kind, "--judge.model", model, "--score.max_length", "4"]
    options += ["--head", "policy", "--reference", model, "--score.overlong", "drop"] if kind == "reward" else []
    assert main(["judge", str(pairs(tmp_path)), *options, "--out", str(tmp_path / "out")]) == 2
    captured = capfd.readouterr()
    assert "6 overlong" in captured.err
    assert "6 of 6 rows (100.0 %)" in captured.out


def test_a_budget_stops_a_run_and_the_next_goes_on(tmp_path: Path, capfd) -> None:
    out, prices = tmp_path / "out", tmp_path / "prices.json"
    prices.write_text('{"judge": {"prompt": 5, "completion": 50}}')
    with serving() as endpoint:
        arguments = command(pairs(tmp_path), out, endpoint, "--judge.prices", str(prices))
        assert main([*arguments, "--judge.max_requests", "5"]) == 0
        printed = capfd.readouterr().out
        assert "Stopped: the budget of 5 requests is spent; 4 rows were not judged" in printed
        assert "5 requests, 0 replies from the cache, cost 0.0050" in printed
        assert (results(out)["judged"], results(out)["not_asked"]) == (2, 4)
        assert main([*arguments, "--judge.max_cost", "1"]) == 0
        captured = capfd.readouterr()
        assert "resumes with the others" in captured.err
        assert "7 requests, 1 replies from the cache, cost 0.0070" in captured.out
        assert set(endpoint.asked.values()) == {1}
    assert (results(out)["judged"], results(out)["not_asked"], results(out)["requests"]) == (6, 0, 12)


def test_the_share_without_a_verdict_is_of_the_rows_that_were_asked(tmp_path: Path, capfd) -> None:
    """Five requests are enough for two of six rows; one of them has no readable reply."""

    def mostly(user: str) -> str:
        return "Both are fine." if "Question 1?" in user else longer_wins(user)

    with serving(reply=mostly) as endpoint:
        assert main(command(pairs(tmp_path), tmp_path / "out", endpoint, "--judge.max_requests", "5")) == 0
    printed = capfd.readouterr().out
    assert "1 of 2 rows (50.0 %)" in printed
    assert "4 rows were not judged" in printed


BY_HAND = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); from hafrm.cli import main; "


@pytest.mark.slow
@pytest.mark.parametrize(("stop", "lost"), [(signal.SIGKILL, 2), (signal.SIGINT, 0)], ids=["kill", "Ctrl-C"])
def test_kill_and_resume_asks_nothing_twice(stop: signal.Signals, lost: int, tmp_path: Path) -> None:
    """A killed process loses requests in flight, but no reply that has arrived; Ctrl-C loses nothing."""
    data, out, cache = pairs(tmp_path, 20), tmp_path / "out", tmp_path / "replies.sqlite"
    with serving(delay=0.1) as endpoint:
        arguments = command(data, out, endpoint, "--judge.cache", str(cache), "--judge.concurrency", "2")
        code = f"{BY_HAND} sys.exit(main(sys.argv[1:]))"
        process = subprocess.Popen([sys.executable, "-c", code, *arguments], stderr=subprocess.PIPE, text=True)
        end = time.monotonic() + 120
        while sum(endpoint.replied.values()) < 9 and time.monotonic() < end:
            time.sleep(0.01)
        process.send_signal(stop)
        _, error = process.communicate()
        assert process.returncode == (-stop if stop is signal.SIGKILL else 130)
        assert ("asks nothing that was answered" in error) == (stop is signal.SIGINT)
        time.sleep(0.3)
        before = sum(endpoint.asked.values())
        assert 9 <= before < 40
        endpoint.delay = 0
        assert main(arguments) == 0
    assert sum(endpoint.asked.values()) <= 40 + lost
    assert len(endpoint.asked) == 40
    assert results(out)["judged"] == 20
    assert results(out)["run"]["from_cache"] >= before - lost


def test_verdicts_are_taken_up_where_they_end(tmp_path: Path, capfd) -> None:
    """A run also resumes after a kill in the middle of a line; verdicts of another kind are refused."""
    out = tmp_path / "out"
    with serving() as endpoint:
        arguments = command(pairs(tmp_path), out, endpoint, "--judge.cache")
        assert main([*arguments, str(tmp_path / "one.sqlite")]) == 0
        whole = (out / "verdicts.jsonl").read_bytes()
        (out / "verdicts.jsonl").write_bytes(whole[: len(whole) // 2])
        assert main([*arguments, str(tmp_path / "two.sqlite")]) == 0
        assert (out / "verdicts.jsonl").read_bytes() == whole
        assert 0 < results(out)["run"]["requests_sent"] < 12
        capfd.readouterr()
        for more, said in (
            (["--seed", "1"], "seed"),
            (["--judge.temperature", "1"], "settings: judge"),
            (["--mode", "rank"], "responses"),
        ):
            assert main([*arguments, str(tmp_path / "one.sqlite"), *more]) == 2
            assert said in capfd.readouterr().err
        pairs(tmp_path, 7)
        assert main([*arguments, str(tmp_path / "one.sqlite")]) == 2
        assert "set of rows" in capfd.readouterr().err
        (out / "judge.json").write_text("{")
        assert main([*arguments, str(tmp_path / "one.sqlite")]) == 2
        assert "damaged" in capfd.readouterr().err


def test_the_oracle_on_its_own_world(tmp_path: Path, capfd) -> None:
    out = tmp_path / "out"
    arguments = ["judge", "world/helpful[:60]", "--judge.kind", "oracle", "--judge.model", "helpful", "--out", str(out)]
    assert main(arguments) == 0
    found = results(out)
    assert found["agreement"]["value"] > 0.6  # its annotators err
    assert found["flip_rate"] is None
    assert found["requests"] == 60
    assert "Agreement with the labels" in capfd.readouterr().out


@pytest.mark.parametrize("mode", ["pair", "rank"])
def test_a_reward_model_as_judge(mode: str, tmp_path: Path) -> None:
    """A reward model as judge agrees with its own rewards, and ranks all eight."""
    run, out = tmp_path / "run", tmp_path / "out"
    data, model = pairs(tmp_path, 12), str(shared_model("stories260k"))
    steps = ["--training.max_steps", "1", "--training.report_to", "[]"]
    assert (
        main(["train", "--model", model, "--data", str(data), "--eval_data", str(data), "--out", str(run), *steps]) == 0
    )
    judge = ["--judge.kind", "reward", "--judge.model", str(run), "--mode", mode, "--out", str(out)]
    assert main(["judge", str(data if mode == "pair" else ranked(tmp_path, 8)), *judge]) == 0
    if mode == "rank":
        assert sorted(verdicts(out)[0]["ranks"]) == list(range(1, 9))
        return
    assert main(["score", str(run), "--data", str(data), "--out", str(tmp_path / "scored.jsonl")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "scored.jsonl").read_text().splitlines()]
    assert [v["ranks"] for v in verdicts(out)] == [
        [1, 2] if row["reward_chosen"] > row["reward_rejected"] else [2, 1] for row in rows
    ]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--judge.kind", "oracle", "--judge.model", "helpfull"], "helpfull"),
        (["--judge.kind", "reward", "--judge.model", "nowhere"], "nowhere"),
        (["--judge.kind", "local", "--judge.model", "nowhere"], "nowhere"),
        (["--judge.kind", "local", "--judge.model", "nowhere", "--mode", "rank"], "--mode pair"),
        (["--judge.kind", "openai", "--judge.model", "gpt", "--judge.api_key_env", "NO_SUCH_KEY"], "NO_SUCH_KEY"),
        (["--judge.kind", "reward", "--judge.model", "m", "--judge.max_requests", "3"], "judge.max_requests"),
    ],
    ids=lambda value: value[3] if isinstance(value, list) else value,
)
def test_mistakes_are_one_clear_line(more: list[str], said: str, tmp_path: Path, capfd) -> None:
    assert main(["judge", str(pairs(tmp_path)), "--out", str(tmp_path / "out"), *more]) == 2
    error = capfd.readouterr().err
    assert said in error
    assert "Traceback" not in error


def test_a_damaged_cache_is_one_clear_line(tmp_path: Path, capfd) -> None:
    cache = tmp_path / "replies.sqlite"
    cache.write_text("no database " * 1000)
    with serving() as endpoint:
        assert main(command(pairs(tmp_path), tmp_path / "out", endpoint, "--judge.cache", str(cache))) == 2
    assert "judge.cache" in capfd.readouterr().err
