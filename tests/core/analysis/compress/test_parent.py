"""A compression against the run it comes from: what is compared, what is refused, and how a stopped one goes on."""

import json
import shutil

import numpy as np
import pytest
from gptask import Full, Lora, Prediction, UserError, load_run, load_runs, train_tasks
from gptask.analysis.compare.comparison import compare
from gptask.analysis.compare.records import find_runs
from gptask.analysis.compress import against_parent as against
from gptask.analysis.compress.against_parent import Pair, Speeds
from gptask.analysis.compress.prune import Pruning
from gptask.config.compression import Compress, CompressionMethod
from gptask.config.schemas import DType, Export, HeadOnly, Pretrained
from gptask.plugins.metric import MeanMetric, score_all
from gptask.runs.export import export
from gptask.runs.manifest import manifest_digest, read_manifest
from gptask.training import train as training
from gptask_tasks.classification import Classification
from gptask_tasks.sentiment import Sentiment
from gptask_tasks.translation import Translation

from tests.core.training.test_multitask import multitask_config
from tests.support.run_folders import rewrite

LABELS = ["negative", "neutral", "positive"]


def lines(folder):
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


# --- sizes and conclusions --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "tuning"),
    [
        ("qwen3", Lora(rank=2)),  # with a vocabulary projection of its own, which a classifier goes without
        *(pytest.param(*one, marks=pytest.mark.long) for one in (("gpt2", HeadOnly()), ("gemma3", Full()))),
    ],
)
def test_the_size_is_that_of_the_weights_that_export_writes(family, tuning, random_run, tmp_path):
    run = random_run(Sentiment(labels=LABELS), family, tuning, dtype="bfloat16")
    bytes_expected = against.export_bytes(load_run(run.folder))
    folder = export(Export(run=str(run.folder), output=str(tmp_path / "out")))
    assert (folder / "model.safetensors").stat().st_size == pytest.approx(bytes_expected, abs=8192)  # and a header
    memory = against.memory_bytes(run)
    assert memory >= sum(parameter.numel() for parameter in run.backbone.parameters()) * 2


class Hits(MeanMetric):
    """A share of examples."""

    def statistics(self, prediction, reference):
        raise NotImplementedError


def quality(verdict):
    return {"accuracy": {"verdict": verdict, "sentence": f"this is {verdict}"}}


@pytest.mark.parametrize(
    ("verdict", "size", "faster", "conclusion"),
    [
        (
            "inconclusive",
            (75, 100),
            True,
            "worth it: 25% smaller and 1.50 times as fast; accuracy: this is inconclusive",
        ),
        ("same", (100, 100), True, "worth it: 1.50 times as fast; accuracy: this is same"),
        ("better", (75, 100), False, "worth it: 25% smaller; accuracy: this is better"),
        ("worse", (75, 100), True, "not worth it: accuracy: this is worse, though 25% smaller and 1.50 times as fast"),
        ("better", (100, 100), False, "not worth it: neither smaller nor faster (1.50 times the speed)"),
    ],
)
def test_a_run_is_worth_it_that_is_smaller_or_faster_and_not_worse(verdict, size, faster, conclusion):
    speeds = Speeds(Pair(15, 10), None, faster)
    worth_it, text = against._conclusion(quality(verdict), Pair(*size), speeds)
    assert (worth_it, text) == (conclusion.startswith("worth"), conclusion)


def test_the_verdict_is_that_of_a_paired_test():
    metric, draw = Hits("accuracy"), np.random.default_rng(0)
    examples = [{"group": number} for number in range(400)]
    right, worse = draw.random(400) < 0.9, draw.random(400) < 0.9
    parents = [{"statistics": {"accuracy": [float(hit)]}} for hit in right]
    statistics = [{"accuracy": [float(hit and also)]} for hit, also in zip(right, worse, strict=True)]
    result = against.quality(parents, [metric], examples, statistics)["accuracy"]
    assert result["verdict"] == "worse"
    assert result["difference"] == pytest.approx(result["run"] - result["parent"], abs=1e-3)
    assert result["interval"][1] < 0
    same = against.quality(parents, [metric], examples, [row["statistics"] for row in parents])
    assert (same["accuracy"]["verdict"], same["accuracy"]["p"]) == ("same", 1.0)


def test_a_metric_whose_signature_is_known_only_after_scoring_is_compared():
    task = Translation()
    examples = [{"id": str(n), "group": n, "source": "a", "target": ["the dog runs fast"]} for n in range(4)]
    texts = ["the dog runs fast", "a dog runs", "the dog", "cat"]
    _, statistics = score_all(task.metrics(), [Prediction(text, 1.0) for text in texts], examples)
    parents = [{"statistics": row} for row in statistics[::-1]]
    result = against.quality(parents, task.metrics(), examples, statistics)
    assert result.keys() == {"bleu", "chrf"}
    assert result["bleu"]["run"] == result["bleu"]["parent"] > 0
    other = [{"statistics": {name: [*row, 0.0] for name, row in rows.items()}} for rows in statistics]
    assert against.quality(other, task.metrics(), examples, statistics) == {}


# --- the test data ----------------------------------------------------------------------------------------------------


