"""Counters of the server in Prometheus' text format."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_TOKENS = tuple(2**i for i in range(5, 18))


class Metrics:
    """The counters of one server; clients can't choose the values of any label."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self.requests = Counter("hafrm_requests", "Requests answered", ["path", "status"], registry=registry)
        self.seconds = Histogram("hafrm_request_seconds", "Seconds from request to answer", ["path"], registry=registry)
        self.open_requests = Gauge("hafrm_open_requests", "Requests that are read, wait or run", registry=registry)
        self.queue = Gauge("hafrm_queue_requests", "Requests that wait for the model", registry=registry)
        self.tokens = Counter(
            "hafrm_tokens", "Tokens given to the model, shared prompts counted each time", registry=registry
        )
        self.unscored = Counter("hafrm_unscored", "Conversations without a reward", ["reason"], registry=registry)
        self.truncated = Counter("hafrm_truncated", "Conversations whose end was cut off", registry=registry)
        self.special_tokens = Counter(
            "hafrm_special_tokens", "Conversations whose messages contain special tokens", registry=registry
        )
        self.unfinished = Counter(
            "hafrm_unfinished", "Texts that came without a stop token at their end", registry=registry
        )
        self.batch_conversations = Histogram(
            "hafrm_batch_conversations", "Conversations that ran together", buckets=_SIZES, registry=registry
        )
        self.batch_tokens = Histogram(
            "hafrm_batch_tokens", "Tokens that ran together", buckets=_TOKENS, registry=registry
        )

    def batch(self, conversations: int, tokens: int) -> None:
        """Count a batch."""
        self.batch_conversations.observe(conversations)
        self.batch_tokens.observe(tokens)
        self.tokens.inc(tokens)

    def text(self) -> bytes:
        """Return all counters, as Prometheus reads them."""
        return generate_latest(self.registry)
