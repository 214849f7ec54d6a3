"""The Z-loss: invariant to shift and scale of a row's scores, and computed from three numbers a row."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import layer_norm, logsigmoid

from lossworks.checks import (
    check_between,
    check_classes,
    check_finite,
    check_floating,
    check_int,
    check_positive,
    check_tensor,
    readable,
)
from lossworks.losses._rows import from_the_top
from lossworks.roles import Loss, cite


class ZLoss(Loss):
    r"""Z-loss: rewards a high target score, standardised among the row's scores; made for very many classes.

    .. math::
        \ell(z, y) = \tfrac1a \log\big(1 + e^{a (b - \zeta)}\big), \qquad \zeta = \frac{z_y - \mu(z)}{\sigma(z)}

    Here :math:`\mu` and :math:`\sigma` are the mean and the (biased) standard deviation of the row's scores, so
    shifting and scaling these changes nothing. The loss reads only :math:`z_y, \sum_k z_k, \sum_k z_k^2`, so that a
    linear output layer with very many classes need never compute its scores: see :func:`spherical_statistics`.

    Args:
        a: The sharpness, > 0; ``a -> inf`` is the hinge :math:`\max(0, b - \zeta)`.
        b: The standardised score that is high enough; none is above :math:`\sqrt{C - 1}`. ``a`` and ``b`` together
            decide for which k the top-k accuracy is good; the authors tune both.
        eps: The floor of the standard deviation, in [1e-18, 1]; constant scores have :math:`\zeta = 0`.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        ignore_index: The class whose rows are left out.

    Shape:
        - output: scores ``(n, C)`` or ``(n, C, d1, ...)``; target: classes ``(n,)`` or ``(n, d1, ...)``, int64.
        - returns ``()``, or the target's shape with ``reduction="none"``; above 0.

    Raises:
        ValueError: ``a <= 0``, ``b`` not finite, ``eps`` out of range, shapes that don't match, a class outside
            ``[0, C)``.

    Use it when there are very many classes or the top-k matters; not when probabilities are wanted, because the scale
    of the scores has no meaning. The gradient grows as the scores shrink (by 1/σ), so don't start from an output layer
    of zeros.

    Papers: debrebisson2016zloss

    >>> import torch
    >>> loss = ZLoss()
    >>> loss(torch.tensor([[3.0, 1.0, 1.0]]), torch.tensor([0]))
    tensor(0.2176)
    """

    papers = ("debrebisson2016zloss",)
    helps = ("many classes", "top-k")
    masks = False
    rowwise = True
    settings = ({"a": 1.0}, {"a": 0.3}, {"a": 3.0})

    def __init__(
        self,
        a: float | Tensor = 1.0,
        b: float | Tensor = 0.0,
        eps: float = 1e-12,
        *,
        reduction: str = "mean",
        ignore_index: int = -100,
    ) -> None:
        super().__init__(reduction, ignore_index=ignore_index)
        self.a = check_positive("a", a)
        self.b = check_finite("b", b)
        self.variance_floor = check_between("eps", eps, 1e-18, 1) ** 2

    def per_sample(self, output: Float[Tensor, "n classes"], target: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The loss of each row."""
        check_classes(output, target)
        standardised = layer_norm(from_the_top(output), output.shape[1:], eps=self.variance_floor)
        return _smooth_hinge(standardised.gather(1, target[:, None]).squeeze(1), self.a, self.b)


