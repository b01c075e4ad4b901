"""A run whose texts OpenVINO writes: what is refused, the conversion in the cache, and what the verbs make of it."""

import json
import logging
import shutil

import numpy as np
import pytest
from gptask import Fast, Full, GenerationOptions, HeadOnly, Lora, OpenVino, UserError, load_run, load_runs, train
from gptask.analysis.compare.records import find_runs
from gptask.analysis.compare.seed_groups import options, seed_groups
from gptask.analysis.compress.methods import compress
from gptask.analysis.explain.explain_file import explain_file
from gptask.config.compression import Compress, CompressionMethod
from gptask.config.conversion import from_plain
from gptask.config.explain_options import Explain
from gptask.config.schemas import DType, Evaluate, Export, Limit, Predict, Sample, Serve
from gptask.data.cache import entries
from gptask.model.generation.generate import generate
from gptask.runs import openvino_model
from gptask.runs.config_file import read_config
from gptask.runs.export import export
from gptask.runs.manifest import read_manifest
from gptask.runs.predict_file import predict
from gptask.runs.reproduce import reproduce_command
from gptask.serving.serve_options import check_options
from gptask.training.evaluate import evaluate
from gptask_tasks.sentiment import Sentiment
from gptask_tasks.translation import Translation

from tests.support.configs import small_config

LONG = pytest.mark.long
TEXTS = ["der Hund", "a quick brown fox jumps over the lazy dog", "good", "die Katze"]


def translation(**options):
    task = Translation(prompt="{source}\n")
    task.generation.max_new_tokens = 6
    for name, value in options.items():
        setattr(task.generation, name, value)
    return task


@pytest.fixture(scope="module")
def run(random_run):
    return random_run(translation(), "llama", Lora(rank=2))


@pytest.fixture
def needs_openvino():
    pytest.importorskip("openvino_genai", reason="openvino_genai is not installed: pip install 'gptask[openvino]'")


# --- refusals, which need no OpenVINO -------------------------------------------------------------------------------


@pytest.fixture
def as_if_installed(monkeypatch):
    monkeypatch.setattr(openvino_model, "PACKAGES", ())


def test_without_the_packages_the_message_has_the_command(run, tmp_path, monkeypatch):
    monkeypatch.setattr(openvino_model, "PACKAGES", ("openvino_nowhere",))
    monkeypatch.setattr("gptask.runs.saved_model.load_backbone", lambda *_: pytest.fail("the model is loaded"))
    monkeypatch.setattr("gptask.training.builder.build_corpora", lambda *_: pytest.fail("data is read"))
    message = r"needs packages that are not installed \(openvino_nowhere\): pip install 'gptask\[openvino\]'"
    with pytest.raises(UserError, match=message):
        load_run(run.folder, engine=OpenVino())
    with pytest.raises(UserError, match=message):
        evaluate(Evaluate(task=run.task, run=str(run.folder), data=Sample(), engine=OpenVino(), outputs=str(tmp_path)))


@pytest.mark.usefixtures("as_if_installed")
@pytest.mark.parametrize("dtype", [DType.int4, DType.bfloat16, DType.auto])
def test_a_number_format_that_the_weights_can_not_have_is_refused(dtype, run):
    with pytest.raises(UserError, match=f"dtype={dtype.value}: engine=openvino has its weights in q8_0: leave dtype"):
        load_run(run.folder, dtype=dtype, engine=OpenVino())


@pytest.mark.usefixtures("as_if_installed")
def test_a_run_that_writes_no_texts_is_refused_by_its_head(random_run):
    run = random_run(Sentiment(labels=["a", "b"]), "llama", Lora(rank=2))
    with pytest.raises(UserError, match="a run of task 'sentiment', whose ClassificationHead writes none: choose eng"):
        load_run(run.folder, engine=OpenVino())


@pytest.mark.usefixtures("as_if_installed")
@pytest.mark.parametrize("family", ["gpt2", "gemma3"])
def test_a_family_that_openvino_does_not_compute_is_refused_by_name(family, random_run):
    run = random_run(translation(), family, Lora(rank=2))
    kind = "gemma3_text" if family == "gemma3" else family
    with pytest.raises(UserError, match=f"engine=openvino computes llama, qwen2, qwen3; .* is a {kind}: choose"):
        load_run(run.folder, engine=OpenVino())


