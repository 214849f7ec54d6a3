"""Random perturbations of the input."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from lossworks.checks import check_floating, check_generator, check_positive
from lossworks.perturb.ball import draw_normal
from lossworks.roles import Perturbation


class GaussianNoise(Perturbation):
    r"""Adds Gaussian noise to the input, drawn anew at each call.

    .. math::
        x' = x + \sigma \varepsilon, \qquad \varepsilon \sim N(0, I)

    To second order in :math:`\sigma`, the expected risk is the clean risk plus
    :math:`\tfrac{\sigma^2}{2} \mathbb{E}\,\mathrm{tr} \nabla_x^2 \ell`, a Tikhonov penalty on how fast the model
    changes. The noise is added in ``train()`` mode only. It is drawn for the rows at hand, so a batch that is split
    over ranks or micro-batches gets other noise than the whole batch.

    Args:
        std: The noise's standard deviation :math:`\sigma`, in the input's units, >= 0.
        generator: Where the noise is drawn from; torch's own generator by default.

    Shape:
        - x: ``(n, ...)`` floating-point; returns the same shape.

    Raises:
        ValueError: ``std < 0``.
        TypeError: x is not floating-point.

    Use it as a cheap smoothness prior on standardised inputs. It does not search for the worst input.

    Papers: bishop1995noise

    >>> GaussianNoise(0.0)(lambda x: x.sum(1), torch.ones(1, 2))
    tensor([[1., 1.]])
    """

    papers = ("bishop1995noise",)
    helps = ("overfitting",)
    stochastic = True
    settings = ({}, {"std": 0.3})

    def __init__(self, std: float | Tensor = 0.1, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.std = check_positive("std", std, allow_zero=True)
        self.generator = check_generator("generator", generator)

    def forward(
        self, risk: Callable[[Tensor], Float[Tensor, " n"]], x: Float[Tensor, "n *features"]
    ) -> Float[Tensor, "n *features"]:
        """The noisy input; ``risk`` is never called."""
        check_floating("x", x)
        if not self.training:
            return x
        return x + self.std * draw_normal(x, self.generator)
