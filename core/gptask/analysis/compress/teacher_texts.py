"""Texts that a teacher writes for the inputs that a student learns (Kim & Rush 2016, arXiv 1606.07947, section 3.2).

They are written as `gptask predict` writes its lines: what a killed run has written stays, and the next one goes on.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from gptask.analysis.compress.teacher_scores import PROGRESS_SECONDS
from gptask.config.schemas import Data
from gptask.data.cache import cache_folder, digest, remove, usable
from gptask.data.examples import Examples, stored_examples
from gptask.data.rows import Row
from gptask.data.words import is_blank
from gptask.errors import DataError, UserError, damaged, listing
from gptask.plugins.task import Task
from gptask.plugins.types import Example, Field, Kind
from gptask.runs.atomic_write import json_text
from gptask.runs.part_file import PartFile
from gptask.runs.predictor import InputRow, Predictor
from gptask.runs.run import Run

log = logging.getLogger("gptask")


def texts_of_teacher(
    load_teacher: Callable[[], Run], examples: Examples, options: Data, identity: Mapping[str, Any]
) -> Path:
    """Return the file in the cache that has a line for each example: its inputs, and what the teacher writes for them.

    The teacher is loaded only where the file is not there, or incomplete. ``identity`` is all that decides the texts
    beside the examples; ``options`` bound a prompt and a batch.
    """
    identity = dict(identity) | {"examples": examples.key}
    path = cache_folder() / "texts" / f"{digest(repr(sorted(identity.items())))}.jsonl"
    if usable(path):
        with path.open("rb") as lines:
            if sum(1 for _ in lines) == len(examples):
                return path
        remove(path)  # it was cut off, by a copy of the cache
    path.parent.mkdir(exist_ok=True)
    teacher = load_teacher()
    predictor, target = Predictor(teacher.task, teacher.backbone, teacher.head, options), target_field(teacher.task)
    with PartFile(path, identity) as part:
        written = int(part.state.get("rows", 0))
        log.info("the teacher %s writes %s texts into %s%s", teacher.folder, f"{len(examples):,}", part.path,
                 f"; {written:,} are there" if written else "")  # fmt: skip
        inputs, told = _inputs(teacher.task, examples, written), time.monotonic()
        for (_, example, _), prediction in predictor.predict_each(inputs, live=False):
            assert isinstance(example, dict)  # each is an example, none is blank or in error
            text = None if isinstance(prediction, DataError) else str(prediction.value)
            part.write(json_text(example | {target.name: text}).encode() + b"\n")
            written += 1
            if written % predictor.window == 0:
                part.end_window({"rows": written})
                if time.monotonic() - told > PROGRESS_SECONDS:
                    told = time.monotonic()
                    log.info("the teacher: %s of %s", f"{written:,}", f"{len(examples):,}")
        part.flush()
        part.publish()
    return path


def _inputs(task: Task, examples: Examples, first: int) -> Iterator[InputRow]:
    """The inputs of the examples from a number on, without their targets."""
    names = [field.name for field in task.inputs()]
    for number, example in enumerate(examples.after(first), first + 1):
        yield InputRow(Row(number, ""), {name: example[name] for name in ("id", *names)}, f"example '{example['id']}'")


def target_field(task: Task) -> Field:
    """The field that a task writes; raises `UserError` for a task with other targets beside a text."""
    targets = task.targets()
    if len(targets) != 1 or targets[0].kind not in (Kind.TEXT, Kind.TEXTS):
        raise UserError(
            f"{type(task).__name__} has the targets {listing(field.name for field in targets)}: a student learns what "
            "its teacher writes where the one target is a text"
        )
    return targets[0]


def written_examples(task: Task, examples: Examples, file: Path) -> Examples:
    """The examples with the texts of `texts_of_teacher` as their targets.

    One whose text is empty, or that the task refuses with it, is left out and counted. Raises `DataError` where none is
    left.
    """
    with file.open("rb") as stream:
        content = [examples.key, hashlib.file_digest(stream, "sha256").hexdigest()]
    left_out: list[str] = []

    def records() -> Iterator[Example]:
        field = target_field(task)
        with file.open(encoding="utf-8") as lines, damaged(file):
            for example, line in zip(examples, lines, strict=True):
                text = json.loads(line)[field.name]
                try:
                    if text is None or (is_blank(text) and not field.blank):
                        raise DataError("the teacher writes nothing")
                    written = example | {field.name: [text] if field.kind is Kind.TEXTS else text}
                    task.check(written)
                except DataError as error:
                    left_out.append(f"example '{example['id']}': {error}")
                    continue
                yield written

    written = stored_examples(task, records(), content, {"left_out": left_out}, examples.name)
    if left_out := written.store.meta["left_out"]:
        log.warning("%d of %d examples are left out, with what the teacher writes for them: %s",
                    len(left_out), len(examples), listing(left_out, 3))  # fmt: skip
    if not len(written):
        raise DataError(f"no example is left to learn: the teacher writes nothing that {type(task).__name__} learns")
    return written
