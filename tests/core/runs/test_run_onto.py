"""Runs of several tasks on one backbone in memory predict what each predicts when it is loaded alone."""

import json
import logging
import shutil

import pytest
import torch
from gptask import UserError, load_run
from gptask.config.engine import Fast, Reference
from gptask.config.schemas import DType, Full, HeadOnly, Lora, Pretrained
from gptask.model.backbone.backbone import load_or_build_backbone
from gptask.plugins.generation_options import GenerationOptions
from gptask.runs import saved_model
from gptask.runs.run import load_run_onto
from gptask_tasks.classification import Classification
from gptask_tasks.generation import TextGeneration
from gptask_tasks.language_modeling import LanguageModeling
from gptask_tasks.qa import QuestionAnswering
from gptask_tasks.question_generation import QuestionGeneration
from gptask_tasks.sentiment import Sentiment
from gptask_tasks.summarization import Summarization
from gptask_tasks.token_tagging import TokenTagging
from gptask_tasks.translation import Translation

from tests.support.run_folders import seal

LABELS = ["negative", "positive"]
SHORT = GenerationOptions(max_new_tokens=4)
ALL, LOWER_HALF = Lora(rank=2, top=1.0), Lora(rank=2, layers=0.5)
RUNS = {  # of every built-in task
    "classification": (lambda: Classification(labels=["a", "b", "c"]), LOWER_HALF),
    "sentiment": (lambda: Sentiment(labels=LABELS), ALL),
    "qa": (lambda: QuestionAnswering(), LOWER_HALF),
    "summarization": (lambda: Summarization(generation=SHORT), LOWER_HALF),
    "translation": (lambda: Translation(generation=SHORT), ALL),
    "beams": (lambda: Translation(generation=GenerationOptions(max_new_tokens=4, num_beams=2)), LOWER_HALF),
    "generation": (lambda: TextGeneration(generation=SHORT), ALL),
    "language_modeling": (lambda: LanguageModeling(), ALL),
    "token_tagging": (lambda: TokenTagging(types=["PER"]), ALL),
    "question_generation": (lambda: QuestionGeneration(generation=SHORT), HeadOnly()),
}
TEXTS = ["the quick brown fox jumps over the lazy dog", "is this film good or bad?", "fox"]


@pytest.fixture
def shared_backbone(tiny_model):
    """``shared_backbone()``: the backbone of the random runs, in memory."""

    def load(engine=None, dtype="float32"):
        options = Pretrained(source=str(tiny_model("llama", 128)), dtype=DType(dtype))
        return load_or_build_backbone(options, saved_model.locate_backbone(options), list, engine).eval()

    return load


def examples(task):
    fields = [field.name for field in task.inputs() if field.required]
    return [{name: text.split() if name == "words" else text for name in fields} for text in TEXTS]


def assert_equal(got, expected):
    for one, other in zip(got, expected, strict=True):
        numbers = isinstance(other.value, dict)  # such as a perplexity
        assert one.value == (pytest.approx(other.value, rel=1e-4) if numbers else other.value)
        assert one.score == pytest.approx(other.score, abs=1e-4)
        assert (one.probabilities or {}) == pytest.approx(other.probabilities or {}, abs=1e-4)


def test_every_built_in_task_predicts_as_alone_and_leaves_alone(random_run, shared_backbone):
    saved = {}
    for number, (name, (task, tuning)) in enumerate(RUNS.items()):
        saved[name] = random_run(task(), "llama", tuning, seed=number)
    expected = {name: list(run.predict(examples(run.task))) for name, run in saved.items()}
    backbone = shared_backbone()
    plain = backbone.model
    runs = {name: load_run_onto(backbone, run.folder) for name, run in saved.items()}
    assert len(backbone.adapter_layers) == len(RUNS) - 1
    for engine in (Fast(), Reference()):
        backbone.use_engine(engine)
        for name, run in runs.items():
            assert_equal(run.predict(examples(run.task)), expected[name])
    for run in runs.values():
        if run.backbone.adapter:
            backbone.engine.remove_adapter(run.backbone.adapter)
    assert backbone.peft is plain
    assert not any("lora" in name for name, _ in backbone.named_modules())


