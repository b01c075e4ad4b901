"""Kill commands by SIGKILL, start them again, and compare what they leave with an undisturbed run, bit for bit.

    python tests/reliability/kill.py --kills 400 --minutes 60 --output outputs/kill.jsonl

Each trial forks a child from this process, which has imported what a command needs, runs one command line of gptask in
it and kills it at a file operation, at a step of training, validation or test, or after a random time. The same command
line then starts again, and may be killed again, until it ends. A line of the output file records each trial; a later
start goes on behind the last line. A trial is repeated by its number: ``--trial 17``.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "core"), str(ROOT / "tasks"), str(ROOT / "conf")]

from tests.reliability.kill_points import KillPoint, PointCounter  # noqa: E402
from tests.reliability.leftovers import differences  # noqa: E402
from tests.support.recorded_counts import record_count  # noqa: E402

TIME_LIMIT = 120.0  # seconds of one start; what takes longer hangs
MOST_KILLS = 4  # in one trial
KILLED_AGAIN = 0.4  # share of the starts after a kill that are killed too
FRESH_CACHE = 0.25  # share of the trials that begin with an empty cache


@dataclass(frozen=True)
class Case:
    """A command line, and what it leaves in the folder of a trial, its working directory."""

    arguments: tuple[str, ...]
    result: str  # the run folder or the file that the command makes
    template: str | None = None  # the folder, made by another case, that a trial starts with
    once: bool = False  # whether the command is refused once it has succeeded


NANO = (
    "backbone=nano", "backbone.n_layer=1", "backbone.n_head=2", "backbone.n_embd=16", "backbone.context=128",
    "backbone.vocab_size=300", "data.max_tokens=96", "data.batch_size=8", "data.limit.train=24", "baseline=false",
    "data.limit.validation=8", "data.limit.test=10", "trainer.accelerator=cpu", "trainer.accumulate_grad_batches=1",
    "trainer.max_epochs=2", "probe=false", "tuning.lr=1e-3",
)  # fmt: skip
AGAIN = ("folder=run", "resume=auto")
ADAPTER = (
    "backbone.source=model", "tuning=lora", "tuning.rank=2", "tuning.dropout=0.1", "data.max_tokens=64",
    "data.batch_size=8", "data.limit.train=24", "data.limit.validation=8", "data.limit.test=10", "baseline=false",
    "trainer.accelerator=cpu", "trainer.max_epochs=2", "probe=false",
)  # fmt: skip
CASES = {
    "classes": Case(("train", "task=sentiment", *NANO, *AGAIN), "run"),
    "steps": Case(("train", "task=sentiment", *NANO, *AGAIN, "checkpoint.minutes=0.000001"), "run"),
    "adapter": Case(("train", "task=sentiment", *ADAPTER, *AGAIN, "checkpoint.minutes=0.000001"), "run", "model"),
    "texts": Case(
        ("train", "task=translation", *NANO, *AGAIN, "trainer.accumulate_grad_batches=2",
         "task.generation.max_new_tokens=6", "trainer.val_check_interval=2", "checkpoint.minutes=0.000001"), "run",
    ),
    "longer": Case(("train", *("resume=run", "trainer.max_epochs=3")), "run", "finished", once=True),
    "numbered": Case(
        ("train", "task=sentiment", *NANO, *AGAIN, "data=files", "data.train=labelled.tsv",
         "data.columns={text: 0, label: 1}", "data.labels={0: negative, 1: positive}", "checkpoint.minutes=0.000001"),
        "run", "labelled",
    ),
    "predict": Case(("predict", "run=run", "input=rows.jsonl", "output=answers.jsonl"), "answers.jsonl", "finished"),
    "table": Case(("predict", "run=run", "input=rows.jsonl", "output=answers.csv"), "answers.csv", "finished"),
}  # fmt: skip


@dataclass
class Reference:
    """What an undisturbed start of a case left, and how many kill points of each kind it passed."""

    folder: Path
    seconds: float
    points: dict[str, int]


@dataclass
class Trial:
    """One command line that is killed and started again until it ends."""

    number: int
    case: str
    kills: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0


class Killer:
    """Runs trials in folders below ``base``, whose reference runs it makes once."""

    def __init__(self, base: Path, cases: list[str]) -> None:
        self.base, self.cases = base, cases
        self.references: dict[str, Reference] = {}
        (base / "cache").mkdir(parents=True, exist_ok=True)

    def prepare(self) -> None:
        """Make the folders that trials start with, and the undisturbed run of each case."""
        templates, needed = self.base / "templates", {CASES[name].template for name in self.cases}
        if "model" in needed:
            make_model(templates / "model" / "model")
        if "labelled" in needed:
            (templates / "labelled").mkdir(parents=True)
            write_labelled(templates / "labelled" / "labelled.tsv")
        if "finished" in needed:
            finished = templates / "finished"
            finished.mkdir(parents=True)
            write_rows(finished / "rows.jsonl")
            code, _, _ = self.start(finished, CASES["classes"].arguments, None)
            if code:
                raise SystemExit(f"the case 'classes' fails: {(finished / 'log').read_text()[-2000:]}")
        for name in self.cases:
            folder = self.new_folder(name, "reference")
            code, seconds, points = self.start(folder, CASES[name].arguments, None)
            if code:
                raise SystemExit(f"the case '{name}' fails: {(folder / 'log').read_text()[-2000:]}")
            self.references[name] = Reference(folder, seconds, points)

    def new_folder(self, case: str, name: str) -> Path:
        """The working directory of a trial, with what the case starts with."""
        folder = self.base / f"{case}-{name}"
        shutil.rmtree(folder, ignore_errors=True)
        template = CASES[case].template
        shutil.copytree(self.base / "templates" / template, folder) if template else folder.mkdir()
        return folder

    def run(self, number: int) -> Trial:
        """Kill and start a command line until it ends; compare what it leaves with the reference."""
        chance = random.Random(number)
        trial = Trial(number, self.cases[number % len(self.cases)])
        case, reference, started = CASES[trial.case], self.references[trial.case], time.time()
        folder = self.new_folder(trial.case, f"trial-{number}")
        if chance.random() >= FRESH_CACHE:
            shutil.copytree(self.base / "cache", folder / "cache")
        while not trial.problems:
            again = not trial.kills or (len(trial.kills) < MOST_KILLS and chance.random() < KILLED_AGAIN)
            point = KillPoint.draw(chance, reference.points, reference.seconds) if again else None
            code, _, _ = self.start(folder, case.arguments, point, folder / "cache")
            if code == -signal.SIGKILL and point:
                trial.kills.append({"kind": point.kind, "at": round(point.at, 3)})
            elif case.once and code == 2 and "is finished" in last_lines(folder / "log"):
                break
            elif code:
                trial.problems.append(f"start {len(trial.kills) + 1} ends with {code}: {last_lines(folder / 'log')}")
            else:
                break
        trial.problems = trial.problems or list(differences(reference.folder / case.result, folder / case.result))
        trial.seconds = round(time.time() - started, 2)
        if not trial.problems:
            shutil.rmtree(folder)
        return trial

    def start(
        self, folder: Path, arguments: tuple[str, ...], point: KillPoint | None, cache: Path | None = None
    ) -> tuple[int, float, dict[str, int]]:
        """Run a command line in a child; return its exit code, its seconds and the kill points that it passed.

        The exit code is negative for a signal, as in `subprocess`.
        """
        counts, started = folder / "points.json", time.time()
        child = os.fork()
        if not child:
            run_child(folder, arguments, point, cache or self.base / "cache", counts)
        deadline = started + (point.at if point and point.kind == "time" else TIME_LIMIT)
        while True:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                break
            if time.time() > deadline:
                os.kill(child, signal.SIGKILL)
                status = os.waitpid(child, 0)[1]
                if not (point and point.kind == "time"):
                    return 124, TIME_LIMIT, {}
                break
            time.sleep(0.005)
        points = json.loads(counts.read_text()) if counts.exists() else {}
        counts.unlink(missing_ok=True)
        return os.waitstatus_to_exitcode(status), time.time() - started, points


def run_child(folder: Path, arguments: tuple[str, ...], point: KillPoint | None, cache: Path, counts: Path) -> None:
    """Run a command line in this process, which ends with it."""
    code = 70
    try:
        os.chdir(folder)
        log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ["GPTASK_CACHE"] = str(cache)
        counter = PointCounter([folder, cache], counts, point)
        from gptask.cli import main

        try:
            main(list(arguments))
        except SystemExit as end:
            code = int(end.code or 0)
        counter.write()
        sys.stderr.flush()
        sys.stdout.flush()
    finally:
        os._exit(code)


def make_model(folder: Path) -> None:
    """Save a tiny Llama with random weights and its tokenizer; in a child, since this process must not compute."""
    child = os.fork()
    if not child:
        try:
            import torch
            import transformers
            from gptask.model.backbone.scratch import train_tokenizer

            from tests.support.tiny_models import TEXT, tiny_config

            torch.manual_seed(0)
            folder.mkdir(parents=True)
            tokenizer = train_tokenizer([TEXT] * 3, 320)
            model = transformers.AutoModelForCausalLM.from_config(tiny_config("llama", len(tokenizer), 64))
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        finally:
            os._exit(0)
    os.waitpid(child, 0)


def write_rows(path: Path, count: int = 600) -> None:
    """Write rows to predict, of different lengths."""
    texts = enumerate(random_texts(count))
    path.write_text("".join(json.dumps({"text": text, "n": number}) + "\n" for number, text in texts))


def write_labelled(path: Path, count: int = 60) -> None:
    """Write texts with labels by number, in a table without a header."""
    path.write_text("".join(f"{text}\t{number % 2}\n" for number, text in enumerate(random_texts(count))))


def random_texts(count: int) -> Iterator[str]:
    """Texts of 2 to 20 words, the same at each call."""
    words = ["the", "room", "was", "small", "but", "very", "clean", "and", "our", "late", "flight", "stay", "helped"]
    chance = random.Random(0)
    return (" ".join(chance.choices(words, k=chance.randint(2, 20))) for _ in range(count))


def last_lines(path: Path) -> str:
    """The end of a log, on one line."""
    return " | ".join(path.read_text(errors="replace").strip().splitlines()[-6:])


def import_all() -> None:
    """Import what a command needs, so that children need not: more than half of a start's time is imports."""
    from importlib import import_module
    from pkgutil import walk_packages

    import gptask
    import gptask_tasks

    for package in (gptask, gptask_tasks):
        for module in walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith(".__main__") and ".serving" not in module.name:  # an extra's
                import_module(module.name)
    for name in ("gpt2.modeling_gpt2", "llama.modeling_llama"):
        import_module(f"transformers.models.{name}")
    for name in ("hydra", "pandas", "sklearn.feature_extraction.text", "sklearn.linear_model", "safetensors.torch"):
        import_module(name)
    gc.freeze()  # children then copy fewer pages


