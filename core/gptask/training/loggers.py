"""Loggers of a training's curves: metrics.csv always, and the experiment tracker that ``logger=`` names."""

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
from gptask.errors import UserError, real_path
from gptask.plugins.discovery import plugin_of
from gptask.runs.folder import is_main_process, run_title

if TYPE_CHECKING:
    import pytorch_lightning as pl
    from pytorch_lightning.loggers import Logger

OPTION_NAME = re.compile(r"[A-Za-z]\w*", re.ASCII)


def _tensorboard(config: Train, folder: Path) -> Logger:
    from pytorch_lightning.loggers import TensorBoardLogger

    return TensorBoardLogger(str(folder), name="", version="tensorboard", default_hp_metric=False)


def _mlflow(config: Train, folder: Path) -> Logger:
    """MLflow in SQLite beside the run folders (its file store is in maintenance mode), without its telemetry."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # both are read when mlflow is imported
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # it logs every table it creates
    logging.getLogger("alembic").setLevel(logging.WARNING)
    from pytorch_lightning.loggers import MLFlowLogger

    outputs = real_path(config.outputs)
    uri = config.logger.uri or os.environ.get("MLFLOW_TRACKING_URI")
    return MLFlowLogger(
        config.logger.experiment or run_title(config),
        run_name=folder.name,
        tracking_uri=uri or f"sqlite:///{outputs / 'mlflow.db'}",
        artifact_location=None if uri else (outputs / "mlflow").as_uri(),
    )


def _wandb(config: Train, folder: Path) -> Logger:
    """Weights & Biases without what it collects unasked: console, code, git, the machine's load, error reports."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # read when wandb is imported
    import wandb
    from pytorch_lightning.loggers import WandbLogger

    options = config.logger
    quiet = wandb.Settings(silent=True, console="off", save_code=False, disable_git=True, x_disable_stats=True)
    target = {"project": options.project, "entity": options.entity, "mode": options.mode.value, "dir": str(folder)}
    # Lightning's own wandb.init would log into a run that the caller has open, and passes an option wandb dropped
    experiment = wandb.init(name=folder.name, reinit="create_new", settings=quiet, **target)
    experiment.define_metric("trainer/global_step")
    experiment.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    return WandbLogger(project=options.project, save_dir=str(folder), experiment=experiment)


@dataclass(frozen=True)
class Tracker:
    """A kind of ``logger=``: the extra that installs it, the modules it needs, what builds its Lightning logger."""

    extra: str
    modules: tuple[str, ...]
    build: Callable[[Train, Path], Logger]


TRACKERS = {
    TensorBoardLog: Tracker("tensorboard", ("tensorboard",), _tensorboard),
    MLflowLog: Tracker("mlflow", ("mlflow", "sqlalchemy", "alembic"), _mlflow),
    WandbLog: Tracker("wandb", ("wandb",), _wandb),
}


def require_logger(options: Any) -> None:
    """Raise `UserError` where the tracker that ``logger=`` names is not installed."""
    tracker = TRACKERS.get(type(options))
    if tracker and not all(map(find_spec, tracker.modules)):
        raise UserError(
            f"logger={tracker.extra} needs a package that is not installed: pip install 'gptask[{tracker.extra}]'"
        )


def csv_logger(folder: Path) -> Logger:
    """The logger of metrics.csv, which every run has; it opens the file when the first value is logged."""
    from pytorch_lightning.loggers import CSVLogger

    return CSVLogger(str(folder), name="", version="")


def set_aside_curves(folder: Path) -> None:
    """Keep the curves from before a resume beside metrics.csv, which Lightning would delete."""
    table, before = folder / "metrics.csv", folder.glob("metrics.before-resume-*.csv")
    if table.exists():
        last = max((int(number[1]) for path in before if (number := re.search(r"-(\d+)\.csv$", path.name))), default=0)
        table.rename(folder / f"metrics.before-resume-{last + 1}.csv")


@contextmanager
def tracking(trainer: pl.Trainer, config: Train, folder: Path) -> Iterator[None]:
    """Add the config's tracker to the trainer; log the config to it at the start, and success or failure at the end.

    Of several processes only the main one has the tracker. Raises `UserError` where it can't start.
    """
    tracker = TRACKERS.get(type(config.logger))
    if tracker is None or not is_main_process():
        yield
        return
    logger = _open_logger(tracker, config, folder)
    trainer.loggers = [*trainer.loggers, logger]
    status = "failed"
    try:
        logger.log_hyperparams(flatten_config({**_plugin_origin(config), **to_plain(config)}))
        yield
        status = "success"
    finally:
        logger.finalize(status)
        if isinstance(config.logger, WandbLog):  # Lightning leaves its run open
            logger.experiment.finish(exit_code=int(status == "failed"))


def _plugin_origin(config: Train) -> dict[str, str]:
    """Name and version of the task's plugin, or of several tasks' plugins."""
    plugins = [plugin_of(task_config.task) for task_config in config.tasks.values()] or [plugin_of(config.task)]
    return {
        "plugin": "+".join(plugin.name for plugin in plugins),
        "plugin_version": "+".join(plugin.version for plugin in plugins),
    }


def _open_logger(tracker: Tracker, config: Train, folder: Path) -> Any:
    """Build the tracker's Lightning logger and open its run."""
    try:
        logger: Any = tracker.build(config, folder)
        logger.experiment  # noqa: B018 (reading it opens the run)
    except Exception as error:  # each tracker raises its own classes, and those of its database or its network
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"logger={tracker.extra} can't start: {lines[0]}") from error
    return logger


def flatten_config(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A config as ``group.option: value``; lists, and maps with a user's own keys, as JSON."""
    options: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict) and value and all(OPTION_NAME.fullmatch(str(key)) for key in value):
            options |= flatten_config(value, f"{prefix}{name}.")
        else:
            is_scalar = value is None or isinstance(value, str | int | float)
            options[prefix + name] = value if is_scalar else json.dumps(value, ensure_ascii=False)
    return options


def log_scores(loggers: Iterable[Logger], scores: dict[str, float], step: int) -> None:
    """Log the scores of the test after the curves."""
    for logger in loggers:
        logger.log_metrics(scores, step)
        logger.save()
