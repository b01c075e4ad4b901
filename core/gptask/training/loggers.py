"""Where a training's curves go: metrics.csv always, and the tracker that ``logger=`` names."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptask.config.conversion import to_plain
from gptask.config.schemas import MLflowLog, TensorBoardLog, Train, WandbLog
from gptask.errors import UserError
from gptask.plugins.discovery import plugin_of
from gptask.runs.folder import main_process, run_title

if TYPE_CHECKING:
    import pytorch_lightning as pl
    from pytorch_lightning.loggers import Logger

PLAIN = re.compile(r"[A-Za-z]\w*", re.ASCII)


def _tensorboard(config: Train, folder: Path) -> Logger:
    from pytorch_lightning.loggers import TensorBoardLogger

    return TensorBoardLogger(str(folder), name="", version="tensorboard", default_hp_metric=False)


def _mlflow(config: Train, folder: Path) -> Logger:
    """MLflow in SQLite beside the run folders (its file store is in maintenance mode), without its telemetry."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # both are read when mlflow is imported
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # it tells of every table it makes
    logging.getLogger("alembic").setLevel(logging.WARNING)
    from pytorch_lightning.loggers import MLFlowLogger

    outputs = Path(config.outputs).resolve()
    uri = config.logger.uri or os.environ.get("MLFLOW_TRACKING_URI")
    return MLFlowLogger(
        config.logger.experiment or run_title(config),
        run_name=folder.name,
        tracking_uri=uri or f"sqlite:///{outputs / 'mlflow.db'}",
        artifact_location=None if uri else (outputs / "mlflow").as_uri(),
    )


def _wandb(config: Train, folder: Path) -> Logger:
    """Weights & Biases without what it gathers by itself: console, code, git, the machine's load, error reports."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # read when wandb is imported
    import wandb
    from pytorch_lightning.loggers import WandbLogger

    options = config.logger
    quiet = wandb.Settings(silent=True, console="off", save_code=False, disable_git=True, x_disable_stats=True)
    places = {"project": options.project, "entity": options.entity, "mode": options.mode.value, "dir": str(folder)}
    # not by Lightning: it would go on in a run that the caller has open, and gives an option wandb no longer has
    experiment = wandb.init(name=folder.name, reinit="create_new", settings=quiet, **places)
    experiment.define_metric("trainer/global_step")
    experiment.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    return WandbLogger(project=options.project, save_dir=str(folder), experiment=experiment)


@dataclass(frozen=True)
class Tracker:
    """A kind of ``logger=``: the extra that brings it, the modules it needs, and what builds its Lightning logger."""

    extra: str
    modules: tuple[str, ...]
    build: Callable[[Train, Path], Logger]


TRACKERS = {
    TensorBoardLog: Tracker("tensorboard", ("tensorboard",), _tensorboard),
    MLflowLog: Tracker("mlflow", ("mlflow", "sqlalchemy", "alembic"), _mlflow),
    WandbLog: Tracker("wandb", ("wandb",), _wandb),
}


def require_logger(options: Any) -> None:
    """Raise `UserError` where what ``logger=`` names is not installed."""
    tracker = TRACKERS.get(type(options))
    if tracker and not all(map(find_spec, tracker.modules)):
        raise UserError(
            f"logger={tracker.extra} needs a package that is not installed: pip install 'gptask[{tracker.extra}]'"
        )


def csv_logger(folder: Path) -> Logger:
    """metrics.csv, which every run has; the curve of the part before a resume is kept beside it."""
    from pytorch_lightning.loggers import CSVLogger

    table = folder / "metrics.csv"
    if table.exists():  # Lightning deletes it
        table.rename(folder / f"metrics.before-resume-{len(list(folder.glob('metrics.before*'))) + 1}.csv")
    return CSVLogger(str(folder), name="", version="")


@contextmanager
def tracked(trainer: pl.Trainer, config: Train, folder: Path) -> Iterator[None]:
    """Give the trainer the tracker that the config names; it is told the run's config, and how the run ended.

    Of several processes only the one that writes has it. Raises `UserError` where it can't start.
    """
    tracker = TRACKERS.get(type(config.logger))
    if tracker is None or not main_process():
        yield
        return
    logger = _started(tracker, config, folder)
    trainer.loggers = [*trainer.loggers, logger]
    status = "failed"
    try:
        logger.log_hyperparams(flat({**_plugins(config), **to_plain(config)}))
        yield
        status = "success"
    finally:
        logger.finalize(status)
        if isinstance(config.logger, WandbLog):  # Lightning leaves it open
            logger.experiment.finish(exit_code=int(status == "failed"))


def _plugins(config: Train) -> dict[str, Any]:
    """Name and version of the plugin, or of those of several tasks."""
    found = [plugin_of(member.task) for member in config.tasks.values()] or [plugin_of(config.task)]
    pairs = {"plugin": [plugin.name for plugin in found], "plugin_version": [plugin.version for plugin in found]}
    return {key: "+".join(values) for key, values in pairs.items()}


def _started(tracker: Tracker, config: Train, folder: Path) -> Any:
    """The tracker's Lightning logger with its run open."""
    try:
        logger: Any = tracker.build(config, folder)
        logger.experiment  # noqa: B018 (this opens it)
    except Exception as error:  # each tracker raises its own kinds, and those of its database or its network
        cause = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"logger={tracker.extra} can't start: {cause[0]}") from error
    return logger


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A config as ``group.option: value``; lists, and maps whose keys are a user's own, as JSON."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict) and value and all(PLAIN.fullmatch(str(key)) for key in value):
            found |= flat(value, f"{prefix}{name}.")
        else:
            plain = value is None or isinstance(value, str | int | float)
            found[prefix + name] = value if plain else json.dumps(value, ensure_ascii=False)
    return found


def log_scores(loggers: Iterable[Logger], scores: dict[str, float], step: int) -> None:
    """Put a test's scores behind the curves."""
    for logger in loggers:
        logger.log_metrics(scores, step)
        logger.save()
