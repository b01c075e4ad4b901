"""What a result depends on."""

import subprocess
from importlib.metadata import version

import pytest
from gptask.runs import provenance


def test_versions_are_those_of_installed_packages(monkeypatch):
    monkeypatch.setattr(provenance, "PACKAGES", ("gptask", "torch", "a-package-that-nobody-made"))
    assert provenance.versions() == {"gptask": version("gptask"), "torch": version("torch")}


def test_there_is_no_commit_outside_a_checkout(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "files", lambda package: tmp_path)
    assert provenance.git_commit() is None


def test_the_commit_is_that_of_the_checkout(tmp_path, monkeypatch):
    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    package = tmp_path / "gptask"
    package.mkdir()
    git("init", "-q")
    (package / "code.py").write_text("")
    git("add", ".")
    git("commit", "-qm", "code")
    monkeypatch.setattr(provenance, "files", lambda name: package)
    assert provenance.git_commit() == git("rev-parse", "HEAD")


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, 3000),
        ({"memory.max": "max"}, 3000),
        ({"memory.max": str(500 << 20)}, 500),
        ({"memory/memory.limit_in_bytes": str(400 << 20)}, 400),
        ({"memory/memory.limit_in_bytes": "9223372036854771712"}, 3000),
    ],
)
def test_the_memory_limit_is_what_is_there_and_free_in_the_control_group(limits, expected, tmp_path):
    files = {"proc/meminfo": f"MemFree: 1 kB\nMemAvailable:    {2000 << 10} kB\n"}
    files |= {"proc/self/status": f"VmHWM:\t 9 kB\nVmRSS:\t {1000 << 10} kB\n"}
    for name, text in (files | {f"sys/fs/cgroup/{name}": text for name, text in limits.items()}).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert provenance.memory_limit_mb(tmp_path) == expected
    assert provenance.memory_limit_mb(tmp_path / "none") is None
