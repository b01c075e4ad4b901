"""Distillation: in its training loss, a student learns a teacher's scores beside the labels.

Shapes: B sequences, T positions, C channels, W words, K classes, N distributions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from gptask.analysis.compress.teacher_scores import TeacherScores
from gptask.data.datamodule import PaddedBatch
from gptask.errors import UserError
from gptask.model.heads import Head

LOG_PROBABILITIES = -1e4, -1e-30  # of a yes: those beyond have no finite logit in float32


@dataclass
class Distillation:
    """A task's training loss: ``weight`` parts of the teacher's scores, the rest of its head's own loss.

    Of an item without a label, for which ``has_label`` is false, the teacher's scores are all there is to learn.
    """

    scores: TeacherScores
    temperature: float
    weight: float
    has_label: Callable[[Sequence[int]], np.ndarray]

    def loss(self, head: Head, hidden: Tensor, batch: PaddedBatch) -> Tensor:
        """Return the loss of a batch, a scalar, from the last hidden states (B, T, C)."""
        labelled = bool(self.has_label(batch.rows).all())
        if labelled and self.weight == 0:
            return head.loss(hidden, batch)
        scores = head.scores(hidden, batch)
        assert scores is not None, "a student's head is one that scores, as its teacher's"
        student_NK, teacher_NK = self._pairs(head, scores, batch)
        if student_NK.shape != teacher_NK.shape:
            raise UserError(
                f"the student's {type(head).__name__} scores {tuple(student_NK.shape)} where its teacher's scores "
                f"{tuple(teacher_NK.shape)} (distributions, classes): give both the same task's options"
            )
        soft = soft_loss(student_NK, teacher_NK, self.temperature, independent=head.score_axis is None)
        if not labelled or self.weight == 1:
            return soft
        return self.weight * soft + (1 - self.weight) * head.loss(hidden, batch)

    def _pairs(self, head: Head, scores: Tensor, batch: PaddedBatch) -> tuple[Tensor, Tensor]:
        """The student's log-probabilities (N, K) and the teacher's, without padding; of a span, K are positions."""
        rows = [torch.tensor(self.scores.rows(item), device=scores.device) for item in batch.rows]
        if head.score_axis == 1:
            teacher_BT2 = torch.full_like(scores, -torch.inf, dtype=torch.float32)
            for number, row_T2 in enumerate(rows):
                teacher_BT2[number, : len(row_T2)] = row_T2
            return scores.transpose(1, 2).flatten(0, 1), teacher_BT2.transpose(1, 2).flatten(0, 1)
        if scores.ndim == 2:
            return scores, torch.cat(rows)
        counts_B = torch.tensor([len(row_WK) for row_WK in rows], device=scores.device)
        words_BW = head.scored_words(batch)
        if words_BW is None:
            words_BW = torch.arange(scores.shape[1], device=scores.device) < counts_B[:, None]
        return scores[words_BW.to(scores.device)], torch.cat(rows)


def soft_loss(student: Tensor, teacher: Tensor, temperature: float, independent: bool = False) -> Tensor:
    """Return T² KL(teacher || student), both softened by the temperature T, the mean over N distributions.

    See Hinton et al. 2015 (arXiv 1503.02531), section 2: with the factor T², gradients keep their size at any T.
    ``student`` and ``teacher`` are log-probabilities (N, K) at T = 1. What the teacher excludes by minus infinity does
    not enter, whatever the student has there. ``independent``: each class is a yes or no of its own, and the mean is
    over classes, too, as that of binary cross-entropy.
    """
    student, teacher = student.float(), teacher.float()
    if independent:
        yes_teacher, yes_student = (_logits(scores) / temperature for scores in (teacher, student))
        log_sigmoid = functional.logsigmoid
        yes = yes_teacher.sigmoid() * (log_sigmoid(yes_teacher) - log_sigmoid(yes_student))
        no = (-yes_teacher).sigmoid() * (log_sigmoid(-yes_teacher) - log_sigmoid(-yes_student))
        return temperature**2 * (yes + no).mean()
    excluded = teacher == -torch.inf
    log_teacher = (teacher / temperature).log_softmax(-1)
    log_student = (student.masked_fill(excluded, -torch.inf) / temperature).log_softmax(-1)
    terms = torch.where(excluded, 0.0, log_teacher.exp() * (log_teacher - log_student))
    return temperature**2 * terms.sum(-1).mean()


def _logits(log_probabilities: Tensor) -> Tensor:
    """The log-odds of yes or no from the logarithms of the probability of yes."""
    yes = log_probabilities.clamp(*LOG_PROBABILITIES)
    return yes - (-torch.expm1(yes)).log()
