"""The judge at an endpoint, against a local server: what it sends, what it keeps, and every way to fail."""

from __future__ import annotations

import json
import sys
import time
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from hafrm.errors import ConfigError, MissingExtraError, ModelError
from hafrm.judging.cache import ReplyCache
from hafrm.judging.endpoint import EndpointJudge
from hafrm.judging.judges import Answer, Question, Unscored
from hafrm.judging.options import Budget, JudgeOptions, Prices
from hafrm.pairs import Message, Prompt
from tests.judging.server import Endpoint, serving

KEY = "sk-secret-0123456789"


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def question(first: str = "long answer", second: str = "short") -> Question:
    return Question(Prompt.of("Which?"), tuple((Message("assistant", text),) for text in (first, second)))


def some(count: int) -> list[Question]:
    return [question("x" * (i + 2)) for i in range(count)]


def ask(
    endpoint: Endpoint, folder: Path, questions: list[Question], budget: Budget | None = None, **options: Any
) -> tuple[list[Answer], EndpointJudge]:
    options = {"retries": 1, "timeout": 5.0, "concurrency": 1} | options
    judge = EndpointJudge(
        JudgeOptions(kind="openai", model="judge", base_url=endpoint.url, **options),
        ReplyCache(folder / "replies.sqlite"),
        budget or Budget(),
    )
    try:
        return judge.ask(questions), judge
    finally:
        judge.close()


def test_what_is_sent_and_found(tmp_path: Path) -> None:
    with serving() as endpoint:
        (answer,), judge = ask(endpoint, tmp_path, [question()])
    assert answer == Answer(ranks=(1, 2), prompt_tokens=100, completion_tokens=10)
    (body,) = endpoint.bodies
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("judge", 0.0, 256)
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    assert endpoint.headers[0]["authorization"] == f"Bearer {KEY}"
    assert judge.budget.tokens == 110


def test_parameters_can_be_left_out(tmp_path: Path) -> None:
    with serving() as endpoint:
        ask(endpoint, tmp_path, [question()], temperature=None, max_reply_tokens=None)
    assert {"temperature", "max_tokens"}.isdisjoint(endpoint.bodies[0])


def test_nothing_is_asked_twice(tmp_path: Path) -> None:
    questions = [*some(3), *some(3)]
    with serving() as endpoint:
        first, _ = ask(endpoint, tmp_path, questions)
        again, judge = ask(endpoint, tmp_path, questions)
        assert first == again
        assert set(endpoint.asked.values()) == {1}
        assert (judge.from_cache, judge.budget.requests) == (3, 0)
        ask(endpoint, tmp_path, questions, temperature=1.0)  # another parameter, another reply
        assert set(endpoint.asked.values()) == {2}


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ((429, {"retry-after": "0"}), Unscored.RATE_LIMITED),
        (500, Unscored.SERVER_ERROR),
        (503, Unscored.SERVER_ERROR),
        ("garbage", Unscored.BAD_RESPONSE),
        ("shape", Unscored.BAD_RESPONSE),
        ("half", Unscored.CONNECTION),
        ("hang", Unscored.TIMEOUT),
    ],
    ids=str,
)
def test_what_may_pass_is_sent_again(fault: Any, reason: Unscored, tmp_path: Path) -> None:
    """A single failure is retried; a lasting one is unscored, not cached, and asked again by the next run."""
    with serving(faults=[fault]) as endpoint:
        (answer,), judge = ask(endpoint, tmp_path, [question()], timeout=0.5)
    assert answer.ranks == (1, 2)
    assert judge.failed_requests == {reason: 1}
    with serving(always=fault) as endpoint:
        (answer,), judge = ask(endpoint, tmp_path / "other", [question()], timeout=0.5)
        assert answer.unscored is reason
        assert judge.failed_requests == {reason: 2}
        endpoint.always = None
        (answer,), _ = ask(endpoint, tmp_path / "other", [question()])
    assert answer.ranks == (1, 2)


def test_no_server_is_no_connection(tmp_path: Path) -> None:
    with serving() as endpoint:
        pass
    (answer,), _ = ask(endpoint, tmp_path, [question()])
    assert answer.unscored is Unscored.CONNECTION


