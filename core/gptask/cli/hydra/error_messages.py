"""Messages for Hydra's and OmegaConf's errors: which option is wrong, what was expected, and how to fix it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from gptask.cli.hydra.compose import choices, compose, loader, search_path
from gptask.config.verb_schemas import VERB_SCHEMAS
from gptask.errors import UserError, listing, nearest
from gptask.plugins.config_group import stored_configs
from gptask.plugins.discovery import discover, load_task_class

VALUE_TYPES = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false"}
FULL_KEY = re.compile(r"full_key: (\S+)")  # OmegaConf's name of the option in an error
Result = TypeVar("Result")


def with_user_errors(command_line: CommandLine, call: Callable[[], Result]) -> Result:
    """The result of a call whose Hydra and OmegaConf errors are raised as `UserError`."""
    try:
        return call()
    except Exception as error:
        translated = command_line.user_error(error)
        if translated is error:
            raise
        raise translated from error


@dataclass
class CommandLine:
    """A command line, with what its error messages need: where a value came from and which options exist."""

    verb: str
    overrides: Sequence[str] = ()
    run: str | None = None  # the run folder whose values lie between the defaults and the overrides
    typed: Sequence[str] = ()  # overrides about ``tasks=`` as typed; ``overrides`` has their translation for Hydra
    environment: Sequence[str] = ()  # the first of the overrides: those that stand for environment variables

    @cached_property
    def groups(self) -> list[str]:
        """The config groups."""
        with loader() as configs:
            return [name for name in configs.list_groups("") if name not in ("hydra", "saved")]

    def choices(self, group: str) -> list[str]:
        """The choices of a config group."""
        with loader() as configs:
            return choices(configs, group, self.overrides)

    def user_error(self, error: Exception) -> Exception:
        """The `UserError` for an error of Hydra or OmegaConf; any other error is returned as it is."""
        if isinstance(error, OSError) and error.filename:  # the folder of a multirun
            return UserError(f"{error.filename} can't be created: {error.strerror}; set outputs=<folder>")
        from_hydra = type(error).__module__.split(".")[0] in ("hydra", "omegaconf")
        if not from_hydra and "Config group override must be" not in str(error) and not self._composing(error):
            return error
        texts = _error_chain(error)
        error_text = "\n".join(texts)
        for pattern, message in MESSAGE_RULES:
            if match := re.search(pattern, error_text, re.MULTILINE):
                try:
                    return UserError(message(self, match, error_text))
                except UserError as user_error:
                    return user_error
        return UserError(_first_readable_line(texts))

    def _composing(self, error: Exception) -> bool:
        """Whether Hydra's own code raised an error of another class for a group's choice that is no name."""
        frame = error.__traceback__
        while frame and frame.tb_next:
            frame = frame.tb_next
        in_hydra = frame is not None and str(frame.tb_frame.f_globals.get("__name__")).split(".")[0] == "hydra"
        return in_hydra and isinstance(error, TypeError) and self._choice_that_is_no_name() is not None

    def _choice_that_is_no_name(self) -> str | None:
        """The override of a group whose value is a number, a list or a dictionary in place of a name."""
        for override in self.overrides:
            group = override.partition("=")[0].lstrip("+")
            if group in self.groups and re.fullmatch(r"[^=]+=(null|true|false|[\d.+-]*|[\[{].*)", override, re.DOTALL):
                return override
        return None

    def refuse_sweep_values(self, key: str, value: str) -> None:
        """Raise `UserError` for several values without ``-m``."""
        if "," in value and not value.startswith("["):
            raise UserError(f"{key}={value}: several values need -m (a run each): gptask {self.verb} -m {key}={value}")

    def unknown_option(self, key: str, origin: str = "") -> str:
        """The message for an option that the schema lacks: the options beside it and the choices that have it."""
        parent, _, name = key.rpartition(".")
        available = self.options_under(parent)
        available = [] if name in available else available  # another job of the multirun lacks it
        rest = f"; available: {listing(available, 40)}.{nearest(name, available)}" if available else "."
        chosen = [o for o in self.overrides if o.partition("=")[0].lstrip("+") == key.partition(".")[0]]
        way_out = f" Leave {chosen[-1]} out, or the preset." if chosen and "experiment=" in origin else ""
        return f"unknown option '{key}'{origin}{rest}{self._owner_note(key)}{way_out}"

    def options_under(self, parent: str) -> list[str]:
        """The options under a key, composed from the group choices alone, since another override is wrong."""
        from hydra.errors import HydraException
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException

        group_choices = [o for o in self.overrides if re.split("[=@]", o.lstrip("+~"))[0] in self.groups]
        group_choices += search_path(self.overrides)
        without_preset = [o for o in group_choices if not o.startswith("experiment=")]  # the preset may be wrong
        with loader() as configs:
            for overrides in (group_choices, without_preset):
                try:
                    node: Any = compose(configs, self.verb, overrides)
                    node = OmegaConf.select(node, parent) if parent else node
                    return [str(name) for name in node if name != "hydra"] if OmegaConf.is_dict(node) else []
                except (HydraException, OmegaConfBaseException):
                    continue
        return []

    def _unknown_choice(self, match: re.Match[str], error_text: str) -> str:
        config_file, group, name = match.groups()
        origin = self._origin_note(group, config_file)
        if group == "task":
            try:
                load_task_class(discover(()), name)
            except UserError as error:
                return f"{error}{origin}"
        self.refuse_sweep_values(group, name)
        available = self.choices(group) if group in self.groups else []
        available = available or re.findall(r"^\t(\S+)$", error_text, re.MULTILINE)
        return f"unknown {group} '{name}'{origin}; available: {listing(available, 40)}.{nearest(name, available)}"

    def _unknown_key(self, match: re.Match[str], error_text: str) -> str:
        full_key = FULL_KEY.search(error_text)
        return self.unknown_option(full_key[1] if full_key else match[1], self._origin_note(match[1]))

    def _invalid_value(self, match: re.Match[str], error_text: str) -> str:
        key, _, value = match[1].partition("=")
        key = key.lstrip("+")
        if value[:1] not in "[{" and "converted" in error_text:
            self.refuse_sweep_values(key, value.strip("'"))
        return f"{key}={value}: {self._expectation(key, error_text)}"

    def _invalid_saved_value(self, match: re.Match[str], error_text: str) -> str:
        full_key = FULL_KEY.search(error_text)
        key = full_key[1] if full_key else "a value"
        origin = self._origin_note(key, match[1])
        if "not in '" in error_text:
            return self.unknown_option(key, origin)
        return f"{key}{origin}: {self._expectation(key, error_text)}"

    def _missing_value(self, match: re.Match[str], error_text: str) -> str:
        key = (FULL_KEY.search(error_text) or match)[1]
        return f"{key} is required: gptask {self.verb} {key}=<value>  (gptask {self.verb} --help shows all options)"

    def _invalid_interpolation(self, match: re.Match[str], error_text: str) -> str:
        full_key = FULL_KEY.search(error_text)
        key = full_key[1] if full_key else "a value"
        problem = match[0].strip().splitlines()[0]
        return (
            f"{key}{self._origin_note(key)}: {problem}. ${{name}} is replaced by the value of another option; "
            "write \\${ for a literal ${"
        )

    def _invalid_resolved_value(self, match: re.Match[str], error_text: str) -> str:
        full_key = FULL_KEY.search(error_text)
        key = full_key[1] if full_key else "a value"
        return f"{key}{self._origin_note(key)}: {self._expectation(key, error_text)}"

    def _invalid_choice(self, match: re.Match[str], error_text: str) -> str:
        override = self._choice_that_is_no_name()
        if override is None:
            return _first_readable_line([error_text])
        group = override.partition("=")[0].lstrip("+")
        return f"{override}: choose one of {listing(self.choices(group), 40)}"

    def _syntax_error(self, match: re.Match[str], error_text: str) -> str:
        lines = [line.strip() for line in error_text.splitlines() if line.strip()]
        return f"invalid override: {match[1].strip()} ({_first_readable_line(lines[1:] or [error_text])})"

    def _expectation(self, key: str, error_text: str) -> str:
        """What was expected instead of a value, in terms of options rather than of OmegaConf's types."""
        if match := re.search(r"Value '(.*)' of type '(\w+)' could not be converted to (\w+)", error_text):
            return f"expected {VALUE_TYPES.get(match[3], match[3])}, got '{match[1]}'"
        if match := re.search(r"Value '(.*)' is not a valid bool", error_text):
            return f"expected true or false, got '{match[1]}'"
        if "is not a ListConfig" in error_text:
            return f"expected a list: {key}=[a,b]"
        if re.search(r"Cannot (?:assign \w+ to Dict|merge DictConfig with \w+)", error_text):
            return f"expected names with values: {key}={{name:value}} or {key}.name=value"
        if re.search(r"Invalid type assigned: \w+ is not a subclass of \w+", error_text):
            options = listing(self.options_under(key))
            return f"this is a group of options, set as {key}.<name>=<value>; available: {options}"
        if "GrammarParseError" in error_text or "${" in error_text:
            return "a ${ without its }; write \\${ for a literal ${"
        if "is not Optional" in error_text:
            return "null is not allowed here"
        return _first_readable_line(error_text.splitlines()[1:] or [error_text])

    def _origin_note(self, key: str, config_file: str = "") -> str:
        """Where a value came from, empty for the command line itself."""
        values = {o.partition("=")[0].lstrip("+~"): o.partition("=")[2] for o in self.overrides}
        if config_file == "saved/tasks":
            return " (from a preset in tasks=)"
        if config_file.startswith("saved/") or (self.run and key not in values and "." in key):
            return f" (from {self.run}/config.yaml)"
        if "/" in config_file and not config_file.startswith("hydra"):
            return f" (from {config_file.replace('/', '=', 1)})"
        return f" (from experiment={values['experiment']})" if "experiment" in values and key not in values else ""

    def _owner_note(self, key: str) -> str:
        """The choices of a group that have an option which the present choice lacks."""
        prefix = (re.match(r"tasks\.\w+\.", key) or [""])[0]
        group, _, name = key.removeprefix(prefix).partition(".")
        if prefix and (note := self._other_tasks_note(prefix, group, name)):
            return note
        if group == "task":
            discover()  # loads every plugin
        if not name and (verbs := [verb for verb, schema in VERB_SCHEMAS.items() if key in schema.__annotations__]):
            return f" It is an option of {listing(f'gptask {verb}' for verb in verbs)}."
        schemas = stored_configs(group) if group in self.groups and name else {}
        with_option = {choice.removesuffix("_schema") for choice, node in schemas.items() if name.split(".")[0] in node}
        owners = [choice for choice in self.choices(group) if choice in with_option] if with_option else []
        return f" It belongs to {' or '.join(f'{prefix}{group}={choice}' for choice in owners)}." if owners else ""

    def _other_tasks_note(self, prefix: str, group: str, name: str) -> str:
        """The override for the tasks that have an option which one of several lacks."""
        owners = [
            task
            for task in self.options_under("tasks")
            if f"tasks.{task}." != prefix and name.split(".")[0] in self.options_under(f"tasks.{task}.{group}")
        ]
        typed = [o.lstrip("+") for o in self.overrides if o.lstrip("+").startswith(f"{prefix}{group}.{name}")]
        option = typed[-1].removeprefix(prefix) if typed else f"{group}.{name}"
        return f" Set it for the tasks that have it: {listing(f'tasks.{task}.{option}' for task in owners)}." * bool(
            owners
        )


