"""Access to the Hugging Face hub: whether it answers, known within seconds, and loading without asking it."""

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit

ANSWER_SECONDS = 5.0  # that the hub may take for its first answer; a download that has begun has no limit
_switch = threading.RLock()


def hub_problem(repository: str, revision: str | None, kind: str) -> str | None:
    """Why a repository can't be had from the hub now, after at most `ANSWER_SECONDS`; None where the hub answers.

    ``kind`` is ``model`` or ``dataset``. An answer that refuses the repository is one: whoever loads it meets it again.
    """
    if not hub_reachable():
        return "the hub is out of reach or switched off (HF_HUB_OFFLINE)"
    from huggingface_hub import HfApi, errors

    answered = threading.Event()

    def ask() -> None:
        with contextlib.suppress(Exception):  # a lost connection or a timeout: there is no answer
            with contextlib.suppress(errors.HfHubHTTPError, errors.HFValidationError):  # refused: an answer
                HfApi().repo_info(repository, revision=revision, repo_type=kind, timeout=ANSWER_SECONDS)
            answered.set()

    thread = threading.Thread(target=ask, daemon=True)  # a hub that sends a byte a second would never time out
    thread.start()
    thread.join(ANSWER_SECONDS)
    return None if answered.is_set() else f"the hub accepts connections but gave no answer in {ANSWER_SECONDS:g} s"


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


@contextlib.contextmanager
def hub_switched_off() -> Iterator[None]:
    """Let no library ask the hub inside this context, whatever a folder on this machine lacks or names."""
    from huggingface_hub import constants

    with _switch:
        before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
        try:
            yield
        finally:
            constants.HF_HUB_OFFLINE = before
