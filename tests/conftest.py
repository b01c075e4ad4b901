"""No test writes outside pytest's folders, and only our own plugins are loaded."""

import logging
import os
import signal
import tempfile
from collections.abc import Generator, Iterator

import pytest

os.environ["GPTASK_PLUGINS"] = "gptask"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models spend more on waking a second thread than on computing
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell starts its background jobs like this
    signal.signal(signal.SIGINT, signal.default_int_handler)
_cache = tempfile.TemporaryDirectory(prefix="gptask-tests-")
os.environ["GPTASK_CACHE"] = _cache.name

pytest_plugins = [  # imported after this module, so that gptask finds the environment above
    "tests.support.adapter_folders",
    "tests.support.command_line",
    "tests.support.distributions",
    "tests.support.int4",
    "tests.support.limited_memory",
    "tests.support.tiny_models",
    "tests.support.run_folders",
    "tests.support.page_commands",
]


@pytest.fixture(scope="session", autouse=True)
def _cache_folder() -> Iterator[None]:
    """Take the session's cache away at its end."""
    yield
    _cache.cleanup()


@pytest.fixture(autouse=True)
def _heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let caplog alone hear our log, whatever a command line before set up in this process: its stream is closed."""
    monkeypatch.setattr(logging.getLogger("gptask"), "propagate", True)
    monkeypatch.setattr(logging.getLogger("gptask"), "handlers", [])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Escape half surrogate pairs in what a test has logged: xdist can't send them to its main process."""
    report = yield
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return report


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out the long tier unless it is asked for."""
    if os.environ.get("GPTASK_LONG", "") in ("", "0"):
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason="long tier: GPTASK_LONG=1 runs it"))
