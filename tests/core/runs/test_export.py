"""An exported folder gives plain transformers the predictions of the run."""

import re

import pytest
import torch
from gptask import UserError, load_run
from gptask.config.schemas import DType, Export, Full, HeadOnly, Lora
from gptask.runs.export import export
from gptask_tasks.classification import Classification
from gptask_tasks.generation import TextGeneration
from gptask_tasks.qa import AnswerForm, QuestionAnswering
from gptask_tasks.sentiment import Sentiment
from gptask_tasks.translation import Translation
from transformers import AutoTokenizer

LABELS = ["negative", "neutral", "positive"]
TEXTS = ["good", "the quick brown fox jumps over the lazy dog", "bad film", "这部电影很好"]


def exported(run, folder, dtype=None):
    return export(Export(run=str(run.folder), output=str(folder), dtype=dtype))


def snippet(folder, **names):
    """Run the README's code, which must not need gptask."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.S)
    assert "gptask" not in code.replace(str(folder), "")
    exec(code, names)
    return names


def prompt_for(folder, **values):
    """A prompt made from the README's template."""
    text = (folder / "README.md").read_text(encoding="utf-8")
    (template,) = re.findall(r"```text\n(.*?)\n```", text, re.S)
    return template.format(**values) + "\n" * ("template and end with a line break, as in training:" in text)


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2", "qwen3", "gemma3", "scratch"])
def test_an_exported_classifier_gives_the_runs_probabilities_in_a_padded_batch(family, random_run, tmp_path):
    run = random_run(Sentiment(labels=LABELS), family, Full() if family == "scratch" else Lora(rank=2))
    expected = [list(p.probabilities.values()) for p in run.predict({"text": text} for text in TEXTS)]
    folder = exported(run, tmp_path / "out")
    names = snippet(folder, prompts=[prompt_for(folder, text=text) for text in TEXTS])
    torch.testing.assert_close(names["probabilities"], torch.tensor(expected), atol=1e-5, rtol=1e-4)
    assert (names["batch"]["attention_mask"] == 0).any()
    assert names["names"] == LABELS
    assert names["model"].config.problem_type == "single_label_classification"
    assert type(names["model"]).__name__.endswith("ForSequenceClassification")


