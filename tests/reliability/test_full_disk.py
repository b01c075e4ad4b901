"""A disk that fills up, at every stage of a run: one message that says where and how to go on, and nothing is lost."""

import os
import shutil
import sys
import zipfile
from pathlib import Path

import pytest
import safetensors.numpy
from gptask.runs.manifest import read_manifest

from tests.support.full_disk import ChildEnded, fill_stream, gptask, limit_files, may_mount, mount_small

KIB, MIB = 2**10, 2**20
TRAIN = (
    "train", "task=sentiment", "backbone=nano", "tuning=full", "data.limit.train=8", "data.limit.validation=4",
    "data.limit.test=4", "trainer.max_epochs=1", "trainer.accelerator=cpu", "probe=false", "baseline=false",
)  # fmt: skip
needs_mount = pytest.mark.skipif(sys.platform != "linux" or not may_mount(), reason="mounting is not allowed here")


def train(folder: Path, *more: str, **options: object) -> ChildEnded:
    return gptask(*TRAIN, f"folder={folder}", *more, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, whose encoded data is in the cache; this process has imported what its children need."""
    import gptask.runs.export
    import gptask.training.cost_probe
    import gptask.training.trainer  # noqa: F401

    folder = tmp_path_factory.mktemp("full-disk") / "run"
    ended = train(folder)
    assert ended.code == 0, ended.text
    return folder


@needs_mount
@pytest.mark.parametrize(
    "share", [0.001, *(pytest.param(share, marks=pytest.mark.long) for share in (0.0005, 0.01, 0.2, 0.6, 0.9, 0.97))]
)
def test_a_training_on_a_full_disk_says_how_to_go_on_and_goes_on(trained: Path, tmp_path: Path, share: float) -> None:
    """The disk has room for a share of what the run writes: config, first checkpoint, second, model, predictions."""
    size = 4 * KIB + int(share * sum(file.stat().st_size for file in trained.rglob("*") if file.is_file()))
    disk, rescued = tmp_path / "disk", tmp_path / "rescued"

    def rescue() -> None:
        shutil.copytree(disk / "run", rescued)

    ended = train(disk / "run", prepare=lambda: mount_small(disk, size), after=rescue)
    assert f"No space left on device while writing {disk}/run" in ended.message
    assert not (rescued / "manifest.json").exists()
    sound = [file for file in (rescued / "checkpoints").glob("*.ckpt") if zipfile.is_zipfile(file)]
    if not sound:
        return
    assert all(file.name in ended.message for file in sound)
    assert f"Resume with: gptask train resume={disk}/run" in ended.message
    resumed = gptask("train", f"resume={rescued}")
    assert resumed.code == 0, resumed.text
    ours, reference = (
        safetensors.numpy.load_file(folder / "model" / "model.safetensors") for folder in (rescued, trained)
    )
    assert all((ours[name] == weights).all() for name, weights in reference.items())


@needs_mount
def test_a_full_cache_is_named_in_place_of_the_run(tmp_path: Path) -> None:
    cache = tmp_path / "cache"

    def prepare() -> None:
        mount_small(cache, 8 * KIB)
        os.environ["GPTASK_CACHE"] = str(cache)

    message = train(tmp_path / "run", prepare=prepare).message
    assert f"No space left on device while writing the cache {cache}/" in message
    assert "set GPTASK_CACHE to another folder" in message
    assert not (tmp_path / "run" / "manifest.json").exists()


@pytest.mark.parametrize(
    "size",
    [6 * KIB, *(pytest.param(size, marks=pytest.mark.long) for size in (1000, 100 * KIB, 3 * MIB))],
)
def test_a_limit_on_files_ends_training_with_a_message(trained: Path, tmp_path: Path, size: int) -> None:
    """SIGXFSZ would end the process; Python ignores it, and writing raises in its place."""
    message = train(tmp_path / "run", prepare=limit_files(size)).message
    assert "File too large (a limit of the file system, or of the shell: ulimit -f) while writing" in message
    assert str(tmp_path / "run") in message


def test_a_full_console_does_not_stop_a_training(trained: Path, tmp_path: Path) -> None:
    ended = train(tmp_path / "run", prepare=fill_stream(2))
    assert ended.code == 0
    read_manifest(tmp_path / "run").verify()


@pytest.mark.long
def test_standard_output_on_a_full_disk_leaves_a_finished_run(trained: Path, tmp_path: Path) -> None:
    ended = train(tmp_path / "run", prepare=fill_stream(1))
    assert ended.message == "gptask: No space left on device while writing to standard output\n"
    read_manifest(tmp_path / "run").verify()


@needs_mount
@pytest.mark.parametrize("size", [100 * KIB, pytest.param(int(1.5 * MIB), marks=pytest.mark.long)])
def test_an_export_to_a_full_disk_leaves_nothing(trained: Path, tmp_path: Path, size: int) -> None:
    disk, left = tmp_path / "disk", tmp_path / "left.txt"
    message = gptask(
        "export",
        f"run={trained}",
        f"output={disk}/model",
        prepare=lambda: mount_small(disk, size),
        after=lambda: left.write_text(str(list(disk.iterdir()))),
    ).message
    assert f"No space left on device while writing output={disk}/model. Nothing of it is left" in message
    assert left.read_text() == "[]"


@needs_mount
@pytest.mark.long
def test_a_sweep_on_a_full_disk_says_how_to_go_on(trained: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    arguments = ["sweep", *TRAIN[1:], "optimizer.lr=0.1,0.01", f"outputs={disk}", "--trials", "2"]
    ended = gptask(*arguments, prepare=lambda: mount_small(disk, 64 * KIB))
    assert f"while writing {disk}/sweeps/" in ended.message
    assert "The same command goes on with the study." in ended.message
