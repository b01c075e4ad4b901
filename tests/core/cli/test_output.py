"""What reaches a terminal has no control characters but those that rich writes."""

import ast
import json
import logging
import re
from pathlib import Path

import gptask
import pytest
from gptask.cli import main
from gptask.cli.hydra.job import log_to_console
from gptask.cli.output import print_json, report_error, write_out
from gptask.errors import DataError
from gptask.runs.folder import open_run_folder

CORE = Path(gptask.__file__).parent
HOSTILE = "a\x1b[2J\x9b31m\x07\x08\r\u202eb\n"
WRITERS = {  # where a stream is written to, or a console made
    "cli/output.py",  # makes visible what it writes
    "cli/hydra/completion.py",  # a shell reads it
    "analysis/explain/explain_file.py",  # lines of JSON, made visible
    "runs/predict_file.py",  # one line, made visible
    "serving/server.py",  # one text, made visible
}

MAY_WRITE = re.compile(
    r"\b((print|Console)\(|sys\.(__)?std(out|err)(__)?\.write|traceback\.print_|logging\.(Formatter|basicConfig))"
)


def hostile(text):
    return {character for character in text if ord(character) < 32 or 126 < ord(character) < 160} - {"\n"}


def test_every_text_for_a_terminal_passes_one_boundary():
    writers = set()
    for path in CORE.rglob("*.py"):
        text = path.read_text("utf-8")
        for node in ast.walk(ast.parse(text)) if MAY_WRITE.search(text) else ():
            if isinstance(node, ast.Call) and MAY_WRITE.match(f"{ast.unparse(node.func)}("):
                writers.add(path.relative_to(CORE).as_posix())
    assert writers == WRITERS


def test_error_messages_and_stack_traces_are_visible(capsys, monkeypatch):
    assert report_error(DataError(f"in.csv:1: the cell {HOSTILE}"), f"job {HOSTILE}: ") == 2
    monkeypatch.setenv("GPTASK_DEBUG", "1")
    assert report_error(ValueError(HOSTILE)) == 70
    assert report_error(KeyboardInterrupt(HOSTILE)) == 130
    assert report_error(KeyboardInterrupt()) == 130
    error = capsys.readouterr().err
    assert not hostile(error)
    assert error.endswith("\ngptask: stopped\n")
    assert "ValueError: a\\u001b[2J\\u009b31m\\u0007\\u0008\\u000d\\u202eb\n" in error


def test_standard_output_is_visible_on_a_terminal_and_data_in_a_pipe(capsys, monkeypatch):
    write_out(HOSTILE)
    assert capsys.readouterr().out == HOSTILE
    print_json({"a": HOSTILE})
    printed = capsys.readouterr().out
    assert json.loads(printed) == {"a": HOSTILE}
    assert not hostile(printed)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    write_out(HOSTILE)
    assert not hostile(capsys.readouterr().out)


def test_the_console_and_train_log_are_visible(capsys, tmp_path):
    log_to_console()
    with open_run_folder(str(tmp_path), "task", None) as folder:
        logging.getLogger("gptask").warning("label %s", HOSTILE)
        (folder / "kept").touch()
    texts = [capsys.readouterr().err, (folder / "train.log").read_text("utf-8")]
    assert not any(map(hostile, texts))
    assert all("label a\\u001b[2J" in text for text in texts)


def test_a_file_s_name_and_a_configuration_are_visible_on_a_terminal(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    for arguments in (
        ["report", f"no{HOSTILE}"],
        ["predict", "--cfg", "job", "run=r", 'input="\u202e.txt"', "server=http://x"],
    ):
        with pytest.raises(SystemExit):
            main(arguments)
    printed = capsys.readouterr()
    assert not hostile(printed.err)
    assert "\u202e" not in printed.out + printed.err
