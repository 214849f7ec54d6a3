"""Weights that make a model good where its predictions will be used: near a trajectory."""

import torch
from jaxtyping import Float
from torch import Tensor

from lossworks.checks import check_bool, check_floating, check_int, check_positive, readable, wide
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
    r"""Weights by the distance to a reference trajectory, to train a dynamics model for the controller that uses it.

    .. math:: w_i \propto e^{-c\, d_i}, \qquad d_i = \min_j \| x_i - x^*_j \|^2

    Rows near the trajectory count more. c = 0 is the ordinary likelihood; with a large c only the nearest rows count,
    so check :func:`effective_sample_size`. Give the weights to :class:`lossworks.weights.SampleWeights`. Compute them
    once, for the whole data set: parts of a split batch would each be normalised on their own.

    Args:
        inputs: The rows, ``(n, d)``, states and actions side by side. Standardise them first, because a distance adds
            up different units.
        reference: The trajectory's points, ``(m, d)``, standardised in the same way.
        strength: c, in 1 / squared input units, >= 0.
        normalize: Whether the weights have mean 1; else they are :math:`e^{-c d_i}`, at most 1.
        chunk: For how many rows the distances are held in memory at once, >= 1.

    Raises:
        ValueError: ``strength < 0``, ``chunk < 1``, shapes that don't match, no reference, numbers that are not finite.
        TypeError: inputs or a reference that are not floating-point.

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
            raise ValueError(f"{name} must be finite, got NaN or Inf")
    if not len(reference) or inputs.shape[1] != reference.shape[1]:
        raise ValueError(f"reference must have shape (m, {inputs.shape[1]}) with m >= 1, got {tuple(reference.shape)}")
    points = wide(inputs)
    reference = reference.to(points)
    exact = "donot_use_mm_for_euclid_dist"
    distances = [torch.cdist(rows, reference, compute_mode=exact).amin(dim=1).square() for rows in points.split(chunk)]
    scaled = -strength * torch.cat(distances)
    return (scaled.softmax(dim=0) * len(scaled) if normalize else scaled.exp()).to(inputs.dtype)


@cite("lambert2020mismatch", helps=("shift",))
def effective_sample_size(weights: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    r"""Effective sample size: how many rows of equal weight tell as much, :math:`(\sum_i w_i)^2 / \sum_i w_i^2 \le n`.

    Args:
        weights: ``(n,)``, one weight a row, not all 0.

    Raises:
        TypeError: weights that are not floating-point.
        ValueError: not one number a row, or no rows.

    Papers: lambert2020mismatch

    >>> effective_sample_size(torch.tensor([1.0, 1.0, 0.0]))
    tensor(2.)
    """
    check_floating("weights", weights)
    if weights.ndim != 1 or not len(weights):
        raise ValueError(f"weights must have shape (n,) with n >= 1, got {tuple(weights.shape)}")
    weights = wide(weights)
    shares = weights / weights.abs().amax()
    return shares.sum().square() / shares.square().sum()
