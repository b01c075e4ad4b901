"""The scores of a teacher for the items that a student learns: computed once, kept in the cache, read by item.

Shapes: N rows of an item's scores (1 of a class, words or positions else), K classes (2 of a span), W words.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from gptask.config.schemas import Data
from gptask.data.cache import cache_folder, digest
from gptask.data.datamodule import DataModule, collate
from gptask.data.store import CHUNK_ROWS, ArrowStore
from gptask.errors import UserError
from gptask.model.heads import Head
from gptask.runs.predictor import Predictor
from gptask.runs.run import Run

log = logging.getLogger("gptask")
PROGRESS_SECONDS = 30.0  # between two lines on how far the teacher is
MAX_PARTS = 256  # files in the cache that hold the scores of one training, all of which are open


class TeacherScores:
    """The scores of a teacher for its own items, as a student's items need them.

    ``parts`` hold ``size`` items each, in the order of the data. A student's item takes the rows of the teacher's item
    of the same number where both read the same ids. Else ``slices`` (I, 4) tell for each of the student's items which
    items of the teacher belong to its example, from one number to another, and which of their rows are its own.
    """

    def __init__(self, parts: Sequence[ArrowStore], size: int, slices: np.ndarray | None = None) -> None:
        self.parts, self.size, self.slices = parts, size, slices
        self.width = int(parts[0].meta["width"])  # K

    def rows(self, item: int) -> np.ndarray:
        """Log-probabilities (N, K) for one of the student's items."""
        if self.slices is None:
            return self.rows_of_teacher(item)
        first, stop, start, end = self.slices[item].tolist()
        return np.concatenate([self.rows_of_teacher(number) for number in range(first, stop)])[start:end]

    def rows_of_teacher(self, item: int) -> np.ndarray:
        """Log-probabilities (N, K) for one of the teacher's items."""
        part, number = divmod(item, self.size)
        chunk, row = divmod(number, CHUNK_ROWS)
        numbers: np.ndarray = self.parts[part].chunks[chunk].column(0)[row].values.to_numpy()
        return numbers.reshape(-1, self.width)


