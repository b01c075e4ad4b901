"""The table of verbs: what each one does and how it reads its arguments."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Verb:
    """A verb of the command line; its code is ``main`` in the module of the same name in `gptask.cli.commands`."""

    name: str
    summary: str
    composed: bool = False  # Hydra composes its config; a verb without one parses its own arguments
    multirun: bool = False  # -m runs it once for each combination of values
    own_signals: bool = False  # it says itself what Ctrl-C and SIGTERM do

    @property
    def module(self) -> str:
        """The full name of the verb's module."""
        return f"gptask.cli.commands.{self.name.replace('-', '_')}"


VERBS = {
    verb.name: verb
    for verb in (
        Verb("train", "fine-tune on a task, keep the best checkpoint, test it", composed=True, multirun=True),
        Verb("evaluate", "score a run folder or the bare backbone without training", composed=True, multirun=True),
        Verb("sweep", "search for the options that do best on validation"),
        Verb("compress", "make a run smaller, and compare it with what it was", composed=True, multirun=True),
        Verb("predict", "run a run folder on a file or standard input", composed=True),
        Verb("explain", "say which words a prediction depends on, and how faithful that is", composed=True),
        Verb("chat", "talk to a run folder or a bare backbone", own_signals=True),
        Verb("serve", "answer requests for many runs from one backbone, over HTTP", composed=True, own_signals=True),
        Verb("export", "write a Hugging Face folder for plain transformers", composed=True),
        Verb("compare", "compare runs: intervals, paired tests, leaderboard"),
        Verb("report", "write one HTML page on a run, or on several side by side"),
        Verb("tasks", "list the installed task plugins and their options, check them"),
        Verb("cache", "list the sizes of cached backbones and data, remove what is stale"),
        Verb("new-task", "write an installable package for a task of your own"),
    )
}
MULTIRUN = tuple(verb.name for verb in VERBS.values() if verb.multirun)
