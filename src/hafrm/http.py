"""Send requests to untrusted servers: with retries and limits on size and time, without redirects or proxies.

httpx is imported only when a client is created. API keys come from the environment and never appear in messages.
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
"""Maximum seconds to wait if the server does not say how long."""

_SECRET_LENGTH = 8
"""Minimum length of a key that is treated as a secret; local servers get keys such as `none`, `EMPTY` or `x`."""

Found = TypeVar("Found")


@dataclass(frozen=True, kw_only=True)
class RetryRule:
    """Number of attempts, and waits between them."""

    attempts: int = 5
    """Maximum number of attempts per request."""
    timeout: float = 120.0
    """Seconds without data after which a request fails; a whole response may take five times as long."""
    first_wait: float = 0.5
    """Seconds before the second attempt; doubled for each further one up to 30, times a random number in [.5, 1]."""
    longest_wait: float = 60.0
    """Maximum seconds to wait; if a server asks for more (Retry-After), there is no further attempt."""

    def wait(self, attempt: int, asked: float) -> float:
        """Return the seconds to wait after an attempt, counted from 1; slightly more than the server asked for."""
        own = min(self.first_wait * 2.0 ** (attempt - 1), _LONGEST_OWN_WAIT) * random.uniform(0.5, 1.0)
        return max(own, asked + random.uniform(0.0, 0.25) if asked else 0.0)


def retry(
    send: Callable[[], Found],
    wanted_wait: Callable[[Found], float | None],
    rule: RetryRule,
    sleep: Callable[[float], Any] = time.sleep,
) -> Found:
    """Send a request until the outcome is final or the attempts are used up, and return the last outcome.

    Args:
        send: Sends the request.
        wanted_wait: Returns the seconds that the server asks to wait after a transient failure; None if the outcome is
            final.
        rule: Number of attempts, and waits between them.
        sleep: Function that waits.
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
    """Seconds that the server asks to wait."""
    trouble: Literal["", "timeout", "connection"] = ""
    detail: str = ""
    """Description of the trouble."""

    @property
    def text(self) -> str:
        """Return the body as text."""
        return self.body.decode(errors="replace")

    def json(self) -> Any:
        """Parse the body as JSON; raise ValueError if it is not."""
        try:
            return json.loads(self.body)
        except RecursionError as error:
            raise ValueError("nested too deeply") from error


class Client:
    """Posts JSON to servers, from any number of threads.

    Args:
        timeout: Seconds without data after which a request fails; a whole response may take five times as long.
        extra: The extra of hafrm that installs httpx.
        key: The API key, sent as a bearer token; "" for none.

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
        """Send one request; errors of the server and the network are returned as a response."""
        try:
            with time_limit(_PARTS * self._timeout), self._client.stream("POST", url, json=value) as response:
                headers, body = response.headers, bytearray()
                if headers.get("content-encoding", "identity") != "identity":  # a small body can unpack to a huge one
                    return Response(trouble="connection", detail="the server sent a compressed answer unasked")
                for part in response.iter_raw():
                    body += part
                    if len(body) > LARGEST_ANSWER:
                        detail = f"the answer is longer than {LARGEST_ANSWER:,} bytes"
                        return Response(trouble="connection", detail=detail)
                asked = seconds_to_wait(headers.get("retry-after")) or 0.0
                return Response(status=response.status_code, body=bytes(body), retry_after=asked)
        except TimedOutError:  # the server sends bytes too slowly
            detail = f"no complete answer within {_PARTS * self._timeout:g} seconds"
            return Response(trouble="timeout", detail=detail)
        except (OSError, self._httpx.RequestError) as error:
            timed_out = isinstance(error, self._httpx.TimeoutException)
            detail = f"{type(error).__name__}: {self.without_key(first_line(error))}"
            return Response(trouble="timeout" if timed_out else "connection", detail=detail)

    def without_key(self, text: str) -> str:
        """Remove the key from a server's text, which may echo the request's headers."""
        return text.replace(self._key, "[API key]") if len(self._key) >= _SECRET_LENGTH else text

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


def import_httpx(extra: str) -> Any:
    """Import httpx; raise MissingExtraError, which names the extra to install, if it is missing."""
    try:
        import httpx
    except ImportError as error:
        raise MissingExtraError(f"Servers need httpx. Install it: pip install 'hafrm[{extra}]'.") from error
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
    """Return the API key in an environment variable, "" without one; raise ConfigError unless it is printable ASCII."""
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(f"The environment variable {variable} must contain printable ASCII, as API keys do.")
    return key


def split_address(url: str, *, name: str, example: str, key_variable: str) -> SplitResult:
    """Split a server's address.

    Args:
        url: The address.
        name: What error messages call the address.
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
    if not valid or not url.isprintable() or {" ", "\\"} & set(url):  # `urlsplit` silently accepts these
        raise ConfigError(
            f"{name} must be an address such as {example}, without spaces, backslashes or control characters."
        )
    if parts.username or parts.password or parts.query or parts.fragment or ";" in parts.path:
        raise ConfigError(
            f"{name} must contain no user, password, parameters, query or fragment, because it is written into "
            f"results. Put an API key into the environment variable {key_variable}."
        )
    return parts
