"""Classes known by a mean of their features, and new classes known from a few rows."""

import torch
from jaxtyping import Float
from torch import Tensor

from lossworks.checks import check_between, check_floating, check_positive, readable
from lossworks.roles import Part, cite

__all__ = ["PrototypeClassifier", "calibrate_prototypes"]


@cite("wang2023teen", "yu2025csfa", helps=("shift",))
def calibrate_prototypes(
    new: Float[Tensor, "m d"], base: Float[Tensor, "k d"], alpha: float | Tensor = 0.5, tau: float | Tensor = 16.0
) -> Float[Tensor, "m d"]:
    r"""Draw the prototypes of new classes, known from a few rows, towards the known classes that they are like.

    .. math::
        \hat p_m = (1 - \alpha)\, p_m + \alpha \sum_k w_{mk}\, p_k, \qquad
        w_m = \mathrm{softmax}_k\big(\tau \cos(p_m, p_k)\big)

    Nothing is trained. The published code brings the sum to length 1; here it stays in the convex hull of the known
    prototypes.

    Args:
        new: Means of the new classes' features, of length 1 or so, as ``base``.
        base: Means of the known classes' features, at least one.
        alpha: How far they are drawn, in [0, 1].
        tau: How sharply the nearest known class counts most, > 0.

    Returns:
        ``(m, d)``, in the dtype of ``new``.

    Raises:
        ValueError: ``alpha`` outside [0, 1], ``tau <= 0``, shapes that don't match, no known class.
        TypeError: not floating-point.

    Papers: wang2023teen, yu2025csfa

    >>> calibrate_prototypes(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, 3.0]]))
    tensor([[0.5000, 1.0000]])
    """
    check_between("alpha", alpha, 0, 1)
    check_positive("tau", tau)
    _check_prototypes("base", base)
    _check_prototypes("new", new, base.shape[1])
    known = base.to(new.dtype)
    mixture = (tau * _directions(new) @ _directions(known).T).softmax(dim=1).to(new.dtype) @ known
    return ((1 - alpha) * new + alpha * mixture).to(new.dtype)


class PrototypeClassifier(Part):
    r"""A head that knows each class by one point: the logit is the cosine of the features with it.

    .. math::
        z_k = \tau \cos(h, p_k)

    It has nothing to train: a class is added by another prototype, the mean of its features or what
    :func:`calibrate_prototypes` makes of that.

    Args:
        prototypes: ``(C, D)``, one a class; none may be 0. A class's place is its number.
        tau: What the cosines are multiplied by, in logit units, > 0.

    Buffers:
        prototypes: ``(C, D)``.

    Shape:
        - x: features ``(n, D)`` or ``(n, D, d1, ...)``; returns logits ``(n, C)`` or ``(n, C, d1, ...)``, in
          :math:`[-\tau, \tau]`, in the dtype of x. Features of 0 have logits of 0.

    Raises:
        ValueError: ``tau <= 0``, prototypes that are not ``(C, D)``, not finite or 0, features of another size.
        TypeError: not floating-point.

    Use it after training, where classes come with a few rows each and no time to train on them.

    Papers: wang2023teen, yu2025csfa

    >>> head = PrototypeClassifier(torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
    >>> head(torch.tensor([[0.0, 5.0]]))
    tensor([[ 0., 16.]])
    """

    papers = ("wang2023teen", "yu2025csfa")
    helps = ("shift",)
    settings = ({"prototypes": torch.eye(3)},)
    prototypes: Tensor

    def __init__(self, prototypes: Float[Tensor, "classes d"], tau: float | Tensor = 16.0) -> None:
        super().__init__()
        _check_prototypes("prototypes", prototypes)
        if readable(prototypes):
            wrong = (prototypes == 0).all(dim=1) | ~prototypes.isfinite().all(dim=1)
            if bool(wrong.any()):
                raise ValueError(f"prototypes must be finite and not 0, got another of class {int(wrong.nonzero()[0])}")
        self.prototypes = prototypes.detach().clone()
        self.tau = check_positive("tau", tau)

    def forward(self, x: Float[Tensor, "n d *rest"]) -> Float[Tensor, "n classes *rest"]:
        """The logits of each class."""
        check_floating("x", x)
        if x.ndim < 2 or x.shape[1] != self.prototypes.shape[1]:
            raise ValueError(f"x must have shape (n, {self.prototypes.shape[1]}, ...), got {tuple(x.shape)}")
        features = _directions(x.movedim(1, -1))
        cosines = features @ _directions(self.prototypes).to(features.dtype).T
        return (self.tau * cosines).to(x.dtype).movedim(-1, 1)


def _check_prototypes(name: str, points: Tensor, size: int | None = None) -> None:
    """Raise unless these are one point a class, in a space of that many dimensions."""
    check_floating(name, points)
    if points.ndim != 2 or not points.shape[1] or (len(points) == 0 if size is None else points.shape[1] != size):
        wanted = "D" if size is None else size
        raise ValueError(f"{name} must have shape (classes, {wanted}), got {tuple(points.shape)}")


def _directions(points: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
    """The points at length 1, in float32 at least; 0 stays."""
    points = points.float() if points.element_size() == 2 else points
    largest = points.detach().abs().amax(dim=-1, keepdim=True)
    return torch.nn.functional.normalize(points / torch.where(largest > 0, largest, 1.0), dim=-1)
