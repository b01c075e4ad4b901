"""Finding run folders, and recognising damaged and unfinished ones."""

import json
import os

import pytest
import yaml
from gptask import UserError
from gptask.analysis.compare.records import find_runs, read_run
from gptask.runs.manifest import RUN_FORMAT

from tests.support.run_folders import hotel_reviews, rewrite, write_review_run


def names(records):
    return [record.folder.name for record in records]


def test_runs_are_found_at_and_below_folders_and_by_patterns(sentiment_run, translation_run, tmp_path):
    a, b = sentiment_run("a", 0.9, count=10), sentiment_run("b", 0.8, count=10)
    translation_run("t", 2, count=5)
    (a / "checkpoints").mkdir()
    (a / "checkpoints" / "config.yaml").write_text("not a run")
    outputs = tmp_path / "outputs"
    assert names(find_runs([str(outputs)])) == ["a", "b", "t"]
    assert names(find_runs([str(a), str(outputs / "*" / "?"), str(b)])) == ["a", "b", "t"]  # each once
    assert names(find_runs([str(outputs)], task="translation")) == ["t"]


def test_latest_keeps_the_newest_runs_of_each_task(sentiment_run, translation_run, tmp_path):
    import os

    for number, name in enumerate(("c", "a", "b")):
        os.utime(sentiment_run(name, 0.9, count=10) / "metrics.json", (number, number))
    translation_run("t", 2, count=5)
    assert names(find_runs([str(tmp_path / "outputs")], latest=2)) == ["a", "b", "t"]


@pytest.mark.parametrize(
    ("places", "options", "message"),
    [
        (["outputs/nowhere"], {}, "no run folder at or below outputs/nowhere"),
        (["outputs"], {"task": "sentimnt"}, "Did you mean 'sentiment'?"),
        (["outputs"], {"latest": 0}, "at least 1"),
    ],
)
def test_runs_that_are_not_found_are_named(places, options, message, sentiment_run, tmp_path, monkeypatch):
    sentiment_run("a", 0.9, count=10)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        find_runs(places, **options)


def other_format(folder):
    text = (folder / "config.yaml").read_text()
    rewrite(folder / "config.yaml", text.replace(f"format: {RUN_FORMAT}", "format: 99"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "manifest.json").unlink(), "unfinished: no manifest.json; it has no checkpoint"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "damaged"),
        (lambda folder: (folder / "manifest.json").write_text('{"format": 3}'), "damaged"),
        (lambda folder: (folder / "metrics.json").unlink(), "damaged: metrics.json is missing"),
        (lambda folder: (folder / "predictions.jsonl").unlink(), "damaged: predictions.jsonl is missing"),
        (lambda folder: (folder / "config.yaml").unlink(), "damaged: config.yaml is missing"),
        (lambda folder: (folder / "config.yaml").write_text("a: [1"), "damaged"),
        (lambda folder: (folder / "config.yaml").write_text("just text"), "damaged"),
        (lambda folder: rewrite(folder / "metrics.json", "[]"), "damaged"),
        (lambda folder: rewrite(folder / "metrics.json", '{"task": "sent'), "damaged"),
        (
            lambda folder: (folder / "metrics.json").write_bytes(b"\xff\xfe"),
            "damaged: metrics.json has 2 instead",
        ),
        (other_format, "written in run format 99, not 3"),
    ],
)
def test_a_damaged_run_has_a_problem(damage, message, sentiment_run):
    folder = sentiment_run("a", 0.9, count=10)
    assert not read_run(folder).problem
    damage(folder)
    record = read_run(folder)
    assert message in record.problem
    assert record.task in ("sentiment", "")


def test_metrics_can_be_recomputed_from_predictions(sentiment_run):
    record = read_run(sentiment_run("a", 0.8, count=50))
    rows = record.predictions.statistics("f1_macro")
    assert rows.shape == (50, 2)
    assert record.metric("f1_macro").aggregate(rows) == pytest.approx(record.metrics["f1_macro"]["value"], abs=1e-3)
    with pytest.raises(UserError, match="no metric 'blue'"):
        record.metric("blue")


def test_a_broken_line_of_predictions_is_named(sentiment_run):
    folder = sentiment_run("a", 0.9, count=5)
    lines = (folder / "predictions.jsonl").read_text().splitlines()
    lines[2] = json.dumps({"id": 1})
    rewrite(folder / "predictions.jsonl", "\n".join(lines))
    with pytest.raises(UserError, match="line 3"):
        _ = read_run(folder).predictions.digests


