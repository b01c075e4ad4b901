"""Greedy generation on translation and dialogue prompts, against generate() in float32 and in bfloat16."""

from __future__ import annotations

from typing import Any

import reference
import torch
from harness import FULL, Result, alternate, bf16, matrix_peak, matrix_weights, memory_rate
from ours import Training, options

BATCHES = {FULL: (16, 32, 64), "quick": (32,)}  # batch sizes of the reference in bfloat16, of which the best counts


def run(tier: str) -> list[Result]:
    """New tokens/s on the test prompts of Multi30k and DialogSum."""
    few, many = (48, 16), (192, 96)
    counts = many if tier == FULL else few
    return [
        *prompts("multi30k", "translation prompts", counts[0], 40, tier),
        *prompts("dialogsum", "dialogue prompts", counts[1], 60, tier),
    ]


def prompts(experiment: str, name: str, count: int, new: int, tier: str) -> list[Result]:
    """Both sides generate until EOS, a stop text or ``new`` tokens."""
    from gptask.model.generation.generate import generate
    from gptask.model.heads import GenerationHead

    ours = Training(options(experiment, "data.limit.train=16", f"data.limit.test={count}"))
    backbone, head = ours.module.backbone, ours.module.head
    assert isinstance(head, GenerationHead)
    backbone.eval()  # weights are merged and packed for inference alone
    head.options.max_new_tokens = new
    loader = ours.data.eval_dataloader("test")
    ids = [item["ids"] for item in ours.data.items("test")]
    texts: dict[str, list[str]] = {}
    batches: list[Any] = []

    def generate_ours() -> float:
        generated: dict[int, str] = {}
        batches.clear()
        for batch in loader:
            answers = [text.text for text in generate(backbone, batch.prompts(), head.options)]
            generated.update(zip(batch.rows, answers, strict=True))
            batches.append((batch.prompts(), answers))
        texts["ours"] = [generated[row] for row in range(len(ids))]
        return token_count(texts["ours"])

    def token_count(answers: list[str]) -> float:
        return sum(map(length, answers))

    def length(answer: str) -> int:
        return len(backbone.tokenizer(answer, add_special_tokens=False)["input_ids"]) + 1

    def generate_reference(kind: str, generator: Any, batch: int) -> float:
        texts[kind] = generator(ids, batch, new, head.options.stop)
        return token_count(texts[kind])

    exact = reference.Generator(ours.location, torch.float32)
    tasks: dict[str, Any] = {"ours": generate_ours, "fp32": lambda: generate_reference("fp32", exact, 16)}
    if bf16():
        half = reference.Generator(ours.location, torch.bfloat16)
        for batch in BATCHES[tier]:
            tasks[f"bf16 {batch}"] = lambda batch=batch: generate_reference("bf16", half, batch)
    rates = alternate(tasks, 3 if tier == FULL else 1)
    against = [("fp32", "generate() fp32, batch 16", 6.0)]
    note = f"texts equal to generate() in fp32: {agreement(texts['ours'], texts['fp32'])}"
    peak, rate = matrix_peak(), memory_rate()
    counted = [(prompts, [*map(length, answers)]) for prompts, answers in batches]
    lowest = bound(backbone, counted, 1e9 * peak, 1e9 * rate)
    seconds = token_count(texts["ours"]) / max(rates["ours"])
    note += f"; {seconds:.1f} s, at {peak:.0f} GFLOP/s and {rate:.0f} GB/s no less than {lowest:.1f} s"
    if bf16():
        best = max(BATCHES[tier], key=lambda batch: max(rates[f"bf16 {batch}"]))
        against.append((f"bf16 {best}", f"generate() bf16, batch {best}", 2.2))
        note += f"; its own bf16: {agreement(texts['bf16'], texts['fp32'])}"
    return [
        Result(f"generation, {name}", "tokens/s", rates["ours"], rates[kind], reference_name, least, note=note)
        for kind, reference_name, least in against
    ]


def bound(backbone: Any, batches: list[tuple[list[list[int]], list[int]]], peak: float, rate: float) -> float:
    """A lower bound of the seconds that decoding these prompts and numbers of new tokens takes.

    ``peak`` is the matrix peak in FLOP/s, ``rate`` the memory's bytes/s. All tokens of the prompts, shared ones once,
    go through the layers' matrices; each step multiplies with these matrices and the vocabulary, or reads them and the
    keys and values of its rows.
    """
    from gptask.model.engine.packing import split_prefixes
    from gptask.model.generation.generate import position_bytes

    layers = matrix_weights(backbone.model)
    all_weights = layers + backbone.model.get_output_embeddings().weight.numel()
    size, position = backbone.model.dtype.itemsize, position_bytes(backbone)
    seconds = 0.0
    for prompts, counts in batches:
        seconds += 2 * layers * split_prefixes(prompts).size / peak
        for step in range(1, max(counts)):  # reading the prompts gives the first tokens
            lengths = [len(prompt) + step for prompt, count in zip(prompts, counts, strict=True) if count > step]
            read = size * all_weights + position * sum(lengths)
            seconds += max(2 * all_weights * len(lengths) / peak, read / rate)
    return seconds


def agreement(texts: list[str], expected: list[str]) -> str:
    """Share of equal texts; rounding in bfloat16 changes some, on either side."""
    same = sum(a.strip() == b.strip() for a, b in zip(texts, expected, strict=True))
    return f"{100 * same / len(texts):.0f}%"
