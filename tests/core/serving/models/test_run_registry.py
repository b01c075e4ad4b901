"""Which runs are served, on how many backbones, and what happens when their folders are replaced in place."""

import gc
import logging
import os
import shutil
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from gptask import Full, GenerationOptions, HeadOnly, Lora, Pretrained, Scratch, UserError, load_run
from gptask.config.schemas import DType, Serve
from gptask.data.rows import Row
from gptask.model.engine.interface import DecodingRow
from gptask.runs import saved_model
from gptask.runs.config_file import read_config, write_config
from gptask.runs.manifest import read_manifest
from gptask.runs.predictor import InputRow
from gptask.serving.batching.batcher import Batcher
from gptask.serving.batching.work import ScoringWork, WritingWork
from gptask.serving.models import backbone_pool, run_registry
from gptask.serving.models.run_registry import LOOKS_UNTIL_GONE, RunRegistry, StillLoading
from gptask.serving.prometheus import ServerMetrics
from gptask_tasks.classification import Classification
from gptask_tasks.qa import QuestionAnswering
from gptask_tasks.sentiment import Sentiment
from gptask_tasks.token_tagging import TokenTagging
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from tests.support.run_folders import seal

LABELS = ["negative", "positive"]
TEXT = "is this film good or bad?"


@pytest.fixture(scope="module")
def folders(random_run: Callable[..., Any]) -> dict[str, Path]:
    """Runs with random weights: old and new have the same files but for the weights; no test may change them."""
    sentiment = Sentiment(labels=LABELS)
    made = {
        "old": random_run(sentiment, "llama", Lora(rank=2), seed=1),
        "new": random_run(sentiment, "llama", Lora(rank=2), seed=2),
        "topic": random_run(Classification(labels=["a", "b", "c"]), "llama", HeadOnly(), seed=3),
        "tags": random_run(TokenTagging(types=["PER"], plain=False), "llama", Lora(rank=4), seed=4),
        "qa": random_run(QuestionAnswering(generation=GenerationOptions(max_new_tokens=4)), "llama", Lora(rank=2)),
        "other": random_run(sentiment, "qwen2", Lora(rank=2), seed=5),
        "other2": random_run(sentiment, "qwen2", HeadOnly(), seed=6),
        "full": random_run(sentiment, "llama", Full(), seed=7),
        "scratch": random_run(sentiment, "scratch", Full(), seed=8),
    }
    return {name: run.folder for name, run in made.items()}


@pytest.fixture(scope="module")
def batcher() -> Iterator[Batcher]:
    batcher = Batcher(ServerMetrics())
    batcher.start()
    yield batcher
    batcher.drain(5)


@pytest.fixture
def served(batcher: Batcher) -> Iterator[Callable[..., RunRegistry]]:
    """``served(*runs, option=...)``: a registry that has loaded them."""
    registries = []

    def make(*runs: object, **options: Any) -> RunRegistry:
        registry = RunRegistry(Serve(runs=list(map(str, runs)), **options), batcher)
        registries.append(registry)
        registry.load()
        return registry

    yield make
    for registry in registries:
        registry.close()


def probabilities(registry: RunRegistry, name: str, text: str = TEXT) -> list[float]:
    model: Any = registry.get(name)
    return outputs_of(registry.batcher, model, text)


def outputs_of(batcher: Batcher, model: Any, text: str = TEXT) -> list[float]:
    items = model.predictor.encode([InputRow(Row(1, text), {"text": text})]).items
    work = ScoringWork(model, items, model.run.head)
    batcher.submit(work)
    (output,) = work.future.result(30)
    return list(output)


def look(registry: RunRegistry, times: int = 2) -> None:
    for _ in range(times):
        registry.batcher.call(lambda: None).result()  # its thread may hold the last work until the next one
        registry.refresh()


def adapters(registry: RunRegistry) -> set[str]:
    return {digest for pooled in registry.pool.backbones.values() for digest in pooled.backbone.adapter_layers}


