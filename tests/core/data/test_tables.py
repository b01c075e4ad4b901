"""Tables: delimiters, quotes, headers and names, found or told, and rows that break them."""

import csv
import io
from collections.abc import Callable

import pytest
from gptask.config.schemas import BadRowPolicy, Files
from gptask.data import tables
from gptask.data.corpus import CachedCorpus
from gptask.data.reading import read
from gptask.data.rows import ReadingNotes, Row, Source
from gptask.data.tables import is_quoted
from gptask.errors import DataError, UserError
from gptask_tasks.classification import Classification

NAMES = ("text", "label", "review", "stars")
BY_NAME = {"text": "review", "label": "stars"}
BY_POSITION = {"text": 0, "label": 1}


def read_all(
    name: str, notes: ReadingNotes | None = None, names: tuple[str, ...] = NAMES, **options: object
) -> list[Row]:
    return list(read(Source.parse(name), Files(**options), names, notes or ReadingNotes()))


def values(name: str, **options: object) -> list:
    return [row.value for row in read_all(name, **options)]


# --- quotes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tail", ["", 'said "no"', '"quoted, cell"'])
def test_behind_an_unclosed_quote_the_rest_is_read(write_file: Callable, logged: list, tail: str) -> None:
    lines = [f"text {number},{'ab'[number % 2]}" for number in range(60)]
    lines[9] = '"never closed,a'
    if tail:
        lines[30] = f"{tail},b"
    name = write_file("a.csv", "text,label\n" + "\n".join(lines) + "\n")
    corpus = CachedCorpus(Classification(), Files(test=name, on_bad=BadRowPolicy.skip), 13)
    examples = list(corpus.split("test"))
    assert len(examples) == 59
    assert [example["id"] for example in examples] == [f"a.csv:{line}" for line in range(2, 62) if line != 11]
    (warning,) = (line for line in logged if "skipped" in line)
    last = 32 if tail else 61
    assert "1 of 60 rows are bad and skipped" in warning
    assert "a.csv:11: broken quoting: " in warning
    assert f"the row would take {last - 10} lines, 11 to {last}" in warning


def test_quoted_cells_span_lines_around_a_broken_row(write_file: Callable) -> None:
    text = 'text,label\n"two\nlines",a\n"open,b\n"three\nmore\nlines",a\nlast,b\n'
    rows = read_all(write_file("a.csv", text))
    assert [row.number for row in rows] == [2, 4, 5, 8]
    assert [row.value["text"] for row in rows if isinstance(row.value, dict)] == [
        "two\nlines",
        "three\nmore\nlines",
        "last",
    ]


def test_the_rest_of_a_broken_row_is_no_row(write_file: Callable) -> None:
    rows = read_all(write_file("a.csv", 'text,label\n"two\nlines"x,a\nfine,b\n'))
    assert [(row.number, type(row.value)) for row in rows[:2]] == [(2, DataError), (3, DataError)]
    assert "a quote without its partner, behind a row with broken quotes" in str(rows[1].value)
    assert rows[2].value == {"text": "fine", "label": "b"}


def test_a_row_with_an_unclosed_quote_takes_bounded_memory(
    write_file: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "MAX_ROW_CHARACTERS", 100)
    name = write_file("a.csv", 'text,label\n"open,a\n' + "fine,b\n" * 500)
    bad, *good = read_all(name)
    assert "a quote is not closed within 100 characters; the row would take 15 lines, 2 to 16" in str(bad.value)
    assert [row.number for row in good] == list(range(3, 503))
    long_cell = "x" * 300
    assert values(write_file("b.csv", f'text,label\n"{long_cell}",a\n')) == [{"text": long_cell, "label": "a"}]


def test_tsv_of_pandas_is_read_with_its_quotes(write_file: Callable) -> None:
    import pandas as pd

    texts = ['He said "hi"', "two\nlines", "a\ttab", "plain"]
    frame = pd.DataFrame({"text": texts, "label": list("abab")})
    notes = ReadingNotes()
    rows = read_all(write_file("a.tsv", frame.to_csv(sep="\t")), notes)  # with the index: a column without a name
    assert [row.value for row in rows] == [
        {"": str(number), "text": text, "label": label}
        for number, (text, label) in enumerate(zip(texts, "abab", strict=True))
    ]
    assert notes.options["quote"] == '"'
    quoted = frame.iloc[3:].to_csv(sep="\t", index=False, quoting=csv.QUOTE_ALL)
    assert values(write_file("b.tsv", quoted)) == [{"text": "plain", "label": "b"}]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('text\tlabel\n"He said ""hi"""\ta\n', True),
        ('"a ""b"" c"\t1\nplain\t0\n', True),
        ('"two\nlines"\t1\n', True),
        ('"text"\t"label"\n"good"\t5\n', True),
        ('text\tlabel\n"as it is"\ta\n', False),
        ('he said "no"\t1\n"a ""b"" c"\t0\n', False),
        ('"open\t1\nnext\t0\n', False),
        ('"Yes" he said\t1\n', False),
        ("plain\t1\n", False),
    ],
)
def test_quotes_of_a_tsv_mean_something_only_if_a_csv_writer_wrote_them(text: str, expected: bool) -> None:
    assert is_quoted(iter(text.splitlines(keepends=True)), "\t") is expected


