"""Files in any encoding: found, told, or refused; what can't be decoded is a bad row with its byte."""

import json
from collections.abc import Callable

import pytest
from gptask.config.schemas import Files
from gptask.data.languages import guess_encoding
from gptask.data.reading import read, read_stream
from gptask.data.rows import ReadingNotes, Source
from gptask.errors import DataError, UserError

ROWS = [
    {"text": "Größe und Café, naïve – schön", "label": "gut"},
    {"text": "早餐非常简单和差，距离客房很远", "label": "schlecht"},
]
GERMAN = "Das Essen war köstlich, die Bedienung ließ zu wünschen übrig.\nFür den Preis würde ich wiederkommen.\n"
FRENCH = "Le café était très bon, mais le garçon n’était pas là.\nL’hôtel a été rénové à côté.\n"
SPANISH = "El niño comió la piña mañana.\n¿Qué pasó? ¡Está muy rico!\n"
POLISH = "Bardzo dobre jedzenie, miła obsługa, ale długo czekaliśmy.\nŚwietny wybór, zażółć gęślą jaźń.\n"
CZECH = "Jídlo bylo velmi dobré, ale obsluha příliš pomalá.\nUrčitě přijdeme znovu, kůň.\n"
RUSSIAN = "Очень хороший ресторан, вкусная еда и приветливые официанты.\nОбязательно вернёмся ещё раз!\n"
GREEK = "Το φαγητό ήταν πολύ καλό αλλά η εξυπηρέτηση αργή.\n"
HEBREW = "האוכל היה טעים מאוד אבל השירות איטי.\n"
ARABIC = "كان الطعام لذيذا جدا لكن الخدمة بطيئة.\n"
TURKISH = "Yemekler çok güzeldi ama servis biraz yavaştı, şiddetle ığdır.\n"
SIMPLIFIED = "早餐非常简单和差，距离客房很远，需要到后面的附楼，非常不方便。\n"
TRADITIONAL = "早餐非常簡單，距離客房很遠，需要到後面的附樓，非常不方便。\n"
JAPANESE = "朝食はとてもおいしかったです。部屋から駅まで遠いので不便でした。\n"
KOREAN = "음식이 아주 맛있었지만 서비스가 느렸습니다. 다음에 또 오고 싶습니다.\n"


def read_all(name: str, notes: ReadingNotes | None = None, **options: object) -> list:
    return list(read(Source.parse(name), Files(**options), ["text", "label"], notes or ReadingNotes()))


