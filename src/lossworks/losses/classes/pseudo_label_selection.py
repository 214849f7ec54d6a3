"""Training on labels and on the pseudo-labels that replace noisy ones, weighted by how likely they are right."""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from lossworks.checks import (
    check_classes,
    check_floating,
    check_positive,
    check_real,
    check_same_shape,
    check_sample_weight,
    check_tensor,
    readable,
    wide,
)
from lossworks.losses._rows import soft_cross_entropy
from lossworks.roles import CLASSES, BatchLoss, check_no_nan, cite, directions, present_rows

__all__ = ["PseudoLabelSelectionLoss", "pseudo_label_targets", "uniform_prediction_loss"]


@cite("albert2024accurate", helps=("noisy labels",))
def pseudo_label_targets(
    target: Int[Tensor, " n"],
    guess: Float[Tensor, "n classes"],
    noisy: Bool[Tensor, " n"],
    gamma: float | Tensor = 2.0,
) -> Float[Tensor, "n classes"]:
    r"""Replace the labels of noisy rows by pseudo-labels, the model's sharpened predictions.

    .. math:: t_{ik} = p_{ik}^\gamma \Big/ \sum_j p_{ij}^\gamma \text{ where noisy, else } [k = y_i]

    Args:
        target: ``(n,)`` int64 classes.
        guess: ``(n, C)``, the logits of a weakly augmented view of the same rows. To use the mean softmax of several
            views, give its logarithm.
        noisy: ``(n,)`` bool, the rows whose label is replaced.
        gamma: The exponent :math:`\gamma`, > 0; above 1 it sharpens the prediction.

    Returns:
        Class probabilities ``(n, C)``, without a gradient.

    Raises:
        ValueError: ``gamma <= 0``, shapes that don't match, a class out of range.

    Papers: albert2024accurate

    >>> logits = torch.tensor([[0.0, 3.0], [0.5, 0.0]]).log_softmax(dim=1)
    >>> pseudo_label_targets(torch.tensor([0, 1]), logits, torch.tensor([False, True]))
    tensor([[1.0000, 0.0000],
            [0.7311, 0.2689]])
    """
    check_positive("gamma", gamma)
    check_floating("guess", guess)
    check_tensor("noisy", noisy)
    if guess.ndim != 2:
        raise ValueError(f"guess must have shape (n, C), got {tuple(guess.shape)}")
    check_classes(guess, target)
    if noisy.dtype != torch.bool:
        raise TypeError(f"noisy must be bool, got {noisy.dtype}")
    check_same_shape(target, noisy, names=("target", "noisy"))
    sharpened = (gamma * guess.detach().log_softmax(dim=1)).softmax(dim=1)
    return torch.where(noisy[:, None], sharpened, F.one_hot(target, guess.shape[1]).to(sharpened.dtype))


@cite("albert2024accurate")
def uniform_prediction_loss(output: Float[Tensor, "n classes"]) -> Float[Tensor, ""]:
    r"""The divergence of a batch's mean prediction from the uniform distribution over the classes.

    .. math:: \sum_k \tfrac1C \log \frac{1/C}{\bar p_k}, \qquad \bar p = \tfrac1n \sum_i \mathrm{softmax}(z_i)

    It is at least 0, and 0 only where the mean is uniform. It keeps pseudo-labels from collapsing into one class. It is
    a number of the whole batch: its mean over micro-batches or ranks is another, larger number, so gather the outputs
    of a batch that is split.

    Args:
        output: ``(n, C)`` logits.

    Raises:
        ValueError: output is not ``(n, C)``.

    Papers: albert2024accurate

    >>> uniform_prediction_loss(torch.tensor([[3.0, 0.0], [0.0, 3.0]]))
    tensor(0.)
    """
    check_floating("output", output)
    if output.ndim != 2 or not output.shape[1]:
        raise ValueError(f"output must have shape (n, C), got {tuple(output.shape)}")
    if not len(output):
        return output.sum()
    classes = output.shape[1]
    log_mean = output.log_softmax(dim=1).logsumexp(dim=0) - math.log(len(output))
    # A divergence is never below 0, but rounding in float32 may put the sum there.
    return (-log_mean.mean() - math.log(classes)).clamp(min=0)


