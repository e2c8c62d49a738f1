"""A scorer that queries a reward server over HTTP, so that its model can be used like any other.

The address's path selects one of three protocols. The server tokenizes conversations and decides about over-long ones.

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

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from hafrm.contract import conversations_of
from hafrm.errors import ConfigError, ModelError, RefusedError, first_line, printable
from hafrm.http import Client, Response, RetryRule, api_key, retry, split_address
from hafrm.pairs import Conversation

API_KEY = "HAFRM_API_KEY"
"""Environment variable with the key that a server wants and its clients send."""

_BUSY = (408, 429, 502, 503, 504)
"""Temporary statuses of an overloaded server, or of a proxy while its server restarts."""
_REFUSES = (400, 413, 422)
"""Statuses of vLLM for a conversation that is over-long, or that its chat template can't render."""
OVERLONG = "overlong"
"""Why a conversation over the model's limit has no reward, in a server's responses as in files of scores."""
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


@dataclass(frozen=True)
class _Native:
    """hafrm's own protocol."""

    single: bool = False
    """Whether a request has one conversation."""

    def request(self, conversations: Sequence[Conversation]) -> dict[str, Any]:
        return {"conversations": [conversation.as_row() for conversation in conversations]}

    def outcomes(self, answer: Mapping[str, Any]) -> list[_Outcome]:
        return [self._outcome(entry) for entry in answer["rewards"]]

    def _outcome(self, entry: Mapping[str, Any]) -> _Outcome:
        reason = entry.get("unscored")
        if entry["reward"] is None and isinstance(reason, str) and reason:
            return printable(reason, _SAID)
        return _finite(entry["reward"])


@dataclass(frozen=True)
class _Vllm:
    """vLLM's protocols, which differ in the name of the reward's field."""

    field_name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    single: bool = True

    def request(self, conversations: Sequence[Conversation]) -> dict[str, Any]:
        (conversation,) = conversations
        messages = [message.as_dict() for message in conversation.turns]
        fixed = {"add_generation_prompt": False, "use_activation": False}
        return {"messages": messages, **conversation.prompt.columns, **fixed, **self.options}

    def outcomes(self, answer: Mapping[str, Any]) -> list[_Outcome]:
        return [self._reward(entry[self.field_name]) for entry in answer["data"]]

    def _reward(self, numbers: Any) -> float:
        if isinstance(numbers, list) and any(isinstance(entry, list) for entry in numbers):
            raise ValueError(
                f"`{self.field_name}` has one list per token, but a conversation has one reward: ask at /classify, "
                "or let the server pool whole conversations"
            )
        if not isinstance(numbers, list) or len(numbers) != 1:
            raise ValueError(f"`{self.field_name}` must be a list of one number: a reward model has one label")
        return _finite(numbers[0])


def _finite(value: Any) -> float:
    try:
        if not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value):
            return float(value)
    except OverflowError:  # an integer over the largest float
        pass
    raise ValueError(f"{value!r:.40} is not a finite reward")


