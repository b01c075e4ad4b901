"""Distributions with task plugins, put on the path as pip leaves them."""

import sys
import textwrap

import pytest
from gptask.plugins import discovery
from hydra.core.config_store import ConfigStore

GOOD_TASK = '''
from dataclasses import dataclass, field
from typing import Any, Literal
from gptask import Field, Task, option

@dataclass
class Good(Task):
    """Echo a text."""

    times: int = option(1, "how often")

    def fields(self):
        return [Field("text"), Field("echo", target=True)]

    def render(self, example):
        return example["text"], example.get("echo")

    def encode(self, example, tokenizer, max_tokens): ...
    def head(self, backbone): ...
    def prediction(self, example, outputs): ...
    def metrics(self): ...
    def sample(self): ...
'''


def write_distribution(path, distribution, metadata="Name: {}\nVersion: 1.2\n", **points):
    """Write what pip leaves of a distribution in a folder on the path, without its modules."""
    info = path / f"{distribution}-1.2.dist-info"
    info.mkdir()
    if metadata:
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\n{metadata.format(distribution)}")
    lines = "".join(f"{name} = {value}\n" for name, value in points.items())
    (info / "entry_points.txt").write_text(f"[gptask.tasks]\n{lines}")


@pytest.fixture
def install_plugin(tmp_path_factory, monkeypatch):
    """``install_plugin("dist", source, name="module:Class")``; returns the folder that is on the path."""
    path = tmp_path_factory.mktemp("site")
    monkeypatch.syspath_prepend(path)
    monkeypatch.setenv("GPTASK_PLUGINS", "")
    monkeypatch.setitem(ConfigStore.instance().repo, "task", {})

    def call(distribution, source=None, **options):
        write_distribution(path, distribution, **options)
        if source is not None:
            module = next(value for name, value in options.items() if name != "metadata").partition(":")[0]
            (path / f"{module}.py").write_text(textwrap.dedent(source))
        discovery._scan_distributions.cache_clear()  # a process scans its distributions once
        return path

    yield call
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(path)):
            del sys.modules[name]
