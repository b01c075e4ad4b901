"""Inputs without labels, of which a student learns what its teacher makes of them."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict

from gptask.config.schemas import BadRowPolicy, Files
from gptask.data.column_lookup import trained_columns
from gptask.data.columns import Columns
from gptask.data.corpus import SPLITS, CachedCorpus
from gptask.data.documents import options_for_task
from gptask.data.examples import Examples, signed_digest, stored_examples
from gptask.data.reading import read
from gptask.data.rows import Source
from gptask.errors import DataError
from gptask.plugins.types import Example
from gptask.runs.predictor import read_inputs

log = logging.getLogger("gptask")


def with_unlabelled(corpus: CachedCorpus, file: str) -> Examples:
    """The training examples of a corpus, and behind them those of a file, in any format that `gptask predict` reads.

    The latter have no targets. Rows that are blank, or bad with ``data.on_bad=skip``, and inputs that are in validation
    or test, are left out and counted. Raises `UserError` where the file can't be read, and `DataError` for a bad row
    and where nothing is left.
    """
    source = Source.parse(file)
    train, *held_out = (corpus.split(split) for split in SPLITS)
    with source.path.open("rb") as stream:
        content = [str(source), hashlib.file_digest(stream, "sha256").hexdigest(), corpus.options.on_bad]
    counts = Counter[str]()

    def records() -> Iterator[Example]:
        yield from train
        digests = {int(value) for split in held_out for value in split.digests}
        for example in _examples(corpus, source, counts):
            if example["digest"] in digests:
                counts["in validation or test, from which nothing may be learned"] += 1
            else:
                yield example

    content += [trained_columns(asdict(corpus.options)), *(split.key for split in (train, *held_out))]
    examples = stored_examples(corpus.task, records(), content, {"counts": counts}, train.name)
    if left_out := [f"{count:,} {reason}" for reason, count in examples.store.meta["counts"].items()]:
        log.warning("input=%s: rows that are left out: %s", file, ", ".join(left_out))
    if len(examples) == len(train):
        raise DataError(f"input={file} holds no example to learn from")
    log.info("input=%s: %s examples without labels", file, f"{len(examples) - len(train):,}")
    return examples


def _examples(corpus: CachedCorpus, source: Source, counts: Counter[str]) -> Iterator[Example]:
    """The examples of a file without targets, cleaned as inputs are; what is left out is counted."""
    task, data = corpus.task, corpus.options
    options = options_for_task(Files(label_separator=data.label_separator), task)
    columns = Columns(task, options, task.inputs(), trained_columns=trained_columns(asdict(data)))
    names, no_targets = [f.name for f in task.inputs()], {f.name: None for f in task.targets()}
    for _, example, place in read_inputs(read(source, options, columns.header_names), columns, str(source.path)):
        if isinstance(example, DataError):
            if data.on_bad is BadRowPolicy.stop:
                raise DataError(f"{example} (data.on_bad=skip leaves such rows out)") from example
            counts["bad"] += 1
        elif example is None:
            counts["blank"] += 1
        else:
            cleaned = [*task.clean([{"id": place} | no_targets | example], False, Counter())]
            if not cleaned:
                counts["of which the task's cleaning leaves nothing"] += 1
            for one in cleaned:
                input_digest = signed_digest([one[name] for name in names])
                yield one | {"digest": input_digest, "group": input_digest}
