"""`gptask new-task`: an installable package for a task of one's own."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from gptask.cli.arguments import VerbParser
from gptask.cli.output import write_out
from gptask.cli.scaffold.project import ProjectKind, write_project

DESCRIPTION = "Write a package with one task that works at once: entry point, task module, sample, test, README."
EPILOG = """examples:
  gptask new-task toxicity ../acme                      sorts texts, on top of the classification task
  gptask new-task headline ../news --kind generation    writes text behind a prompt
"""
NEXT_STEPS = """
pip install -e {package}
gptask train task={name}
pytest {folder}
"""


def main(arguments: Sequence[str]) -> int:
    """Write the package, print its files and the next steps; return the exit code."""
    options = _parser().parse_args(arguments)
    for path in write_project(options.name, Path(options.folder), ProjectKind(options.kind)):
        write_out(f"{path}\n")
    package, folder = (shlex.quote(f"{options.folder}{extra}") for extra in ("[dev]", ""))
    write_out(NEXT_STEPS.format(package=package, folder=folder, name=options.name))
    return 0


def _parser() -> VerbParser:
    parser = VerbParser("new-task", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("name", help="of the task and its module: lower case, as in hate_speech")
    parser.add_argument("folder", help="where the package is written: a new or empty folder")
    kinds = [kind.value for kind in ProjectKind]
    parser.add_argument("--kind", choices=kinds, default=kinds[0], help=f"what it starts as (default: {kinds[0]})")
    return parser
