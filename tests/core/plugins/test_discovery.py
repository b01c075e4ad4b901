"""Plugins are found through entry points; a broken one never hides the others."""

import os
import signal
import subprocess
import sys
from dataclasses import fields
from importlib.metadata import distributions

import pytest
from gptask import Config, UserError
from gptask.plugins.config_group import register_task_group
from gptask.plugins.discovery import discover, installed_plugins, load_task_class, plugin_of
from gptask.runs.config_file import read_config, write_config
from gptask.runs.run import task_from_config
from hydra.core.config_store import ConfigStore

from tests.support.distributions import GOOD_TASK

BROKEN = {  # source of the module, words in the message
    "absent": (None, ["ModuleNotFoundError", "No module named 'absent_module'"]),
    "syntax": ("def f(:\n", ["SyntaxError", "line 1"]),
    "needs": ("import missing_dependency\n", ["ModuleNotFoundError", "missing_dependency", "line 1"]),
    "attribute": ("x = 1\n", ["AttributeError", "Good"]),
    "raises": (
        "try:\n    1 / 0\nexcept Exception as e:\n    raise ValueError('no luck') from e\n",
        ["no luck", "division by zero"],
    ),
    "exits": ("import sys\nsys.exit('bye')\n", ["SystemExit", "bye"]),
    "interrupts": ("raise KeyboardInterrupt('not the user')\n", ["KeyboardInterrupt", "not the user"]),
    "base": ("class Odd(BaseException): ...\nraise Odd('odd')\n", ["Odd", "odd"]),
    "recurses": ("def f(): f()\nf()\n", ["RecursionError"]),
    "asks": ("name = input('your name? ')\n", ["EOFError"]),
    "warns": ("raise DeprecationWarning('old')  # what python -W error makes of one\n", ["DeprecationWarning", "old"]),
    "function": ("def Good(): ...\n", ["expected a subclass of gptask.Task"]),
    "foreign": ("class Good: ...\n", ["expected a subclass of gptask.Task"]),
    "undecorated": (GOOD_TASK.replace("@dataclass", ""), ["not decorated with @dataclass", "undecorated_module.py:"]),
    "incomplete": (
        GOOD_TASK.replace("    def metrics(self): ...\n", ""),
        ["Good lacks metrics", "incomplete_module.py:"],
    ),
    "abstract": ("from gptask import Task as Good\n", ["lacks fields, head, metrics"]),
    "literal": (GOOD_TASK.replace("times: int", "times: Literal[1, 2]"), ["Literal"]),
    "unknown": (GOOD_TASK.replace("times: int", "times: 'Unknown'"), ["Unknown"]),
    "default": (GOOD_TASK.replace('option(1, "', 'option(lambda: 1 / 0, "'), ["ZeroDivisionError"]),
    "posts": (GOOD_TASK + "    def __post_init__(self): raise RuntimeError('no GPU')\n", ["RuntimeError: no GPU"]),
    "fieldless": (GOOD_TASK.replace('[Field("text")', '["text"'), ["must list gptask.Field"]),
    "version": (GOOD_TASK + "    contract_version = 'new'\n", ["contract_version = 'new'", 'expected "major.minor"']),
    "true": (GOOD_TASK, ["the entry-point name 'true' is not an identifier"]),
}