def counts_of_loads(registry: RunRegistry) -> list[float]:
    """How many loads failed and succeeded, as `/metrics` shows it; the adapters that it shows are those there are."""
    text = registry.batcher.metrics.exposition().decode()
    assert f"gptask_adapters_loaded {float(len(adapters(registry)))}" in text
    return [float(text.partition(f'loads_total{{outcome="{name}"}} ')[2].split()[0]) for name in ("failed", "loaded")]


def replace(folder: Path, new: Path) -> None:
    """Move a run away and a copy of another one to its place."""
    copy = Path(shutil.copytree(new, folder.with_name("incoming")))
    folder.rename(folder.with_name("outgoing"))
    copy.rename(folder)
    shutil.rmtree(folder.with_name("outgoing"))


# --- names and choice ---------------------------------------------------------------------------------------------


def test_runs_of_several_tasks_share_one_backbone_which_is_served_too(served, folders):
    registry = served(f"mood:{folders['old']}", f"topic:{folders['topic']}", f"tags:{folders['tags']}",
                      f"qa:{folders['qa']}")  # fmt: skip
    (pooled,) = registry.pool.backbones.values()
    assert list(registry.models) == ["mood", "topic", "tags", "qa", pooled.name]
    assert pooled.name == Path(read_config(folders["old"])["backbone"]["source"]).name
    assert [model.digest is not None for model in registry.models.values()] == [True, False, True, True, False]
    assert [model.writes for model in registry.models.values()] == [False, False, False, True, True]
    assert {id(model.backbone.engine) for model in registry.models.values()} == {id(pooled.backbone.engine)}
    assert len(adapters(registry)) == 3
    with pytest.raises(UserError, match=r"no model 'modd'; there are mood, .* Did you mean 'mood'"):
        registry.get("modd")


def test_answers_are_those_of_the_run_alone(served, folders):
    registry = served(f"mood:{folders['old']}", f"mood2:{folders['new']}", f"full:{folders['full']}", memory_mb=100)
    for name, folder in {"mood": "old", "mood2": "new", "full": "full"}.items():
        run = load_run(folders[folder])
        expected = next(run.predict(TEXT)).probabilities
        (answer,) = registry.get(name).predictor.predict(TEXT)
        assert answer.probabilities == pytest.approx(expected, abs=1e-5)


def test_a_run_goes_before_the_backbone_of_its_name(served, folders):
    name = Path(read_config(folders["old"])["backbone"]["source"]).name
    registry = served(f"{name}:{folders['old']}")
    assert list(registry.models) == [name]
    assert registry.get(name).description()["task"] == "sentiment"


def test_without_runs_the_bare_backbone_is_served(served, tiny_model):
    source = tiny_model("llama", 128)
    registry = served(backbone=Pretrained(source=str(source)))
    assert list(registry.models) == [source.name]
    assert registry.get(source.name).writes
    with pytest.raises(UserError, match="a backbone from scratch has random weights: train it first"):
        served(backbone=Scratch())


def test_a_backbone_that_the_runs_do_not_use_is_an_error(served, folders, tiny_model):
    with pytest.raises(UserError, match=r"^backbone=.* is not the backbone of mood: leave it out"):
        served(f"mood:{folders['old']}", backbone=Pretrained(source=str(tiny_model("qwen2", 128))))
    registry = served(f"mood:{folders['old']}", backbone=Pretrained(source=str(tiny_model("llama", 128))))
    assert len(registry.models) == 2


def test_equal_names_are_refused_at_start(served, folders, tmp_path):
    for parent in ("x", "y"):
        shutil.copytree(folders["old"], tmp_path / parent / "a")
    with pytest.raises(UserError, match=r"both called 'a'.*\[x-a:.*, y-a:.*\]"):
        served(tmp_path / "x/a", tmp_path / "y/a")
    with pytest.raises(UserError, match="both called 'a'"):
        served(tmp_path / "x/a", runs_root=str(tmp_path / "y"))
    assert "a" in served(tmp_path / "x/a", runs_root=str(tmp_path / "x")).models  # one folder, found in two ways


