"""Pruned runs: which layers go, what a run starts from, and that every verb takes it."""

import json
import re

import pytest
import torch
from gptask import Full, HeadOnly, Lora, Pretrained, UserError, load_run
from gptask.analysis.compress import prune
from gptask.analysis.compress.prune import Pruning, block_influence
from gptask.config.compression import Compress, CompressionMethod
from gptask.config.conversion import from_plain
from gptask.config.engine import Fast, Reference
from gptask.config.schemas import DType, Evaluate, Export
from gptask.data.datamodule import collate
from gptask.model.backbone.backbone import load_or_build_backbone
from gptask.runs.export import export
from gptask.runs.manifest import manifest_digest, read_manifest
from gptask.runs.run import load_run_onto
from gptask.runs.saved_model import locate_backbone
from gptask.serving.models.backbone_pool import BackbonePool
from gptask.training import builder
from gptask.training.evaluate import evaluate
from gptask.training.train import build_module
from gptask_tasks.classification import Classification
from gptask_tasks.sentiment import Sentiment
from gptask_tasks.translation import Translation

from tests.support.configs import small_config

LABELS = ["negative", "neutral", "positive"]
TEXTS = ["good", "the quick brown fox jumps over the lazy dog", "bad film", "这部电影很好"]


def pruning(folder, keep, tuning=None):
    """What `gptask compress` makes of a run folder and ``keep=``."""
    tuning = tuning or Lora(rank=2)
    return Pruning(
        Compress(task=Sentiment(), run=str(folder), method=CompressionMethod.prune, keep=keep, tuning=tuning)
    )


def probabilities(run):
    return torch.tensor([list(p.probabilities.values()) for p in run.predict(TEXTS)])


# --- which layers -----------------------------------------------------------------------------------------------------


def test_the_influence_of_a_layer_is_how_much_it_turns_the_states_of_real_tokens(backbone_of):
    backbone = backbone_of("llama", layers=3)
    backbone.use_engine(Reference())
    for projection in (backbone.layers[1].self_attn.o_proj, backbone.layers[1].mlp.down_proj):
        projection.weight.data.zero_()
    items = [{"ids": [5, 6, 7], "target": None, "label": 0, "extra": None}, {"ids": [*range(5, 14)], "target": None}]
    batches = [collate([items[0], items[1] | {"label": 1, "extra": None}])]
    ids_BT, lengths = batches[0].input_ids, batches[0].lengths
    influence = block_influence(backbone, batches)
    states = backbone.model(ids_BT, output_hidden_states=True).hidden_states  # the last ones are behind the norm
    real = torch.arange(ids_BT.shape[1]) < lengths[:, None]
    expected = [1 - torch.cosine_similarity(states[n][real], states[n + 1][real], dim=-1).mean() for n in (0, 1)]
    torch.testing.assert_close(torch.tensor(influence[:2]), torch.stack(expected), atol=1e-5, rtol=1e-4)
    assert influence[1] == pytest.approx(0, abs=1e-6)
    assert min(influence[0], influence[2]) > 0.01


def test_only_a_sample_of_the_training_data_is_measured(backbone_of, monkeypatch):
    monkeypatch.setattr(prune, "SAMPLE_TOKENS", 10)
    batch = collate([{"ids": [5, 6, 7, 8], "target": None, "label": 0, "extra": None}])

    def batches():
        yield from [batch] * 3
        raise AssertionError("12 of 10 tokens are measured")

    assert len(block_influence(backbone_of("gpt2"), batches())) == 2


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (None, r"method=prune needs keep=<how many layers stay>, or keep=\[...\] .*: .* has 4 layers, 0 to 3"),
        ([], r"keep=\[\]: expected keep=<how many"),
        ("two", "keep=two: expected keep=<how many"),
        (2.5, "keep=2.5: expected"),
        ([0, True], "expected keep=<how many"),
        ([0, 4], r"keep=\[0, 4\]: there is no layer 4: .* has 4 layers, 0 to 3"),
        ([-1, 2], "there is no layer -1"),
        ([1, 1, 2], r"keep=\[1, 1, 2\] names a layer twice"),
        (0, "keep=0: expected 1 to 3 layers"),
        (5, "keep=5: expected 1 to 3 layers"),
        (4, "keep=4 keeps all layers, so there is nothing to prune: .* has 4 layers"),
        ([3, 1, 0, 2], "keeps all layers"),
    ],
)
def test_layers_that_can_not_be_kept_are_refused(keep, message, parent):
    with pytest.raises(UserError, match=message):
        pruning(parent, keep)


@pytest.mark.parametrize(
    ("tuning", "message"),
    [
        (Full(), "method=prune heals the layers that stay by tuning=lora. .* gptask train backbone.source=.*"),
        (Lora(rank=2, layers=0.5), "tuning.layers=0.5: keep= says which layers stay"),
        (Lora(rank=4), "tuning.rank=4: healing goes on with the adapter of .*, which has 2; leave this out"),
        (Lora(rank=2, alpha=16), "tuning.alpha=16: healing goes on"),
        (Lora(rank=2, target_modules=["q_proj"]), r"tuning.target_modules=\['q_proj'\]: healing goes on"),
    ],
)
def test_a_tuning_that_the_adapter_can_not_go_on_in_is_refused(tuning, message, parent):
    with pytest.raises(UserError, match=message):
        pruning(parent, 2, tuning)


