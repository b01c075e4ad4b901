"""Checkpoints are whole whenever the process ends; a damaged one is passed over, aloud."""

import errno
import logging
import os
import shutil
from pathlib import Path

import pytest
import torch
from gptask import UserError
from gptask.training.checkpoint_files import (
    best_name,
    damage,
    latest_checkpoint,
    load_checkpoint,
    remove_outdated_best,
    remove_unneeded,
    write_checkpoint,
)

BEST_STATE = "BestCheckpoint{'monitor': 'val/accuracy'}"


COUNTS = dict.fromkeys(("ready", "started", "processed", "completed"), 1)
PROGRESS = {"current": COUNTS, "total": COUNTS, "is_last_batch": True}
LOOP = {
    "state_dict": {},
    "epoch_progress": PROGRESS,
    "epoch_loop.batch_progress": PROGRESS,
    "epoch_loop.val_loop.batch_progress": PROGRESS,
    "epoch_loop.automatic_optimization.optim_progress": {"optimizer": {"step": PROGRESS}},
}
RECORD = {
    "config": {"trainer": {}, "outputs": "outputs"},
    "given": {},
    "data": {},
    "plugins": {},
    "weights": "",
    "world_size": 1,
    "total_steps": 9,
}


def save(folder: Path, name: str, step: int, best: str = "") -> Path:
    """A checkpoint of 40 kB in a run folder."""
    path = folder / "checkpoints" / name
    content = {
        "global_step": step,
        "epoch": 0,
        "loops": {"fit_loop": LOOP},
        "callbacks": {BEST_STATE: {"best_model_path": best}},
        "gptask": {"record": RECORD, "random_states": [], "validated": True},
        "state_dict": {"weight": torch.rand(10_000) + 1},
    }
    write_checkpoint(content, path)
    return path


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zero_block(path: Path) -> None:
    """What a loss of power leaves of a file whose blocks were not written: torch loads it without an error."""
    content = path.read_bytes()
    path.write_bytes(content[:8192] + bytes(4096) + content[12288:])
    torch.load(path, weights_only=True)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("harm", [cut_off, zero_block, empty])
def test_a_damaged_file_is_found_and_passed_over_for_an_older_one_and_named(harm, tmp_path, caplog):
    best = save(tmp_path, "best-epoch=0-step=3.ckpt", 3, "best-epoch=0-step=3.ckpt")
    last = save(tmp_path, "last.ckpt", 6, "best-epoch=0-step=3.ckpt")
    assert latest_checkpoint(tmp_path)[0] == last
    assert not caplog.text
    harm(last)
    os.utime(best, (1, 1))  # times are not asked
    assert damage(last).startswith("is damaged: ")
    with caplog.at_level(logging.WARNING, "gptask"):
        path, content = latest_checkpoint(tmp_path)
    assert (path, content["global_step"]) == (best, 3)
    assert "passed over: last.ckpt is damaged: " in caplog.text
    with pytest.raises(UserError, match=r"last\.ckpt is damaged"):
        load_checkpoint(last, "cpu")


def test_the_furthest_file_is_taken_and_of_equally_many_steps_the_one_that_is_written_last(tmp_path):
    names = ["timed-step=9.ckpt", "best-epoch=2-step=9.ckpt", "last.ckpt", "interrupted.ckpt", "timed-step=10.ckpt"]
    for name, step in zip(names, (9, 9, 9, 9, 10), strict=True):
        save(tmp_path, name, step)
        assert latest_checkpoint(tmp_path)[0].name == name


def test_without_a_sound_file_each_one_is_named_with_its_cause(tmp_path):
    with pytest.raises(UserError, match="no checkpoint to go on from"):
        latest_checkpoint(tmp_path)
    cut_off(save(tmp_path, "last.ckpt", 6))
    torch.save([1, 2], tmp_path / "checkpoints/other.ckpt")
    older = {"global_step": 7, "callbacks": {}, "state_dict": {}}
    torch.save(older, tmp_path / "checkpoints/interrupted.ckpt")
    with pytest.raises(UserError) as error:
        latest_checkpoint(tmp_path)
    first, *causes, last = str(error.value).splitlines()
    assert first == f"{tmp_path} has no checkpoint that can be gone on from:"
    assert causes == [
        "  interrupted.ckpt is of a version of gptask whose runs can't be resumed by this one",
        "  last.ckpt is damaged: File is not a zip file",
        "  other.ckpt is no checkpoint (TypeError)",
    ]
    assert last == "Restore one from a copy, or start again"


