"""The table of classes in the log, and warnings of labels that are likely mistakes."""

import json
import logging
import shlex
from collections.abc import Callable
from typing import Any

import pytest
from gptask import Task
from gptask.config.overrides import parse_override, quote_if_needed
from gptask.config.schemas import Files, Limit
from gptask.data.corpus import CachedCorpus
from gptask.data.label_report import escaped, folded, log_labels
from gptask.data.labels import label_names
from gptask_tasks.classification import Classification
from gptask_tasks.token_tagging import TokenTagging

Log = Callable[..., tuple[str, list[str]]]


@pytest.fixture
def report(write_file: Callable[..., str], caplog: pytest.LogCaptureFixture) -> Log:
    """``report(task, rows, ...)``: the table and its remarks, and the warnings, of a file with these rows."""

    def run(
        task: Task, rows: list[dict[str, Any]], splits: tuple[str, ...] = ("train",), prefix: str = "", **options: Any
    ) -> tuple[str, list[str]]:
        file = write_file(
            "rows.jsonl", "".join(json.dumps({"text": f"t{n}"} | row) + "\n" for n, row in enumerate(rows))
        )
        cut = len(splits) > 1
        others = {} if cut else {"validation": file, "test": file}
        corpus = CachedCorpus(task, Files(train=file, **others, **options), 13)
        for split in splits:
            corpus.split(split)
        caplog.clear()
        with caplog.at_level(logging.INFO, "gptask"):
            log_labels(task, corpus, splits, prefix)
        records = [(record.levelno, record.getMessage()) for record in caplog.records]
        table, *_ = [text for level, text in records if level == logging.INFO]
        return table, [text for level, text in records if level == logging.WARNING]

    return run


def labelled(*labels: str, times: int = 1) -> list[dict[str, Any]]:
    return [{"label": label} for label in labels * times]


def mapped(warning: str) -> dict[str, str]:
    """``data.labels`` of the option at a warning's end, as a shell and Hydra's grammar read it."""
    (argument,) = shlex.split(warning[warning.index("set '") + 4 :])
    name, _, value = argument.partition("=")
    assert name == "data.labels"
    return label_names(Files(labels=parse_override(f"{name}={quote_if_needed(value)}").value()))


def test_the_table_has_every_class_with_its_count_in_each_split(report: Log) -> None:
    rows = labelled("pos", times=30) + labelled("neg", times=12)
    table, warnings = report(Classification(), rows, ("train", "validation", "test"))
    lines = [line.split() for line in table.splitlines()]
    assert lines[:2] == [["label:", "2", "classes"], ["label", "train", "validation", "test"]]
    counts = {name: [int(number) for number in numbers] for name, *numbers in lines[2:4]}
    assert {name: sum(numbers) for name, numbers in counts.items()} == {"pos": 30, "neg": 12}
    assert [sum(column) for column in zip(*counts.values(), strict=True)] == [34, 4, 4]
    assert not warnings


def test_a_long_table_is_cut_and_says_so(report: Log) -> None:
    rows = [row for number in range(77) for row in labelled(f"intent {number:02}", times=100 - number)]
    table, warnings = report(Classification(), rows)
    lines = table.splitlines()
    assert lines[0] == "label: 77 classes"
    assert [line.strip() for line in lines[2:4]] == ["intent 00    100", "intent 01     99"]
    assert lines[16] == "  … 57 more"
    assert [line.split()[1] for line in lines[17:]] == ["71", "72", "73", "74", "75", "76"]
    assert len(lines) == 23
    assert not warnings


def test_rare_classes_are_remarked_and_are_no_warning(report: Log) -> None:
    rows = labelled("a", "b", times=20) + labelled("c")
    table, warnings = report(Classification(), rows, ("train", "validation", "test"))
    assert sum(line.startswith("  ") and "has no example" in line and "c" in line for line in table.splitlines()) == 2
    table, warnings = report(Classification(), rows)
    assert table.splitlines()[-1] == "  train has one example each of c"
    assert not warnings


def test_classes_beyond_the_limit_of_a_split_are_in_the_table(report: Log) -> None:
    table, warnings = report(Classification(), labelled(*"abcdefghijkl", times=20), limit=Limit(train=10))
    assert table.startswith("label: 12 classes\n")
    assert not warnings


VARIANTS = [
    ("Positive", "POSITIVE"),
    ("very good", "very  good"),
    ("very good", "verygood"),
    ("neg", "neg\u200b"),
    ("neg", "\ufeffneg"),
    ("a b", "a\u00a0b"),
    ("caf\u00e9", "cafe\u0301"),
    ("fine", "\ufb01ne"),
    ("3", "\uff13"),
    ("Stra\u00dfe", "STRASSE"),
    ("\u2764", "\u2764\ufe0f"),
]


