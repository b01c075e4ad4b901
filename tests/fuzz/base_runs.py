"""The finished runs that cases change: trained once, small enough that loading one takes some milliseconds."""

from __future__ import annotations

import contextlib
import json
import logging
from pathlib import Path
from typing import Any

from gptask import Config, train, train_tasks
from gptask.config.schemas import DType, Files, Full, Limit, Lora, Pretrained, Sample, TaskConfig
from gptask_tasks.sentiment import Sentiment
from gptask_tasks.token_tagging import TokenTagging
from gptask_tasks.translation import Translation

from tests.fuzz.target import Setting
from tests.support.configs import small_config
from tests.support.tiny_models import TEXT, tiny_config

ALL = ("sentiment", "adapted", "tags", "translation", "several")


def base_runs(root: Path, names: tuple[str, ...] = ALL) -> Setting:
    """Train the runs below ``root`` that are not there yet; each has a folder of its own."""
    root.mkdir(parents=True, exist_ok=True)
    with contextlib.chdir(root):  # the folders' names in configs are short
        runs = {"backbone": _backbone(root / "backbone")}
        for name in names:
            runs[name] = root / name
            if not (runs[name] / "manifest.json").is_file():
                logging.getLogger("gptask").setLevel(logging.ERROR)
                _train(name, root)
    return Setting(runs)


def _backbone(folder: Path) -> Path:
    """A tiny Llama of random weights with its tokenizer."""
    if not folder.is_dir():
        import torch
        import transformers
        from gptask.model.backbone.scratch import train_tokenizer

        torch.manual_seed(0)
        tokenizer = train_tokenizer([TEXT] * 3, 320)
        config = tiny_config("llama", len(tokenizer), 128)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def _train(name: str, root: Path) -> None:
    few = Limit(train=12, validation=6, test=6)
    sample = Sample(limit=few, max_tokens=96, batch_size=8)
    adapted = {
        "backbone": Pretrained(source=str(root / "backbone"), dtype=DType.float32, license="MIT"),
        "tuning": Lora(rank=2, lr=1e-3),
    }
    options: dict[str, Any] = {"data": sample, "trainer": {"max_epochs": 1, "accelerator": "cpu"}}
    if name == "sentiment":
        options |= {"tuning": Full(lr=1e-3)}
    elif name == "adapted":
        options |= adapted
    elif name == "tags":
        options |= adapted | {"task": TokenTagging()}
    elif name == "translation":
        rows = "".join(json.dumps({"source": f"a dog {n}", "target": f"ein Hund {n}"}) + "\n" for n in range(16))
        (root / "pairs.jsonl").write_text(rows)
        task = Translation(source_lang="en", target_lang="de")
        task.generation.max_new_tokens = 4
        options |= adapted | {"task": task, "data": Files(train=str(root / "pairs.jsonl"), cut=0.2, max_tokens=64)}
    else:
        tasks = {"sentiment": TaskConfig(Sentiment(), sample), "tags": TaskConfig(TokenTagging(), sample)}
        options |= adapted | {"task": None, "data": None, "tasks": tasks}
    config = small_config(root, **options)
    assert isinstance(config, Config)
    config.folder = str(root / name)
    (train_tasks if config.tasks else train)(config)
