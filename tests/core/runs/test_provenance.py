"""What a result depends on."""

import subprocess
from importlib.metadata import version

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
