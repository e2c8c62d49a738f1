"""Reward functions for verl's `custom_reward_function` that query a reward server: `hafrm serve`, or a compatible one.

verl loads this file by its path (or as `pkg://hafrm.rlhf.verl`) and calls a function by name: `compute_score` in
managers that score one response at a time, `compute_scores` in the batch manager, which sends far fewer requests. The
server's address is the option `url`, or the environment variable HAFRM_REWARD_URL. The prompt, a string or chat
messages, is read from a row's `extra_info.prompt`, because verl does not pass it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from hafrm.errors import BadRowError, ConfigError, DataError, ModelError
from hafrm.models.remote import RemoteScorer
from hafrm.pairs import Conversation
from hafrm.rlhf.rewards import answered, scores_of
from hafrm.rows import Row

ADDRESS = "HAFRM_REWARD_URL"
"""The environment variable with the server's address."""


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any = None,
    extra_info: Mapping[str, Any] | None = None,
    *,
    url: str | None = None,
    unscored: float | None = None,
    **others: Any,
) -> float:
    """Return the reward of one response; see `compute_scores` for the arguments."""
    (score,) = compute_scores([data_source], [solution_str], [ground_truth], [extra_info], url=url, unscored=unscored)
    return score


def compute_scores(
    data_sources: Iterable[str],
    solution_strs: Iterable[str],
    ground_truths: Iterable[Any],
    extra_infos: Iterable[Mapping[str, Any] | None],
    *,
    url: str | None = None,
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
        unscored: The reward of responses that the server can't score: empty ones, and those over its limit.
        **others: Further arguments from verl; ignored.

    Raises:
        ConfigError: there is no address.
        DataError: a row has no prompt.
        ModelError: the server can't be reached, or it can't score a response and `unscored` was not given.
    """
    address = url or os.environ.get(ADDRESS)
    if not address:
        raise ConfigError(f"No reward server is named: set the option `url` (reward_kwargs.url), or {ADDRESS}.")
    rows = zip(data_sources, solution_strs, extra_infos, strict=True)
    conversations = [_conversation(source, text, extra) for source, text, extra in rows]
    scores = scores_of(_scorer(address), conversations)
    missing = [place for place, score in enumerate(scores) if score is None]
    if missing and unscored is None:
        raise ModelError(
            f"{address} gave no reward to {len(missing)} of {len(scores)} responses; the first is response "
            f"{missing[0]}: empty, or over the server's limit. Set the reward of such responses with the option "
            "`unscored` (reward_kwargs.unscored), or start the server with `--score.overlong truncate`, which "
            "truncates long responses if the prompt leaves room."
        )
    return [float(unscored if score is None else score) for score in scores]  # type: ignore[arg-type]


@cache
def _scorer(url: str) -> RemoteScorer:
    return RemoteScorer(url)


def _conversation(source: str, text: str, extra: Mapping[str, Any] | None) -> Conversation:
    value: Any = (extra or {}).get("prompt")
    if hasattr(value, "tolist"):  # Parquet turns lists into arrays
        value = value.tolist()
    try:
        prompt = Row({"prompt": value}, str(source)).prompt()
    except BadRowError as error:
        raise DataError(
            f"{source}: a row's extra_info.prompt can't be read ({error.reason.value}). Put the prompt there when you "
            "write the data for verl: a string, or chat messages."
        ) from error
    return answered(prompt, text.strip())
