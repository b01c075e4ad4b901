"""manifest.json: every reader refuses what differs from it, and a run without it is unfinished."""

import hashlib
import json
import shutil
from pathlib import Path

import gptask
import numpy as np
import pytest
from gptask import Prediction, UserError, load_run, load_runs, load_task, weights_hash
from gptask.analysis.compare.comparison import compare
from gptask.analysis.compare.records import read_run
from gptask.analysis.report.page import report_page
from gptask.cli.run_summary import show_run
from gptask.config.schemas import Evaluate, Export, Files, Limit, Predict, Pretrained, Sample
from gptask.runs import manifest
from gptask.runs.export import export
from gptask.runs.manifest import read_manifest, write_manifest
from gptask.runs.predict_file import predict
from gptask.runs.saved_model import locate_backbone
from gptask.training.evaluate import evaluate
from gptask.training.fingerprint import find_finished
from gptask_tasks.sentiment import Sentiment
from safetensors.numpy import load_file

from tests.support.run_folders import TWO_LABELS, seal, sentences, write_run

LOADERS = {
    "load_run": load_run,
    "load_runs": load_runs,
    "backbone.source": lambda folder: locate_backbone(Pretrained(source=str(folder))),
    "export": lambda folder: export(Export(run=str(folder), output=str(folder / "exported"))),
    "predict": lambda folder: predict(Predict(None, str(folder), str(folder / "README.md"), data=Files())),
    "weights_hash": weights_hash,
}
RESULT_READERS = {
    "metrics": lambda folder: gptask.Runs(folder, {}).metrics,
    "compare": lambda folder: compare([read_run(folder)]),
    "report": lambda folder: report_page([read_run(folder)]),
    "summary": show_run,
}
READERS = {
    "config.yaml": [*list(LOADERS)[:-1], "load_task", "compare", "report"],
    "metrics.json": [*RESULT_READERS],
    "predictions.jsonl": ["compare", "report", "summary"],
    **{f"model/{name}": [*LOADERS] for name in ("adapter_model.safetensors", "head.safetensors", "backbone.json")},
}
ALL_READERS = LOADERS | RESULT_READERS | {"load_task": load_task}


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def change_a_byte(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[:-5] + bytes([content[-5] ^ 1]) + content[-4:])


DAMAGES = {
    truncate: r"has [\d,]+ instead of [\d,]+ bytes",
    change_a_byte: "has other content",
    Path.unlink: "is missing",
}


@pytest.fixture
def finished_run(lora_run, tmp_path):
    """A run folder with every file of a finished training, below tmp_path."""
    predictions = [Prediction(label, 0.9, {label: 0.9}) for label in TWO_LABELS * 10]
    folder = write_run(tmp_path / "runs" / "a", Sentiment(labels=TWO_LABELS), sentences(20), predictions)
    shutil.copytree(lora_run.folder / "model", folder / "model")
    shutil.copy(lora_run.folder / "config.yaml", folder)
    (folder / "README.md").write_text("a model card\n")
    return seal(folder)


def test_the_manifest_lists_what_readers_rely_on(finished_run):
    for name in ("train.log", "metrics.csv", "report.html", "checkpoints/last.ckpt", "model/.DS_Store"):
        (finished_run / name).parent.mkdir(exist_ok=True)
        (finished_run / name).write_text("a log, a report or what the user adds")
    files = json.loads((seal(finished_run) / "manifest.json").read_text())["files"]
    names = {path.relative_to(finished_run).as_posix() for path in (finished_run / "model").iterdir()}
    assert files.keys() == names - {"model/.DS_Store"} | {
        "config.yaml", "metrics.json", "predictions.jsonl", "splits.safetensors",
    }  # fmt: skip
    for name, entry in files.items():
        content = (finished_run / name).read_bytes()
        assert entry == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", READERS)
def test_every_reader_refuses_a_damaged_file_and_names_it(name, damage, finished_run):
    damage(finished_run / name)
    for reader in READERS[name]:
        with pytest.raises(UserError) as refused:
            ALL_READERS[reader](finished_run)
        assert str(finished_run) in str(refused.value), reader
        assert name in str(refused.value), reader
    for reader in {*ALL_READERS} - {*READERS[name], "load_run", "load_runs", "export", "predict", "backbone.source"}:
        ALL_READERS[reader](finished_run)  # does not read it
    assert find_finished("0" * 16, [finished_run]) is None


