"""Hub data sets with a stand-in for ``datasets``; without a network the error comes before its import."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gptask.config.schemas import Hub
from gptask.data import hub
from gptask.data.hub import HubReader
from gptask.errors import UserError

ROWS = [{"sentence": "fine", "label": 1}, {"sentence": "poor", "label": 0}]


class FakeDataset(list):
    _fingerprint = "f00d"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    load_calls: list[tuple] = []

    def load_dataset(*args: Any, **options: Any) -> FakeDataset:
        load_calls.append((args, options))
        if options["split"] == "nowhere":
            raise ValueError("Unknown split 'nowhere'.\nmore lines")
        return FakeDataset(ROWS)

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    monkeypatch.setattr(hub, "hub_problem", lambda *_: None)
    return load_calls


def test_a_split_is_loaded_and_its_rows_are_numbered(calls: list) -> None:
    reader = HubReader(Hub(path="stanfordnlp/sst2", name="plain", revision="v1"), "train[:2]")
    assert calls == [(("stanfordnlp/sst2", "plain"), {"split": "train[:2]", "revision": "v1"})]
    assert reader.fingerprint() == {"stanfordnlp/sst2[train[:2]]": "f00d"}
    (name, first), (_, second) = reader.rows([])
    assert (first.value, second.value) == tuple(ROWS)
    assert second.location(name) == "stanfordnlp/sst2[train[:2]] row 2"


def test_an_error_of_the_hub_is_one_line(calls: list) -> None:
    with pytest.raises(
        UserError, match=r"^the hub data set 'a/b' split 'nowhere' can't be loaded: Unknown split 'n.*'\.$"
    ):
        HubReader(Hub(path="a/b"), "nowhere")


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    from huggingface_hub import constants

    monkeypatch.setattr(hub, "hub_problem", lambda *_: "the hub is out of reach")
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("HF_DATASETS_CACHE", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return tmp_path


def test_offline_a_missing_set_is_an_error_before_datasets_is_imported(
    offline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)  # importing it would raise ImportError
    with pytest.raises(
        UserError, match=r"'stanfordnlp/sst2' is not in the cache, and the hub is out .* data=files data.train=<file>"
    ):
        HubReader(Hub(path="stanfordnlp/sst2"), "train")


@pytest.mark.parametrize("folder", ["datasets/a___b", "hub/datasets--a--b"])
def test_offline_a_cached_set_is_loaded(
    calls: list, offline: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    (offline / folder).mkdir(parents=True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "")  # set by the code under test, so restored afterwards
    assert [row.value for _, row in HubReader(Hub(path="a/b"), "train").rows([])] == ROWS
    with pytest.raises(UserError, match=r"'a/b \(nowhere\)' is not in the cache"):
        HubReader(Hub(path="a/b"), "nowhere")
