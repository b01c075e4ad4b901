"""`gptask cache`: sizes by kind, and the removal of what is stale."""

import json
import os
import re

import pytest
from gptask.data.store import ArrowStore


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("GPTASK_CACHE", str(tmp_path / "cache"))
    for name in ("sound", "old", "damaged"):
        ArrowStore.write(tmp_path / "cache" / "examples" / f"{name}.arrow", [{"number": 1}] * 1000, {})
    os.utime(tmp_path / "cache" / "examples" / "old.json", (1, 1))
    (tmp_path / "cache" / "examples" / "damaged.arrow").write_bytes(b"x")
    return tmp_path / "cache"


def files(folder):
    return sorted(path.name for path in (folder / "examples").iterdir())


def test_the_kinds_are_listed_with_their_sizes(run_command, folder):
    ended = run_command("cache", "--format", "json")
    listed = json.loads(ended.out)
    assert (ended.code, listed["folder"], listed["pruned"]) == (0, str(folder), False)
    rows = {row["kind"]: row for row in listed["kinds"]}
    assert (rows["examples"]["entries"], rows["examples"]["stale"]) == (3, 2)
    assert rows["examples"]["bytes"] >= 16_000
    assert rows["backbones"] == {"kind": "backbones", "entries": 0, "bytes": 0, "stale": 0, "stale_bytes": 0}
    assert rows["total"] == rows["examples"] | {"kind": "total"}
    assert re.search(r"^examples +3  ", run_command("cache").out, re.M)
    assert len(files(folder)) == 6


def test_prune_removes_what_is_damaged_or_old(run_command, folder):
    assert "removed the stale entries: 2, " in run_command("cache", "--prune").out
    assert files(folder) == ["sound.arrow", "sound.json"]
    assert "removed the stale entries: 0, 0.0 MB" in run_command("cache", "--prune").out


def test_days_tells_what_is_old(run_command, folder):
    run_command("cache", "--prune", "--days", "100000")
    assert files(folder) == ["old.arrow", "old.json", "sound.arrow", "sound.json"]
    assert run_command("cache", "--prune", "--days", "0").code == 0
    assert files(folder) == []


def test_negative_days_are_refused(refused, run_command):
    assert "--days -1.0 must be 0 or more" in refused("cache", "--days=-1")
