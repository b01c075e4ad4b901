"""CoNLL files as published: their columns, comments and documents, and the errors in them."""

from collections.abc import Callable
from typing import Any

import pytest
from gptask import DataError, Field, Kind
from gptask.config.schemas import Files
from gptask.data import conll
from gptask.data.columns import Columns
from gptask.data.reading import read
from gptask.data.rows import Source
from gptask.training.builder import build_corpus

from tests.support.stub_tasks import TaskWithFields

FIELDS = (Field("tokens", Kind.TOKENS), Field("tags", Kind.TAGS, target=True))
CONLL_2003 = """-DOCSTART- -X- -X- O

EU NNP B-NP B-ORG
rejects VBZ B-VP O

# NN I-NP O

-DOCSTART- -X- -X- O

Peter NNP B-NP B-PER
"""
GERMEVAL = """#\thttp://example.org/a [2009-10-17]
1\tBayern\tB-ORG\tO
2\tspielt\tO\tO

#\thttp://example.org/b [2009-10-18]
1\t#tatort\tB-OTH\tO
"""
UNIVERSAL = """# newdoc
# text = Vámonos al mar
1-2\tVámonos\t_\t_\t_\t_\t_\t_\t_\t_
1\tVamos\tir\tVERB\t_\t_\t0\troot\t_\t_
2\tnos\tnosotros\tPRON\t_\t_\t1\tobj\t_\t_
2.1\tya\t_\t_\t_\t_\t_\t_\t_\t_
"""


def read_sentences(text: str, **options: Any) -> list[Any]:
    return list(conll.read_sentences(enumerate(text.splitlines(keepends=True), 1), **options))


def examples(write_file: Callable, name: str, text: str, **options: Any) -> list[dict[str, Any]]:
    """Tokens and tags, as a task with these fields reads the file."""
    source, files = Source.parse(write_file(name, text)), Files(**options)
    columns = Columns(TaskWithFields(*FIELDS), files)
    return [columns.example(row) for row in read(source, files, columns.header_names)]


def test_a_sentence_is_its_columns_and_its_first_line() -> None:
    assert read_sentences("The\tO\nend\tB-X\n\t\n.\tO\r\n") == [
        (1, [["The", "end"], ["O", "B-X"]]),
        (4, [["."], ["O"]]),
    ]
    assert read_sentences("The  O\n\n\n \nend O") == [(1, [["The"], ["O"]]), (5, [["end"], ["O"]])]
    assert read_sentences("New\u00a0York\tB-LOC\n")[0][1] == [["New\u00a0York"], ["B-LOC"]], (
        "only tabs and spaces separate cells"
    )
    assert read_sentences("New York\tB-LOC\n")[0][1] == [["New York"], ["B-LOC"]], (
        "in a line with a tab, a space does not"
    )


def test_document_marks_and_comments_are_left_out() -> None:
    assert [columns[0] for _, columns in read_sentences(CONLL_2003)] == [["EU", "rejects"], ["#"], ["Peter"]]
    assert [columns[1] for _, columns in read_sentences(GERMEVAL)] == [["Bayern", "spielt"], ["#tatort"]]
    ontonotes = "#begin document (a); part 000\na/b 0 0 The\na/b 0 1 end\n\n#end document\n"
    assert [columns[3] for _, columns in read_sentences(ontonotes)] == [["The", "end"]]
    assert [columns[0] for _, columns in read_sentences("#tag\tO\n\n#more\tO\nword\tO\n")] == [
        ["#tag"],
        ["#more", "word"],
    ]


def test_conllu_has_named_columns_and_one_line_for_each_word() -> None:
    (number, columns), *more = read_sentences(UNIVERSAL, universal=True)
    assert (number, columns["form"], columns["upos"], more) == (4, ["Vamos", "nos"], ["VERB", "PRON"], [])


@pytest.mark.parametrize(
    ("text", "universal", "line", "message"),
    [
        ("a\tO\nb\nc\tO\n", False, 2, "1 columns, but the sentence's first word, on line 1, has 2"),
        ("a O\nb B-X too\n", False, 2, "3 columns, but the sentence's first word"),
        ("\tO\nb\tO\n", False, 2, "2 columns, but the sentence's first word"),
        ("a O\n#b\n", False, 2, "1 columns, but"),
        ("1\ta\n", True, 1, "2 columns, but CoNLL-U has 10"),
    ],
)
def test_a_word_with_another_number_of_columns_is_an_error(text: str, universal: bool, line: int, message: str) -> None:
    rows = read_sentences(f"fine{'	_' * 9}\n\n" * universal + text, universal=universal)
    number, error = rows[-1]
    assert number == line + 2 * universal
    assert isinstance(error, DataError)
    assert message in str(error)


def test_words_come_first_and_tags_last_unless_columns_say_otherwise(write_file: Callable) -> None:
    assert examples(write_file, "a.conll", CONLL_2003)[0] == {"tokens": ["EU", "rejects"], "tags": ["B-ORG", "O"]}
    assert examples(write_file, "a.conll", CONLL_2003, columns={"tags": 1})[0]["tags"] == ["NNP", "VBZ"]
    german = examples(write_file, "a.tsv", GERMEVAL, format="conll", columns={"tokens": 1, "tags": 2})
    assert german[0] == {"tokens": ["Bayern", "spielt"], "tags": ["B-ORG", "O"]}
    spanish = examples(write_file, "a.conllu.gz", UNIVERSAL, columns={"tokens": "form", "tags": "upos"})
    assert spanish == [{"tokens": ["Vamos", "nos"], "tags": ["VERB", "PRON"]}]


def test_a_single_column_is_not_read_as_tags(write_file: Callable) -> None:
    with pytest.raises(DataError, match="no column 'tags' for tags: the row has 1 cells without names"):
        examples(write_file, "a.conll", "The\nend\n")


def test_an_error_names_file_and_line(write_file: Callable) -> None:
    from gptask_tasks.token_tagging import TokenTagging

    name = write_file("a.conll", "a\tO\nb\tB-X\n\na\tO\nb\n")
    with pytest.raises(DataError, match=r"a\.conll:5: 1 columns, but the sentence's first word, on line 4, has 2"):
        build_corpus(TokenTagging(), Files(train=name), 0).split("train")
    name = write_file(
        "a.jsonl", '{"tokens": ["a", "b"], "tags": ["O", "B-X"]}\n{"tokens": ["a", "b"], "tags": ["O"]}\n'
    )
    with pytest.raises(DataError, match=r"a\.jsonl:2: tokens, tags must have the same length, got 2 tokens, 1 tags"):
        build_corpus(TokenTagging(), Files(train=name), 0).split("train")
