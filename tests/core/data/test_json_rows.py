"""JSON: names that occur twice, texts that are cut short, and lists in files for lines."""

import json
from collections.abc import Callable

import pytest
from gptask.config.schemas import BadRowPolicy, Files
from gptask.data.columns import Columns
from gptask.data.corpus import CachedCorpus
from gptask.data.reading import read
from gptask.data.rows import ReadingNotes, Source
from gptask.errors import DataError
from gptask_tasks.classification import Classification
from gptask_tasks.generation import TextGeneration
from gptask_tasks.qa import QuestionAnswering


def values(name: str, names: tuple[str, ...] = ("text", "label"), **options: object) -> list:
    return [row.value for row in read(Source.parse(name), Files(**options), names, ReadingNotes())]


GOOD = '{"text": "a", "label": "x"}'


@pytest.mark.parametrize("kind", ["jsonl", "json"])
@pytest.mark.parametrize(
    ("record", "columns", "refused"),
    [
        ('{"text": "a", "label": "x", "text": "b"}', {}, "text"),
        ('{"text": "a", "label": "x", "id": 1, "id": 2}', {}, "id"),
        ('{"text": "a", "label": "x", "note": 1, "note": 2}', {}, None),
        ('{"text": "a", "label": "x", "note": {"text": 1, "text": 2}}', {}, None),
        ('{"text": "a", "label": "x", "note": 1, "note": 2}', {"text": "note"}, "note"),
        ('{"text": "a", "text": "b", "review": "c", "label": "x"}', {"text": "review"}, None),
        ('{"text": {"en": "a", "en": "b"}, "label": "x"}', {"text": "text.en"}, "text.en"),
        ('{"text": {"en": "a", "de": "b", "de": "c"}, "label": "x"}', {"text": "text.en"}, None),
        ('{"text": "a", "text": {"en": "b"}, "label": "x"}', {"text": "text.en"}, "text"),
        ('{"text": [{"en": "a"}, {"en": "b", "en": "c"}], "label": "x"}', {"text": "text.en"}, "text.en"),
    ],
)
def test_a_member_twice_is_refused_only_where_it_is_wanted(
    write_file: Callable, kind: str, record: str, columns: dict, refused: str | None
) -> None:
    text = f"{GOOD}\n{record}\n{GOOD}\n" if kind == "jsonl" else f"[{GOOD}, {record}, {GOOD}]"
    names = ("text", "label", *columns.values())
    first, value, last = values(write_file(f"a.{kind}", text), names, columns=columns)
    assert first == last == json.loads(GOOD)
    if refused is None:
        assert value == json.loads(record)
    else:
        assert str(value) == f"the member '{refused}' occurs twice in one object; remove or rename one of them"


def test_a_member_twice_can_be_skipped(write_file: Callable) -> None:
    name = write_file("a.jsonl", f'{GOOD}\n{{"text": "b", "text": "c", "label": "x"}}\n')
    with pytest.raises(DataError, match=r"a\.jsonl:2: the member 'text' occurs twice"):
        CachedCorpus(Classification(), Files(test=name), 13).split("test")
    assert len(CachedCorpus(Classification(), Files(test=name, on_bad=BadRowPolicy.skip), 13).split("test")) == 1


def squad(article: str = "", paragraph: str = "", question: str = "", answer: str = "") -> str:
    return (
        f'{{"data": [{{"title": "T"{article}, "paragraphs": [{{"context": "It seats 32."{paragraph}, "qas": '
        f'[{{"id": "1", "question": "How many?"{question}, "answers": [{{"text": "32", "answer_start": 9{answer}}}]}}, '
        '{"id": "2", "question": "Where?", "answers": [{"text": "It", "answer_start": 0}]}]}]}]}'
    )


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({"article": ', "title": "U"'}, {}),
        ({"paragraph": ', "context": "Other"'}, {1: "context", 2: "context"}),
        ({"paragraph": ', "qas": []'}, {1: "qas", 2: "qas"}),
        ({"question": ', "question": "Who?"'}, {1: "question"}),
        ({"question": ', "id": "3"'}, {1: "id"}),
        ({"question": ', "note": 1, "note": 2'}, {}),
        ({"answer": ', "text": "33"'}, {1: "answers"}),
        ({"answer": ', "answer_start": 1'}, {1: "answer_start"}),
        ({"answer": ', "note": 1, "note": 2'}, {}),
    ],
)
def test_a_member_twice_in_squad(write_file: Callable, changes: dict, refused: dict) -> None:
    names = tuple(Columns(QuestionAnswering(), Files()).header_names)
    rows = values(write_file("a.json", squad(**changes)), names)
    errors = {number: str(value) for number, value in enumerate(rows, 1) if isinstance(value, DataError)}
    assert errors.keys() == refused.keys()
    assert all(f"the member '{name}' occurs twice" in errors[number] for number, name in refused.items())