# --- delimiters -------------------------------------------------------------------------------------------------

CELLS = [["review", "stars"], ["Gut, aber teuer", "5"], ["Kalt", "1"], ["So; lala | eben", "3"]]


@pytest.mark.parametrize(("word", "delimiter"), [("comma", ","), ("semicolon", ";"), ("tab", "\t"), ("pipe", "|")])
@pytest.mark.parametrize("suffix", ["csv", "txt", "tsv"])
def test_the_delimiter_is_found(write_file: Callable, word: str, delimiter: str, suffix: str) -> None:
    stream = io.StringIO()
    csv.writer(stream, delimiter=delimiter).writerows(CELLS)
    name, notes = write_file(f"a.{suffix}", stream.getvalue()), ReadingNotes()
    named = [dict(zip(CELLS[0], cells, strict=True)) for cells in CELLS[1:]]
    assert [row.value for row in read_all(name, notes, columns=BY_NAME)] == named
    assert notes.options == {"encoding": "utf-8", "delimiter": word, "header": "true"} | (
        {"quote": '"'} if delimiter in "\t|" and suffix != "csv" and delimiter == "|" else {}
    )
    assert values(name, columns=BY_NAME, delimiter=word) == named
    assert values(name, columns=BY_POSITION) == named  # 'stars' is no number
    headless = write_file(f"b.{suffix}", stream.getvalue().split("\n", 1)[1])
    assert values(headless, columns=BY_POSITION) == CELLS[1:]


def test_a_delimiter_that_is_told_is_used(write_file: Callable) -> None:
    name = write_file("a.csv", "text~label\na,b~1\n")
    assert values(name, delimiter="~") == [{"text": "a,b", "label": "1"}]
    assert values(write_file("b.csv", "text\tlabel\na\tb\n"), delimiter="\\t") == [{"text": "a", "label": "b"}]
    with pytest.raises(UserError, match=r"data.delimiter='::' must be comma, semicolon, tab, pipe, or another single"):
        values(name, delimiter="::")
    with pytest.raises(UserError, match=r"data.delimiter is for tables \(csv, tsv\), but .* is read as jsonl"):
        values(write_file("a.jsonl", "{}\n"), delimiter="comma")


def test_one_column_is_not_cut_at_other_marks(write_file: Callable) -> None:
    assert values(write_file("a.csv", "text\nHello; there\nWhy | not\n")) == [
        {"text": "Hello; there"},
        {"text": "Why | not"},
    ]
    assert values(write_file("a.txt", "a; b\nc; d\n"), columns={"text": 0}) == [["a; b"], ["c; d"]]


def test_two_delimiters_that_fit_alike_are_a_warning(write_file: Callable) -> None:
    notes = ReadingNotes()
    read_all(write_file("a.csv", "Gut, sehr;5\nKalt, ja;1\n"), notes, columns=BY_POSITION)
    assert any("as many cells each if parted by semicolon: set data.delimiter" in line for line in notes.warnings)


def test_the_first_line_of_excel_names_the_delimiter(write_file: Callable) -> None:
    (row,) = read_all(write_file("a.csv", "sep=;\ntext;label\na;b\n"))
    assert (row.number, row.value) == (3, {"text": "a", "label": "b"})


# --- names ------------------------------------------------------------------------------------------------------


def test_a_name_twice_is_refused_only_where_it_is_wanted(write_file: Callable) -> None:
    name = write_file("a.csv", "text,label,text,note,note\na,b,c,d,e\n")
    with pytest.raises(
        DataError, match=r"a.csv:1: 2 columns are called 'text' \(positions 0, 2, from 0\); rename one, or"
    ):
        values(name)
    assert values(name, columns={"text": "note.1", "label": "label"}) == [
        {"text": "a", "label": "b", "text.1": "c", "note": "d", "note.1": "e"}
    ]
    by_position = values(name, columns={"text": 2, "label": 1}, header=True)
    assert list(by_position[0].values())[2] == "c"
    with pytest.raises(DataError, match="2 columns are called 'note'"):
        values(name, names=("note", "label"), columns={"text": "note", "label": "label"})
    with pytest.raises(DataError, match="2 columns are called 'id'"):
        values(write_file("b.csv", "text,label,id,id\na,b,1,2\n"))
    assert values(write_file("c.csv", ",text,,label\n1,a,2,b\n"), names=("*",))[0]["text"] == "a"


