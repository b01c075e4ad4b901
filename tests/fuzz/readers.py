"""Readers: data files of every format, whole and damaged, under options of every kind."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from gptask.config.schemas import BadRowPolicy, Documents, Files, Limit
from gptask.data.columns import Columns
from gptask.data.corpus import CachedCorpus
from gptask.data.documents import options_for_task
from gptask.data.files import FileReader
from gptask.data.labels import label_names
from gptask.plugins.discovery import discover, load_task_class
from gptask.runs.predictor import read_inputs
from hypothesis import strategies as st

from tests.fuzz.hostile import byte_changes, changed_bytes, leaves, texts, values
from tests.fuzz.sandbox import Sandbox
from tests.fuzz.target import Setting, Target

TASKS = ("sentiment", "classification", "qa", "translation", "token_tagging", "generation", "language_modeling",
         "question_generation", "summarization")  # fmt: skip
FORMATS = ("csv", "tsv", "json", "jsonl", "parquet", "conll", "lines")
SUFFIXES = (
    ".csv",
    ".tsv",
    ".json",
    ".jsonl",
    ".parquet",
    ".conll",
    ".conllu",
    ".txt",
    "",
    ".csv.gz",
    ".txt.xz",
    ".BZ2",
)
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1", "cp1252", "gb18030", "shift_jis")
TOLD_ENCODINGS = (*ENCODINGS, "undefined", "idna", "punycode", "rot13", "base64", "zlib", "unicode_escape",
                  "raw_unicode_escape", "utf-7", "mbcs", "nosuch", "", "\x00", "utf-8\x00", "²")  # fmt: skip
COMPRESSIONS = {"gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress}
COLUMNS = ("text", "label", "question", "context", "answers", "source", "target", "tokens", "tags", "messages", "id",
           "document", "summary", "sentence", "0", "1", "²", "", "a.b", "__proto__")  # fmt: skip
SENTENCES = st.sampled_from(
    ["a fine film", "0", "1", "positive", "negative", "B-PER", "de", "The answer is 42.", "a b c"]
)
CELLS = st.one_of(
    SENTENCES,
    SENTENCES,
    st.lists(SENTENCES, max_size=3),
    st.sampled_from([{"text": ["x"], "answer_start": [0]}, {"text": "x", "answer_start": 2**70}, [{"role": "user"}]]),
    st.just([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]),
    values,
)


@dataclass(frozen=True)
class ReaderCase:
    """A file and how it is read: ``how`` is rows, corpus, stdin or predict."""

    how: str
    task: str
    file_format: str
    suffix: str
    names: list[str]
    rows: list[list[Any]]
    encoding: str
    compression: str
    damage: list[tuple[Any, ...]]
    options: dict[str, Any]
    parallel: bool
    label_file: bytes | None


options = st.fixed_dictionaries(
    {},
    optional={
        "format": st.sampled_from(["auto", *FORMATS, "conllu", "xml"]),
        "header": st.booleans(),
        "delimiter": st.one_of(
            st.sampled_from([",", "\t", ";", "|", "comma", "tab", "\\t", "\n", '"', "", ",,"]), texts
        ),
        "quote": st.one_of(st.sampled_from(['"', "'", "none", "", "\n", "ab"]), texts),
        "encoding": st.sampled_from(TOLD_ENCODINGS),
        "pattern": st.one_of(
            st.sampled_from(
                ["(?P<text>.*)", r"(?P<label>\w+) (?P<text>.+)", "(", "(?P<a>x)(?P<a>y)", "", "(?P<text>(?:a|b)*)c"]
            ),
            texts,
        ),
        "separator": st.one_of(st.sampled_from(["^#", "", "(", "(?s).*", "-+", "^$"]), texts),
        "documents": st.sampled_from(list(Documents)),
        "columns": st.dictionaries(
            st.one_of(st.sampled_from(COLUMNS), texts),
            st.one_of(st.sampled_from(COLUMNS), st.lists(st.sampled_from(COLUMNS), max_size=3), leaves),
            max_size=3,
        ),
        "test_columns": st.dictionaries(
            st.sampled_from(COLUMNS), st.one_of(st.sampled_from(COLUMNS), values), max_size=2
        ),
        "labels": st.one_of(
            st.lists(texts, max_size=4),
            st.dictionaries(
                st.one_of(st.sampled_from(["0", "1", "²", "a"]), texts), st.one_of(texts, values), max_size=3
            ),
            st.sampled_from(
                ["labels.json", "labels.txt", '["a","b"]', '{"0": "a"}', "{", "[" * 3000, "nosuch.json", "."]
            ),
            values,
        ),
        "label_start": st.sampled_from([0, 1, -1, 10**9, 2**70]),
        "label_separator": st.one_of(st.sampled_from([",", "", " ", "||"]), texts),
        "group": st.one_of(st.sampled_from(COLUMNS), texts),
        "on_bad": st.sampled_from(list(BadRowPolicy)),
        "cut": st.sampled_from([0.1, 0.49, 0.0, float("nan"), -1.0, 0.3]),
        "stratify": st.booleans(),
        "seed": st.sampled_from([0, -1, 2**40, 7, 2**70]),
        "root": st.sampled_from([".", "..", "/nosuch", "", "~"]),
    },
)


@st.composite
def reader_cases(draw: st.DrawFn) -> ReaderCase:
    width = draw(st.integers(1, 4))
    names = draw(st.lists(st.one_of(st.sampled_from(COLUMNS), texts), min_size=width, max_size=width))
    rows = draw(st.lists(st.lists(CELLS, min_size=0, max_size=width + 1), max_size=8))
    rows = rows * draw(st.sampled_from([1, 1, 1, 3, 20]))
    damaged = draw(st.sampled_from([0, 0, 1, 1, 3]))
    return ReaderCase(
        draw(st.sampled_from(["rows"] * 7 + ["corpus"] * 5 + ["stdin", "predict"])),
        draw(st.sampled_from(TASKS)),
        draw(st.sampled_from(FORMATS)),
        draw(st.sampled_from(["natural"] * 3 + [*SUFFIXES])),
        names,
        rows,
        draw(st.sampled_from(["utf-8"] * 4 + [*ENCODINGS])),
        draw(st.sampled_from(["", "", "", *COMPRESSIONS])),
        draw(st.lists(byte_changes, min_size=damaged, max_size=damaged)),
        draw(options),
        draw(st.integers(0, 9)) == 9,
        draw(st.none() | st.sampled_from([b'["a", "b"]', b"a\nb\n", b'{"0": "a"}', b"\xff", b"[[[[]]]]", b"{"])),
    )


def content(case: ReaderCase) -> bytes:
    """The bytes of the case's file."""
    records = [dict(zip(case.names, row, strict=False)) for row in case.rows]
    data: bytes
    if case.file_format == "parquet":
        data = _parquet(case)
    elif case.file_format in ("csv", "tsv"):
        stream = io.StringIO()
        writer = csv.writer(stream, delimiter="," if case.file_format == "csv" else "\t")
        for row in [case.names, *case.rows]:
            writer.writerow([cell if isinstance(cell, str) else json.dumps(cell) for cell in row])
        data = _encoded(stream.getvalue(), case)
    elif case.file_format == "json":
        data = _encoded(
            json.dumps(records if len(records) != 2 else {"data": records, "x": 1}, ensure_ascii=False), case
        )
    elif case.file_format == "jsonl":
        data = _encoded("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), case)
    else:
        join = "\t" if case.file_format == "conll" else " "
        data = _encoded("\n".join(join.join(map(str, row)) for row in case.rows), case)
    if case.compression:
        data = COMPRESSIONS[case.compression](data)
    return changed_bytes(data, case.damage)


def _encoded(text: str, case: ReaderCase) -> bytes:
    try:
        return text.encode(case.encoding, "surrogatepass")
    except UnicodeError:
        return text.encode("utf-8", "surrogatepass")


def _parquet(case: ReaderCase) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrays, names = [], []
    for number, name in enumerate(case.names):
        cells = [row[number] if number < len(row) else None for row in case.rows]
        arrays.append(_array(cells))
        names.append(name.encode(errors="replace").decode())
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_arrays(arrays, names), stream)
    return stream.getvalue()


