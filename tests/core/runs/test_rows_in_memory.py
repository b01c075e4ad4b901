"""What `Run.predict` accepts from Python gives the same predictions in every form; all else is refused."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from datasets import Dataset, DatasetDict
from gptask import DataError, UserError, load_run
from gptask.config.schemas import Data
from gptask.data.columns import Columns
from gptask.runs.rows_in_memory import rows_in_memory
from gptask_tasks.generation import TextGeneration
from gptask_tasks.qa import QuestionAnswering
from gptask_tasks.sentiment import Sentiment
from gptask_tasks.token_tagging import TokenTagging

TEXTS = ["this film is good", "bad", "is it very good or very bad? 很好"]
ROWS = [{"text": text, "stars": number} for number, text in enumerate(TEXTS)]
SENTIMENT = Sentiment(labels=["negative", "positive"])


@pytest.fixture(scope="module")
def run(lora_run):
    return load_run(lora_run.folder)


@pytest.fixture(scope="module")
def expected(run):
    scores = [next(run.predict([{"text": text}])).score for text in TEXTS]
    assert len({*scores}) == 3
    return scores


FORMS = {
    "list of dictionaries": lambda: ROWS,
    "generator of dictionaries": lambda: (row for row in ROWS),
    "list of texts": lambda: TEXTS,
    "tuple of texts": lambda: tuple(TEXTS),
    "generator of texts": lambda: (text for text in TEXTS),
    "array of texts": lambda: np.array(TEXTS),
    "DataFrame": lambda: pd.DataFrame(ROWS),
    "DataFrame with an index and categories": lambda: pd.DataFrame(ROWS, index=[7, 7, 9]).astype({"text": "category"}),
    "ChunkedArray": lambda: pa.table({"text": TEXTS})["text"],
    "Series": lambda: pd.DataFrame(ROWS)["text"],
    "Dataset": lambda: Dataset.from_list(ROWS),
    "formatted Dataset": lambda: Dataset.from_list(ROWS).with_format("numpy"),
    "IterableDataset": lambda: Dataset.from_list(ROWS).to_iterable_dataset(),
    "Arrow table": lambda: pa.Table.from_pylist(ROWS),
    "Arrow batch": lambda: pa.RecordBatch.from_pylist(ROWS),
    "Arrow reader": lambda: pa.Table.from_pylist(ROWS).to_reader(),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_same_texts_gives_the_same_predictions(form, run, expected):
    assert [p.score for p in run.predict(FORMS[form]())] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    "one", [TEXTS[0], np.str_(TEXTS[0]), ROWS[0], pd.DataFrame(ROWS).iloc[0], {"text": np.array(TEXTS[0])}]
)
def test_one_example_gives_one_prediction(one, run, expected):
    (prediction,) = run.predict(one)
    assert prediction.score == pytest.approx(expected[0], abs=1e-5)


def values(examples, task=SENTIMENT):
    return [row.value for row in rows_in_memory(examples, Columns(task, Data(), task.inputs()))]


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        (5, "got int '5'"),
        (None, "predict() takes a text, a dictionary with 'text', an iterable of these, a DataFrame"),
        (b"good", "got bytes"),
        ({"good", "bad"}, "got set"),
        (np.array("good"), "got ndarray 'good'"),
        (__file__, "would predict the file's name"),
        ({"text": ["good", "bad"]}, "a dictionary is one example, but its 'text' is a list of 2"),
        ({"text": np.array(["good"])}, "its 'text' is a list of 1"),
        (pd.DataFrame({"review": ["good"]}), "the DataFrame has no 'text' among review; rename the column"),
        (pd.DataFrame([["a", "b"]], columns=["text", "text"]), "the DataFrame has several columns named 'text'"),
        (Dataset.from_dict({"txt": ["good"]}), "the Dataset has no 'text' among txt; rename the column that holds it."),
        (pa.table({"txt": ["good"]}), "the Table has no 'text' among txt"),
        (pa.table([["a"], ["b"]], names=["text", "text"]), "the Table has several columns named 'text'"),
    ],
)
def test_what_holds_no_examples_is_refused_at_once(examples, message, run):
    with pytest.raises(UserError) as error:
        run.predict(examples)
    assert message in str(error.value)


def test_a_file_object_is_refused(tmp_path):
    (tmp_path / "in.txt").write_text("good\n")
    with (tmp_path / "in.txt").open() as stream, pytest.raises(UserError, match="got TextIOWrapper"):
        values(stream)


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        (
            [{"text": "good"}, {"txt": "bad"}],
            "example:2: no 'text' among txt; rename the column that holds it. Did you",
        ),
        (["good", 5], "example:2: expected a text, a dictionary with 'text'; got int '5'"),
        (["good", None], "example:2: expected a text, a dictionary with 'text'; got NoneType"),
        ([["good", "bad"]], "example:1: expected a text, a dictionary with 'text'; got list"),
        (["good", " "], "example:2: it is empty"),
        ([{"text": None}], "example:1: it is empty"),
        (pd.DataFrame({"text": ["good", None], "n": [1, 2]}), "example:2: the text is null"),
        (pd.DataFrame({"text": ["good", float("nan")], "n": [1, 2]}), "example:2: the text is null"),
        ([{"text": float("nan"), "n": 1}], "example:1: the text is null"),
        (DatasetDict(test=Dataset.from_list(ROWS)), "example:1: no 'text' among test"),
    ],
)
def test_an_example_that_cannot_be_used_is_named(examples, message, run):
    with pytest.raises(DataError) as error:
        list(run.predict(examples))
    assert message in str(error.value)


def test_a_text_is_no_example_of_a_task_that_reads_two():
    assert "a text alone can't be split into 'context', 'question'" in str(values(["What?"], QuestionAnswering())[0])
    with pytest.raises(UserError, match=r"takes a dictionary with 'context', 'question', an iterable"):
        values(5, QuestionAnswering())


def test_other_tasks_take_their_own_dictionaries_and_texts():
    tokens = {"tokens": np.array(["Ada", "lives"]), "predicate": (1,)}
    assert values(tokens, TokenTagging()) == [{"tokens": ["Ada", "lives"], "predicate": [1]}]
    assert values(pd.DataFrame([tokens]), TokenTagging()) == [{"tokens": ["Ada", "lives"], "predicate": [1]}]
    assert values("Ada lives", TokenTagging()) == ["Ada lives"]
    turns = [{"role": "user", "content": "Hi"}]
    assert values({"messages": turns}, TextGeneration()) == [{"messages": turns}]
    assert values({"instruction": "Say", "input": "hi"}, TextGeneration()) == [{"instruction": "Say", "input": "hi"}]


def test_a_field_may_have_the_name_of_its_column_in_training():
    trained = {"context": ["passage"], "question": ["meta.question"]}
    task = QuestionAnswering()
    columns = Columns(task, Data(), task.inputs(), trained_columns=trained)
    row = {"passage": "Oslo is big", "meta": {"question": "What is?"}}
    for examples in (row, [row], pd.DataFrame([row]), pd.Series(row), Dataset.from_list([row])):
        (read,) = rows_in_memory(examples, columns)
        assert columns.example(read) == {"context": "Oslo is big", "question": "What is?"}
    with pytest.raises(UserError, match="its 'passage' is a list of 2"):
        rows_in_memory({"passage": ["a", "b"], "question": ["c", "d"]}, columns)


def test_pandas_is_not_imported_for_it():
    script = (
        "import json, sys\nfrom gptask.runs.rows_in_memory import rows_in_memory\n"
        "from gptask.data.columns import Columns\n"
        "from gptask.config.schemas import Data\nfrom gptask_tasks.sentiment import Sentiment\ntask = Sentiment()\n"
        "rows = rows_in_memory(['good'], Columns(task, Data(), task.inputs()))\n"
        "print(json.dumps([next(rows).value, 'pandas' in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == ["good", False]