def test_the_readme_tells_how_the_exported_tokenizer_reads_special_tokens(random_run, tmp_path):
    run = random_run(Sentiment(labels=LABELS), "llama", HeadOnly())
    folder = exported(run, tmp_path / "out")
    text, eos = (folder / "README.md").read_text(encoding="utf-8"), run.backbone.tokenizer.eos_token
    assert (
        f"`{eos}`, is text to gptask, and the token itself to this tokenizer. Pass `split_special_tokens=True`" in text
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer(f"good{eos}")["input_ids"][-1] == tokenizer.eos_token_id
    safe_ids = tokenizer(f"good{eos}", split_special_tokens=True)["input_ids"]
    assert safe_ids == run.backbone.tokenizer(f"good{eos}")["input_ids"]


def test_weights_on_disk_are_not_int4(random_run, tmp_path):
    run = random_run(Sentiment(labels=LABELS), "llama", HeadOnly())
    with pytest.raises(UserError, match="dtype=int4: the weights of an export are float32 or bfloat16"):
        exported(run, tmp_path / "out", DType.int4)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("tuning", [Full(), HeadOnly(), Lora(rank=2, layers=0.5)])
def test_every_tuning_exports_several_labels_per_text(tuning, random_run, tmp_path):
    run = random_run(Classification(labels=["a", "b", "c"], multi_label=True), "llama", tuning)
    expected = [list(p.probabilities.values()) for p in run.predict({"text": text} for text in TEXTS)]
    folder = exported(run, tmp_path / "out")
    names = snippet(folder, prompts=[prompt_for(folder, text=text) for text in TEXTS])
    torch.testing.assert_close(names["probabilities"], torch.tensor(expected), atol=1e-5, rtol=1e-4)
    assert names["model"].config.problem_type == "multi_label_classification"
    assert names["model"].config.label2id == {"a": 0, "b": 1, "c": 2}


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3", "scratch"])
def test_an_exported_generator_writes_the_runs_texts(family, random_run, tmp_path):
    task = Translation(prompt="Say in French: {source}")
    task.generation.max_new_tokens = 8
    run = random_run(task, family, Full() if family == "scratch" else Lora(rank=2))
    sources = ["good", "the lazy dog", "is it"]
    expected = [p.value for p in run.predict({"source": source} for source in sources)]
    folder = exported(run, tmp_path / "out")
    names = snippet(folder, prompts=[prompt_for(folder, source=source) for source in sources])
    assert [text.strip() for text in names["texts"]] == expected
    assert len(set(expected)) > 1
    assert names["model"].generation_config.max_new_tokens == 8
    assert names["tokenizer"].padding_side == "left"


@pytest.mark.parametrize(
    ("run_format", "dtype", "written", "sentence", "tolerance"),
    [
        ("bfloat16", None, torch.bfloat16, "The weights are bfloat16. The run predicts in bfloat16 too", 0.05),
        ("bfloat16", DType.float32, torch.float32, "The weights are float32. The run predicts in bfloat16, and", 0.2),
        ("float32", DType.bfloat16, torch.bfloat16, "The weights are bfloat16. The run predicts in float32, and", 0.2),
        ("float32", None, torch.float32, "The weights are float32. The run predicts in float32 too", 1e-5),
    ],
)
def test_the_number_format_is_the_runs_unless_another_is_asked_for(
    run_format, dtype, written, sentence, tolerance, random_run, tmp_path
):
    run = random_run(Sentiment(labels=LABELS), "llama", Lora(rank=2), dtype=run_format)
    expected = torch.tensor([list(p.probabilities.values()) for p in run.predict(TEXTS)])
    folder = exported(run, tmp_path / "out", dtype)
    names = snippet(folder, prompts=[prompt_for(folder, text=text) for text in TEXTS])
    assert {weight.dtype for weight in names["model"].parameters()} == {written}
    assert sentence in (folder / "README.md").read_text()
    torch.testing.assert_close(names["probabilities"].float(), expected, atol=tolerance, rtol=0)


def test_full_tuning_predicts_and_exports_in_float32(random_run, tmp_path):
    run = random_run(Sentiment(labels=LABELS), "llama", Full(), dtype="bfloat16")
    folder = exported(run, tmp_path / "out")
    names = snippet(folder, prompts=[prompt_for(folder, text=text) for text in TEXTS])
    expected = [list(p.probabilities.values()) for p in load_run(run.folder).predict(TEXTS)]
    torch.testing.assert_close(names["probabilities"], torch.tensor(expected), atol=1e-5, rtol=1e-4)


def test_stop_texts_are_in_the_snippet(random_run, tmp_path):
    task = QuestionAnswering()
    task.generation.max_new_tokens, task.generation.stop = 12, ["e", "\n"]
    run = random_run(task, "llama", Lora(rank=2))
    rows = [{"context": "the dog is lazy", "question": "is it good?"}, {"context": "bad film", "question": "is it?"}]
    folder = exported(run, tmp_path / "out")
    names = snippet(folder, prompts=[prompt_for(folder, **row) for row in rows])
    assert [text.strip() for text in names["texts"]] == [p.value for p in run.predict(rows)]


def test_the_folder_is_complete_and_has_no_pickle(random_run, tmp_path):
    folder = exported(random_run(Sentiment(labels=LABELS), "gemma3", Lora(rank=2)), tmp_path / "new" / "out")
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"} <= names
    assert not any(name.startswith("adapter") for name in names)
    assert {path.suffix for path in folder.iterdir()} <= {".json", ".safetensors", ".jinja", ".md", ".txt"}
    assert "licence: MIT" in (folder / "README.md").read_text()
    assert [path.name for path in folder.parent.iterdir()] == ["out"]
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1


def test_a_head_without_transformers_class_is_refused(random_run, tmp_path):
    run = random_run(QuestionAnswering(answer=AnswerForm.span), "llama", Lora(rank=2))
    with pytest.raises(UserError, match=r"no transformers class fits its head \(SpanHead\)"):
        exported(run, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_output_is_not_overwritten(random_run, tmp_path):
    run = random_run(Sentiment(labels=LABELS), "llama", HeadOnly())
    (tmp_path / "out").mkdir()
    exported(run, tmp_path / "out")  # an empty folder is fine
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    (tmp_path / "file").write_text("mine")
    for name in ("out", "file"):
        with pytest.raises(UserError, match=f"{name} exists"):
            exported(run, tmp_path / name)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before


def test_a_failing_write_leaves_nothing(random_run, tmp_path, monkeypatch):
    def disk_full(*_, **__):
        raise OSError(28, "No space left on device")

    run = random_run(Sentiment(labels=LABELS), "llama", HeadOnly())
    monkeypatch.setattr("transformers.PreTrainedTokenizerBase.save_pretrained", disk_full)
    with pytest.raises(UserError, match="No space left on device while writing output="):
        exported(run, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("family", "raw"), [("llama", False), ("llama", True), ("scratch", False)])
def test_an_exported_assistant_gives_the_runs_answers_by_the_template_of_the_readme(family, raw, random_run, tmp_path):
    task = TextGeneration(raw=raw)
    task.generation.max_new_tokens = 8
    run = random_run(task, family, Full() if family == "scratch" else Lora(rank=2))
    expected = [p.value for p in run.predict(TEXTS[:3])]
    folder = exported(run, tmp_path / "out")
    names = snippet(folder, prompts=[prompt_for(folder, messages=text) for text in TEXTS[:3]])
    assert [text.strip() for text in names["texts"]] == expected
    assert len(set(expected)) > 1
