import pytest
from gptask.config.schemas import Documents, Files
from gptask.data.documents import SECTION_CHARACTERS, documents, options_for_task
from gptask.errors import UserError
from gptask_tasks.language_modeling import LanguageModeling
from gptask_tasks.sentiment import Sentiment

TEXT = "one\r\ntwo\r\n\r\n  \nthree\n***\n\nfour"


def read(text, **options):
    lines = enumerate(text.splitlines(keepends=True), 1)
    return [(row.number, row.value) for row in documents(iter(lines), Files(**options))]


def test_the_option_decides_what_a_document_is():
    assert [value for _, value in read(TEXT)] == ["one", "two", "", "  ", "three", "***", "", "four"]
    assert read(TEXT, documents=Documents.paragraph) == [(1, "one\ntwo"), (5, "three\n***"), (8, "four")]
    assert read(TEXT, documents=Documents.file) == [(1, TEXT.replace("\r", ""))]
    assert read(TEXT, separator=r"\*+") == [(1, "one\ntwo\n\n  \nthree"), (7, "\nfour")]


@pytest.mark.parametrize("gap", ["\n\n", "\n"])
def test_sections_make_up_the_text_and_end_at_blank_lines_where_possible(gap):
    text = gap.join(f"line {n} " + "x" * 90 for n in range(500))
    sections = read(text, documents=Documents.section)
    assert "".join(value for _, value in sections) == text
    assert len(sections) > 2
    assert all(value.endswith(gap) for _, value in sections[:-1])
    longest = max(len(value) for _, value in sections)
    assert longest < (SECTION_CHARACTERS if gap == "\n\n" else 2 * SECTION_CHARACTERS) + 200
    starts = [text.splitlines()[number - 1] for number, _ in sections]
    assert [value.splitlines()[0] for _, value in sections] == starts


def test_the_task_decides_where_the_option_is_not_set():
    assert options_for_task(Files(), LanguageModeling()).documents is Documents.section
    assert options_for_task(Files(), Sentiment()).documents is Documents.line
    assert options_for_task(Files(documents=Documents.file), LanguageModeling()).documents is Documents.file
    assert options_for_task(Files(format="lines"), LanguageModeling()).documents is None


def test_an_invalid_separator_is_an_error():
    with pytest.raises(UserError, match=r"data.separator '\(' is not a valid regular expression"):
        read(TEXT, separator="(")
