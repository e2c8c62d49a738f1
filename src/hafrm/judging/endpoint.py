"""An endpoint of OpenAI's chat API as judge.

Replies are looked up in the cache first and stored there as they arrive. Transient failures (no connection, a timeout,
status 408, 409, 429 or 5xx, a reply that is not a chat completion) are retried after Retry-After or a growing random
wait; questions that still fail are unscored, and the next run asks them again. The run ends early, with the verdicts so
far, when its budget or the account's credit is spent, or when several questions in a row fail. A refusal caused by the
question does not count as such a failure: either its error code says so, or its status is one that questions can cause
(400, 413, 422) and the endpoint has answered another question.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from hafrm.errors import ModelError
from hafrm.http import Client, Response, RetryRule, import_httpx, retry
from hafrm.judging.cache import Reply, ReplyCache, reply_key
from hafrm.judging.judges import Answer, Question, Unscored
from hafrm.judging.options import Budget, JudgeOptions
from hafrm.judging.parsing import parse_reply
from hafrm.judging.prompts import PROMPT_VERSION, judge_messages

_LONGEST_WAIT = 600.0
"""Maximum Retry-After, in seconds; a longer one fails the request."""

_FAILURES_IN_A_ROW = 8
"""Number of consecutive questions that fail despite retries, after which the run ends."""

_OF_THE_QUESTION = ("context_length_exceeded", "content_filter")
"""Error codes of refusals that are specific to a question."""

_MAYBE_OF_THE_QUESTION = (400, 413, 422)
"""Statuses of refusals that may be specific to a question, if the endpoint has answered another one."""

_SAID = 60
"""Maximum characters of an endpoint's error that are quoted."""

_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
"""Fields for reasoning outside the content."""

_PASSING = (408, 409, 429)
_FATAL = {
    401: "refuses the API key (HTTP 401). Check the environment variable {env}",
    403: "forbids the request (HTTP 403). Check the permissions of the key in {env}",
    **dict.fromkeys((301, 302, 303, 307, 308), "redirects to another address: set `--judge.base_url` to it"),
    404: "knows no such model or address (HTTP 404). Check `--judge.model` and `--judge.base_url`",
}