def test_a_refused_request_is_not_sent_again(tmp_path: Path) -> None:
    with serving(faults=[400]) as endpoint:
        answers, judge = ask(endpoint, tmp_path, some(2))
    assert [answer.unscored for answer in answers] == [Unscored.BAD_REQUEST, None]
    assert sum(endpoint.asked.values()) == 2
    assert judge.stopped is None


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_honoured(form: str, tmp_path: Path) -> None:
    told = "1" if form == "seconds" else formatdate(time.time() + 3, usegmt=True)
    with serving(faults=[(429, {"retry-after": told})]) as endpoint:
        (answer,), _ = ask(endpoint, tmp_path, [question()])
    assert answer.ranks == (1, 2)
    waited = endpoint.times[1] - endpoint.times[0]
    assert waited >= (1.0 if form == "seconds" else 0.9)
    assert waited < 10


def test_a_wait_without_end_is_a_failure(tmp_path: Path) -> None:
    with serving(faults=[(429, {"retry-after": "86400"})]) as endpoint:
        (answer,), _ = ask(endpoint, tmp_path, [question()], retries=5)
    assert answer.unscored is Unscored.RATE_LIMITED
    assert sum(endpoint.asked.values()) == 1


@pytest.mark.parametrize(("status", "said"), [(401, "OPENAI_API_KEY"), (403, "OPENAI_API_KEY"), (404, "judge.model")])
def test_what_no_question_can_pass_ends_the_run(status: int, said: str, tmp_path: Path) -> None:
    """The key, which this server repeats in its error, is not in hafrm's error."""
    with serving(always=status) as endpoint, pytest.raises(ModelError, match=said) as error:
        ask(endpoint, tmp_path, some(20))
    assert KEY not in str(error.value)
    assert error.value.__cause__ is None
    assert sum(endpoint.asked.values()) < 20


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ((429, {"error": {"code": "insufficient_quota"}}), Unscored.RATE_LIMITED),
        (402, Unscored.BAD_REQUEST),
    ],
    ids=["code", "402"],
)
def test_an_empty_account_ends_the_run(fault: Any, reason: Unscored, tmp_path: Path) -> None:
    """This includes a partial reply."""
    with serving(faults=[None, fault]) as endpoint:
        answers, judge = ask(endpoint, tmp_path, some(4))
    assert [answer.unscored for answer in answers] == [None, reason, Unscored.STOPPED, Unscored.STOPPED]
    assert "quota" in (judge.stopped or "")


def test_failures_without_end_end_the_run(tmp_path: Path) -> None:
    with serving(always=500) as endpoint:
        answers, judge = ask(endpoint, tmp_path, some(20), retries=0)
    reasons = [answer.unscored for answer in answers]
    assert reasons == [Unscored.SERVER_ERROR] * 8 + [Unscored.STOPPED] * 12
    assert judge.stopped == "8 questions in a row failed, the last with server_error (HTTP 500)"


def refusal(**error: Any) -> tuple[int, dict[str, Any]]:
    return (400, {"error": error})


def test_an_endpoint_that_refuses_all_ends_the_run_and_says_why(tmp_path: Path) -> None:
    """The error is one line without the key, even if the endpoint's error code contains the key or a long text."""
    with serving(faults=[refusal(code="unsupported_parameter", param="max_tokens") for _ in range(20)]) as endpoint:
        answers, judge = ask(endpoint, tmp_path, some(20))
    assert [answer.unscored for answer in answers] == [Unscored.BAD_REQUEST] * 8 + [Unscored.STOPPED] * 12
    said = "(HTTP 400, code unsupported_parameter, parameter max_tokens)"
    assert judge.stopped == f"8 questions in a row failed, the last with bad_request {said}"
    with serving(faults=[refusal(code=f"{KEY}\n{KEY}", param="long " * 99) for _ in range(20)]) as endpoint:
        _, judge = ask(endpoint, tmp_path, some(20))
    assert "code [API key] [API key], parameter long long" in (judge.stopped or "")
    assert len(judge.stopped or "") < 250


