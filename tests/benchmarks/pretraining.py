"""Pre-training from scratch against a nanoGPT-like loop: characters of tiny Shakespeare, nanoGPT's CPU example
(4 layers, 4 heads, 128 channels, blocks of 64, batches of 12, 2,000 steps)."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from harness import DATA, FULL, Result
from nanogpt import GPT, Loop
from ours import config

TEXT = DATA / "lm_text" / "tiny_shakespeare" / "input_first90.txt"
SIZES = {"n_layer": 4, "n_head": 4, "n_embd": 128, "context": 64}
BATCH, TURN = 12, 100  # blocks in a step, and steps before the other side's turn


class Turns(pl.Callback):
    """Lets the reference train for as many steps after every turn of gptask, and records both sides' seconds."""

    def __init__(self, text: str, steps: int) -> None:
        self.text, self.steps = text, steps
        self.ours: list[float] = []
        self.reference: list[float] = []

    def on_train_start(self, trainer: Any, module: Any) -> None:
        """Build the reference on the same tokens, and start our clock."""
        tokenizer = module.backbone.tokenizer
        torch.manual_seed(1337)
        model = GPT(len(tokenizer), SIZES["context"], SIZES["n_layer"], SIZES["n_head"], SIZES["n_embd"])
        self.loop = Loop(model, torch.tensor(tokenizer(self.text)["input_ids"]), BATCH, SIZES["context"], self.steps)
        self.start = time.perf_counter()

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        """Change sides."""
        if trainer.global_step % TURN:
            return
        now = time.perf_counter()
        self.ours.append(now - self.start)
        self.loop.run(TURN)
        self.start = time.perf_counter()
        self.reference.append(self.start - now)


def run(tier: str) -> list[Result]:
    """Steps per second, and the loss on the last tenth, of `gptask train` as a user runs it and of the loop."""
    if not TEXT.is_file():
        return []
    import gptask

    steps = 2000 if tier == FULL else 400
    text = TEXT.read_text(encoding="utf-8")
    cut = int(0.9 * len(text))
    folder = Path(tempfile.mkdtemp())
    for name, part in (("train", text[:cut]), ("held", text[cut:])):
        (folder / f"{name}.txt").write_text(part, encoding="utf-8")
    turns = Turns(text[:cut], steps)
    trained = gptask.train(config("train", options(folder, steps)), callbacks=[turns])
    ids = [trained.backbone.tokenizer.eos_token_id, *trained.backbone.tokenizer(text[cut:])["input_ids"]]
    loss, reference = trained.metrics["metrics"]["nats_per_token"]["value"], turns.loop.loss(torch.tensor(ids))
    note = (
        f"loss {loss:.3f}, reference {reference:.3f}; {steps} steps in "
        f"{sum(turns.ours) / 60:.2f} and {sum(turns.reference) / 60:.2f} minutes; {torch.get_num_threads()} threads"
    )
    rates = [[TURN / seconds for seconds in side[1:]] for side in (turns.ours, turns.reference)]  # the first warms up
    name = "pre-training, tiny Shakespeare by characters"
    return [Result("pretraining", name, "steps/s", *rates, "nanoGPT-like loop, float32", note=note)]


def options(folder: Path, steps: int) -> list[str]:
    """The same model, batches and optimizer on our side."""
    return [
        "task=language_modeling",
        "backbone=nano",
        *(f"backbone.{name}={value}" for name, value in SIZES.items()),
        "backbone.tokenizer=characters",
        "data=files",
        f"data.train={folder}/train.txt",
        f"data.validation={folder}/held.txt",
        f"data.test={folder}/held.txt",
        "data.documents=file",
        f"data.max_tokens={SIZES['context']}",
        f"data.batch_size={BATCH}",
        f"data.batch_tokens={BATCH * SIZES['context']}",
        "optimizer.betas=[0.9,0.99]",
        "optimizer.weight_decay=0.1",
        "schedule.name=cosine",
        "schedule.warmup=100",
        f"trainer.max_steps={steps}",
        "trainer.accumulate_grad_batches=1",
        "trainer.limit_val_batches=0",
        f"outputs={folder}",
        "probe=false",
    ]
