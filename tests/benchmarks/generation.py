"""Greedy generation by a trained run on translation and dialogue prompts, against generate() on the same weights.

generate() gets the adapter merged: in float32 in batches of 16, and in bfloat16, sorted by length, in the batch size
that is fastest.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import reference
import torch
from harness import FULL, Result, alternate, bf16, matrix_peak, matrix_weights, memory_rate, vocabulary_weights
from ours import config, options


def run(tier: str, *experiments: str) -> list[Result]:
    """New tokens/s on the test prompts of Multi30k and DialogSum, or of the named ones."""
    full = tier == FULL
    sizes = {
        "multi30k": (192 if full else 48, 600 if full else 64, (32, 64) if full else (32,)),
        "dialogsum": (48 if full else 16, 150 if full else 32, (16, 32) if full else (16,)),
    }
    return [result for experiment in experiments or sizes for result in prompts(experiment, *sizes[experiment], tier)]


def prompts(experiment: str, count: int, trained: int, batches: tuple[int, ...], tier: str) -> list[Result]:
    """Train on a part of train, so that texts end as a trained model's do; then both sides write."""
    import gptask
    from gptask.data.datamodule import encode
    from gptask.training import builder

    folder = Path(tempfile.mkdtemp())
    limits = [f"data.limit.train={trained}", "data.limit.validation=8", f"data.limit.test={count}"]
    train = config("train", [*options(experiment, *limits), f"folder={folder / 'run'}", "probe=false"])
    gptask.train(train)
    run = gptask.load_run(folder / "run")
    corpus = builder.build_corpus(run.task, train.data, train.seed)
    examples = [dict(example) for example in corpus.split("test")]
    tokenizer, generation = run.backbone.tokenizer, run.head.options
    encoded = [encode(run.task, example, tokenizer, train.data.max_tokens)[0] for example in examples]
    ids = [item["ids"] for item in encoded]
    texts: dict[str, list[str]] = {}

    def length(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"]) + 1

    def write_ours() -> float:
        texts["ours"] = [prediction.value for prediction in run.predict(examples)]
        return sum(map(length, texts["ours"]))

    def write_reference(kind: str, generator: reference.Generator, batch: int) -> float:
        written = generator(ids, batch, generation.max_new_tokens)  # transformers' stop_strings cost a step more than
        texts[kind] = [cut_at_stop(text, generation.stop) for text in written]  # they save: a trained run writes EOS
        return sum(map(length, texts[kind]))

    location = str(run.backbone.origin.location)
    exact = reference.Generator(location, torch.float32, merged(location, folder / "run" / "model"))
    sides: dict[str, Any] = {"ours": write_ours, "float32": lambda: write_reference("float32", exact, 16)}
    if bf16():
        half = reference.Generator(location, torch.bfloat16, merged(location, folder / "run" / "model"))
        for batch in batches:
            sides[f"bfloat16 {batch}"] = lambda batch=batch: write_reference("bfloat16", half, batch)
    rates = alternate(sides, 3 if tier == FULL else 1)
    against = {"float32": "generate(), float32, batch 16"}
    if bf16():
        best = max(batches, key=lambda batch: max(rates[f"bfloat16 {batch}"]))
        against[f"bfloat16 {best}"] = f"generate(), bfloat16, sorted, batch {best}"
    peak, memory = matrix_peak(), memory_rate()
    counts = [length(text) for text in texts["ours"]]
    lowest = bound(run.backbone, ids, counts, 1e9 * peak, 1e9 * memory)
    seconds = sum(counts) / max(rates["ours"])
    operations = 2.0 * matrix_weights(run.backbone.model) * (sum(map(len, ids)) + sum(counts))
    operations += 2.0 * vocabulary_weights(run.backbone.model) * sum(counts)
    per_token = operations / sum(counts)  # of either side; what it reads again or pads is not counted
    shares = {name: max(rates[name]) * per_token / 1e9 / peak for name in rates}
    note = f"texts equal to generate() in float32: {agreement(texts['ours'], texts['float32'])}"
    if bf16():
        note += f", its own in bfloat16: {agreement(texts['bfloat16'], texts['float32'])}"
    note += f"; {seconds:.1f} s, at {peak:.0f} GFLOP/s and {memory:.0f} GB/s no less than {lowest:.1f} s"
    return [
        Result(
            f"generation_{experiment}_{name.split()[0]}", f"generation, {experiment}, trained run, {count} prompts",
            "tokens/s", rates["ours"], rates[name], reference_name, shares=(shares["ours"], shares[name]), note=note,
        )
        for name, reference_name in against.items()
    ]  # fmt: skip


def cut_at_stop(text: str, stop: list[str]) -> str:
    """The text up to the first stop text."""
    return text[: min((text.index(word) for word in stop if word in text), default=len(text))]


def merged(location: str, adapter: Path) -> Any:
    """The backbone in float32 with a run's adapter merged."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(location, dtype=torch.float32)
    return PeftModel.from_pretrained(base, str(adapter)).merge_and_unload()


def bound(backbone: Any, prompts: list[list[int]], counts: list[int], peak: float, rate: float) -> float:
    """A lower bound of the seconds that decoding these prompts and numbers of new tokens takes, all in one batch.

    ``peak`` is the matrix peak in FLOP/s, ``rate`` the memory's bytes/s. All tokens of the prompts, shared ones once,
    go through the layers' matrices; each step multiplies with these matrices and the vocabulary, or reads them and the
    keys and values of its rows.
    """
    from gptask.model.engine.packing import split_prefixes

    layers = matrix_weights(backbone.model)
    all_weights = layers + vocabulary_weights(backbone.model)
    size, position = backbone.model.dtype.itemsize, backbone.engine.position_bytes()
    seconds = 2 * layers * split_prefixes(prompts).size / peak
    for step in range(1, max(counts)):  # reading the prompts gives the first tokens
        lengths = [len(prompt) + step for prompt, count in zip(prompts, counts, strict=True) if count > step]
        read = size * all_weights + position * sum(lengths)
        seconds += max(2 * all_weights * len(lengths) / peak, read / rate)
    return seconds


def agreement(texts: list[str], expected: list[str]) -> str:
    """Share of equal texts; rounding in bfloat16 changes some, on either side."""
    same = sum(a.strip() == b.strip() for a, b in zip(texts, expected, strict=True))
    return f"{100 * same / len(texts):.0f}%"
