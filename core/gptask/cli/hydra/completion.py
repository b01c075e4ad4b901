"""Shell completion: the verb, then Hydra's overrides behind it.

``eval "$(gptask -sc install=bash)"`` binds a function that asks ``gptask -sc query=bash`` for candidates. Hydra's own
script for bash knows no verbs, changes COMP_WORDBREAKS for every other command and can't leave file names to the shell,
so bash has one of ours; for zsh and fish Hydra's serve.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from enum import Enum
from typing import Any

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
REMOVE = {"bash": "complete -r gptask\nunset -f _gptask\n"}
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
        sys.stdout.writelines(f"{candidate}\n" for candidate in _cut(line, candidates(line)))
    elif shell == "bash":
        sys.stdout.write(BASH if command == "install" else REMOVE[shell])
    else:
        getattr(_hydra_plugin(shell), command)()


def candidates(line: str) -> list[str]:
    """What the last word of a command line, up to the cursor, may become; nothing leaves it to the shell."""
    from gptask.cli import OWN, VERBS

    words = _words(line)[1:]
    if len(words) < 2:
        return _starting(words, [f"{verb} " for verb in VERBS] + ["--help ", "--version "])
    verb, *before, word = words
    if verb == "tasks":
        from gptask.plugins.discovery import discover

        return _starting([word], [f"{name} " for name in (*discover(()), "--check", "--json")])
    if verb == "sweep":
        return _sweep(before, word)
    if verb not in VERBS or verb in OWN:
        return []
    if word.startswith("-"):
        return _starting([word], [f"{flag} " for flag in FLAGS])
    try:
        return sorted(set(_overrides(verb, before, word)))
    except Exception:  # a half-typed line may be wrong in any way; Enter will tell, the Tab key must not
        return []


def _sweep(before: Sequence[str], word: str) -> list[str]:
    """Flags of its own, and the overrides of train; what has a space doesn't help to know the others."""
    from gptask.cli.commands.sweep import parser

    flags = {flag: action for action in parser()._actions for flag in action.option_strings}
    if before and before[-1] in flags and flags[before[-1]].nargs != 0:
        return _starting([word], [f"{choice} " for choice in flags[before[-1]].choices or ()])
    if word.startswith("-"):
        return _starting([word], [f"{flag} " for flag in flags if flag.startswith("--")])
    fixed = [w for w in before if not w.startswith("-") and "=" in w and not re.search(r"[,(]", w)]
    return candidates(" ".join(["gptask", "train", *map(shlex.quote, fixed), word]))


def _overrides(verb: str, before: Sequence[str], word: str) -> Iterator[str]:
    """Hydra's candidates behind a verb, and those it doesn't know: Trainer options, the values of enumerations."""
    from hydra.plugins.completion_plugin import DefaultCompletionPlugin

    from gptask.cli.hydra.compose import choices, loader
    from gptask.cli.hydra.launch import read
    from gptask.config import trainer_options

    line, _ = read(verb, before)
    fitting = [override for override in line.overrides if not re.search(r"\s", override)]  # Hydra splits at spaces
    key, equals, _ = word.partition("=")
    with loader() as configs:
        if equals:
            if key in line.groups:
                yield from _starting([word], [f"{key}={name} " for name in choices(configs, key)])
            else:
                yield from _starting([word], [f"{key}={value} " for value in _values(configs, verb, fitting, key)])
            return
        plugin = DefaultCompletionPlugin(configs)
        for found in plugin._query(
            config_name=verb, line=" ".join([*fitting, word]) if word else " ".join(fitting) + " "
        ):
            if not found.startswith(("hydra", "saved")):
                yield "tasks=" if found == "tasks." else found  # none are named yet
    if verb in ("train", "evaluate") and word.startswith("trainer."):
        yield from _starting([word], [f"trainer.{name}=" for name in trainer_options.option_names()])


def _values(configs: Any, verb: str, overrides: Sequence[str], key: str) -> list[str]:
    """The values an option can take, where they can be listed."""
    from omegaconf import BooleanNode, EnumNode, OmegaConf

    from gptask.cli.hydra.compose import compose

    parent, _, name = key.rpartition(".")
    config = compose(configs, verb, overrides)
    node = OmegaConf.select(config, parent) if parent else config
    node = node._get_node(name) if OmegaConf.is_dict(node) else None
    if isinstance(node, EnumNode):
        kinds: type[Enum] = node.enum_type
        return list(kinds.__members__)
    return ["true", "false"] if isinstance(node, BooleanNode) else []


def _words(line: str) -> list[str]:
    """A line as the shell splits it; the last word is the one being typed (empty behind a space)."""
    try:
        words = shlex.split(line)
    except ValueError:  # within quotes
        words = line.split()
    return [*words, ""] if not line or line[-1].isspace() else words


def _starting(words: Sequence[str], known: Sequence[str]) -> list[str]:
    word = words[-1] if words else ""
    return [candidate for candidate in known if candidate.startswith(word)]


def _cut(line: str, found: Sequence[str]) -> list[str]:
    """Readline replaces only what follows the last of its word breaks, such as ``=``: leave the rest out.

    Our bash function hands the breaks over; Hydra's for other shells don't, and put the closing space themselves.
    """
    if (breaks := os.environ.get("COMP_WORDBREAKS")) is None:
        return [candidate.rstrip() for candidate in found]
    word = _words(line)[-1]
    kept = max((place + 1 for place, character in enumerate(word) if character in breaks), default=0)
    return [candidate[kept:] for candidate in found]


def _hydra_plugin(shell: str) -> Any:
    from hydra.core.plugins import Plugins
    from hydra.plugins.completion_plugin import CompletionPlugin

    kinds: list[Any] = Plugins.instance().discover(CompletionPlugin)
    found = {kind.provides(): kind for kind in kinds}
    sys.argv[0] = "gptask"  # what Hydra's scripts are to complete, however we were started
    return found[shell](None)