def test_refusals_of_questions_do_not_end_the_run(tmp_path: Path) -> None:
    """Refusals that say so don't count from the start, others once the endpoint has answered a question."""
    overlong = [refusal(code="context_length_exceeded") for _ in range(9)]
    with serving(faults=[*overlong, None, *[400] * 9]) as endpoint:
        answers, judge = ask(endpoint, tmp_path, some(20))
    assert [answer.unscored for answer in answers] == ([Unscored.BAD_REQUEST] * 9 + [None]) * 2
    assert judge.stopped is None


@pytest.mark.parametrize(("status", "asked"), [(413, 20), (422, 20), (405, 9), (410, 9)])
def test_a_reply_excuses_what_a_question_can_bring_about_alone(status: int, asked: int, tmp_path: Path) -> None:
    """Any other refusal concerns the endpoint: several in a row end the run, whatever it answered before."""
    with serving(faults=[None, *[status] * 19]) as endpoint:
        answers, judge = ask(endpoint, tmp_path, some(20))
    reasons = [answer.unscored for answer in answers]
    assert reasons == [None] + [Unscored.BAD_REQUEST] * (asked - 1) + [Unscored.STOPPED] * (20 - asked)
    assert judge.stopped == (
        None if asked == 20 else f"8 questions in a row failed, the last with bad_request (HTTP {status})"
    )


def test_failures_here_and_there_do_not(tmp_path: Path) -> None:
    with serving(faults=[500, None] * 10) as endpoint:
        answers, judge = ask(endpoint, tmp_path, some(20), retries=0)
    assert [answer.unscored for answer in answers] == [Unscored.SERVER_ERROR, None] * 10
    assert judge.stopped is None


@pytest.mark.parametrize(
    ("budget", "asked", "said"),
    [
        (Budget(requests=3), 3, "3 requests"),
        (Budget(requests=0), 0, "0 requests"),
        (Budget(tokens=300), 3, "300 tokens"),
        (Budget(money=0.0025, prices=Prices(5, 50)), 3, "0.0025 of cost"),
    ],
    ids=["requests", "nothing", "tokens", "money"],
)
def test_budgets(budget: Budget, asked: int, said: str, tmp_path: Path) -> None:
    """Each question takes 100 and 10 tokens: 110, or a cost of 0.001."""
    with serving() as endpoint:
        answers, judge = ask(endpoint, tmp_path, some(5), budget)
        assert [answer.unscored for answer in answers] == [None] * asked + [Unscored.STOPPED] * (5 - asked)
        assert said in (judge.stopped or "")
        assert sum(endpoint.asked.values()) == asked
        ask(endpoint, tmp_path, some(5))
    assert set(endpoint.asked.values()) == {1}


def test_retries_count_as_requests(tmp_path: Path) -> None:
    with serving(always=(429, {"retry-after": "0"})) as endpoint:
        (answer,), judge = ask(endpoint, tmp_path, [question()], Budget(requests=2), retries=9)
    assert answer.unscored is Unscored.STOPPED
    assert judge.budget.requests == sum(endpoint.asked.values()) == 2


def test_an_endpoint_without_counts_spends_all_the_same(tmp_path: Path) -> None:
    with serving(usage=False) as endpoint:
        (answer,), judge = ask(endpoint, tmp_path, [question()])
    sent = sum(len(message["content"]) for message in endpoint.bodies[0]["messages"])
    assert sent / 4 < answer.prompt_tokens < sent / 2
    assert judge.budget.tokens == answer.prompt_tokens + answer.completion_tokens


@pytest.mark.parametrize("told", [True, False])
def test_what_holds_no_choice_spends_all_the_same(told: bool, tmp_path: Path) -> None:
    """A filtered or broken reply may cost money, so its tokens are counted or estimated."""
    usage = {"usage": {"prompt_tokens": 100, "completion_tokens": 10}} if told else {}
    with serving(always=("body", {"choices": []} | usage)) as endpoint:
        answers, judge = ask(endpoint, tmp_path, some(5), Budget(tokens=200), retries=0)
    sent = [sum(len(message["content"]) for message in body["messages"]) for body in endpoint.bodies]
    assert answers[0].unscored is Unscored.BAD_RESPONSE
    assert answers[-1].unscored is Unscored.STOPPED
    assert judge.budget.tokens == 220 if told else sum(sent) / 4 < judge.budget.tokens < sum(sent) / 2
    assert "tokens is spent" in (judge.stopped or "")