@pytest.mark.parametrize(
    ("keep", "top", "expected"),
    [([0, 3], 0.75, 0.5), ([1, 3], 0.75, 1.0), ([0, 1, 2], 0.75, 2 / 3), ([0], 0.75, 1.0), ([0, 3], 1.0, 1.0)],
)
def test_layers_that_have_an_adapter_keep_it(keep, top, expected, parent):
    assert pruning(parent, keep)._adapted_share(Lora(rank=2, top=top), keep) == pytest.approx(expected)


def test_fewer_adapted_layers_than_the_parent_has_are_refused(parent):
    with pytest.raises(UserError, match=r"tuning.top=0.3: 2 of the 2 layers that stay .* set tuning.top=1 or more"):
        pruning(parent, [1, 3])._adapted_share(Lora(rank=2, top=0.3), [1, 3])


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("backbone.keep=[0]", r"backbone.keep=\[0\]: the option that says which layers stay is keep="),
        ("backbone.source={other}", "method=prune goes on with the backbone of .*; leave backbone= out"),
    ],
)
def test_another_backbone_is_refused(option, message, parent, compressed, tiny_model, tmp_path):
    ended = compressed(parent, "keep=[0,3]", option.format(other=tiny_model("llama", 128, seed=1, layers=4)))
    assert (ended.code, bool(re.search(message, ended.err))) == (2, True), ended.err
    assert not (tmp_path / "small").exists()


# --- what a run starts from -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "tuning"),
    [
        ("llama", Lora(rank=2, top=0.5)),
        *(
            pytest.param(family, tuning, marks=pytest.mark.long)
            for family in ("gpt2", "qwen3", "gemma3")
            for tuning in (Lora(rank=2), Lora(rank=2, layers=0.75), HeadOnly(), Full())
        ),
    ],
)
def test_it_starts_as_the_parent_without_the_layers(family, tuning, random_run, tmp_path):
    run = random_run(Sentiment(labels=LABELS), family, tuning, layers=4)
    expected = load_run(run.folder)
    options = Pretrained(source=run.config["backbone"]["source"], dtype=DType.float32)
    if isinstance(tuning, Full):
        options = Pretrained(source=str(run.folder), dtype=DType.float32)
    top = run.config["tuning"].get("top")
    lora = Lora(rank=2, top=top) if isinstance(tuning, Lora) else Lora(rank=2, top=1.0)
    config = small_config(tmp_path, task=Sentiment(labels=LABELS), backbone=options, tuning=lora)
    variation = pruning(run.folder, [0, 2], lora)
    variation.values["tuning"]["top"] = top = top or 1.0  # as a training resolves it
    module, _, config = build_module(config, builder.build_corpora(config), variation)
    assert config.backbone.keep == module.backbone.layer_numbers == [0, 2]
    if isinstance(tuning, Lora):
        expected.backbone.set_model(expected.backbone.peft.merge_and_unload())
    expected.backbone.keep_layers([0, 2])
    ids_BT = torch.tensor([[5, 6, 7, 8, 9], [9, 8, 7, 6, 5]])
    module.eval()
    with torch.inference_mode():
        states_BTC = expected.backbone.hidden(ids_BT)
        torch.testing.assert_close(module.backbone.hidden(ids_BT), states_BTC, atol=1e-5, rtol=1e-4)
        batch = collate([{"ids": ids, "target": None, "label": 0, "extra": None} for ids in ids_BT.tolist()])
        assert module.runtimes[0].head.predict(states_BTC, batch) == expected.head.predict(states_BTC, batch)


# --- what it is afterwards --------------------------------------------------------------------------------------------