def test_a_run_is_only_compared_on_what_its_parent_was_tested_on(parent, compressed, tmp_path):
    ended = compressed(parent, "keep=2", "data.limit.test=20")
    assert ended.code == 2
    assert "of the 20 test examples are not among the 10 that" in ended.err
    assert "(data.limit.test=<fewer> is fine)" in ended.err
    assert not (tmp_path / "small").exists()
    shutil.copytree(parent, tmp_path / "other")
    rows = lines(parent)
    rows[3]["references"] = {"label": "neutral" if rows[3]["references"]["label"] != "neutral" else "positive"}
    rewrite(tmp_path / "other/predictions.jsonl", "".join(f"{json.dumps(row)}\n" for row in rows))
    assert "1 of the 10 test examples" in compressed(tmp_path / "other", "keep=2").err


@pytest.mark.long
def test_some_of_the_parents_test_examples_are_enough(parent, compressed, tmp_path):
    assert compressed(parent, "keep=[0,3]", "data.limit.test=6").code == 0
    result = json.loads((tmp_path / "small/metrics.json").read_text())["against_parent"]
    digests = [row["digest"] for row in lines(tmp_path / "small")]
    share = np.mean([row["statistics"]["accuracy"][0] for row in lines(parent) if row["digest"] in digests])
    assert (result["n"], result["metrics"]["accuracy"]["parent"]) == (6, pytest.approx(100 * share, abs=1e-3))


# --- a stopped compression --------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("before_checkpoint", [False, True])
def test_a_stopped_one_goes_on_with_the_same_command(before_checkpoint, parent, compressed, tmp_path, monkeypatch):
    assert compressed(parent, "keep=2", f"folder={tmp_path / 'whole'}").code == 0

    def stop(*_):
        raise KeyboardInterrupt

    command = ("keep=2", "resume=auto")
    with monkeypatch.context() as patch:
        patch.setattr(training, "_fit" if before_checkpoint else "_load_best", stop)
        ended = compressed(parent, *command)
    assert ended.code != 0
    if not before_checkpoint:
        assert f"Resume with: gptask compress resume={tmp_path / 'small'}" in ended.err
        monkeypatch.setattr(Pruning, "influence", stop)  # the layers are chosen already
    assert compressed(parent, *command).code == 0
    assert [row["prediction"] for row in lines(tmp_path / "small")] == [
        row["prediction"] for row in lines(tmp_path / "whole")
    ]
    manifests = [read_manifest(tmp_path / name) for name in ("small", "whole")]
    assert manifests[0].fingerprint == manifests[1].fingerprint
    assert "is finished, there is nothing to do" in compressed(parent, *command).err
    assert "keep is 2 in it and 3 now" in compressed(parent, "keep=3", "resume=auto").err


# --- several tasks ----------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_run_of_several_tasks_keeps_all_of_them(tiny_model, compressed, tmp_path):
    backbone = Pretrained(source=str(tiny_model("llama", 128, layers=4)), dtype=DType.float32)
    parent = train_tasks(multitask_config(tmp_path / "outputs", backbone=backbone, tuning=Lora(rank=2))).folder
    ended = compressed(parent, "keep=3", "tasks.mood.data.limit.test=8")
    assert ended.code == 0, ended.err
    small = tmp_path / "small"
    runs = load_runs(small)
    assert list(runs.tasks) == ["mood", "topic", "qa"]
    assert len({id(run.backbone) for run in runs.tasks.values()}) == 1
    assert len(runs.tasks["qa"].backbone.layers) == 3
    for name, count in (("mood", 8), ("topic", 10), ("qa", 3)):
        result = json.loads((small / name / "metrics.json").read_text())["against_parent"]
        assert (result["folder"], result["n"]) == (str(parent / name), count)
        assert {*result["metrics"]} == {*json.loads((small / name / "metrics.json").read_text())["metrics"]}
        assert read_manifest(small / name).parent["manifest"] == manifest_digest(parent / name)
        assert ("tokens_per_second" in result) == (name == "qa")
    assert read_manifest(small).parent == {"folder": str(parent), "manifest": manifest_digest(parent)}
    assert "made smaller by `method=prune`" in (small / "README.md").read_text()
    (table,) = compare(find_runs([str(small / "topic"), str(parent / "topic")])).tables
    assert len(table.methods) == 2
    one = compressed(parent / "topic", "keep=[0,1,2]", f"folder={tmp_path / 'one'}")
    assert one.code == 0, one.err
    assert isinstance(load_run(tmp_path / "one").task, Classification)


def test_an_evaluation_an_unfinished_run_and_a_missing_one_are_refused(parent, refused, tmp_path):
    shutil.copytree(parent, tmp_path / "unfinished")
    (tmp_path / "unfinished/manifest.json").unlink()
    options = ["method=prune", "keep=2"]
    assert "no run folder at nowhere" in refused("compress", "run=nowhere", *options)
    assert "run is required: gptask compress run=<value>" in refused("compress", *options)
    assert "method is required" in refused("compress", f"run={parent}", "keep=2")
    with pytest.raises(UserError, match=r"unfinished, it has no manifest.json: finish it with: gptask train resume="):
        Pruning(Compress(task=Sentiment(), run=str(tmp_path / "unfinished"), method=CompressionMethod.prune, keep=2))
