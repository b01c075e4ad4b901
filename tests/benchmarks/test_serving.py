"""The measurements of the server on tiny runs: eight clients for seconds, and a run that is replaced under load."""

import asyncio
import sys
from collections import Counter
from pathlib import Path

import pytest
from gptask.config.schemas import Lora
from gptask_tasks.sentiment import Sentiment
from gptask_tasks.translation import Translation

sys.path.insert(0, str(Path(__file__).parent))
import serving
import serving_parity
import serving_reload


@pytest.fixture(scope="module")
def stars(random_run):
    return random_run(Sentiment(labels=["negative", "neutral", "positive"]), "llama", Lora(rank=2))


@pytest.fixture(scope="module")
def french(random_run):
    task = Translation(prompt="{source}")
    task.generation.max_new_tokens = 4
    return random_run(task, "llama", Lora(rank=2))


@pytest.fixture
def served(stars, french, tmp_path, monkeypatch):
    """A server process of both runs, started by `with served(*names):`."""

    def start(**folders):
        runs = [serving.ServedFolder(Path(folder), name) for name, folder in folders.items()]
        source = stars.backbone.origin.location
        options = ["backbone=pretrained", f"backbone.source={source}", "backbone.dtype=float32"]
        command = lambda port: serving.serve_command(runs, port, options)  # noqa: E731
        return serving.started(command, log=tmp_path / "server.log")

    return start


def requests(url):
    texts = [f"good number {number}" for number in range(50)]
    for text in (text for _ in iter(int, 1) for text in texts):
        yield "label", serving.predict_request(url, "stars", {"text": text})
        yield "text", serving.predict_request(url, "french", {"source": text})


@pytest.mark.slow
def test_eight_clients_with_mixed_tasks(served, stars, french, tmp_path):
    with served(stars=stars.folder, french=french.folder) as server:
        figures, memory = asyncio.run(serving.load(server, requests(server.url), 8, 2.0))
    log = (tmp_path / "server.log").read_text()
    assert figures.problems == Counter(), log[-3000:]
    assert {*figures.seconds} == {"label", "text", "health"}
    assert serving.quantiles_ms(figures.seconds["label"])["p99"] < 3000
    assert memory
    assert server.code == 0, log[-3000:]


@pytest.mark.long
def test_twenty_seconds_of_eight_clients(served, stars, french):
    with served(stars=stars.folder, french=french.folder) as server:
        figures, memory = asyncio.run(serving.load(server, requests(server.url), 8, 20.0))
    assert figures.problems == Counter()
    assert serving.quantiles_ms(figures.seconds["label"])["p99"] < 3000
    later = [megabytes for when, megabytes in memory if when > 10]
    assert max(later) <= 1.05 * later[0]
    assert server.code == 0


@pytest.mark.long
@pytest.mark.parametrize("kind", ["stars", "french"])
def test_no_answer_is_wrong_lost_or_crossed_while_a_run_is_replaced_in_place(kind, served, request, tmp_path):
    run, folder = request.getfixturevalue(kind), tmp_path / "served"
    serving_reload.scaled_copy(run.folder, tmp_path / "other", 0.3)
    serving_reload.scaled_copy(run.folder, folder, 1.0)
    examples = serving_reload.canaries(run.folder, 100)
    versions = [
        serving_reload.Version(path, serving_reload.answers(path, examples))
        for path in (run.folder, tmp_path / "other")
    ]
    distinct = {str(answer) for version in versions for answer in version.answers}
    assert len(distinct) > 150, "the texts and the versions must differ in their answers"
    with served(canary=folder) as server:
        result = asyncio.run(serving_reload.reload_under_load(server, folder, versions, examples, 10_000, 16))
    assert (result["wrong"], result["lost"], result["crossed"]) == (0, 0, 0), result
    assert result["replaced"] >= 4, result
    assert min(result["old"], result["new"]) > 10, result
    assert sum(result[name] for name in ("old", "new", "either")) == 10_000
    assert server.code == 0


def test_answers_are_compared_by_value_probability_and_margin():
    sure = {"prediction": "a", "probabilities": {"a": 0.9, "b": 0.1}}
    close = {"prediction": "b", "probabilities": {"a": 0.49, "b": 0.51}}
    other = {"prediction": "a", "probabilities": {"a": 0.505, "b": 0.495}}
    result = serving_parity.compare([sure, other], [sure, close], 0.5)
    assert (result["n"], result["equal"], result["with_margin"], result["within_0.02"]) == (2, 1, [1, 1], 1.0)
    assert serving_parity.verdict("bfloat16", {"a": result})["passed"]
    assert not serving_parity.verdict("float32", {"a": result})["passed"]
    wrong = serving_parity.compare([sure | {"prediction": "b"}], [sure], 0.5)
    assert not serving_parity.verdict("bfloat16", {"a": wrong})["passed"]
    lost = serving_parity.compare([None], [{"prediction": "text", "score": 0.5}], 0.5)
    assert not serving_parity.verdict("float32", {"a": lost})["passed"]
    assert not serving_parity.verdict("bfloat16", {"a": lost})["passed"]
    several = {"prediction": ["a"], "probabilities": {"a": 0.19, "b": 0.1}}
    none = {"prediction": [], "probabilities": {"a": 0.17, "b": 0.1}}
    near = serving_parity.compare([none], [several], 0.18)  # the margin is to the run's own threshold
    assert near["with_margin"] == [0, 0]
    assert serving_parity.compare([none], [several | {"probabilities": {"a": 0.3, "b": 0.1}}], 0.18)["with_margin"] == [
        1,
        0,
    ]
    span = {"type": "PER", "start": 0, "end": 1}
    tags = [{"prediction": [span | {"score": score}], "score": 0.9} for score in (0.5, 0.4)]
    result = serving_parity.compare(tags[:1], tags[1:], 0.5)
    assert (result["equal"], result["largest_difference"]) == (1, 0.1)


def test_an_answer_is_of_a_version_of_another_text_or_of_nobody():
    old = serving_reload.Version(Path(), [{"prediction": "a"}, {"prediction": "same"}])
    new = serving_reload.Version(Path(), [{"prediction": "b"}, {"prediction": "same"}])
    answers = [{"prediction": value} for value in ("a", "b", "same", "c")]
    judged = [serving_reload._judged(answer, 0, [old, new]) for answer in [*answers, None]]
    assert judged == ["old", "new", "crossed", "wrong", "lost"]
    assert serving_reload._judged({"prediction": "same"}, 1, [old, new]) == "either"