@pytest.mark.usefixtures("as_if_installed")
@pytest.mark.parametrize(
    ("family", "values", "problem"),
    [
        ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}, "rope_type=linear"),
        ("llama", {"attention_bias": True}, "attention_bias=True"),
        ("qwen2", {"layer_types": ["sliding_attention", "full_attention"]}, "layer_types="),
    ],
)
def test_a_model_that_openvino_would_compute_otherwise_is_refused(
    family, values, problem, random_run, tiny_model, tmp_path
):
    source = tmp_path / "backbone"
    shutil.copytree(tiny_model(family), source)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | values))
    run = random_run(translation(), "llama", HeadOnly())
    run.backbone.config.update(config | values)
    with pytest.raises(
        UserError, match=f"engine=openvino does not compute a {family} with .*{problem}.* choose engine"
    ):
        openvino_model._check_model(run.backbone, run.folder)


@pytest.mark.usefixtures("as_if_installed")
def test_beams_are_refused_when_the_run_is_loaded(random_run):
    run = random_run(translation(num_beams=2), "llama", HeadOnly())
    with pytest.raises(UserError, match="num_beams=2: engine=openvino searches no beams"):
        load_run(run.folder, engine=OpenVino())


def test_verbs_that_do_more_than_writing_refuse_it(run, tmp_path):
    engine, folder, output = OpenVino(), str(run.folder), str(tmp_path / "new")
    calls = {
        "train": lambda: train(small_config(tmp_path, engine=engine)),
        "compress": lambda: compress(Compress(run=folder, method=CompressionMethod.prune, engine=engine)),
        "explain": lambda: explain_file(Explain(run=folder, input="a.csv", engine=engine)),
        "export": lambda: export(Export(run=folder, output=output, engine=engine)),
        "serve": lambda: check_options(Serve(runs=[folder], engine=engine)),
        "gptask.load_runs": lambda: load_runs(folder, engine=engine),
        "an evaluation of the bare backbone": lambda: evaluate(Evaluate(task=run.task, data=Sample(), engine=engine)),
        "a backbone": lambda: run.backbone.use_engine(engine),
    }
    for name, call in calls.items():
        with pytest.raises(UserError, match=f"predict, evaluate, chat and gptask.load_run take it, {name}.* does not"):
            call()
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("arguments", [["smollm2"], ["sweep"]])
def test_the_command_line_refuses_it_where_there_is_no_run(arguments, refused):
    if arguments == ["sweep"]:
        message = refused(
            "sweep", "task=sentiment", "backbone=nano", "tuning.lr=interval(1e-4,1e-2)", "engine=openvino"
        )
    else:
        message = refused("chat", *arguments, "engine=openvino")
    assert "engine=openvino writes the texts of a finished run" in message


def test_an_evaluation_by_openvino_is_reproduced_by_openvino():
    engine = {"kind": "openvino_schema"}
    assert reproduce_command({"command": "gptask evaluate run=a", "engine": engine}).endswith("run=a engine=openvino")
    assert reproduce_command({"command": "gptask evaluate engine=openvino", "engine": engine}).count("engine") == 1
    assert reproduce_command({"command": "gptask evaluate run=a", "engine": {"kind": "fast_schema"}}).endswith("run=a")


# --- with OpenVINO --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("needs_openvino")
def test_a_run_is_converted_once_and_again_where_the_conversion_is_damaged(run, caplog, tmp_path, monkeypatch):
    monkeypatch.setenv("GPTASK_CACHE", str(tmp_path))
    caplog.set_level(logging.INFO, "gptask")

    def conversions():
        texts = [prediction.value for prediction in load_run(run.folder, engine=OpenVino()).predict(TEXTS)]
        assert any(texts)
        return texts, sum("for OpenVINO to" in message for message in caplog.messages)

    texts, count = conversions()
    assert count == 1
    (folder,) = (entry.paths[0] for entry in entries() if entry.kind == "openvino")
    assert {path.name for path in folder.iterdir()} == {"openvino_model.xml", "openvino_model.bin", "gptask.json"}
    assert conversions() == (texts, 1)
    (folder / "openvino_model.bin").write_bytes(b"damaged")
    assert conversions() == (texts, 2)
    assert f"the cache entry {folder} is damaged" in caplog.text


