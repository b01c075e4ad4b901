"""Whether the Hugging Face hub can be reached, checked in under a second."""

import contextlib
import os
import socket
import threading
from urllib.parse import urlsplit


def hub_reachable(timeout: float = 0.8) -> bool:
    """Try one connection to the hub (or to the proxy in front of it); never when ``HF_HUB_OFFLINE`` is set."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        return False
    proxy = os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy")
    url = proxy or os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    address = urlsplit(url if "//" in url else f"//{url}")
    port = address.port or (443 if address.scheme == "https" else 80)
    reached: list[bool] = []

    def connect() -> None:
        with contextlib.suppress(OSError), socket.create_connection((str(address.hostname), port), timeout):
            reached.append(True)

    thread = threading.Thread(target=connect, daemon=True)  # the name lookup behind a firewall may hang for minutes
    thread.start()
    thread.join(timeout)
    return bool(reached)