MESSAGE_RULES: tuple[tuple[str, Callable[[CommandLine, re.Match[str], str], str]], ...] = (
    (r"In '([^']+)': Could not (?:find|load) '([\w/]+)/([^']*)'", CommandLine._unknown_choice),
    (r"In '([^']+)': \w+ raised while composing", CommandLine._invalid_saved_value),
    (r"Could not (?:override|append to|delete from) (?:config\. )?'([^']+)'", CommandLine._unknown_key),
    (r"Error merging override (.+)", CommandLine._invalid_value),
    (r"missing mandatory value: (\S+)", CommandLine._missing_value),
    (r"While dereferencing interpolation", CommandLine._invalid_resolved_value),
    (
        r"Interpolation key '[^']*' not found|Unsupported interpolation type \S+|.*raised while resolving.*",
        CommandLine._invalid_interpolation,
    ),
    (r"Config group override must be|can only concatenate str|is not iterable", CommandLine._invalid_choice),
    (r"(?:Error parsing override|Lexer\w+:|Error when parsing\w*) ?(.*)", CommandLine._syntax_error),
)


def _error_chain(error: BaseException | None) -> list[str]:
    """The texts of an error and of those that caused it."""
    texts = []
    while error is not None:
        texts.append(str(error))
        error = error.__cause__ or error.__context__
    return texts


def _first_readable_line(texts: Sequence[str]) -> str:
    """The first line with words in it."""
    readable = [text for text in texts if text.strip() and text.strip() != "None"]
    return readable[0].strip().splitlines()[0] if readable else "it can't be read"
