"""Find noisy rows by a plane in the space of features."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lossworks.checks import check_between, check_bool, check_floating
from lossworks.roles import Selector, directions
from lossworks.select.pseudo_loss import check_noisy

__all__ = ["LinearSeparationSelector"]

_ITERATIONS = 1000


class LinearSeparationSelector(Selector):
    r"""Finds noisy rows by a plane in feature space, fitted to a trusted split of the rows into clean and noisy ones.

    .. math::
        i \text{ noisy} \iff \sigma(v^\top u_i + b) > t, \qquad
        u = \mathrm{standardised}\big(h / \lVert h \rVert_2\big)

    Here v and b are those of scikit-learn's logistic regression on the trusted split, without penalty and with balanced
    classes. Rows of no known class (out of distribution) lie apart in feature space, and are found better than by their
    loss. But hard rows of known classes are dropped too, so better detection does not always give a better classifier:
    see :class:`AlternatingSelector`. Fit it once an epoch to the whole training set; if that is split over ranks,
    gather the features first, so that all ranks find the same rows.

    Args:
        threshold: t, the probability above which a row is taken for noisy, in [0, 1).
        normalize: Whether each row's features are first divided by their norm. If not, the answer does not depend on
            the scale of any single feature.

    Raises:
        ValueError: ``threshold`` outside [0, 1), features that are not finite or not ``(N, d)``.

    Use it on features that were not trained on the noisy labels, or only briefly. If the trusted rows are all clean or
    all noisy, the trusted split is returned as it is.

    Papers: albert2024accurate

    >>> features = torch.tensor([[1.0, 0.1], [1.0, 0.2], [1.0, 0.0], [0.1, 1.0], [0.2, 1.0]])
    >>> noisy, _ = LinearSeparationSelector()(features, torch.tensor([False, False, False, True, True]))
    >>> noisy
    tensor([False, False, False,  True,  True])
    """

    papers = ("albert2024accurate",)
    helps = ("noisy labels", "outliers")
    rows = ("features", "trusted_noisy")
    modes = ({"normalize": False},)

    def __init__(self, threshold: float = 0.5, normalize: bool = True) -> None:
        self.threshold = check_between("threshold", threshold, 0, 1, open_high=True)
        self.normalize = check_bool("normalize", normalize)

    @torch.no_grad()
    def __call__(
        self, features: Float[Tensor, "N d"], trusted_noisy: Bool[Tensor, " N"]
    ) -> tuple[Bool[Tensor, " N"], Float[Tensor, " N"]]:
        """Which rows are noisy, and the probability that each is."""
        from sklearn.linear_model import LogisticRegression

        check_floating("features", features)
        if features.ndim != 2 or not features.shape[1]:
            raise ValueError(f"features must have shape (N, d) with d >= 1, got {tuple(features.shape)}")
        check_noisy("trusted_noisy", trusted_noisy, ("features", features))
        rows = features.detach().double().cpu()
        if not bool(rows.isfinite().all()):
            row = int((~rows.isfinite()).any(dim=1).nonzero()[0])
            raise ValueError(f"features must be finite, got NaN or Inf in row {row}")
        trusted = trusted_noisy.cpu()
        if not bool(trusted.any()) or bool(trusted.all()):
            return trusted_noisy, trusted_noisy.to(features.dtype)
        if self.normalize:
            rows = directions(rows)
        rows = rows / rows.abs().amax(dim=0).clamp(min=torch.finfo(rows.dtype).tiny)
        spread = rows.std(dim=0, correction=0)
        rows = (rows - rows.mean(dim=0)) / torch.where(spread > 0, spread, 1)
        plane = LogisticRegression(C=math.inf, class_weight="balanced", max_iter=_ITERATIONS)
        found = torch.from_numpy(plane.fit(rows.numpy(), trusted.numpy()).predict_proba(rows.numpy())[:, 1])
        found = found.to(features)
        return found > self.threshold, found
