"""Packages of tasks as their authors make them: found by their entry point, installed and used in an environment."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest
from gptask.cli import main
from gptask.cli.scaffold.project import ProjectKind, write_project
from gptask.plugins.discovery import discover

PLUGIN = Path(__file__).parent / "plugin"
TINY = "backbone=nano backbone.n_layer=1 backbone.n_embd=16 backbone.n_head=2 backbone.vocab_size=300 probe=false"
QUICK = f"{TINY} tuning=full trainer.max_epochs=1 trainer.accelerator=cpu data.limit.train=16"


@pytest.fixture
def registered(install_plugin, tmp_path, monkeypatch):
    """The example plugin as an installer leaves it: its metadata on the path."""
    project = tomllib.loads((PLUGIN / "pyproject.toml").read_text())["project"]
    metadata = f"Name: {{}}\nVersion: {project['version']}\n"
    install_plugin(project["name"], metadata=metadata, **project["entry-points"]["gptask.tasks"])
    monkeypatch.setenv("GPTASK_PLUGINS", "gptask,gptask-similarity")
    monkeypatch.chdir(tmp_path)


def call(line):
    with pytest.raises(SystemExit) as stop:
        main(line.split())
    return stop.value.code


def test_the_example_is_found_by_its_entry_point_and_used(registered, capsys):
    plugin = discover()["similarity"]
    assert (plugin.origin, plugin.state) == ("gptask-similarity 0.1.0", "ok")
    assert call(f"train task=similarity task.loss=huber task.both_orders=true folder=run {QUICK}") == 0
    metrics = json.loads(Path("run/metrics.json").read_text())
    assert list(metrics["metrics"]) == ["spearman", "pearson", "mae"]
    assert metrics["plugin"] == "gptask-similarity 0.1.0"
    Path("pairs.jsonl").write_text('{"first": "A dog barks.", "second": "A dog is barking."}\n')
    assert call("predict run=run input=pairs.jsonl output=said.jsonl") == 0
    assert 0 <= json.loads(Path("said.jsonl").read_text())["prediction"] <= 5
    assert call("report run") == 0
    capsys.readouterr()
    assert call("train task=similarity task.loss=mae") == 2
    assert "mse" in capsys.readouterr().err
    Path("bad.csv").write_text("first,second,score\na,b,3\nc,d,7\n")
    assert call(f"train task=similarity data=files data.train=bad.csv {QUICK}") == 2
    assert "bad.csv:3: the score 7 lies outside 0 to 5" in capsys.readouterr().err


# --- installed, in an environment of its own ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """``environment(*arguments, cwd=...)`` runs Python in a fresh environment that sees what is installed here."""
    pytest.importorskip("hatchling", reason="pip install hatchling editables: what builds the packages, offline")
    pytest.importorskip("editables", reason="pip install editables: what makes an editable install, offline")
    root = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", root], check=True, timeout=120)
    own = sysconfig.get_paths(vars={"base": str(root), "platbase": str(root)})["purelib"]
    ours = (str(PLUGIN), str(PLUGIN.parents[1]))  # on the path for this suite alone
    seen = [path for path in sys.path if Path(path).is_dir() and path not in ours]
    (Path(own) / "what_is_here.pth").write_text("\n".join(seen) + "\n")
    kept = {k: v for k, v in os.environ.items() if k not in ("GPTASK_PLUGINS", "PYTHONPATH", "PYTEST_ADDOPTS")}

    def run(*arguments, cwd):
        command = [str(root / "bin" / "python"), *arguments]
        ended = subprocess.run(command, cwd=cwd, env=kept, capture_output=True, text=True, timeout=600, check=False)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    return run


def copied(name, folder):
    """The example, where building it leaves nothing in the checkout."""
    shutil.copytree(PLUGIN, folder, ignore=shutil.ignore_patterns("__pycache__"))


def scaffolded(kind):
    return lambda name, folder: write_project(name, folder, kind)


PACKAGES = {
    "similarity": copied,
    "toxicity": scaffolded(ProjectKind.classification),
    "headline": scaffolded(ProjectKind.generation),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_is_installed_trains_and_passes_its_tests(name, environment, tmp_path):
    folder = tmp_path / "acme"
    PACKAGES[name](name, folder)
    pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation"]
    environment(*pip, "--no-index", "-e", str(folder), cwd=tmp_path)
    assert name in environment("-m", "gptask", "tasks", cwd=tmp_path)
    environment("-m", "gptask", "train", f"task={name}", "folder=run", *QUICK.split(), cwd=tmp_path)
    assert json.loads((tmp_path / "run/metrics.json").read_text())["task"] == name
    assert "passed" in environment("-m", "pytest", "-q", cwd=folder)