@pytest.mark.usefixtures("needs_openvino")
@pytest.mark.parametrize("kind", ["layers", *(pytest.param(kind, marks=LONG) for kind in ("full", "head", "adapter"))])
def test_every_tuning_has_a_conversion_of_its_own(kind, run, random_run):
    """Each writes first tokens with about the probability that they have in the run, whose weights are not rounded."""
    tuning = {"full": Full(), "head": HeadOnly()}.get(kind, Lora(rank=2))
    other = random_run(translation(), "llama", tuning, seed=1, layers=3, keep=[0, 2] if kind == "layers" else None)
    backbones = [load_run(one.folder, dtype=DType.float32, engine=OpenVino()).backbone for one in (other, run)]
    assert len({backbone.engine.folder for backbone in backbones}) == 2
    options, prompts = GenerationOptions(max_new_tokens=1), [[*range(5, number)] for number in range(6, 23, 2)]
    scores = [
        np.array([text.score for text in generate(backbone, prompts, options)])
        for backbone in (other.backbone, *backbones)
    ]
    assert np.median(abs(scores[1] - scores[0])) < 0.06 < abs(scores[2] - scores[0]).max()


@pytest.mark.usefixtures("needs_openvino")
def test_predictions_and_evaluations_say_who_wrote_them(run, tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.INFO, "gptask")
    monkeypatch.setenv("GPTASK_ENGINE", "openvino")
    (tmp_path / "in.txt").write_text("\n".join(TEXTS))
    output = tmp_path / "out.jsonl"
    data = from_plain("data", {"kind": "files_schema"})
    predict(Predict(task=run.task, run=str(run.folder), input=str(tmp_path / "in.txt"), output=str(output), data=data))
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [line["source"] for line in lines] == TEXTS
    assert all(0 < line["score"] <= 1 for line in lines)
    assert any(message.startswith("engine: openvino ") and "weights in q8_0" in message for message in caplog.messages)

    folders = []
    for engine in (None, Fast()):  # None: that of the environment
        options_of_run = {
            "backbone": from_plain("backbone", run.config["backbone"]),
            "baseline": False,
            "engine": engine,
        }
        sample = Sample(limit=Limit(train=8, validation=4, test=4))
        more = {"data": sample, "outputs": str(tmp_path), "folder": str(tmp_path / str(len(folders)))}
        folders.append(evaluate(Evaluate(task=run.task, run=str(run.folder), **options_of_run, **more)))
    metrics = [json.loads((folder / "metrics.json").read_text()) for folder in folders]
    assert [result["engine"]["name"] for result in metrics] == ["openvino", "fast"]
    assert metrics[0]["engine"]["weights"] == {"format": "q8_0", "computed_in": "OpenVINO's choice"}
    assert [read_manifest(folder).dtype for folder in folders] == ["q8_0", "float32"]
    assert metrics[0]["fingerprint"] != metrics[1]["fingerprint"]
    assert "whose texts OpenVINO wrote with weights in q8_0, made with gptask" in (folders[0] / "README.md").read_text()
    assert reproduce_command(read_config(folders[0])).endswith(" engine=openvino")
    groups = seed_groups(find_runs(map(str, folders)))
    assert [option for option in options(groups) if "engine" in option] == ["engine=openvino", "engine=fast"]


@pytest.mark.usefixtures("needs_openvino")
def test_a_run_answers_in_a_chat(run, run_command, monkeypatch):
    monkeypatch.setattr("gptask.cli.chat_repl._pipe_lines", lambda: iter(["der Hund\n"]))
    ended = run_command("chat", str(run.folder), "max_new_tokens=4", "temperature=0", "engine=openvino")
    assert (ended.code, "engine: openvino " in ended.err) == (0, True)
    assert ended.out.strip()