def values(name: str, **options: object) -> list:
    return [row.value for row in read_all(name, **options)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("kind", ["csv", "jsonl", "json"])
def test_unicode_is_found_by_its_first_bytes(write_file: Callable, encoding: str, kind: str) -> None:
    rows = [ROWS[0]] * 3 if encoding in ("utf-16-le", "utf-16-be") else ROWS
    text = {
        "csv": "text,label\n" + "".join(f'"{row["text"]}",{row["label"]}\n' for row in rows),
        "jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows),
        "json": json.dumps(rows, ensure_ascii=False, indent=1),
    }[kind]
    notes = ReadingNotes()
    name = write_file(f"a.{kind}", text, encoding)
    assert [row.value for row in read_all(name, notes)] == rows
    assert notes.options["encoding"].startswith(encoding.removesuffix("-sig"))
    assert not notes.warnings


def test_an_encoding_of_two_bytes_may_be_told(write_file: Callable) -> None:
    chinese = "早餐简单\n距离很远\n"
    for told, encoding in (("utf-16", "utf-16"), ("utf-16", "utf-16-le"), ("UTF-16BE", "utf-16-be")):
        assert values(write_file("a.txt", chinese, encoding), encoding=told) == ["早餐简单", "距离很远"]


@pytest.mark.parametrize(
    ("text", "encoding", "expected"),
    [
        (GERMAN, "latin-1", "cp1252"),
        (FRENCH, "cp1252", "cp1252"),
        (SPANISH, "latin-1", "cp1252"),
        ("I didn’t like it — the room “with a view” cost £20.\n", "cp1252", "cp1252"),
        ("The café was nice.\n", "latin-1", "cp1252"),
        (FRENCH, "cp850", "cp850"),
        (GERMAN, "mac_roman", "mac_roman"),
        (POLISH, "cp1250", "cp1250"),
        (POLISH, "iso8859_2", "iso8859_2"),
        (CZECH, "cp1250", "cp1250"),
        (TURKISH, "cp1254", "cp1254"),
        (RUSSIAN, "cp1251", "cp1251"),
        (RUSSIAN, "koi8_r", "koi8_r"),
        (GREEK, "cp1253", "cp1253"),
        (HEBREW, "cp1255", "cp1255"),
        (ARABIC, "cp1256", "cp1256"),
        (SIMPLIFIED, "gb18030", "gb18030"),
        (TRADITIONAL, "big5", "big5"),
        (JAPANESE, "shift_jis", "cp932"),
        (JAPANESE, "euc_jp", "euc_jp"),
        (KOREAN, "cp949", "cp949"),
    ],
)
def test_another_encoding_is_guessed_by_letters(write_file: Callable, text: str, encoding: str, expected: str) -> None:
    text = text.encode(encoding, "ignore").decode(encoding)
    notes = ReadingNotes()
    rows = read_all(write_file("a.txt", text, encoding), notes)
    assert [row.value for row in rows] == text.splitlines()
    assert notes.options == {"encoding": expected}
    (warning,) = notes.warnings
    assert f"it is not UTF-8 and is read as {expected}, by its letters, such as" in warning
    assert "data.encoding names another" in warning


def test_a_guess_that_is_not_clear_is_not_made(write_file: Callable) -> None:
    assert guess_encoding(["El niño comió".encode("cp1252")]) == (
        None,
        [("cp1252", "El niño comió"), ("cp1250", "El nińo comió")],
    )
    notes = ReadingNotes()
    (row,) = read_all(write_file("a.txt", "El niño comió\n", "cp1252"), notes)
    assert "byte 0xf1 at column 6 is not valid utf-8; convert the file or name its encoding" in str(row.value)
    assert (
        "line 1 may read 'El niño comió' (cp1252) or 'El nińo comió' (cp1250): set data.encoding" in notes.warnings[0]
    )
    assert guess_encoding([b"\xb5 \xdf\xb5"])[0] is None


def test_a_file_with_a_few_bad_bytes_stays_utf8(write_file: Callable) -> None:
    raw = "schön\n".encode() + b"caf\xe9\n" + "Größe\n".encode()
    first, bad, last = read_all(write_file("a.txt", raw))
    assert (first.value, last.value, bad.number) == ("schön", "Größe", 2)
    assert str(bad.value).startswith("byte 0xe9 at column 4 is not valid utf-8")


@pytest.mark.parametrize(
    ("name", "raw", "bad_number", "n_good", "message"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a": "\xb5"}\n{"a": 3}\n', 2, 2, "byte 0xb5 at column 8"),
        ("a.jsonl.gz", b'{"a": 1}\n{"a": "\xb5"}\n{"a": 3}\n', 2, 2, "byte 0xb5 at column 8"),
        ("a.jsonl", b'{"a": 1}\n\xb5{"a": 2}\n{"a": 3}\n', 2, 2, "byte 0xb5 at column 1"),
        ("a.txt", b"one\n\xb5\nthree\n", 2, 2, "byte 0xb5 at column 1"),
        ("a.tsv", b"text\tlabel\nx\t1\n\xb5\t2\ny\t3\n", 3, 2, "byte 0xb5 at column 1"),
        ("a.csv", b'text,label\n"one\n\xb5",1\ny,3\n', 2, 1, "line 3: byte 0xb5 at column 1"),
        ("a.conll", b"a O\n\xb5 O\n\nb O\n", 1, 1, "line 2: byte 0xb5 at column 1"),
        ("a.json", b'[{"a": 1},\n {"a": "\xb5"}, {"a": 3}]', 2, 2, "line 2: byte 0xb5 is not valid utf-8"),
    ],
)
def test_what_can_not_be_decoded_is_a_bad_row(
    write_file: Callable, name: str, raw: bytes, bad_number: int, n_good: int, message: str
) -> None:
    rows = read_all(write_file(name, raw))
    (bad,) = (row for row in rows if isinstance(row.value, DataError))
    assert bad.number == bad_number
    assert message in str(bad.value)
    assert len(rows) == n_good + 1


def test_utf16_with_a_broken_character_has_one_bad_row(write_file: Callable) -> None:
    raw = b"\xff\xfe" + "one\n".encode("utf-16-le") + b"\x00\xd8x\x00\n\x00" + "three\n".encode("utf-16-le")
    assert [type(row.value) for row in read_all(write_file("a.txt", raw))] == [str, DataError, str]


def test_encodings_that_can_not_be_are_errors(write_file: Callable) -> None:
    for name, raw in (("a.csv", b"a,b\n"), ("a.json", b"[]")):
        with pytest.raises(UserError, match=r"data.encoding='utf8000' is unknown"):
            values(write_file(name, raw), encoding="utf8000")
    with pytest.raises(UserError, match=r"starts like a file in utf-8, but data.encoding=latin-1; leave it out"):
        values(write_file("a.txt", "é\n", "utf-8-sig"), encoding="latin-1")
    with pytest.raises(DataError, match="is not a text file: it holds zero bytes"):
        values(write_file("a.txt", bytes(range(256)) * 20 + b"\x00\x00\x00" * 100))


def test_standard_input_may_be_utf16() -> None:
    raw = "早餐\nGut\n".encode("utf-16")
    lines = raw.splitlines(keepends=True)  # as a stream gives them: cut behind the byte of a line feed
    assert [row.value for row in read_stream(lines, Files())] == ["早餐", "Gut"]
    rows = list(read_stream([b"ok\n", b"caf\xe9\n"], Files()))
    assert rows[0].value == "ok"
    assert "byte 0xe9 at column 4" in str(rows[1].value)
    assert [row.value for row in read_stream([b"caf\xe9\n"], Files(encoding="latin-1"))] == ["café"]


@pytest.mark.parametrize(
    "encoding", ["undefined", "idna", "punycode", "unicode_escape", "rot13", "utf\0008", "\0", "\ud800", "x" * 5000]
)
def test_an_encoding_that_is_none_of_a_text_file_is_refused(write_file: Callable, encoding: str) -> None:
    name = write_file("a.txt", "a line\n")
    with pytest.raises(UserError, match=r"data\.encoding='.* is unknown") as caught:
        list(read(Source.parse(name), Files(encoding=encoding), ()))
    assert len(str(caught.value)) < 200


def test_every_other_encoding_of_python_reads_lines_or_refuses_them(write_file: Callable) -> None:
    """No codec of the standard library ends in another error, whatever the bytes."""
    from encodings.aliases import aliases

    name = write_file("a.txt", bytes(range(256)) + b"\nabc\n")
    for encoding in sorted({*aliases.values(), "idna", "punycode", "undefined", "raw_unicode_escape", "utf_8_sig"}):
        try:
            rows = [row.value for row in read(Source.parse(name), Files(encoding=encoding), ())]
            assert all(isinstance(value, str | DataError) for value in rows)
        except UserError:
            pass
