"""Ask untrusted servers over HTTP: retries, and answers of bounded size and time; no redirects, no proxies.

httpx is imported only when a client is created. API keys come from the environment and appear in no message.
"""

from __future__ import annotations

import email.utils
import json
import math
import os
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar
from urllib.parse import SplitResult, urlsplit

from hafrm.errors import ConfigError, MissingExtraError, first_line
from hafrm.timeouts import TimedOutError, time_limit

LARGEST_ANSWER = 16 * 2**20
"""Maximum bytes of a response body."""

_PARTS = 5
"""Time limit for a whole response, as a multiple of the timeout for its next byte."""

_LONGEST_OWN_WAIT = 30.0
"""Maximum seconds to wait for a server that does not say how long."""

_SECRET_LENGTH = 8
"""Minimum length of a key that is treated as a secret; local servers are given `none`, `EMPTY` or `x`."""

Found = TypeVar("Found")


@dataclass(frozen=True, kw_only=True)
class RetryRule:
    """How often and how long to wait for a server."""

    attempts: int = 5
    """Maximum number of attempts per request."""
    timeout: float = 120.0
    """Seconds without a byte after which a request counts as lost; a whole response may take five times as long."""
    first_wait: float = 0.5
    """Seconds before the second attempt; doubled before each further one up to 30, times a random number in [.5, 1]."""
    longest_wait: float = 60.0
    """Maximum seconds to wait; a server that asks for more (Retry-After) is given up."""

    def wait(self, attempt: int, asked: float) -> float:
        """Return the seconds to wait after an attempt, counted from 1: slightly more than what the server asked for."""
        own = min(self.first_wait * 2.0 ** (attempt - 1), _LONGEST_OWN_WAIT) * random.uniform(0.5, 1.0)
        return max(own, asked + random.uniform(0.0, 0.25) if asked else 0.0)


def retry(
    send: Callable[[], Found],
    wanted_wait: Callable[[Found], float | None],
    rule: RetryRule,
    sleep: Callable[[float], Any] = time.sleep,
) -> Found:
    """Send a request until its outcome is final or the attempts are used up, and return the last outcome.

    Args:
        send: Sends the request.
        wanted_wait: The seconds that the server wants to be left alone after a transient failure; None if the outcome
            is final.
        rule: How often and how long to wait.
        sleep: Waits.
    """
    for attempt in range(1, rule.attempts):
        found = send()
        asked = wanted_wait(found)
        if asked is None or asked > rule.longest_wait:
            return found
        sleep(rule.wait(attempt, asked))
    return send()


@dataclass(frozen=True, kw_only=True)
class Response:
    """A server's response, or why there is none."""

    status: int = 0
    """The status; 0 if there is no complete response."""
    body: bytes = b""
    retry_after: float = 0.0
    """Seconds that the server asks to be left alone."""
    trouble: Literal["", "timeout", "connection"] = ""
    detail: str = ""
    """What the trouble is, in words."""

    @property
    def text(self) -> str:
        """Return the body as text."""
        return self.body.decode(errors="replace")

    def json(self) -> Any:
        """Return the body's value.

        Raises:
            ValueError: it is not JSON.
        """
        try:
            return json.loads(self.body)
        except RecursionError as error:
            raise ValueError("nested too deeply") from error


class Client:
    """Posts JSON to servers, from any number of threads.

    Args:
        timeout: Seconds without a byte after which a request fails; a whole response may take five times as long.
        extra: The extra of hafrm that installs httpx.
        key: The API key, sent as a bearer token if it is not empty.

    Raises:
        MissingExtraError: httpx is not installed.
    """

    def __init__(self, *, timeout: float, extra: str, key: str = "") -> None:
        self._httpx = import_httpx(extra)
        headers = {"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {key}"} if key else {})
        # A client with its own transport ignores proxies of the environment.
        self._client = self._httpx.Client(transport=self._httpx.HTTPTransport(), timeout=timeout, headers=headers)
        self._timeout, self._key = timeout, key

    def post(self, url: str, value: Mapping[str, Any]) -> Response:
        """Send one request; never raises for what the server does."""
        try:
            with time_limit(_PARTS * self._timeout), self._client.stream("POST", url, json=value) as response:
                headers, body = response.headers, bytearray()
                if headers.get("content-encoding", "identity") != "identity":  # a small body can unpack to a huge one
                    return Response(trouble="connection", detail="the answer is compressed although not asked for")
                for part in response.iter_raw():
                    body += part
                    if len(body) > LARGEST_ANSWER:
                        detail = f"the answer is longer than {LARGEST_ANSWER:,} bytes"
                        return Response(trouble="connection", detail=detail)
                asked = seconds_to_wait(headers.get("retry-after")) or 0.0
                return Response(status=response.status_code, body=bytes(body), retry_after=asked)
        except TimedOutError:  # bytes trickle in
            detail = f"no complete answer within {_PARTS * self._timeout:g} seconds"
            return Response(trouble="timeout", detail=detail)
        except (OSError, self._httpx.RequestError) as error:
            timed_out = isinstance(error, self._httpx.TimeoutException)
            detail = f"{type(error).__name__}: {self.without_key(first_line(error))}"
            return Response(trouble="timeout" if timed_out else "connection", detail=detail)

    def without_key(self, text: str) -> str:
        """Remove the key from a text of the server's, which could echo its request's headers."""
        return text.replace(self._key, "[API key]") if len(self._key) >= _SECRET_LENGTH else text

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


def import_httpx(extra: str) -> Any:
    """Import httpx, or raise MissingExtraError with the name of the extra that installs it."""
    try:
        import httpx
    except ImportError as error:
        raise MissingExtraError(f"Asking a server needs httpx. Install it: pip install 'hafrm[{extra}]'.") from error
    return httpx


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


def api_key(variable: str) -> str:
    """Return the API key in an environment variable; empty if there is none.

    Raises:
        ConfigError: the value can't be a key.
    """
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(f"The environment variable {variable} must contain printable ASCII, as API keys do.")
    return key


def split_address(url: str, *, name: str, example: str, key_variable: str) -> SplitResult:
    """Split a server's address.

    Args:
        url: The address.
        name: What the address is called in errors.
        example: A valid address.
        key_variable: The environment variable for API keys.

    Raises:
        ConfigError: the address is invalid or may contain secrets, which the message does not repeat.
    """
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # an invalid port or bracket
        valid = False
    if not valid or not url.isprintable() or {" ", "\\"} & set(url):  # `urlsplit` drops or passes over these
        raise ConfigError(
            f"{name} must be an address such as {example}, without spaces, backslashes or control characters."
        )
    if parts.username or parts.password or parts.query or parts.fragment or ";" in parts.path:
        raise ConfigError(
            f"{name} must contain no user, password, parameters, query or fragment, because it is written into "
            f"results. Put an API key into the environment variable {key_variable}."
        )
    return parts
