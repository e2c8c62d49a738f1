"""Fall back to cached files when the Hugging Face hub can't be reached."""

from __future__ import annotations

import functools
import os
import socket
import sys
from urllib.parse import urlsplit
from urllib.request import getproxies

_SECONDS = 5.0
_PORTS = {"http": 80, "https": 443}
_READERS = ("huggingface_hub.constants", "datasets.config")
"""Modules that keep the value of HF_HUB_OFFLINE, which they read only at import."""


@functools.cache
def work_offline_if_unreachable() -> None:
    """Switch this process to cached files if the hub can't be reached within a few seconds.

    Otherwise libraries request every file of a model six times, with waits, which takes almost a minute per error.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        return
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    asked = urlsplit(getproxies().get(urlsplit(endpoint).scheme) or endpoint)
    try:
        socket.create_connection((asked.hostname or "", asked.port or _PORTS.get(asked.scheme, 443)), _SECONDS).close()
    except OSError:
        os.environ["HF_HUB_OFFLINE"] = "1"
        for module in sys.modules.keys() & set(_READERS):
            vars(sys.modules[module])["HF_HUB_OFFLINE"] = True
