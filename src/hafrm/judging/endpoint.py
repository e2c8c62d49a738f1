"""An endpoint of OpenAI's chat API as judge.

Replies are looked up in the cache first and stored there as they arrive. Transient failures (no connection, a timeout,
status 408, 409, 429 or 5xx, a reply that is not a chat completion) are retried after Retry-After or a growing random
wait; questions that still fail are unscored, and the next run asks them again. The run ends early, with the verdicts so
far, when its budget or the account's credit is spent, or when several questions in a row fail. A refused request does
not count as such a failure if the question is at fault: the error code says so, or the status is one that questions can
cause (400, 413, 422) and an earlier reply has shown that the endpoint accepts requests of this form.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from hafrm.errors import MissingExtraError, ModelError
from hafrm.http import bounded_client, bounded_time
from hafrm.judging.budget import Budget
from hafrm.judging.cache import Reply, ReplyCache, reply_key
from hafrm.judging.completions import read_completion
from hafrm.judging.judges import Answer, Question, Unscored
from hafrm.judging.options import JudgeOptions
from hafrm.judging.parsing import parse_reply
from hafrm.judging.prompts import PROMPT_VERSION, judge_messages
from hafrm.models.remote import seconds_to_wait

_LONGEST_WAIT = 600.0
"""Maximum Retry-After, in seconds; a longer one fails the request."""

_FAILURES_IN_A_ROW = 8
"""The number of consecutive questions that fail despite retries after which the run ends."""

_SECRET_LENGTH = 8
"""Minimum length of a key that is treated as a secret; local servers are given `none`, `EMPTY` or `x`."""

_OF_THE_QUESTION = ("context_length_exceeded", "content_filter")
"""Error codes of refusals that are specific to a question."""

_MAYBE_OF_THE_QUESTION = (400, 413, 422)
"""Statuses of refusals that may be specific to a question, if the endpoint has answered another one."""

_SAID = 60
"""Maximum characters of an endpoint's error that are quoted."""

_PASSING = (408, 409, 429)
_FATAL = {
    401: "refuses the API key (HTTP 401). Check the environment variable {env}",
    403: "forbids the request (HTTP 403). Check what the key in {env} may do",
    **dict.fromkeys(
        (301, 302, 303, 307, 308), "sends requests on to another address: give that one as `--judge.base_url`"
    ),
    404: "knows no such model or address (HTTP 404). Check `--judge.model` and `--judge.base_url`",
}


class _StoppedError(Exception):
    """The run sends no more requests."""


class _TooSlowError(Exception):
    """A reply that comes too slowly to wait for its end."""


class _BadResponseError(Exception):
    """A reply with status 200 that is not a chat completion."""


