"""Names of files: what can't be a data file is one error that says what it is."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from gptask.config.schemas import Files
from gptask.data.corpus import CachedCorpus
from gptask.data.files import FileReader
from gptask.data.rows import Source, is_index, unique_names, wanted_positions
from gptask.errors import DataError, UserError
from gptask_tasks.classification import Classification


def refused(name: str, **options: str) -> str:
    with pytest.raises(UserError) as caught:
        FileReader(Files(**options), name).fingerprint()
    assert len(str(caught.value)) < 700
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("x" * 300, "File name too long"),
        ("y/" * 3000, "File name too long"),
        ("?" * 300, "File name too long"),
        ("#" * 300, "File name too long"),
        ("~nobody-of-this-name/x", "no such file or folder: ~nobody-of-this-name/x"),
        ("a\0b", "no such file"),
        ("#", "no such file: #"),
        ("folder", "is a folder without files"),
        ("pipe", "pipe is a pipe, not a file; save what it gives to a file first"),
        ("socket", "socket is a socket, not a file"),
        ("broken", "broken is a link to nowhere, which doesn't exist"),
        ("loop", "loop is a link to loop, which doesn't exist"),
        ("/dev/zero", "/dev/zero is a device, not a file"),
        ("/proc/self/mem", "/proc/self/mem can't be read: Input/output error"),
    ],
)
def test_what_is_no_readable_file_is_refused(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "broken").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    with socket.socket(socket.AF_UNIX) as server:
        where = os.getcwd()
        os.chdir(tmp_path)  # the path of a socket has 107 characters at most
        try:
            server.bind("socket")
            assert message in refused(name)
        finally:
            os.chdir(where)


def test_a_file_without_permission_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("a\n")

    def deny(*_: object, **__: object) -> None:  # root may read everything
        raise PermissionError(13, "Permission denied", str(tmp_path / "a.txt"))

    monkeypatch.setattr(Path, "open", deny)
    assert refused(str(tmp_path / "a.txt")) == f"{tmp_path / 'a.txt'} can't be read: Permission denied"


def test_a_name_with_a_line_break_or_bytes_beyond_utf8_is_read(tmp_path: Path) -> None:
    for name in ("a\nb.jsonl", os.fsdecode(b"\xff.jsonl")):
        (tmp_path / name).write_text('{"text": "a", "label": "x"}\n')
        test = CachedCorpus(Classification(), Files(test=str(tmp_path / name)), 13).split("test")
        assert test[0]["text"] == "a"


@pytest.mark.parametrize("change", ["cut short", "longer", "replaced"])
def test_a_file_that_changes_while_it_is_read_is_refused_and_not_cached(write_file: Callable, change: str) -> None:
    name = write_file("a.jsonl", '{"text": "a", "label": "x"}\n' * 3)

    class Slow(Classification):
        def clean(self, rows, train, counts):  # type: ignore[no-untyped-def]
            for number, row in enumerate(rows):
                if not number and change == "replaced":
                    Path(f"{name}.new").write_text(Path(name).read_text())
                    Path(f"{name}.new").replace(name)
                elif not number:
                    lines = Path(name).read_text().splitlines(keepends=True)
                    Path(name).write_text("".join(lines[:1] if change == "cut short" else lines * 2))
                yield row

    with pytest.raises(DataError, match=r"a\.jsonl has changed while it was read: .* start again"):
        CachedCorpus(Slow(), Files(test=name), 13).split("test")
    assert not list((Path(os.environ["GPTASK_CACHE"]) / "examples").glob("*"))


@pytest.mark.parametrize("name", ["²", "٣", "１", "-1", "+1", " 1", "1_0", "", "9" * 5000])
def test_only_a_short_number_in_ascii_counts_columns(write_file: Callable, name: str) -> None:
    assert not is_index(name)
    assert wanted_positions({"text": name}) == []
    for file, content in (("a.csv", "text,label\na,b\n"), ("a.jsonl", '{"text": "a"}\n'), ("a.conll", "a b\n")):
        with pytest.raises(UserError, match="no column"):
            CachedCorpus(Classification(), Files(test=write_file(file, content), columns={"label": name}), 1).split(
                "test"
            )


def test_a_name_is_resolved_with_its_part(write_file: Callable) -> None:
    name = write_file("a.json", "{}")
    assert Source.parse(f"{name}#train") == Source(Path(name), "train")


def test_a_wide_table_of_one_name_takes_no_time() -> None:
    names = unique_names(["0"] * 30_000 + ["0.7"], set(), "a.csv")
    assert names[:3] == ["0", "0.1", "0.2"]
    assert names[-1] == "0.7"
    assert len({*names}) == len(names)
