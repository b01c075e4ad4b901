"""The page in a real browser: Debian's chromium, driven by playwright-core through node.

Install them with ``apt-get install chromium``, and ``npm install playwright-core`` in the folder that GPTASK_PLAYWRIGHT
names; without that variable the test installs playwright-core into a temporary folder.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from gptask.analysis.compare import records
from gptask.analysis.report.page import report_page

from tests.support.run_folders import hotel_reviews, write_review_run

pytestmark = pytest.mark.long
SCRIPT = Path(__file__).with_name("browser.js")


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """The folder of playwright-core."""
    for program in ("node", "npm", "chromium"):
        if shutil.which(program) is None:
            pytest.skip(f"no {program} on this machine")
    folder_name = os.environ.get("GPTASK_PLAYWRIGHT")
    folder = Path(folder_name) if folder_name else tmp_path_factory.mktemp("playwright")
    package = folder / "node_modules" / "playwright-core"
    if not package.is_dir():
        command = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder), "playwright-core"]
        process = subprocess.run(command, capture_output=True, text=True, timeout=300)
        if process.returncode:
            pytest.skip(f"playwright-core can't be installed: {process.stderr.strip()[-200:]}")
    return package


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    """The report of two runs, with Chinese and markup in the data."""
    root = tmp_path_factory.mktemp("browser")
    reviews = hotel_reviews(120)
    reviews[0]["text"] = "<script>alert(1)</script> 这部电影很好 " + "W" * 300
    runs = [write_review_run(root / f"run {k}", reviews, seed=k) for k in (1, 2)]
    (root / "report.html").write_text(report_page(records.find_runs(map(str, runs))), encoding="utf-8")
    return root / "report.html"


@pytest.fixture(scope="module")
def observed(library, html):
    """A function that opens the page with a width and a colour scheme, once each, and returns what the browser saw."""
    results = {}

    def open_page(width, scheme):
        if (width, scheme) not in results:
            picture = html.with_name(f"{width}-{scheme}.png")
            command = ["node", SCRIPT, library, shutil.which("chromium"), html, str(width), scheme, picture]
            process = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120)
            assert process.returncode == 0, process.stderr
            results[width, scheme] = json.loads(process.stdout)
            assert results[width, scheme]["errors"] == []
        return results[width, scheme]["observed"]

    return open_page


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_has_no_errors_and_fits_the_width(observed, width, scheme):
    assert observed(width, scheme)["overflow"] <= 0


@pytest.mark.parametrize("width", [1280, 390])
def test_search_filters_and_the_more_button_change_the_list(observed, width):
    steps = observed(width, "light")["list"]
    assert steps["start"]["shown"] == 20
    assert steps["start"]["count"].startswith("20 of ")
    total = int(steps["start"]["count"].split()[2])
    assert steps["more"]["shown"] == total
    assert 0 < steps["search"]["shown"] < total
    assert "test.jsonl:1" in steps["search"]["first"]
    assert steps["nothing"]["shown"] == 0
    assert 0 < steps["change"]["shown"] < total
    assert 0 < steps["label"]["shown"] < steps["change"]["shown"]
    assert "neutral" in steps["label"]["first"]


def test_examples_are_filtered_by_state_and_run(observed):
    states = observed(1280, "light")["states"]
    assert {tuple(state) for state in states} == {("wrong", "B")}


def test_a_click_on_a_heading_sorts_the_table(observed):
    numbers = list(map(int, observed(1280, "light")["sorted"]))
    assert numbers == sorted(numbers, reverse=True)


def test_colours_follow_the_scheme(observed):
    light, dark = observed(1280, "light"), observed(1280, "dark")
    assert light["paper"] != dark["paper"]
    assert light["line"] != dark["line"]
    assert light["tools"] == 0  # printed
