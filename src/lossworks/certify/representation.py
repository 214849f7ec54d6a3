"""Pretraining for randomized smoothing: the same representation for a row at every level of noise."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lossworks.checks import check_between, check_floating, check_function, check_int, check_positive, check_same_shape
from lossworks.embed import infonce_loss
from lossworks.roles import cite

__all__ = [
    "EMAAndScales",
    "RepresentationConsistencyLoss",
    "RepresentationTerms",
    "consistency_curriculum",
    "karras_sigmas",
]

Projector = Callable[[Float[Tensor, "n *features"], Float[Tensor, " n"]], tuple[Tensor, Tensor]]


@cite("karras2022edm", "lei2025rrcm")
def karras_sigmas(
    num_scales: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> Float[Tensor, " scales"]:
    r"""Karras noise levels: from the largest to the smallest, evenly spaced in their :math:`\rho`-th root.

    .. math::
        \sigma_i = \Big(\sigma_{max}^{1 / \rho}
        + \tfrac{i}{N - 1} \big(\sigma_{min}^{1 / \rho} - \sigma_{max}^{1 / \rho}\big)\Big)^\rho, \qquad 0 \le i < N

    Args:
        num_scales: The number of levels N, >= 2.
        sigma_min: The least noise, in input units, > 0.
        sigma_max: The greatest noise, in input units, > sigma_min.
        rho: :math:`\rho`, > 0; the larger, the more levels are small.

    Returns:
        The levels ``(N,)``, float64, in falling order.

    Raises:
        ValueError: numbers out of range.

    Papers: karras2022edm, lei2025rrcm

    >>> karras_sigmas(3, 1.0, 9.0, rho=2.0)
    tensor([9., 4., 1.], dtype=torch.float64)
    """
    check_int("num_scales", num_scales, low=2, high=2**31 - 1)
    check_positive("sigma_min", sigma_min)
    check_positive("sigma_max", sigma_max)
    check_positive("rho", rho)
    least, most, root = (torch.as_tensor(value, dtype=torch.float64) for value in (sigma_min, sigma_max, rho))
    if not bool(most > least):
        raise ValueError(f"sigma_max must be > sigma_min = {float(least):g}, got {float(most):g}")
    way = torch.linspace(0, 1, num_scales, dtype=torch.float64)
    # The ratio's logarithm is used, so that no power overflows; the ends are exact.
    ratio = ((least / most).log() / root).exp()
    levels = most * (1 - way * (1 - ratio)) ** root
    levels[-1] = least
    return levels


class EMAAndScales(NamedTuple):
    """The curriculum's values for one training step.

    Args:
        decay: The share of the target network that is kept in this step, in [0, 1].
        num_scales: The number of noise levels.
    """

    decay: float
    num_scales: int


@cite("lei2025rrcm")
def consistency_curriculum(
    step: int,
    total_steps: int,
    *,
    start_scales: int = 20,
    end_scales: int = 80,
    start_decay: float = 0.99,
    end_decay: float = 0.9999,
    sharpness: float = 10.0,
) -> EMAAndScales:
    r"""Consistency-training curriculum: the target network's decay and the number of noise levels, both rising.

    .. math::
        N_k = \min\big(s_0 2^{\lceil k / K' \rceil}, s_1\big) + 1, \quad
        K' = \Big\lceil \frac{K}{\log_2(\lceil s_1 / s_0 \rceil + 1)} \Big\rceil, \qquad
        \mu_k = e_0 + (e_1 - e_0) \tanh\Big(\frac A2 \frac{e - e_0}{e_1 - e_0}\Big), \quad
        e = \sqrt{e_0^2 + \tfrac kK (e_1^2 - e_0^2)}

    It is as published: since k / K' is rounded up, the first number of levels holds for step 0 alone.

    Args:
        step: The training step k, in [0, total_steps].
        total_steps: The number of training steps K, >= 1.
        start_scales: :math:`s_0`, the number of levels at the start less one, >= 1.
        end_scales: :math:`s_1`, the number of levels at the end less one, >= start_scales.
        start_decay: :math:`e_0`, the decay at the start, in [0, 1).
        end_decay: :math:`e_1`, the limit of the decay, in (start_decay, 1].
        sharpness: A, how fast the decay rises, > 0; 15 was used for small images.

    Returns:
        The decay and the number of noise levels of this step.

    Raises:
        ValueError: numbers out of range.

    Papers: lei2025rrcm

    >>> consistency_curriculum(0, 1000)
    EMAAndScales(decay=0.99, num_scales=21)
    """
    check_int("total_steps", total_steps, low=1, high=2**53)
    check_int("step", step, low=0, high=total_steps)
    check_int("start_scales", start_scales, low=1, high=2**31 - 1)
    check_int("end_scales", end_scales, low=start_scales, high=2**31 - 1)
    check_between("start_decay", start_decay, 0, 1, open_high=True)
    check_between("end_decay", end_decay, float(start_decay), 1, open_low=True)
    check_positive("sharpness", sharpness)
    stage = math.ceil(total_steps / math.log2(math.ceil(end_scales / start_scales) + 1))
    doublings = min(math.ceil(step / stage), 31)
    first, last = float(start_decay), float(end_decay)
    now = math.sqrt(first**2 + step / total_steps * (last**2 - first**2))
    decay = first + (last - first) * math.tanh(float(sharpness) / 2 * (now - first) / (last - first))
    return EMAAndScales(decay, min(start_scales * 2**doublings, end_scales) + 1)


class RepresentationTerms(NamedTuple):
    """The two losses of each row.

    Args:
        contrast: ``(n,)``, the loss between two views at the least noise, in both directions.
        consistency: ``(n,)``, the loss between neighbouring noise levels of the same row.
    """

    contrast: Float[Tensor, " n"]
    consistency: Float[Tensor, " n"]

    @property
    def total(self) -> Float[Tensor, ""]:
        """The mean over rows of the sum of both losses, to be minimised."""
        return (self.contrast + self.consistency).mean()


class RepresentationConsistencyLoss:
    r"""RRCM pretraining loss: contrast between two views of a row, and between neighbouring noise levels, unlabelled.

    .. math::
        \ell_i = \underbrace{\mathrm{NCE}\big(f^0(a_i), \bar f^0(b_i)\big)
        + \mathrm{NCE}\big(f^0(b_i), \bar f^0(a_i)\big)}_{\text{contrast at } \sigma_{min}}
        + \underbrace{\mathrm{NCE}\big(f^1(x_i + \sigma_s \varepsilon_i), \mathrm{sg}\,
        f^1(x_i + \sigma_{s+1} \varepsilon_i)\big)}_{\text{consistency}}

    with NCE as in :func:`lossworks.embed.infonce_loss`, :math:`\bar f` the target network, sg the stop of the gradient,
    the two views :math:`a_i, b_i` with noise of :math:`\sigma_{min}`, and the levels of :func:`karras_sigmas`. One
    draw of noise per row is used for both views and all levels. In this way the representation in strong noise is tied,
    level by level, to the one without noise.

    After each step the caller moves the target network towards the online one,
    :math:`\bar\theta \leftarrow \mu \bar\theta + (1 - \mu) \theta`, with :math:`\mu` and the number of levels from
    :func:`consistency_curriculum`. The network itself must scale its input by :math:`1 / \sqrt{\sigma^2 + 1/4}` and may
    read :math:`250 \log \sigma`. The loss couples the rows of its batch, so a batch that is split has another loss.

    Args:
        tau: The temperature :math:`\tau`, a difference of cosines, > 0.
        sigma_min: The least noise, in input units, > 0.
        sigma_max: The greatest noise, in input units, > sigma_min.
        rho: The spacing of the levels, see :func:`karras_sigmas`, > 0.

    Shape:
        - x, view1, view2, noise: ``(n, ...)``. online and target: functions of such inputs and their noise levels
          ``(n,)`` that return a pair of features, ``(n, d)`` for contrast and ``(n, e)`` for consistency.
          Returns :class:`RepresentationTerms`.

    Raises:
        ValueError: numbers out of range, shapes that don't match, ``index`` outside ``[0, num_scales - 2]``.
        TypeError: inputs that are not floating-point, networks that cannot be called.

    Use it to pretrain a network on many images without labels, before training it with noise for
    :class:`RandomizedSmoothing`. On small data it has little to learn from.

    Papers: lei2025rrcm

    >>> network = lambda x, sigma: (x, x)
    >>> x, noise = torch.eye(3), torch.ones(3, 3)
    >>> terms = RepresentationConsistencyLoss()(network, network, x, x, x, index=19, num_scales=21, noise=noise)
    >>> terms.total > 0
    tensor(True)
    """

    papers = ("lei2025rrcm",)
    helps = ("attacks",)

    def __init__(
        self, tau: float | Tensor = 0.2, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
    ) -> None:
        karras_sigmas(2, sigma_min, sigma_max, rho)
        self.tau = check_positive("tau", tau)
        self.sigma_min, self.sigma_max, self.rho = sigma_min, sigma_max, rho

    def __call__(
        self,
        online: Projector,
        target: Projector,
        x: Float[Tensor, "n *features"],
        view1: Float[Tensor, "n *features"],
        view2: Float[Tensor, "n *features"],
        *,
        index: int,
        num_scales: int,
        noise: Float[Tensor, "n *features"],
    ) -> RepresentationTerms:
        """The losses at level ``index``, which the caller draws from 0, the most noise, to ``num_scales - 2``."""
        for name, network in (("online", online), ("target", target)):
            check_function(name, network, "inputs and noise levels")
        check_floating("x", x)
        for name, other in (("view1", view1), ("view2", view2), ("noise", noise)):
            check_floating(name, other)
            check_same_shape(x, other, names=("x", name))
        levels = karras_sigmas(num_scales, self.sigma_min, self.sigma_max, self.rho).to(x.device, x.dtype)
        check_int("index", index, low=0, high=num_scales - 2)

        def at(network: Projector, clean: Tensor, level: int, head: int) -> Tensor:
            features = network(clean + levels[level] * noise, levels[level].expand(len(x)))[head]
            return features.flatten(1)

        with torch.no_grad():
            of_first, of_second = (at(target, view, -1, 0) for view in (view1, view2))
            next_level = at(online, x, index + 1, 1)
        contrast = infonce_loss(at(online, view1, -1, 0), of_second, self.tau) + infonce_loss(
            at(online, view2, -1, 0), of_first, self.tau
        )
        return RepresentationTerms(contrast, infonce_loss(at(online, x, index, 1), next_level, self.tau))
