"""One job of a command line, run in this process or in one that a launcher starts."""

from __future__ import annotations

import logging
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from gptask.cli.hydra.compose import search_path
from gptask.cli.hydra.error_messages import CommandLine, with_user_errors
from gptask.cli.hydra.run_overrides import is_resumed
from gptask.cli.hydra.validate import validated_config
from gptask.cli.output import report_error
from gptask.config.schemas import AUTO
from gptask.errors import UserError, VisibleFormatter
from gptask.runs.folder import RunFolderExists, is_main_process, numbered_alternatives

log = logging.getLogger("gptask")


@dataclass(frozen=True)
class Job:
    """A verb's action on a composed config. Hydra's launchers pickle it, so it holds no open resources."""

    command_line: CommandLine
    action: Callable[[Any, str | None], None]  # gets the config, and the command line unless it resumes a run
    program: str  # sys.argv[0] of the process that read the command line

    def __call__(self, config: Any) -> int:
        """Run one job of a multirun, which Hydra calls; return its exit code."""
        from hydra.core.hydra_config import HydraConfig
        from omegaconf import OmegaConf

        log_to_console()  # a launcher may have started this process
        job = HydraConfig.get().job
        overrides: list[Any] = OmegaConf.to_container(HydraConfig.get().overrides.task)  # type: ignore[assignment]
        log.info("job %d: %s", job.num, job.override_dirname)
        return self.run(config, overrides, f"job {job.num} ({job.override_dirname}): ")

    def run(self, config: Any, overrides: Sequence[str], label: str = "") -> int:
        """Run the action and return the exit code; an error is reported, so that it doesn't stop other jobs.

        ``label`` names a job of a multirun in error messages.
        """
        original_argv = sys.argv
        sys.argv = [self.program, *self._arguments(overrides)]  # Lightning starts further processes with it
        resumed = is_resumed(self.command_line.run, self.command_line.overrides)
        typed = [argument for argument in sys.argv[1:] if not re.match(r"\+*resume=", argument)]  # of a new run
        command = None if resumed else shlex.join(["gptask", *typed])
        try:
            validated = with_user_errors(self.command_line, lambda: validated_config(config, self.command_line))
            resume = getattr(validated, "resume", None)
            if not (label and resume != AUTO and self._is_finished(validated)):
                run = self._run_in_new_folder if label and not resume else self.action
                run(validated, command)
        except Exception as error:
            return report_error(error, label)
        finally:
            sys.argv = original_argv
        return 0

    def _arguments(self, overrides: Sequence[str]) -> list[str]:
        """The arguments of this job alone: the user's overrides, without those put before them.

        These are of the environment, a saved run or ``tasks=``. Of Hydra's own options the search path is there alone.
        """
        search = search_path(self.command_line.overrides)
        start = next((number for number, o in enumerate(overrides, 1) if re.match(r"\+?saved[@=]", o)), 0)
        start = max(start, len(self.command_line.environment))
        others = [override for override in overrides[start:] if override not in search]
        return [self.command_line.verb, *search, *self.command_line.typed, *others]

    def _is_finished(self, config: Any) -> bool:
        """Whether an earlier start of the multirun finished this job; an unfinished job gets a new folder."""
        from gptask.training import fingerprint  # for start-up time

        job = fingerprint.run_fingerprint(config)
        if folder := fingerprint.find_finished(job, fingerprint.candidate_folders(config)):
            log.info("skipped, already finished: %s", folder)
            return True
        return False

    def _run_in_new_folder(self, config: Any, command: str | None) -> None:
        """Run the action in the config's folder, if it names one, or in the first free alternative: jobs may race."""
        if not config.folder:
            return self.action(config, command)
        base = Path(config.folder)
        for path in chain([base], numbered_alternatives(base)):
            if path.exists() and is_main_process():
                continue
            config.folder = str(path)
            with suppress(RunFolderExists):
                return self.action(config, command)
        raise UserError(f"{base} and its numbered alternatives all exist; set folder=<folder>")


def log_to_console() -> None:
    """Let gptask's logger write to standard error, through one handler."""
    log.setLevel(logging.INFO if is_main_process() else logging.ERROR)
    handler = next((h for h in log.handlers if type(h) is logging.StreamHandler), None)
    if handler is None:
        handler = logging.StreamHandler()
        handler.setFormatter(VisibleFormatter("%(message)s"))
        log.addHandler(handler)
    log.propagate = False  # a library that configures the root logger (absl does) would repeat every line
    handler.stream = sys.stderr  # a program may have replaced it since the last call
