"""What the server tells of a model."""

import json
import shutil
from datetime import datetime
from pathlib import Path

import pytest
from gptask import Lora, UserError
from gptask.runs.run import load_run
from gptask.serving.models.served_run import ServedModel, ServedRun
from gptask_tasks.sentiment import Sentiment
from gptask_tasks.token_tagging import TokenTagging

from tests.support.run_folders import seal

KEYS = {
    "id", "object", "created", "owned_by", "task", "description", "writes", "chat_template", "metric", "fields",
    "targets", "columns", "documents",
    "labels", "explains", "converts_rows", "max_tokens", "context", "adapter", "manifest", "backbone", "loaded",
}  # fmt: skip


@pytest.fixture(scope="module")
def mood(random_run):
    return random_run(Sentiment(labels=["negative", "positive"]), "llama", Lora(rank=2))


def measured(folder: Path, **entry: object) -> Path:
    """Give a run the measurement of its main metric."""
    values = {"value": 91.0, "interval": [86.2, 94.2], "n": 200, "direction": "higher"} | entry
    (folder / "metrics.json").write_text(json.dumps({"split": "test", "metrics": {"accuracy": values}}))
    return seal(folder)


def test_a_run_is_described_with_its_fields_labels_and_metric(mood, tmp_path):
    run = load_run(measured(Path(shutil.copytree(mood.folder, tmp_path / "a"))))
    model = ServedRun("a", run.backbone, run, backbone_name="llama")
    described = model.description()
    assert set(described) == KEYS
    assert json.loads(json.dumps(described)) == described
    assert described["metric"] == {
        "name": "accuracy", "value": 91.0, "low": 86.2, "high": 94.2, "n": 200, "higher_is_better": True,
        "split": "test",
    }  # fmt: skip
    assert described["fields"][0] | {"help": ""} == {
        "name": "text", "kind": "text", "required": True, "blank": False, "help": "",
    }  # fmt: skip
    assert (described["id"], described["task"], described["labels"]) == ("a", "sentiment", ["negative", "positive"])
    assert described["explains"] == ["ig", "occlusion", "attention"]
    assert (described["max_tokens"], described["context"], described["backbone"]) == (128, 128, "llama")
    assert (described["writes"], described["chat_template"], described["converts_rows"]) == (False, False, False)
    assert described["created"] == int((tmp_path / "a" / "manifest.json").stat().st_mtime)
    assert datetime.fromisoformat(described["loaded"]).tzinfo is not None
    assert described["description"].startswith("Tell whether a text is")
    assert model.summary() == ["a", "sentiment", "accuracy 91.00 (86.20 to 94.20)"]


@pytest.mark.parametrize(
    ("entry", "expected", "text"),
    [
        ({"interval": None, "direction": "lower"}, (91.0, None, False), "accuracy 91.00"),
        ({"value": None, "interval": None, "direction": "none"}, (None, None, None), "accuracy not a number"),
    ],
)
def test_a_metric_may_lack_its_value_and_interval(entry, expected, text, mood, tmp_path):
    run = load_run(measured(Path(shutil.copytree(mood.folder, tmp_path / "a")), **entry))
    model = ServedRun("a", run.backbone, run)
    metric = model.description()["metric"]
    assert (metric["value"], metric["low"], metric["higher_is_better"]) == expected
    assert model.summary()[2] == text


def test_a_metric_that_the_run_did_not_write_is_refused_and_one_that_it_lacks_is_null(mood, tmp_path):
    run = load_run(measured(Path(shutil.copytree(mood.folder, tmp_path / "a"))))
    (run.folder / "metrics.json").write_text((run.folder / "metrics.json").read_text().replace("91.0", "99.0"))
    with pytest.raises(UserError, match=r"metrics.json has other content"):
        ServedRun("a", run.backbone, run)
    assert ServedRun("a", mood.backbone, mood).description()["metric"] is None


def test_the_bare_backbone_is_described_by_the_same_keys(mood):
    described = ServedModel("llama", mood.backbone.with_adapter(None)).description()
    assert set(described) == KEYS
    assert (described["id"], described["task"], described["writes"], described["backbone"]) == (
        "llama", None, True, "llama",
    )  # fmt: skip


def test_tags_are_labels_too(random_run):
    run = random_run(TokenTagging(types=["PER"], plain=False), "llama", Lora(rank=2))
    assert ServedRun("a", run.backbone, run).description()["labels"] == ["O", "B-PER", "I-PER"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "holds no mapping"),
        ('{"metrics": {}}', "no split"),
        ('{"split": "test", "metrics": {"accuracy": 3}}', "the entry of 'accuracy': not a mapping"),
        ("[" * 10_000, "RecursionError"),
    ],
)
def test_damaged_measurements_are_named(mood, tmp_path, content, message):
    run = load_run(measured(Path(shutil.copytree(mood.folder, tmp_path / "a"))))
    (run.folder / "metrics.json").write_text(content)
    seal(run.folder)
    with pytest.raises(UserError, match=message):
        ServedRun("a", run.backbone, run)