def _array(cells: list[Any]) -> Any:
    """The cells as they are, as dates out of range, as bytes that are no text, or as texts, whatever Arrow takes."""
    import pyarrow as pa

    kinds = [
        lambda: pa.array(cells),
        lambda: pa.array([c if isinstance(c, int) else None for c in cells], pa.int64()).cast(pa.timestamp("us")),
        lambda: pa.array([None if c is None else b"\xff" + str(c).encode() for c in cells], pa.binary()).view(
            pa.string()
        ),
        lambda: pa.array([str(c).encode(errors="replace").decode() for c in cells]).dictionary_encode(),
    ]
    for make in kinds[len(cells) % 3 :]:
        try:
            array = make()
            if "struct<>" not in str(array.type):
                return array
        except (pa.ArrowException, OverflowError, UnicodeError, ValueError, TypeError, RecursionError):
            continue
    return pa.nulls(len(cells))


@cache
def _task(name: str) -> Any:
    return load_task_class(discover({name}), name)


def run_reader(case: ReaderCase, sandbox: Sandbox, setting: Setting) -> None:
    """Read the case's file as training and prediction do."""
    suffix = f".{case.file_format}" if case.suffix == "natural" else case.suffix
    file = sandbox.folder / f"data{suffix}"
    file.write_bytes(content(case))
    if case.label_file is not None:
        for name in ("labels.json", "labels.txt"):
            (sandbox.folder / name).write_bytes(case.label_file)
    if case.how in ("stdin", "predict") and setting.runs:
        _predict(case, sandbox, setting, file.name)
        return
    task = _task(case.task)()
    options = Files(train=file.name, **{name: value for name, value in case.options.items() if value != ""})
    if case.parallel:
        options = replace(options, train=dict.fromkeys(case.names[:2], file.name))
    sandbox.call(lambda: _corpus(task, options) if case.how == "corpus" else _rows(task, options))


