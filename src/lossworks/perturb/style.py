"""Perturbations of style: they shift each channel's mean and spread in a feature map, at random or for the worst."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lossworks.checks import (
    check_between,
    check_floating,
    check_function,
    check_generator,
    check_int,
    check_positive,
    check_sequence,
    check_tensor,
    shown,
    taken,
)
from lossworks.perturb.ball import draw_normal
from lossworks.roles import Part, cite

__all__ = ["AdvStyle", "DSUStyle", "adversarial_style_step", "style_perturb"]


@cite("zhang2023advstyle", helps=("shift",))
def style_perturb(
    x: Float[Tensor, "n c h w"],
    mean_shift: Float[Tensor, "#n #c 1 1"],
    std_shift: Float[Tensor, "#n #c 1 1"],
    eps: float = 1e-6,
) -> Float[Tensor, "n c h w"]:
    r"""Give each channel of each image a new mean and standard deviation (a style).

    .. math::
        y = (\sigma + s_\sigma) \frac{x - \mu}{\sigma} + \mu + s_\mu, \qquad
        \sigma = \sqrt{\mathrm{Var}_{hw}(x) + \epsilon}

    Args:
        x: Feature maps, floating-point, of at least two pixels each.
        mean_shift: :math:`s_\mu`, in x's units; broadcasts to ``(n, c, 1, 1)``.
        std_shift: :math:`s_\sigma`, in x's units; broadcasts to ``(n, c, 1, 1)``.
        eps: The number added to the (unbiased) variance, > 0.

    Returns:
        The maps with the new mean and standard deviation, in x's shape.

    Raises:
        ValueError: x is not ``(n, c, h, w)``, or has a single pixel.

    Papers: zhang2023advstyle

    >>> x = torch.tensor([[[[1.0, 3.0]]]])
    >>> style_perturb(x, torch.full((1, 1, 1, 1), 2.0), torch.zeros(1, 1, 1, 1))
    tensor([[[[3., 5.]]]])
    """
    check_positive("eps", eps)
    mean, std = _moments(x, eps)
    for name, shift in (("mean_shift", mean_shift), ("std_shift", std_shift)):
        check_floating(name, shift)
        if shift.ndim > 4 or any(s not in (1, m) for s, m in zip(shift.shape[::-1], mean.shape[::-1], strict=False)):
            raise ValueError(f"{name} must broadcast to shape {tuple(mean.shape)}, got {tuple(shift.shape)}")
    return (std + std_shift) * ((x - mean) / std) + mean + mean_shift


class DSUStyle(Part):
    r"""DSU: shifts each image's channel means and spreads by noise as large as they vary over the batch.

    .. math::
        y = (\sigma_i + e_\sigma s_\sigma) \frac{x_i - \mu_i}{\sigma_i} + \mu_i + e_\mu s_\mu, \qquad
        s_\mu = \sqrt{\mathrm{Var}_i(\mu_i) + \epsilon}, \quad e \sim N(0, 1)

    The noise is added in ``train()`` mode only. Its scales are statistics of the batch by definition, so the noise
    differs if a batch is split. A batch of one image has no spread between images and takes :math:`\sqrt{\epsilon}`.

    Args:
        eps: The number added to the variances, > 0.
        generator: Where the noise is drawn from; torch's own generator by default.

    Shape:
        - x: ``(n, c, h, w)`` floating-point; returns the same shape.

    Raises:
        ValueError: x is not ``(n, c, h, w)``, or has a single pixel.

    Use it between early layers of a convolutional network that will meet images of another contrast or brightness than
    those it is trained on. :class:`AdvStyle` looks for the worst shifts instead.

    Papers: li2022dsu

    >>> DSUStyle().eval()(torch.ones(1, 1, 2, 2)).sum()
    tensor(4.)
    """

    papers = ("li2022dsu",)
    helps = ("shift",)
    starts_as_identity = True
    stochastic = True
    couples_batch = True

    def __init__(self, eps: float = 1e-6, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.eps = check_positive("eps", eps)
        self.generator = check_generator("generator", generator)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """The maps in another style; in ``eval()`` mode, the maps unchanged."""
        if not self.training:
            return x
        mean, std = _moments(x, self.eps)
        shifts = [draw_normal(moment, self.generator) * _spread(moment, self.eps) for moment in (mean, std)]
        return style_perturb(x, shifts[0], shifts[1], self.eps)


class AdvStyle(Part):
    r"""AdvStyle: shifts each image's channel means and spreads by noise whose size is learned to hurt the model most.

    .. math::
        y = (\sigma_i + e_\sigma s_\sigma) \frac{x_i - \mu_i}{\sigma_i} + \mu_i + e_\mu s_\mu, \qquad
        \max_{s_\mu, s_\sigma} \mathbb{E}_e\, \ell(f(y)), \quad e \sim N(0, 1)

    The scales :math:`s` are parameters whose gradient is reversed, so that the one optimiser that descends for the
    model ascends for them; :func:`adversarial_style_step` moves the scales alone. For each batch one of three branches
    is drawn: the maps unchanged, the learned noise, or the noise of :class:`DSUStyle`. All this happens in
    ``train()`` mode only. At first use the scales are set to the batch's own spread. Spreads and draws are computed on
    the rows at hand, so the ranks and micro-batches of a batch that is split have their own, and the scales should be
    set on one rank before a split training begins.

    Args:
        channels: The number of channels c.
        p: The probabilities that a batch is left unchanged, shifted by the learned scales, and shifted by the batch's
            own spread; they sum to 1.
        adv_weight: The factor by which the reversed gradient is multiplied, > 0.
        eps: The number added to the variances, > 0.
        generator: Where the noise is drawn from; torch's own generator by default.

    Parameters and buffers:
        mean_scale, std_scale: ``(1, c, 1, 1)``, :math:`s_\mu` and :math:`s_\sigma`.
        begun: ``()`` bool, whether the scales have been set.

    Shape:
        - x: ``(n, c, h, w)`` floating-point; returns the same shape.

    Raises:
        ValueError: ``p`` that is not three shares with the sum 1, or x of another shape or number of channels.

    Use it after early layers of a convolutional network that is trained on one domain and will meet others. With
    :func:`adversarial_style_step` it costs ``steps + 1`` passes per batch. It costs some accuracy on the training
    domain.

    Papers: zhang2023advstyle

    >>> AdvStyle(1).eval()(torch.ones(1, 1, 2, 2)).sum()
    tensor(4.)
    """

    papers = ("zhang2023advstyle",)
    helps = ("shift",)
    starts_as_identity = True
    stochastic = True
    couples_batch = True
    settings = ({"channels": 3},)

    begun: Tensor

    def __init__(
        self,
        channels: int,
        p: tuple[float, float, float] = (1 / 3, 1 / 3, 1 / 3),
        adv_weight: float | Tensor = 1.0,
        eps: float = 1e-6,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.channels = check_int("channels", channels, low=1, high=2**24)
        check_sequence("p", p)
        if len(p) != 3 or abs(sum(check_between("p", share, 0, 1) for share in p) - 1) > 1e-6:
            raise ValueError(f"p must be three shares with the sum 1, got {shown(p)}")
        self.p = tuple(float(share) for share in p)
        self.adv_weight = check_positive("adv_weight", adv_weight)
        self.eps = check_positive("eps", eps)
        self.generator = check_generator("generator", generator)
        self.mean_scale = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.std_scale = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.begun = torch.zeros((), dtype=torch.bool)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """The maps in another style; in ``eval()`` mode, the maps unchanged."""
        check_floating("x", x)
        if x.ndim != 4 or x.shape[1] != self.channels:
            raise ValueError(f"x must have shape (n, {self.channels}, h, w), got {tuple(x.shape)}")
        if not self.training:
            return x
        mean, std = _moments(x, self.eps)
        if len(x) == 0:
            return x
        spreads = [_spread(moment, self.eps) for moment in (mean, std)]
        with torch.no_grad():
            for scale, spread in zip((self.mean_scale, self.std_scale), spreads, strict=True):
                scale.copy_(torch.where(self.begun, scale, spread.to(scale.dtype)))
            self.begun.fill_(True)
        shares = torch.tensor(self.p, device=x.device)
        branch = torch.multinomial(shares, 1, generator=self.generator)
        learned = [self._reversed(scale.to(x.dtype)) for scale in (self.mean_scale, self.std_scale)]
        shifts = [
            draw_normal(moment, self.generator) * torch.where(branch == 1, scale, spread)
            for moment, scale, spread in zip((mean, std), learned, spreads, strict=True)
        ]
        return torch.where(branch == 0, x, style_perturb(x, shifts[0], shifts[1], self.eps))

    def _reversed(self, scale: Tensor) -> Tensor:
        """The same value, with its gradient reversed."""
        return scale.detach() - self.adv_weight * (scale - scale.detach())


@cite("zhang2023advstyle", helps=("shift",), changes=("model", "optimizer"))
def adversarial_style_step(
    model: nn.Module,
    loss: Callable[[Tensor], Float[Tensor, ""]],
    x: Tensor,
    optimizer: torch.optim.Optimizer,
    *,
    steps: int = 3,
    largest: float | None = None,
) -> None:
    r"""Move the scales of a model's :class:`AdvStyle` layers to where they hurt the model most, and nothing else.

    .. math:: s \leftarrow s + \eta \nabla_s\, \ell(f_s(x)), \qquad 0 \le s \le s_{\max}

    Afterwards the model's other gradients and its buffers (running statistics) are as they were before. The layers
    reverse the gradient themselves, so the optimiser is an ordinary one that descends.

    Args:
        model: The module that holds the layers, in ``train()`` mode.
        loss: A function from the model's output to one number.
        x: The batch.
        optimizer: An optimizer of the scales alone, e.g. ``torch.optim.SGD([l.mean_scale, l.std_scale], lr=0.1)``.
        steps: How many steps to take, >= 1.
        largest: :math:`s_{\max}`, in the features' units; by default the ascent has no bound.

    Raises:
        ValueError: ``steps < 1``, ``largest <= 0``, or a model without :class:`AdvStyle` layers.

    Papers: zhang2023advstyle

    >>> layer = AdvStyle(1, p=(0, 1, 0))
    >>> sgd = torch.optim.SGD(layer.parameters(), lr=0.1)
    >>> adversarial_style_step(layer, lambda y: y.square().mean(), torch.randn(4, 1, 3, 3), sgd, steps=1)
    """
    check_int("steps", steps, low=1)
    if largest is not None:
        check_positive("largest", largest)
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch module, got {type(model).__name__}")
    check_function("loss", loss, "the model's output")
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optimizer must be a torch optimizer, got {type(optimizer).__name__}")
    layers = [module for module in model.modules() if isinstance(module, AdvStyle)]
    if not layers:
        raise ValueError(f"model must have AdvStyle layers, {type(model).__name__} has none")
    scales = [scale for layer in layers for scale in (layer.mean_scale, layer.std_scale)]
    started = [layer.begun for layer in layers]
    kept = [(b, b.clone()) for b in model.buffers() if all(b is not flag for flag in started)]
    for _ in range(steps):
        with taken("x must be what model and loss take"):
            value = loss(model(x))
        check_tensor("what loss gives", value)
        if value.numel() != 1 or not value.requires_grad:
            raise ValueError(
                "loss must give one number that depends on the scales, of one row or more in train() mode, got "
                f"{shown(value)}"
            )
        gradients = torch.autograd.grad(value, scales, allow_unused=True)
        for scale, gradient in zip(scales, gradients, strict=True):
            scale.grad = gradient
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for scale in scales:
                top = math.inf if largest is None else largest
                scale.copy_(scale.clamp(min=0).minimum(torch.as_tensor(top, dtype=torch.float64).to(scale)))
            for buffer, before in kept:
                buffer.copy_(before)


def _moments(x: Tensor, eps: float) -> tuple[Float[Tensor, "n c 1 1"], Float[Tensor, "n c 1 1"]]:
    check_floating("x", x)
    if x.ndim != 4:
        raise ValueError(f"x must have shape (n, c, h, w), got {tuple(x.shape)}")
    if x.shape[2] * x.shape[3] < 2:
        raise ValueError(f"x must have at least two pixels to have a spread, got {tuple(x.shape)}")
    mean = x.mean(dim=(2, 3), keepdim=True)
    variance = (x - mean).square().sum(dim=(2, 3), keepdim=True) / (x.shape[2] * x.shape[3] - 1)
    return mean, (variance + eps).sqrt()


def _spread(moment: Float[Tensor, "n c 1 1"], eps: float) -> Float[Tensor, "1 c 1 1"]:
    """How much the batch's images differ in this moment: its standard deviation over the images."""
    variance = moment.var(dim=0, keepdim=True) if len(moment) > 1 else torch.zeros_like(moment[:1])
    return (variance + eps).sqrt()
