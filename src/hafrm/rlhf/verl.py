"""Reward functions for verl's `custom_reward_function` that query a reward server, as started by `hafrm serve`.

verl loads this file by its path, in its own environment, where hafrm need not be installed: it imports only the
standard library. `compute_score` is for every reward manager of verl 0.7 to 0.9 (`naive`, `dapo`, `gdpo`,
`rate_limited`, `remote`); `compute_score_async` is the same for all but `remote`, without the limit of verl's thread
pool on concurrent requests; `compute_scores` is for the `batch` manager of earlier versions.

The server's address is the option `url`, or the environment variable HAFRM_REWARD_URL; the key of a server that asks
for one is in HAFRM_API_KEY. The prompt, a string or chat messages, is read from a row's `extra_info.prompt`, because
verl does not pass it.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

ADDRESS = "HAFRM_REWARD_URL"
"""The environment variable with the server's address."""

_PATH = "/v1/rewards"
_BUSY = (408, 429, 502, 503, 504)
"""Temporary statuses of an overloaded server, or of a proxy while its server restarts."""
_PAUSES = (0.5, 1, 2, 4, 8, 16, 32)
"""Seconds before each further attempt."""
_TIMEOUT = 600.0
"""Seconds for an answer."""
_MOST = 256
"""Conversations per request."""

_pool = ThreadPoolExecutor(128, "hafrm-reward")


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any = None,
    extra_info: Mapping[str, Any] | None = None,
    *,
    url: str | None = None,
    model: str | None = None,
    unscored: float | None = None,
    **others: Any,
) -> float:
    """Return the reward of one response; see `compute_scores` for the arguments."""
    (score,) = compute_scores(
        [data_source], [solution_str], [ground_truth], [extra_info], url=url, model=model, unscored=unscored
    )
    return score


async def compute_score_async(data_source: str, solution_str: str, **arguments: Any) -> float:
    """Return the reward of one response, as `compute_score` does; other requests can run meanwhile."""
    call = partial(compute_score, data_source, solution_str, **arguments)
    return await asyncio.get_running_loop().run_in_executor(_pool, call)


def compute_scores(
    data_sources: Iterable[str],
    solution_strs: Iterable[str],
    ground_truths: Iterable[Any],
    extra_infos: Iterable[Mapping[str, Any] | None],
    *,
    url: str | None = None,
    model: str | None = None,
    unscored: float | None = None,
    **others: Any,
) -> list[float]:
    """Return the rewards of a batch of responses, in order.

    Args:
        data_sources: The source of each row, for error messages.
        solution_strs: The responses' texts.
        ground_truths: Ignored: reward models don't use it.
        extra_infos: Further fields of each row; only `prompt` is used.
        url: The server's address; by default that in HAFRM_REWARD_URL.
        model: The model's name, if the server has several.
        unscored: The reward of responses that the server can't score: empty ones, and those over its limit.
        **others: Further arguments from verl; ignored.

    Raises:
        ValueError: there is no address, or a row has no prompt.
        RuntimeError: the server can't be reached, refuses the request, or can't score a response and `unscored` was
            not given.
    """
    address = url or os.environ.get(ADDRESS)
    if not address or not address.startswith(("http://", "https://")):
        raise ValueError(
            f"No reward server is named: set the option `url` (reward_kwargs.url), or {ADDRESS}, to http://HOST:PORT."
        )
    rows = zip(data_sources, solution_strs, extra_infos, strict=True)
    conversations = [_conversation(source, text, extra) for source, text, extra in rows]
    entries: list[Mapping[str, Any]] = []
    for start in range(0, len(conversations), _MOST):
        entries += _entries(address, conversations[start : start + _MOST], model)
    missing = [i for i, entry in enumerate(entries) if entry["reward"] is None]
    if missing and unscored is None:
        entry = entries[missing[0]]
        raise RuntimeError(
            f"{address} gave no reward to {len(missing)} of {len(entries)} responses; the first is response "
            f"{missing[0]}: {entry.get('unscored')} {entry.get('fault') or ''}. Set the reward of such responses with "
            "the option `unscored` (reward_kwargs.unscored), or start the server with `--score.overlong truncate`, "
            "which truncates long responses if the prompt leaves room."
        )
    return [float(unscored if entry["reward"] is None else entry["reward"]) for entry in entries]  # type: ignore[arg-type]


def _conversation(source: str, text: str, extra: Mapping[str, Any] | None) -> dict[str, Any]:
    prompt: Any = _plain((extra or {}).get("prompt"))
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if not isinstance(prompt, list) or not prompt or not all(isinstance(turn, Mapping) for turn in prompt):
        raise ValueError(
            f"{source}: a row has no extra_info.prompt. Put the prompt there when you write the data for verl: a "
            "string, or chat messages."
        )
    return {"prompt": prompt, "response": [{"role": "assistant", "content": text.strip()}]}


def _plain(value: Any) -> Any:
    """Convert an array, into which Parquet turns lists, to a list."""
    return value.tolist() if hasattr(value, "tolist") else value


def _entries(address: str, conversations: Sequence[Any], model: str | None) -> list[Mapping[str, Any]]:
    place = address.rstrip("/")
    body = {"conversations": conversations} | ({"model": model} if model else {})
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get("HAFRM_API_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    request = urllib.request.Request(
        place if place.endswith(_PATH) else place + _PATH, json.dumps(body, default=_plain).encode(), headers
    )
    try:
        entries = _answer(request)["rewards"]
        if len(entries) != len(conversations) or not all("reward" in entry for entry in entries):
            raise ValueError(f"{len(entries)} rewards for {len(conversations)} conversations")
    except (ValueError, KeyError, TypeError) as error:
        raise RuntimeError(
            f"{address} is not a reward server: {error!r:.200}. Start one with `hafrm serve`."
        ) from error
    return list(entries)


def _answer(request: urllib.request.Request) -> Any:
    """Send a request, again after a pause if the server is busy or can't be reached."""
    for pause in (*_PAUSES, None):
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            problem = f"answers {error.code}: {error.read(2000).decode(errors='replace')}"
            final: Exception = error
            if error.code not in _BUSY:
                break
        except OSError as error:  # refused, reset, timed out
            problem, final = f"can't be reached: {error}", error
        if pause is not None:
            time.sleep(pause)
    raise RuntimeError(f"{request.full_url} {problem}") from final