@cite("debrebisson2016zloss", helps=("many classes",))
def z_loss_from_statistics(
    target_score: Float[Tensor, " n"],
    score_sum: Float[Tensor, " n"],
    score_sq_sum: Float[Tensor, " n"],
    num_classes: int,
    a: float | Tensor = 1.0,
    b: float | Tensor = 0.0,
    eps: float = 1e-12,
) -> Float[Tensor, " n"]:
    r"""The Z-loss of each row, from its target's score, the sum of its scores and the sum of their squares.

    The three statistics are ``(n,)`` each, as from :func:`spherical_statistics`; ``a``, ``b`` and ``eps`` are those of
    :class:`ZLoss`. The variance is computed as :math:`\tfrac1C\sum z^2 - \mu^2`, which loses digits where the mean is
    large compared with the spread.

    Raises:
        ValueError: shapes that differ, ``num_classes < 1``, ``a <= 0``, ``b`` not finite, ``eps`` outside [1e-18, 1].

    Papers: debrebisson2016zloss

    >>> import torch
    >>> z_loss_from_statistics(torch.tensor([3.0]), torch.tensor([5.0]), torch.tensor([11.0]), num_classes=3)
    tensor([0.2176])
    """
    for name, statistic in (
        ("target_score", target_score),
        ("score_sum", score_sum),
        ("score_sq_sum", score_sq_sum),
    ):
        check_floating(name, statistic)
    if not target_score.shape == score_sum.shape == score_sq_sum.shape:
        shapes = ", ".join(str(tuple(statistic.shape)) for statistic in (target_score, score_sum, score_sq_sum))
        raise ValueError(f"target_score, score_sum and score_sq_sum must have one shape, got {shapes}")
    check_int("num_classes", num_classes, low=1)
    check_positive("a", a)
    check_finite("b", b)
    check_between("eps", eps, 1e-18, 1)
    mean = score_sum / num_classes
    variance = (score_sq_sum / num_classes - mean.square()).relu()
    return _smooth_hinge((target_score - mean) / (variance + eps * eps).sqrt(), a, b)


@cite("debrebisson2016zloss", helps=("many classes",))
def spherical_statistics(
    hidden: Float[Tensor, "n features"],
    weight: Float[Tensor, "classes features"],
    target: Int[Tensor, " n"],
    gram: Float[Tensor, "features features"],
    weight_sum: Float[Tensor, " features"],
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"], Float[Tensor, " n"]]:
    r"""The statistics of the scores :math:`z = W h` that a spherical loss reads, at a cost independent of C.

    .. math::
        z_y = W_y \cdot h, \qquad \sum_k z_k = \bar w \cdot h, \qquad \sum_k z_k^2 = h^\top Q h

    Args:
        hidden: h, the input of the linear output layer, ``(n, d)``.
        weight: W, the weight of the output layer, ``(C, d)``; only the targets' rows are read.
        target: The rows' classes, ``(n,)`` int64.
        gram: :math:`Q = W^\top W`, ``(d, d)``, kept up to date with W.
        weight_sum: :math:`\bar w = \sum_k W_k`, ``(d,)``, kept up to date with W.

    Returns:
        ``target_score``, ``score_sum`` and ``score_sq_sum``, as :func:`z_loss_from_statistics` takes them. The gradient
        in ``hidden`` is that of the dense layer. So is the gradient in ``weight``, if ``gram`` and ``weight_sum`` are
        computed from it within the graph.

    Raises:
        ValueError: shapes that don't match.

    Papers: debrebisson2016zloss

    >>> import torch
    >>> W, h = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]]), torch.tensor([[3.0, 1.0]])
    >>> spherical_statistics(h, W, torch.tensor([2]), W.T @ W, W.sum(0))  # scores 3, 2, 4
    (tensor([4.]), tensor([9.]), tensor([29.]))
    """
    for name, tensor in (("hidden", hidden), ("weight", weight), ("gram", gram), ("weight_sum", weight_sum)):
        check_floating(name, tensor)
        if tensor.dtype != hidden.dtype:
            raise TypeError(f"{name} must have the dtype of hidden, {hidden.dtype}, got {tensor.dtype}")
    check_tensor("target", target)
    if hidden.ndim != 2:
        raise ValueError(f"hidden must have shape (n, d), got {tuple(hidden.shape)}")
    n, features = hidden.shape
    for name, tensor, shape in (
        ("weight", weight, (*weight.shape[:1], features)),
        ("target", target, (n,)),
        ("gram", gram, (features, features)),
        ("weight_sum", weight_sum, (features,)),
    ):
        if tensor.shape != shape:
            raise ValueError(f"{name} must have shape {shape} for hidden {(n, features)}, got {tuple(tensor.shape)}")
    if target.dtype != torch.int64:
        raise TypeError(f"target must be int64 classes, got {target.dtype}")
    if readable(target) and target.numel() and not 0 <= int(target.min()) <= int(target.max()) < len(weight):
        raise ValueError(f"target must be in [0, {len(weight)}), got {int(target.min())} to {int(target.max())}")
    return (weight[target] * hidden).sum(dim=1), hidden @ weight_sum, (hidden @ gram * hidden).sum(dim=1)


def _smooth_hinge(standardised: Float[Tensor, " n"], a: float | Tensor, b: float | Tensor) -> Float[Tensor, " n"]:
    return -logsigmoid(a * (standardised - b)) / a
