"""An HTTP client for untrusted servers: bounded size and time of answers, no redirects.

httpx is imported only when a client is created.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import SplitResult

from hafrm.errors import MissingExtraError
from hafrm.timeouts import TimedOutError, time_limit

LARGEST_ANSWER = 16 * 2**20
"""Maximum bytes of a response body."""

_PARTS = 5
"""Time limit for a whole response, as a multiple of the timeout for its next byte."""


def bounded_client(*, timeout: float, extra: str, headers: Mapping[str, str] | None = None) -> Any:
    """Create an `httpx.Client` that follows no redirects and reads at most `LARGEST_ANSWER` bytes per response.

    Args:
        timeout: Seconds without a byte after which a request fails.
        extra: The extra of hafrm that installs httpx.
        headers: Headers of every request.

    Raises:
        MissingExtraError: httpx is not installed.
    """
    try:
        import httpx
    except ImportError as error:
        raise MissingExtraError(f"Asking a server needs httpx. Install it: pip install 'hafrm[{extra}]'.") from error

    class Body(httpx.SyncByteStream):
        def __init__(self, stream: Any) -> None:
            self.stream = stream

        def __iter__(self) -> Iterator[bytes]:
            size = 0
            for part in self.stream:
                size += len(part)
                if size > LARGEST_ANSWER:
                    raise httpx.ReadError(f"the answer is longer than {LARGEST_ANSWER:,} bytes")
                yield part

        def close(self) -> None:
            self.stream.close()

    class Transport(httpx.HTTPTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            response = super().handle_request(request)
            if response.headers.get("content-encoding", "identity") != "identity":
                response.close()  # a small body can unpack to a huge one
                raise httpx.ReadError("the answer is compressed although none was asked for")
            response.stream = Body(response.stream)
            return response

    return httpx.Client(
        transport=Transport(), timeout=timeout, headers={**(headers or {}), "Accept-Encoding": "identity"}
    )


@contextmanager
def bounded_time(timeout: float) -> Iterator[None]:
    """Limit the time of a whole response to five times the timeout per byte, against responses that trickle in.

    Raises:
        TimeoutError: the response took too long.
    """
    try:
        with time_limit(_PARTS * timeout):
            yield
    except TimedOutError as error:
        raise TimeoutError(f"no whole answer within {_PARTS * timeout:g} seconds") from error


def is_printable_address(url: str) -> bool:
    """Whether an address has no spaces, backslashes or control characters, which `urlsplit` drops or passes over."""
    return url.isprintable() and not {" ", "\\"} & set(url)


def may_hold_secret(parts: SplitResult) -> bool:
    """Whether an address has a part that keys are put into: a user, a password, parameters, a query or a fragment."""
    return bool(parts.username or parts.password or parts.query or parts.fragment or ";" in parts.path)
