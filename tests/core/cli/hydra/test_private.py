"""Private names of Hydra are used in one file."""

import ast
from pathlib import Path

import gptask.cli.hydra.private
import pytest

ROOT = Path(__file__).parents[4]
PRIVATE = Path(gptask.cli.hydra.private.__file__)
FILES = [path for folder in ("core", "tasks", "conf", "tests") for path in sorted((ROOT / folder).rglob("*.py"))]


def private_modules(file):
    """The modules below ``hydra._internal`` that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        yield from (name for name in names if name.startswith("hydra._internal"))


def test_one_file_imports_private_modules_of_hydra():
    assert PRIVATE in FILES
    assert [file for file in FILES if list(private_modules(file))] == [PRIVATE]


@pytest.mark.parametrize(
    "line", ["import hydra._internal.hydra", "from hydra import _internal", "from hydra._internal.utils import x"]
)
def test_each_form_of_import_is_seen(line, tmp_path):
    (tmp_path / "module.py").write_text(f"def f():\n    {line}\n")
    assert list(private_modules(tmp_path / "module.py"))
