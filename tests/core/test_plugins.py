"""Plugins are found through entry points; a broken one never hides the others."""

import sys
import textwrap
from dataclasses import fields

import pytest
from gptask import UserError
from gptask.plugins import chosen, discover
from hydra.core.config_store import ConfigStore

GOOD = '''
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
BROKEN = {
    "absent": ("", ["ModuleNotFoundError", "No module named 'absent_module'"]),
    "syntax": ("def f(:\n", ["SyntaxError", "line 1"]),
    "needs": ("import missing_dependency\n", ["ModuleNotFoundError", "missing_dependency", "line 1"]),
    "attribute": ("x = 1\n", ["AttributeError", "Good"]),
    "raises": (
        "try:\n    1 / 0\nexcept Exception as e:\n    raise ValueError('no luck') from e\n",
        ["no luck", "division by zero"],
    ),
    "exits": ("import sys\nsys.exit('bye')\n", ["SystemExit", "bye"]),
    "function": ("def Good(): ...\n", ["expected a subclass of gptask.Task"]),
    "foreign": ("class Good: ...\n", ["expected a subclass of gptask.Task"]),
    "undecorated": (GOOD.replace("@dataclass", ""), ["not decorated with @dataclass"]),
    "incomplete": (GOOD.replace("    def metrics(self): ...\n", ""), ["Good lacks metrics"]),
    "literal": (GOOD.replace("times: int", "times: Literal[1, 2]"), ["Literal"]),
    "old": (GOOD + "    contract_version = 0\n", ["made for contract version 0"]),
}


@pytest.fixture
def install(tmp_path, monkeypatch):
    """``install("dist", name="module:Class")``: a distribution on the path, as pip leaves it."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("GPTASK_PLUGINS", "")
    store = ConfigStore.instance().repo.get("task", {})
    before, modules = dict(store), set(sys.modules)

    def call(distribution, source=None, metadata="Name: {}\nVersion: 1.2\n", **points):
        info = tmp_path / f"{distribution}-1.2.dist-info"
        info.mkdir()
        if metadata:
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\n{metadata.format(distribution)}")
        lines = "".join(f"{name} = {value}\n" for name, value in points.items())
        (info / "entry_points.txt").write_text(f"[gptask.tasks]\n{lines}")
        if source is not None:
            (tmp_path / f"{next(iter(points.values())).partition(':')[0]}.py").write_text(textwrap.dedent(source))

    yield call
    store.clear()
    store.update(before)
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def test_a_third_partys_plugin_stands_beside_the_built_in_ones(install):
    install("echo-tasks", GOOD, echo="echo_module:Good")
    plugins = discover()
    assert {"echo", "sentiment", "qa"} <= plugins.keys()
    assert (plugins["echo"].origin, plugins["echo"].state) == ("echo-tasks 1.2", "ok")
    task = chosen(plugins, "echo")
    assert [option.name for option in fields(task)] == ["times"]
    assert "echo.yaml" in ConfigStore.instance().repo["task"]  # task=echo composes without any YAML


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_plugin_is_one_line_and_the_others_work(install, name):
    source, words = BROKEN[name]
    install("bad-tasks", source if name != "absent" else None, **{name: f"{name}_module:Good"})
    plugins = discover()
    plugin = plugins[name]
    assert (plugin.state, plugin.task) == ("broken", None)
    assert "\n" not in plugin.error
    assert plugins["sentiment"].state == "ok"
    with pytest.raises(UserError, match=rf"task '{name}' \(bad-tasks 1.2\) can't be used") as raised:
        chosen(plugins, name)
    for word in words:
        assert word in str(raised.value)
    assert len(str(raised.value).splitlines()) <= 5
    assert raised.value.__cause__ is plugin.cause  # GPTASK_DEBUG=1 shows it whole


def test_two_distributions_with_one_name_are_an_error_for_that_name_only(install):
    install("first-tasks", GOOD, echo="echo_module:Good", other="echo_module:Good")
    install("second-tasks", None, echo="echo_module:Good")  # even if both mean the same class
    plugins = discover()
    assert plugins["echo"].state == "clash"
    assert plugins["other"].state == "ok"
    with pytest.raises(UserError, match=r"claimed by first-tasks 1.2 and second-tasks 1.2: uninstall one"):
        chosen(plugins, "echo")


def test_a_name_of_ours_taken_by_others_is_a_clash(install):
    install("bold-tasks", GOOD, sentiment="echo_module:Good")
    assert discover()["sentiment"].state == "clash"


def test_a_name_hydra_cant_take_is_broken(install):
    install("odd-tasks", GOOD, **{"my-task": "echo_module:Good"})
    assert "no identifier" in discover()["my-task"].error


def test_what_a_plugin_prints_stays_off_stdout(install, capfd):
    install("loud-tasks", f"print('hello from import')\n{GOOD}", echo="echo_module:Good")
    assert discover()["echo"].state == "ok"
    out, err = capfd.readouterr()
    assert out == ""
    assert "hello from import" in err


def test_only_the_asked_for_are_loaded(install):
    install("bad-tasks", "raise ValueError\n", bad="bad_module:Good")
    assert discover({"qa"})["bad"].state == "ok"  # not looked at
    assert "bad_module" not in sys.modules


def test_the_environment_limits_discovery(install, monkeypatch):
    install("echo_tasks", GOOD, echo="echo_module:Good")
    install("bad-tasks", "raise ValueError\n", bad="bad_module:Good")
    monkeypatch.setenv("GPTASK_PLUGINS", "Echo-Tasks")  # compared as indexes compare names
    assert list(discover()) == ["echo"]
    with pytest.raises(UserError, match=r"GPTASK_PLUGINS=Echo-Tasks hides others"):
        chosen(discover(), "sentiment")


@pytest.mark.parametrize("finder", ["importlib.metadata", "importlib_metadata"])
def test_damaged_metadata_is_no_reason_to_stop(install, finder):
    pytest.importorskip(finder)  # the backport (mlflow brings it) finds distributions for everybody once it is imported
    install("half-gone", GOOD, metadata="", echo="echo_module:Good")
    plugins = discover()
    assert plugins["echo"].task is not None
    assert plugins["qa"].state == "ok"


def test_unknown_names_the_nearest():
    with pytest.raises(UserError, match="Did you mean 'sentiment'"):
        chosen(discover(), "sentimant")


def test_the_command_line_warns_of_a_broken_plugin_once_and_goes_on(install, capsys, monkeypatch):
    import gptask.cli

    install("bad-tasks", "raise ValueError('no luck')\n", bad="bad_module:Good")
    monkeypatch.setattr(gptask.cli, "ACTIONS", dict.fromkeys(gptask.cli.ACTIONS, lambda config: None))

    def call(*arguments):
        with pytest.raises(SystemExit) as stop:
            gptask.cli.main(arguments)
        return stop.value.code, *capsys.readouterr()

    line = "gptask: task 'bad' (bad-tasks 1.2) is broken: ValueError: no luck\n"
    assert call("train", "backbone=nano") == (0, "", line)
    code, out, err = call("tasks")
    assert (code, err) == (0, "")
    assert "broken: ValueError: no luck" in out
    code, out, err = call("train", "task=bad")
    assert code == 2
    assert "can't be used" in err
    assert "Could not find" not in err
    monkeypatch.setenv("GPTASK_PLUGINS", "gptask")
    assert call("train", "backbone=nano") == (0, "", "")
