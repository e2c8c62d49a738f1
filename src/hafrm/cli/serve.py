"""`hafrm serve`: serve models with the protocols of trainers and rerankers."""

from __future__ import annotations

from jsonargparse import Namespace

from hafrm.cli.options import options_of, parser_of
from hafrm.models.remote import is_server
from hafrm.models.sources import require_place
from hafrm.serving.config import ServeConfig

parser = parser_of(ServeConfig, positional="models", lists=("models",))


def run(args: Namespace) -> None:
    """Serve until interrupted."""
    config = options_of(ServeConfig, parser(), args, models=("reference",))
    for source in config.sources.values():
        if not is_server(source):  # the service has a better error for these
            require_place(source)
    from hafrm.serving.run import serve

    serve(config)
