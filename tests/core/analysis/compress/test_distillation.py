"""The loss of distillation against torch's own, on scores with padding, spans and labels that are yes or no."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from gptask.analysis.compress.distillation import Distillation, soft_loss
from gptask.errors import UserError
from torch import Tensor
from torch.nn import functional


def logits(*shape: int, seed: int) -> Tensor:
    return 4 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_it_is_the_softened_divergence_times_the_square_of_the_temperature(temperature: float) -> None:
    student, teacher = logits(7, 5, seed=0).requires_grad_(), logits(7, 5, seed=1)
    loss = soft_loss(student.log_softmax(-1), teacher.log_softmax(-1), temperature)
    expected = temperature**2 * functional.kl_div(
        (student / temperature).log_softmax(-1), (teacher / temperature).softmax(-1), reduction="batchmean"
    )
    torch.testing.assert_close(loss, expected)
    (gradient,) = torch.autograd.grad(loss, student)
    # Hinton et al. 2015, equation 2, times T squared
    expected_gradient = temperature / 7 * ((student / temperature).softmax(-1) - (teacher / temperature).softmax(-1))
    torch.testing.assert_close(gradient, expected_gradient)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_independent_classes_are_softened_each_by_itself(temperature: float) -> None:
    student, teacher = logits(6, 4, seed=0).requires_grad_(), logits(6, 4, seed=1)
    loss = soft_loss(functional.logsigmoid(student), functional.logsigmoid(teacher), temperature, independent=True)
    soft_teacher = (teacher / temperature).sigmoid()
    entropy = functional.binary_cross_entropy(soft_teacher, soft_teacher)
    cross_entropy = functional.binary_cross_entropy_with_logits(student / temperature, soft_teacher)
    torch.testing.assert_close(loss, temperature**2 * (cross_entropy - entropy))
    (gradient,) = torch.autograd.grad(loss, student)
    torch.testing.assert_close(gradient, temperature / 24 * ((student / temperature).sigmoid() - soft_teacher))


@pytest.mark.parametrize("extreme", [90.0, 30.0, -30.0, -90.0, -1e5])
@pytest.mark.parametrize("side", ["student", "teacher"])
def test_certain_answers_give_finite_losses_and_gradients(extreme: float, side: str) -> None:
    values = {"student": torch.zeros(1, 2), "teacher": torch.zeros(1, 2)} | {side: torch.tensor([[extreme, 0.0]])}
    student = values["student"].requires_grad_()
    for independent in (True, False):
        scores = [
            functional.logsigmoid(one) if independent else one.log_softmax(-1) for one in (student, values["teacher"])
        ]
        loss = soft_loss(*scores, 2.0, independent)
        (gradient,) = torch.autograd.grad(loss, student)
        assert math.isfinite(loss.item())
        assert gradient.isfinite().all()
        if side == "student" and abs(extreme) < 60:  # a wrong certainty is unlearned
            assert gradient[0, 0].sign() == math.copysign(1, extreme)


def test_what_the_teacher_excludes_does_not_enter_whatever_the_student_has_there() -> None:
    excluded = torch.tensor([[False, True, False, True]])
    teacher = logits(1, 4, seed=0).masked_fill(excluded, -torch.inf).log_softmax(-1)
    for rest in (-torch.inf, 3.0):
        student = logits(1, 4, seed=1).masked_fill(excluded, rest).requires_grad_()
        loss = soft_loss(student, teacher, 2.0)
        (gradient,) = torch.autograd.grad(loss, student)
        torch.testing.assert_close(loss, soft_loss(student[:, ::2], teacher[:, ::2], 2.0))
        assert gradient[excluded].eq(0).all()
        assert gradient[~excluded].ne(0).all()


# --- of a batch -----------------------------------------------------------------------------------------------------


class Table:
    """Scores of a teacher by item."""

    def __init__(self, *rows: Tensor) -> None:
        self.by_item = rows

    def rows(self, item: int) -> np.ndarray:
        return self.by_item[item].numpy()


class FixedHead:
    """A head whose scores are what a test gives it."""

    def __init__(self, scores: Tensor, axis: int | None = -1, words: Tensor | None = None) -> None:
        self.fixed, self.score_axis, self.words = scores, axis, words

    def scores(self, hidden: Any, batch: Any) -> Tensor:
        return self.fixed

    def scored_words(self, batch: Any) -> Tensor | None:
        return self.words

    def loss(self, hidden: Any, batch: Any) -> Tensor:
        return torch.tensor(10.0)


class Rows:
    def __init__(self, *rows: int) -> None:
        self.rows = list(rows)


def distillation(*rows: Tensor, weight: float = 1.0, labelled: int = 99) -> Distillation:
    return Distillation(Table(*rows), 2.0, weight, lambda items: np.array(items) < labelled)  # type: ignore[arg-type]


def loss_of(one: Distillation, head: Any, *items: int) -> Tensor:
    return one.loss(head, None, Rows(*items))  # type: ignore[arg-type]


def test_the_weight_divides_the_loss_between_teacher_and_labels() -> None:
    teacher, student = logits(3, 1, 4, seed=0).log_softmax(-1), logits(3, 4, seed=1).log_softmax(-1)
    soft = soft_loss(student, teacher[:, 0], 2.0)
    for weight in (0.0, 0.25, 1.0):
        loss = loss_of(distillation(*teacher, weight=weight), FixedHead(student), 0, 1, 2)
        torch.testing.assert_close(loss, weight * soft + (1 - weight) * 10)


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_an_item_without_a_label_is_learned_from_the_teacher_alone(weight: float) -> None:
    teacher, student = logits(4, 1, 4, seed=0).log_softmax(-1), logits(2, 4, seed=1).log_softmax(-1)
    loss = loss_of(distillation(*teacher, weight=weight, labelled=2), FixedHead(student), 3, 2)
    torch.testing.assert_close(loss, soft_loss(student, teacher[[3, 2], 0], 2.0))


@pytest.mark.parametrize("told", [True, False], ids=["head tells the words", "from the teacher's rows"])
def test_words_of_padding_may_hold_anything(told: bool) -> None:
    teacher = [logits(count, 3, seed=count).log_softmax(-1) for count in (4, 2)]
    words = torch.tensor([[True] * 4, [True, True, False, False]])
    student = logits(2, 4, 3, seed=9).log_softmax(-1)
    student[~words] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    student.requires_grad_()
    loss = loss_of(distillation(*teacher), FixedHead(student, words=words if told else None), 0, 1)
    torch.testing.assert_close(loss, soft_loss(student[words], torch.cat(teacher), 2.0))
    (gradient,) = torch.autograd.grad(loss, student)
    assert gradient[~words].eq(0).all()
    assert gradient[words].isfinite().all()


def test_starts_and_ends_of_spans_are_distributions_over_the_positions() -> None:
    lengths, excluded = (5, 3), [[0, 1], [0]]
    teacher = []
    for length, positions in zip(lengths, excluded, strict=True):
        one = logits(length, 2, seed=length)
        one[positions] = -torch.inf
        teacher.append(one.log_softmax(0))
    student = logits(2, 5, 2, seed=9)
    student[1, 3:] = torch.inf  # padding
    student.requires_grad_()
    loss = loss_of(distillation(*teacher), FixedHead(student, axis=1), 0, 1)
    parts = [
        soft_loss(student[row, len(positions) : length, end][None], one[len(positions) :, end][None], 2.0)
        for row, (length, positions, one) in enumerate(zip(lengths, excluded, teacher, strict=True))
        for end in (0, 1)
    ]
    torch.testing.assert_close(loss, torch.stack(parts).mean())
    (gradient,) = torch.autograd.grad(loss, student)
    assert gradient.isfinite().all()
    assert gradient[1, 3:].eq(0).all()


def test_other_classes_than_the_teachers_are_refused() -> None:
    with pytest.raises(UserError, match=r"FixedHead scores \(1, 3\) where its teacher's scores \(1, 2\)"):
        loss_of(distillation(torch.zeros(1, 2)), FixedHead(torch.zeros(1, 3)), 0)