def test_a_list_twice_in_an_object_of_lists(write_file: Callable) -> None:
    name = write_file("a.json", f'{{"train": [{GOOD}], "train": [], "test": [{GOOD}]}}')
    assert values(f"{name}#test") == [json.loads(GOOD)]
    with pytest.raises(DataError, match="the list 'train' occurs twice"):
        values(f"{name}#train")


def test_a_task_that_converts_rows_wants_every_name(write_file: Callable) -> None:
    columns = Columns(TextGeneration(), Files())
    record = '{"messages": [{"role": "user", "content": "a", "content": "b"}, {"role": "assistant", "content": "c"}]}'
    (value,) = values(write_file("a.jsonl", record + "\n"), tuple(columns.header_names))
    assert str(value).startswith("the member 'messages.content' occurs twice")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            '{"text": "a", "label": "x',
            "Unterminated string starting at column 24 (it ends in the middle, at column 26)",
        ),
        ('{"text": "a", "label":', "Expecting value at column 23 (it ends in the middle, at column 23)"),
        ('{"text": "a"', "Expecting ',' delimiter at column 13 (it ends in the middle, at column 13)"),
        ('{"text": }', "Expecting value at column 10"),
        ("[" * 100_000, "it is nested too deeply"),
    ],
)
def test_a_cut_line_says_where_it_ends(write_file: Callable, line: str, message: str) -> None:
    _, bad = values(write_file("a.jsonl", f"{GOOD}\n{line}\n"))
    assert str(bad) == f"broken JSON: {message}"


def test_a_list_over_several_lines_gets_a_hint(write_file: Callable) -> None:
    first, *_ = values(write_file("a.jsonl", f"[\n{GOOD}\n]\n"))
    assert "; if the file is one JSON list, set data.format=json" in str(first)


@pytest.mark.parametrize("kind", ["jsonl", "json"])
@pytest.mark.parametrize("depth", [101, 900, 100_000])
def test_json_that_is_nested_deeply_is_refused_before_anything_walks_it(
    write_file: Callable, kind: str, depth: int
) -> None:
    """Python's own limit depends on how deep the caller is: what is just below it breaks whoever walks the value."""
    record = f'{{"text": "a", "label": {"[" * depth}{"]" * depth}}}'
    name = write_file(f"a.{kind}", record if kind == "jsonl" else f"[{record}]")
    with pytest.raises(DataError, match=r"a\.json.*nested too deeply"):
        CachedCorpus(Classification(), Files(test=name), 13).split("test")


@pytest.mark.parametrize("kind", ["jsonl", "json"])
def test_json_with_many_brackets_that_is_not_deep_is_read(write_file: Callable, kind: str) -> None:
    record = json.dumps({"text": "[" * 1000, "label": "x", "spans": [[1, [2]]] * 500})
    name = write_file(f"a.{kind}", record if kind == "jsonl" else f"[{record}]")
    assert values(name) == [json.loads(record)]


@pytest.mark.parametrize("kind", ["jsonl", "json"])
def test_a_number_of_too_many_digits_is_broken_json(write_file: Callable, kind: str) -> None:
    record = f'{{"text": "a", "label": {"9" * 5000}}}'
    name = write_file(f"a.{kind}", record if kind == "jsonl" else f"[{record}]")
    with pytest.raises(DataError, match=r"a\.json.*: broken JSON: a number of more than 4,300 digits"):
        CachedCorpus(Classification(), Files(test=name), 13).split("test")


@pytest.mark.parametrize("kind", ["jsonl", "json"])
@pytest.mark.parametrize(
    ("member", "message"),
    [
        ('"id": "\\udfff"', "the id holds half a surrogate pair"),
        ('"text": "\\ud800"', "the text holds half a surrogate pair"),
        ('"label": "\\ud800"', "the label holds half a surrogate pair"),
        ('"label": Infinity', "the label must be one label, got 'inf'"),
        ('"label": 1e999', "the label must be one label, got 'inf'"),
        ('"label": NaN', "the label is null"),
        ('"text": -Infinity', "the text must be a text, got '-inf'"),
        ('"id": 1e999', "the id must be a text or a finite number, got 'inf'"),
    ],
)
def test_what_is_no_text_and_no_number_is_a_bad_row(write_file: Callable, kind: str, member: str, message: str) -> None:
    members = {"text": '"text": "a"', "label": '"label": "x"'} | {member.split('"')[1]: member}
    record = f"{{{', '.join(members.values())}}}"
    name = write_file(f"a.{kind}", record if kind == "jsonl" else f"[{record}]")
    with pytest.raises(DataError, match=message):
        CachedCorpus(Classification(), Files(test=name), 13).split("test")


def test_half_a_surrogate_pair_in_the_names_of_a_skipped_row_does_not_spoil_the_cache(write_file: Callable) -> None:
    name = write_file("a.jsonl", f'{GOOD}\n{{"\\ud800": "a"}}\n')
    for _ in range(2):  # read, then taken from the cache
        test = CachedCorpus(Classification(), Files(test=name, on_bad=BadRowPolicy.skip), 13).split("test")
        assert test.store.meta["skipped"] == 1
        assert "\ud800" in test.store.meta["first"][0]