class PseudoLabelSelectionLoss(BatchLoss):
    r"""Cross-entropy on labels and pseudo-labels, each weighted by how likely it is right, plus two regularisers.

    .. math::
        \frac{\sum_i w_i\, \mathrm{CE}(z_i, t_i)}{\sum_i w_i}
        + a \sum_k \tfrac1C \log \frac{1/C}{\bar p_k}
        - \frac{b}{n} \sum_{i,j} \frac{[y_i = y_j]}{\lvert \{l: y_l = y_i\} \rvert}
        \log \mathrm{softmax}_j \frac{\cos(f_i, f'_j)}{\mu}, \qquad y_i = \arg\max_k t_{ik}

    The targets come from :func:`pseudo_label_targets`, the weights (``sample_weight``) from
    :func:`lossworks.select.pseudo_loss_weights`. The second term keeps the mean prediction near uniform; the third
    pulls together two views of rows of one class. Both count all rows alike, whatever their weights. For mixup, compute
    the loss of the mixed rows once with each half's targets and weights, and add the two in the shares of the mixture.

    It compares the rows of a batch: when the batch is split, :class:`lossworks.Objective` computes it on the gathered
    rows.

    Args:
        uniform: The price a of the second term, >= 0, in loss units.
        contrast: The price b of the third term, >= 0, in loss units; above 0, the features of both views must be given.
        temperature: The temperature :math:`\mu` of the third term, > 0.

    Shape:
        - output: logits ``(n, C)``; target: classes ``(n,)`` int64 or class probabilities ``(n, C)``.
        - features, other_features: ``(n, d)`` of two views of the rows; sample_weight: ``(n,)``. Returns ``()``.

    Raises:
        ValueError: ``uniform`` or ``contrast`` below 0, ``temperature <= 0``, shapes that don't match, or no
            features where ``contrast`` is above 0.

    Use it when labels come from the web and a selector finds the noisy rows. With the defaults and without weights it
    is plain cross-entropy.

    Papers: albert2024accurate

    >>> loss = PseudoLabelSelectionLoss()
    >>> loss(torch.zeros(2, 2), torch.tensor([0, 1]), sample_weight=torch.tensor([1.0, 0.5]))
    tensor(0.6931)
    """

    papers = ("albert2024accurate",)
    helps = ("noisy labels",)
    settings = ({}, {"uniform": 1.0})
    kind = CLASSES

    def __init__(
        self, uniform: float | Tensor = 0.0, contrast: float | Tensor = 0.0, temperature: float | Tensor = 0.2
    ) -> None:
        super().__init__()
        self.uniform = check_positive("uniform", uniform, allow_zero=True)
        self.contrast = check_positive("contrast", contrast, allow_zero=True)
        self.temperature = check_positive("temperature", temperature)

    def forward(  # type: ignore[override]  # this loss names its inputs
        self,
        output: Float[Tensor, "n classes"],
        target: Tensor,
        features: Float[Tensor, "n d"] | None = None,
        other_features: Float[Tensor, "n d"] | None = None,
        *,
        sample_weight: Float[Tensor, " n"] | None = None,
    ) -> Float[Tensor, ""]:
        """The loss of the batch."""
        columns = (output, target, features, other_features)
        sample_weight, output, target, features, other_features = present_rows(sample_weight, *columns)
        check_floating("output", output)
        output = wide(output)
        losses = _cross_entropies(output, target)
        check_no_nan(output, losses)
        weights = torch.ones_like(losses)
        if sample_weight is not None:
            check_sample_weight(sample_weight, losses.shape)
            weights = sample_weight.to(losses.dtype)
        summed = weights.sum()
        value = (weights * losses).sum() / torch.where(summed > 0, summed, torch.ones_like(summed))
        if _is_on(self.uniform):
            value = value + self.uniform * uniform_prediction_loss(output)
        if features is not None and other_features is not None:
            classes = target.argmax(dim=1) if target.is_floating_point() else target
            value = value + self.contrast * self._contrast(features, other_features, classes)
        elif _is_above_zero(self.contrast):
            raise ValueError("features and other_features must be given where contrast is above 0, got None")
        return value

    def _contrast(
        self, features: Float[Tensor, "n d"], other_features: Float[Tensor, "n d"], classes: Int[Tensor, " n"]
    ) -> Float[Tensor, ""]:
        check_floating("features", features)
        check_same_shape(features, other_features, names=("features", "other_features"))
        if features.ndim != 2 or len(features) != len(classes):
            raise ValueError(f"features must have shape ({len(classes)}, d), got {tuple(features.shape)}")
        cosines = directions(features) @ directions(other_features).mT
        same = (classes[:, None] == classes).to(cosines.dtype)
        shares = same / same.sum(dim=1, keepdim=True)
        return -(shares * (cosines / self.temperature).log_softmax(dim=1)).sum() / max(len(classes), 1)


def _is_on(strength: float | Tensor) -> bool:
    """Whether a term counts; a tensor's value is not looked at."""
    return isinstance(strength, Tensor) or strength > 0


def _is_above_zero(strength: float | Tensor) -> bool:
    """Whether a term is asked for, as far as a tensor's value can be read without waiting for it."""
    return bool(strength > 0) if not isinstance(strength, Tensor) or readable(strength) else False


def _cross_entropies(output: Float[Tensor, "n classes"], target: Tensor) -> Float[Tensor, " n"]:
    check_real("target", target)
    if not target.is_floating_point():
        check_classes(output, target)
        return F.cross_entropy(output, target, reduction="none")
    if output.ndim != 2:
        raise ValueError(f"output must have shape (n, C), got {tuple(output.shape)}")
    check_same_shape(output, target)
    return soft_cross_entropy(output, target.to(output.dtype))
