"""A scorer that queries a reward server over HTTP, so that its model is evaluated like any other.

Works on conversations, addresses and three protocols, selected by the address's path; independent of tokenizers and
tensors. The server decides how much of a conversation is read. httpx is imported only when a server is used.

No path, or `/v1/rewards`: hafrm's own protocol. The request is

    {"conversations": [{"prompt": [{"role", "content"}, ...], "response": [{"role", "content"}, ...]}, ...]}

and the response, with one entry per conversation, in order,

    {"model": str, "rewards": [{"reward": float | null, "tokens": int, "truncated": bool, "unscored": str | null}, ...]}

`unscored` says why a reward is null: "overlong", or the reason why the chat template refuses the conversation. `tokens`
and `truncated` are informational; the scorer ignores them.

`/classify` and `/pooling`: vLLM's protocols, one conversation per request, as `{"messages": [...], "use_activation":
false}`: with its activation vLLM would return sigmoids of rewards. The model must have one label. Requests to
`/pooling` set the task "classify", because some versions would otherwise return one number per token. A conversation
that such a server refuses has no reward: it counts as over-long if the server says so, otherwise as an invalid row.
OpenRLHF's `/get_reward` takes rendered text, which would need a tokenizer here; it is not supported.

An API key is read from the environment variable HAFRM_API_KEY when the scorer is created, and sent as a bearer token.
It appears in no message and no file.
"""

from __future__ import annotations

import email.utils
import json
import math
import os
import random
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

from hafrm.errors import ConfigError, ModelError, RefusedError, first_line, printable
from hafrm.http import bounded_client, bounded_time, is_printable_address, may_hold_secret
from hafrm.pairs import Conversation

API_KEY = "HAFRM_API_KEY"
"""Environment variable with a server's API key."""

_BUSY = (408, 429, 502, 503, 504)
"""Temporary statuses: of an overloaded server, or of a proxy while its server restarts."""
_REFUSES = (400, 413, 422)
"""vLLM's statuses for a conversation that is too long for its model or that its template can't render."""
_OVERLONG = "overlong"
"""Outcome of a conversation over the server's limit, which is not an error."""
_TOO_LONG = ("maximum context length", "max_model_len")
"""Phrases in vLLM's messages about a conversation over its model's limit."""
_SAID = 200
"""Maximum characters shown of a server's message."""
_PROBE = Conversation.of("Hello.", "Hello!")
_Outcome = float | str
"""A reward, or the reason why there is none."""


def is_server(model: str) -> bool:
    """Return whether a model's name is a server's address."""
    return model.startswith(("http://", "https://"))


@dataclass(frozen=True, kw_only=True)
class RetryRule:
    """How often and how long to wait for a server."""

    attempts: int = 5
    """Maximum number of attempts per request."""
    timeout: float = 120.0
    """Seconds without a byte after which a request counts as lost; a whole response may take five times as long."""
    first_wait: float = 0.5
    """Seconds before the second attempt; doubled before each further one, times a random number in [0.5, 1]."""
    longest_wait: float = 60.0
    """Maximum seconds to wait; a server that asks for more (Retry-After) is given up."""

    def wait(self, attempt: int, asked: float | None) -> float:
        """Return the seconds to wait after an attempt, counted from 1: at least what the server asked for."""
        own = self.first_wait * 2.0 ** (attempt - 1) * random.uniform(0.5, 1.0)
        return max(min(own, self.longest_wait), asked or 0.0)


class _Dialect(Protocol):
    """One protocol: the form of requests and responses."""

    per_request: int | None
    """Maximum conversations per request; None: the batch size."""

    def request(self, conversations: Sequence[Conversation]) -> dict[str, Any]:
        """Return the request's JSON."""
        ...

    def outcomes(self, answer: Mapping[str, Any]) -> list[_Outcome]:
        """Parse the outcome of each conversation; raises any error if the answer does not follow the protocol."""
        ...


class _Native:
    per_request: int | None = None

    def request(self, conversations: Sequence[Conversation]) -> dict[str, Any]:
        return {"conversations": [conversation.as_row() for conversation in conversations]}

    def outcomes(self, answer: Mapping[str, Any]) -> list[_Outcome]:
        return [self._outcome(entry) for entry in answer["rewards"]]

    def _outcome(self, entry: Mapping[str, Any]) -> _Outcome:
        reason = entry.get("unscored")
        if entry["reward"] is None and isinstance(reason, str) and reason:
            return printable(reason, _SAID)
        return _finite(entry["reward"])


