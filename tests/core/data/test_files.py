"""Patterns and folders in place of file names."""

from pathlib import Path

import pytest
from gptask.config.schemas import Files
from gptask.data.corpus import CachedCorpus
from gptask.data.files import FileReader, shortest_paths
from gptask.errors import UserError
from gptask_tasks.classification import Classification
from gptask_tasks.translation import Translation


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("parts/b.csv", "parts/a.csv", "parts/c.csv.gz", "parts/.hidden.csv", "mixed/a.csv", "mixed/a.jsonl",
                 "books/x.txt", "books/README.md", "nested/pos/1.txt", "nested/neg/1.txt", "more/neg/1.txt",
                 "odd/a[1].csv", "de/a.de", "de/b.de", "de/a.en"):  # fmt: skip
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"text,label\n{name},x\n")
    (tmp_path / "empty").mkdir()
    return tmp_path


def names(folder: Path, files: object) -> list[str]:
    return [str(source)[len(str(folder)) + 1 :] for source in FileReader(Files(root=str(folder)), files).sources]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ("parts/*.csv", ["parts/a.csv", "parts/b.csv"]),
        ("parts", ["parts/a.csv", "parts/b.csv", "parts/c.csv.gz"]),
        ("parts/", ["parts/a.csv", "parts/b.csv", "parts/c.csv.gz"]),
        ("nested/*/*.txt", ["nested/neg/1.txt", "nested/pos/1.txt"]),
        ("nested/**/1.txt", ["nested/neg/1.txt", "nested/pos/1.txt"]),
        (["parts/b.csv", "parts/[a]*"], ["parts/b.csv", "parts/a.csv"]),
        ("odd/a[1].csv", ["odd/a[1].csv"]),
        ({"source": "de/*.en", "target": "de/a.de"}, ["de/a.en", "de/a.de"]),
    ],
)
def test_patterns_and_folders_are_files_in_order(folder: Path, files: object, expected: list[str]) -> None:
    assert names(folder, files) == expected


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ("mixed", r"'mixed' stands for files of several kinds: a.csv, a.jsonl; name those of one kind by a pattern"),
        ("books", r"files of several kinds: README.md, x.txt; .* by a pattern, such as 'books/\*\.txt\*'$"),
        ("mixed/a*", r"files of several kinds: .* by a pattern, such as 'mixed/\*\.jsonl\*'$"),
        ("empty", r"empty is a folder without files$"),
        ("nested", r"nested is a folder without files; it has the folders neg, pos: name one, or a pattern"),
        ("parts/*.tsv", r"no file matches .*parts/\*.tsv \(files in its folder: .hidden.csv, a.csv"),
        (
            {"source": "de/*.de", "target": "de/a.en"},
            r"'de/\*.de' stands for 2 files, but of parallel files each field",
        ),
    ],
)
def test_patterns_and_folders_that_can_not_be_read(folder: Path, files: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        names(folder, files)


def test_each_file_of_a_folder_is_logged(folder: Path, logged: list) -> None:
    corpus = CachedCorpus(Classification(), Files(root=str(folder), test="parts"), 13)
    assert [example["text"] for example in corpus.split("test")] == ["parts/a.csv", "parts/b.csv", "parts/c.csv.gz"]
    assert [line.split("/")[-1].split(" ")[0] for line in logged if "1 rows of" in line] == [
        "a.csv",
        "b.csv",
        "c.csv.gz",
    ]


def test_a_bad_line_of_parallel_files_names_its_field(tmp_path: Path) -> None:
    (tmp_path / "a.de").write_bytes("eins\nzwölf\n".encode() + b"dr\xb5i\n")
    (tmp_path / "a.en").write_text("one\ntwelve\nthree\n")
    reader = FileReader(Files(root=str(tmp_path)), {"source": "a.de", "target": "a.en"})
    *_, (_, bad) = reader.rows([field.name for field in Translation().fields()])
    assert str(bad.value).startswith("the source: byte 0xb5 at column 3")


def test_ids_tell_files_of_one_name_apart(folder: Path) -> None:
    for files, expected in {
        "nested/*/*.txt": ["neg/1.txt:2", "pos/1.txt:2"],
        "[mn]*/*/1.txt": ["more/neg/1.txt:2", "nested/neg/1.txt:2", "pos/1.txt:2"],
        "nested/pos/1.txt": ["1.txt:2"],
    }.items():
        corpus = CachedCorpus(Classification(), Files(root=str(folder), test=files, format="csv"), 13)
        assert [example["id"] for example in corpus.split("test")] == expected


def test_shortest_paths_are_the_shortest_ends_of_the_paths_that_differ() -> None:
    assert shortest_paths(["data/a.csv", "b.csv"]) == {"data/a.csv": "a.csv", "b.csv": "b.csv"}
    assert shortest_paths(["1.txt", "a/1.txt"]) == {"1.txt": "1.txt", "a/1.txt": "a/1.txt"}
    assert shortest_paths(["a/1.txt", "x/a/1.txt", "/c/1.txt"]) == {
        "a/1.txt": "a/1.txt",
        "x/a/1.txt": "x/a/1.txt",
        "/c/1.txt": "c/1.txt",
    }
    assert shortest_paths(["x/f.json#train", "x/f.json#test"]) == {
        "x/f.json#train": "f.json#train",
        "x/f.json#test": "f.json#test",
    }