@pytest.mark.parametrize(("damage", "message"), DAMAGES.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_the_message_says_what_differs_and_what_to_do(damage, message, finished_run):
    damage(finished_run / "metrics.json")
    way = r"Restore what differs from a copy, or train again$"
    with pytest.raises(UserError, match=rf"a is damaged, by its manifest\.json: metrics\.json {message}.* {way}"):
        read_manifest(finished_run).verify()


def test_an_evaluation_refuses_a_damaged_run(finished_run, tmp_path):
    change_a_byte(finished_run / "model/adapter_model.safetensors")
    data = Sample(limit=Limit(test=2), max_tokens=128)
    with pytest.raises(UserError, match=r"adapter_model\.safetensors has other content"):
        evaluate(Evaluate(task=Sentiment(), data=data, run=str(finished_run), folder=str(tmp_path / "e")))
    assert not (tmp_path / "e").exists()


def test_a_file_added_to_the_model_is_refused_unless_it_is_hidden(finished_run):
    (finished_run / "model/.DS_Store").write_text("")
    load_run(finished_run)
    (finished_run / "model/model.safetensors").write_text("")  # would be loaded as full weights
    with pytest.raises(UserError, match=r"model/model\.safetensors is not listed"):
        load_run(finished_run)


@pytest.mark.parametrize("reader", ALL_READERS)
def test_a_run_without_a_manifest_is_unfinished(reader, finished_run):
    (finished_run / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"unfinished.* no manifest\.json.* it has no checkpoint to go on from"):
        ALL_READERS[reader](finished_run)
    (finished_run / "checkpoints").mkdir()
    (finished_run / "checkpoints/last.ckpt").write_text("")
    with pytest.raises(UserError, match=f"finish it with: gptask train resume={finished_run}"):
        ALL_READERS[reader](finished_run)
    assert find_finished("0" * 16, [finished_run]) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is damaged"),
        ("[]", "is damaged"),
        ('{"format": 3}', "is damaged"),
        ('{"format": 3, "files": {"config.yaml": {"bytes": 12}}}', "is damaged"),
        ('{"format": 4, "files": []}', "has run format 4; gptask .* reads format 3"),
    ],
)
def test_a_manifest_that_no_run_writes_is_refused(content, message, finished_run):
    (finished_run / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=message):
        load_run(finished_run)
    assert message.split()[0] in read_run(finished_run).problem


def test_a_run_is_portable(finished_run, tmp_path, monkeypatch):
    copy = Path(shutil.copytree(finished_run, tmp_path / "copy"))
    moved = Path(shutil.move(finished_run, tmp_path / "moved"))
    for file in moved.rglob("*"):
        file.chmod(0o500)
    monkeypatch.chdir(tmp_path)
    for folder in (copy, moved, Path("moved"), Path("copy/../moved")):
        read_manifest(folder).verify()
        assert load_run(folder).metrics["n"] == 20
        assert not read_run(folder).problem


def test_splits_are_digests_with_a_hash(tmp_path):
    digests = {"train": np.array([2**62, -(2**63), 5]), "test": np.array([7])}
    write_manifest(tmp_path, "f", "train", digests)
    for name, values in load_file(tmp_path / "splits.safetensors").items():
        assert values.dtype == np.int64
        assert values.tolist() == digests[name].tolist()
        entry = {"n": len(values), "sha256": hashlib.sha256(values.tobytes()).hexdigest(), "file": "splits.safetensors"}
        assert read_manifest(tmp_path).splits[name] == entry
    assert read_manifest(tmp_path).splits.keys() == digests.keys()


def test_a_large_file_is_hashed_once_unless_it_changes(finished_run, monkeypatch):
    reads, file_digest = [], hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda *args: reads.append(args[0].name) or file_digest(*args))
    monkeypatch.setattr(manifest, "CACHED_FROM", (finished_run / "model/tokenizer.json").stat().st_size)
    for _ in range(2):
        read_manifest(finished_run).verify()
    assert reads.count(str(finished_run / "model/tokenizer.json")) == 1
    assert reads.count(str(finished_run / "model/head.safetensors")) == 2
    content = (finished_run / "model/tokenizer.json").read_text()
    (finished_run / "model/new").write_text(content.replace("a", "b", 1))
    (finished_run / "model/new").replace(finished_run / "model/tokenizer.json")
    with pytest.raises(UserError, match=r"tokenizer\.json has other content"):
        read_manifest(finished_run).verify()
