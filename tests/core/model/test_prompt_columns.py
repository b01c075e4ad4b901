"""Any column of the data in a prompt: which inputs a task has, what is shortened, and a run with such a prompt."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from gptask import DataError, Field, GenerativeTask, Kind, UserError, load_run, train
from gptask.config.schemas import Evaluate, Files, Predict
from gptask.data.corpus import CachedCorpus
from gptask.plugins.types import Example
from gptask.runs.predict_file import predict
from gptask.training.evaluate import evaluate
from gptask_tasks.classification import Classification
from gptask_tasks.qa import AnswerForm, QuestionAnswering
from gptask_tasks.question_generation import QuestionGeneration
from gptask_tasks.summarization import Summarization
from gptask_tasks.translation import Translation

from tests.support.configs import small_config


@dataclass
class Letter(GenerativeTask):
    """A task whose preset shows a group and one text of three; the third is read otherwise."""

    PROMPTS: ClassVar[dict[str, str]] = {"en": "{case} {letter}"}

    def fields(self) -> list[Field]:
        return [
            Field("case", group=True),
            Field("letter", truncate=True),
            Field("note"),
            Field("length", Kind.NUMBER),
            Field("reply", target=True),
        ]

    def target(self, example: Example) -> str | None:
        return example["reply"]

    def metrics(self) -> list[Any]:
        return []

    def sample(self) -> dict[str, Any]:
        return {}


def input_names(task: Any) -> list[str]:
    task.validate()
    return [field.name for field in task.inputs()]


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        (Classification(), ["text"]),
        (Classification(prompt="{text}"), ["text"]),
        (Classification(prompt="{title}: {text} {title}"), ["text", "title"]),
        (Classification(prompt="{title}: {body}", readings=2), ["title", "body"]),
        (Classification(prompt="{meta.title} {product name}"), ["meta.title", "product name"]),
        (Summarization(prompt="{section}: {article}\nSummary:"), ["section", "article"]),
        (Translation(prompt="{source_language} in {domain}: {source}"), ["source", "domain"]),
        (QuestionAnswering(prompt="{title} {context} {question}"), ["context", "question", "title"]),
        (QuestionAnswering(prompt="{question}"), ["context", "question"]),  # answers are looked for in it
        (QuestionAnswering(prompt="{question}", extractive=False), ["question"]),
        (QuestionGeneration(prompt="{title}: {answers}"), ["answers", "answer_start", "title"]),
        (QuestionGeneration(prompt="{context}"), ["context", "answer_start"]),
        (Letter(prompt="{topic}"), ["case", "note", "length", "topic"]),
        (Letter(prompt="{note} {letter}"), ["case", "letter", "note", "length"]),
    ],
)
def test_inputs_are_what_the_prompt_names_and_what_the_task_needs_otherwise(task: Any, expected: list[str]) -> None:
    assert input_names(task) == expected
    assert [f.name for f in task.inputs() if not f.required] == ["answer_start"] * ("answer_start" in expected)


def test_columns_stand_in_the_prompt_and_a_dotted_one_is_no_attribute() -> None:
    task = Classification(prompt="{title}|{meta.x}|{text}")
    assert task.format_prompt({"title": "a", "meta.x": "b", "text": "c"}) == "a|b|c"


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (Classification(prompt="{text} {label}"), "names {label}, which is what the model has to predict"),
        (
            Classification(prompt="{text} {score}"),
            "holds {score}, a name that gptask's own files use: write {my_column}",
        ),
        (
            Classification(prompt="{0}: {text}"),
            "holds {0}, which is no name: write {my_column} and data.columns.my_col",
        ),
        (Classification(prompt="{}: {text}"), "holds {}, which is no name"),
        (Classification(prompt="Topic:"), "uses no field; put {text} into it"),
        (Translation(prompt="{source_language}"), "uses no field; put {source} into it"),
        (Classification(prompt="{text"), "is no template"),
        (QuestionAnswering(prompt="{question}", answer=AnswerForm.span), "must hold {context} once"),
    ],
)
def test_a_placeholder_that_can_be_no_input_is_refused(task: Any, message: str) -> None:
    with pytest.raises(UserError, match=r"task\.prompt") as caught:
        task.validate()
    assert message in str(caught.value)


def test_a_preset_prompt_with_an_unknown_field_is_its_authors_mistake() -> None:
    class Typo(Letter):
        PROMPTS: ClassVar[dict[str, str]] = {"en": "{lettr} is"}

    with pytest.raises(UserError, match=r"preset prompt of Typo names \{lettr\}.*Did you mean 'letter'"):
        Typo().validate()


def test_the_last_named_text_is_shortened_first(tiny_tokenizer: Any) -> None:
    example = {"head": "one two three", "body": "four five six", "text": "seven eight nine"}
    task = Classification(prompt="{body} | {head} | {text}")
    tokens, seen = len(tiny_tokenizer(task.format_prompt(example))["input_ids"]), set()
    for room in range(8, tokens + 1):
        ids, cut = task.truncate_prompt(example, tiny_tokenizer, room)
        assert (len(ids) <= room, cut) == (True, tokens - room)
        parts = tiny_tokenizer.decode(ids).split(" | ")
        for part, name in zip(parts, ("body", "head", "text"), strict=True):
            assert example[name].startswith(part)
        lost = [part != example[name] for part, name in zip(parts, ("body", "head", "text"), strict=True)]
        assert not (lost[1] and parts[2]), "the head is cut while there is text"
        assert not (lost[0] and (parts[1] or parts[2])), "the body is cut while there is a head or text"
        seen.add(tuple(lost))
    assert seen == {(False, False, False), (False, False, True), (False, True, True), (True, True, True)}


def test_a_question_is_never_shortened(tiny_tokenizer: Any) -> None:
    task = QuestionAnswering(prompt="{context} {question}")
    assert task.truncation_order() == ["context"]
    assert Letter().truncation_order() == ["letter"]


@pytest.fixture(scope="module")
def tiny_tokenizer() -> Any:
    from gptask.model.backbone.scratch import train_tokenizer

    return train_tokenizer(["one two three | four five six | seven eight nine\n"] * 9, 280)


# --- a column in a prompt, from files to predictions ----------------------------------------------------------------

HEADER = "title,body,stars,text\n"
ROWS = [f"Room {n},{'lovely' if n % 2 else 'dirty'} place {n},{'good' if n % 2 else 'bad'},\n" for n in range(20)]


def corpus(write: Callable[..., str], prompt: str, columns: dict[str, str] | None = None) -> Any:
    data = Files(train=write("train.csv", HEADER + "".join(ROWS)), columns={"label": "stars"} | (columns or {}))
    return CachedCorpus(Classification(prompt=prompt), data, seed=0)


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    monkeypatch.setenv("GPTASK_CACHE", str(tmp_path / "cache"))

    def write_file(name: str, content: str) -> str:
        (tmp_path / name).write_text(content)
        return str(tmp_path / name)

    return write_file


def test_columns_are_part_of_the_digest_and_an_unnamed_text_is_not_read(write: Callable[..., str]) -> None:
    both = corpus(write, "{title}: {body}").split("train")
    assert both[0].keys() == {"id", "title", "body", "label", "digest", "group"}  # the text, which is blank, is unread
    body_alone = corpus(write, "{body}").split("train")
    text_and_body = corpus(write, "{text}: {body}", columns={"text": "title"}).split("train")
    assert both.digests.tolist() == text_and_body.digests.tolist()  # of the same values, whatever their names
    assert {*both.digests}.isdisjoint(body_alone.digests)


MISSING = r"no column 'titel', which task.prompt names as \{titel\}; there are: title, body, stars, text. "
WRONG_NAMES: list[tuple[str, dict[str, str], str]] = [
    ("{titel}: {body}", {}, MISSING + r"Did you mean 'title'\? Set data.columns.titel=<column>, or correct the prompt"),
    ("{txt}", {}, r"Did you mean 'text'\?"),
    ("{head}", {"head": "titel"}, r"no column 'titel', which task.prompt names as \{head\}"),
    ("{title}", {"titel": "body"}, r"no field 'titel'; it has label, text, title\. Did you mean 'title'"),
    ("{title}: {stars}", {}, r"names \{stars\}, whose column holds the label, which is what the model has to predict"),
    ("{a} {b}", {"a": "title", "b": "stars"}, r"names \{b\}, whose column holds the label"),
    ("{title}: {stars}", {"label": 2}, r"names \{stars\}, whose column holds the label"),
    ("{title}: {b}", {"b": 2}, r"names \{b\}, whose column holds the label"),
    ("{text}", {}, "the text is empty"),
]


@pytest.mark.parametrize(("prompt", "columns", "message"), WRONG_NAMES)
def test_a_wrong_name_in_a_prompt_is_an_error_that_names_prompt_and_column(
    write: Callable[..., str], prompt: str, columns: dict[str, str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        corpus(write, prompt, columns=columns).split("train")


def test_a_run_reads_the_columns_of_its_prompt_at_training_evaluation_and_prediction(
    write: Callable[..., str], tmp_path: Path
) -> None:
    file = write("train.csv", HEADER + "".join(ROWS))
    data = Files(train=file, test=file, columns={"label": "stars", "place": "body"}, max_tokens=64)
    task = Classification(prompt="{title}: {place}\\nGood?")
    config = small_config(tmp_path / "out", task=task, data=data, trainer={"max_epochs": 1, "accelerator": "cpu"})
    run = train(config)
    assert (run.folder / "README.md").read_text().count("`title`, `place`") == 1  # the card's description of the input
    loaded = load_run(run.folder)
    by_name, by_column = (
        {"title": "Room 1", "place": "x"},
        {"title": "Room 1", "body": "x"},
    )  # as trained: also `body`
    predictions = list(loaded.predict([by_name, by_column]))
    assert predictions[0].probabilities == predictions[1].probabilities
    with pytest.raises(DataError, match=r"which task\.prompt names as \{title\}"):
        list(loaded.predict([{"place": "x"}]))
    output = tmp_path / "predictions.jsonl"
    files = Files(max_tokens=64, columns={"title": "stars"})
    predict(Predict(task=loaded.task, run=str(run.folder), input=file, output=str(output), data=files))
    assert '"title": "bad", "place": "dirty place 0"' in output.read_text().splitlines()[0]
    values = Evaluate(task=loaded.task, run=str(run.folder), data=data, outputs=str(tmp_path / "out"))
    folder = evaluate(values)
    line = (folder / "predictions.jsonl").read_text().splitlines()[0]
    assert '"title": "Room 0", "place": "dirty place 0"' in line