class EndpointJudge:
    """Asks an endpoint, with several questions in flight.

    Args:
        options: The endpoint, and how to ask it.
        cache: Replies that were paid for.
        budget: The limits of this run.

    Raises:
        MissingExtraError: openai or tenacity is not installed.
        ConfigError: there is no API key.
    """

    most_responses = 4  # for eight, "a single sorting operation may result in a loss of precision" (Appendix F)
    order_matters = True

    def __init__(self, options: JudgeOptions, cache: ReplyCache, budget: Budget) -> None:
        self._openai, self._tenacity = _libraries()
        self.options, self.cache, self.budget = options, cache, budget
        self._key = options.api_key()
        self._client: Any = self._openai.OpenAI(
            api_key=self._key or "none",
            base_url=options.base_url,
            timeout=options.timeout,
            max_retries=0,
            http_client=bounded_client(timeout=options.timeout, extra="judge"),
        )
        named = {"temperature": options.temperature, "max_tokens": options.max_reply_tokens}
        self._parameters = {name: value for name, value in named.items() if value is not None}
        self.from_cache = 0
        self.failed_requests: Counter[str] = Counter()
        """Failed requests by reason, including those that succeeded on a retry."""
        self._lock, self._halted = threading.Lock(), threading.Event()
        self._stopped: str | None = None
        self._failures_in_a_row, self._replied = 0, False

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
        return parse_reply(
            found.text,
            responses,
            thought=found.thought,
            finish_reason=found.finish_reason,
            prompt_tokens=found.prompt_tokens,
            completion_tokens=found.completion_tokens,
        )

    def _request(self, messages: list[dict[str, str]]) -> Reply | Unscored:
        """Return a reply, or why there is none after all retries."""
        retrying = self._tenacity.Retrying(
            retry=self._tenacity.retry_if_exception(self._may_pass),
            wait=self._wait,
            stop=self._tenacity.stop_after_attempt(1 + self.options.retries),
            sleep=self._halted.wait,
            reraise=True,
        )
        try:
            reply: Reply = retrying(self._send, messages)
        except _StoppedError:
            return Unscored.STOPPED
        except (self._openai.OpenAIError, _BadResponseError, _TooSlowError) as error:
            return self._failed(error)
        with self._lock:
            self._failures_in_a_row, self._replied = 0, True
        return reply

    def _send(self, messages: list[dict[str, str]]) -> Reply:
        if self._stopped is None and (reason := self.budget.take_request()):
            self._stop(reason)
        if self._stopped is not None:
            raise _StoppedError
        try:
            with bounded_time(self.options.timeout):
                raw = self._client.chat.completions.with_raw_response.create(
                    model=self.options.model, messages=messages, **self._parameters
                )
            return self._read(raw.http_response.text, messages)
        except TimeoutError as error:
            with self._lock:
                self.failed_requests[Unscored.TIMEOUT.value] += 1
            raise _TooSlowError from error
        except (self._openai.OpenAIError, _BadResponseError) as error:
            with self._lock:
                self.failed_requests[self._reason(error).value] += 1
            raise

    def _read(self, body: str, messages: Sequence[Mapping[str, str]]) -> Reply:
        """Parse the reply in a body. Its tokens are counted first: even a reply without a choice may have been paid
        for.
        """
        found = read_completion(body, "".join(message["content"] for message in messages))
        self.budget.add_tokens(found.prompt_tokens, found.completion_tokens)
        if found.text is None:
            raise _BadResponseError
        text, tokens = self._without_key(found.text), (found.prompt_tokens, found.completion_tokens)
        return Reply(text, *tokens, finish_reason=found.finish_reason, thought=found.thought)

    def _without_key(self, text: str) -> str:
        """Remove the key from a text of the server's, which could echo its request's headers."""
        secret = self._key and len(self._key) >= _SECRET_LENGTH
        return text.replace(self._key or "", "[API key]") if secret else text

    def _may_pass(self, error: BaseException) -> bool:
        if isinstance(error, _BadResponseError | _TooSlowError):
            return True
        if isinstance(error, self._openai.APIStatusError):
            passing = error.status_code in _PASSING or error.status_code >= 500
            return passing and not _quota_spent(error) and (_retry_after(error) or 0) <= _LONGEST_WAIT
        return isinstance(error, self._openai.APIConnectionError)

    def _wait(self, state: Any) -> float:
        """Return the seconds until the next attempt: slightly more than Retry-After, or a growing random wait."""
        told = _retry_after(state.outcome.exception())
        if told is not None:
            return told + random.uniform(0, 0.25)
        return float(self._tenacity.wait_random_exponential(multiplier=0.5, max=30)(state))

    def _reason(self, error: Exception) -> Unscored:
        if isinstance(error, self._openai.APITimeoutError | _TooSlowError):
            return Unscored.TIMEOUT
        if isinstance(error, self._openai.APIConnectionError):
            return Unscored.CONNECTION
        status = getattr(error, "status_code", None)
        if status is None:
            return Unscored.BAD_RESPONSE
        if status == 429:
            return Unscored.RATE_LIMITED
        return Unscored.SERVER_ERROR if status >= 500 or status in _PASSING else Unscored.BAD_REQUEST

    def _failed(self, error: Exception) -> Unscored:
        """Classify a failure that retries can't fix. Error messages may contain the key, so they are dropped.

        Raises:
            ModelError: all other questions would fail too.
        """
        fatal = _FATAL.get(getattr(error, "status_code", 0))
        if fatal:
            self._stop("the endpoint refuses it")
            what = fatal.format(env=self.options.api_key_env)
            raise ModelError(f"{self.options.base_url} {what} (model {self.options.model}).") from None
        reason = self._reason(error)
        if _quota_spent(error):
            self._stop("the account's quota at the endpoint is spent")
        with self._lock:
            excused = reason is Unscored.BAD_REQUEST and self._is_of_the_question(error)
            self._failures_in_a_row += not excused
            failures = self._failures_in_a_row
        if failures >= _FAILURES_IN_A_ROW:
            self._stop(f"{failures} questions in a row failed, the last with {reason.value}{self._said(error)}")
        return reason

    def _is_of_the_question(self, error: Any) -> bool:
        """Return whether the error is specific to the question, so that the next may succeed."""
        known = self._replied and error.status_code in _MAYBE_OF_THE_QUESTION
        return known or error.code in _OF_THE_QUESTION

    def _said(self, error: Exception) -> str:
        """Return an error's status, code and parameter in brackets, as far as it has them."""
        told = {"HTTP": "status_code", "code": "code", "parameter": "param"}
        found = {name: getattr(error, attribute, None) for name, attribute in told.items()}
        words = [f"{name} {self._cut(value)}" for name, value in found.items() if value is not None]
        return f" ({', '.join(words)})" if words else ""

    def _cut(self, value: object) -> str:
        """Shorten an endpoint's text to one line without the key."""
        return self._without_key(" ".join(str(value).split()))[:_SAID]

    def _stop(self, reason: str) -> None:
        with self._lock:
            self._stopped = self._stopped or reason
        self._halted.set()


def require_askable(options: JudgeOptions) -> None:
    """Raise early, before other work, if the endpoint can't be asked.

    Raises:
        MissingExtraError: openai or tenacity is not installed.
        ConfigError: there is no API key.
    """
    _libraries()
    options.api_key()


def _libraries() -> tuple[Any, Any]:
    try:
        import openai
        import tenacity
    except ImportError as error:
        raise MissingExtraError(
            f"judge.kind: openai needs {error.name}, which is not installed: pip install 'hafrm[judge]'"
        ) from error
    return openai, tenacity


def _quota_spent(error: Any) -> bool:
    """Return whether the account has no credit left: HTTP 402, or OpenAI's own code."""
    return getattr(error, "status_code", None) == 402 or getattr(error, "code", None) == "insufficient_quota"


def _retry_after(error: Any) -> float | None:
    """Return the seconds of a response's Retry-After; None if it has none."""
    return seconds_to_wait(getattr(getattr(error, "response", None), "headers", {}).get("retry-after"))