@pytest.fixture
def multitask(random_run, folders, tmp_path) -> Path:
    """A run of two tasks that share an adapter."""
    mood, topic = Sentiment(labels=LABELS), Classification(labels=["a", "b", "c"])
    run = random_run(mood, "llama", Lora(rank=2), seed=9)
    folder = tmp_path / "both"
    folder.mkdir()
    heads = {"mood": (mood, run.head), "topic": (topic, topic.head(run.backbone))}
    saved_model.save_model(folder, run.backbone, heads, Lora(rank=2))
    values: dict[str, Any] = dict(read_config(run.folder))
    import yaml

    for name, (task, _) in heads.items():
        from gptask import Config
        from gptask.plugins.discovery import plugin_of

        (folder / name).mkdir()
        options = run.backbone.origin.location
        config = Config(task=task, backbone=Pretrained(source=options), tuning=Lora(rank=2))
        write_config(folder / name, config, plugin_of(task), task_name=name)
        seal(folder / name)
    common = {key: values[key] for key in ("format", "backbone", "tuning")}
    tasks = {name: {"task": {}} for name in heads}
    (folder / "config.yaml").write_text(yaml.safe_dump(common | {"tasks": tasks}))
    return seal(folder)


def test_a_run_of_several_tasks_gives_a_name_for_each(served, multitask):
    registry = served(multitask)
    assert list(registry.models)[:2] == ["both.mood", "both.topic"]
    assert len(adapters(registry)) == 1
    assert registry.get("both.topic").description()["labels"] == ["a", "b", "c"]
    assert next(iter(served(multitask / "mood").models)) == "mood"  # one of its tasks alone


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: shutil.rmtree(folder), "no run folder at"),
        (lambda folder: (folder / "manifest.json").unlink(), "is unfinished, it has no manifest.json"),
        (lambda folder: (shutil.rmtree(folder / "model"), seal(folder)), "holds no model: it is an evaluation"),
        (lambda folder: (folder / "manifest.json").write_text('{"format": 2}'), "has run format 2; gptask"),
        (lambda folder: (folder / "model/head.safetensors").unlink(), "is damaged, by its manifest.json: model/head"),
    ],
)
def test_a_folder_without_a_finished_run_is_an_error_if_named_and_else_left_out(
    spoil, message, served, folders, tmp_path, caplog
):
    caplog.set_level(logging.INFO, "gptask")
    shutil.copytree(folders["new"], tmp_path / "task" / "good")
    folder = Path(shutil.copytree(folders["old"], tmp_path / "bad"))
    spoil(folder)
    with pytest.raises(UserError, match=message):
        served(folder)
    caplog.clear()
    registry = served(runs_root=str(tmp_path))
    look(registry, 4)
    assert "good" in registry.models
    assert "bad" not in registry.models
    assert caplog.text.count("bad: not served") == (1 if folder.is_dir() else 0)


# --- backbones ----------------------------------------------------------------------------------------------------