def test_a_third_party_plugin_is_found_beside_the_built_in_ones(install_plugin):
    install_plugin("echo-tasks", GOOD_TASK, echo="echo_module:Good")
    plugins = discover()
    register_task_group(plugins)
    assert {"echo", "sentiment", "qa"} <= plugins.keys()
    assert (plugins["echo"].origin, plugins["echo"].state) == ("echo-tasks 1.2", "ok")
    task = load_task_class(plugins, "echo")
    assert [option.name for option in fields(task)] == ["times"]
    assert "echo.yaml" in ConfigStore.instance().repo["task"]  # task=echo composes without any YAML


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_plugin_is_reported_in_one_line_and_the_others_work(install_plugin, name):
    source, words = BROKEN[name]
    install_plugin("bad-tasks", source, **{name: f"{name}_module:Good"})
    plugins = discover()
    plugin = plugins[name]
    assert (plugin.state, plugin.task) == ("broken", None)
    assert "\n" not in plugin.error
    assert plugins["sentiment"].state == "ok"
    with pytest.raises(UserError, match=rf"task '{name}' \(bad-tasks 1.2\) can't be used") as raised:
        load_task_class(plugins, name)
    for word in words:
        assert word in str(raised.value)
    assert len(str(raised.value).splitlines()) <= 5
    assert raised.value.__cause__ is plugin.cause  # GPTASK_DEBUG=1 shows its traceback


def test_a_name_in_two_distributions_is_an_error_for_that_name_only(install_plugin, monkeypatch):
    install_plugin("first-tasks", GOOD_TASK, echo="echo_module:Good", other="echo_module:Good")
    install_plugin("second-tasks", None, echo="echo_module:Good")  # even if both mean the same class
    plugins = discover()
    assert plugins["echo"].state == "clash"
    assert plugins["other"].state == "ok"
    with pytest.raises(UserError, match=r"claimed by first-tasks 1.2 and second-tasks 1.2: uninstall one"):
        load_task_class(plugins, "echo")
    monkeypatch.setenv("GPTASK_PLUGINS", "-first_tasks")  # the other way out
    assert (discover()["echo"].state, discover()["echo"].origin) == ("ok", "second-tasks 1.2")


def test_one_distribution_that_claims_a_name_twice_is_a_clash(install_plugin):
    path = install_plugin("first-tasks", GOOD_TASK, echo="echo_module:Good")
    (path / "first-tasks-1.2.dist-info/entry_points.txt").write_text("[gptask.tasks]\necho = a:B\necho = c:D\n")
    assert "claimed twice by first-tasks 1.2" in discover()["echo"].error


def test_another_distribution_with_a_built_in_name_is_a_clash(install_plugin):
    install_plugin("bold-tasks", GOOD_TASK, sentiment="echo_module:Good")
    assert discover()["sentiment"].state == "clash"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("my-task", "echo_module:Good", "not an identifier"),
        ("two words", "echo_module:Good", "not an identifier"),
        ("echo", "echo_module", "'echo_module' is not of the form module:Class"),
        ("echo", "", "'' is not of the form module:Class"),
        ("echo", "echo module:Good", "is not of the form"),
        ("echo", "echo_module:Good.Inner", "no attribute 'Inner'"),
    ],
)
def test_a_malformed_entry_point_is_broken(install_plugin, name, value, message):
    path = install_plugin("odd-tasks", GOOD_TASK, echo="echo_module:Good")
    (path / "odd-tasks-1.2.dist-info/entry_points.txt").write_text(f"[gptask.tasks]\n{name} = {value}\n")
    plugins = discover()
    assert (plugins[name].state, plugins["qa"].state) == ("broken", "ok")
    assert message in plugins[name].error


@pytest.mark.parametrize("lines", [b"[gptask.tasks]\nno value\n", b"[gptask.tasks]\n\xff = x:Y\n"])
def test_unreadable_entry_points_are_reported_under_their_distribution(install_plugin, lines):
    path = install_plugin("odd-tasks", GOOD_TASK, echo="echo_module:Good")
    (path / "odd-tasks-1.2.dist-info/entry_points.txt").write_bytes(lines)
    plugins = discover()
    assert (plugins["odd-tasks"].state, plugins["qa"].state) == ("broken", "ok")


def test_what_a_plugin_prints_goes_to_standard_error(install_plugin, capfd):
    loud = "import os\nprint('hello from import')\nos.system('echo hello from a process')\n"
    install_plugin("loud-tasks", loud + GOOD_TASK, echo="echo_module:Good")
    assert discover()["echo"].state == "ok"
    print("ours")
    out, err = capfd.readouterr()
    assert out == "ours\n"
    assert "hello from import" in err
    assert "hello from a process" in err