def test_what_is_in_the_cache_is_not_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as endpoint:
        first, _ = ask(endpoint, tmp_path, [question()])
        monkeypatch.delattr(ReplyCache, "put")
        assert ask(endpoint, tmp_path, [question()])[0] == first


@pytest.mark.parametrize("concurrency", [1, 3])
def test_so_many_requests_are_in_flight_and_no_more(concurrency: int, tmp_path: Path) -> None:
    with serving(delay=0.1) as endpoint:
        answers, _ = ask(endpoint, tmp_path, some(9), concurrency=concurrency)
    assert endpoint.most_running == concurrency
    assert all(answer.ranks for answer in answers)


def test_the_key_is_nowhere(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The key stays secret even if a server returns it in its reply."""
    caplog.set_level("DEBUG")
    with serving(reply=lambda user: "{KEY}") as endpoint:
        (answer,), judge = ask(endpoint, tmp_path, [question()])
    assert answer.unscored is Unscored.NO_CHOICE
    assert judge.budget.requests == 1
    for path in tmp_path.iterdir():
        assert KEY.encode() not in path.read_bytes()
    assert KEY not in caplog.text
    assert KEY not in repr(judge.options)


def test_a_key_of_another_name_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "other")
    monkeypatch.delenv("OPENAI_API_KEY")
    with serving() as endpoint:
        ask(endpoint, tmp_path, [question()], api_key_env="MY_KEY")
        ask(endpoint, tmp_path / "other", [question()])  # your own endpoint may need none
    assert [headers["authorization"] for headers in endpoint.headers] == ["Bearer other", "Bearer none"]
    with pytest.raises(ConfigError, match="OPENAI_API_KEY"):
        JudgeOptions(kind="openai", model="gpt").api_key()


def test_a_short_key_is_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Your own servers may get any placeholder key; replies are not changed because of it."""
    monkeypatch.setenv("OPENAI_API_KEY", "a\n")
    with serving() as endpoint:
        (answer,), _ = ask(endpoint, tmp_path, [question()])
    assert answer.ranks == (1, 2)
    assert endpoint.headers[0]["authorization"] == "Bearer a"


def test_a_key_that_is_none_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-\u201csecret")
    with pytest.raises(ConfigError, match="OPENAI_API_KEY") as error:
        JudgeOptions(kind="openai", model="gpt").api_key()
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    "reply", ["\ud800", "\x00", "", "Output (a)" * 10_000], ids=["surrogate", "nul", "empty", "long"]
)
def test_no_reply_breaks_the_cache(reply: str, tmp_path: Path) -> None:
    with serving(reply=lambda user: reply) as endpoint:
        first, _ = ask(endpoint, tmp_path, [question()])
        again, _ = ask(endpoint, tmp_path, [question()])
    assert first == again
    assert first[0].unscored is (Unscored.NO_CHOICE if reply else Unscored.EMPTY_REPLY)
    assert sum(endpoint.asked.values()) == 1


@pytest.mark.parametrize("part", ["# Task:", "## Which"])
def test_a_judge_that_repeats_the_question_says_nothing(part: str, tmp_path: Path) -> None:
    with serving(reply=lambda user: user[user.rindex(part) :]) as endpoint:
        (answer,), _ = ask(endpoint, tmp_path, [question()])
    assert answer.unscored is Unscored.AMBIGUOUS