# --- headers ----------------------------------------------------------------------------------------------------

STARS = ["review,stars", "Great soup,5", "Cold chips,1", "It was fine,3", "Lovely,5", "Slow,1"]
WORDS = ["review,sentiment", "Great soup,good", "Cold chips,bad", "Fine,good", "Lovely,good", "Slow,bad", "Old,bad"]
FOREIGN = ["评论,标签", "很好吃,好", "太慢了,坏", "不错,好", "喜欢,好", "不好,坏", "一般,坏"]


@pytest.mark.parametrize(
    ("lines", "columns", "told", "header", "said"),
    [
        (STARS, BY_NAME, None, True, None),
        (STARS, BY_NAME, True, True, None),
        (STARS, BY_NAME, False, False, "data.header=false, but the first row (review, stars) looks like a header"),
        (
            STARS,
            BY_POSITION,
            None,
            True,
            "(review, stars) is the header, because 'stars' is no number, as all below it are",
        ),
        (STARS, BY_POSITION, True, True, None),
        (STARS, BY_POSITION, False, False, "data.header=false, but the first row"),
        (STARS[:2], BY_POSITION, None, True, "'review', 'stars' are usual names of columns; data.header=false takes"),
        (WORDS, BY_POSITION, None, True, "is the header, because 'review', 'sentiment' are usual names"),
        (["text,label", "a,b"], BY_POSITION, None, True, "'text' is the name of a field"),
        (FOREIGN, BY_POSITION, None, False, "(评论, 标签) is read as an example; data.header=true if it is the header"),
        (STARS[1:], BY_POSITION, None, False, None),
        (STARS[1:], BY_POSITION, False, False, None),
        (STARS[1:], BY_POSITION, True, True, "data.header=true, so the first row (Great soup, 5) is no example, but"),
        (WORDS[1:], BY_POSITION, None, False, None),
        (WORDS[1:], BY_POSITION, True, True, "it looks like one: 'good' occurs below, too"),
        (["Title,label", "x,label", "y,text", "z,text"], BY_POSITION, None, False, None),
        (["a good one,rare", *WORDS[1:]], BY_POSITION, None, False, "is read as an example; data.header=true if"),
        (["good,n/a", "bad,1", "worse,2"], BY_POSITION, None, False, None),
    ],
)
def test_the_header_is_decided_by_evidence(
    write_file: Callable, lines: list[str], columns: dict, told: bool | None, header: bool, said: str | None
) -> None:
    notes = ReadingNotes()
    names = ("text", "label", *(str(column) for column in columns.values() if not str(column).isdigit()))
    rows = read_all(write_file("a.csv", "\n".join(lines) + "\n"), notes, names, columns=columns, header=told)
    assert len(rows) == len(lines) - header
    assert isinstance(rows[0].value, dict) is header
    assert notes.options["header"] == str(header).lower()
    sentences = [*notes.decisions, *notes.warnings]
    assert (not sentences) if said is None else (said in sentences[0] and len(sentences) == 1)


def test_a_row_that_repeats_the_header_is_a_bad_row(write_file: Callable, logged: list) -> None:
    name = write_file("a.csv", "\n".join([*STARS, *STARS]) + "\n")
    for columns in (BY_NAME, BY_POSITION):
        bad = [row for row in read_all(name, columns=columns) if isinstance(row.value, DataError)]
        assert [(row.number, str(row.value)[:28]) for row in bad] == [(7, "the row repeats the header; ")]
        corpus = CachedCorpus(Classification(), Files(test=name, columns=columns, on_bad=BadRowPolicy.skip), 13)
        assert sorted({example["label"] for example in corpus.split("test")}) == ["1", "3", "5"]
        with pytest.raises(DataError, match=r"a\.csv:7: the row repeats the header.* \(data.on_bad=skip leaves"):
            CachedCorpus(Classification(), Files(test=name, columns=columns), 13).split("test")
    assert any("encoding utf-8, delimiter comma, header true)" in line for line in logged)
    assert any(
        "a.csv: the first row (review, stars) is the header, because 'stars' is no number" in line for line in logged
    )