def test_the_users_own_ctrl_c_is_not_caught(install_plugin):
    install_plugin("slow-tasks", f"import os\nos.kill({os.getpid()}, {int(signal.SIGINT)})\n", slow="slow_module:Good")
    with pytest.raises(KeyboardInterrupt):
        discover({"slow"})


@pytest.mark.parametrize(
    ("stated", "state", "message"),
    [
        ("", "ok", ""),
        ("contract_version = '1.0'", "ok", ""),
        ("contract_version = 0", "incompatible", "made for contract 0.0"),
        ("contract_version = '2.0'", "incompatible", "has 1.0: upgrade gptask"),
        ("contract_version = '1.999'", "incompatible", "upgrade gptask"),
        ("contract_version = '0.9'", "incompatible", "upgrade the plugin, or install an older gptask"),
    ],
)
def test_a_plugin_made_for_another_contract_is_not_used(install_plugin, monkeypatch, stated, state, message):
    monkeypatch.setattr("gptask.plugins.compatibility.CONTRACT_VERSION", "1.0")
    install_plugin("dated-tasks", f"{GOOD_TASK}    {stated}\n", echo="echo_module:Good")
    plugins = discover()
    assert plugins["echo"].state == state
    assert message in plugins["echo"].error
    assert plugins["qa"].state == "ok"
    if message:
        with pytest.raises(UserError, match="can't be used: made for contract"):
            load_task_class(plugins, "echo")


def test_a_plugin_for_an_older_minor_version_works(install_plugin, monkeypatch):
    monkeypatch.setattr("gptask.plugins.compatibility.CONTRACT_VERSION", "1.3")
    install_plugin("dated-tasks", GOOD_TASK + "    contract_version = '1.0'\n", echo="echo_module:Good")
    plugin = discover()["echo"]
    assert (plugin.state, plugin.contract) == ("ok", "1.0")


def test_a_task_with_required_options_is_not_broken(install_plugin):
    picky = "\n    def __post_init__(self):\n        from gptask import UserError\n        raise UserError('set it')\n"
    needy = GOOD_TASK.replace("times: int = option(1", "times: int = field(metadata=dict(help=1)) #")
    install_plugin("picky-tasks", GOOD_TASK + picky, picky="picky_module:Good")
    install_plugin("needy-tasks", needy, needy="needy_module:Good")
    plugins = discover()
    assert (plugins["picky"].state, plugins["needy"].state) == ("ok", "ok")


def test_only_the_plugins_asked_for_are_loaded(install_plugin):
    install_plugin("bad-tasks", "raise ValueError\n", bad="bad_module:Good")
    plugins = discover({"qa"})
    assert (plugins["bad"].state, plugins["qa"].state) == ("unread", "ok")
    assert "bad_module" not in sys.modules


def test_hydra_loads_the_chosen_task_and_no_other(install_plugin):
    from gptask.cli.hydra.compose import compose, loader
    from gptask.config.conversion import register_schemas

    install_plugin("echo-tasks", GOOD_TASK, echo="echo_module:Good")
    install_plugin("bad-tasks", "raise ValueError\n", bad="bad_module:Good")
    register_task_group(discover(()))
    register_schemas()
    with loader() as configs:
        assert {"bad", "echo"} <= set(configs.get_group_options("task"))
        assert "echo_module" not in sys.modules
        assert compose(configs, "predict", ["task=echo"]).task == {"times": 1}
    assert "bad_module" not in sys.modules


def test_the_plugin_of_an_instance_is_found_without_loading_others(install_plugin):
    from gptask.plugins.discovery import plugin_of

    install_plugin("echo-tasks", GOOD_TASK, echo="echo_module:Good")
    install_plugin("bad-tasks", "raise ValueError\n", bad="bad_module:Good")
    plugin = plugin_of(load_task_class(discover(()), "echo")())
    assert (plugin.name, plugin.origin) == ("echo", "echo-tasks 1.2")


