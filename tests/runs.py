"""Fixtures that write run folders as `train` leaves them, made of answers instead of a training."""

import json
from dataclasses import replace

import numpy as np
import pytest
from gptask import Config
from gptask.config.schemas import Sample
from gptask.plugins.discovery import plugin_of
from gptask.plugins.metric import score_all
from gptask.plugins.types import Prediction
from gptask.runs.config_file import write_config
from gptask.runs.predictions_file import write_predictions
from gptask_tasks.sentiment import Sentiment
from gptask_tasks.translation import Translation

LABELS = ["negative", "positive"]


@pytest.fixture
def write(tmp_path):
    """``write("a", task, examples, predictions, seed=1)``: the run folder outputs/<task>/a."""

    def make(name, task, examples, predictions, test_hash="cafe", split="test", **changes):
        config = replace(Config(task=task, data=Sample()), **changes)
        plugin = plugin_of(task)
        folder = tmp_path / "outputs" / plugin.name / name
        folder.mkdir(parents=True)
        write_config(folder, config, plugin)
        scores, statistics = score_all(task.metrics(), predictions, examples)
        write_predictions(folder / "predictions.jsonl", task, examples, predictions, statistics)
        result = {
            "task": plugin.name,
            "plugin": plugin.origin,
            "split": split,
            "n": len(examples),
            "metrics": {score.name: score.to_dict() for score in scores},
            "test_data_hash": test_hash,
            "seed": config.seed,
            "trainable_parameters": 1_000_000,
            "wall_seconds": 12.5,
            "train_tokens_per_second": 800.0,
            "peak_memory_mb": 900,
            "versions": {"gptask": "0.1.0"},
        }
        (folder / "metrics.json").write_text(json.dumps(result))
        return folder

    return make


def texts(count, contexts=None):
    """Labelled sentences; ``contexts`` says how many different ones their groups have."""
    return [
        {
            "id": f"test.jsonl:{n}",
            "digest": n,
            "group": n % contexts if contexts else n,
            "text": f"sentence {n}",
            "label": LABELS[n % 2],
        }
        for n in range(count)
    ]


@pytest.fixture
def sentiment(write):
    """``sentiment("a", right=0.9)``: a run whose answers are right with that probability, drawn by ``draw``."""

    def make(name, right, count=500, draw=0, examples=None, **changes):
        examples = examples or texts(count)
        generator = np.random.default_rng(draw)
        said = []
        for example in examples:
            hit = generator.random() < right
            label = example["label"] if hit else LABELS[1 - LABELS.index(example["label"])]
            score = float(generator.uniform(0.5, 1))
            said.append(Prediction(label, score, {label: score}))
        return write(name, Sentiment(labels=LABELS), examples, said, **changes)

    return make


@pytest.fixture
def translation(write):
    """``translation("a", wrong=3)``: a run that replaces so many words of ten."""

    def make(name, wrong, count=60, draw=0, **changes):
        generator = np.random.default_rng(7)
        known = ["a", "the", "dog", "cat", "runs", "fast", "on", "grass"]
        lines = [" ".join(generator.choice(known, 10)) for _ in range(count)]
        spoil = np.random.default_rng(draw)
        said = []
        for line in lines:
            words = line.split()
            for place in spoil.choice(10, spoil.integers(0, 2 * wrong + 1), replace=False):
                words[place] = "x"
            said.append(Prediction(" ".join(words), 0.5))
        examples = [
            {"id": str(n), "digest": n, "group": n, "source": str(n), "target": [line]} for n, line in enumerate(lines)
        ]
        return write(name, Translation(), examples, said, **changes)

    return make
