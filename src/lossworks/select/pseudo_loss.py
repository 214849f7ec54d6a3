"""Weights by how far the pseudo-labels of noisy rows can be trusted."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lossworks.checks import check_floating, check_tensor
from lossworks.roles import cite
from lossworks.weights.mixture import probability_of_high

__all__ = ["pseudo_loss_weights"]


@cite("albert2024accurate", helps=("noisy labels",))
def pseudo_loss_weights(pseudo_loss: Float[Tensor, " N"], noisy: Bool[Tensor, " N"]) -> Float[Tensor, " N"]:
    r"""Weight each noisy row by the probability that its pseudo-label is right; clean rows have weight 1.

    .. math:: w_i = P(\text{low} \mid \ell(z_i, \hat y_i)) \text{ where noisy, else } 1

    Two normal modes are fitted to the noisy rows' losses on their pseudo-labels, as in :class:`SmallLossGMMSelector`.
    With fewer than 3 noisy rows, or if their losses are all the same, all weights are 1.

    Args:
        pseudo_loss: ``(N,)``, each row's cross-entropy on its pseudo-label (read for noisy rows alone).
        noisy: ``(N,)`` bool, the rows whose label is replaced.

    Raises:
        ValueError: shapes that differ, NaN among the noisy rows' losses.

    Papers: albert2024accurate

    >>> noisy = torch.tensor([False, True, True, True, True])
    >>> pseudo_loss_weights(torch.tensor([9.0, 0.1, 0.1, 3.0, 3.0]), noisy).round()
    tensor([1., 1., 1., 0., 0.])
    """
    check_floating("pseudo_loss", pseudo_loss)
    check_noisy("noisy", noisy, ("pseudo_loss", pseudo_loss))
    weights = torch.ones_like(pseudo_loss).detach()
    if int(noisy.sum()) > 2:
        weights[noisy] = 1 - probability_of_high("pseudo_loss", pseudo_loss[noisy])
    return weights


def check_noisy(name: str, noisy: Tensor, beside: tuple[str, Tensor]) -> None:
    """Raise unless ``noisy`` is one bool a row of the other."""
    check_tensor(name, noisy)
    rows = beside[1].shape[:1]
    if noisy.dtype != torch.bool:
        raise TypeError(f"{name} must be bool, got {noisy.dtype}")
    if len(rows) != 1 or noisy.shape != rows:
        shape = tuple(beside[1].shape)
        raise ValueError(f"{name} must have one bool a row of {beside[0]} {shape}, got {tuple(noisy.shape)}")
