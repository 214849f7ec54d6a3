"""Pseudo-labels by the most similar labelled row, weighted by the margin of its class over the next one."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lossworks.checks import check_floating, check_int, check_tensor, readable, wide
from lossworks.roles import Selector, directions

__all__ = ["WADWeights"]


class _Found(NamedTuple):
    """Weights ``(n,)``, pseudo-labels ``(n,)``, and similarities to the classes ``(n, C)``."""

    weights: Tensor
    pseudo: Tensor
    similarities: Tensor


class WADWeights(Selector):
    r"""Pseudo-labels by the class of the most similar labelled row, weighted by its margin over the next class.

    .. math::
        s_{jk} = \max_{i : y_i = k} \cos(h_j, h_i), \qquad \hat y_j = \arg\max_k s_{jk}, \qquad
        \omega_j = s_{j(1)} - s_{j(2)}

    The features h are those of a teacher that was trained without labels, as by :func:`lossworks.embed.nt_xent_loss`.
    Rows of no known class are about equally far from all classes, so they get small weights. The weight is in [0, 2].
    The authors' code computes :math:`s_{(1)} (1 - s_{(2)} / s_{(1)})`, which is the same number, except that it is NaN
    where :math:`s_{(1)} = 0`.

    Call it once for the whole data. A row's answer depends only on the labelled rows and the row's own features, so the
    unlabelled rows may be split at will.

    Raises:
        ValueError: features that are not finite or don't match, a class out of range, labels of fewer than 2 classes.
        TypeError: labels that are not int64.

    Use it for :class:`lossworks.distill.WeightAwareDistillationLoss`, where some of the unlabelled rows come from
    elsewhere. A class without a labelled row has similarity minus infinity and is never the answer.

    Papers: du2023wad

    >>> labelled, labels = torch.eye(2), torch.tensor([0, 1])
    >>> found = WADWeights()(torch.tensor([[0.0, 2.0], [1.0, 1.0]]), labelled, labels, num_classes=2)
    >>> found.weights, found.pseudo
    (tensor([1., 0.]), tensor([1, 0]))
    """

    papers = ("du2023wad",)
    helps = ("shift", "outliers")
    rows = ("unlabelled",)

    @torch.no_grad()
    def __call__(
        self,
        unlabelled: Float[Tensor, "n d"],
        labelled: Float[Tensor, "m d"],
        target: Int[Tensor, " m"],
        num_classes: int,
    ) -> _Found:
        """Weights, pseudo-labels and similarities of the unlabelled rows."""
        check_int("num_classes", num_classes, low=2)
        rows, known = (_directions(name, h) for name, h in (("unlabelled", unlabelled), ("labelled", labelled)))
        if rows.shape[1] != known.shape[1]:
            raise ValueError(f"labelled must have {rows.shape[1]} features as unlabelled has, got {known.shape[1]}")
        check_tensor("target", target)
        if target.dtype != torch.int64:
            raise TypeError(f"target must be int64 classes, got {target.dtype}")
        if target.shape != known.shape[:1]:
            raise ValueError(f"target must have shape ({len(known)},), one class a row, got {tuple(target.shape)}")
        if readable(target):
            if target.numel() and not 0 <= int(target.min()) <= int(target.max()) < num_classes:
                raise ValueError(f"target must be in [0, {num_classes}), got {int(target.min())}..{int(target.max())}")
            if len(target.unique()) < 2:
                raise ValueError(f"target must have labels of at least 2 classes, got {len(target.unique())}")
        similarities = torch.full((len(rows), num_classes), -torch.inf, dtype=rows.dtype, device=rows.device)
        with torch.autocast(rows.device.type, enabled=False):
            cosines = rows @ known.mT
        similarities = similarities.scatter_reduce(1, target.expand(len(rows), -1), cosines, "amax")
        best, classes = similarities.topk(2, dim=1)
        return _Found(best[:, 0] - best[:, 1], classes[:, 0], similarities)


def _directions(name: str, features: Tensor) -> Tensor:
    check_floating(name, features)
    if features.ndim != 2:
        raise ValueError(f"{name} must have shape (n, d), got {tuple(features.shape)}")
    features = wide(features)
    if readable(features) and not bool(features.isfinite().all()):
        row = int((~features.isfinite()).any(dim=1).nonzero()[0])
        raise ValueError(f"{name} must be finite, got NaN or Inf in row {row}")
    return directions(features)