def compute_scores(load_teacher: Callable[[], Run], data: DataModule, options: Data, identity: str) -> TeacherScores:
    """Return a teacher's scores for the items of ``data``, its own encoding of what the student learns.

    They are read from the cache where they are there, and computed in the teacher's own number format where not; only
    then is it loaded. ``identity`` stands for all of the teacher that decides its scores. ``options`` bound a batch.
    Raises `UserError` for a teacher without scores.
    """
    items = data.items("train")
    size = CHUNK_ROWS * -(-len(items) // (CHUNK_ROWS * MAX_PARTS))  # of a part: what a kill may cost
    names = [digest(repr([items.path.stem, first, size, identity])) for first in range(0, len(items), size)]
    paths = [cache_folder() / "scores" / f"{name}.arrow" for name in names]
    parts = [ArrowStore.cached(path) for path in paths]
    missing = [number for number, part in enumerate(parts) if part is None]
    if missing:
        teacher, start = load_teacher(), time.perf_counter()
        told = start
        predictor = Predictor(teacher.task, teacher.backbone, teacher.head, options)
        predictor.move_to_device()
        log.info("the teacher %s scores %s items", teacher.folder, f"{len(items):,}")
        for number in missing:
            first = number * size
            part_items = [items[item] for item in range(first, min(first + size, len(items)))]
            meta: dict[str, Any] = {}
            parts[number] = ArrowStore.write(paths[number], _score(predictor, part_items, meta), meta, _schema())
            if time.perf_counter() - told > PROGRESS_SECONDS:
                told = time.perf_counter()
                log.info("the teacher: %s of %s", f"{first + len(part_items):,}", f"{len(items):,}")
        log.info("the teacher's scores took %.0f s; they are kept in %s", time.perf_counter() - start, paths[0].parent)
    return TeacherScores([part for part in parts if part is not None], size)


def align(scores: TeacherScores, teacher: DataModule, student: DataModule, head: Head) -> TeacherScores:
    """Return the scores by the items of a ``student``, which reads the same examples as the ``teacher`` does.

    Where its tokenizer makes other ids of them, classes go by example and tags by word. Raises `UserError` for spans,
    whose positions are tokens, and where the head does not tell which words a window stands for.
    """
    teacher_items, student_items = teacher.items("train"), student.items("train")
    if all(teacher_items.table.column(name).equals(student_items.table.column(name)) for name in ("ids", "example")):
        return scores
    if head.score_axis == 1:
        raise UserError(
            "a student learns the spans of its teacher token by token, and these two read other tokens: take a student "
            "with the teacher's tokenizer (such as keep=<layers>), with its data.max_tokens and its task's options"
        )
    row_counts = np.concatenate([part.lengths("scores") for part in scores.parts]) // scores.width
    starts = np.concatenate([[0], np.cumsum(row_counts)])
    owners, student_owners = teacher_items.column("example"), student_items.column("example")
    slices, rows_before, example = np.zeros((len(student_items), 4), dtype=int), 0, -1
    for number, item in enumerate(student_items):
        rows_before = 0 if item["example"] != example else rows_before
        example = item["example"]
        first, stop = np.searchsorted(owners, [example, example + 1]).tolist()
        rows_of_example = int(starts[stop] - starts[first])
        windows = int(np.diff(np.searchsorted(student_owners, [example, example + 1])).item())
        words = head.scored_words(collate([item]))
        if words is None and (stop - first, windows) != (1, 1):
            raise UserError(
                f"example '{student.examples('train')[example]['id']}' is cut into {stop - first} windows for the "
                f"teacher and {windows} for the student, and {type(head).__name__}.scored_words does not tell which "
                "words each of them stands for: raise data.max_tokens"
            )
        count = rows_of_example if words is None else int(words.sum())
        slices[number] = first, stop, rows_before, rows_before + count
        rows_before += count
        if rows_before > rows_of_example:
            raise UserError(
                f"example '{student.examples('train')[example]['id']}' has {rows_of_example} words for the teacher and "
                f"more for the student: give both the same task's options"
            )
    return TeacherScores(scores.parts, scores.size, slices)


def _schema() -> Any:
    import pyarrow as pa

    return pa.schema([("scores", pa.list_(pa.float32()))])


def _score(predictor: Predictor, items: list[dict[str, Any]], meta: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The scores of items, in their order; ``meta`` gets the ``width`` K of a row."""
    scores: dict[int, np.ndarray] = {}
    with torch.inference_mode():
        for numbers in predictor.batches(items):
            batch_items = [items[number] | {"label": None} for number in numbers]  # some may have none
            scores.update(zip(numbers, _batch_scores(predictor, batch_items), strict=True))
    meta["width"] = scores[0].shape[1]
    for number in range(len(items)):
        yield {"scores": scores[number].ravel()}


def _batch_scores(predictor: Predictor, items: Sequence[dict[str, Any]]) -> list[np.ndarray]:
    """The scores (N, K) of each of some items, whose states are computed together or, without memory, in parts."""
    backbone, head = predictor.backbone, predictor.head

    def score(rows: slice) -> list[np.ndarray]:
        batch = collate(items[rows]).to(backbone.device)
        hidden = backbone.hidden(batch.input_ids, batch.lengths, head.needed_positions(batch))
        return [
            # each item alone: so none has padding, which may hold anything
            _item_scores(head, hidden[row : row + 1, :length], batch.part(slice(row, row + 1)))
            for row, length in enumerate(batch.lengths.tolist())
        ]

    parts = predictor.divider.compute([item["length"] for item in items], score)
    return [scores for part in parts for scores in part]


def _item_scores(head: Head, hidden: torch.Tensor, batch: Any) -> np.ndarray:
    """The scores (N, K) of one item, of the words that it stands for.

    Raises `UserError` where the head has none, and where they are no log-probabilities.
    """
    scores = head.scores(hidden, batch)
    if scores is None:
        raise UserError(f"{_of(head)} has no scores (Head.scores), and a student learns from these: train it instead")
    probabilities = scores.double().exp()
    sums = probabilities.clamp(min=1) if head.score_axis is None else probabilities.sum(head.score_axis)
    if not bool(((sums - 1).abs() < 1e-2).all()):
        raise UserError(
            f"{_of(head)}: Head.scores() returns no log-probabilities whose sum is 1 along Head.score_axis="
            f"{head.score_axis}. The plugin's author must fix this: `gptask tasks --check` shows what is wrong"
        )
    rows, words = scores[0], head.scored_words(batch)
    if words is not None:
        rows = rows[words[0].to(rows.device)]
    array: np.ndarray = rows.reshape(-1, scores.shape[-1]).float().cpu().numpy()
    return array


def _of(head: Head) -> str:
    return f"the head {type(head).__name__}"