def body(reason: str = "stop", **message: Any) -> tuple[str, dict[str, Any]]:
    """Build a response with this message and finish reason."""
    choice = {"index": 0, "finish_reason": reason, "message": {"role": "assistant", **message}}
    return ("body", {"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 4}})


@pytest.mark.parametrize(
    ("answered", "found"),
    [
        (body(content=None, reasoning_content="Output (b)", reason="length"), Unscored.CUT_OFF),
        (body(content=None, reason="length"), Unscored.CUT_OFF),
        (body(content="", reasoning="Output (b)"), Unscored.ONLY_THINKING),
        (body(content=None), Unscored.EMPTY_REPLY),
        (body(), Unscored.EMPTY_REPLY),
        (body(content=None, refusal="I'm sorry, but I can't judge this."), Unscored.REFUSAL),
        (body(content="", reason="content_filter"), Unscored.FILTERED),
        (body(content="Output (a)", reasoning_content="Output (b) is better."), (1, 2)),
        (body(content="Output (a)", refusal=None, reasoning=None), (1, 2)),
        (body(content=[{"type": "text", "text": "Output "}, {"type": "text", "text": "(a)"}]), (1, 2)),
        (
            body(content=[{"type": "thinking", "thinking": [{"text": "Output (b)"}]}, {"type": "text", "text": "(a)"}]),
            (1, 2),
        ),
        (body(content=[{"type": "thinking", "thinking": "Output (b)"}]), Unscored.ONLY_THINKING),
        (body(content=7, reason=7), Unscored.EMPTY_REPLY),  # type: ignore[arg-type]
    ],
    ids=str,
)
def test_messages_of_all_forms(answered: Any, found: Any, tmp_path: Path) -> None:
    """The cache also keeps why the reply ended and whether there was reasoning, on which the verdict depends."""
    with serving(always=answered) as endpoint:
        (first,), _ = ask(endpoint, tmp_path, [question()])
        (again,), judge = ask(endpoint, tmp_path, [question()])
    assert (first.ranks or first.unscored) == found
    assert (first, judge.from_cache) == (again, 1)
    assert (first.prompt_tokens, first.completion_tokens) == (3, 4)


def test_a_reply_of_another_address_is_another_reply(tmp_path: Path) -> None:
    """Two endpoints may serve different models under one name."""
    with serving() as one, serving(reply=lambda user: "Output (b)") as two:
        (first,), _ = ask(one, tmp_path, [question()])
        (second,), judge = ask(two, tmp_path, [question()])
        assert (sum(one.asked.values()), sum(two.asked.values())) == (1, 1)
        assert one.bodies == two.bodies
        assert (first.ranks, second.ranks, judge.from_cache) == ((1, 2), (2, 1), 0)
        (again,), judge = ask(one, tmp_path, [question()])
        assert (again.ranks, judge.from_cache) == ((1, 2), 1)


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx", None)
    cache = ReplyCache(tmp_path / "replies.sqlite")
    with pytest.raises(MissingExtraError, match=r"httpx.*hafrm\[judge\]"):
        EndpointJudge(JudgeOptions(kind="openai", model="judge", base_url="http://localhost/v1"), cache, Budget())
    cache.close()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"base_url": "http://user:secret@host/v1"}, "no user"),
        ({"base_url": "http://host/v1?key=secret"}, "no user"),
        ({"base_url": "http://host/v1;sk-secret"}, "no user"),
        ({"base_url": "http://ho\nst/v1"}, "address"),
        ({"base_url": "http://host\t/v1"}, "address"),
        ({"base_url": "http://host /v1"}, "address"),
        ({"base_url": "http:\\\\user:secret@host/v1"}, "address"),
        ({"base_url": "localhost:8000"}, "address"),
        ({"base_url": "http://host:99999/v1"}, "address"),
        ({"base_url": "http://[host/v1"}, "address"),
        ({"concurrency": 0}, "concurrency"),
        ({"timeout": 0}, "timeout"),
        ({"retries": -1}, "retries"),
        ({"max_reply_tokens": 0}, "max_reply_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"kind": "reward", "temperature": 1.0}, "temperature"),
    ],
    ids=str,
)
def test_options_that_can_not_work(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as error:
        JudgeOptions(**({"kind": "openai", "model": "judge"} | options))
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "can't be read"),
        ("{}", "no 'judge'"),
        ('{"judge": {"prompt": 1}}', "'completion'"),
        ('{"judge": {"prompt": 1, "completion": -1}}', "at least 0"),
        ('{"judge": {"prompt": 1, "completion": NaN}}', "at least 0"),
    ],
)
def test_prices_that_are_none(content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "prices.json").write_text(content)
    with pytest.raises(ConfigError, match=said):
        Prices.load(str(tmp_path / "prices.json"), "judge")


def test_prices_are_for_a_million_tokens(tmp_path: Path) -> None:
    (tmp_path / "prices.json").write_text(json.dumps({"judge": {"prompt": 2, "completion": 10}}))
    assert Prices.load(str(tmp_path / "prices.json"), "judge").of(1_000_000, 500_000) == 7
    with pytest.raises(ConfigError, match="prices"):
        Budget(money=1.0)