def changed(name, **changes):
    """A function that changes values of metrics.json, or of its entry for accuracy."""

    def damage(folder):
        result = json.loads((folder / "metrics.json").read_text())
        (result["metrics"]["accuracy"] if name else result).update(changes)
        rewrite(folder / "metrics.json", json.dumps(result))

    return damage


def set_in_config(**changes):
    def damage(folder):
        config = yaml.safe_load((folder / "config.yaml").read_text())
        rewrite(folder / "config.yaml", yaml.safe_dump(config | changes))

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (changed("", metrics=[1]), "metrics is '[1]'"),
        (
            changed("", metrics={"accuracy": 3}),
            "metrics.json is not that of a gptask run (the entry of 'accuracy': not a mapping)",
        ),
        (changed("", seed=[1]), "seed is"),
        (changed("", split=None), "split is 'None'"),
        (changed("", n="many"), "n is 'many'"),
        (changed("", wall_seconds="long"), "wall_seconds is 'long'"),
        (changed("", versions=None), "versions is"),
        (changed("accuracy", value="high"), "value is"),
        (changed("accuracy", interval=[1]), "interval is '[1]'"),
        (changed("accuracy", range=["a", 1]), "range is"),
        (changed("accuracy", direction="up"), "direction is 'up'"),
        (set_in_config(plugin={}), "no name"),
        (set_in_config(task="x"), "task is 'x'"),
        (set_in_config(data=[1]), "data is"),
        (set_in_config(parent=5), "parent is '5'"),
    ],
)
def test_a_value_that_no_run_writes_is_named(damage, message, sentiment_run):
    folder = sentiment_run("a", 0.9, count=10)
    damage(folder)
    problem = read_run(folder).problem
    assert problem.startswith("damaged: ")
    assert message in problem


def test_a_pruned_trial_says_so(sentiment_run):
    folder = sentiment_run("a", 0.9, count=10)
    (folder / "manifest.json").unlink()
    (folder / "pruned.json").write_text("{}")
    assert read_run(folder).problem == "pruned: a sweep stopped it early"


def test_a_folder_that_cant_be_opened_is_listed(sentiment_run, tmp_path, monkeypatch):
    import os

    closed = sentiment_run("a", 0.9, count=10).parent / "closed"
    closed.mkdir()
    scandir = os.scandir  # as root every folder is open

    def refuse(path):
        if str(path) == str(closed):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert names(find_runs([str(tmp_path / "outputs")])) == ["a", "closed"]


def test_a_report_in_a_run_does_not_make_it_newer(sentiment_run, tmp_path):
    import os

    for number, name in enumerate(("a", "b")):
        os.utime(sentiment_run(name, 0.9, count=10) / "metrics.json", (number, number))
    (tmp_path / "outputs/sentiment/a/report.html").write_text("")
    assert names(find_runs([str(tmp_path / "outputs")], latest=1)) == ["b"]


@pytest.mark.parametrize(
    ("entry", "value", "message"),
    [
        ("id", ["x"], r"line 1 is not a prediction of a gptask run \(id is"),
        ("digest", 3, r"line 1 is not a prediction of a gptask run \(digest is"),
        ("group", {}, r"line 1 is not a prediction of a gptask run \(group is"),
        ("statistics", {"accuracy": 10**400}, "lacks the statistics of 'accuracy'"),
        ("statistics", {"accuracy": []}, "lacks the statistics of 'accuracy'"),
    ],
)
def test_a_prediction_that_no_run_writes_is_named(entry, value, message, sentiment_run):
    file = sentiment_run("a", 0.9, count=3) / "predictions.jsonl"
    first, *others = file.read_text().splitlines()
    rewrite(file, "\n".join([json.dumps(json.loads(first) | {entry: value}), *others]))
    with pytest.raises(UserError, match=message):
        read_run(file.parent).statistics("accuracy")


def test_statistics_that_the_metric_cant_aggregate_are_refused_before_memory_is_taken(tmp_path):
    """The numbers of labels are cells of a confusion matrix: 10^9 would ask for gigabytes."""
    file = write_review_run(tmp_path / "a", hotel_reviews(8)) / "predictions.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[3]["statistics"]["f1_macro"] = [1e9, 0]
    rewrite(file, "".join(json.dumps(row) + "\n" for row in rows))
    record = read_run(file.parent)
    record.check_statistics("accuracy")
    with pytest.raises(UserError, match=r"the statistics of 'f1_macro' in .*expected the numbers of two of 3 labels"):
        record.check_statistics("f1_macro")


def test_a_pipe_for_a_config_is_not_read(sentiment_run):
    folder = sentiment_run("a", 0.9, count=3)
    (folder / "config.yaml").unlink()
    os.mkfifo(folder / "config.yaml")
    assert read_run(folder).problem == "damaged: config.yaml is missing"