_Dialect = _Native | _Vllm
_DIALECTS: dict[str, _Dialect] = {
    "/v1/rewards": _Native(),
    "/classify": _Vllm("probs"),
    "/pooling": _Vllm("data", {"task": "classify"}),
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
        self.batch_size, self.concurrency = 1 if self._dialect.single else batch_size, concurrency
        self.retries = retries or RetryRule()
        self._client = Client(timeout=self.retries.timeout, extra="serve", key=api_key(API_KEY))
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

    def score(self, conversations: Sequence[Any]) -> list[float | None]:
        """Return rewards in the order of the conversations; see `Scorer.score` and `conversations_of`.

        Raises:
            RefusedError: the server refuses some conversations; has the rewards of the others.
            ModelError: the server can't be reached, refuses, or does not follow the protocol.
        """
        conversations = conversations_of(conversations)
        self.model_name()
        size = self.batch_size
        batches = [conversations[start : start + size] for start in range(0, len(conversations), size)]
        pool = ThreadPoolExecutor(max_workers=self.concurrency)
        try:
            outcomes = [outcome for found in pool.map(self._ask, batches) for outcome in found]
        finally:
            pool.shutdown(cancel_futures=True)  # send no further batches after an error
        refused = {place: why for place, why in enumerate(outcomes) if isinstance(why, str) and why != OVERLONG}
        found = [None if isinstance(outcome, str) else outcome for outcome in outcomes]
        if refused:
            finished = {place: reward for place, reward in enumerate(found) if place not in refused}
            remedy = "Change the row so that the server accepts it, or use another server."
            raise RefusedError(refused, remedy=remedy, finished=finished)
        return found

    def _ask(self, conversations: Sequence[Conversation]) -> list[_Outcome]:
        response = self._response(self._dialect.request(conversations))
        if self._dialect.single and self._model is not None and response.status in _REFUSES:
            if _is_overlong(response):
                return [OVERLONG]
            return [f"{self.endpoint} refuses it. {self._said(response)}".strip()]
        if response.status != 200:
            raise ModelError(f"{self.endpoint} answers with status {response.status}. {self._remedy(response)}")
        try:
            answer = response.json()
        except ValueError as error:
            raise self._wrong_answer("it is not JSON") from error
        try:
            model, outcomes = answer["model"], self._dialect.outcomes(answer)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise self._wrong_answer(f"{type(error).__name__}: {first_line(error)}") from error
        if not isinstance(model, str):
            raise self._wrong_answer("`model` must be a string")
        if len(outcomes) != len(conversations):
            raise self._wrong_answer(f"{len(outcomes)} rewards for {len(conversations)} conversations")
        if self._model not in (None, model):
            raise ModelError(
                f"{self.endpoint} answered as {self._model} and now as {model}: its model has changed. Start again "
                "with a server that keeps its model."
            )
        self._model = model
        return outcomes

    def _wrong_answer(self, problem: str) -> ModelError:
        return ModelError(
            f"The response of {self.endpoint} does not follow its protocol ({problem}). Give the address of a reward "
            "server of hafrm or vLLM whose model has one label; the path selects the protocol."
        )

    def _response(self, request: Mapping[str, Any]) -> Response:
        """Return the server's response, whatever it is; retry if it is busy or unreachable."""
        response = retry(lambda: self._client.post(self.endpoint, request), _wanted_wait, self.retries)
        if _wanted_wait(response) is None:
            return response
        if response.retry_after > self.retries.longest_wait:
            raise ModelError(
                f"{self.endpoint} is busy and asks clients to wait for {response.retry_after:.0f} seconds. Repeat the "
                "command then."
            )
        raise ModelError(
            f"{self.endpoint} gave no answer in {self.retries.attempts} attempts "
            f"({response.detail or f'status {response.status}'}). Check that the server runs there and is not "
            "overloaded, then repeat the command."
        )

    def _remedy(self, response: Response) -> str:
        remedy = {
            401: f"Put its API key into the environment variable {API_KEY}.",
            403: f"Its API key ({API_KEY}) does not allow this.",
            **dict.fromkeys((301, 302, 303, 307, 308), "It redirects to another address: use that one."),
            404: "Nothing is at this path. Use no path for `hafrm serve`, `/classify` or `/pooling` for vLLM.",
        }.get(response.status, "The server's own log says why.")
        return f"{remedy} {self._said(response)}".strip()

    def _said(self, response: Response) -> str:
        """Quote the start of the server's own message."""
        said = printable(" ".join(self._client.without_key(response.text).split()), _SAID)
        return f"It says: {said}" if said else ""


def _wanted_wait(response: Response) -> float | None:
    return response.retry_after if response.trouble or response.status in _BUSY else None


def endpoint_of(url: str) -> tuple[str, _Dialect]:
    """Return the address for requests, and the protocol that its path selects.

    Raises:
        ConfigError: the address is invalid or may contain secrets, which the message does not repeat.
    """
    parts = split_address(url, name="A reward server's address", example="http://HOST:PORT", key_variable=API_KEY)
    path = parts.path.rstrip("/") or "/v1/rewards"
    dialect = next((found for ending, found in _DIALECTS.items() if path.endswith(ending)), None)
    if dialect is None:
        raise ConfigError(
            f"{url}: a reward server's address is http://HOST:PORT, with no path or one that ends in "
            f"{', '.join(_DIALECTS)}."
        )
    return f"{parts.scheme}://{parts.netloc}{path}", dialect


def _is_overlong(response: Response) -> bool:
    """Return whether a server of hafrm or vLLM refuses a conversation because of its length."""
    if any(words in response.text for words in _TOO_LONG):
        return True
    try:
        return bool(response.json()["error"]["type"] == OVERLONG)
    except (ValueError, KeyError, TypeError):
        return False
