"""What runs for each job of a command line, in this process or in one that a launcher starts."""

from __future__ import annotations

import logging
import re
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptask.cli.hydra.compose import checked
from gptask.cli.hydra.error_messages import Line, mended
from gptask.runs.config_file import started_by
from gptask.runs.folder import main_process, numbered_alternatives

log = logging.getLogger("gptask")


@dataclass(frozen=True)
class Job:
    """A verb's action on the composed config, called by Hydra. It can be pickled, so it holds nothing that is open."""

    line: Line
    action: Callable[[Any], None]
    report: Callable[[Exception, str], int]
    program: str  # what started this command line
    sweeping: bool

    def __call__(self, cfg: Any) -> int:
        """Run the job; return 0, or the code that ``report`` gave its error, which thus stops no other job."""
        log_to_console()
        where = _name() if self.sweeping else ""
        given = [*self.line.typed, *_own_overrides()]
        sys.argv = [self.program, self.line.verb, *given]  # what Lightning starts further processes with
        resumed = self.line.run and self.line.verb == "train"
        before = started_by.set(None if resumed else shlex.join(["gptask", *sys.argv[1:]]))
        try:
            config = mended(self.line, lambda: checked(cfg, self.line))
            if not (self.sweeping and self._done(config)):
                self.action(config)
        except Exception as error:
            return self.report(error, where)
        finally:
            started_by.reset(before)
        return 0

    def _done(self, config: Any) -> bool:
        """Whether the sweep did this job when it was started before; one it did not finish gets a new folder."""
        from gptask.training import fingerprint as job

        if folder := job.find_finished(
            job.run_fingerprint(config), job.candidate_folders(config), model=self.line.verb == "train"
        ):
            log.info("finished already, skipped: %s", folder)
            return True
        if config.folder and main_process() and Path(config.folder).exists():
            config.folder = str(next(path for path in numbered_alternatives(Path(config.folder)) if not path.exists()))
        return False


def _name() -> str:
    from hydra.core.hydra_config import HydraConfig

    job = HydraConfig.get().job
    log.info("job %d: %s", job.num, job.override_dirname)
    return f"job {job.num} ({job.override_dirname}): "


def _own_overrides() -> list[str]:
    """The overrides of this job alone, without what a saved run or several tasks put among them."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    given: list[Any] = OmegaConf.to_container(HydraConfig.get().overrides.task)  # type: ignore[assignment]
    return given[next((n for n, o in enumerate(given, 1) if re.match(r"\+?saved[@=]", o)), 0) :]


def log_to_console() -> None:
    """Let gptask's logger write to standard error, where nothing does yet."""
    log.setLevel(logging.INFO if main_process() else logging.ERROR)
    handler = next((h for h in log.handlers if type(h) is logging.StreamHandler), None)
    if handler is None:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(handler)
    log.propagate = False  # a library that sets up logging for itself (absl does) would write every line again
    handler.stream = sys.stderr  # today's: a program may have replaced it since the last call