class _Vllm:
    per_request: int | None = 1

    def __init__(self, field: str, **options: Any) -> None:
        self.field, self.options = field, options

    def request(self, conversations: Sequence[Conversation]) -> dict[str, Any]:
        (conversation,) = conversations
        messages = [message.as_dict() for message in conversation.turns]
        return {
            "messages": messages,
            **conversation.prompt.columns,
            "add_generation_prompt": False,
            "use_activation": False,
            **self.options,
        }

    def outcomes(self, answer: Mapping[str, Any]) -> list[_Outcome]:
        return [self._reward(entry[self.field]) for entry in answer["data"]]

    def _reward(self, numbers: Any) -> float:
        if isinstance(numbers, list) and any(isinstance(entry, list) for entry in numbers):
            raise ValueError(
                f"`{self.field}` holds a list a token, and a reward is one number a conversation: ask at /classify, "
                "or let the server pool whole conversations"
            )
        if not isinstance(numbers, list) or len(numbers) != 1:
            raise ValueError(f"`{self.field}` is no list of one number: a reward model has one label")
        return _finite(numbers[0])


def _finite(value: Any) -> float:
    try:
        if not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value):
            return float(value)
    except OverflowError:  # an integer over the largest float
        pass
    raise ValueError(f"{value!r:.40} is no finite reward")


_DIALECTS: dict[str, _Dialect] = {
    "/v1/rewards": _Native(),
    "/classify": _Vllm("probs"),
    "/pooling": _Vllm("data", task="classify"),
}


class RemoteScorer:
    """Scorer with the rewards of a server; see the module for the supported protocols.

    Args:
        url: The server's address.
        batch_size: Conversations per request, if the protocol takes several.
        concurrency: Number of concurrent requests.
        retries: How often and how long to wait for the server.

    Raises:
        ConfigError: the address is invalid.
        MissingExtraError: httpx is not installed.
    """

    def __init__(
        self, url: str, *, batch_size: int = 32, concurrency: int = 4, retries: RetryRule | None = None
    ) -> None:
        self.endpoint, self._dialect = endpoint_of(url)
        self.batch_size, self.concurrency = self._dialect.per_request or batch_size, concurrency
        self.retries = retries or RetryRule()
        self._client = bounded_client(timeout=self.retries.timeout, extra="serve", headers=_headers())
        self._model: str | None = None

    def model_name(self) -> str:
        """Return the server's name for its model, queried once with a two-word conversation.

        Raises:
            ModelError: the server can't be reached or does not follow the protocol.
        """
        if self._model is None:
            self._ask([_PROBE])
        assert self._model is not None
        return self._model

    def close(self) -> None:
        """Close the connections to the server."""
        self._client.close()

    def score(self, conversations: Sequence[Conversation]) -> list[float | None]:
        """Return rewards in the order of the conversations; see `Scorer.score`.

        Raises:
            RefusedError: the server refuses some conversations; has the rewards of the others.
            ModelError: the server can't be reached, refuses, or does not follow the protocol.
        """
        self.model_name()
        size = self.batch_size
        batches = [conversations[start : start + size] for start in range(0, len(conversations), size)]
        pool = ThreadPoolExecutor(max_workers=self.concurrency)
        try:
            outcomes = [outcome for found in pool.map(self._ask, batches) for outcome in found]
        finally:
            pool.shutdown(cancel_futures=True)  # send no further batches after an error
        refused = {place: why for place, why in enumerate(outcomes) if isinstance(why, str) and why != _OVERLONG}
        found = [None if isinstance(outcome, str) else outcome for outcome in outcomes]
        if refused:
            finished = {place: reward for place, reward in enumerate(found) if place not in refused}
            remedy = "Change the row so that the server takes it, or ask one that does."
            raise RefusedError(refused, remedy=remedy, finished=finished)
        return found

    def _ask(self, conversations: Sequence[Conversation]) -> list[_Outcome]:
        """Query a batch and validate the response."""
        response = self._response(self._dialect.request(conversations))
        if self._dialect.per_request == 1 and self._model is not None and response.status_code in _REFUSES:
            if _is_overlong(response):
                return [_OVERLONG]
            return [f"{self.endpoint} refuses it. {_said(response)}".strip()]
        answer = self._json(response)
        try:
            model, outcomes = answer["model"], self._dialect.outcomes(answer)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise self._wrong_answer(f"{type(error).__name__}: {first_line(error)}") from error
        if not isinstance(model, str):
            raise self._wrong_answer("`model` is no string")
        if len(outcomes) != len(conversations):
            raise self._wrong_answer(f"{len(outcomes)} rewards for {len(conversations)} conversations")
        if self._model not in (None, model):
            raise ModelError(
                f"{self.endpoint} answered as {self._model} and now as {model}: its model was changed while it was "
                "asked. Start again, with a server that stays as it is."
            )
        self._model = model
        return outcomes

    def _wrong_answer(self, problem: str) -> ModelError:
        return ModelError(
            f"{self.endpoint} answers what is not in its protocol ({problem}). Give the address of a reward server of "
            "hafrm or vLLM whose model has one label; the path says which protocol is meant."
        )

    def _response(self, request: Mapping[str, Any]) -> Any:
        """Return the server's response, whatever it is; retry if it is busy or unreachable."""
        lost = ""
        for attempt in range(1, self.retries.attempts + 1):
            asked = None
            try:
                with bounded_time(self.retries.timeout):
                    response = self._client.post(self.endpoint, json=request)
            except (OSError, _request_error()) as error:
                lost = f"{type(error).__name__}: {first_line(error)}"
            else:
                if response.status_code not in _BUSY:
                    return response
                lost, asked = f"status {response.status_code}", self._retry_after(response)
            if attempt < self.retries.attempts:
                time.sleep(self.retries.wait(attempt, asked))
        raise ModelError(
            f"{self.endpoint} gave no answer in {self.retries.attempts} attempts ({lost}). See that the server runs "
            "there and is not overloaded, then repeat the command."
        )

    def _retry_after(self, response: Any) -> float | None:
        """Return how many seconds a busy server asks to wait."""
        asked = seconds_to_wait(response.headers.get("retry-after"))
        if asked is not None and asked > self.retries.longest_wait:
            raise ModelError(
                f"{self.endpoint} is busy and asks to be left alone for {asked:.0f} seconds. Repeat the command then."
            )
        return asked

    def _json(self, response: Any) -> Any:
        if response.status_code != 200:
            raise ModelError(f"{self.endpoint} answers with status {response.status_code}. {_remedy(response)}")
        try:
            return json.loads(response.content)
        except (ValueError, RecursionError) as error:  # RecursionError: nested too deeply
            raise self._wrong_answer("no JSON that can be read") from error


