"""Prototype classifiers: each class is known by its mean feature, so a new class needs only a few rows."""

import torch
from jaxtyping import Float
from torch import Tensor

from lossworks.checks import check_between, check_floating, check_positive, readable
from lossworks.roles import Part, cite, directions

__all__ = ["PrototypeClassifier", "calibrate_prototypes"]


@cite("wang2023teen", "yu2025csfa", helps=("shift",))
def calibrate_prototypes(
    new: Float[Tensor, "m d"], base: Float[Tensor, "k d"], alpha: float | Tensor = 0.5, tau: float | Tensor = 16.0
) -> Float[Tensor, "m d"]:
    r"""Calibrate the prototypes of new classes, known from a few rows, by moving them towards similar known classes.

    .. math::
        \hat p_m = (1 - \alpha)\, p_m + \alpha \sum_k w_{mk}\, p_k, \qquad
        w_m = \mathrm{softmax}_k\big(\tau \cos(p_m, p_k)\big)

    Nothing is trained. The published code rescales the sum over the known classes to length 1; here that sum stays in
    the convex hull of the known prototypes.

    Args:
        new: The mean features of the new classes ``(m, d)``, on the scale of ``base`` (usually of length about 1).
        base: The mean features of the known classes ``(k, d)``, at least one class.
        alpha: How far the new prototypes are moved, in [0, 1].
        tau: The sharpness of the weights, > 0: the larger, the more the nearest known class counts.

    Returns:
        The moved prototypes ``(m, d)``, in the dtype of ``new``.

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
    r"""Prototype (cosine) classifier: a class's logit is the scaled cosine of the features with its prototype.

    .. math::
        z_k = \tau \cos(h, p_k)

    It has no trained parameters. A class is added by adding its prototype: the mean of its features, or what
    :func:`calibrate_prototypes` makes of that mean.

    Args:
        prototypes: ``(C, D)``, one row per class, none of them zero. Row k belongs to class k.
        tau: The factor that multiplies the cosines, in logit units, > 0.

    Buffers:
        prototypes: ``(C, D)``.

    Shape:
        - x: features ``(n, D)`` or ``(n, D, d1, ...)``; returns logits ``(n, C)`` or ``(n, C, d1, ...)``, in
          :math:`[-\tau, \tau]`, in the dtype of x. Features that are all 0 have logits of 0.

    Raises:
        ValueError: ``tau <= 0``, prototypes that are not ``(C, D)``, not finite or zero, features of another size.
        TypeError: not floating-point.

    Use it after training, where new classes come with a few rows each and there is no time to train on them.

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
                raise ValueError(f"prototypes must be finite and not 0, that of class {int(wrong.nonzero()[0])} is not")
        self.prototypes = prototypes.detach().clone()
        self.tau = check_positive("tau", tau)

    def forward(self, x: Float[Tensor, "n d *rest"]) -> Float[Tensor, "n classes *rest"]:
        """The logit of each class."""
        check_floating("x", x)
        if x.ndim < 2 or x.shape[1] != self.prototypes.shape[1]:
            raise ValueError(f"x must have shape (n, {self.prototypes.shape[1]}, ...), got {tuple(x.shape)}")
        features = _directions(x.movedim(1, -1))
        cosines = features @ _directions(self.prototypes).to(features.dtype).T
        return (self.tau * cosines).to(x.dtype).movedim(-1, 1)


def _check_prototypes(name: str, points: Tensor, size: int | None = None) -> None:
    """Raise unless ``points`` holds one point per class; with ``size``, points of that many dimensions."""
    check_floating(name, points)
    if points.ndim != 2 or not points.shape[1] or (len(points) == 0 if size is None else points.shape[1] != size):
        wanted = "D" if size is None else size
        raise ValueError(f"{name} must have shape (classes, {wanted}), got {tuple(points.shape)}")


def _directions(points: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
    """The points scaled to length 1, in float32 or wider; a point at 0 stays at 0."""
    return directions(points.float() if points.element_size() == 2 else points)
