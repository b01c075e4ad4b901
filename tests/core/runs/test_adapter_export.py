"""An exported adapter gives plain PEFT and transformers the texts of the run, on the backbone that it names."""

import json
import re

import pytest
from gptask import UserError, load_run
from gptask.config.schemas import Export, Full, HeadOnly, Lora
from gptask.runs.export import export
from gptask_tasks.qa import QuestionAnswering
from gptask_tasks.sentiment import Sentiment
from gptask_tasks.translation import Translation

SOURCES = ["good", "the lazy dog", "is it"]
FILES = {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"}


@pytest.fixture(scope="module")
def translation(random_run):
    def make(family, tuning=None, **options):
        task = Translation(prompt="Say in French: {source}")
        task.generation.max_new_tokens = 6
        return random_run(task, family, tuning or Lora(rank=2), **options)

    return make


def exported(run, output, **options):
    return export(Export(run=str(run.folder), output=str(output), adapter=True, **options))


def texts_of(folder, prompts):
    """Run the README's code, which must not need gptask."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text("utf-8"), re.S)
    assert "gptask" not in code.replace(str(folder.parent), "")
    names = {"prompts": prompts}
    exec(code, names)
    return [text.strip() for text in names["texts"]]


@pytest.mark.parametrize(
    ("family", "tuning"),
    [("llama", Lora(rank=2)), ("qwen3", Lora(rank=3, top=0.5)), ("gemma3", Lora(rank=2)), ("gpt2", Lora(rank=2))],
)
def test_peft_writes_the_run_s_texts_with_it(family, tuning, translation, tmp_path):
    run = translation(family, tuning)
    expected = [p.value for p in run.predict({"source": source} for source in SOURCES)]
    folder = exported(run, tmp_path / "fr", base=str(tmp_path / "base"))
    prompts = [f"Say in French: {source}" for source in SOURCES]
    assert texts_of(folder, prompts) == expected
    assert len(set(expected)) > 1
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["r"]) == (str(tmp_path / "base"), tuning.rank)
    assert {path.name for path in folder.iterdir()} - {"chat_template.jinja"} == FILES
    readme = (folder / "README.md").read_text()
    assert f"--enable-lora --max-lora-rank 8 --lora-modules fr={folder}" in readme


def test_without_base_it_belongs_to_the_backbone_where_it_is(translation, tmp_path):
    run = translation("llama")
    folder = exported(run, tmp_path / "fr")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == run.backbone.origin.location
    assert texts_of(folder, ["Say in French: good"]) == [next(run.predict({"source": "good"})).value]
    assert [path.name for path in tmp_path.iterdir()] == ["fr"]


def test_several_adapters_share_a_base_and_another_backbone_is_refused(translation, tmp_path):
    base = tmp_path / "base"
    exported(translation("llama"), tmp_path / "one", base=str(base))
    before = {path: path.stat().st_mtime_ns for path in base.iterdir()}
    exported(translation("llama", Lora(rank=4)), tmp_path / "two", base=str(base))
    assert {path: path.stat().st_mtime_ns for path in base.iterdir()} == before
    with pytest.raises(UserError, match="exists and holds something else than this backbone in float32"):
        exported(translation("qwen3"), tmp_path / "three", base=str(base))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="exists and holds something else"):
        exported(translation("llama"), tmp_path / "three", base=str(tmp_path / "other"))
    assert {path.name for path in tmp_path.iterdir()} == {"base", "one", "two", "other"}


def test_what_is_more_than_an_adapter_is_refused(random_run, translation, tmp_path):
    labelled = Sentiment(labels=["bad", "good"])
    refused = {
        r"its head \(ClassificationHead\) is no part of an adapter": random_run(labelled, "llama", Lora(rank=2)),
        "it has none: tuning=full": translation("scratch", Full()),
        "it has none: tuning=head": translation("llama", HeadOnly()),
        "it belongs to 1 of the backbone's 2 layers": translation("llama", Lora(rank=2, layers=0.5)),
    }
    for message, run in refused.items():
        with pytest.raises(UserError, match=f"can't be exported as an adapter: {message}.*Without adapter=true"):
            exported(run, tmp_path / "new" / "out")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match="goes with adapter=true"):
        export(Export(run=str(run.folder), output=str(tmp_path / "out"), base="base"))


def test_stop_texts_are_in_the_code(random_run, tmp_path):
    task = QuestionAnswering()
    task.generation.max_new_tokens, task.generation.stop = 12, ["e", "\n"]
    run = random_run(task, "llama", Lora(rank=2))
    row = {"context": "the dog is lazy", "question": "is it good?"}
    folder = exported(run, tmp_path / "qa")
    assert texts_of(folder, [run.task.render(row | {"answers": None})[0]]) == [
        next(load_run(run.folder).predict(row)).value
    ]
