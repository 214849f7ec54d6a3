"""Training on labels of which some were replaced by the model's own, weighed by how far those can be believed."""

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
)
from lossworks.roles import BatchLoss, check_no_nan, cite

__all__ = ["PseudoLabelSelectionLoss", "pseudo_label_targets", "uniform_prediction_loss"]


@cite("albert2024accurate", helps=("noisy labels",))
def pseudo_label_targets(
    target: Int[Tensor, " n"],
    guess: Float[Tensor, "n classes"],
    noisy: Bool[Tensor, " n"],
    gamma: float | Tensor = 2.0,
) -> Float[Tensor, "n classes"]:
    r"""Put the model's sharpened guess in place of the labels of noisy rows.

    .. math:: t_{ik} = p_{ik}^\gamma \Big/ \sum_j p_{ij}^\gamma \text{ where noisy, else } [k = y_i]

    Args:
        target: ``(n,)`` int64 classes.
        guess: ``(n, C)``, logits of a weakly augmented view of the same rows. For the mean p of several views' softmax
            give its logarithm.
        noisy: ``(n,)`` bool, the rows whose label is replaced.
        gamma: :math:`\gamma`, > 0; above 1 sharpens.

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
    r"""How far a batch's mean prediction is from one that has all classes alike.

    .. math:: \sum_k \tfrac1C \log \frac{1/C}{\bar p_k}, \qquad \bar p = \tfrac1n \sum_i \mathrm{softmax}(z_i)

    At least 0, and 0 only where the mean is uniform. It keeps pseudo-labels from running into one class. It is of the
    whole batch: the mean over micro-batches or ranks is another, larger number, so gather the outputs of a split.

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
    # The sum is rounded in float32, and a divergence is never below 0.
    return (-log_mean.mean() - math.log(classes)).clamp(min=0)


class PseudoLabelSelectionLoss(BatchLoss):
    r"""Cross-entropy on labels and pseudo-labels, each weighed by how far it is believed.

    .. math::
        \frac{\sum_i w_i\, \mathrm{CE}(z_i, t_i)}{\sum_i w_i}
        + a \sum_k \tfrac1C \log \frac{1/C}{\bar p_k}
        - \frac{b}{n} \sum_{i,j} \frac{[y_i = y_j]}{\lvert \{l: y_l = y_i\} \rvert}
        \log \mathrm{softmax}_j \frac{\cos(f_i, f'_j)}{\mu}, \qquad y_i = \arg\max_k t_{ik}

    The targets come from :func:`pseudo_label_targets`, the weights (``sample_weight``) from
    :func:`lossworks.select.pseudo_loss_weights`. The second term holds the mean prediction near uniform, the third
    pulls together two views of rows of one class; both are of all rows, whatever these weigh. For mixup take the loss
    of the mixed rows with either half's targets and weights, in the shares of the mixture.

    It couples its batch: split, it is that of the gathered rows, which :class:`lossworks.Objective` sees to.

    Args:
        uniform: a, >= 0, in loss units.
        contrast: b, >= 0, in loss units; above 0 the views' features must be given.
        temperature: :math:`\mu`, > 0.

    Shape:
        - output: logits ``(n, C)``; target: classes ``(n,)`` int64 or class probabilities ``(n, C)``.
        - features, other_features: ``(n, d)`` of two views of the rows; sample_weight: ``(n,)``. Returns ``()``.

    Raises:
        ValueError: a or b below 0, ``temperature <= 0``, shapes that don't match, features missing where b is above 0.

    Use it when labels come from the web and noise is found by a selector. Without one it is cross-entropy.

    Papers: albert2024accurate

    >>> loss = PseudoLabelSelectionLoss()
    >>> loss(torch.zeros(2, 2), torch.tensor([0, 1]), sample_weight=torch.tensor([1.0, 0.5]))
    tensor(0.6931)
    """

    papers = ("albert2024accurate",)
    helps = ("noisy labels",)
    settings = ({}, {"uniform": 1.0})
    kind = "classes"

    def __init__(
        self, uniform: float | Tensor = 0.0, contrast: float | Tensor = 0.0, temperature: float | Tensor = 0.2
    ) -> None:
        super().__init__()
        self.uniform = check_positive("uniform", uniform, allow_zero=True)
        self.contrast = check_positive("contrast", contrast, allow_zero=True)
        self.temperature = check_positive("temperature", temperature)

    def forward(  # type: ignore[override]  # what a batch of it is has names
        self,
        output: Float[Tensor, "n classes"],
        target: Tensor,
        features: Float[Tensor, "n d"] | None = None,
        other_features: Float[Tensor, "n d"] | None = None,
        *,
        sample_weight: Float[Tensor, " n"] | None = None,
    ) -> Float[Tensor, ""]:
        """The loss of the batch."""
        check_floating("output", output)
        output = output.float() if output.dtype in (torch.float16, torch.bfloat16) else output
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
        elif _is_on(self.contrast):
            raise ValueError("features and other_features must be given where contrast is above 0, got None")
        return value

    def _contrast(
        self, features: Float[Tensor, "n d"], other_features: Float[Tensor, "n d"], classes: Int[Tensor, " n"]
    ) -> Float[Tensor, ""]:
        check_floating("features", features)
        check_same_shape(features, other_features, names=("features", "other_features"))
        if features.ndim != 2 or len(features) != len(classes):
            raise ValueError(f"features must have shape ({len(classes)}, d), got {tuple(features.shape)}")
        cosines = F.normalize(features, dim=1) @ F.normalize(other_features, dim=1).mT
        same = (classes[:, None] == classes).to(cosines.dtype)
        shares = same / same.sum(dim=1, keepdim=True)
        return -(shares * (cosines / self.temperature).log_softmax(dim=1)).sum() / max(len(classes), 1)


def _is_on(strength: float | Tensor) -> bool:
    """Whether a term counts; a tensor's value is not looked at."""
    return isinstance(strength, Tensor) or strength > 0


def _cross_entropies(output: Float[Tensor, "n classes"], target: Tensor) -> Float[Tensor, " n"]:
    check_real("target", target)
    if not target.is_floating_point():
        check_classes(output, target)
        return F.cross_entropy(output, target, reduction="none")
    if output.ndim != 2:
        raise ValueError(f"output must have shape (n, C), got {tuple(output.shape)}")
    check_same_shape(output, target)
    return -(target.to(output.dtype) * output.log_softmax(dim=1)).sum(dim=1)
