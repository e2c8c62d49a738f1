"""A minimal reward server, for comparison: a request, a forward pass, an answer. To compare with.

    python -m benchmarks.plain_server MODEL

It serves hafrm's own protocol on a free port of loopback, prints its address, and scores requests one at a time with
the scorer that `hafrm serve` uses. It has no limits, no queue and no metrics.
"""

from __future__ import annotations

import argparse
import socket
import threading
from typing import Any

import uvicorn
from fastapi import FastAPI

from hafrm.contract import parse_conversation
from hafrm.models.loading import load_scorer
from hafrm.models.scorers import Scorer


def build(scorer: Scorer) -> FastAPI:
    """The application of a scorer."""
    app, model = FastAPI(), threading.Lock()

    @app.post("/v1/rewards")
    def rewards(body: dict[str, Any]) -> dict[str, Any]:
        rows = [parse_conversation(row, source="request", number=1) for row in body["conversations"]]
        with model:
            return {"rewards": [{"reward": reward} for reward in scorer.score(rows)]}

    return app


def main() -> None:
    """Serve until stopped."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="what `hafrm serve` takes")
    options = parser.parse_args()
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # as in `hafrm serve`
    app = build(load_scorer(options.model))
    print(f"plain at http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False)).run(sockets=[listener])


if __name__ == "__main__":
    main()
