"""Pages on hostile runs: reports, comparisons and leaderboards, read as a browser or a Markdown renderer reads them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gptask import Prediction
from gptask_tasks.classification import Classification
from gptask_tasks.translation import Translation
from hypothesis import strategies as st

from tests.fuzz.hostile import MARK, TEXTS, changed, changes, texts
from tests.fuzz.markup import check_markdown, check_page
from tests.fuzz.run_folders import reseal
from tests.fuzz.sandbox import Sandbox
from tests.fuzz.target import Setting, Target
from tests.support.run_folders import write_run

MARKUP = [text for text in TEXTS if MARK in text]
hostile = st.one_of(st.sampled_from(MARKUP), st.sampled_from(MARKUP), texts)
names = hostile.map(
    lambda text: "".join(c for c in text if c not in "/\x00" and c.isprintable())[:60].strip(".~ ") or "a"
)


@dataclass(frozen=True)
class PageCase:
    """Runs of a task whose names, labels and texts are hostile, and the page that is made of them."""

    page: str
    task: str
    folder: str
    labels: list[str]
    texts: list[str]
    ids: list[str]
    files: list[tuple[str, list[tuple[Any, ...]]]]
    log: str
    two: bool


page_cases = st.builds(
    PageCase,
    st.sampled_from(["report", "report", "html", "markdown", "leaderboard", "table", "json", "csv"]),
    st.sampled_from(["classification", "translation"]),
    names,
    st.lists(hostile.filter(str.strip), min_size=2, max_size=4, unique=True),
    st.lists(hostile, min_size=1, max_size=6),
    st.lists(hostile, min_size=1, max_size=4),
    st.lists(
        st.tuples(st.sampled_from(["metrics.json", "predictions.jsonl"]), st.lists(changes, min_size=1, max_size=2)),
        max_size=2,
    ),
    hostile,
    st.booleans(),
)


def run_page(case: PageCase, sandbox: Sandbox, setting: Setting) -> None:
    """Write the runs, make the page, and look for data that became markup."""
    folders = [_write(sandbox.folder / "runs" / case.folder, case, 0)]
    if case.two:
        folders.append(_write(sandbox.folder / "runs" / f"b {case.folder}", case, 1))
    arguments = [str(folder) for folder in folders]
    if case.page == "report":
        sandbox.command("report", *arguments, "--output", "out/report.html")
        paths = [sandbox.out / "report.html"]
    elif case.page == "leaderboard":
        sandbox.command("compare", str(sandbox.folder / "runs"), "--leaderboard", writable=[sandbox.folder / "runs"])
        paths = [sandbox.folder / "runs" / f"leaderboard.{ending}" for ending in ("html", "md")]
    else:
        code, out, _ = sandbox.command("compare", *arguments, "--format", case.page, "--force")
        if code == 0 and case.page in ("html", "markdown"):
            check_page(out) if case.page == "html" else check_markdown(out)
        if code == 0 and case.page == "json":
            json.loads(out)
        return
    for path in (path for path in paths if path.exists()):
        text = path.read_text(encoding="utf-8")
        check_page(text) if path.suffix == ".html" else check_markdown(text)


def _write(folder: Path, case: PageCase, seed: int) -> Path:
    draw = np.random.default_rng(seed)
    examples, predictions = list[dict[str, Any]](), list[Prediction]()
    for number, text in enumerate(case.texts * 2):
        name = f"{case.ids[number % len(case.ids)]}{number}"
        label = case.labels[number % len(case.labels)]
        if case.task == "translation":
            examples.append({"id": name, "source": text, "target": [label]})
            predictions.append(Prediction(label if draw.random() < 0.5 else text, 0.5))
            continue
        shares = draw.dirichlet(np.ones(len(case.labels)))
        table = {label: float(share) for label, share in zip(case.labels, shares, strict=True)}
        examples.append({"id": name, "text": text, "label": label})
        predictions.append(Prediction(case.labels[int(shares.argmax())], float(shares.max()), table))
    examples = [_encodable(example) for example in examples]
    task: Any = (
        Translation() if case.task == "translation" else Classification(labels=list(map(_encodable, case.labels)))
    )
    predictions = [Prediction(**_encodable(vars(prediction))) for prediction in predictions]
    write_run(folder, task, examples, predictions, outputs=_encodable(case.log), seed=seed)
    for file, edits in case.files:
        _edit(folder / file, edits)
    (folder / "metrics.csv").write_text(
        f'epoch,step,train/loss,"val/{case.log.replace(chr(34), "")}"\n0,1,0.5,1\n0,2,0.4,2\n', errors="replace"
    )
    reseal(folder)
    return folder


def _encodable(value: Any) -> Any:
    """Without half surrogate pairs, which no file of a run can hold."""
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    if isinstance(value, dict):
        return {_encodable(name): _encodable(item) for name, item in value.items()}
    return [_encodable(item) for item in value] if isinstance(value, list) else value


def _edit(path: Path, edits: list[tuple[Any, ...]]) -> None:
    content = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        path.write_text(json.dumps(changed(json.loads(content), edits)))
        return
    rows = changed([json.loads(line) for line in content.split("\n")[:-1]], edits)
    path.write_text("".join(json.dumps(row) + "\n" for row in (rows if isinstance(rows, list) else [rows])))


PAGES = Target("html pages", 0.03, page_cases, run_page)
