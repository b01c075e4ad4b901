"""Every verb computes by the engine of its config; a result says which one, its fingerprint does not."""

import json
import logging

import pytest
from gptask import train
from gptask.config.engine import Fast, Reference
from gptask.config.schemas import Evaluate, Export, Files, Limit, Predict, Sample
from gptask.model.backbone.backbone import GPTBackbone
from gptask.runs.export import export
from gptask.runs.manifest import read_manifest
from gptask.runs.predict_file import predict
from gptask.training.evaluate import evaluate
from gptask_tasks.sentiment import Sentiment

from tests.support.configs import small_config

ONE_STEP = {"max_steps": 1, "accelerator": "cpu"}
DATA = Sample(limit=Limit(train=24, validation=8, test=10), max_tokens=128)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same training on both engines."""
    folder = tmp_path_factory.mktemp("outputs")
    engines = {"fast": Fast(loss=False), "reference": Reference()}
    return {name: train(small_config(folder, trainer=ONE_STEP, engine=engine)) for name, engine in engines.items()}


def test_metrics_name_the_engine_and_the_fingerprint_does_not(runs):
    fast, reference = (runs[name].metrics["engine"] for name in ("fast", "reference"))
    assert fast["name"] == "fast"
    assert fast["off"]["loss"] == "switched off"
    assert "RMS norms" in fast["off"]["norm"]
    assert reference == {"name": "reference", "off": {}}
    assert len({read_manifest(run.folder).fingerprint for run in runs.values()}) == 1
    scores = [run.metrics["metrics"]["accuracy"]["value"] for run in runs.values()]
    assert scores[0] == pytest.approx(scores[1])


def test_an_evaluation_has_its_own_engine(runs, tmp_path, caplog):
    options = {"task": Sentiment(labels=runs["fast"].task.labels), "data": DATA, "trainer": {"accelerator": "cpu"}}
    options["backbone"] = small_config(tmp_path).backbone
    for run in (str(runs["fast"].folder), None):
        with caplog.at_level(logging.INFO, "gptask"):
            folder = evaluate(Evaluate(run=run, engine=Reference(), outputs=str(tmp_path), **options))
        assert json.loads((folder / "metrics.json").read_text())["engine"] == {"name": "reference", "off": {}}
    assert caplog.messages.count("engine: reference") == 2


@pytest.mark.parametrize("verb", ["predict", "export"])
def test_a_verb_on_a_run_computes_by_the_engine_of_its_config(verb, runs, tmp_path, monkeypatch):
    used = []
    use_engine = GPTBackbone.use_engine
    monkeypatch.setattr(
        GPTBackbone, "use_engine", lambda self, options: used.append(options) or use_engine(self, options)
    )
    run, output = runs["fast"], str(tmp_path / "output")
    if verb == "predict":
        (tmp_path / "in.jsonl").write_text('{"text": "good"}\n')
        files = {"input": str(tmp_path / "in.jsonl"), "output": output}
        predict(Predict(run.task, str(run.folder), data=Files(), engine=Fast(packing=False), **files))
    else:
        export(Export(str(run.folder), output, engine=Fast(packing=False)))
    assert used == [Fast(packing=False)]


def test_python_takes_the_engine_of_the_environment_where_none_is_given(tmp_path, monkeypatch):
    monkeypatch.setenv("GPTASK_ENGINE", "fast, norm=off")
    run = train(small_config(tmp_path, trainer=ONE_STEP))
    assert run.metrics["engine"]["off"]["norm"] == "switched off"
