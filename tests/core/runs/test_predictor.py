"""A run's predictions in Python: lazy, in order, errors at their place."""

import threading

import pytest
from gptask import DataError, UserError, load_run
from gptask.config.schemas import Files, Lora
from gptask.data.columns import Columns
from gptask.data.rows import Row
from gptask.runs.predictor import MAX_CHUNK, InputRow, Predictor, read_inputs
from gptask_tasks.sentiment import Sentiment
from gptask_tasks.token_tagging import TokenTagging
from gptask_tasks.translation import Translation


@pytest.fixture(scope="module")
def run(lora_run):
    return load_run(lora_run.folder)


def test_output_appears_before_all_input_is_read(run):
    second_requested, first_predicted = threading.Event(), threading.Event()

    def slow_input():
        yield {"text": "first"}
        second_requested.set()
        assert first_predicted.wait(30), "the first row was not predicted while the second was awaited"
        yield {"text": "second"}

    predictions = run.predict(slow_input())
    next(predictions)
    assert second_requested.wait(30)
    first_predicted.set()
    assert len(list(predictions)) == 1


def test_a_loaded_run_predicts_lazily(run):
    predictions = run.predict({"text": text} for text in ("good", "bad"))
    assert [p.value in run.task.labels for p in predictions] == [True, True]
    with pytest.raises(DataError, match="example:1"):
        list(run.predict([{"txt": "good"}]))


@pytest.mark.parametrize("decodes", [False, True])
def test_the_head_gets_states_unless_it_decodes(decodes, run, monkeypatch):
    given = []

    def predict(head, hidden, batch):
        given.append(hidden)
        return [[0.4, 0.6]]

    monkeypatch.setattr(type(run.head), "decodes", decodes)
    monkeypatch.setattr(type(run.head), "predict", predict)
    (prediction,) = run.predict([{"text": "good"}])
    assert prediction.score == 0.6
    assert [hidden is None for hidden in given] == [decodes]


@pytest.mark.parametrize("error", [DataError("line 2 is no UTF-8"), UserError("no such file"), OSError(5, "disk")])
def test_an_error_while_reading_follows_the_predictions_before_it(error, run):
    def broken_input():
        yield InputRow(Row(1, "good"), {"text": "good"})
        raise error

    predictor = Predictor(run.task, run.backbone, run.head, Files())
    predictions = predictor.predict_each(broken_input(), live=True)
    assert next(predictions)[1].value in run.task.labels
    with pytest.raises(type(error), match=str(error.args[-1])):
        next(predictions)


def test_errors_and_examples_keep_their_places(run):
    predictor = Predictor(run.task, run.backbone, run.head, Files())
    unreadable = DataError("no text")
    examples = [{"text": "good"}, unreadable, {"text": "bad " * 1000}, None, {"text": "bad"}]
    entries = [InputRow(Row(number, ""), example) for number, example in enumerate(examples, 1)]
    results = list(predictor.predict_each(entries, live=False))
    assert [entry for entry, _ in results] == entries
    assert results[1][1] is unreadable
    assert results[3][1].value is None
    assert [getattr(prediction, "value", None) in run.task.labels for _, prediction in results] == [
        True, False, True, False, True,
    ]  # fmt: skip


def test_an_example_that_can_t_be_encoded_is_named_by_its_number(run, monkeypatch):
    def encode(task, example, tokenizer, max_tokens):
        raise DataError("the prompt alone needs too many tokens")

    monkeypatch.setattr(type(run.task), "encode", encode)
    predictions = run.predict(["good"])
    with pytest.raises(DataError, match=r"^example:1: the prompt alone needs"):
        next(predictions)


def test_the_thread_that_reads_ahead_ends_with_the_predictions(run):
    drawn = []

    def endless():
        while True:
            drawn.append("good")
            yield "good"

    predictions = run.predict(endless())
    next(predictions)
    (reader,) = (thread for thread in threading.enumerate() if "(read_ahead)" in thread.name)
    assert reader.is_alive()
    predictions.close()
    reader.join(20)
    assert not reader.is_alive()
    assert len(drawn) < 10 * MAX_CHUNK


def test_a_table_with_a_word_a_row_is_predicted_by_sentences():
    task, cells = TokenTagging(), [("1", "Ada"), ("", "met"), ("", "Bob"), ("2", "He"), ("", "ran")]
    trained = {"tokens": ["Word"], "tags": ["Tag"], "sentence": ["group"]}
    named = Columns(task, Files(columns={"tokens": "Word"}), task.inputs())
    as_trained = Columns(task, Files(), task.inputs(), trained_columns=trained)
    for columns, sentence in ((named, "Sentence #"), (as_trained, "sent_id"), (as_trained, "group")):
        columns.sentence_column = None
        rows = [Row(number, {sentence: name, "Word": word}) for number, (name, word) in enumerate(cells, 2)]
        tokens = [entry.example["tokens"] for entry in read_inputs(rows, columns, "ner.csv")]
        assert tokens == [["Ada", "met", "Bob"], ["He", "ran"]]


def test_inputs_are_cleaned_as_those_of_a_test_set_are(run, monkeypatch):
    (expected,) = run.predict([{"text": "good film"}])
    (other,) = run.predict([{"text": "good \n film"}])
    assert other.score != pytest.approx(expected.score, abs=1e-6)

    def clean(task, examples, train, counts):
        for example in examples:
            assert (train, example["label"]) == (False, None)
            if example["text"] != "drop":
                yield example | {"text": " ".join(example["text"].split())}

    monkeypatch.setattr(type(run.task), "clean", clean)
    (prediction,) = run.predict([{"text": "good \n film"}])
    assert prediction.score == pytest.approx(expected.score, abs=1e-6)
    with pytest.raises(DataError, match="nothing is left of it after the task's cleaning"):
        list(run.predict(["drop"]))


@pytest.mark.parametrize("task", [Sentiment(labels=["bad", "good"]), Translation()])
def test_a_batch_that_runs_out_of_memory_is_predicted_in_parts(task, random_run, memory, caplog):
    run, field = random_run(task, "llama", Lora(rank=2)), task.inputs()[0].name
    examples = [{field: "the quick brown fox " * (1 + number % 3)} for number in range(20)]
    expected = list(run.predict(examples))
    memory.tokens = max(memory.passes) // 3
    memory.passes.clear()
    with caplog.at_level("WARNING", "gptask"):
        divided = list(run.predict(examples))
    assert [prediction.value for prediction in divided] == [prediction.value for prediction in expected]
    assert [prediction.score for prediction in divided] == pytest.approx([one.score for one in expected], abs=1e-4)
    assert [record.levelname for record in caplog.records].count("WARNING") == 1
    assert sum(tokens > memory.tokens for tokens in memory.passes) == 2, "halved twice, and never again"
    memory.error = lambda: RuntimeError("shapes cannot be multiplied")
    with pytest.raises(RuntimeError, match="shapes"):
        list(run.predict(examples))