@pytest.mark.parametrize(("label", "variant"), VARIANTS, ids=ascii)
def test_labels_that_look_alike_are_a_warning_with_the_option_that_maps_them(
    report: Log, label: str, variant: str
) -> None:
    assert folded(label) == folded(variant)
    rows = labelled(label, label, variant, "other's, {own}: \\ $x", times=3)
    table, (warning,) = report(Classification(), rows)
    assert table.startswith("label: 3 classes")
    assert "labels differ only by case, blanks, invisible characters or Unicode form" in warning
    other = "other's, {own}: \\ $x"
    assert mapped(warning) == {label: label, variant: label, other: other}
    for hidden in ("\u200b", "\ufeff", "\u00a0", "\u0301"):
        assert hidden not in warning + table
    _, warnings = report(Classification(), rows, labels=mapped(warning))
    assert not warnings


def test_the_seven_spellings_of_two_classes_become_two(report: Log) -> None:
    rows = labelled("positive", "Positive", "POSITIVE", "pos itive", "neg", "neg ", "Neg", "\ufeffneg", times=3)
    rows += labelled("positive")
    table, (warning,) = report(Classification(), rows)
    assert table.startswith("label: 7 classes")
    table, warnings = report(Classification(), rows, labels=mapped(warning))
    assert table.splitlines() == ["label: 2 classes", "  label     train", "  positive     13", "  neg          12"]
    assert not warnings


def test_names_in_data_labels_that_look_alike_keep_their_ids(report: Log) -> None:
    rows = labelled("0", "1", "1", "2", times=3)
    _, (warning,) = report(Classification(), rows, labels=["Pos", "pos", "neg"])
    assert mapped(warning) == {"0": "pos", "1": "pos", "2": "neg"}


def test_booleans_beside_numbers_are_a_warning_with_the_option_that_joins_them(report: Log) -> None:
    rows = [{"label": label} for label in (True, "FALSE", 1, "1.0", 0.0, "0") * 3]
    table, (warning,) = report(Classification(), rows)
    assert table.startswith("label: 4 classes")
    assert "some labels are booleans (false, true) and some are numbers (0, 1)" in warning
    assert mapped(warning) == {"false": "0", "true": "1", "0": "0", "1": "1"}
    table, warnings = report(Classification(), rows, labels=mapped(warning))
    assert table.startswith("label: 2 classes")
    assert not warnings


@pytest.mark.parametrize("label", ["None", "NA", "N/A"])
def test_a_label_that_may_be_missing_is_a_warning_unless_the_user_names_it(report: Log, label: str) -> None:
    rows = labelled("a", "b", label, times=3)
    _, (warning,) = report(Classification(), rows)
    assert f"the label '{label}' may stand for a missing one" in warning
    for task, labels in ((Classification(), mapped(warning)), (Classification(labels=["a", "b", label]), None)):
        assert not report(task, rows, labels=labels)[1]


def test_a_column_of_texts_taken_for_labels_is_a_warning(report: Log) -> None:
    rows = [{"label": f"A text, number {number}"} for number in range(20)]
    _, (warning,) = report(Classification(), rows, prefix="tasks.mine.")
    assert warning == (
        "tasks.mine.label: train has 20 labels for 20 examples, such as 'A text, number 0': "
        "does tasks.mine.data.columns.label name the right column?"
    )
    assert not report(Classification(), rows[:9])[1]
    assert not report(Classification(), rows * 2)[1]


def test_vectors_read_as_ids_are_a_warning(report: Log) -> None:
    rows = [{"labels": labels} for labels in ([0, 1], [1, 0]) * 4]
    _, (warning,) = report(Classification(multi_label=True), rows)
    assert "every example of train has every label" in warning
    assert "set data.labels={<name>: <name>, ...}, the labels in the vector's order" in warning
    assert not report(Classification(multi_label=True), [*rows, {"labels": []}])[1]


def test_tags_are_counted_by_words(report: Log) -> None:
    rows = [{"tokens": ["a", "b", "c"], "tags": ["O", "B-PER", tag]} for tag in ("I-PER", "i-per") * 3]
    table, (warning,) = report(TokenTagging(), rows)
    assert [line.split() for line in table.splitlines()] == [
        ["tags:", "4", "tags"], ["tags", "train"], ["B-PER", "6"], ["O", "6"], ["I-PER", "3"], ["i-per", "3"],
    ]  # fmt: skip
    assert mapped(warning) == {"O": "O", "B-PER": "B-PER", "I-PER": "I-PER", "i-per": "I-PER"}


def test_what_can_not_be_seen_is_escaped_and_nothing_else() -> None:
    assert escaped("neg\u200b caf\u00e9 中文（注） 😀") == "neg\\u200b café 中文（注） 😀"
    assert escaped("e\u0301") == "e\\u0301"
    assert escaped("a\tb\u00a0c") == "a\\tb\\u00a0c"
