"""Errors of Hydra and OmegaConf in words a user can act on."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from gptask.errors import UserError, listing, nearest

KINDS = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false"}


def explain(error: BaseException) -> str | None:
    """The message for an error a user can mend, None for a defect of ours."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.filename and error.errno:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, OSError) and error.errno == 28:
        return f"{error.strerror} while writing"
    if isinstance(error, BrokenExecutor):  # joblib's
        return (
            "a job's process was killed (was there memory for so many at a time? hydra.launcher.n_jobs=1 runs one). "
            "The same command again skips the finished jobs"
        )
    return None


def mended(line: Line, part: Callable[[], Any]) -> Any:
    """Run a part, its errors of Hydra or OmegaConf put into the user's words."""
    try:
        return part()
    except Exception as error:
        theirs = line.mend(error)
        if theirs is error:
            raise
        raise theirs from error


@dataclass
class Line:
    """A command line: what is needed to say where a wrong value came from and what there would have been."""

    verb: str
    overrides: Sequence[str] = ()
    run: str | None = None  # the run folder whose values were put between defaults and overrides
    typed: Sequence[str] = ()  # what stood for several tasks, before it was put in Hydra's terms

    @cached_property
    def groups(self) -> list[str]:
        """The config groups."""
        from gptask.cli.hydra.compose import loader

        with loader() as configs:
            return [name for name in configs.list_groups("") if name not in ("hydra", "saved")]

    def choices(self, group: str) -> list[str]:
        """What can be chosen in a config group."""
        from gptask.cli.hydra.compose import choices, loader

        with loader() as configs:
            return choices(configs, group)

    def mend(self, error: Exception) -> Exception:
        """The user's mistake behind an error of Hydra or OmegaConf; any other error comes back as it is."""
        if isinstance(error, OSError) and error.filename:  # the folder of a sweep
            return UserError(f"{error.filename} can't be made: {error.strerror}; set outputs=<folder>")
        if not self._theirs(error):
            return error
        texts = _chain(error)
        whole = "\n".join(texts)
        for pattern, name in RULES:
            if found := re.search(pattern, whole, re.MULTILINE):
                try:
                    return UserError(getattr(self, name)(found, whole))
                except UserError as mended:
                    return mended
        return UserError(_cause(texts))

    def _theirs(self, error: Exception) -> bool:
        module = type(error).__module__.split(".")[0]
        return module in ("hydra", "omegaconf") or "Config group override must be" in str(error)

    def _choice(self, found: re.Match[str], whole: str) -> str:
        asker, group, name = found.groups()
        if group == "task":
            from gptask.plugins.discovery import discover, load_task_class

            try:
                load_task_class(discover(()), name)
            except UserError as error:
                return f"{error}{self._source('task', asker)}"
        self.refuse_several(group, name)
        known = (self.choices(group) if group in self.groups else []) or re.findall(r"^\t(\S+)$", whole, re.M)
        source = self._source(group, asker)
        return f"unknown {group} '{name}'{source}; there are {listing(known, 40)}.{nearest(name, known)}"

    def refuse_several(self, key: str, value: str) -> None:
        """Raise `UserError` for the values of a sweep that were given without ``-m``."""
        if "," in value and not value.startswith("["):
            raise UserError(f"{key}={value}: several values need -m (a run each): gptask {self.verb} -m {key}={value}")

    def _unknown(self, found: re.Match[str], whole: str) -> str:
        key = found[1]
        if inner := re.search(r"full_key: (\S+)", whole):
            key = inner[1]
        return self.unknown(key, self._source(found[1]))

    def unknown(self, key: str, source: str = "") -> str:
        """The message for an option that the schema doesn't have, with its siblings."""
        parent, _, name = key.rpartition(".")
        known = self.siblings(parent)
        known = [] if name in known else known  # another job of a sweep lacks it
        there = f"; there are {listing(known, 40)}.{nearest(name, known)}" if known else "."
        return f"unknown option '{key}'{source}{there}{self._owners(key)}"

    def _refused(self, found: re.Match[str], whole: str) -> str:
        key, _, value = found[1].partition("=")
        key = key.lstrip("+")
        if value[:1] not in "[{" and "converted" in whole:
            self.refuse_several(key, value.strip("'"))
        return f"{key}={value}: {self._wrong(key, whole)}"

    def _wrong(self, key: str, whole: str) -> str:
        """What is wrong with a value, in the words of the options rather than OmegaConf's."""
        if found := re.search(r"Value '(.*)' of type '(\w+)' could not be converted to (\w+)", whole):
            return f"expected {KINDS.get(found[3], found[3])}, got '{found[1]}'"
        if found := re.search(r"Value '(.*)' is not a valid bool", whole):
            return f"expected true or false, got '{found[1]}'"
        if "is not a ListConfig" in whole:
            return f"expected a list: {key}=[a,b]"
        if found := re.search(r"Cannot (?:assign (\w+) to Dict|merge DictConfig with (\w+))", whole):
            return f"expected names with values: {key}={{name:value}} or {key}.name=value"
        if found := re.search(r"Invalid type assigned: (\w+) is not a subclass of (\w+)", whole):
            return f"this is a group of options, set as {key}.<name>=<value>; there are {listing(self.siblings(key))}"
        if "GrammarParseError" in whole or "${" in whole:
            return "a ${ that doesn't end; write \\${ for the characters themselves"
        if "is not Optional" in whole:
            return "null is not possible here"
        return _cause(whole.splitlines()[1:] or [whole])

    def _saved(self, found: re.Match[str], whole: str) -> str:
        key = re.search(r"full_key: (\S+)", whole)
        name = key[1] if key else "a value"
        if "not in '" in whole:
            return self.unknown(name, self._source(name, found[1]))
        return f"{name}{self._source(name, found[1])}: {self._wrong(name, whole)}"

    def _missing(self, found: re.Match[str], whole: str) -> str:
        key = (re.search(r"full_key: (\S+)", whole) or found)[1]
        return f"{key} is required: gptask {self.verb} {key}=<value>  (gptask {self.verb} --help shows all options)"

    def _interpolation(self, found: re.Match[str], whole: str) -> str:
        inner = re.search(r"full_key: (\S+)", whole)
        key = inner[1] if inner else "a value"
        what = found[0].strip().splitlines()[0]
        return (
            f"{key}{self._source(key)}: {what}. ${{name}} stands for another option's value; write \\${{ for the "
            "characters themselves"
        )

    def _group(self, found: re.Match[str], whole: str) -> str:
        for override in self.overrides:
            group = override.partition("=")[0].lstrip("+")
            if group in self.groups and re.fullmatch(r"[^=]+=(null|true|false|[\d.+-]*)", override):
                return f"{override}: choose one of {listing(self.choices(group), 40)}"
        return _cause([whole])

    def _syntax(self, found: re.Match[str], whole: str) -> str:
        return f"this override can't be read: {found[1].strip()} ({_cause(_lines(whole)[1:] or [whole])})"

    def _source(self, key: str, asker: str = "") -> str:
        """Where a value came from, if not from the command line itself."""
        given = {o.partition("=")[0].lstrip("+~"): o.partition("=")[2] for o in self.overrides}
        if asker == "saved/tasks":
            return " (from a preset in tasks=)"
        if asker.startswith("saved/") or (self.run and key not in given and "." in key):
            return f" (from {self.run}/config.yaml)"
        if "/" in asker and not asker.startswith("hydra"):
            return f" (from {asker.replace('/', '=', 1)})"
        return f" (from experiment={given['experiment']})" if "experiment" in given and key not in given else ""

    def _owners(self, key: str) -> str:
        """Which choices of a group have an option that the present one lacks."""
        from gptask.plugins.config_group import stored_configs
        from gptask.plugins.discovery import discover

        prefix = (re.match(r"tasks\.\w+\.", key) or [""])[0]
        group, _, name = key.removeprefix(prefix).partition(".")
        if group == "task":
            discover()  # loads them all
        nodes = stored_configs(group) if group in self.groups and name else {}
        names = {choice for choice, node in nodes.items() if name.split(".")[0] in node}
        owners = {name.removesuffix("_schema") for name in names}
        shown = [f"{prefix}{group}={choice}" for choice in self.choices(group) if choice in owners] if owners else []
        return f" It belongs to {' or '.join(shown)}." if shown else ""

    def siblings(self, parent: str) -> list[str]:
        """The options under a key, composed without the value overrides (one of them is wrong)."""
        from hydra.errors import HydraException
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException

        from gptask.cli.hydra.compose import compose, loader

        wanted = [o for o in self.overrides if re.split("[=@]", o.lstrip("+~"))[0] in self.groups]
        with loader() as configs:
            for choices in (wanted, [o for o in wanted if not o.startswith("experiment=")]):  # it may be what is wrong
                try:
                    node: Any = compose(configs, self.verb, choices)
                    node = OmegaConf.select(node, parent) if parent else node
                    return [str(name) for name in node if name != "hydra"] if OmegaConf.is_dict(node) else []
                except (HydraException, OmegaConfBaseException):
                    continue
        return []


RULES = (
    (r"In '([^']+)': Could not (?:find|load) '([\w/]+)/([^']+)'", "_choice"),
    (r"In '([^']+)': \w+ raised while composing", "_saved"),
    (r"Could not (?:override|append to|delete from) (?:config\. )?'([^']+)'", "_unknown"),
    (r"Error merging override (.+)", "_refused"),
    (r"missing mandatory value: (\S+)", "_missing"),
    (
        r"Interpolation key '[^']*' not found|Unsupported interpolation type \S+|.*raised while resolving.*",
        "_interpolation",
    ),
    (r"Config group override must be", "_group"),
    (r"(?:Error parsing override|Lexer\w+:|Error when parsing\w*) ?(.*)", "_syntax"),
)


def _chain(error: BaseException | None) -> list[str]:
    texts = []
    while error is not None:
        texts.append(str(error))
        error = error.__cause__ or error.__context__
    return texts


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _cause(texts: Sequence[str]) -> str:
    """The first line that is spoken to people."""
    spoken = [text for text in texts if text.strip() and text.strip() != "None"]
    return spoken[0].strip().splitlines()[0] if spoken else "it can't be read"
