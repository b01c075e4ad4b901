"""`PartFile`: a file appears complete, and what its journal covers survives everything."""

import errno
import json
import os
import stat

import pytest
from gptask import UserError
from gptask.runs import part_file
from gptask.runs.part_file import PartFile

IDENTITY = {"run": "abc", "data.max_tokens": 512, "float": float("nan"), "tuple": (1, 2), "name": "in\udcff.txt"}


@pytest.fixture(autouse=True)
def _commit_every_window(monkeypatch):
    monkeypatch.setattr(part_file, "COMMIT_SECONDS", 0.0)


def window(part, text, **state):
    part.write(text.encode())
    part.end_window(state)


def stopped(target, *texts, pending="", identity=IDENTITY):
    """A part file with these windows, and a begun one, as a stop leaves it."""
    with pytest.raises(KeyboardInterrupt), PartFile(target, identity) as part:  # noqa: PT012
        for number, text in enumerate(texts, 1):
            window(part, text, rows=number)
        part.write(pending.encode())
        raise KeyboardInterrupt
    return target.with_name("out.txt.part")


def test_the_file_appears_when_it_is_complete_and_nothing_else_stays(tmp_path):
    target = tmp_path / "out.txt"
    target.write_text("old")
    target.chmod(0o640)
    with PartFile(target, IDENTITY) as part:
        assert part.state == {}
        window(part, "a\n", rows=1)
        part.write(b"b\n")
        part.flush()
        assert target.read_text() == "old"
        part.publish()
    assert target.read_text() == "a\nb\n"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert [path.name for path in tmp_path.iterdir()] == ["out.txt"]


def test_whole_windows_stay_and_what_comes_after_them_is_cut(tmp_path):
    part = stopped(tmp_path / "out.txt", "a\n", "b\n", pending="half a li")
    assert part.read_text() == "a\nb\n"
    part.write_text("a\nb\nwritten, but not in the journal")
    with PartFile(tmp_path / "out.txt", IDENTITY) as again:
        assert again.state == {"rows": 2}
        assert part.read_text() == "a\nb\n"
        window(again, "c\n", rows=3)
        again.publish()
    assert (tmp_path / "out.txt").read_text() == "a\nb\nc\n"


def test_a_stop_enters_what_was_computed_since_the_last_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(part_file, "COMMIT_SECONDS", 3600.0)
    part = stopped(tmp_path / "out.txt", "a\n", "b\n", "c\n")
    assert json.loads((tmp_path / "out.txt.part.json").read_text())["state"] == {"rows": 3}
    assert part.read_text() == "a\nb\nc\n"


def test_a_stop_before_the_first_window_leaves_nothing(tmp_path):
    stopped(tmp_path / "out.txt", pending="x")
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data.max_tokens": 128}, "command, so the predictions begin anew: data.max_tokens is 128, it was 512"),
        ({"new": 1}, "new is 1, it was null"),
        ({"run": "x" * 500}, "run is \"xxx"),
    ],
)  # fmt: skip
def test_another_identity_begins_anew_and_says_what_differs(change, message, tmp_path, caplog):
    part = stopped(tmp_path / "out.txt", "a\n")
    with PartFile(tmp_path / "out.txt", IDENTITY | change) as again:
        assert again.state == {}
        assert part.read_text() == ""
        assert not (tmp_path / "out.txt.part.json").exists()
        again.publish()
    assert message in caplog.text
    assert len(caplog.text) < 600


@pytest.mark.parametrize(
    "journal", ["", "{", "[]", "null", '{"format": 99}', '{"format": 1, "bytes": 9, "state": {}, "identity": {}}']
)
def test_a_journal_that_does_not_fit_begins_anew(journal, tmp_path, caplog):
    part = stopped(tmp_path / "out.txt", "a\n")
    (tmp_path / "out.txt.part.json").write_text(journal)
    with PartFile(tmp_path / "out.txt", IDENTITY) as again:
        assert (again.state, part.read_text()) == ({}, "")
        again.publish()
    assert "begin anew" in caplog.text


def test_a_journal_without_its_file_begins_anew(tmp_path):
    stopped(tmp_path / "out.txt", "a\n").unlink()
    with PartFile(tmp_path / "out.txt", IDENTITY) as again:
        assert again.state == {}
        again.publish()
    assert (tmp_path / "out.txt").read_text() == ""


def test_two_processes_never_write_one_file(tmp_path):
    target = tmp_path / "out.txt"
    with PartFile(target, IDENTITY) as first:
        window(first, "a\n", rows=1)
        with (
            pytest.raises(UserError, match=r"another process writes .*out\.txt .*choose another output"),
            PartFile(target, IDENTITY),
        ):
            pass
        first.publish()
    assert target.read_text() == "a\n"


def test_a_lock_on_a_file_that_has_its_name_by_now_is_not_enough(tmp_path, monkeypatch):
    target, lock, locked = tmp_path / "out.txt", PartFile._lock, []

    def late(part, stream):
        if not locked:  # the process before publishes between our open and our lock
            part.path.replace(target)
            target.write_text("complete")
        locked.append(stream)
        lock(part, stream)

    monkeypatch.setattr(PartFile, "_lock", late)
    with PartFile(target, IDENTITY) as part:
        assert target.read_text() == "complete"
        window(part, "anew\n", rows=1)
        part.publish()
    assert len(locked) == 2
    assert target.read_text() == "anew\n"


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(part_file.fcntl, "flock", refuse)
    with PartFile(tmp_path / "out.txt", IDENTITY) as part:
        part.publish()
    assert "has no locks (No locks available)" in caplog.text


def test_a_stop_after_the_file_has_its_name_takes_nothing_away(tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    def write_until_stopped():
        with PartFile(tmp_path / "out.txt", IDENTITY) as part:
            window(part, "a\n", rows=1)
            part.write(b"b\n")
            part.flush()
            monkeypatch.setattr(part_file.Path, "unlink", stop)
            part.publish()

    with pytest.raises(KeyboardInterrupt):
        write_until_stopped()
    monkeypatch.undo()
    assert (tmp_path / "out.txt").read_text() == "a\nb\n"
    with PartFile(tmp_path / "out.txt", IDENTITY) as again:  # the journal is still there, its file is not
        assert again.state == {}
        window(again, "c\n", rows=1)
        again.publish()
    assert (tmp_path / "out.txt").read_text() == "c\n"


@pytest.mark.parametrize("stage", ["write", "fsync", "replace"])
def test_a_full_disk_leaves_the_part_sound(stage, tmp_path, monkeypatch):
    part = stopped(tmp_path / "out.txt", "a\n")
    journal = (tmp_path / "out.txt.part.json").read_text()
    write = os.write

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    def half(stream, data):
        monkeypatch.setattr(os, "write", full)
        return write(stream, data[:1])

    with pytest.raises(OSError, match="No space"), PartFile(tmp_path / "out.txt", IDENTITY) as again:  # noqa: PT012
        if stage == "replace":
            monkeypatch.setattr(part_file.Path, "replace", full)
        else:
            monkeypatch.setattr(os, stage, half if stage == "write" else full)
        window(again, "b\n", rows=2)
    monkeypatch.undo()
    assert (tmp_path / "out.txt.part.json").read_text() == journal
    assert part.read_text().startswith("a\n")
    assert {path.name for path in tmp_path.iterdir()} == {"out.txt.part", "out.txt.part.json"}
    with PartFile(tmp_path / "out.txt", IDENTITY) as again:
        assert again.state == {"rows": 1}
