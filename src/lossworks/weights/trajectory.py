"""Weights that make a model good where its predictions will be used: near a trajectory."""

import torch
from jaxtyping import Float
from torch import Tensor

from lossworks.checks import check_bool, check_floating, check_int, check_positive, readable
from lossworks.roles import cite

__all__ = ["effective_sample_size", "trajectory_distance_weights"]


@cite("lambert2020mismatch", helps=("shift",))
def trajectory_distance_weights(
    inputs: Float[Tensor, "n d"],
    reference: Float[Tensor, "m d"],
    strength: float | Tensor = 1.0,
    *,
    normalize: bool = True,
    chunk: int = 1024,
) -> Float[Tensor, " n"]:
    r"""Rows near a reference trajectory count more: weights to train a dynamics model for the controller that uses it.

    .. math:: w_i \propto e^{-c\, d_i}, \qquad d_i = \min_j \| x_i - x^*_j \|^2

    c = 0 is the ordinary likelihood; a large c leaves the nearest rows alone, so look at
    :func:`effective_sample_size`. Give the weights to :class:`lossworks.weights.SampleWeights`. A batch that is split
    has other means: take the weights of the whole data set, once.

    Args:
        inputs: The rows, states and actions beside each other; standardise them first, for distances compare units.
        reference: The trajectory's points, standardised alike.
        strength: c, per squared input unit, >= 0.
        normalize: Whether the weights have mean 1; else they are :math:`e^{-c d_i}`, at most 1.
        chunk: How many rows' distances are held at once, >= 1.

    Raises:
        ValueError: ``strength < 0``, ``chunk < 1``, shapes that don't match, no reference, numbers that are not finite.
        TypeError: not floating-point.

    Papers: lambert2020mismatch

    >>> trajectory_distance_weights(torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0]]), normalize=False)
    tensor([1.0000, 0.3679])
    """
    check_positive("strength", strength, allow_zero=True)
    check_bool("normalize", normalize)
    check_int("chunk", chunk, low=1)
    for name, points in (("inputs", inputs), ("reference", reference)):
        check_floating(name, points)
        if points.ndim != 2:
            raise ValueError(f"{name} must have shape (rows, d), got {tuple(points.shape)}")
        if readable(points) and not bool(points.isfinite().all()):
            raise ValueError(f"{name} must be finite, and has numbers that are not")
    if not len(reference) or inputs.shape[1] != reference.shape[1]:
        raise ValueError(f"reference must have shape (m, {inputs.shape[1]}) with m >= 1, got {tuple(reference.shape)}")
    points = inputs.to(torch.promote_types(inputs.dtype, torch.float32))
    reference = reference.to(points)
    exact = "donot_use_mm_for_euclid_dist"
    distances = [torch.cdist(rows, reference, compute_mode=exact).amin(dim=1).square() for rows in points.split(chunk)]
    scaled = -strength * torch.cat(distances)
    return (scaled.softmax(dim=0) * len(scaled) if normalize else scaled.exp()).to(inputs.dtype)


@cite("lambert2020mismatch", helps=("shift",))
def effective_sample_size(weights: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    r"""How many rows of equal weight tell as much: :math:`(\sum_i w_i)^2 / \sum_i w_i^2`, at most n.

    Args:
        weights: One a row, not all 0.

    Raises:
        TypeError: not floating-point.
        ValueError: not one number a row, or no rows.

    Papers: lambert2020mismatch

    >>> effective_sample_size(torch.tensor([1.0, 1.0, 0.0]))
    tensor(2.)
    """
    check_floating("weights", weights)
    if weights.ndim != 1 or not len(weights):
        raise ValueError(f"weights must have shape (n,) with n >= 1, got {tuple(weights.shape)}")
    shares = weights / weights.abs().amax()
    return shares.sum().square() / shares.square().sum()
