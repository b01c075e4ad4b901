"""Overrides: command lines of every verb, from Hydra's grammar and from beside it; nothing is trained or loaded."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from unittest import mock

from gptask.cli.verbs import VERBS
from gptask.config.overrides import normalize_overrides
from gptask.errors import UserError
from hypothesis import strategies as st

from tests.fuzz.guard import CANARY
from tests.fuzz.hostile import texts
from tests.fuzz.sandbox import Sandbox
from tests.fuzz.target import Setting, Target

KEYS = (
    "task", "tasks", "backbone", "data", "tuning", "optimizer", "logger", "engine", "trainer", "seed", "outputs",
    "folder", "resume", "run", "input", "output", "experiment", "task.labels", "task.language", "data.train",
    "data.columns", "data.columns.text", "data.labels", "data.limit.train", "data.cut", "data.pattern",
    "backbone.source", "tuning.rank", "backbone.n_layer", "tuning.target_modules", "trainer.max_epochs",
    "trainer.devices", "trainer.callbacks", "trainer._target_", "task._target_", "hydra.run.dir", "hydra.searchpath",
    "hydra.sweeper", "hydra/launcher", "hydra/sweeper", "hydra.mode", "data@x", "task@_global_", "saved",
    "optimizer.betas", "schedule.name", "engine.rotary", "tasks.a.task", "tasks.a.data.train", "mixing.best", "shots",
    "split", "server", "dtype", "base", "runs", "cors", "x", "a.b.c", "", ".", "..", "task.", ".task", "ta sk",
    "task.²", "__proto__", "_global_", "defaults", "override task",
)  # fmt: skip
VALUES = (
    "sentiment", "qa", "[sentiment,qa]", "sentiment,qa", "files", "sample", "hub", "smollm2", "nano", "lora", "full",
    "null", "true", "1", "-1", "0.5", "1e400", "nan", "inf", "9" * 400, "0x10", "1_000", "٣", "²", "''", '""', "'a",
    '"a', "\\", "\\'", "a b", "a,b", "[", "]", "{", "}", "[a", "{a:b}", "{a:1,b:[2,{c:3}]}", "{a}", "{a:", "[[[[]]]]",
    "[" * 200, "[" * 3000 + "]" * 3000, "{a:" * 300 + "1" + "}" * 300, "${seed}", "${oc.env:HOME}",
    "${oc.env:NOSUCH}", "${x}", "${data}", "${", "$", "${oc.decode:1}", "${oc.create:{a:1}}", "${.}", "${..}",
    "${seed", "${oc.env:${seed}}", "???", "range(1,5)", "range(1,1e9)", "choice(a,b)", "interval(0,1)", "glob(*)",
    "shuffle(1,2)", "sort(3,1)", "tag(a,1)", "int(x)", "float(1)", "str(${x})", "json_str(1)", "extend_list(1)",
    "a=b", "=", "==", "key=", "~", "+", "+a", "~a", "@", "a@b", ":", "a:b", "#", "%", "\x00", "\ud800", "\x1b[31m",
    "\n", "\t", "中文", "a" * 3000, "../../x", "/etc/passwd", CANARY, f"{CANARY}.Evil", "file:///etc",
    "pkg://" + CANARY, "os.system", "builtins.eval",
)  # fmt: skip
FLAGS = (
    "-m", "--multirun", "--cfg", "job", "hydra", "all", "--cfg=job", "--resolve", "--info", "--info=defaults",
    "--help", "-h", "--hydra-help", "--version", "-sc", "--package", "task", "--config-dir", ".",
    "--config-dir=/nosuch", "--", "-", "--config-name", "x", "--experimental-rerun", "--trials", "3", "--format",
    "json", "--latest", "--task", "--metric", "--margin", "nan", "--leaderboard", "--fail-if-worse", "--check",
    "--baseline", "-x", "-1", "--seed=1",
)  # fmt: skip
SAFE_VERBS = (
    "train", "evaluate", "predict", "export", "serve", "sweep", "tasks", "compare", "report", "chat", "cache",
    "new-task", "help", "nosuch", "",
)  # fmt: skip


@dataclass(frozen=True)
class CommandCase:
    """A command line; ``parse_only`` reads the overrides without composing."""

    verb: str
    arguments: list[str]
    parse_only: bool


pieces = st.one_of(st.sampled_from(VALUES), st.sampled_from(VALUES), texts)
soup = st.text(st.sampled_from(list("task.=~+@:,'\"\\[](){}$ \n\t01eE-_²٣#%*a")), max_size=24)
overrides = st.one_of(
    st.builds(
        lambda sign, key, middle, value: f"{sign}{key}{middle}{value}",
        st.sampled_from(["", "", "", "", "+", "++", "~", "~~", "+~", " "]),
        st.sampled_from(KEYS),
        st.sampled_from(["=", "=", "=", "", "==", ":", "= "]),
        st.one_of(pieces, st.lists(pieces, min_size=1, max_size=3).map("".join), soup),
    ),
    soup,
    st.sampled_from(FLAGS),
)


@st.composite
def command_cases(draw: st.DrawFn) -> CommandCase:
    verb = draw(st.sampled_from(("train",) * 6 + ("evaluate", "predict", "export", "serve") + SAFE_VERBS))
    arguments = draw(st.lists(overrides, max_size=4))
    return CommandCase(verb, arguments, draw(st.integers(0, 5)) > 0)


def run_command_line(case: CommandCase, sandbox: Sandbox, setting: Setting) -> None:
    """Read the command line, and where it is good, end before the verb acts."""
    if case.parse_only:
        keys = {"task", "data", "backbone", "trainer", "seed"}
        sandbox.call(
            lambda: normalize_overrides(case.arguments, "-m" in case.arguments, keys, {"data.columns", "trainer"})
        )
        return
    done: list[Any] = []
    composed = [verb.module for verb in VERBS.values() if verb.composed]
    with ExitStack() as patches:
        for module in composed:
            patches.enter_context(mock.patch(f"{module}.run", lambda *values: done.append(values)))
        for name in ("sweep.run_sweep", "chat._load_backbone"):
            patches.enter_context(mock.patch(f"gptask.cli.commands.{name}", _stop))
        sandbox.command(case.verb, *case.arguments, writable=[sandbox.folder])


def _stop(*values: Any) -> None:
    raise UserError("read and checked")


OVERRIDES = Target("overrides", 0.2, command_cases(), run_command_line)