def test_equal_adapters_are_loaded_once_and_what_is_left_of_a_run_that_fails_is_nothing(
    lora_run, run_copy, shared_backbone
):
    backbone = shared_backbone()
    first, second = (load_run_onto(backbone, folder) for folder in (lora_run.folder, run_copy))
    assert first.backbone.adapter == second.backbone.adapter
    assert list(backbone.adapter_layers) == [first.backbone.adapter]
    backbone.engine.remove_adapter(first.backbone.adapter)
    (run_copy / "model/head.safetensors").unlink()
    with pytest.raises(UserError, match=r"head\.safetensors does not fit the task"):
        load_run_onto(backbone, seal(run_copy))
    assert not backbone.adapter_layers


def test_only_the_adapter_is_loaded_between_passes(lora_run, shared_backbone):
    backbone, calls = shared_backbone(), []

    def between_passes(load):
        assert not backbone.adapter_layers
        calls.append(load())
        return calls[-1]

    run = load_run_onto(backbone, lora_run.folder, between_passes)
    assert calls == [run.backbone.adapter]


def test_the_tasks_of_one_run_share_its_adapter(lora_run, shared_backbone, tmp_path):
    folder = tmp_path / "both"
    shutil.copytree(lora_run.folder, folder)
    names = ("mood", "tone")
    saved_model.save_model(folder, lora_run.backbone, dict.fromkeys(names, (lora_run.task, lora_run.head)), ALL)
    config = (folder / "config.yaml").read_text()
    for name in names:
        (folder / name).mkdir()
        (folder / name / "config.yaml").write_text(f"{config}\ntask_name: {name}\n")
        seal(folder / name)
    seal(folder)
    backbone = shared_backbone()
    runs = [load_run_onto(backbone, folder / name) for name in names]
    assert len({run.backbone.adapter for run in runs}) == len(backbone.adapter_layers) == 1
    for run in runs:
        assert_equal(run.predict(TEXTS), list(lora_run.predict(TEXTS)))


def test_a_run_that_cannot_share_the_backbone_is_refused(random_run, shared_backbone, lora_run, run_copy):
    backbone = shared_backbone()
    full = random_run(Sentiment(labels=LABELS), "llama", Full())
    with pytest.raises(UserError, match="has weights of its own; it can't share the backbone"):
        load_run_onto(backbone, full.folder)
    other = random_run(Sentiment(labels=LABELS), "qwen3", Lora(rank=2))
    with pytest.raises(UserError, match=r"belongs to .*; it can't share the backbone"):
        load_run_onto(backbone, other.folder)
    assert not backbone.adapter_layers


@pytest.mark.parametrize("own", ["float32", "bfloat16"])
def test_the_number_format_is_the_backbones_and_said_where_it_is_another(own, random_run, shared_backbone, caplog):
    run = random_run(Sentiment(labels=LABELS), "llama", Lora(rank=2), dtype=own)
    with caplog.at_level(logging.INFO, "gptask"):
        shared = load_run_onto(shared_backbone(dtype="bfloat16"), run.folder)
    lines = [line for line in caplog.messages if "the format of the shared backbone" in line]
    assert len(lines) == (own == "float32")
    assert all("predicts in bfloat16" in line and "alone it would in float32" in line for line in lines)
    alone = load_run(run.folder, dtype=DType.bfloat16)
    for got, expected in zip(shared.predict(TEXTS), alone.predict(TEXTS), strict=True):
        assert got.score == pytest.approx(expected.score, abs=0.1)  # of random weights, in bfloat16
    assert shared.backbone.model.dtype is torch.bfloat16


def test_a_run_keeps_its_own_tokenizer_where_it_has_the_same_tokens(run_copy, lora_run, shared_backbone):
    file = run_copy / "model/tokenizer_config.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps(values | {"bos_token": "Ġ"}))
    backbone = shared_backbone()
    runs = [load_run_onto(backbone, folder) for folder in (lora_run.folder, seal(run_copy))]
    assert runs[0].backbone.tokenizer is backbone.tokenizer
    assert runs[1].backbone.tokenizer.bos_token == "Ġ" != backbone.tokenizer.bos_token
    file.write_text(json.dumps(values | {"eos_token": "Ġ"}))
    with pytest.raises(UserError, match=r"the tokenizer in .* has other tokens than that of the backbone"):
        load_run_onto(backbone, seal(run_copy))
