"""`gptask predict` goes on after a stop: the same bytes, no row twice, none lost."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time

import pyarrow.parquet as pq
import pytest
from gptask import DataError, Prediction, UserError
from gptask.config.schemas import BadRowPolicy, Files, Lora, Predict
from gptask.data.columns import Columns
from gptask.data.rows import Source
from gptask.runs import parquet_chunks, part_file, predict_file
from gptask.runs.predict_file import predict, predict_rows
from gptask.runs.predictor import Predictor, chunks
from gptask_tasks.sentiment import Sentiment

SUFFIXES = (".jsonl", ".csv", ".parquet")
TASK = Sentiment(labels=["bad", "good"])


class Counting:
    """Predicts in windows of 4 rows, and is stopped before the row ``until``; ``rows`` are those that it predicts."""

    window = 4

    def __init__(self, until=None, error=KeyboardInterrupt):
        self.until, self.error, self.rows = until, error, []

    def predict_each(self, inputs, live):
        for entries in chunks(inputs, live, self.window):
            for place, entry in enumerate(entries):
                if entry.row.number == self.until:
                    raise self.error
                self.rows.append(entry.row.number)
                if isinstance(entry.example, DataError):
                    yield entry, entry.example
                elif entry.example is None:
                    yield entry, Prediction(None)
                else:  # its place and the size of its window have a part in it, as rounding has
                    score = (place + len(entries) / 10 + len(entry.example["text"])) / 100
                    yield entry, Prediction("good", score, {"good": score, "bad": 1 - score})


@pytest.fixture(autouse=True)
def _commit_every_window(monkeypatch):
    monkeypatch.setattr(part_file, "COMMIT_SECONDS", 0.0)


@pytest.fixture
def call(tmp_path):
    """Predict in.jsonl with the counting predictor, which is returned."""

    def run(output, predictor=None, identity=None, **options):
        config = Predict(task=TASK, run="r", input=str(tmp_path / "in.jsonl"), output=str(tmp_path / output),
                         **({"data": Files()} | options))  # fmt: skip
        columns = Columns(TASK, config.data, TASK.inputs())
        predictor = predictor or Counting()
        source = Source.parse(config.input)
        predict_rows(config, source, TASK, columns, predictor, identity or {"run": "r"})
        return predictor

    return run


def write_rows(path, count, bad=(), start=1):
    """Rows of several types and late columns, the first five of them blank; ``bad`` ones lack their text."""
    with path.open("w" if start == 1 else "a") as stream:
        for number in range(start, start + count):
            row = {"text": "x" * (number % 7 + 1), "n": number if number < 9 else f"n{number}", "cells": [number]}
            row |= {"late": number / 2} if number > 11 else {}
            row = {} if number < 6 else row
            stream.write(json.dumps({"txet": "?"} if number in bad else row) + "\n")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_output_is_that_of_a_start_that_was_never_stopped(suffix, call, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(parquet_chunks, "ROW_GROUP", 10)
    write_rows(tmp_path / "in.jsonl", 30)
    with caplog.at_level("INFO", "gptask"):
        call(f"whole{suffix}", on_error=BadRowPolicy.skip)
        end = caplog.messages[-1]
        rows = []
        for until in (3, 6, 15, 16, 17, 29):
            stop = Counting(until)
            with pytest.raises(KeyboardInterrupt):
                call(f"out{suffix}", stop, on_error=BadRowPolicy.skip)
            assert not (tmp_path / f"out{suffix}").exists()
            rows.append(stop.rows)
        last = call(f"out{suffix}", on_error=BadRowPolicy.skip)
    # rows before the first prediction wait for the labels of a table, so they are computed again
    assert [part[0] for part in rows] == ([1, 1, 5, 13, 13, 17] if suffix == ".jsonl" else [1, 1, 1, 13, 13, 17])
    assert last.rows == [29, 30]
    assert (tmp_path / f"out{suffix}").read_bytes() == (tmp_path / f"whole{suffix}").read_bytes()
    assert caplog.messages[-1] == end.replace("whole", "out")
    assert f"28 rows are taken over from {tmp_path / f'out{suffix}.part'}" in caplog.text
    assert "the first 16 rows are kept in" in caplog.text
    assert {path.name for path in tmp_path.iterdir()} == {"in.jsonl", f"out{suffix}", f"whole{suffix}"}
    if suffix == ".parquet":
        file = pq.ParquetFile(tmp_path / f"out{suffix}")
        assert [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)] == [10, 10, 10]


def test_a_bad_row_keeps_the_rows_before_it_and_mended_it_is_predicted(call, tmp_path, caplog):
    write_rows(tmp_path / "in.jsonl", 20, bad=[14])
    with pytest.raises(DataError, match=r"in\.jsonl:14: no column 'text'"), caplog.at_level("INFO", "gptask"):
        call("out.jsonl")
    assert "the first 12 rows are kept in" in caplog.text
    write_rows(tmp_path / "in.jsonl", 20)
    assert call("out.jsonl").rows == [*range(13, 21)]
    call("whole.jsonl")
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_an_input_that_has_grown_is_continued(call, tmp_path):
    write_rows(tmp_path / "in.jsonl", 12)
    with pytest.raises(KeyboardInterrupt):
        call("out.csv", Counting(10))
    write_rows(tmp_path / "in.jsonl", 5, start=13)
    assert call("out.csv").rows == [*range(9, 18)]
    call("whole.csv")
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": Files(max_tokens=64)}, "data.max_tokens is 64, it was 512"),
        ({"on_error": BadRowPolicy.skip}, 'on_error is "skip", it was "stop"'),
        ({"identity": {"run": "s"}}, 'run is "s", it was "r"'),
        ({}, "the first 8 rows of the input are not those of"),
    ],
)
def test_another_run_option_or_input_begins_anew(change, message, call, tmp_path, caplog):
    write_rows(tmp_path / "in.jsonl", 12)
    with pytest.raises(KeyboardInterrupt):
        call("out.csv", Counting(10))
    if not change:
        text = (tmp_path / "in.jsonl").read_text()
        (tmp_path / "in.jsonl").write_text(text.replace('"cells": [7]', '"cells": [0]'))  # no field of the task
    assert call("out.csv", **change).rows == [*range(1, 13)]
    assert message in caplog.text
    call("whole.csv", **change)
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_a_row_that_can_not_be_read_any_more_leaves_the_part_as_it_is(call, tmp_path):
    write_rows(tmp_path / "in.jsonl", 12)
    with pytest.raises(KeyboardInterrupt):
        call("out.csv", Counting(10))
    part = (tmp_path / "out.csv.part").read_bytes()
    (tmp_path / "in.jsonl").write_bytes(b"\x00" * 100)
    with pytest.raises(UserError, match="not a text file"):
        call("out.csv")
    assert (tmp_path / "out.csv.part").read_bytes() == part


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_full_disk_is_told_and_the_rows_stay(suffix, call, tmp_path, monkeypatch, caplog):
    write_rows(tmp_path / "in.jsonl", 20)
    call(f"whole{suffix}")
    write = os.write

    def full(stream, data):
        if os.lseek(stream, 0, os.SEEK_CUR) > limit:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(stream, data)

    monkeypatch.setattr(os, "write", full)
    limit = 0
    with pytest.raises(UserError, match="can't be written: No space left"), caplog.at_level("INFO", "gptask"):
        call(f"out{suffix}")
    assert "rows are kept in" in caplog.text
    monkeypatch.undo()
    call(f"out{suffix}")
    assert (tmp_path / f"out{suffix}").read_bytes() == (tmp_path / f"whole{suffix}").read_bytes()


def test_a_stop_while_chunks_are_joined_goes_on_there(call, tmp_path, monkeypatch):
    write_rows(tmp_path / "in.jsonl", 20)
    call("whole.parquet")

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(predict_file, "join_chunks", stop)
        with pytest.raises(KeyboardInterrupt):
            call("out.parquet")
    assert {path.name for path in tmp_path.glob("out*")} == {"out.parquet.part", "out.parquet.part.json"}
    assert call("out.parquet").rows == []
    assert (tmp_path / "out.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def test_devices_pipes_and_links_are_written_as_ever(call, tmp_path):
    write_rows(tmp_path / "in.jsonl", 8)
    call("/dev/null")
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    call("pipe")
    assert len(os.read(reader, 100_000).splitlines()) == 8
    os.close(reader)
    (tmp_path / "there").mkdir()
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "there" / "out.jsonl")
    call("link.jsonl")
    assert (tmp_path / "link.jsonl").is_symlink()
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["out.jsonl"]
    with pytest.raises(UserError, match="can't be written: Is a directory"):
        call("there")


def test_batches_by_length_are_the_same_after_a_stop(random_run, tmp_path, monkeypatch):
    run = random_run(Sentiment(labels=["negative", "positive"]), "llama", Lora(rank=2))
    (tmp_path / "in.txt").write_text("".join(f"{'fox ' * (number * 7 % 11)}{number}\n" for number in range(70)))
    monkeypatch.setattr(Predictor, "window", 16)

    def start(output, windows=None):
        count, predict_items = iter(range(100)), Predictor._predict_items

        def until(predictor, items):
            if next(count) == windows:
                raise KeyboardInterrupt
            return predict_items(predictor, items)

        with monkeypatch.context() as patch:
            patch.setattr(Predictor, "_predict_items", until)
            predict(Predict(task=run.task, run=str(run.folder), input=str(tmp_path / "in.txt"),
                            output=str(tmp_path / output), data=Files()))  # fmt: skip
        return next(count)

    assert start("whole.jsonl") == 5
    for windows in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            start("out.jsonl", windows)
    assert start("out.jsonl") == 2
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


# --- the long tier ------------------------------------------------------------------------------------------------

COMMIT_OFTEN = """
import sys
from gptask.runs import part_file
from gptask.cli import main
part_file.COMMIT_SECONDS = 0.0
main(sys.argv[1:])
"""
MILLION = """
import resource, sys
from pathlib import Path
from gptask import Prediction
from gptask.config.schemas import Files, Predict
from gptask.data.columns import Columns
from gptask.data.rows import Source
from gptask.runs.predict_file import predict_rows
from gptask.runs.predictor import chunks
from gptask_tasks.sentiment import Sentiment

