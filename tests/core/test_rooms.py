"""The rooms of core keep their order: imports run down, never in a circle, and the light rooms stay free of torch."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("errors", "config", "plugins", "data", "model", "runs", "training", "analysis", "serving", "testing", "cli")
FILES = {
    ".".join(path.relative_to(ROOT / folder).with_suffix("").parts).removesuffix(".__init__"): path
    for folder in ("core", "tasks", "conf")
    for path in sorted((ROOT / folder).rglob("*.py"))
}
CORE = [name for name in FILES if name.startswith("gptask.") and name != "gptask.__main__"]
WITH_TORCH = (
    *("gptask.data.batches", "gptask.data.datamodule", "gptask.data.mixture"),
    *(f"gptask.analysis.compress.{name}" for name in ("distillation", "teacher", "teacher_scores", "teacher_texts")),
    *(
        f"gptask.analysis.explain.{name}"
        for name in (
            *("attention_rollout", "explainer", "integrated_gradients"),
            *("objectives", "scoring", "targets", "variants", "word_shares"),
        )
    ),
)
WITHOUT_TORCH = [  # at import; of the model room what a task's module and a start need
    *(
        name
        for name in CORE
        if name.split(".")[1] in ("errors", "config", "plugins", "data", "runs", "analysis", "cli")
    ),
    *("gptask.model.text_task", "gptask.model.backbone.locate", "gptask.model.generation.generate"),
    *("gptask.serving.client", "gptask.serving.remote_run"),
]
IMPORT_WITHOUT_TORCH = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
    assert "torch" not in sys.modules, f"{name} imports torch"
"""
IMPORT_ALONE = """
import importlib, os, sys
import datasets, hydra, jinja2, peft, pyarrow.parquet, pytorch_lightning, regex, rich.table, sacrebleu, safetensors
import fastapi, httpx2, llguidance, prometheus_client, scipy.special, torch, uvicorn  # once, for all children
import transformers.cache_utils, transformers.generation.logits_process, transformers.integrations.sdpa_attention
import transformers.masking_utils
failed = []
for name in sys.argv[1:]:
    child = os.fork()
    if not child:
        try:
            importlib.import_module(name)
            os._exit(0)
        except BaseException as error:
            print(name, repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    failed += [name] if os.waitpid(child, 0)[1] else []
sys.exit(f"not importable alone: {failed}" if failed else 0)
"""


def imports(name: str) -> Iterator[str]:
    """The modules of this project that one imports, inside functions and under TYPE_CHECKING too."""
    for node in ast.walk(ast.parse(FILES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name} has a relative import"
            for alias in node.names:
                longer = f"{node.module}.{alias.name}"
                yield longer if longer in FILES else str(node.module)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_every_import_goes_to_an_earlier_room_or_stays_inside_its_own() -> None:
    upward = [
        f"{name} -> {target}"
        for name in CORE
        for target in imports(name)
        if target.split(".")[0] in ("gptask", "gptask_tasks", "gptask_conf")
        and (not target.startswith("gptask.") or ROOMS.index(target.split(".")[1]) > ROOMS.index(name.split(".")[1]))
    ]
    assert not upward


def test_no_circle_of_files() -> None:
    graph = {name: {target for target in imports(name) if target in FILES and target != "gptask"} for name in FILES}
    graph["gptask"] = set()  # it names public things lazily
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_core_holds_its_rooms_and_nothing_else() -> None:
    entries = {path.name for path in (ROOT / "core/gptask").iterdir()} - {"__pycache__"}
    assert entries == {*ROOMS} - {"errors"} | {"errors.py", "__init__.py", "__main__.py", "py.typed"}


def test_links_are_followed_by_real_path() -> None:
    users = [name for name in CORE if ".resolve()" in FILES[name].read_text(encoding="utf-8")]
    assert not users, "Path.resolve raises RuntimeError for links that lead to each other: gptask.errors.real_path"


def test_no_two_modules_of_core_share_a_name() -> None:
    # a command is named by its verb; private.py is, in three rooms, what a library has no public form for
    unnamed = ("__init__", "private")
    names = [FILES[name].stem for name in CORE if ".commands." not in name and FILES[name].stem not in unnamed]
    assert len(names) == len(set(names)), sorted({name for name in names if names.count(name) > 1})


@pytest.mark.parametrize(
    ("code", "names"),
    [
        (IMPORT_WITHOUT_TORCH, [n for n in WITHOUT_TORCH if n not in WITH_TORCH]),
        pytest.param(IMPORT_ALONE, [*FILES], marks=pytest.mark.long),  # 80 ms a module; circles are found above
    ],
    ids=["light modules import no torch", "every module imports alone"],
)
def test_in_a_fresh_interpreter(code: str, names: list[str]) -> None:
    names = [name for name in names if not name.endswith("__main__")]
    done = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