def test_the_environment_variable_limits_discovery(install_plugin, monkeypatch):
    install_plugin("echo_tasks", GOOD_TASK, echo="echo_module:Good")
    install_plugin("bad-tasks", "raise ValueError\n", bad="bad_module:Good")
    monkeypatch.setenv("GPTASK_PLUGINS", "Echo-Tasks")  # compared as indexes compare names
    assert list(discover()) == ["echo"]
    with pytest.raises(UserError, match=r"task 'sentiment' \(gptask 0.1.0\) is disabled by GPTASK_PLUGINS=Echo-Tasks"):
        load_task_class(discover(), "sentiment")
    states = {plugin.name: plugin.state for plugin in installed_plugins()}
    assert (states["bad"], states["echo"]) == ("disabled", "ok")
    monkeypatch.setenv("GPTASK_PLUGINS", "-bad-tasks")
    assert {"echo", "sentiment"} <= discover().keys()
    assert "bad" not in discover()


@pytest.mark.parametrize("finder", ["importlib.metadata", "importlib_metadata"])
def test_a_distribution_with_damaged_metadata_is_still_found(install_plugin, finder):
    pytest.importorskip(finder)  # the backport (mlflow brings it) finds distributions for everybody once it is imported
    install_plugin("half-gone", GOOD_TASK, metadata="", echo="echo_module:Good")
    plugins = discover()
    assert plugins["echo"].task is not None
    assert plugins["qa"].state == "ok"


def test_an_unknown_task_suggests_the_nearest_name():
    with pytest.raises(UserError, match="Did you mean 'sentiment'"):
        load_task_class(discover(), "sentimant")


def test_the_command_line_imports_only_the_chosen_plugin(install_plugin, tmp_path):
    imported_marker = tmp_path / "imported_marker"
    path = install_plugin(
        "bad-tasks", f"open({str(imported_marker)!r}, 'w')\nraise ValueError('no luck')\n", bad="bad_module:Good"
    )
    environment = os.environ | {"PYTHONPATH": str(path)}

    def call(*arguments):
        command = [sys.executable, "-m", "gptask", *arguments]
        process = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=120)
        return process.returncode, process.stdout, process.stderr

    code, out, err = call("--help")
    assert (code, err) == (0, "")
    code, out, err = call("train", "task=qa", "--cfg", "job")
    assert (code, err) == (0, "")
    assert "stride: " in out
    assert call("train", "experiment=sst2", "task.label_words.negative=bad", "--cfg", "job")[::2] == (0, "")
    assert not imported_marker.exists()
    code, out, err = call("train", "task=bad", "--cfg", "job")
    assert (code, out) == (2, "")
    assert "task 'bad' (bad-tasks 1.2) can't be used" in err
    assert "ValueError: no luck" in err
    assert len(err.splitlines()) <= 5
    assert imported_marker.exists()


def test_a_process_scans_its_distributions_once(install_plugin, monkeypatch, tmp_path):
    install_plugin("echo-tasks", GOOD_TASK, echo="echo_module:Good")
    scans = []

    def counted_distributions():
        scans.append(1)
        return distributions()

    monkeypatch.setattr("gptask.plugins.discovery.distributions", counted_distributions)
    task = load_task_class(discover(()), "echo")()
    discover({"qa"})
    plugin_of(task)
    write_config(tmp_path, Config(task=task))
    assert task_from_config(read_config(tmp_path))[1] == task
    assert len(scans) == 1


def test_discovery_does_not_change_hydras_store(install_plugin):
    install_plugin("echo-tasks", GOOD_TASK, echo="echo_module:Good")
    discover()
    assert ConfigStore.instance().repo["task"] == {}