def test_a_pruned_run_is_one_that_every_verb_takes(parent, compressed, tmp_path):
    ended = compressed(parent, "keep=2")
    assert ended.code == 0, ended.err
    small = tmp_path / "small"
    run, manifest = load_run(small), read_manifest(small)
    layers = json.loads((small / "model/backbone.json").read_text())["layers"]
    assert (len(layers), run.backbone.layer_numbers) == (2, layers)
    assert (manifest.method, manifest.parent) == ("prune", {"folder": str(parent), "manifest": manifest_digest(parent)})
    assert f"backbone.keep  [{layers[0]}, {layers[1]}]" in ended.err
    # predict: what the test wrote
    rows = [json.loads(line) for line in (small / "predictions.jsonl").read_text().splitlines()]
    predictions = [*run.predict([{"text": row["text"]} for row in rows])]
    for row, prediction in zip(rows, predictions, strict=True):
        assert prediction.probabilities == pytest.approx(row["probabilities"], abs=1e-4)
    # evaluate
    metrics = json.loads((small / "metrics.json").read_text())
    data = from_plain("data", run.config["data"])
    options = {"run": str(small), "baseline": False, "outputs": str(tmp_path / "evaluations")}
    evaluated = evaluate(Evaluate(task=run.task, data=data, **options))
    assert json.loads((evaluated / "metrics.json").read_text())["metrics"] == metrics["metrics"]
    # against the parent
    against = metrics["against_parent"]
    assert against["metrics"]["accuracy"]["run"] == pytest.approx(metrics["metrics"]["accuracy"]["value"], abs=1e-3)
    assert against["export_mb"]["run"] < against["export_mb"]["parent"]
    card = (small / "README.md").read_text()
    assert f"It is the run `{parent}` made smaller by `method=prune`." in card
    assert against["conclusion"] in card.replace("\\", "")
    assert manifest_digest(parent) in card
    # as a backbone of a further training
    origin = locate_backbone(Pretrained(source=str(small)))
    backbone = load_or_build_backbone(Pretrained(source=str(small), dtype=DType.float32), origin, list)
    ids_BT = torch.tensor([[5, 6, 7, 8]])
    torch.testing.assert_close(backbone.hidden(ids_BT), run.backbone.hidden(ids_BT), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("family", "keep"),
    [
        ("gemma3", [1, 2]),
        *(
            pytest.param(family, keep, marks=pytest.mark.long)
            for family in ("gpt2", "llama", "qwen2")
            for keep in ([0, 3], [0, 1])
        ),
    ],
)
def test_an_export_is_a_plain_folder_of_fewer_layers(family, keep, random_run, tmp_path):
    import transformers

    run = random_run(Sentiment(labels=LABELS), family, Lora(rank=2), layers=4, keep=keep)
    loaded = load_run(run.folder)
    assert loaded.backbone.layer_numbers == keep
    expected = probabilities(loaded)
    torch.testing.assert_close(expected, probabilities(run))
    folder = export(Export(run=str(run.folder), output=str(tmp_path / "out")))
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    assert model.config.num_hidden_layers == 2
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.S)
    names = {"prompts": [run.task.render({"text": text, "label": None})[0] for text in TEXTS]}
    exec(code, names)
    torch.testing.assert_close(names["probabilities"], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.long
def test_a_pruned_run_that_writes_texts_writes_those_of_its_export(random_run, tmp_path):
    task = Translation(prompt="Say in French: {source}")
    task.generation.max_new_tokens = 8
    run = random_run(task, "gemma3", Lora(rank=2), layers=4, keep=[0, 3])
    sources = ["good", "the lazy dog", "is it"]
    expected = [p.value for p in load_run(run.folder).predict({"source": source} for source in sources)]
    folder = export(Export(run=str(run.folder), output=str(tmp_path / "out")))
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.S)
    names = {"prompts": [f"Say in French: {source}" for source in sources]}
    exec(code, names)
    assert [text.strip() for text in names["texts"]] == expected
    with pytest.raises(UserError, match="it belongs to 2 of the backbone's 4 layers"):
        export(Export(run=str(run.folder), output=str(tmp_path / "adapter"), adapter=True))


def test_runs_of_other_layers_never_share_a_backbone_in_memory(random_run):
    task = Classification(labels=["a", "b", "c"])
    first = random_run(task, "llama", Lora(rank=2), layers=4, keep=[0, 1])
    others = random_run(task, "llama", Lora(rank=2), layers=4, keep=[0, 3])
    head_only = random_run(task, "llama", HeadOnly(), layers=4, keep=[0, 3])
    options = Pretrained(source=first.config["backbone"]["source"], dtype=DType.float32)
    whole = load_or_build_backbone(options, locate_backbone(options), list)
    torch.testing.assert_close(probabilities(load_run_onto(whole, first.folder)), probabilities(first))
    for run in (others, head_only):
        with pytest.raises(UserError, match="can't share the backbone"):
            load_run_onto(whole, run.folder)
    own = load_run(head_only.folder).backbone
    torch.testing.assert_close(probabilities(load_run_onto(own, others.folder)), probabilities(others))
    torch.testing.assert_close(probabilities(load_run_onto(own, head_only.folder)), probabilities(head_only))
    assert own.origin.weights_hash != whole.origin.weights_hash


def test_a_server_gives_a_run_of_other_layers_a_backbone_of_its_own(random_run):
    task = Classification(labels=["a", "b", "c"])
    first, others, alike = (
        random_run(task, "llama", tuning, layers=4, keep=keep)
        for tuning, keep in ((Lora(rank=2), [0, 1]), (Lora(rank=2), [0, 3]), (HeadOnly(), [0, 3]))
    )
    pool = BackbonePool(Fast(), None, 1000, lambda call: call(), lambda engine: None)
    whole = pool.add_bare(Pretrained(source=first.config["backbone"]["source"], dtype=DType.float32))
    pooled = [pool.backbone_of_run(run.folder, run.folder / "model", run.config) for run in (first, others, alike)]
    assert pooled[0] is whole
    assert pooled[1] is pooled[2] is not whole
    for run, backbone in zip((first, others, alike), pooled, strict=True):
        torch.testing.assert_close(probabilities(pool.load_run(backbone, run.folder)), probabilities(run))
