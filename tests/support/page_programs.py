"""Checks of the commands on a page that start other programs than gptask: what they name exists."""

import re
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.support.pages import ROOT

EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
MAKE_TARGETS = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
UNCHECKED = {
    "cd",
    "curl",
    "eval",
    "git",
    "mlflow",
    "pre-commit",
    "source",
    "srun",
    "tensorboard",
    "torchrun",
    "vllm",
    "wandb",
}
Install = Callable[[Path], None]  # makes the plugin in a folder installed


def _exists(path: str) -> bool:
    return (ROOT / path).exists() or Path(path).exists()


def _check_make(install: Install, arguments: Sequence[str]) -> None:
    for target in (word for word in arguments if "=" not in word):
        assert target in MAKE_TARGETS, f"make has no target {target}"


def _check_python(install: Install, arguments: Sequence[str]) -> None:
    if arguments[0] == "-m":
        module = arguments[1]
        assert module in ("build", "pip", "pytest", "venv"), f"python -m {module}"
        if module in CHECKS:
            CHECKS[module](install, arguments[2:])
    else:
        assert arguments[0].endswith(".py"), f"python {arguments[0]}"
        assert _exists(arguments[0]), f"there is no {arguments[0]}"


def _check_pytest(install: Install, arguments: Sequence[str]) -> None:
    for path in (word.partition("::")[0] for word in arguments if "/" in word and not word.startswith("-")):
        assert _exists(path), f"there is no {path}"


def _check_pip(install: Install, arguments: Sequence[str]) -> None:
    """The extras of gptask exist; the folder of a plugin is installed."""
    for number, word in enumerate(arguments):
        if match := re.fullmatch(r"(?P<what>gptask|\.)\[(?P<extras>[\w,]+)\]", word):
            unknown = {*match["extras"].split(",")} - {*EXTRAS}
            assert not unknown, f"gptask has no extra {unknown}"
        elif arguments[number - 1] in ("-e", "--editable") and word != ".":
            name = word.partition("[")[0]
            folder = next((path for path in (ROOT / name, Path(name)) if path.is_dir()), None)
            assert folder, f"there is no folder {name}"
            install(folder.resolve())


CHECKS: dict[str, Callable[[Install, Sequence[str]], None]] = {
    "make": _check_make,
    "python": _check_python,
    "python3": _check_python,
    "pytest": _check_pytest,
    "pip": _check_pip,
}
