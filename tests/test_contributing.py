"""CONTRIBUTING.md names rooms and files that exist, and is short."""

import re
from pathlib import Path

from tests.core.test_rooms import ROOMS

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text("utf-8")


def test_the_rooms_stand_in_the_order_that_a_test_asserts():
    table = PAGE.split("| room |")[1].split("\n\n")[0]
    assert [re.findall(r"`([^`]+)`", line)[0] for line in table.splitlines()[2:]] == list(ROOMS)


def test_the_paths_on_the_page_exist():
    paths = re.findall(r"(?<![\w/])(?:core|tasks|conf|tests|docs)/[\w./-]*\w/?", PAGE)
    assert len(paths) > 15
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_the_page_is_short():
    assert len(PAGE.splitlines()) <= 110
