"""The KL divergence of a linear output layer from a teacher's, without either matrix of logits."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lossworks.checks import HALF, check_choice, check_positive, check_sample_weight
from lossworks.fused.chunks import blocks
from lossworks.fused.linear import check_layer, each, plan_for, product_dtype, reduced
from lossworks.fused.readers import Layer, Reader, Reading
from lossworks.roles import REDUCTIONS, absent_rows, cite, cleared


@cite("hinton2015distilling")
def linear_kl(
    student_hidden: Float[Tensor, "*rows d"],
    student_weight: Float[Tensor, "classes d"],
    teacher_hidden: Float[Tensor, "*rows d2"],
    teacher_weight: Float[Tensor, "classes d2"],
    *,
    student_bias: Float[Tensor, " classes"] | None = None,
    teacher_bias: Float[Tensor, " classes"] | None = None,
    temperature: float | Tensor = 1.0,
    direction: str = "forward",
    sample_weight: Float[Tensor, "*rows"] | None = None,
    total: float | Tensor | None = None,
    reduction: str = "mean",
    chunk: int | None = None,
) -> Tensor:
    r"""Fused distillation loss: the KL divergence of a student from a teacher, without either matrix of logits.

    .. math::
        \ell_i = \mathrm{KL}(t_i \,\|\, s_i) \;\text{(forward)}, \qquad
        \ell_i = \mathrm{KL}(s_i \,\|\, t_i) \;\text{(reverse)}, \qquad
        s_i = \mathrm{softmax}(W h_i / T), \; t_i = \mathrm{softmax}(W' h'_i / T)

    Only the student gets a gradient; the teacher's tensors may require one but get none. The gradient is not rescaled:
    multiply the loss by :math:`T^2` to keep the gradient's size when T is changed.

    Args:
        student_hidden: The input of the student's output layer, ``(n, d)`` or ``(n, t, d)``.
        student_weight: The weight of the student's output layer.
        teacher_hidden: The input of the teacher's output layer, for the same rows; its d may differ.
        teacher_weight: The weight of the teacher's output layer, with as many classes.
        student_bias: The student's bias, if it has one.
        teacher_bias: The teacher's bias, if it has one.
        temperature: T, > 0.
        direction: ``"forward"`` makes the student cover all that the teacher finds likely; ``"reverse"`` keeps the
            student within what the teacher finds likely.
        sample_weight: One weight per row, >= 0, 0 for a padding row; ``mean`` divides by their sum.
        total: The number that ``mean`` divides by when this batch is a part of a larger one.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        chunk: The number of rows computed at a time; by default an eighth of the logit matrix, for both models
            together.

    Returns:
        ``()``, or ``(n,)`` or ``(n, t)`` with ``reduction="none"``; at least 0, except for rounding.

    Raises:
        ValueError: ``temperature <= 0``, an unknown direction, shapes that don't match.
        TypeError: a tensor that is not floating-point, or not of its layer's dtype.

    Papers: hinton2015distilling

    >>> hidden, weight = torch.ones(2, 3), torch.eye(4, 3)
    >>> linear_kl(hidden, weight, hidden, weight).abs() < 1e-6
    tensor(True)
    """
    check_choice("reduction", reduction, REDUCTIONS)
    check_choice("direction", direction, ("forward", "reverse"))
    check_positive("temperature", temperature)
    if isinstance(temperature, Tensor) and temperature.requires_grad:
        raise ValueError("temperature must not require a gradient, which is not computed: detach it")
    student = check_layer(student_hidden, student_weight, student_bias, "student_")
    hidden, weight, bias = check_layer(teacher_hidden, teacher_weight, teacher_bias, "teacher_")
    dtype = product_dtype(hidden)
    teacher = hidden.detach().to(dtype), weight.detach().to(dtype), None if bias is None else bias.detach().to(dtype)
    shape = student_hidden.shape[:-1]
    if teacher_hidden.shape[:-1] != shape:
        raise ValueError(
            f"teacher_hidden must have rows {tuple(shape)} as student_hidden, got {tuple(teacher_hidden.shape[:-1])}"
        )
    if len(teacher_weight) != len(student_weight):
        raise ValueError(
            f"teacher_weight must have {len(student_weight)} classes as student_weight has, got {len(teacher_weight)}"
        )
    if sample_weight is not None:
        check_sample_weight(sample_weight, shape)
        absent = absent_rows(sample_weight.flatten(), student[0])
        if absent is not None:
            student, teacher = ((cleared(layer[0], absent), *layer[1:]) for layer in (student, teacher))
    reader = TeacherReader(teacher, temperature, direction == "reverse")
    plan = plan_for(student, chunk, copies=2)
    rows = None if sample_weight is None else sample_weight.to(plan.dtype).flatten()
    if reduction == "none":
        losses = each(plan, reader, student)
        return (losses if rows is None else losses * rows).reshape(shape)
    return reduced(plan, reader, student, rows, reduction, total)


@dataclass
class TeacherReader(Reader):
    """A reader of rows that are compared with a teacher's, whose logits are also computed one chunk at a time."""

    teacher: Layer
    temperature: float | Tensor
    reverse: bool
    logits = "student_hidden @ student_weight.T"

    @property
    def read_again(self) -> tuple[Tensor, ...]:
        """See :class:`lossworks.fused.readers.Reader`."""
        return tuple(given for given in self.teacher if given is not None)

    def read(self, logits: Tensor, rows: slice, coefficient: Tensor | None) -> Reading:
        """See :class:`lossworks.fused.readers.Reader`."""
        taught = self._logits(rows).to(logits.dtype)
        losses = logits.new_empty(len(logits))
        for block in blocks(logits):
            student = (logits[block] / self.temperature).log_softmax(dim=1)
            teacher = (taught[block] / self.temperature).log_softmax(dim=1)
            p, taught_p = student.exp(), teacher.exp()
            weighed = _weighed(p, student - teacher) if self.reverse else _weighed(taught_p, teacher - student)
            losses[block] = weighed.sum(dim=1)
            if coefficient is None:
                continue
            slope = weighed - p * losses[block, None] if self.reverse else p - taught_p
            torch.mul(slope, coefficient[block, None] / self.temperature, out=logits[block])
        return Reading(losses)

    def trace(self, logits: Tensor, rows: slice) -> Tensor:
        """See :class:`lossworks.fused.readers.Reader`."""
        logits = logits.float() if logits.dtype in HALF else logits
        student = (logits / self.temperature).log_softmax(dim=1)
        teacher = (self._logits(rows).to(logits.dtype) / self.temperature).log_softmax(dim=1)
        one, other = (student, teacher) if self.reverse else (teacher, student)
        return _weighed(one.exp(), one - other).sum(dim=1)

    def _logits(self, rows: slice) -> Tensor:
        hidden, weight, bias = self.teacher
        return torch.nn.functional.linear(hidden[rows], weight, bias)


def _weighed(p: Tensor, gap: Tensor) -> Tensor:
    """The gaps times their probabilities; a class of probability 0 adds nothing, whatever its other logarithm is."""
    return p * torch.where(p > 0, gap, 0)
