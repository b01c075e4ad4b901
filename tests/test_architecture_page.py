"""The architecture page and its diagram name the rooms in their order, and modules and files that are there."""

import ast
import re
from pathlib import Path
from xml.etree import ElementTree

import gptask
import pytest

from tests.core.test_rooms import FILES, ROOMS, ROOT

DOCS = ROOT / "docs"
PAGE = (DOCS / "architecture.md").read_text(encoding="utf-8")
NAMES = sorted(set(re.findall(r"`(gptask(?:_tasks|_conf)?(?:\.\w+)+)`", PAGE)))
PATHS = sorted(set(re.findall(r"`([\w.-]+(?:/[\w.-]+)*/(?:\w+\.py)?)`", PAGE)))


def is_defined(name: str) -> bool:
    """Whether a dotted name is a module of this project, a public name of gptask, or a name that a module defines."""
    module, _, attribute = name.rpartition(".")
    if name in FILES or (module == "gptask" and attribute in gptask.__all__):
        return True
    body = ast.parse(FILES[module].read_text(encoding="utf-8")).body if module in FILES else []
    return attribute in {getattr(node, "name", None) for node in body}


def test_the_page_lists_the_rooms_lowest_first() -> None:
    table = PAGE.partition("## Rooms")[2].partition("\n\n`core/gptask`")[2].partition("\n\n")[2].partition("\n\n")[0]
    assert tuple(re.findall(r"^\| `gptask\.(\w+)` \|", table, re.MULTILINE)) == ROOMS


def test_the_diagram_has_the_rooms_cli_on_top() -> None:
    texts = ElementTree.parse(DOCS / "images" / "architecture.svg").iter("{http://www.w3.org/2000/svg}text")
    heights = {str(text.text): float(text.attrib["y"]) for text in texts if text.get("class") == "room"}
    assert tuple(sorted(heights, key=heights.__getitem__, reverse=True)) == ROOMS


def test_the_page_shows_the_diagram_with_a_description() -> None:
    (description,) = re.findall(r"!\[([^\]]+)\]\(images/architecture\.svg\)", PAGE)
    assert len(description) > 50


@pytest.mark.parametrize("name", NAMES)
def test_a_name_on_the_page_is_defined(name: str) -> None:
    assert is_defined(name)


@pytest.mark.parametrize("path", PATHS)
def test_a_path_on_the_page_exists(path: str) -> None:
    assert Path(ROOT, path).exists()


def test_wrong_names_are_found() -> None:
    assert len(NAMES) > 30
    assert "tests/core/test_rooms.py" in PATHS
    assert not any(map(is_defined, ["gptask.trainings", "gptask.training.module.GPTModul", "gptask.Tasks"]))


def test_the_way_from_a_file_to_a_batch_names_every_module_of_data() -> None:
    section = PAGE.partition("## From a file to a batch")[2].partition("\n## ")[0]
    cells = [line.split("|")[2] for line in section.splitlines() if line.startswith("|")][2:]
    named = [name for cell in cells for name in re.findall(r"`(\w+)`", cell)]
    assert sorted(named) == sorted(path.stem for path in (ROOT / "core/gptask/data").glob("[!_]*.py"))
