"""Tell high from low values by a mixture of two normal modes."""

import warnings

import torch
from jaxtyping import Float
from torch import Tensor

from lossworks.checks import check_floating

_STEPS, _TOLERANCE, _SMALLEST_VARIANCE = 10, 1e-2, 5e-4
"""Settings of the mixture's fit to values in [0, 1], those of Albert and others (2024)."""


@torch.no_grad()
def probability_of_high(name: str, values: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """The probability that each value is from the higher of two normal modes; 0 where all values are the same.

    An infinite value counts as the largest finite one.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    check_floating(name, values)
    if values.ndim != 1:
        raise ValueError(f"{name} must have shape (N,), got {tuple(values.shape)}")
    rows = values.detach().double().cpu()
    if bool((rows.isnan() | (rows == -torch.inf)).any()):
        row = int((rows.isnan() | (rows == -torch.inf)).nonzero()[0])
        raise ValueError(f"{name} must be numbers or inf, got {float(rows[row]):g} in row {row}")
    finite = rows[rows.isfinite()]
    if not len(finite) or finite.max() == finite.min():
        return torch.zeros_like(values)
    low, high = finite.min(), finite.max()
    # Halves are used because the difference of two large numbers may be infinite.
    scaled = ((rows.clamp(max=high) / 2 - low / 2) / (high / 2 - low / 2)).numpy()[:, None]
    mixture = GaussianMixture(2, max_iter=_STEPS, tol=_TOLERANCE, reg_covar=_SMALLEST_VARIANCE, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # few steps are intended
        found = mixture.fit(scaled).predict_proba(scaled)[:, mixture.means_[:, 0].argmax()]
    return torch.from_numpy(found).to(values)
