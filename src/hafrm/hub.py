"""Fall back to cached files when the Hugging Face hub can't be reached."""

from __future__ import annotations

import functools
import importlib
import os
import socket
import sys
from urllib.parse import urlsplit
from urllib.request import getproxies

_SECONDS = 5.0
_PORTS = {"http": 80, "https": 443}
_SWITCHES = {"huggingface_hub.constants": ("HF_HUB_OFFLINE",), "datasets.config": ("HF_HUB_OFFLINE",)}
"""Where libraries store the environment variable, which they read only at import."""


@functools.cache
def work_offline_if_unreachable() -> None:
    """Switch this process to cached files if the hub can't be reached within a few seconds.

    Otherwise libraries request every file of a model six times, with waits, which takes almost a minute per error.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        return
    endpoint = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    asked = urlsplit(getproxies().get(endpoint.scheme, "")) if getproxies().get(endpoint.scheme) else endpoint
    try:
        socket.create_connection((asked.hostname or "", asked.port or _PORTS.get(asked.scheme, 443)), _SECONDS).close()
    except OSError:
        os.environ["HF_HUB_OFFLINE"] = "1"
        for module, names in _SWITCHES.items():
            for name in names if module in sys.modules else ():
                setattr(importlib.import_module(module), name, True)