class EndpointJudge:
    """Asks an endpoint, with several questions in flight.

    Raises:
        MissingExtraError: httpx is not installed.
        ConfigError: there is no API key.
    """

    most_responses = 4  # for eight, "a single sorting operation may result in a loss of precision" (Appendix F)
    order_matters = True

    def __init__(self, options: JudgeOptions, cache: ReplyCache, budget: Budget) -> None:
        # Some servers that need no key still want the header.
        self._client = Client(timeout=options.timeout, extra="judge", key=options.api_key() or "none")
        self._url = f"{options.base_url.rstrip('/')}/chat/completions"
        self._rule = RetryRule(attempts=1 + options.retries, timeout=options.timeout, longest_wait=_LONGEST_WAIT)
        self.options, self.cache, self.budget = options, cache, budget
        named = {"temperature": options.temperature, "max_tokens": options.max_reply_tokens}
        self._parameters = {name: value for name, value in named.items() if value is not None}
        self.from_cache = 0
        """Number of questions that the cache answered."""
        self.failed_requests: Counter[str] = Counter()
        """Failed requests by reason, including those that succeeded on a retry."""
        self._lock, self._halted = threading.Lock(), threading.Event()
        self._stopped: str | None = None
        self._before = (budget.requests, budget.tokens, budget.spent)  # spent by earlier runs that share the budget
        self._failures_in_a_row, self._replied = 0, False

    @property
    def account(self) -> dict[str, Any]:
        """The requests, tokens and money of this run."""
        requests, tokens, money = self._before
        return {
            "requests_sent": self.budget.requests - requests,
            "requests_failed": dict(self.failed_requests),
            "from_cache": self.from_cache,
            "tokens": self.budget.tokens - tokens,
            "cost": None if self.budget.cost is None else self.budget.cost - money,
        }

    @property
    def stopped(self) -> str | None:
        """Why the judge has stopped answering; None if it has not."""
        return self._stopped

    def close(self) -> None:
        """Close connections and cache."""
        self._client.close()
        self.cache.close()

    def ask(self, questions: Sequence[Question]) -> list[Answer]:
        """Return one answer per question, in order; equal questions are asked once.

        Raises:
            ModelError: the endpoint refuses the key, or does not know the model.
        """
        messages = [judge_messages(question) for question in questions]
        keys = [self._reply_key(each) for each in messages]
        distinct = {key: (each, len(q.responses)) for key, each, q in zip(keys, messages, questions, strict=True)}
        with ThreadPoolExecutor(self.options.concurrency) as pool:
            futures = {key: pool.submit(self._answer, key, *asked) for key, asked in distinct.items()}
            try:
                answers = {key: future.result() for key, future in futures.items()}
            except BaseException:  # cache the replies of requests in flight, and send no others
                self._stop("it was interrupted")
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return [answers[key] for key in keys]

    def _reply_key(self, messages: Sequence[Mapping[str, str]]) -> str:
        parameters = {**self._parameters, "base_url": self.options.base_url}
        return reply_key(
            model=self.options.model, messages=messages, parameters=parameters, prompt_version=PROMPT_VERSION
        )

    def _answer(self, key: str, messages: list[dict[str, str]], responses: int) -> Answer:
        found: Reply | Unscored | None = self.cache.get(key)
        if found is not None:
            with self._lock:
                self.from_cache += 1
        else:
            found = self._request(messages)
            if isinstance(found, Reply):
                self.cache.put(key, found)
        if isinstance(found, Unscored):
            return Answer(unscored=found)
        answer = parse_reply(found.text, responses, thought=found.thought, finish_reason=found.finish_reason)
        return replace(answer, prompt_tokens=found.prompt_tokens, completion_tokens=found.completion_tokens)

    def _request(self, messages: list[dict[str, str]]) -> Reply | Unscored:
        """Send a request with retries; return the reply, or why there is none."""
        found = retry(lambda: self._send(messages), _wanted_wait, self._rule, self._halted.wait)
        if isinstance(found, Response):
            return self._failed(found)
        if found is None:
            return Unscored.STOPPED
        with self._lock:
            self._failures_in_a_row, self._replied = 0, True
        return found

    def _send(self, messages: list[dict[str, str]]) -> Reply | Response | None:
        """Send a request once; return a response if it failed, and None if the run sends no more requests."""
        if self._stopped is None and (reason := self.budget.take_request()):
            self._stop(reason)
        if self._stopped is not None:
            return None
        response = self._client.post(self._url, {"messages": messages, "model": self.options.model, **self._parameters})
        if 200 <= response.status < 300 and (reply := self._read(response.text, messages)):
            return reply
        with self._lock:
            self.failed_requests[_reason(response).value] += 1
        return response

    def _read(self, body: str, messages: Sequence[Mapping[str, str]]) -> Reply | None:
        """Parse the reply in a body. Its tokens are counted even if it has no text, because they may cost money."""
        reply, *tokens = _read_completion(body, "".join(message["content"] for message in messages))
        self.budget.add_tokens(*tokens)
        return None if reply is None else replace(reply, text=self._client.without_key(reply.text))

    def _failed(self, response: Response) -> Unscored:
        """Classify a failure that retries do not fix. Error messages are not quoted: they may contain the API key.

        Raises:
            ModelError: all other questions would fail too.
        """
        if fatal := _FATAL.get(response.status):
            self._stop("the endpoint refuses it")
            what = fatal.format(env=self.options.api_key_env)
            raise ModelError(f"{self.options.base_url} {what} (model {self.options.model}).")
        reason, error = _reason(response), _error(response)
        if _quota_spent(response):
            self._stop("the account's quota at the endpoint is spent")
        with self._lock:
            known = self._replied and response.status in _MAYBE_OF_THE_QUESTION
            excused = reason is Unscored.BAD_REQUEST and (known or error.get("code") in _OF_THE_QUESTION)
            self._failures_in_a_row += not excused
            failures = self._failures_in_a_row
        if failures >= _FAILURES_IN_A_ROW:
            found = {"HTTP": response.status or None, "code": error.get("code"), "parameter": error.get("param")}
            words = ", ".join(f"{name} {self._cut(value)}" for name, value in found.items() if value is not None)
            said = f" ({words})" if words and reason is not Unscored.BAD_RESPONSE else ""
            self._stop(f"{failures} questions in a row failed, the last with {reason.value}{said}")
        return reason

    def _cut(self, value: object) -> str:
        """Shorten an endpoint's text to one line without the key."""
        return self._client.without_key(" ".join(str(value).split()))[:_SAID]

    def _stop(self, reason: str) -> None:
        with self._lock:
            self._stopped = self._stopped or reason
        self._halted.set()