def endpoint_of(url: str) -> tuple[str, _Dialect]:
    """Return the address for requests, and the protocol that its path selects.

    Raises:
        ConfigError: the address is invalid or may contain secrets, which the message does not repeat.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError(f"That is no address of a server ({error}). Give one like http://HOST:PORT.") from error
    if not is_printable_address(url):
        raise ConfigError(
            "A server's address has no spaces, backslashes or control characters. Give one like http://HOST:PORT."
        )
    if may_hold_secret(parts):
        raise ConfigError(
            f"A server's address has neither a user, parameters nor a query, as it is written into results. Give "
            f"{parts.scheme}://HOST:PORT and put an API key into the environment variable {API_KEY}."
        )
    path = parts.path.rstrip("/") or "/v1/rewards"
    dialect = next((found for ending, found in _DIALECTS.items() if path.endswith(ending)), None)
    if not host or dialect is None:
        raise ConfigError(
            f"{url}: a reward server is asked at http://HOST:PORT with no path or one that ends in "
            f"{', '.join(_DIALECTS)}."
        )
    return f"{parts.scheme}://{parts.netloc}{path}", dialect


def _headers() -> dict[str, str]:
    key = os.environ.get(API_KEY, "").strip()
    if not key.isascii() or not key.isprintable():
        raise ConfigError(f"{API_KEY} holds characters that no API key has. Set it anew.")
    return {"Authorization": f"Bearer {key}"} if key else {}


def seconds_to_wait(header: str | None) -> float | None:
    """Parse a Retry-After header, in seconds or as a date; return None if it is neither."""
    if not header:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(header).timestamp() - time.time()
        except (TypeError, ValueError, OverflowError):
            return None
    return max(seconds, 0.0) if math.isfinite(seconds) else None


def _remedy(response: Any) -> str:
    remedy = {
        401: f"Put its API key into the environment variable {API_KEY}.",
        403: f"Its API key ({API_KEY}) does not allow this.",
        **dict.fromkeys((301, 302, 303, 307, 308), "It sends requests on to another address: give that one."),
        404: "There is nothing at this path: no path is for hafrm's own server, `/classify` or `/pooling` for vLLM.",
    }.get(response.status_code, "The server's own log says why.")
    return f"{remedy} {_said(response)}".strip()


def _is_overlong(response: Any) -> bool:
    """Return whether a server refuses a conversation for its length, in hafrm's or vLLM's form."""
    if any(words in response.text for words in _TOO_LONG):
        return True
    try:
        return bool(json.loads(response.content)["error"]["type"] == _OVERLONG)
    except (ValueError, KeyError, TypeError, RecursionError):
        return False


def _said(response: Any) -> str:
    """Quote the start of the server's own message, unless it repeats the API key."""
    said = printable(" ".join(response.text.split()), _SAID)
    key = os.environ.get(API_KEY, "").strip()
    return f"It says: {said}" if said and not (key and key in said) else ""


def _request_error() -> type[Exception]:
    import httpx

    return httpx.RequestError
