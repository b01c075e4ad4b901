"""Shell completion: the verb, then Hydra's overrides behind it.

``eval "$(gptask -sc install=bash)"`` binds a function that asks ``gptask -sc query=bash`` for candidates. Hydra's own
script for bash knows no verbs, changes COMP_WORDBREAKS for every other command and can't leave file names to the shell,
so gptask has its own for bash; for zsh and fish it uses Hydra's.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from enum import Enum
from typing import Any

from gptask.cli.hydra.compose import choices, compose, loader
from gptask.cli.hydra.private import child_node, complete_overrides
from gptask.cli.verbs import VERBS
from gptask.config import trainer_options
from gptask.errors import UserError, listing

BASH = """_gptask() {
    local line="${COMP_LINE:0:COMP_POINT}" candidate
    COMPREPLY=()
    while IFS= read -r candidate; do
        COMPREPLY+=("$candidate")
    done < <(COMP_LINE="$line" COMP_WORDBREAKS="$COMP_WORDBREAKS" "${COMP_WORDS[0]}" -sc query=bash 2>/dev/null)
}
complete -o nospace -o default -F _gptask gptask
"""
BASH_REMOVAL = "complete -r gptask\nunset -f _gptask\n"
SHELLS = ("bash", "zsh", "fish")
FLAGS = ("--help", "--cfg", "--info", "--multirun", "--resolve", "--package", "--config-dir", "--hydra-help")


def complete(arguments: Sequence[str]) -> None:
    """Answer ``install=<shell>``, ``uninstall=<shell>`` or ``query=<shell>`` (with COMP_LINE set by the shell)."""
    command, _, shell = (arguments[0] if len(arguments) == 1 else "").partition("=")
    if command not in ("install", "uninstall", "query") or shell not in SHELLS:
        raise UserError(
            f"gptask -sc takes install=<shell> or uninstall=<shell>, for {listing(SHELLS)}: "
            'eval "$(gptask -sc install=bash)"'
        )
    if command == "query":
        line = os.environ.get("COMP_LINE", "")
        sys.stdout.writelines(f"{candidate}\n" for candidate in _after_word_break(line, candidates(line)))
    elif shell == "bash":
        sys.stdout.write(BASH if command == "install" else BASH_REMOVAL)
    else:
        getattr(_hydra_completion(shell), command)()


def candidates(line: str) -> list[str]:
    """The completions of the last word of a command line up to the cursor; an empty list leaves it to the shell."""
    words = _split_words(line)[1:]
    if len(words) < 2:
        word = words[0] if words else ""
        return _starting_with(word, [*(f"{verb} " for verb in VERBS), "--help ", "--version "])
    verb, *before, word = words
    if verb == "tasks":
        from gptask.plugins.discovery import discover  # for start-up time

        return _starting_with(word, [f"{name} " for name in (*discover(()), "--check", "--json")])
    if verb == "sweep":
        return _sweep_candidates(before, word)
    if verb not in VERBS or not VERBS[verb].composed:
        return []
    if word.startswith("-"):
        return _starting_with(word, [f"{flag} " for flag in FLAGS])
    try:
        return sorted(set(_override_candidates(verb, before, word)))
    except Exception:  # a half-typed line may be invalid in any way; Enter reports it, the Tab key must not
        return []


def _sweep_candidates(before: Sequence[str], word: str) -> list[str]:
    """The flags of `gptask sweep`, and the candidates of train behind the words that are no search space."""
    from gptask.cli.commands.sweep import parser  # for start-up time

    flags = {flag: action for action in parser()._actions for flag in action.option_strings}
    if before and before[-1] in flags and flags[before[-1]].nargs != 0:
        return _starting_with(word, [f"{choice} " for choice in flags[before[-1]].choices or ()])
    if word.startswith("-"):
        return _starting_with(word, [f"{flag} " for flag in flags if flag.startswith("--")])
    fixed = [w for w in before if not w.startswith("-") and "=" in w and not re.search(r"[,(]", w)]
    return candidates(" ".join(["gptask", "train", *map(shlex.quote, fixed), word]))


def _override_candidates(verb: str, before: Sequence[str], word: str) -> Iterator[str]:
    """Hydra's candidates behind a verb, and what Hydra can't list: Trainer options and the values of enumerations."""
    from gptask.cli.hydra.launch import read_command_line  # for start-up time

    command_line, _ = read_command_line(verb, before)
    overrides = [override for override in command_line.overrides if not re.search(r"\s", override)]
    hydra_line = " ".join([*overrides, word]) or " "  # Hydra splits it at spaces
    key, equals, _ = word.partition("=")
    with loader() as configs:
        if equals:
            values = _values(configs, verb, overrides, key)
            if key in command_line.groups:
                values = choices(configs, key, overrides)
            yield from _starting_with(word, [f"{key}={value} " for value in values])
            return
        for candidate in complete_overrides(configs, verb, hydra_line):
            if not candidate.startswith(("hydra", "saved")):
                yield "tasks=" if candidate == "tasks." else candidate  # no task of a list has a name yet
    if verb in ("train", "evaluate") and word.startswith("trainer."):
        yield from _starting_with(word, [f"trainer.{name}=" for name in trainer_options.option_names()])


def _values(configs: Any, verb: str, overrides: Sequence[str], key: str) -> list[str]:
    """The values of an enumeration or a truth value; an empty list for other options."""
    from omegaconf import BooleanNode, EnumNode, OmegaConf

    parent, _, name = key.rpartition(".")
    config = compose(configs, verb, overrides)
    node = OmegaConf.select(config, parent) if parent else config
    node = child_node(node, name) if OmegaConf.is_dict(node) else None
    if isinstance(node, EnumNode):
        enum_type: type[Enum] = node.enum_type
        return list(enum_type.__members__)
    return ["true", "false"] if isinstance(node, BooleanNode) else []


def _split_words(line: str) -> list[str]:
    """A line as the shell splits it; the last word is the one being typed, empty behind a space."""
    try:
        words = shlex.split(line)
    except ValueError:  # the cursor is within quotes
        words = line.split()
    return [*words, ""] if not line or line[-1].isspace() else words


def _starting_with(word: str, available: Sequence[str]) -> list[str]:
    return [candidate for candidate in available if candidate.startswith(word)]


def _after_word_break(line: str, words: Sequence[str]) -> list[str]:
    """The candidates without what stands before the last word break, such as ``=``: Readline replaces only the rest.

    gptask's bash function hands the word breaks over. Hydra's for other shells don't, and add the closing space.
    """
    if (word_breaks := os.environ.get("COMP_WORDBREAKS")) is None:
        return [word.rstrip() for word in words]
    typed = _split_words(line)[-1]
    start = max((position + 1 for position, character in enumerate(typed) if character in word_breaks), default=0)
    return [word[start:] for word in words]


def _hydra_completion(shell: str) -> Any:
    """Hydra's completion plugin for a shell."""
    from hydra.core.plugins import Plugins
    from hydra.plugins.completion_plugin import CompletionPlugin

    plugin_classes: list[Any] = Plugins.instance().discover(CompletionPlugin)
    by_shell = {plugin_class.provides(): plugin_class for plugin_class in plugin_classes}
    sys.argv[0] = "gptask"  # the command that Hydra's scripts complete, however this process was started
    return by_shell[shell](None)
