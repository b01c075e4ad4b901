"""A teacher: the run from which a student learns a task, and what is made of it for the student's training."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from gptask.analysis.compress.distillation import Distillation
from gptask.analysis.compress.teacher_scores import align, compute_scores
from gptask.analysis.compress.teacher_texts import texts_of_teacher, written_examples
from gptask.analysis.compress.unlabelled import with_unlabelled
from gptask.config.conversion import from_plain
from gptask.config.engine import EngineOptions
from gptask.config.schemas import Data
from gptask.data.code_hash import code_hash
from gptask.data.datamodule import DataModule
from gptask.errors import UserError, listing
from gptask.model.backbone.backbone import load_tokenizer
from gptask.plugins.discovery import plugin_of
from gptask.plugins.task import Task
from gptask.plugins.text_tokenizer import text_tokenizer
from gptask.runs.config_file import read_config
from gptask.runs.folder import verified_model
from gptask.runs.prediction_identity import run_digest
from gptask.runs.run import Run, load_run, load_task
from gptask.runs.saved_model import prediction_format
from gptask.training.fingerprint import CODE_OF_COMPRESSION, CODE_OF_RUN
from gptask.training.task_runtime import TaskRuntime


@dataclass
class Teacher:
    """The run in ``folder``, of one task; its model is loaded only where something of it is not in the cache."""

    folder: str
    engine: EngineOptions

    @cached_property
    def values(self) -> dict[str, Any]:
        """Its config.yaml."""
        return read_config(self.folder)

    @cached_property
    def task(self) -> Task:
        """Its task."""
        return load_task(self.folder)

    @property
    def options(self) -> Data:
        """Its data's options, which bound a prompt and a batch."""
        options: Data = from_plain("data", self.values["data"])
        return options

    @property
    def identity(self) -> dict[str, Any]:
        """All that decides what it makes of an example."""
        model = verified_model(self.folder)
        code = code_hash(self.task, (*CODE_OF_RUN, *CODE_OF_COMPRESSION))
        return {
            "teacher": run_digest(Path(self.folder)),
            "engine": repr(self.engine),
            "format": str(prediction_format(model, self.values)),
            "processor": "cuda" if torch.cuda.is_available() else "cpu",
            "code": [torch.__version__, plugin_of(self.task).origin, code],
        }

    def load(self) -> Run:
        """Load its model."""
        return load_run(self.folder, type(self.task), engine=self.engine)

    def data_like(self, student: DataModule) -> DataModule:
        """Its own encoding of the examples that a student learns."""
        tokenizer = text_tokenizer(load_tokenizer(str(verified_model(self.folder))))
        data = DataModule(self.task, student.corpus, tokenizer, self.options, student.seed)
        data.train_examples = student.train_examples
        return data

    def require_task(self, task: Task) -> None:
        """Raise `UserError` unless the student's task is the teacher's, with the same labels in the same order."""
        if type(task) is not type(self.task):
            raise UserError(
                f"{self.folder} is a run of task '{plugin_of(self.task).name}', and the student learns "
                f"'{plugin_of(task).name}': a teacher teaches its own task"
            )
        taught, learned = self.task.score_labels(), task.score_labels()
        if taught == learned:
            return
        differences = [
            f"only {who} has {listing(sorted(names), 6)}"
            for who, names in (("the teacher", {*taught} - {*learned}), ("the student", {*learned} - {*taught}))
            if names
        ]
        raise UserError(
            f"the labels of the student are not those of its teacher {self.folder}: "
            f"{'; '.join(differences) or f'they are in another order, {listing(learned, 6)}'}. Leave the task's labels "
            "to the teacher, and take data with its labels"
        )


def teach(
    runtime: TaskRuntime, teacher: Teacher, temperature: float, weight: float, unlabelled: str | None
) -> Path | None:
    """Let a task be learned from its teacher: by its scores beside the labels, or by the texts that it writes.

    ``unlabelled`` is a file of further inputs. Returns the file of the texts. Raises `UserError` where this teacher
    can't teach this student.
    """
    teacher.require_task(runtime.task)
    data = runtime.data
    if not isinstance(data, DataModule):
        raise UserError(
            f"the task '{runtime.name}' has a data module of its own, whose items can't be matched with a teacher's: "
            "train it without one"
        )
    train = data.corpus.split("train")
    examples = with_unlabelled(data.corpus, unlabelled) if unlabelled else train
    if runtime.head.decodes:
        texts = texts_of_teacher(teacher.load, examples, teacher.options, teacher.identity)
        data.train_examples = written_examples(runtime.task, examples, texts)
        return texts
    if unlabelled:
        data.train_examples, data.labelled_examples = examples, len(train)
    teacher_data = teacher.data_like(data)
    scores = compute_scores(teacher.load, teacher_data, teacher.options, repr(teacher.identity))
    scores = align(scores, teacher_data, data, runtime.head)
    runtime.student_loss = Distillation(scores, temperature, weight, data.has_label).loss
    return None
