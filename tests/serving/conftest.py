"""Fixtures: a tiny scorer with packed rows, and servers on loopback in this process."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from hafrm.encoding import ConversationEncoder, TokenGroup
from hafrm.models.hybrid import HybridModel, new_reward_head
from hafrm.models.layout import choose_layout
from hafrm.models.options import ScoreOptions
from hafrm.models.scorers import HybridScorer, Scorer
from hafrm.pairs import Conversation
from hafrm.serving.app import build_app
from hafrm.serving.config import ServeConfig
from hafrm.serving.connections import Server
from hafrm.serving.service import RewardService
from tests.tiny import VOCABULARY, tiny_lm, tiny_tokenizer

LIMIT = 200


def tiny_scorer(
    tokenizer: Any = None, *, overlong: str = "drop", vocabulary: int = VOCABULARY, limit: int = LIMIT, **weights: float
) -> HybridScorer:
    """A scorer of random weights whose rewards differ between texts, with the prompt shared in packed rows."""
    tokenizer = tokenizer or tiny_tokenizer()
    causal_lm = tiny_lm(vocab_size=vocabulary, max_position_embeddings=max(limit, 256))
    head = new_reward_head(causal_lm.config.hidden_size, init="normal", seed=1, dtype=causal_lm.dtype)
    model = HybridModel(causal_lm, head).eval()
    encoder = ConversationEncoder(tokenizer, limit, overlong)  # type: ignore[arg-type]
    layout = choose_layout(model, tokenizer.pad_token_id, max_length=limit)
    assert layout.packed
    return HybridScorer(model, encoder, layout, ScoreOptions(tokens_per_batch=512, device="cpu"), **weights)


class Wrapped:
    """A scorer of which a test replaces the part that runs the model."""

    def __init__(self, scorer: HybridScorer, score: Callable[[list[TokenGroup]], list[float]]) -> None:
        self.encoder, self.options, self.reads_responses = scorer.encoder, scorer.options, False
        self.score, self.score_tokens = scorer.score, score


@contextmanager
def live(
    scorer: Scorer | None = None,
    *,
    scorers: Mapping[str, Scorer] | None = None,
    api_key: str | None = None,
    connections: int = 1088,
    send_buffer: int | None = None,
    **values: Any,
) -> Iterator[str]:
    """A server on a free port of loopback; gives its address."""
    config = ServeConfig(**({"models": ["tiny=none"]} | values))
    service = RewardService(dict.fromkeys(config.sources, scorer) if scorers is None else scorers, config)
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # as `hafrm serve` does
    port = listener.getsockname()[1]
    if send_buffer is not None:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    server = Server(build_app(service, api_key=api_key), listener, config, connections)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def scorer() -> HybridScorer:
    return tiny_scorer()


@pytest.fixture(scope="module")
def address(scorer: HybridScorer) -> Iterator[str]:
    with live(scorer) as found:
        yield found


@pytest.fixture
def client(address: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=address, timeout=30) as found:
        yield found


def body(*conversations: Conversation) -> dict[str, Any]:
    """Return conversations in the format of the native protocol."""
    return {
        "conversations": [
            {"prompt": [m.as_dict() for m in c.prompt.turns], "response": [m.as_dict() for m in c.response]}
            for c in conversations
        ]
    }
