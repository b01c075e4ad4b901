"""Model cards from hostile names and texts: the metadata is read back as it was meant, the text has no other markup."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml
from gptask.config.schemas import Hub, Lora, Pretrained, Sample, Train
from gptask.runs.cards.hub_metadata import front_matter
from gptask.runs.cards.model_card import ModelCard
from gptask.runs.cards.multitask_card import multitask_card
from gptask.runs.markdown import code_span, escaped, fenced, one_line, table
from hypothesis import strategies as st

from tests.fuzz.hostile import numbers
from tests.fuzz.markup import check_markdown
from tests.fuzz.pages import hostile, names
from tests.fuzz.sandbox import Fault, Sandbox
from tests.fuzz.target import Setting, Target

HEADINGS = 6  # of a card


@dataclass(frozen=True)
class CardCase:
    """What the card of a run is written from; ``run`` names the run whose model it describes."""

    run: str
    folder: str
    texts: list[str]
    metrics: dict[str, Any]
    data: str


card_cases = st.builds(
    CardCase,
    st.sampled_from(["sentiment", "adapted", "translation", "cells", "several"]),
    names,
    st.lists(hostile, min_size=9, max_size=9),
    st.dictionaries(hostile, st.one_of(st.none(), numbers.filter(lambda n: abs(n) < 1e300 or n != n)), max_size=3),
    st.sampled_from(["files", "sample", "hub"]),
)


@lru_cache(maxsize=4)
def _loaded(folder: Path) -> Any:
    from gptask.runs.run import load_run

    return load_run(folder)


def run_card(case: CardCase, sandbox: Sandbox, setting: Setting) -> None:
    """Write the card, and read its metadata and its text back."""
    if case.run == "cells":
        sandbox.call(lambda: _check_cells(case.texts))
        return
    if case.run == "several":
        check_markdown(_multitask(case), headings=3, links=True)
        return
    card = _card(case, _loaded(setting.runs[case.run]), sandbox.folder / case.folder)
    result = sandbox.call(card.write, writable=[sandbox.folder])
    if result is not None:
        raise Fault("card", "refused", str(result))
    text = (sandbox.folder / case.folder / "README.md").read_text(encoding="utf-8")
    match = re.match(r"---\n(.*?)\n---\n\n(.*)", text, re.S)
    if match is None:
        raise Fault("card", "no front matter", text[:500])
    _check_front_matter(match[1], card)
    check_markdown(match[2], headings=HEADINGS)


def _check_front_matter(text: str, card: ModelCard) -> None:
    from huggingface_hub import ModelCardData
    from huggingface_hub.repocard_data import eval_results_to_model_index

    meant = front_matter(card)
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise Fault("card", "front matter is no YAML", f"{error}\n{text}") from error
    expected = ModelCardData(**{k: v for k, v in vars(meant).items() if v is not None}).to_dict()
    if repr(values) != repr(expected):
        raise Fault("card", "front matter has other values", f"{values}\n{expected}")
    assert eval_results_to_model_index


def _card(case: CardCase, run: Any, folder: Path) -> ModelCard:
    folder.mkdir(parents=True)
    (folder / "model").symlink_to(run.folder / "model")
    license_, source, revision, name, commit, signature, hash_, command, data_license = map(_clean, case.texts)
    options: Any = {
        "files": Sample(license=data_license),
        "sample": Sample(),
        "hub": Hub(path=source, name=name, revision=revision, license=data_license, train="train"),
    }[case.data]
    files = {f"{source}.csv": hash_, f"{source}[train]": "0" * 20}
    corpus = SimpleNamespace(options=options, sources=lambda split: files, split_source=lambda split: split)
    task = replace(run.task)
    if hasattr(task, "source_lang"):
        task.source_lang = name
    backbone = Pretrained(source=source, license=license_, revision=revision)
    config = Train(task=task, backbone=backbone, data=options, tuning=Lora(target_modules=[name]), outputs=source)
    score = {"interval": None, "direction": "higher", "n": 3, "signature": signature, "range": [0, 1]}
    result = {
        "versions": {"gptask": "0.1.0"}, "split": "test", "seed": 1, "weights_hash": hash_, "git_commit": commit,
        "trainable_parameters": 1, "parameters": 2, "test_data_hash": hash_,
        "metrics": {_clean(name): score | {"value": value} for name, value in case.metrics.items()},
    }  # fmt: skip
    data = SimpleNamespace(corpus=corpus, examples=lambda split: [1, 2, 3])
    plugin = run.plugin
    from shlex import join

    return ModelCard(folder, plugin, run.backbone, run.head, data, config, result, join(["gptask", "train", command]))


def _clean(text: str) -> str:
    return text.encode(errors="replace").decode()


def _multitask(case: CardCase) -> str:
    """The card of several tasks; names of tasks are words, as the command line asks."""
    score = {"value": 1.0, "interval": [0.5, 1.5]}
    tasks = {"a": {"metrics": {case.texts[0]: score}, "n": 3, "task": case.texts[1]}}
    result = {"tasks": tasks, "versions": {}, "trainable_parameters": 1, "parameters": 2}
    config: Any = SimpleNamespace(tasks={"a": SimpleNamespace(weight=1.0)})
    from shlex import join

    return multitask_card(Path(case.folder), config, result, join(["gptask", case.texts[2]]))


def _check_cells(values: list[str]) -> None:
    """The helpers alone: a table of escaped texts and code spans has just these cells, a fence ends where it should."""
    from markdown_it import MarkdownIt

    cells = [[escaped(value), code_span(value)] for value in values]
    text = f"{table(['a', 'b'], cells)}\n\n{fenced('text', values[0])}\n\nend"
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    shown = ["".join(child.content for child in t.children or []) for t in tokens if t.type == "inline"][2:-1]
    # in a table a bar loses the backslash before it, in code too
    wanted = [one_line(value).replace("\\|", "|") for value in values for _ in range(2)]
    shown = [" ".join(cell.split()).replace("\\|", "|") for cell in shown]
    if shown != wanted:
        wrong = next((pair for pair in zip(shown, wanted, strict=False) if pair[0] != pair[1]), shown)
        raise Fault("markdown", "other cells", repr(wrong))
    if sum(token.type == "fence" for token in tokens) != 1 or tokens[-2].content != "end":
        raise Fault("markdown", "fence", text)


CARDS = Target("model cards", 0.02, card_cases, run_card)