def _rows(task: Any, options: Files) -> None:
    """As `predict` reads a file, and as the label report does: every row, good or bad."""
    columns = Columns(task, options, task.fields())
    label_names(options)
    reader = FileReader(options_for_task(options, task), options.train)
    for name, row in reader.rows(columns.header_names):
        for _ in read_inputs([row], columns, name):
            pass


def _corpus(task: Any, options: Files) -> None:
    corpus = CachedCorpus(task, replace(options, limit=Limit(train=16)), 13)
    corpus.fingerprint()
    for split in ("train", "validation", "test"):
        for example in corpus.split(split):
            assert isinstance(example, dict)
    corpus.warn_overlap()


def _predict(case: ReaderCase, sandbox: Sandbox, setting: Setting, file: str) -> None:
    """The file as the input of a finished run, named or as standard input."""
    plain = {
        name: value for name, value in case.options.items() if name in ("format", "header", "encoding", "documents")
    }
    overrides = [
        f"data.{name}={value.name if hasattr(value, 'name') else value}" for name, value in plain.items() if value
    ]
    output = ["-", "out/p.csv", "out/p.jsonl", "out/p.parquet"][len(case.rows) % 4]
    skip = ["on_error=skip"] * (len(case.names) % 2)
    run = setting.runs["sentiment"]
    stdin = (sandbox.folder / file).read_bytes() if case.how == "stdin" else b""
    source = "-" if case.how == "stdin" else file
    sandbox.command("predict", f"run={run}", f"input={source}", f"output={output}", *skip, *overrides, stdin=stdin)


READERS = Target("readers", 0.55, reader_cases(), run_reader)
