"""The page in a real browser: Debian's chromium, driven by playwright-core through node.

It brings neither of them: ``apt-get install chromium``, and ``npm install playwright-core`` in the folder that
GPTASK_PLAYWRIGHT names (without it, it is installed into a temporary one).
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from gptask.analysis.compare import records
from gptask.analysis.report.page import page

from tests.support.run_folders import hotel_reviews, write_review_run

pytestmark = pytest.mark.long
SCRIPT = Path(__file__).with_name("browser.js")


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """The folder of playwright-core."""
    for program in ("node", "npm", "chromium"):
        if shutil.which(program) is None:
            pytest.skip(f"no {program} on this machine")
    given = os.environ.get("GPTASK_PLAYWRIGHT")
    folder = Path(given) if given else tmp_path_factory.mktemp("playwright")
    found = folder / "node_modules" / "playwright-core"
    if not found.is_dir():
        command = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder), "playwright-core"]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
        if ended.returncode:
            pytest.skip(f"playwright-core can't be installed: {ended.stderr.strip()[-200:]}")
    return found


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    """The report of two runs, with Chinese and markup in the data."""
    root = tmp_path_factory.mktemp("browser")
    reviews = hotel_reviews(120)
    reviews[0]["text"] = "<script>alert(1)</script> 这部电影很好 " + "W" * 300
    runs = [write_review_run(root / f"run {k}", reviews, seed=k) for k in (1, 2)]
    (root / "report.html").write_text(page(records.find(map(str, runs))), encoding="utf-8")
    return root / "report.html"


@pytest.fixture(scope="module")
def seen(library, html):
    """What a width and a colour scheme show; each is opened once."""
    kept = {}

    def look(width, scheme):
        if (width, scheme) not in kept:
            picture = html.with_name(f"{width}-{scheme}.png")
            command = ["node", SCRIPT, library, shutil.which("chromium"), html, str(width), scheme, picture]
            ended = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120)
            assert ended.returncode == 0, ended.stderr
            kept[width, scheme] = json.loads(ended.stdout)
            assert kept[width, scheme]["wrong"] == []
        return kept[width, scheme]["seen"]

    return look


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_goes_wrong_and_nothing_sticks_out(seen, width, scheme):
    assert seen(width, scheme)["overflow"] <= 0


@pytest.mark.parametrize("width", [1280, 390])
def test_search_filters_and_the_more_button_change_the_list(seen, width):
    steps = seen(width, "light")["list"]
    assert steps["start"]["shown"] == 20
    assert steps["start"]["said"].startswith("20 of ")
    total = int(steps["start"]["said"].split()[2])
    assert steps["more"]["shown"] == total
    assert 0 < steps["search"]["shown"] < total
    assert "test.jsonl:1" in steps["search"]["first"]
    assert steps["nothing"]["shown"] == 0
    assert 0 < steps["change"]["shown"] < total
    assert 0 < steps["label"]["shown"] < steps["change"]["shown"]
    assert "neutral" in steps["label"]["first"]


def test_examples_are_filtered_by_state_and_run(seen):
    states = seen(1280, "light")["states"]
    assert {tuple(state) for state in states} == {("wrong", "B")}


def test_a_click_on_a_heading_sorts(seen):
    numbers = list(map(int, seen(1280, "light")["sorted"]))
    assert numbers == sorted(numbers, reverse=True)


def test_colours_follow_the_scheme(seen):
    light, dark = seen(1280, "light"), seen(1280, "dark")
    assert light["paper"] != dark["paper"]
    assert light["line"] != dark["line"]
    assert light["tools"] == 0  # printed