def trials_done(output: Path) -> list[dict[str, Any]]:
    """The trials that an output file records."""
    return [json.loads(line) for line in output.read_text().splitlines()] if output.exists() else []


def work(killer: Killer, output: Path, numbers: Iterator[int], goes_on: Callable[[], bool]) -> None:
    """Run trials and record each as a line."""
    for number in numbers:
        if not goes_on():
            return
        trial = killer.run(number)
        with output.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(vars(trial)) + "\n")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=400, help="stop after so many, those recorded before included")
    parser.add_argument("--minutes", type=float, default=60.0, help="stop after so many")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--cases", default=",".join(CASES), help="of these, separated by commas")
    parser.add_argument("--trial", type=int, help="run one trial alone, and leave its folder")
    parser.add_argument("--output", type=Path, default=Path("outputs/kill.jsonl"))
    parser.add_argument("--record", action="store_true", help="write the counts into docs/results.json")
    options = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "GPTASK_PLUGINS": "gptask"}
    import_all()
    base = Path(tempfile.mkdtemp(prefix="gptask-kill-"))
    killer = Killer(base, options.cases.split(","))
    killer.prepare()
    if options.trial is not None:
        trial = killer.run(options.trial)
        sys.exit(json.dumps(vars(trial), indent=2) if trial.problems else 0)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    done, deadline = trials_done(options.output), time.time() + 60 * options.minutes
    first = max((trial["number"] for trial in done), default=-1) + 1

    def goes_on() -> bool:
        kills = sum(len(trial["kills"]) for trial in trials_done(options.output))
        return kills < options.kills and time.time() < deadline

    children = []
    for worker in range(options.workers):
        if not (child := os.fork()):
            try:
                work(killer, options.output, iter(range(first + worker, 10**9, options.workers)), goes_on)
                os._exit(0)
            finally:
                os._exit(1)
        children.append(child)
    crashed = [child for child in children if os.waitpid(child, 0)[1]]
    done = trials_done(options.output)
    failed = [trial for trial in done if trial["problems"]]
    for trial in failed:
        print(f"trial {trial['number']} ({trial['case']}): {trial['kills']}\n  " + "\n  ".join(trial["problems"]))
    kinds = Counter(kill["kind"] for trial in done for kill in trial["kills"])
    kills, identical = sum(kinds.values()), len(done) - len(failed)
    details = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common())
    print(f"{kills:,} kills ({details}) in {len(done):,} trials: {identical:,} end identical")
    if failed:
        print(f"the folders of the others are in {base}")
    if options.record:
        measure = f"{kills:,} kills ({details}) in {len(done):,} commands that start again until they end"
        record_count("kill", measure, f"{identical:,} identical", "all", not failed)
    if not failed:
        shutil.rmtree(base)
    sys.exit(1 if failed or crashed else 0)


if __name__ == "__main__":
    main()
