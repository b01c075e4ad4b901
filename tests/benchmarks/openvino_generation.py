"""Greedy generation by a trained run: engine=fast in bfloat16 against engine=openvino (weights in q8_0).

python tests/benchmarks/openvino_generation.py outputs/translation/first --rows 64 --alone 16 --rounds 3

Both sides get the same token ids, take turns, and see each prompt once, so that no cache of prompts helps. Needs the
extra gptask[openvino]; the run must write one target for each test example.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import sacrebleu
from harness import DATA, FULL, ROOT, Result, alternate, report

Prompts = list[list[int]]
Writer = Callable[[Prompts], list[str]]


def main() -> None:
    """Measure both sides in a batch and alone, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a finished run that writes texts, of llama, qwen2 or qwen3")
    parser.add_argument("--rows", type=int, default=64, help="prompts that are written together")
    parser.add_argument("--alone", type=int, default=16, help="prompts that are written one after the other")
    parser.add_argument("--rounds", type=int, default=3, help="rounds that count; one more goes first")
    parser.add_argument("--data-root", default=str(DATA), help="data.root of the run's data")
    options = parser.parse_args()
    results, tier = compare(options), FULL if options.rows >= 64 and options.rounds >= 3 else "quick"
    for result in results:
        print(" | ".join(result.row()))
    print(report(results, tier, ROOT / "outputs" / "bench"))


def compare(options: argparse.Namespace) -> list[Result]:
    """New tokens/s and BLEU of both sides, for a batch and for single prompts."""
    import gptask
    from gptask.config.conversion import from_plain
    from gptask.config.schemas import DType
    from gptask.data.datamodule import encode
    from gptask.training import builder

    run = gptask.load_run(options.run, dtype=DType.bfloat16, engine=gptask.Fast())
    data = from_plain("data", run.config["data"])
    data.root, data.limit.test = options.data_root, (options.rows + options.alone) * (options.rounds + 1)
    corpus = builder.build_corpus(run.task, data, run.config["seed"])
    examples = [dict(example) for example in corpus.split("test")]
    if len(examples) < data.limit.test:
        raise SystemExit(f"{data.limit.test} test examples are needed, and there are {len(examples)}")
    ids = [[*encode(run.task, example, run.backbone.tokenizer, data.max_tokens)[0]["ids"]] for example in examples]
    (target,) = (field.name for field in run.task.targets())
    references = [str(example[target]) for example in examples]
    by_openvino = gptask.load_run(options.run, engine=gptask.OpenVino())
    writers = {"ours": writer_of(run), "openvino": writer_of(by_openvino)}
    batch = options.rows * (options.rounds + 1)
    kinds = {"batch": (ids[:batch], options.rows, True), "alone": (ids[batch:], options.alone, False)}
    results = []
    for kind, (prompts, count, together) in kinds.items():
        sides = {
            name: Side(run.backbone.tokenizer, writer, prompts, count, together) for name, writer in writers.items()
        }
        rates = alternate({name: side.write for name, side in sides.items()}, options.rounds)
        first = 0 if kind == "batch" else batch
        counted = slice(first + count, first + len(prompts))
        ours, openvino = (
            sacrebleu.corpus_bleu(side.texts[count:], [references[counted]]).score for side in sides.values()
        )
        same = sum(a == b for a, b in zip(sides["ours"].texts, sides["openvino"].texts, strict=True)) / len(prompts)
        measure = f"generation, {count} prompts {'together' if together else 'one by one'}"
        note = f"{same:.0%} of the texts are equal; OpenVINO is {1 / rate_ratio(rates):.2f} times as fast"
        results.append(
            Result(
                f"openvino_{kind}", measure, "tokens/s", rates["ours"], rates["openvino"], "engine=openvino, q8_0",
                extra={"bleu": [ours, openvino]}, note=f"{note}, BLEU {ours:.2f} and {openvino:.2f}",
            )
        )  # fmt: skip
    return results


def rate_ratio(rates: dict[str, list[float]]) -> float:
    """Ours by theirs, the median over the rounds."""
    return Result("", "", "", rates["ours"], rates["openvino"], "").ratio


class Side:
    """Writes the next prompts in each round, and keeps the texts of all."""

    def __init__(self, tokenizer: Any, writer: Writer, prompts: Prompts, count: int, together: bool) -> None:
        self.tokenizer, self.writer, self.together, self.texts = tokenizer, writer, together, list[str]()
        self.batches = (prompts[start : start + count] for start in range(0, len(prompts), count))

    def write(self) -> float:
        """Write a round's texts; return the number of their tokens, with the ends."""
        prompts = next(self.batches)
        batches = [prompts] if self.together else [[prompt] for prompt in prompts]
        texts = [text for batch in batches for text in self.writer(batch)]
        self.texts += texts
        return float(sum(len(self.tokenizer(text, add_special_tokens=False)["input_ids"]) + 1 for text in texts))


def writer_of(run: Any) -> Writer:
    """What a run writes for prompts, by its own options and engine."""
    from gptask.model.generation.generate import generate

    return lambda prompts: [answer.text.strip() for answer in generate(run.backbone, prompts, run.head.options)]


if __name__ == "__main__":
    main()