def test_a_second_backbone_is_refused_with_its_megabytes_and_allowed_by_memory(served, folders, monkeypatch):
    monkeypatch.setattr(backbone_pool, "megabytes", lambda size: -(-size // 1024))  # these models are tiny
    runs = [f"mood:{folders['old']}", f"other:{folders['other']}", f"other2:{folders['other2']}"]
    registry = served(*runs, memory_mb=1000)
    first, second = registry.pool.backbones.values()
    assert registry.get("other").backbone.engine is registry.get("other2").backbone.engine is second.backbone.engine
    assert list(registry.models) == ["mood", "other", "other2", first.name, second.name]
    one, two, both = (-(-size // 1024) for size in (first.bytes, second.bytes, first.bytes + second.bytes))
    assert len(served(*runs, memory_mb=both).pool.backbones) == 2
    refusal = f"run.* is on another backbone, {second.name}, and can't share {first.name}: a further backbone takes "
    with pytest.raises(UserError, match=f"{refusal}{two} MB of weights. Allow it by memory_mb={both} "):
        served(*runs)
    refusal = f"{second.name}: its weights take {two} MB beside {one} MB of others, and memory_mb={both - 1} allows"
    with pytest.raises(UserError, match=refusal):
        served(*runs, memory_mb=both - 1)
    with pytest.raises(UserError, match=rf"take {one} MB beside 0 MB of others, and memory_mb={one - 1} allows less"):
        served(runs[0], memory_mb=one - 1)


@pytest.mark.parametrize("name", ["full", pytest.param("scratch", marks=pytest.mark.long)])
def test_full_weights_are_a_backbone_of_their_own(name, served, folders):
    assert list(served(f"own:{folders[name]}").models) == ["own"]
    with pytest.raises(UserError, match=r"has weights of its own, and can't share llama\d: a further backbone takes"):
        served(f"own:{folders[name]}", f"mood:{folders['old']}")  # the run with an adapter decides, though it is later
    registry = served(f"own:{folders[name]}", f"again:{folders[name]}", f"mood:{folders['old']}", memory_mb=2)
    assert registry.get("own").backbone.engine is registry.get("again").backbone.engine
    assert len(registry.pool.backbones) == 2


def test_a_run_that_was_trained_with_another_tokenizer_keeps_it(served, folders, tmp_path):
    folder = Path(shutil.copytree(folders["old"], tmp_path / "a"))
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    tokenizer.chat_template = "{{ messages[0].content }}"
    tokenizer.save_pretrained(folder / "model")
    seal(folder)
    registry = served(f"mood:{folders['old']}", f"topic:{folders['topic']}", folder)
    templates = [model.description()["chat_template"] for model in registry.models.values()]
    assert templates == [False, False, True, False]
    mood, topic, changed, bare = (model.backbone.tokenizer for model in registry.models.values())
    assert mood is topic is bare is not changed
    tokenizer.eos_token = "a"
    tokenizer.save_pretrained(folder / "model")
    seal(folder)
    with pytest.raises(UserError, match="has other tokens than that of the backbone"):
        served(f"mood:{folders['old']}", folder)


def test_a_run_in_another_number_format_computes_in_that_of_the_first(served, folders, random_run, caplog):
    caplog.set_level(logging.INFO, "gptask")
    other = random_run(Sentiment(labels=LABELS), "llama", HeadOnly(), dtype="bfloat16").folder
    registry = served(f"mood:{folders['old']}", f"other:{other}")
    assert "predicts in float32, the format of the shared backbone; alone it would in bfloat16" in caplog.text
    expected = next(load_run(other, dtype=DType.float32).predict(TEXT)).probabilities
    assert probabilities(registry, "other") == pytest.approx(list(expected.values()), abs=1e-5)


def test_runs_on_a_backbone_in_int4_predict_and_write_as_each_alone_in_int4(served, folders, needs_int4, caplog):
    caplog.set_level(logging.INFO, "gptask")
    registry = served(folders["old"], folders["new"], dtype=DType.int4)
    (pooled,) = registry.pool.backbones.values()
    weights = sum(parameter.numel() for name, parameter in pooled.backbone.named_parameters() if "lora_" not in name)
    assert pooled.backbone.weight_format == "int4"
    assert pooled.bytes == 2 * weights + pooled.backbone.int4.nbytes
    assert pooled.bytes <= backbone_pool.weight_bytes(Path(pooled.backbone.origin.location), torch.bfloat16, True)
    assert "MB of weights in int4; engine: fast, with" in caplog.text
    names = [folders[name].name for name in ("old", "new")]
    options, prompt = GenerationOptions(), [7, 3, 90, 41, 12]
    rows = [DecodingRow(prompt, 6, options, registry.get(name).backbone.adapter) for name in names]
    assert len({row.adapter for row in rows}) == 2
    pooled.backbone.engine.decode(rows)
    for name, row, folder in zip(names, rows, (folders["old"], folders["new"]), strict=True):
        alone = load_run(folder, dtype=DType.int4)
        assert probabilities(registry, name) == pytest.approx(
            list(next(alone.predict(TEXT)).probabilities.values()), abs=0.02
        )
        own_row = DecodingRow(prompt, 6, options)
        alone.backbone.engine.decode([own_row])
        assert own_row.log_probabilities[0] == pytest.approx(row.log_probabilities[0], abs=0.15)


def test_a_bare_backbone_is_served_in_int4(served, tiny_model, needs_int4):
    registry = served(backbone=Pretrained(source=str(tiny_model("llama", 128))), dtype=DType.int4)
    (model,) = registry.models.values()
    assert model.backbone.weight_format == "int4"


def test_full_weights_stay_as_they_were_loaded_when_their_file_is_written_over(served, folders, tmp_path):
    folder = Path(shutil.copytree(folders["full"], tmp_path / "own"))
    registry = served(folder)
    model = registry.get("own")
    before = outputs_of(registry.batcher, model)
    file = folder / "model" / "model.safetensors"
    with file.open("r+b") as stream:
        stream.seek(file.stat().st_size // 2)
        stream.write(b"\0" * (file.stat().st_size // 2))
    model.backbone.engine.drop_inference_weights()  # what was made of them
    assert outputs_of(registry.batcher, model) == before


def test_later_runs_that_need_another_backbone_are_left_out(served, folders, tmp_path, caplog):
    registry = served(f"mood:{folders['old']}", runs_root=str(tmp_path))
    shutil.copytree(folders["other"], tmp_path / "other")
    look(registry, 4)
    assert "other" not in registry.models
    assert caplog.text.count("other: not served") == 1
    assert len(registry.pool.backbones) == 1


def two_at_most(pool: backbone_pool.BackbonePool, needed: int, why: str) -> None:
    if len(pool.backbones) == 2:
        raise UserError(f"{why}: no memory")


def test_a_backbone_goes_with_the_last_run_on_it(served, folders, tmp_path, monkeypatch):
    monkeypatch.setattr(backbone_pool.BackbonePool, "_require_memory", two_at_most)
    folder = Path(shutil.copytree(folders["other"], tmp_path / "other"))
    registry = served(f"mood:{folders['old']}", runs_root=str(tmp_path))
    assert len(registry.pool.backbones) == 2
    shutil.copytree(folders["full"], tmp_path / "full")  # has no memory beside it
    look(registry, 3)
    assert "full" not in registry.models
    model = registry.get("other")
    row = DecodingRow([1, 2], 2, GenerationOptions(), model.digest)  # leaves its keys and values
    engine, work = weakref.ref(model.backbone.engine), WritingWork(model, [row])
    weight = weakref.ref(model.backbone.model.get_input_embeddings().weight)
    registry.batcher.submit(work)
    work.future.result(30)
    del model, work
    shutil.rmtree(folder)
    look(registry, LOOKS_UNTIL_GONE + 2)
    gc.collect()
    assert engine() is None
    assert weight() is None
    assert {*registry.models} == {"mood", "full", next(iter(registry.pool.backbones.values())).name}


# --- folders that come, change and go -----------------------------------------------------------------------------


def test_a_run_put_into_the_root_is_served_once_it_is_complete(served, folders, tmp_path):
    registry = served(runs_root=str(tmp_path))
    assert registry.models == {}
    target = tmp_path / "sentiment" / "late"
    shutil.copytree(folders["old"], target, ignore=shutil.ignore_patterns("adapter_model.safetensors"))
    look(registry)
    assert registry.models == {}  # the copy has its manifest already
    file = "model/adapter_model.safetensors"
    shutil.copyfile(folders["old"] / file, target / file)
    look(registry, 1)
    assert registry.models == {}  # it may still be written
    look(registry, 1)
    assert "late" in registry.models
    shutil.rmtree(target)
    look(registry, LOOKS_UNTIL_GONE - 1)
    assert "late" in registry.models
    look(registry, 1)
    assert "late" not in registry.models


def test_a_name_that_is_taken_waits_until_it_is_free(served, folders, tmp_path, caplog):
    registry = served(runs_root=str(tmp_path))
    first = Path(shutil.copytree(folders["old"], tmp_path / "x" / "a"))
    look(registry)
    model = registry.get("a")
    shutil.copytree(folders["new"], tmp_path / "y" / "a")
    look(registry, 3)
    assert registry.get("a") is model
    assert caplog.text.count("the name a is another run's") == 1
    shutil.rmtree(first)
    look(registry, LOOKS_UNTIL_GONE + 2)
    assert registry.get("a").digest != model.digest


def test_what_is_served_stays_where_the_root_can_not_be_read(served, folders, tmp_path, caplog):
    root = tmp_path / "root"
    shutil.copytree(folders["old"], root / "a")
    registry = served(runs_root=str(root))
    root.rename(tmp_path / "away")
    look(registry, LOOKS_UNTIL_GONE + 1)
    assert "a" in registry.models
    assert caplog.text.count("No such file or directory: its runs stay served") == 1
    with pytest.raises(UserError, match=r"^runs_root=.*: No such file or directory"):
        served(runs_root=str(root))


def test_a_named_run_stays_when_its_folder_goes_and_a_new_one_takes_its_place(served, folders, tmp_path, caplog):
    folder = Path(shutil.copytree(folders["old"], tmp_path / "a"))
    registry = served(folder)
    model = registry.get("a")
    shutil.rmtree(folder)
    look(registry, LOOKS_UNTIL_GONE + 2)
    assert registry.get("a") is model
    assert caplog.text.count("is gone") == 1
    shutil.copytree(folders["new"], folder)
    look(registry)
    assert registry.get("a").digest != model.digest


def test_a_run_is_served_as_soon_as_it_is_loaded_and_before_the_log_says_so(
    served, folders, tmp_path, monkeypatch, caplog
):
    caplog.set_level(logging.INFO, "gptask")
    registry = served(runs_root=str(tmp_path))
    for name in ("a", "b"):
        shutil.copytree(folders["old"], tmp_path / name)
    seen = []

    def note(batcher: Batcher, model: Any) -> None:
        seen.append((model.name, [*registry.models], "a: served from now on" in caplog.text))

    monkeypatch.setattr(run_registry, "warm_up", note)
    look(registry)
    assert seen[0] == ("a", [], False)
    assert ("b", ["a", registry.get("a").backbone_name], True) in seen


@pytest.mark.parametrize("error", [SystemExit(0), ValueError("oops")])
def test_a_plugin_that_fails_while_it_is_loaded_leaves_the_rest_as_it_is(error, served, folders, tmp_path, monkeypatch):
    folder = Path(shutil.copytree(folders["old"], tmp_path / "a"))
    registry = served(folder)
    model = registry.get("a")

    def head(task: object, backbone: object) -> None:
        raise error

    monkeypatch.setattr(Sentiment, "head", head)
    replace(folder, folders["new"])
    shutil.copytree(folders["topic"], tmp_path / "topic")
    look(registry, 3)
    assert registry.get("a") is model
    assert next(iter(served(runs_root=str(tmp_path)).models)) == "topic"
    with pytest.raises((RuntimeError, ValueError), match=r"oops|a can't be loaded: SystemExit: 0"):
        served(folder)


def test_a_disk_that_fails_for_a_moment_hides_no_other_run_and_is_tried_again(served, folders, tmp_path, monkeypatch):
    for name in ("a", "b"):
        shutil.copytree(folders["old"], tmp_path / name)
    registry = served(runs_root=str(tmp_path))
    before = {name: registry.get(name).digest for name in ("a", "b")}
    for name in ("a", "b"):
        replace(tmp_path / name, folders["new"])
    digest = run_registry.manifest_digest

    def fail(folder: Path) -> str:
        if folder.name == "a":
            raise OSError(24, "Too many open files")
        return digest(folder)

    monkeypatch.setattr(run_registry, "manifest_digest", fail)
    look(registry, 3)
    assert registry.get("a").digest == before["a"]
    assert registry.get("b").digest != before["b"]
    monkeypatch.setattr(run_registry, "manifest_digest", digest)
    look(registry, 1)
    assert registry.get("a").digest == registry.get("b").digest


def test_loads_failures_and_adapters_are_counted(served, folders, tmp_path):
    registry = served(f"mood:{folders['old']}", runs_root=str(tmp_path))

    def value(name: str, **labels: str) -> float:
        return registry.batcher.metrics.registry.get_sample_value(f"gptask_{name}", labels) or 0

    counts = [value("model_loads_total", outcome=outcome) for outcome in ("loaded", "failed")]
    assert value("adapters_loaded") == 1
    shutil.copytree(folders["tags"], tmp_path / "tags")
    shutil.copytree(folders["other"], tmp_path / "other")
    look(registry, 4)
    assert value("adapters_loaded") == 2
    assert [value("model_loads_total", outcome=outcome) for outcome in ("loaded", "failed")] == [
        counts[0] + 1,
        counts[1] + 1,
    ]


def moved(folder: Path, new: Path) -> None:
    replace(folder, new)


def rewritten(folder: Path, new: Path) -> None:
    """Overwrite every file in place, manifest last, and give all of them their old times back."""
    names = [*read_manifest(new).files, "manifest.json"]
    for name in names:
        old = (folder / name).stat()
        content = (new / name).read_bytes()
        with (folder / name).open("r+b") as stream:  # the same inode
            stream.write(content)
            stream.truncate()
        os.utime(folder / name, ns=(old.st_atime_ns, old.st_mtime_ns))
        assert (folder / name).stat().st_size == old.st_size == len(content)


@pytest.mark.parametrize("how", [moved, rewritten])
def test_a_run_that_is_replaced_in_place_answers_anew_and_work_on_the_old_one_ends_with_it(
    how, served, folders, tmp_path
):
    folder = Path(shutil.copytree(folders["old"], tmp_path / "a"))
    registry = served(folder, f"new:{folders['new']}")
    before, expected = probabilities(registry, "a"), probabilities(registry, "new")
    assert before != pytest.approx(expected, abs=0.01)
    held, old = registry.get("a"), registry.get("a").digest
    how(folder, folders["new"])
    assert probabilities(registry, "a") == before  # nobody has noticed yet
    look(registry)
    assert probabilities(registry, "a") == pytest.approx(expected, abs=1e-6)
    assert registry.get("a").digest == registry.get("new").digest != old
    look(registry)
    assert adapters(registry) == {old, registry.get("new").digest}
    assert outputs_of(registry.batcher, held) == pytest.approx(before, abs=1e-6)
    del held
    look(registry, 1)
    assert adapters(registry) == {registry.get("new").digest}


def test_the_weights_of_a_replaced_run_are_freed_at_once(served, folders, tmp_path):
    folder = Path(shutil.copytree(folders["old"], tmp_path / "a"))
    registry = served(folder, f"tags:{folders['tags']}")
    backbone, digest = registry.get("a").backbone, registry.get("a").digest
    weights = [weakref.ref(weight) for name, weight in backbone.peft.named_parameters() if f".{digest}." in name]
    del backbone
    gc.disable()
    try:
        replace(folder, folders["new"])
        look(registry, 3)
        assert digest not in adapters(registry)
        assert [weight for weight in weights if weight() is not None] == []
    finally:
        gc.enable()


def test_an_adapter_of_two_names_stays_until_both_are_gone(served, folders, tmp_path):
    for name in ("a", "b"):
        shutil.copytree(folders["old"], tmp_path / name)
    registry = served(runs_root=str(tmp_path))
    digest = registry.get("a").digest
    assert adapters(registry) == {digest}
    for name, left in (("a", {digest}), ("b", set())):
        shutil.rmtree(tmp_path / name)
        look(registry, LOOKS_UNTIL_GONE + 1)
        assert adapters(registry) == left
    assert len(registry.models) == 1  # the bare backbone


def test_a_backbone_can_be_asked_while_an_adapter_is_removed(served, folders):
    registry = served(f"mood:{folders['old']}", f"tags:{folders['tags']}")
    backbone = registry.get("tags").backbone
    before, peft = (backbone.context, backbone.device, backbone.stop_ids), backbone.peft
    removed = peft.peft_config.pop(peft.active_adapter)  # the first of the two changes that PEFT's names go through
    assert (backbone.context, backbone.device, backbone.stop_ids) == before
    peft.peft_config[peft.active_adapter] = removed


def test_a_damaged_replacement_leaves_the_old_run_and_is_tried_again_when_it_changes(served, folders, tmp_path, caplog):
    folder = Path(shutil.copytree(folders["old"], tmp_path / "a"))
    registry = served(folder)
    model, (failed, loaded) = registry.get("a"), counts_of_loads(registry)
    replace(folder, folders["new"])
    head = folder / "model" / "head.safetensors"
    content = head.read_bytes()
    head.write_bytes(content[:-4] + b"oops")
    look(registry, 5)
    assert registry.get("a") is model
    assert caplog.text.count("a: still served as it was: ") == 1
    assert "head.safetensors has other content" in caplog.text
    assert len(adapters(registry)) == 1
    assert counts_of_loads(registry) == [failed + 1, loaded]
    head.write_bytes(content)
    look(registry)
    assert registry.get("a").digest != model.digest
    assert counts_of_loads(registry) == [failed + 1, loaded + 1]


def test_a_replacement_that_does_not_fit_leaves_no_adapter_behind(served, folders, tmp_path, caplog):
    folder = Path(shutil.copytree(folders["old"], tmp_path / "a"))
    registry = served(folder)
    model = registry.get("a")
    replace(folder, folders["new"])
    file = folder / "model" / "head.safetensors"
    save_file({name: torch.zeros(7, 7) for name in load_file(file)}, file)  # hashes are right
    seal(folder)
    look(registry, 3)
    assert registry.get("a") is model
    assert "does not fit the task" in caplog.text
    assert adapters(registry) == {model.digest}


def test_a_folder_that_is_written_while_it_is_read_is_read_again(served, folders, tmp_path, monkeypatch):
    folder = Path(shutil.copytree(folders["old"], tmp_path / "a"))
    registry = served(folder)
    model = registry.get("a")
    replace(folder, folders["new"])
    warm_up = run_registry.warm_up

    def rewrite_meanwhile(batcher: Batcher, model: Any) -> None:
        monkeypatch.setattr(run_registry, "warm_up", warm_up)
        replace(folder, folders["tags"])

    monkeypatch.setattr(run_registry, "warm_up", rewrite_meanwhile)
    look(registry)
    assert registry.get("a") is model
    look(registry)
    assert registry.get("a").description()["task"] == "token_tagging"
    look(registry)
    assert adapters(registry) == {model.digest, registry.get("a").digest}


def test_a_copy_of_the_same_run_is_not_loaded_again(served, folders, tmp_path):
    folder = Path(shutil.copytree(folders["old"], tmp_path / "a"))
    registry = served(folder)
    model = registry.get("a")
    replace(folder, folders["old"])
    os.utime(folder / "manifest.json")
    look(registry, 3)
    assert registry.get("a") is model


def test_under_load_every_answer_is_the_old_or_the_new_one_and_the_new_one_from_then_on(
    served, folders, tmp_path, monkeypatch
):
    monkeypatch.setattr(run_registry, "POLL_SECONDS", 0.01)
    folder = Path(shutil.copytree(folders["old"], tmp_path / "a"))
    registry = served(folder, f"old:{folders['old']}", f"new:{folders['new']}", f"tags:{folders['tags']}")
    expected = {name: probabilities(registry, name) for name in ("old", "new")}
    stop, wrong = threading.Event(), list[Any]()
    answers = {"old": 0, "new": 0}

    def ask() -> None:
        while not stop.is_set():
            newest = current  # announced before the request
            answer = probabilities(registry, "a")
            names = [name for name, right in expected.items() if answer == pytest.approx(right, abs=1e-6)]
            if len(names) != 1 or (newest and newest != names[0]):
                wrong.append((newest, answer))
            answers[names[0]] += 1

    current = ""  # what is certain at this time
    clients = [threading.Thread(target=ask) for _ in range(3)]
    for client in clients:
        client.start()
    registry.watch()
    for name in ("new", "old", "new"):
        before, current = registry.get("a"), ""
        replace(folder, folders[name])
        deadline = time.monotonic() + 30
        while registry.get("a") is before and time.monotonic() < deadline:
            time.sleep(0.005)
        current = name
        reached = answers[name] + 5
        while answers[name] < reached and not wrong and time.monotonic() < deadline:
            time.sleep(0.005)
    stop.set()
    for client in clients:
        client.join(30)
    registry.close()
    assert wrong == []
    assert answers["old"] > 5 <= answers["new"]
    look(registry)
    assert adapters(registry) == {registry.get(name).digest for name in ("old", "new", "tags")}


def test_before_all_is_loaded_a_request_is_told_to_try_again(batcher, folders):
    registry = RunRegistry(Serve(runs=[f"a:{folders['old']}"]), batcher)
    registry.loading = True
    with pytest.raises(StillLoading, match="still loading its models"):
        registry.get("a")
