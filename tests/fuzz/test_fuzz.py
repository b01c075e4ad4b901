"""150 cases of all targets, the same each time; `make fuzz` runs 100,000."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.fuzz.base_runs import ALL, base_runs
from tests.fuzz.cases import ChunkResult, run_chunk
from tests.fuzz.guard import CANARY, watched
from tests.fuzz.hostile import MARK, changed, changed_bytes
from tests.fuzz.markup import check_markdown, check_page
from tests.fuzz.sandbox import Fault, Sandbox
from tests.fuzz.target import Setting, Target
from tests.fuzz.targets import TARGETS

CASES = {"readers": 78, "overrides": 40, "run folders": 20, "html pages": 4, "model cards": 8}


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    """One trained run, which stands for all."""
    base = base_runs(tmp_path_factory.mktemp("base"), ("adapted",))
    return Setting(dict.fromkeys(ALL, base.runs["adapted"]) | base.runs)


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    return Sandbox(tmp_path)


def described(result: ChunkResult) -> str:
    return "\n".join(f"{found.kind}: {found.place}\n{found.case}\n{found.text}" for found in result.found)


@pytest.mark.parametrize("name", TARGETS)
def test_no_case_ends_in_a_trace_or_touches_anything_else(name: str, sandbox: Sandbox, setting: Setting) -> None:
    result = run_chunk(TARGETS[name], 1, CASES[name], sandbox, setting)
    assert not result.counts, described(result)
    assert result.cases == CASES[name]


def test_the_shares_are_those_of_150_cases() -> None:
    assert sum(CASES.values()) == 150
    assert CASES.keys() == TARGETS.keys()
    assert sum(target.share for target in TARGETS.values()) == pytest.approx(1)


# --- what the harness sees ------------------------------------------------------------------------------------------


def write_outside(sandbox: Sandbox) -> None:
    (sandbox.root / "outside").write_text("x")


def rename_outside(sandbox: Sandbox) -> None:
    (sandbox.folder / "case.txt").rename(sandbox.root / "outside")


def link_outside(sandbox: Sandbox) -> None:
    (sandbox.root / "outside").symlink_to("/")


def write_through_a_link(sandbox: Sandbox) -> None:
    (sandbox.out / "link").symlink_to(sandbox.root)
    (sandbox.out / "link" / "outside").write_text("x")


def connect(sandbox: Sandbox) -> None:
    import socket

    socket.create_connection(("192.0.2.1", 9), timeout=1)


def start_a_process(sandbox: Sandbox) -> None:
    import subprocess

    subprocess.run(["true"])


def import_the_canary(sandbox: Sandbox) -> None:
    __import__(CANARY)


def unpickle(sandbox: Sandbox) -> None:
    import pickle

    pickle.loads(b"\x80\x04cos\nsystem\n.")


def allocate(sandbox: Sandbox) -> None:
    raise MemoryError


ACTS = {
    write_outside: "write outside", rename_outside: "write outside", link_outside: "write outside",
    write_through_a_link: "write outside", connect: "network", start_a_process: "process", import_the_canary: "import",
    unpickle: "pickle", allocate: "memory",
}  # fmt: skip


@pytest.mark.parametrize("act", ACTS, ids=lambda act: act.__name__)
def test_the_sandbox_sees_what_a_case_does(act: Any, sandbox: Sandbox) -> None:
    with sandbox.case("a case"), pytest.raises(Fault) as caught:
        sandbox.call(lambda: act(sandbox), writable=[sandbox.out])
    assert caught.value.kind == ACTS[act]
    assert not (sandbox.root / "outside").exists()


def test_what_is_refused_is_a_fault_also_where_the_product_takes_it_for_its_own_error(sandbox: Sandbox) -> None:
    def quiet() -> None:
        try:
            write_outside(sandbox)
        except OSError:
            return

    with sandbox.case(""), pytest.raises(Fault, match="write outside"):
        sandbox.call(quiet)


def test_a_command_may_write_where_it_is_told(sandbox: Sandbox) -> None:
    with sandbox.case(""):
        assert sandbox.call(lambda: (sandbox.out / "a").write_text("x"), writable=[sandbox.out]) == 1
        with watched([sandbox.out]) as watch:
            (sandbox.out / "a").unlink()
    assert not watch.faults


@pytest.mark.parametrize(("name", "code"), [("tasks", 0), ("nosuch", 2)])
def test_a_command_line_ends_with_its_code(name: str, code: int, sandbox: Sandbox) -> None:
    with sandbox.case(""):
        assert sandbox.command(name)[0] == code


def test_a_trace_is_named_by_its_error_and_the_function_of_gptask(sandbox: Sandbox, monkeypatch: Any) -> None:
    monkeypatch.setattr("gptask.cli.VERBS", None)
    with sandbox.case(""), pytest.raises(Fault) as caught:
        sandbox.command("tasks")
    assert caught.value.signature == "trace: TypeError in gptask/cli/__init__.py _dispatch"


def test_what_a_case_leaves_in_the_temporary_folder_is_a_fault(sandbox: Sandbox) -> None:
    with pytest.raises(Fault, match="left over"), sandbox.case(""):
        (sandbox.temporary / "x").write_text("x")
    assert not [*sandbox.temporary.iterdir()]


def test_a_fault_is_counted_and_kept_with_its_smallest_case(sandbox: Sandbox) -> None:
    from hypothesis import strategies as st

    def run(case: int, sandbox: Sandbox, setting: Setting) -> None:
        if case >= 10:
            raise Fault("trace", "here", str(case))

    target = Target("numbers", 1, st.integers(0, 1000), run)
    result = run_chunk(target, 0, 50, sandbox, Setting(), shrink=True)
    assert [(found.kind, found.case) for found in result.found] == [("trace", "10")]
    again = run_chunk(target, 0, 50, sandbox, Setting(), known=["trace: here"], shrink=True)
    assert again.counts.keys() == {"trace: here"}
    assert not again.found
    assert again.cases == 50


HOSTILE_PAGES = [
    f"<p><script>{MARK}</script></p>",
    f"<p onclick='{MARK}'></p>",
    f"<p><a href='javascript:{MARK}'>x</a></p>",
    "<p><iframe></iframe></p>",
    "<p><b>open</p>",
    f"<p style='x: url({MARK})'></p>",
    f"<!-- {MARK} -->",
]


@pytest.mark.parametrize("page", HOSTILE_PAGES)
def test_data_that_became_markup_of_a_page_is_seen(page: str) -> None:
    with pytest.raises(Fault, match="html"):
        check_page(page)
    check_page(f"<p title='{MARK}'>&lt;script&gt;{MARK}()<a href='#x'>x</a></p>")


@pytest.mark.parametrize("text", ["<b>x</b>", "[x](http://x)", "![x](x)", "```python\nx y\n```", "a\n\n---\n", "    x"])
def test_data_that_became_markup_of_a_text_is_seen(text: str) -> None:
    with pytest.raises(Fault, match="markdown"):
        check_markdown(f"# title\n\n{text}\n")
    check_markdown("# title\n\n\\<b> `[x](y)`<br>\n\n```python\nx = 1\n```\n", headings=1)


def test_changes_of_trees_and_bytes() -> None:
    tree = {"a": [1, 2], "b": {"c": 3}}
    edits = [("set", 2, "x"), ("rename", 4, "d"), ("add", 0, "e", 5), ("delete", 1)]
    assert changed(tree, edits[:1]) == {"a": ["x", 2], "b": {"c": 3}}
    assert changed(tree, edits[1:2]) == {"a": [1, 2], "d": {"c": 3}}
    assert changed(tree, edits[2:]) == {"b": {"c": 3}, "e": 5}
    assert tree == {"a": [1, 2], "b": {"c": 3}}
    assert changed_bytes(b"abcd", [("cut", 0.5), ("insert", 0.0, b"x"), ("flip", 0.0, 1)]) == b"yab"
