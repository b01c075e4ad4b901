"""What a teacher makes of the examples that a student learns: scores by item, texts, and inputs without labels."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gptask.analysis.compress import teacher_scores, teacher_texts
from gptask.analysis.compress.distillation import Distillation
from gptask.analysis.compress.teacher import Teacher, teach
from gptask.config.schemas import Limit, Lora, Sample
from gptask.data.cache import cache_folder
from gptask.data.datamodule import DataModule, collate
from gptask.errors import DataError, UserError
from gptask.training.builder import build_corpus
from gptask.training.task_runtime import TaskRuntime
from gptask_tasks.classification import Classification
from gptask_tasks.language_modeling import LanguageModeling
from gptask_tasks.qa import AnswerForm, QuestionAnswering
from gptask_tasks.sentiment import Sentiment
from gptask_tasks.token_tagging import Context, TokenTagging
from gptask_tasks.translation import Translation

LORA = Lora(rank=2, top=1.0)
SMALL = Sample(limit=Limit(train=9, validation=4, test=4), max_tokens=512)
LABELS = ["negative", "neutral", "positive"]
TOPICS = ["account", "cancellation", "complaint", "delivery", "payment", "product", "refund", "warranty"]
TYPES = ["DATE", "LOC", "ORG", "PER"]
TASKS = {
    "classes": Sentiment(labels=LABELS),
    "several labels": Classification(labels=TOPICS, multi_label=True),
    "tags": TokenTagging(types=TYPES, plain=False),
    "spans": QuestionAnswering(answer=AnswerForm.span, stride=16),
}
TRANSLATION = Translation(target_lang="fr")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPTASK_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def runtime_of() -> Callable[..., Any]:
    """``runtime_of(run)``: the student's task on the backbone of a run, with a few examples of the sample."""

    def make(run: Any, task: Any = None, data: Any = SMALL, tokenizer: Any = None) -> TaskRuntime:
        task = task or run.task
        corpus = build_corpus(task, data, seed=0)
        module = DataModule(task, corpus, tokenizer or run.backbone.tokenizer, data, seed=0)
        return TaskRuntime("task", task, run.head, module)

    return make


def long_but(*short: str) -> Callable[[str], Any]:
    """The parameter of a test, which is of the long tier unless it is among the short ones."""
    return lambda name: name if name in short else pytest.param(name, marks=pytest.mark.long)


def teacher_of(run: Any) -> Teacher:
    return Teacher(str(run.folder), run.backbone.engine.options)


def distillation_of(runtime: TaskRuntime) -> Distillation:
    return runtime.student_loss.__self__


def forbid_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Teacher, "load", lambda self: pytest.fail("the teacher is loaded again"))