class Fake:
    window = 256
    def predict_each(self, inputs, live):
        for chunk in chunks(inputs, live, self.window):
            for entry in chunk:
                yield entry, Prediction("good", 0.5, {"good": 0.5, "bad": 0.5})

task, (source, output) = Sentiment(labels=["bad", "good"]), sys.argv[1:]
config = Predict(task=task, run="r", input=source, output=output, data=Files())
columns = Columns(task, config.data, task.inputs())
predict_rows(config, Source.parse(source), task, columns, Fake(), {})
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.long
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_memory_does_not_grow_with_the_rows(suffix, tmp_path):
    peaks = []
    for count in (50_000, 1_000_000):
        source, output = tmp_path / f"{count}.csv", tmp_path / f"out{suffix}"
        with source.open("w") as stream:
            stream.write("text,n\n")
            stream.writelines(f"good film {number},{number}\n" for number in range(count))
        command = [sys.executable, "-c", MILLION, str(source), str(output)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
        peaks.append(int(done.stdout) / 1024)
    # a parquet file that is joined is mapped, and Arrow's pool keeps some pages
    assert peaks[1] < peaks[0] + 100, peaks


@pytest.mark.long
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_kills_at_any_moment_cost_no_row(suffix, random_run, tmp_path):
    run = random_run(Sentiment(labels=["negative", "positive"]), "llama", Lora(rank=2))
    rows = (
        {"text": f"the fox {'runs ' * (n * 7 % 13)}{n}", "n": n, "cell": [n] if n % 2 else "x"} for n in range(4000)
    )
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    draw, part, journal = random.Random(7), tmp_path / f"out{suffix}.part", tmp_path / f"out{suffix}.part.json"
    stdout = tmp_path / "stdout"

    def start(output):
        command = [sys.executable, "-c", COMMIT_OFTEN, "predict", f"run={run.folder}", "input=in.jsonl"]
        stream = stdout.open("w")
        return subprocess.Popen([*command, f"output={output}"], cwd=tmp_path, stdout=stream, stderr=stream)

    assert start(f"whole{suffix}").wait(timeout=300) == 0, stdout.read_text()
    kills, taken_over = 0, []
    while True:
        before = journal.stat().st_mtime_ns if journal.exists() else 0
        process = start(f"out{suffix}")
        while process.poll() is None:
            now = journal.stat().st_mtime_ns if journal.exists() else 0
            time.sleep(0.002)
            if kills < 5 and now > before:  # some windows further, at any moment within the next
                time.sleep(draw.uniform(0, 0.1))
                process.send_signal(signal.SIGKILL)
                kills += process.wait(timeout=60) == -signal.SIGKILL
        said = stdout.read_text()
        taken_over += [int(line.split()[0].replace(",", "")) for line in said.splitlines() if "taken over" in line]
        assert process.returncode in (0, -signal.SIGKILL), said
        if process.returncode == 0:
            break
        assert part.exists()
    assert kills >= 3
    assert taken_over == sorted(taken_over)
    assert len(taken_over) == kills
    assert (tmp_path / f"out{suffix}").read_bytes() == (tmp_path / f"whole{suffix}").read_bytes()
    assert not part.exists()
    assert not journal.exists()
