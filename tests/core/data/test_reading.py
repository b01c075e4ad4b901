"""Every format, plain and gzipped, with and without header; and the errors of broken files."""

import csv
import io
import json
import tracemalloc
from collections.abc import Callable
from itertools import count, islice
from pathlib import Path

import pytest
from gptask.config.schemas import Files
from gptask.data.reading import read, read_stream
from gptask.data.rows import Source
from gptask.errors import DataError, UserError

RECORDS = [
    {"text": "eine gute Sache", "label": "pos"},
    {"text": 'he said "no", twice', "label": "neg"},
    {"text": "难看", "label": "neg"},
]


def rows(name: str, wanted: tuple[str, ...] = (), **options: object) -> list:
    return list(read(Source.parse(name), Files(**options), wanted))


def values(name: str, wanted: tuple[str, ...] = (), **options: object) -> list:
    return [row.value for row in rows(name, wanted, **options)]


def table(kind: str, header: bool) -> str:
    lines = [list(RECORDS[0])] * header + [list(record.values()) for record in RECORDS]
    if kind == "tsv":
        return "".join("\t".join(cells) + "\n" for cells in lines)
    stream = io.StringIO()
    csv.writer(stream).writerows(lines)
    return stream.getvalue()


def parquet(records: list) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(records), sink)
    return sink.getvalue()