# --- scores ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*map(long_but("tags"), TASKS)])
def test_an_item_has_the_scores_that_the_teacher_gives_it_alone(
    name: str, random_run: Any, runtime_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher_scores, "CHUNK_ROWS", 4)
    run = random_run(TASKS[name], "llama", LORA)
    runtime = runtime_of(run)
    teach(runtime, teacher_of(run), 2.0, 0.5, None)
    items = runtime.data.items("train")
    assert len(distillation_of(runtime).scores.parts) == -(-len(items) // 4) > 1
    for number, item in enumerate(items):
        batch = collate([item])
        with torch.inference_mode():
            expected = run.head.scores(run.backbone.hidden(batch.input_ids), batch)[0]
        words = run.head.scored_words(batch)
        expected = expected if words is None else expected[words[0]]
        rows = torch.tensor(distillation_of(runtime).scores.rows(number))
        torch.testing.assert_close(rows, expected.reshape(rows.shape), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", [*map(long_but("several labels", "spans"), TASKS)])
def test_a_student_like_its_teacher_has_no_soft_loss_and_another_one_learns(
    name: str, random_run: Any, runtime_of: Any
) -> None:
    run, other = (random_run(TASKS[name], "llama", LORA, seed=seed) for seed in (0, 1))
    runtime = runtime_of(run)
    teach(runtime, teacher_of(run), 2.0, 1.0, None)
    batch = collate([{**runtime.data.items("train")[row], "row": row} for row in (0, 3, 5)])
    for student, is_like in ((run, True), (other, False)):
        hidden = student.backbone.hidden(batch.input_ids, batch.lengths).detach().requires_grad_()
        loss = distillation_of(runtime).loss(student.head, hidden, batch)
        (gradient,) = torch.autograd.grad(loss, hidden)
        assert gradient.isfinite().all()
        assert (loss.item() < 1e-5) == is_like


def test_what_is_in_the_cache_is_not_computed_again(
    random_run: Any, runtime_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher_scores, "CHUNK_ROWS", 4)
    run = random_run(TASKS["classes"], "llama", LORA)
    runtime = runtime_of(run)
    score, calls = teacher_scores._score, []

    def killed(predictor: Any, items: Any, meta: Any) -> Any:
        calls.append(len(items))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return score(predictor, items, meta)

    monkeypatch.setattr(teacher_scores, "_score", killed)
    with pytest.raises(KeyboardInterrupt):
        teach(runtime, teacher_of(run), 2.0, 0.5, None)
    teach(runtime, teacher_of(run), 2.0, 0.5, None)
    assert calls == [4, 4, 4, 1]  # the first part is there, the one in which it was killed is computed again
    forbid_loading(monkeypatch)
    teach(runtime, teacher_of(run), 3.0, 0.5, None)


@pytest.mark.long
def test_another_teacher_has_other_scores(random_run: Any, runtime_of: Any) -> None:
    runs = [random_run(TASKS["classes"], "llama", LORA, seed=seed) for seed in (0, 1)]
    rows = []
    for run in runs:
        runtime = runtime_of(run)
        teach(runtime, teacher_of(run), 2.0, 0.5, None)
        rows.append(distillation_of(runtime).scores.rows(0))
    assert not np.allclose(*rows)


# --- another tokenizer ----------------------------------------------------------------------------------------------


@pytest.fixture
def other_tokenizer() -> Any:
    """A tokenizer that knows almost no words, so that texts have more tokens."""
    from gptask.model.backbone.scratch import train_tokenizer
    from gptask.plugins.text_tokenizer import text_tokenizer

    return text_tokenizer(train_tokenizer(["xyz"], 260))


def test_classes_go_by_example_to_a_student_with_another_tokenizer(
    random_run: Any, runtime_of: Any, other_tokenizer: Any
) -> None:
    run = random_run(TASKS["classes"], "llama", LORA)
    like, other = runtime_of(run), runtime_of(run, tokenizer=other_tokenizer)
    for runtime in (like, other):
        teach(runtime, teacher_of(run), 2.0, 0.5, None)
    assert like.data.items("train")[0]["ids"] != other.data.items("train")[0]["ids"]
    for number in range(9):
        assert np.array_equal(distillation_of(like).scores.rows(number), distillation_of(other).scores.rows(number))


def test_tags_go_by_word_through_other_windows(random_run: Any, runtime_of: Any, other_tokenizer: Any) -> None:
    task = TokenTagging(types=TYPES, plain=False, context=Context.none)
    run = random_run(task, "llama", LORA)
    like = runtime_of(run)
    other = runtime_of(run, data=Sample(limit=SMALL.limit, max_tokens=48), tokenizer=other_tokenizer)
    for runtime in (like, other):
        teach(runtime, teacher_of(run), 2.0, 0.5, None)

    def by_example(runtime: TaskRuntime) -> list[np.ndarray]:
        owners = runtime.data.items("train").column("example")
        rows = [distillation_of(runtime).scores.rows(number) for number in range(len(owners))]
        return [np.concatenate([rows[n] for n in np.flatnonzero(owners == example)]) for example in range(9)]

    assert len(other.data.items("train")) > len(like.data.items("train"))
    for expected, got, example in zip(by_example(like), by_example(other), like.data.examples("train"), strict=True):
        assert len(got) == len(example["tokens"])
        assert np.array_equal(expected, got)
    batch = collate([{**other.data.items("train")[row], "row": row} for row in range(4)])
    assert other.training_loss(run.backbone.hidden(batch.input_ids), batch).isfinite()


@pytest.mark.long
def test_spans_need_the_teachers_tokens(random_run: Any, runtime_of: Any, other_tokenizer: Any) -> None:
    run = random_run(TASKS["spans"], "llama", LORA)
    with pytest.raises(UserError, match=r"token by token, and these two read other tokens.*keep="):
        teach(runtime_of(run, tokenizer=other_tokenizer), teacher_of(run), 2.0, 0.5, None)


# --- what a teacher can't teach -------------------------------------------------------------------------------------


def test_other_labels_are_refused_by_name(random_run: Any, runtime_of: Any) -> None:
    run = random_run(Sentiment(labels=["bad", *LABELS]), "llama", LORA)
    with pytest.raises(UserError, match=r"not those of its teacher .*: only the teacher has bad\. Leave"):
        teach(runtime_of(run, Sentiment(labels=LABELS)), teacher_of(run), 2.0, 0.5, None)
    with pytest.raises(UserError, match=r"they are in another order, positive, neutral, negative, bad\."):
        teach(runtime_of(run, Sentiment(labels=[*LABELS[::-1], "bad"])), teacher_of(run), 2.0, 0.5, None)


def test_another_task_is_refused(random_run: Any, runtime_of: Any) -> None:
    run = random_run(Sentiment(labels=LABELS), "llama", LORA)
    with pytest.raises(UserError, match="a run of task 'sentiment', and the student learns 'token_tagging'"):
        teach(runtime_of(run, TASKS["tags"]), teacher_of(run), 2.0, 0.5, None)


@pytest.mark.long
def test_a_head_without_scores_is_refused(random_run: Any, runtime_of: Any) -> None:
    run = random_run(LanguageModeling(), "llama", LORA)
    with pytest.raises(UserError, match="LanguageModelHead has no scores"):
        teach(runtime_of(run), teacher_of(run), 2.0, 0.5, None)


# --- texts ----------------------------------------------------------------------------------------------------------


def test_the_student_learns_what_its_teacher_writes(random_run: Any, runtime_of: Any) -> None:
    run = random_run(TRANSLATION, "llama", LORA)
    runtime = runtime_of(run)
    train = runtime.data.corpus.split("train")
    file = teach(runtime, teacher_of(run), 2.0, 0.5, None)
    expected = [prediction.value for prediction in run.predict(example["source"] for example in train)]
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert lines == [
        {"id": example["id"], "source": example["source"], "target": text}
        for example, text in zip(train, expected, strict=True)
    ]
    learned = [(example["source"], example["target"]) for example in runtime.data.examples("train")]
    assert learned == [(e["source"], [text]) for e, text in zip(train, expected, strict=True) if text]
    assert len(runtime.data.items("train")) == len(learned) > 0
    for split in ("validation", "test"):  # are the corpus's own
        assert runtime.data.examples(split) is runtime.data.corpus.split(split)
    assert runtime.student_loss is None


def test_a_killed_teacher_goes_on_writing(
    random_run: Any, runtime_of: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from gptask.runs import part_file
    from gptask.runs.predictor import Predictor

    monkeypatch.setattr(part_file, "COMMIT_SECONDS", 0.0)
    monkeypatch.setattr(Predictor, "window", 4)
    run = random_run(TRANSLATION, "llama", LORA)
    runtime, whole = runtime_of(run), runtime_of(run)
    items, calls = Predictor._predict_items, []

    def killed(self: Any, part: Any) -> Any:
        calls.append(len(part))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return items(self, part)

    monkeypatch.setattr(Predictor, "_predict_items", killed)
    with pytest.raises(KeyboardInterrupt):
        teach(runtime, teacher_of(run), 2.0, 0.5, None)
    with caplog.at_level(logging.INFO, "gptask"):
        file = teach(runtime, teacher_of(run), 2.0, 0.5, None)
    assert calls == [4, 4, 4, 1]
    assert "4 are there" in caplog.text
    text = file.read_text()
    file.unlink()
    assert teach(whole, teacher_of(run), 2.0, 0.5, None).read_text() == text
    forbid_loading(monkeypatch)
    teach(whole, teacher_of(run), 2.0, 0.5, None)


@pytest.mark.long
def test_a_file_that_lost_lines_is_written_again(random_run: Any, runtime_of: Any) -> None:
    run = random_run(TRANSLATION, "llama", LORA)
    runtime = runtime_of(run)
    file = teach(runtime, teacher_of(run), 2.0, 0.5, None)
    whole = file.read_text()
    file.write_text(whole[: len(whole) // 2])
    assert teach(runtime, teacher_of(run), 2.0, 0.5, None).read_text() == whole


def test_texts_that_the_task_refuses_are_left_out_and_counted(
    random_run: Any, runtime_of: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = random_run(TRANSLATION, "llama", LORA)
    examples = runtime_of(run).data.corpus.split("train")
    texts = ["a", "", "  ", None, *"bcdef"]
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"target": text}) + "\n" for text in texts))
    for _ in range(2):  # from the cache, too
        written = teacher_texts.written_examples(TRANSLATION, examples, file)
        assert [example["target"] for example in written] == [[text] for text in "abcdef"]
        assert "3 of 9 examples are left out" in caplog.text
        caplog.clear()
    file.write_text('{"target": ""}\n' * 9)
    with pytest.raises(DataError, match="the teacher writes nothing that Translation learns"):
        teacher_texts.written_examples(TRANSLATION, examples, file)


# --- inputs without labels ------------------------------------------------------------------------------------------


@pytest.fixture
def unlabelled(tmp_path: Path) -> Callable[..., str]:
    def write(*texts: str) -> str:
        (tmp_path / "more.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        return str(tmp_path / "more.jsonl")

    return write


def test_inputs_without_labels_are_learned_behind_the_labelled_ones(
    random_run: Any, runtime_of: Any, unlabelled: Any
) -> None:
    run = random_run(TASKS["classes"], "llama", LORA)
    runtime = runtime_of(run)
    teach(runtime, teacher_of(run), 2.0, 0.5, unlabelled("one film", "another film"))
    data = runtime.data
    labels = [example["label"] for example in data.examples("train")]
    assert labels == [*(example["label"] for example in data.corpus.split("train")), None, None]
    assert data.has_label(range(11)).tolist() == [True] * 9 + [False] * 2
    sampler = data.train_dataloader().batch_sampler
    assert sorted(row for batch in sampler for row in batch) == list(range(11))
    assert sorted([9, 10]) in [sorted(batch) for batch in sampler]  # no batch has both kinds
    for batch in data.train_dataloader():
        hidden = run.backbone.hidden(batch.input_ids, batch.lengths)
        assert runtime.training_loss(hidden, batch).isfinite()
        assert (batch.labels is None) == (min(batch.rows) >= 9)


def test_what_is_in_validation_or_test_is_left_out_and_counted(
    random_run: Any, runtime_of: Any, unlabelled: Any, caplog: pytest.LogCaptureFixture
) -> None:
    run = random_run(TASKS["classes"], "llama", LORA)
    runtime = runtime_of(run)
    held_out = [runtime.data.corpus.split(split)[0]["text"] for split in ("validation", "test")]
    file = unlabelled("one film", *held_out, " ")
    for _ in range(2):  # from the cache, too
        teach(runtime, teacher_of(run), 2.0, 0.5, file)
        assert [example["text"] for example in runtime.data.examples("train")][9:] == ["one film"]
        assert "2 in validation or test" in caplog.text
        assert "1 blank" in caplog.text
        caplog.clear()
    with pytest.raises(DataError, match="holds no example to learn from"):
        teach(runtime, teacher_of(run), 2.0, 0.5, unlabelled(*held_out))


def test_a_bad_row_is_refused_with_its_line(random_run: Any, runtime_of: Any, tmp_path: Path) -> None:
    run = random_run(TASKS["classes"], "llama", LORA)
    (tmp_path / "bad.jsonl").write_text('{"text": "a film"}\n{"other": 1}\n')
    with pytest.raises(DataError, match=r"bad.jsonl:2: no column 'text'.*data.on_bad=skip"):
        teach(runtime_of(run), teacher_of(run), 2.0, 0.5, str(tmp_path / "bad.jsonl"))
    with pytest.raises(UserError, match=r"missing\.txt"):
        teach(runtime_of(run), teacher_of(run), 2.0, 0.5, str(tmp_path / "missing.txt"))


@pytest.mark.long
def test_a_teacher_writes_texts_for_inputs_without_any(random_run: Any, runtime_of: Any, tmp_path: Path) -> None:
    run = random_run(TRANSLATION, "llama", LORA)
    runtime = runtime_of(run)
    (tmp_path / "more.txt").write_text("the dog\nthe fox\n")
    file = teach(runtime, teacher_of(run), 2.0, 0.5, str(tmp_path / "more.txt"))
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["source"] for line in lines[9:]] == ["the dog", "the fox"]
    assert cache_folder() in file.parents
