"""The options of `gptask serve`, checked before anything is loaded."""

from __future__ import annotations

import errno
import ipaddress
import logging
import os
import re
import socket
import stat
from importlib.util import find_spec

from gptask.config.engine import refuse_openvino
from gptask.config.schemas import Serve
from gptask.errors import UserError, listing, user_path
from gptask.runs.config_file import read_config
from gptask.runs.manifest import read_manifest
from gptask.serving.models.run_folders import folders_below, named_folders

log = logging.getLogger("gptask")
PACKAGES = ("fastapi", "uvicorn", "prometheus_client", "llguidance")  # of the extra
ORIGIN = re.compile(r"https?://([\w.-]+|\[[0-9a-fA-F:.]+\])(:\d{1,5})?")
BACKLOG = 2048  # connections that wait to be accepted


def check_options(options: Serve) -> None:
    """Raise `UserError` for missing packages, a value out of range, and an address that is open without a token."""
    refuse_openvino(options.engine, "serve")
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise UserError(
            f"gptask serve needs packages that are not installed ({listing(missing)}): pip install 'gptask[serve]'"
        )
    for name, least in {"queue": 1, "body_kb": 1, "kv_mb": 1, "memory_mb": 1}.items():
        value = getattr(options, name)
        if value is not None and value < least:
            raise UserError(f"{name}={value}: expected {least} or more")
    if not 0 < options.timeout_s < float("inf"):
        raise UserError(f"timeout_s={options.timeout_s}: expected a number of seconds above 0")
    if not 0 <= options.port <= 65535:
        raise UserError(f"port={options.port}: expected 0 to 65535 (0: any free one)")
    for origin in options.cors:
        if not ORIGIN.fullmatch(str(origin)):
            raise UserError(
                f"cors={origin}: expected the full origins of web pages, such as [https://example.org,"
                "http://localhost:3000]: scheme, host and perhaps port, without path or *"
            )
    if options.token_env and options.token_file:
        raise UserError("token_env and token_file both name a token: leave one out")
    if not (options.token_env or options.token_file) and not is_loopback(options.host):
        raise UserError(
            f"host={options.host} lets other machines in, and no token is set: set token_env=<environment variable> or "
            "token_file=<file>, or leave host=127.0.0.1"
        )


def check_files(options: Serve) -> None:
    """Raise `UserError` for a token, and for run folders, that can't be read: before torch is imported, for seconds."""
    file = user_path(options.token_file) if options.token_file else None
    if not (file and file.is_fifo()):  # what a shell puts for <(command) can be read once
        read_token(options)
        if file and file.stat().st_mode & stat.S_IROTH:
            text = "token_file=%s: every user of this machine can read the token; chmod o-r %s"
            log.warning(text, options.token_file, file)
    for run in named_folders(options.runs):
        read_config(run.folder)
        read_manifest(run.folder)
    if options.runs_root:
        folders_below(user_path(options.runs_root))


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host; raises `UserError` for one that has no address."""
    return all(ipaddress.ip_address(address).is_loopback for _, address in addresses_of(host))


def addresses_of(host: str) -> list[tuple[int, str]]:
    """The families and addresses of a host, without zones; raises `UserError` for one that has none."""
    try:
        if not host.strip():
            raise OSError(errno.EINVAL, "it is empty")
        entries = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no host name"
        raise UserError(f"host={host}: no such address ({reason}); host=127.0.0.1 serves this machine alone") from error
    return [(int(family), str(address[0]).partition("%")[0]) for family, _, _, _, address in entries]


def read_token(options: Serve) -> str | None:
    """The token that requests must carry, None where the options name none; raises `UserError` for an unusable one."""
    if options.token_env:
        where, token = f"token_env={options.token_env}", os.environ.get(options.token_env)
        if token is None:
            raise UserError(f"{where}: the environment has no such variable")
    elif options.token_file:
        where, file = f"token_file={options.token_file}", user_path(options.token_file)
        try:
            token = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no text"
            raise UserError(f"{where}: {reason}") from error
    else:
        return None
    token = token.strip()
    if not token:
        raise UserError(f"{where}: the token is empty")
    if not re.fullmatch(r"[!-~]+", token):
        raise UserError(
            f"{where}: a token is one word of ASCII characters without spaces, as an HTTP header carries it"
        )
    return token


def listening_socket(options: Serve) -> socket.socket:
    """A socket that listens, so that a port in use is noticed before anything is loaded.

    Raises `UserError` where it can't.
    """
    where = f"host={options.host} port={options.port}"
    family, address = min(addresses_of(options.host), key=lambda pair: pair[0] != socket.AF_INET)  # of localhost's two
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, options.port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        reasons = {
            errno.EADDRINUSE: "the port is in use: choose another one, or port=0 for any free one",
            errno.EACCES: "this user may not listen there: choose a port from 1024 on",
            errno.EADDRNOTAVAIL: "this machine has no such address: host=127.0.0.1 serves this machine alone",
        }
        raise UserError(f"{where}: {reasons.get(error.errno or 0, error.strerror)}") from error
    return listener


def url_of(options: Serve, listener: socket.socket) -> str:
    """The address of the server for people."""
    host = f"[{options.host}]" if ":" in options.host else options.host
    return f"http://{host}:{listener.getsockname()[1]}"