def content(kind: str) -> str | bytes:
    if kind == "parquet":
        return parquet(RECORDS)
    if kind == "json":
        return json.dumps(RECORDS, indent=1)
    if kind == "jsonl":
        return "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in RECORDS)
    return table(kind, header=True)


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("kind", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_every_format_gives_the_same_records(write_file: Callable, kind: str, suffix: str) -> None:
    assert values(write_file(f"a.{kind}{suffix}", content(kind))) == RECORDS


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_tables_without_header_are_read_by_position(write_file: Callable, kind: str, suffix: str) -> None:
    name = write_file(f"a.{kind}{suffix}", table(kind, header=False))
    cells = [list(record.values()) for record in RECORDS]
    assert values(name, columns={"text": 0, "label": 1}) == cells
    assert values(name, header=False) == cells


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.conll", "a.txt"])
def test_lines_that_end_with_a_carriage_return_are_refused(write_file: Callable, name: str, encoding: str) -> None:
    with pytest.raises(DataError, match="its lines end with a carriage return alone"):
        values(write_file(name, "text,label\rgood,1\rbad,0\r".encode(encoding)))
    assert values(write_file("one.txt", b"a line\r")) == ["a line"]


def test_the_format_option_overrides_the_suffix(write_file: Callable) -> None:
    assert values(write_file("a.data", content("jsonl")), format="jsonl") == RECORDS
    assert values(write_file("a.json", content("jsonl")), format="jsonl") == RECORDS


def test_a_file_of_unknown_suffix_is_lines_or_with_columns_a_tsv(write_file: Callable) -> None:
    name = write_file("a.txt", "one\tx\r\ntwo\ty\n")
    assert values(name) == ["one\tx", "two\ty"]
    assert values(name, columns={"text": 0}) == [["one", "x"], ["two", "y"]]


def test_a_first_row_with_an_expected_name_is_the_header(write_file: Callable) -> None:
    name = write_file("a.csv", "0,review\n1,good\n")
    by_position = {"label": 0, "text": 1}
    assert values(name, ("label", "text"), columns=by_position) == [["0", "review"], ["1", "good"]]
    assert values(name, ("review",), columns={"text": "review", "label": 0}) == [{"0": "1", "review": "good"}]
    assert values(name, ("label", "text"), columns=by_position, header=True) == [{"0": "1", "review": "good"}]
    named = write_file("b.csv", "label,review\n1,good\n")
    assert values(named, ("label", "text"), columns=by_position) == [{"label": "1", "review": "good"}]


def test_quotes_have_a_meaning_in_csv_alone_unless_set(write_file: Callable) -> None:
    assert values(write_file("a.tsv", 'text\n"as it is"\n')) == [{"text": '"as it is"'}]
    assert values(write_file("a.tsv", "text\n'as it is'\n"), quote="'") == [{"text": "as it is"}]
    assert values(write_file("a.csv", 'text\n5" nails\n"6"" nails"\n')) == [{"text": '5" nails'}, {"text": '6" nails'}]
    assert values(write_file("a.csv", 'text\n"open\n'), quote="") == [{"text": '"open'}]
    with pytest.raises(UserError, match="one character"):
        values(write_file("a.csv", "text\n"), quote="''")


def test_a_row_has_the_number_of_its_first_line(write_file: Callable) -> None:
    name = write_file("a.csv", 'text,label\n"two\nlines",a\n\nlast,b\n')
    assert [(row.number, row.value["text"]) for row in rows(name)] == [(2, "two\nlines"), (5, "last")]
    assert rows(name)[0].location("a.csv") == "a.csv:2"
    assert rows(write_file("a.json", json.dumps(RECORDS)))[1].location("a.json") == "a.json record 2"


def test_a_byte_order_mark_is_dropped(write_file: Callable) -> None:
    for name, text in [("a.csv", table("csv", True)), ("a.json", content("json")), ("a.jsonl", content("jsonl"))]:
        assert values(write_file(name, text, "utf-8-sig")) == RECORDS


def test_an_encoding_that_is_told_is_used(write_file: Callable) -> None:
    assert values(write_file("a.txt", "评论\n", "gb18030"), encoding="gb18030") == ["评论"]
    assert values(write_file("a.json", '[{"a": "é"}]', "latin-1"), encoding="latin-1") == [{"a": "é"}]
    with pytest.raises(UserError, match="'utf8000' is unknown"):
        values(write_file("a.csv", "a,b\n"), encoding="utf8000")


def test_a_pattern_splits_lines_into_fields(write_file: Callable) -> None:
    name = write_file("TREC.train", "DESC:manner How did it go ?\n\nno label here\n")
    first, bad = rows(name, pattern=r"(?P<label>[A-Z]+):\S+ (?P<text>.+)")
    assert first.value == {"label": "DESC", "text": "How did it go ?"}
    assert bad.number == 3
    assert isinstance(bad.value, DataError)
    assert "does not match data.pattern" in str(bad.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pattern": "(?P<text>.+"}, "not a valid regular expression"),
        ({"pattern": "(.+)"}, "names no group"),
        ({"pattern": "(?P<text>.+)", "format": "csv"}, "for plain lines"),
        ({"format": "xml"}, "data.format='xml' is unknown; expected auto, csv"),
    ],
)
def test_options_that_cannot_work_are_errors(write_file: Callable, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        values(write_file("a.txt", "line\n"), **options)


SQUAD = {
    "version": "v2.0",
    "data": [
        {
            "title": "Theatre",
            "paragraphs": [
                {
                    "context": "It seats 32.",
                    "qas": [
                        {"id": 7, "question": "How many?", "answers": [{"text": "32", "answer_start": 9}]},
                        {"id": "8", "question": "Who?", "is_impossible": True, "answers": [], "plausible_answers": []},
                    ],
                }
            ],
        }
    ],
}


@pytest.mark.parametrize("name", ["squad.json", "squad.json.gz"])
def test_squad_gives_a_row_per_question(write_file: Callable, name: str) -> None:
    first, second = values(write_file(name, json.dumps(SQUAD)))
    assert first["title"] == "Theatre"
    assert first["context"] == second["context"] == "It seats 32."
    assert (first["question"], first["answers"], first["answer_start"]) == ("How many?", ["32"], [9])
    assert (second["question"], second["answers"], second["answer_start"]) == ("Who?", [], [])


def test_squad_without_answers_has_no_such_column(write_file: Callable) -> None:
    question = [{"context": "c", "qas": [{"id": "1", "question": "q"}]}]
    (row,) = values(write_file("test.json", json.dumps({"data": [{"paragraphs": question}]})))
    assert row == {"title": "", "context": "c", "id": "1", "question": "q"}


def test_squad_of_another_shape_is_an_error(write_file: Callable) -> None:
    with pytest.raises(DataError, match="but not its shape"):
        values(write_file("a.json", json.dumps([{"paragraphs": [{"context": "c"}]}])))


def test_a_list_of_a_json_object_is_read_by_name(write_file: Callable) -> None:
    name = write_file("all.json", json.dumps({"train": [["hello", "greet"]], "oos": [["x", "oos"]], "version": 1}))
    assert values(f"{name}#train") == [["hello", "greet"]]
    assert values(f"{name}#oos") == [["x", "oos"]]
    with pytest.raises(DataError, match=r"name one as all.json#train.*there are train, oos"):
        values(name)
    with pytest.raises(DataError, match="got '#val'"):
        values(f"{name}#val")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"a": 1},\n {"a": }]', r"a.json:2: broken JSON: Expecting value at column 8"),
        ('[{"a": "b\tc"}]', r"a.json:1: broken JSON: Invalid control character at column 10"),
        ('{"a": 1}\n{"a": 2}\n', r"a.json:2: broken JSON: Extra data .*data.format=jsonl"),
        ('{"a": {"0": 1}}', "expected a list of objects"),
        ('"text"', "expected a list of objects"),
    ],
)
def test_json_that_cannot_be_read_is_an_error(write_file: Callable, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        values(write_file("a.json", text))


def test_bad_rows_have_their_line_and_the_rest_is_read(write_file: Callable) -> None:
    cases = {
        "a.jsonl": (
            '{"a": 1}\n{"a": \n\n3\n{"a": 4}\n',
            {2: "broken JSON: Expecting value", 4: "JSON object, got 3"},
        ),
        "a.csv": ('a,b\n1,2\n3\n5,6,7\n"x"y,8\n9,10\n', {3: "1 cells, but", 4: "3 cells, but", 5: "broken quoting"}),
        "a.tsv": ("a\tb\n1\t2\n3\n9\t10\n", {3: r"1 cells, but the header has 2 (a, b)"}),
        "a.json": ('[{"a": 1}, 2, {"a": 3}]', {2: "expected an object, got 2"}),
    }
    for name, (text, bad) in cases.items():
        errors = {
            row.number: str(row.value) for row in rows(write_file(name, text)) if isinstance(row.value, DataError)
        }
        assert errors.keys() == bad.keys()
        assert all(part in errors[line] for line, part in bad.items())
        assert len(rows(write_file(name, text))) == len(bad) + 2


def test_an_unclosed_quote_has_the_line_of_its_row(write_file: Callable) -> None:
    first, bad, following = rows(write_file("a.csv", 'text,label\nfine,a\n"never closed,b\nnext,c\n'))
    assert [first.number, bad.number, following] == [2, 3, (4, {"text": "next", "label": "c"}, "line")]
    assert "a quote is never closed; the row would take 2 lines, 3 to 4 (data.quote=''" in str(bad.value)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv", "txt", "json", "parquet"])
def test_a_truncated_or_false_gzip_file_is_an_error(write_file: Callable, tmp_path: Path, kind: str) -> None:
    text = content(kind) if kind != "txt" else "line\n" * 9
    name = write_file(f"a.{kind}.gz", text)
    Path(name).write_bytes(Path(name).read_bytes()[:-12])
    with pytest.raises(DataError, match=rf"a\.{kind}\.gz.*gzip"):
        values(name)
    Path(name).write_bytes(b"\x00\x01 no gzip\n")
    with pytest.raises(DataError, match="is not a complete gzip file"):
        values(name)


def test_a_broken_parquet_file_is_an_error(write_file: Callable) -> None:
    with pytest.raises(DataError, match="Parquet magic bytes not found in footer"):
        values(write_file("a.parquet", b"PAR1 not really"))


def test_the_error_of_a_missing_file_lists_its_folder(write_file: Callable, tmp_path: Path) -> None:
    write_file("reviews.csv", "a\n")
    with pytest.raises(UserError, match=r"no such file: .*review\.csv \(files in its folder: reviews\.csv\)"):
        Source.parse("review.csv", str(tmp_path))
    with pytest.raises(UserError, match=r"no such file: .*; one file is expected, not a pattern$"):
        Source.parse("*.csv", str(tmp_path))
    with pytest.raises(UserError, match="is a folder"):
        Source.parse(str(tmp_path))
    with pytest.raises(UserError, match="its folder does not exist"):
        Source.parse(str(tmp_path / "no" / "a.csv"))


def test_a_part_of_another_format_is_an_error(write_file: Callable) -> None:
    with pytest.raises(UserError, match="names a list inside a JSON file"):
        values(write_file("a.csv", "a\n") + "#train")


def test_a_file_name_may_hold_a_number_sign(write_file: Callable) -> None:
    assert values(write_file("a#1.txt", "line\n")) == ["line"]


def test_files_are_read_as_a_stream(write_file: Callable) -> None:
    name = write_file(
        "big.jsonl", json.dumps({"text": "word " * 200}) + "\n" + f'{{"text": "{"word " * 200}"}}\n' * 5000
    )
    tracemalloc.start()
    try:
        assert sum(1 for _ in read(Source.parse(name), Files(), ())) == 5001
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert Path(name).stat().st_size > 5_000_000
    assert peak < 500_000


def test_rows_of_standard_input_come_before_its_end() -> None:
    endless = (b'{"text": "%d"}\n' % number for number in count())
    assert [row.value for row in islice(read_stream(endless, Files()), 2)] == [{"text": "0"}, {"text": "1"}]
    table = (b"%d,x\n" % number if number else b"text,label\n" for number in count())
    assert [row.value["text"] for row in islice(read_stream(table, Files(), ["text"]), 2)] == ["1", "2"]


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        (b"plain\nlines\n", {}, ["plain", "lines"]),
        (b"\xef\xbb\xbf{}\n", {}, [{}]),
        (b"", {}, []),
        (b"text,label\nx,y\n", {"format": "csv"}, [{"text": "x", "label": "y"}]),
        (b"x\ty\n", {"format": "tsv", "header": False}, [["x", "y"]]),
        (b"text,label\nx,y\n", {}, [{"text": "x", "label": "y"}]),
        (b"id\ttext\n1\tx, y\n", {}, [{"id": "1", "text": "x, y"}]),
        (b"text;note\nx;y\n", {}, [{"text": "x", "note": "y"}]),
        (b"review\nx\n", {"columns": {"text": "review"}}, [{"review": "x"}]),
        (b"x\t1\n", {"columns": {"text": 0, "label": 1}}, [["x", "1"]]),
        (b"text\nx\n", {}, ["text", "x"]),
        (b"Dear text, please\n", {}, ["Dear text, please"]),
        (b"text, please\n", {}, ["text, please"]),
        (b'[{"text": "x"}, {"text": "y"}]\n', {}, [{"text": "x"}, {"text": "y"}]),
        (b'[\n {"text": "x"},\n {"text": "\xc3\xa9"}\n]\n', {}, [{"text": "x"}, {"text": "é"}]),
        (b'{\n "data": [{"text": "x"}]\n}\n', {}, [{"text": "x"}]),
        (b"[]\n", {}, []),
        (b"[Music] Great song\n", {}, ["[Music] Great song"]),
        (b'[{"text": "x"}]', {"format": "json"}, [{"text": "x"}]),
        (b"A:x\n", {"pattern": "(?P<l>.):(?P<t>.)"}, [{"l": "A", "t": "x"}]),
    ],
)
def test_the_format_of_standard_input_is_told_or_found_by_its_first_line(
    text: bytes, options: dict, expected: list
) -> None:
    rows = read_stream(io.BytesIO(text), Files(**options), ["text", "review"])
    assert [row.value for row in rows] == expected


def test_parquet_from_standard_input_is_an_error() -> None:
    with pytest.raises(UserError, match="can't be read as 'parquet'"):
        list(read_stream(io.BytesIO(b""), Files(format="parquet")))
