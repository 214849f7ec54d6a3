"""Training on several noisy copies of each row, for a classifier that will be smoothed."""

import torch
from torch import Tensor, nn

from lossworks.checks import check_floating, check_int, check_positive
from lossworks.losses import SmoothingConsistencyLoss
from lossworks.objective import Objective
from lossworks.perturb import GaussianNoise


class NoiseConsistencyObjective(Objective):
    r"""Consistency training for randomized smoothing: the loss of noisy copies plus a price on their disagreement.

    .. math::
        \frac1m \sum_j -\log p_j(y) + \frac{\lambda}{m} \sum_j \mathrm{KL}(\bar p \,\|\, p_j) + \eta H(\bar p), \qquad
        p_j = \mathrm{softmax}\big(f_\theta(x + \sigma \varepsilon_j)\big), \quad \varepsilon_j \sim N(0, I)

    It applies :class:`~lossworks.losses.SmoothingConsistencyLoss` to copies made by
    :class:`~lossworks.perturb.GaussianNoise`; with ``lam`` and ``eta`` 0 it is plain training with noise. Call it as
    any :class:`~lossworks.Objective`. The noise is drawn for the rows at hand, so a batch that is split over ranks or
    micro-batches gets other noise than the whole batch. In ``eval()`` mode there is no noise.

    Args:
        sigma: :math:`\sigma`, the noise's standard deviation, in input units, >= 0: the same as in the smoothing.
        num_samples: m, the number of copies of each row, >= 1; one copy has no disagreement.
        lam: :math:`\lambda`, the price of disagreement in loss units per nat, >= 0.
        eta: :math:`\eta`, the price of entropy in loss units per nat, >= 0.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        generator: Where the noise is drawn from; torch's own generator by default.

    Shape:
        - model: from x ``(n, ...)`` to logits ``(n, C)``; it is called once on all ``n m`` copies. target: classes
          ``(n,)``, int64. Returns ``()``, or ``(n,)`` with ``reduction="none"``.

    Raises:
        ValueError: ``sigma``, ``lam`` or ``eta`` below 0, ``num_samples < 1``, a class outside ``[0, C)``.
        TypeError: x is not floating-point.

    Use it before :class:`lossworks.certify.RandomizedSmoothing` with the same noise. A step costs m forward and
    backward passes.

    Papers: jeong2020consistency, lei2025rrcm

    >>> objective = NoiseConsistencyObjective(sigma=0.5)
    >>> objective(torch.nn.Linear(3, 2), torch.ones(4, 3), torch.tensor([0, 1, 1, 0])) > 0
    tensor(True)
    """

    papers = ("jeong2020consistency", "lei2025rrcm")
    helps = ("attacks",)
    settings = ({}, {"sigma": 0.5, "num_samples": 3})
    perturb: GaussianNoise

    def __init__(
        self,
        sigma: float | Tensor = 0.25,
        num_samples: int = 2,
        lam: float | Tensor = 5.0,
        eta: float | Tensor = 0.5,
        *,
        reduction: str = "mean",
        generator: torch.Generator | None = None,
    ) -> None:
        check_positive("sigma", sigma, allow_zero=True)
        loss = SmoothingConsistencyLoss(lam, eta, reduction=reduction)
        super().__init__(loss, perturb=GaussianNoise(sigma, generator=generator))
        self.num_samples = check_int("num_samples", num_samples, low=1)

    def _perturbed(self, model: nn.Module, x: Tensor, target: Tensor, index: Tensor | None) -> Tensor:
        check_floating("x", x)
        copies = x[:, None].expand(-1, self.num_samples, *(-1 for _ in x.shape[1:]))
        return self.perturb(lambda noisy: noisy.new_zeros(len(noisy)), copies)

    def _outputs(self, model: nn.Module, x: Tensor, changed: Tensor, target: Tensor) -> tuple[Tensor, None]:
        return model(changed.flatten(0, 1)).unflatten(0, (len(x), self.num_samples)), None