def test_a_file_that_names_a_lost_best_comes_behind_all_others(tmp_path, caplog):
    first = save(tmp_path, "best-epoch=0-step=3.ckpt", 3, "best-epoch=0-step=3.ckpt")
    timed = save(tmp_path, "timed-step=8.ckpt", 8, "best-epoch=0-step=3.ckpt")
    second = save(tmp_path, "best-epoch=1-step=10.ckpt", 10, "best-epoch=1-step=10.ckpt")
    save(tmp_path, "last.ckpt", 12, "best-epoch=1-step=10.ckpt")
    second.unlink()
    with caplog.at_level(logging.WARNING, "gptask"):
        assert latest_checkpoint(tmp_path)[0] == timed  # from here the lost one is made again
    assert "last.ckpt names best-epoch=1-step=10.ckpt, the best so far, which is missing" in caplog.text
    first.unlink()
    caplog.clear()
    with caplog.at_level(logging.WARNING, "gptask"):
        assert latest_checkpoint(tmp_path)[0].name == "last.ckpt"
    assert "which is missing: it is lost, and the best of the validations from here on is kept" in caplog.text


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), Path.mkdir])
def test_a_best_file_that_may_never_end_is_not_read(make, tmp_path, caplog):
    best = save(tmp_path, "best-epoch=0-step=3.ckpt", 3, "best-epoch=0-step=3.ckpt")
    save(tmp_path, "last.ckpt", 3, best.name)
    best.unlink()
    make(best)
    assert damage(best) == "is no plain file"
    with caplog.at_level(logging.WARNING, "gptask"):
        assert latest_checkpoint(tmp_path)[0].name == "last.ckpt"
    assert f"last.ckpt names {best.name}, the best so far, which is no plain file" in caplog.text


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt("stopped")])
@pytest.mark.parametrize("where", ["write", "fsync"])
def test_a_write_that_fails_leaves_the_file_before_it_and_nothing_else(error, where, tmp_path, monkeypatch):
    path = save(tmp_path, "last.ckpt", 6)
    content = path.read_bytes()

    def fail(*_: object) -> None:
        raise error

    class FailingFile:
        def __init__(self, file):
            self.file, self.written = file, 0

        def write(self, data):
            self.written += len(data)
            return self.file.write(data) if self.written < 20_000 else fail()

        def __getattr__(self, name):
            return getattr(self.file, name)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

    if where == "write":
        monkeypatch.setattr(
            "gptask.training.checkpoint_files.open", lambda path, mode: FailingFile(path.open(mode)), raising=False
        )
    else:
        monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(type(error)) as raised:
        save(tmp_path, "last.ckpt", 7)
    assert raised.value is error
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]
    assert path.read_bytes() == content


def test_a_file_is_written_beside_its_place_and_what_a_kill_left_half_written_is_removed(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "missing"))
    moves, replace = [], Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, to: moves.append((self.parent, to.parent)) or replace(self, to))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/best-epoch=0-step=3.ckpt.part").write_bytes(b"half")
    path = save(tmp_path, "last.ckpt", 6)
    assert moves == [(path.parent, path.parent)]
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask  # a temporary file's mode would be the owner's alone


def test_what_is_outdated_goes_and_the_rest_stays(tmp_path):
    best = save(tmp_path, "best-epoch=0-step=3.ckpt", 3)
    shutil.copy(best, best.with_name("best-epoch=1-step=6.ckpt"))
    for name in ("timed-step=5.ckpt", "timed-step=7.ckpt", "interrupted.ckpt", "last.ckpt", "mine.ckpt"):
        shutil.copy(best, best.with_name(name))
    content = {"callbacks": {BEST_STATE: {"best_model_path": "best-epoch=1-step=6.ckpt"}}}
    assert best_name(content) == "best-epoch=1-step=6.ckpt"
    assert best_name({"callbacks": {BEST_STATE: {"best_model_path": ""}}}) == ""
    remove_outdated_best(best.parent, best_name(content))
    assert not best.exists()
    best.with_name("last.ckpt.part").touch()
    remove_unneeded(best.parent, "best-epoch=1-step=6.ckpt")
    assert sorted(file.name for file in best.parent.iterdir()) == ["best-epoch=1-step=6.ckpt", "last.ckpt", "mine.ckpt"]