def require_askable(options: JudgeOptions) -> None:
    """Raise early, before other work, if the endpoint can't be asked.

    Raises:
        MissingExtraError: httpx is not installed.
        ConfigError: there is no API key.
    """
    import_httpx("judge")
    options.api_key()


def _wanted_wait(found: Reply | Response | None) -> float | None:
    """Return the number of seconds until the next attempt; None if there should be none."""
    if not isinstance(found, Response):
        return None
    passing = _reason(found) is not Unscored.BAD_REQUEST and not _quota_spent(found)
    return found.retry_after if passing else None


def _reason(response: Response) -> Unscored:
    if response.trouble:
        return Unscored.TIMEOUT if response.trouble == "timeout" else Unscored.CONNECTION
    if 200 <= response.status < 300:
        return Unscored.BAD_RESPONSE
    if response.status == 429:
        return Unscored.RATE_LIMITED
    passing = response.status >= 500 or response.status in _PASSING
    return Unscored.SERVER_ERROR if passing else Unscored.BAD_REQUEST


def _error(response: Response) -> Mapping[str, Any]:
    """Return the error in a body, `{"error": {"message", "code", "param"}}`; empty if there is none."""
    body = _object(response.text)
    error = body.get("error", body)
    return error if isinstance(error, dict) else {}


def _quota_spent(response: Response) -> bool:
    """Return whether the account has no credit left: HTTP 402, or OpenAI's own code."""
    return response.status == 402 or _error(response).get("code") == "insufficient_quota"


def _read_completion(body: str, asked: str) -> tuple[Reply | None, int, int]:
    """Read a response's body: its reply, if any, and the tokens of the prompt and of the reply.

    Endpoints differ: content is a string, a list of parts, or null; reasoning and refusals may have separate fields
    (`reasoning_content`, `reasoning`, parts of the type `thinking`, `refusal`). `asked` contains the request's texts,
    to estimate tokens if there is no count.
    """
    values = _object(body)
    choice, message = _first_choice(values)
    text, thoughts = _text(message or {}), _thoughts(message or {})
    prompt, completion = _tokens(values, asked, f"{text}{thoughts}")
    if message is None:
        return None, prompt, completion
    reason = choice.get("finish_reason")
    finish_reason = reason if isinstance(reason, str) else None
    return Reply(text, prompt, completion, finish_reason, bool(thoughts.strip())), prompt, completion


def _object(body: str) -> dict[str, Any]:
    """Return a body's JSON object; an empty one if there is none."""
    try:
        values = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _first_choice(values: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any] | None]:
    """Return the first choice and its message; an empty mapping and None if there is none."""
    choices = values.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    return (choice, message) if isinstance(choice, dict) and isinstance(message, dict) else ({}, None)


def _text(message: Mapping[str, Any]) -> str:
    """Return the content as one string, or else the refusal."""
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(part["text"] for part in content if _is_part(part, "text"))
    found = content if isinstance(content, str) and content else message.get("refusal")
    text = found if isinstance(found, str) else ""
    return text.encode(errors="replace").decode()  # JSON can contain lone surrogates, SQLite can't


def _thoughts(message: Mapping[str, Any]) -> str:
    """Return the reasoning outside the content, if it is text."""
    parts = message.get("content")
    apart = [json.dumps(part) for part in parts if _is_part(part, "thinking")] if isinstance(parts, list) else []
    return "".join([*apart, *(value for name in _THOUGHTS if isinstance(value := message.get(name), str))])


def _is_part(part: Any, kind: str) -> bool:
    """Return whether this is a non-empty part of a multi-part content."""
    return isinstance(part, dict) and part.get("type") == kind and (kind != "text" or isinstance(part.get(kind), str))


def _tokens(values: Mapping[str, Any], asked: str, said: str) -> list[int]:
    """Return the tokens of a prompt and of its reply, as counted by the endpoint or else overestimated."""
    usage = values.get("usage")
    counts = usage if isinstance(usage, dict) else {}
    return [
        count
        if type(count := counts.get(name)) is int and 0 <= count < 2**53
        else len(text.encode(errors="replace")) // 3 + 1  # at most one per three bytes
        for name, text in (("prompt_tokens", asked), ("completion_tokens", said))
    ]
