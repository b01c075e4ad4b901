"""What `gptask serve` refuses before it loads anything."""

import errno
import importlib.util
import os
import socket
import subprocess
import sys
from contextlib import closing

import pytest
from gptask import UserError
from gptask.config.schemas import Serve
from gptask.serving import serve_options
from gptask.serving.serve_options import check_files, check_options, listening_socket, read_token, url_of


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"queue": 0}, "queue=0: expected 1 or more"),
        ({"body_kb": 0}, "body_kb=0: expected 1 or more"),
        ({"kv_mb": -1}, "kv_mb=-1: expected 1 or more"),
        ({"memory_mb": 0}, "memory_mb=0: expected 1 or more"),
        ({"timeout_s": 0.0}, "timeout_s=0.0: expected a number of seconds above 0"),
        ({"timeout_s": float("nan")}, "timeout_s=nan: expected"),
        ({"timeout_s": float("inf")}, "timeout_s=inf: expected"),
        ({"port": 65536}, "port=65536: expected 0 to 65535"),
        ({"port": -1}, "port=-1: expected 0 to 65535"),
        ({"cors": ["*"]}, r"cors=\*: expected the full origins"),
        ({"cors": ["https://example.org/"]}, "cors=https://example.org/: expected the full origins"),
        ({"cors": ["example.org"]}, "cors=example.org: expected the full origins"),
        ({"cors": ["null"]}, "cors=null: expected the full origins"),
        ({"host": "0.0.0.0"}, "host=0.0.0.0 lets other machines in, and no token is set: set token_env=.*host=127"),
        ({"host": "::"}, "host=:: lets other machines in"),
        ({"host": ""}, "host=: no such address"),
        ({"host": "a..b"}, "host=a..b: no such address"),
        ({"token_env": "A", "token_file": "b"}, "token_env and token_file both name a token"),
    ],
)
def test_a_bad_value_is_refused_by_its_option(options, message):
    with pytest.raises(UserError, match=f"^{message}"):
        check_options(Serve(**options))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"host": "localhost", "port": 0, "memory_mb": 1, "cors": ["https://a.example", "http://[::1]:3000"]},
        {"host": "::1"},
        {"host": "127.0.0.2", "queue": 1, "timeout_s": 0.1},
        {"host": "0.0.0.0", "token_env": "TOKEN"},
    ],
)
def test_good_values_pass(options):
    check_options(Serve(**options))


@pytest.mark.parametrize("package", ["fastapi", "uvicorn", "prometheus_client", "llguidance"])
def test_a_missing_extra_is_named_with_the_command_that_installs_it(package, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(serve_options, "find_spec", lambda name: None if name == package else find(name))
    with pytest.raises(UserError, match=rf"not installed \({package}\): pip install 'gptask\[serve\]'"):
        check_options(Serve())


def test_options_are_checked_without_torch_and_without_the_extra():
    code = (
        "import sys; sys.modules['fastapi'] = None\n"
        "from gptask.cli.commands.serve import run\nfrom gptask.config.schemas import Serve\n"
        "for options in (Serve(port=-1), Serve(token_env='NONE'), Serve(runs='none'), Serve(runs_root='none')):\n"
        "    try: run(options)\n"
        "    except Exception as error: print(type(error).__name__, error, 'torch' in sys.modules)\n"
        "    sys.modules.pop('fastapi', None)\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert out[0].startswith("UserError gptask serve needs packages that are not installed (fastapi)")
    problems = ["token_env=NONE: the environment has no", "no run folder at none", "runs_root=none: No such file"]
    assert all(line.startswith(f"UserError {problem}") for line, problem in zip(out[1:], problems, strict=True))
    assert all(line.endswith("False") for line in out)


def test_a_token_from_a_command_is_read_once(tmp_path):
    os.mkfifo(tmp_path / "token")
    check_files(Serve(token_file=str(tmp_path / "token")))  # would wait for a writer


def test_a_token_is_read_from_a_file_or_the_environment(tmp_path, monkeypatch, caplog):
    file = tmp_path / "token"
    file.write_text("s3cret-token\n")
    file.chmod(0o640)
    monkeypatch.setenv("GPTASK_TEST_TOKEN", " from-environment ")
    assert read_token(Serve()) is None
    assert read_token(Serve(token_file=str(file))) == "s3cret-token"
    assert read_token(Serve(token_env="GPTASK_TEST_TOKEN")) == "from-environment"
    assert not caplog.text
    file.chmod(0o644)
    check_files(Serve(token_file=str(file)))
    assert "every user of this machine can read the token; chmod o-r" in caplog.text
    assert "s3cret" not in caplog.text


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "No such file"),
        (b"", "the token is empty"),
        (b" \n", "the token is empty"),
        (b"a b", "a token is one word"),
        (b"a\nb", "a token is one word"),
        ("tök".encode(), "a token is one word"),
        (b"\xff\xfe", "it is no text"),
    ],
)
def test_an_unusable_token_is_refused_and_never_shown(content, problem, tmp_path, monkeypatch):
    file = tmp_path / "token"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=f"^token_file={file}: {problem}") as refused:
        read_token(Serve(token_file=str(file)))
    assert "tök" not in str(refused.value)
    monkeypatch.setenv("GPTASK_TEST_TOKEN", "")
    with pytest.raises(UserError, match=r"^token_env=GPTASK_TEST_TOKEN: the token is empty"):
        read_token(Serve(token_env="GPTASK_TEST_TOKEN"))
    monkeypatch.delenv("GPTASK_TEST_TOKEN")
    with pytest.raises(UserError, match=r"^token_env=GPTASK_TEST_TOKEN: the environment has no such variable"):
        read_token(Serve(token_env="GPTASK_TEST_TOKEN"))


def test_a_port_in_use_is_noticed_at_once():
    with closing(listening_socket(Serve(port=0))) as first:
        port = first.getsockname()[1]
        assert url_of(Serve(port=0), first) == f"http://127.0.0.1:{port}"
        with pytest.raises(UserError, match=f"^host=127.0.0.1 port={port}: the port is in use: choose another one"):
            listening_socket(Serve(port=port))


def test_localhost_is_listened_to_where_clients_look_first():
    with closing(listening_socket(Serve(host="localhost", port=0))) as listener:
        socket.create_connection(("127.0.0.1", listener.getsockname()[1]), timeout=10).close()


@pytest.mark.parametrize(
    ("code", "message"),
    [(errno.EACCES, "choose a port from 1024 on"), (errno.EADDRNOTAVAIL, "no such address"), (errno.EIO, "I/O error")],
)
def test_other_reasons_why_it_can_not_listen(code, message, monkeypatch):
    def refuse(self, address):
        raise OSError(code, "I/O error")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    with pytest.raises(UserError, match=f"^host=127.0.0.1 port=8000: .*{message}"):
        listening_socket(Serve())
