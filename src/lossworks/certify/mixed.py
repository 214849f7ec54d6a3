"""Mixtures of a standard and a robust model, with certificates of the mixture."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lossworks.certify.smoothing import ABSTAIN, Certificate
from lossworks.checks import (
    check_between,
    check_floating,
    check_positive,
    check_probabilities,
    check_same_shape,
    readable,
    wide,
)
from lossworks.distributed import ProcessGroup, gather_rows, own_rows, row_counts
from lossworks.roles import Part, cite

__all__ = [
    "AdaptiveMixedClassifier",
    "AdaptiveMixture",
    "MixedClassifier",
    "mix_probabilities",
    "mixed_lipschitz_radius",
    "mixed_smoothing_radius",
]

_HALVINGS = 60


@cite("bai2024adaptive", helps=("attacks",))
def mix_probabilities(
    logits_std: Float[Tensor, "n classes *rest"],
    logits_rob: Float[Tensor, "n classes *rest"],
    alpha: float | Tensor = 0.7,
    std_scale: float | Tensor = 1.0,
    rob_scale: float | Tensor = 1.0,
) -> Float[Tensor, "n classes *rest"]:
    r"""Mix two classifiers: the logarithms of their mixed class probabilities.

    .. math:: \log\big[(1 - \alpha)\, \mathrm{softmax}(s_g\, g) + \alpha\, \mathrm{softmax}(s_h\, h)\big]

    It is computed in log-space. Published code takes the logarithm of the sum, which is minus infinity where both
    probabilities underflow.

    Args:
        logits_std: g, the standard model's logits.
        logits_rob: h, the robust model's logits.
        alpha: The robust model's share, in [0, 1]: one number, or one number per row.
        std_scale: :math:`s_g`, an inverse temperature, > 0.
        rob_scale: :math:`s_h`, an inverse temperature, > 0; above 1 the robust model is more confident and harder to
            overrule.

    Shape:
        - logits: ``(n, C)`` or ``(n, C, d1, ...)``; alpha: ``()`` or ``(n,)``; returns the logits' shape.

    Raises:
        ValueError: a share outside [0, 1], a scale <= 0, shapes that don't match.
        TypeError: logits or shares that are not floating-point.

    Papers: bai2024adaptive

    >>> mix_probabilities(torch.tensor([[0.0, 0.0]]), torch.tensor([[1e4, 0.0]]), 0.5).exp()
    tensor([[0.7500, 0.2500]])
    """
    check_floating("logits_std", logits_std)
    check_floating("logits_rob", logits_rob)
    check_same_shape(logits_std, logits_rob, names=("logits_std", "logits_rob"))
    check_positive("std_scale", std_scale)
    check_positive("rob_scale", rob_scale)
    if logits_std.ndim < 2:
        raise ValueError(f"logits_std must have shape (n, C) or (n, C, d1, ...), got {tuple(logits_std.shape)}")
    dtype = torch.promote_types(torch.promote_types(logits_std.dtype, logits_rob.dtype), torch.float32)
    share = _shares(alpha, logits_std).to(dtype)
    parts = [
        (scale * logits.to(dtype)).log_softmax(dim=1) + _log(weight)
        for logits, scale, weight in ((logits_std, std_scale, 1 - share), (logits_rob, rob_scale, share))
    ]
    return torch.logaddexp(*parts)


def _shares(alpha: float | Tensor, logits: Tensor) -> Tensor:
    """The share as a tensor that broadcasts to the logits."""
    if not isinstance(alpha, Tensor) or alpha.ndim == 0:
        check_between("alpha", alpha, 0, 1)
        return torch.as_tensor(alpha, dtype=None if isinstance(alpha, Tensor) else logits.dtype, device=logits.device)
    check_probabilities("alpha", alpha)
    if alpha.shape != logits.shape[:1]:
        raise ValueError(f"alpha must be a number or have shape ({len(logits)},), got {tuple(alpha.shape)}")
    return alpha.reshape(-1, *(1 for _ in logits.shape[1:]))


def _log(share: Tensor) -> Tensor:
    """The logarithm of the share: minus infinity at 0, with a finite gradient."""
    some = share > 0
    return torch.where(some, torch.where(some, share, 1).log(), -torch.inf)


@cite("bai2024adaptive", helps=("attacks",))
def mixed_lipschitz_radius(
    probabilities: Float[Tensor, "n classes"], alpha: float | Tensor, lipschitz: float | Tensor
) -> Float[Tensor, " n"]:
    r"""Certified radius of a mixture with a Lipschitz robust model, whatever the other model predicts.

    .. math:: R = \frac{\big(m - \frac{1 - \alpha}{\alpha}\big)_+}{2 L}, \qquad m = h_{(1)} - h_{(2)}

    The other model can shift the mixed probability of one class against another's by at most :math:`1 - \alpha`. The
    mixture therefore keeps the robust model's answer where :math:`\alpha m \ge 1 - \alpha`, and m falls by at most 2L
    per unit of distance. A share of at most 1/2 certifies nothing. Where the share varies with the input, give its
    least value.

    Args:
        probabilities: h, the robust model's class probabilities at the input, after its scale.
        alpha: The robust model's share in the mixture, in [0, 1].
        lipschitz: L, by how much each of these probabilities can change per unit of distance, > 0. For probabilities
            smoothed by noise of standard deviation :math:`\sigma` it is :math:`1 / (\sigma \sqrt{2 \pi})` in l2;
            published code has :math:`\sqrt{2 / \pi} / \sigma`, twice that.

    Shape:
        - probabilities: ``(n, C)`` with C >= 2; returns ``(n,)``, in the units of ``1 / lipschitz``, 0 where nothing is
          certified.

    Raises:
        ValueError: numbers out of range, a shape other than ``(n, C)``.
        TypeError: probabilities that are not floating-point.

    Papers: bai2024adaptive

    >>> mixed_lipschitz_radius(torch.tensor([[0.9, 0.1]]), alpha=0.8, lipschitz=0.5)
    tensor([0.5500])
    """
    check_probabilities("probabilities", probabilities)
    check_between("alpha", alpha, 0, 1)
    check_positive("lipschitz", lipschitz)
    if probabilities.ndim != 2 or probabilities.shape[1] < 2:
        raise ValueError(f"probabilities must have shape (n, C) with C >= 2, got {tuple(probabilities.shape)}")
    top = wide(probabilities).topk(2, dim=1).values
    spare = alpha * (1 + top[:, 0] - top[:, 1]) - 1
    sure = spare > 0
    return torch.where(sure, torch.where(sure, spare, 1) / (2 * alpha) / lipschitz, 0)


@cite("bai2024adaptive", helps=("attacks",))
def mixed_smoothing_radius(
    p_first: Float[Tensor, "*shape"],
    p_second: Float[Tensor, "*shape"] | None,
    alpha: float | Tensor,
    sigma: float | Tensor,
) -> Float[Tensor, "*shape"]:
    r"""Certified l2 radius of a mixture with a smoothed robust model, whatever the other model predicts.

    .. math::
        R = \sigma t, \qquad \Phi\big(\Phi^{-1}(p_1) - t\big) - \Phi\big(\Phi^{-1}(p_2) + t\big)
        = \frac{1 - \alpha}{\alpha}

    This is the l2 distance up to which the gap of the smoothed probabilities is at least what the other model can make
    up for. With :math:`p_2 = 1 - p_1` it is :math:`\sigma \Phi^{-1}(p_1) - \sigma \Phi^{-1}(1 / 2\alpha)`: mixing
    reduces the radius of :class:`RandomizedSmoothing` by the same amount for every input. The paper's closed form,
    :math:`\tfrac\sigma2 \big(\Phi^{-1}(\alpha p_1) - \Phi^{-1}(\alpha p_2 + 1 - \alpha)\big)`, is sound too but
    smaller, by more than half for confident answers. With :math:`\alpha = 1` both are
    :math:`\tfrac\sigma2 (\Phi^{-1}(p_1) - \Phi^{-1}(p_2))`.

    Args:
        p_first: A lower bound on the smoothed probability of the answer, in [0, 1].
        p_second: An upper bound on the smoothed probability of every other class, in [0, 1]; None is ``1 - p_first``.
        alpha: The smoothed model's share in the mixture, in [0, 1]; where it varies with the input, its least value.
        sigma: The noise's standard deviation, in input units, > 0.

    Shape:
        - any shape, the same for both; returns that shape, float64, 0 where nothing is certified.

    Raises:
        ValueError: numbers out of range, shapes that differ.
        TypeError: probabilities that are not floating-point.

    Papers: bai2024adaptive

    >>> mixed_smoothing_radius(torch.tensor([0.9772499]), None, alpha=1.0, sigma=0.5)
    tensor([1.0000], dtype=torch.float64)
    """
    check_probabilities("p_first", p_first)
    if p_second is None:
        p_second = 1 - p_first
    else:
        check_probabilities("p_second", p_second)
        check_same_shape(p_first, p_second, names=("p_first", "p_second"))
    check_between("alpha", alpha, 0, 1)
    check_positive("sigma", sigma)
    first, second = (torch.special.ndtri(p.double()) for p in (p_first, p_second))
    share = torch.as_tensor(alpha, dtype=torch.float64, device=p_first.device)
    gap = (1 - share) / share

    def holds(t: Tensor) -> Tensor:
        return torch.special.ndtr(first - t) - torch.special.ndtr(second + t) >= gap

    # Beyond each of these three points the gap is too small.
    ends = ((first - second) / 2, first - torch.special.ndtri(gap), torch.special.ndtri(1 - gap) - second)
    high = torch.stack(torch.broadcast_tensors(*ends)).amin(dim=0)
    endless = high == torch.inf
    low, high = torch.zeros_like(high), torch.where(endless, 0, high)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        kept = holds(middle)
        low, high = torch.where(kept, middle, low), torch.where(kept, high, middle)
    radius = torch.where(endless, torch.inf, sigma * low)
    return torch.where(p_first.double() - p_second.double() > gap, radius, 0)


class _Pair(Part):
    """A standard and a robust model of the same classes, to be mixed."""

    def __init__(
        self, standard: nn.Module, robust: nn.Module, std_scale: float | Tensor, rob_scale: float | Tensor
    ) -> None:
        super().__init__()
        for name, model in (("standard", standard), ("robust", robust)):
            _check_module(name, model)
        self.standard, self.robust = standard, robust
        self.std_scale = check_positive("std_scale", std_scale)
        self.rob_scale = check_positive("rob_scale", rob_scale)

    def _both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The logits of both models."""
        check_floating("x", x)
        standard, robust = self._logits("standard", x), self._logits("robust", x)
        check_same_shape(standard, robust, names=("standard's logits", "robust's logits"))
        return standard, robust

    def _logits(self, name: str, x: Tensor) -> Float[Tensor, "n classes *rest"]:
        logits = getattr(self, name)(x)
        check_floating(f"{name}'s logits", logits)
        if logits.ndim < 2:
            raise ValueError(f"{name} must give logits (n, C) or (n, C, d1, ...), it gave {tuple(logits.shape)}")
        assert isinstance(logits, Tensor)
        return logits

    def _certified(self, x: Tensor, alpha: float | Tensor, lipschitz: float | Tensor) -> Certificate:
        check_floating("x", x)
        probabilities = (self.rob_scale * self._logits("robust", x)).softmax(dim=1)
        radius = mixed_lipschitz_radius(probabilities, alpha, lipschitz)
        return Certificate(torch.where(radius > 0, probabilities.argmax(dim=1), ABSTAIN), radius)


def _check_module(name: str, model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"{name} must be a module, got {type(model).__name__}")


class MixedClassifier(_Pair):
    r"""Mixed classifier: a standard and a robust model in one, accurate as the one and nearly as robust as the other.

    .. math:: \log\big[(1 - \alpha)\, \mathrm{softmax}(s_g\, g(x)) + \alpha\, \mathrm{softmax}(s_h\, h(x))\big]

    A robust model tends to be confident where it is right and unsure where it is wrong, so a confident standard model
    corrects its mistakes and seldom overrules it elsewhere. With :math:`\alpha \ge 1/2` the answer is that of h
    wherever h's two highest probabilities differ by at least :math:`(1 - \alpha) / \alpha`, whatever g predicts. This
    is what :meth:`certify`, :func:`mixed_lipschitz_radius` and :func:`mixed_smoothing_radius` certify.

    Nothing is trained: choose :math:`\alpha` and the scales on validation data, under an attack on the mixture itself
    (:class:`lossworks.perturb.PGD` differentiates through it).

    Args:
        standard: g, from x to logits.
        robust: h, from x to logits of the same classes.
        alpha: :math:`\alpha`, the robust model's share, in [0, 1].
        std_scale: :math:`s_g`, the inverse temperature of g, > 0.
        rob_scale: :math:`s_h`, the inverse temperature of h, > 0; above 1 the mixture loses less robustness.

    Shape:
        - x: the input of both models; returns log-probabilities ``(n, C)`` or ``(n, C, d1, ...)``.

    Raises:
        ValueError: ``alpha`` outside [0, 1], a scale <= 0, logits that don't match.
        TypeError: a model that is no module.

    Use it when a robust model has lost too much clean accuracy and two forward passes are affordable. It gains nothing
    where both models make the same mistakes.

    Papers: bai2024adaptive

    >>> mixed = MixedClassifier(nn.Linear(3, 2), nn.Linear(3, 2), alpha=0.7)
    >>> round(mixed(torch.ones(1, 3)).exp().sum().item(), 5)
    1.0
    """

    papers = ("bai2024adaptive",)
    helps = ("attacks",)
    settings = (
        {"standard": nn.Identity(), "robust": nn.Identity()},
        {"standard": nn.Identity(), "robust": nn.Tanh(), "alpha": 0.5, "rob_scale": 2.0},
    )

    def __init__(
        self,
        standard: nn.Module,
        robust: nn.Module,
        alpha: float | Tensor = 0.7,
        std_scale: float | Tensor = 1.0,
        rob_scale: float | Tensor = 1.0,
    ) -> None:
        super().__init__(standard, robust, std_scale, rob_scale)
        self.alpha = check_between("alpha", alpha, 0, 1)

    def forward(self, x: Float[Tensor, "n *features"]) -> Float[Tensor, "n classes *rest"]:
        """The mixture's log-probabilities."""
        return mix_probabilities(*self._both(x), self.alpha, self.std_scale, self.rob_scale)

    @torch.no_grad()
    def certify(self, x: Float[Tensor, "n *features"], lipschitz: float | Tensor) -> Certificate:
        """The answer that no change within a radius can alter, and that radius, see :func:`mixed_lipschitz_radius`.

        Args:
            x: The inputs.
            lipschitz: The Lipschitz constant of each class probability of the robust model, after its scale.
        """
        return self._certified(x, self.alpha, lipschitz)


class AdaptiveMixture(NamedTuple):
    """The output of an adaptive mixture: the log-probabilities, and which model each row prefers.

    Args:
        log_probabilities: ``(n, C)`` or ``(n, C, d1, ...)``.
        gamma: ``(n,)``, high where the robust model is preferred; :class:`lossworks.losses.MixingLoss` trains it.
    """

    log_probabilities: Float[Tensor, "n classes *rest"]
    gamma: Float[Tensor, " n"]


class AdaptiveMixedClassifier(_Pair):
    r"""Adaptive mixed classifier: a standard and a robust model, with a network that decides how to mix them per row.

    .. math::
        \log\big[(1 - \alpha(x))\, \mathrm{softmax}(s_g\, g(x)) + \alpha(x)\, \mathrm{softmax}(s_h\, h(x))\big],
        \qquad \alpha(x) = \mathrm{sigmoid}(\gamma(x))

    The mixer's outputs are normalised over the rows by a batch normalisation without weights, which makes them
    :math:`\gamma`, so that on average half of the rows prefer either model. In training mode they are first cut off at
    ``clip`` standard deviations from their mean, so that a few rows cannot dominate the statistics. In evaluation mode
    :math:`\gamma` uses the running statistics, and :math:`\alpha` is mapped to its range:

    .. math:: \alpha(x) = \alpha_{low} + (\alpha_{high} - \alpha_{low})\, \mathrm{sigmoid}(\gamma(x))

    **What is certified.** Where h's two highest probabilities differ by m, the mixture answers as h does if
    :math:`\alpha m > 1 - \alpha`, whatever g predicts. That is hardest for the least share, and no input gets less than
    :math:`\alpha_{low}`. So what is certified of a :class:`MixedClassifier` with the share :math:`\alpha_{low}` holds
    here in evaluation mode, whatever g and the mixer predict and however fast they change: see :meth:`certify`,
    :func:`mixed_lipschitz_radius` and :func:`mixed_smoothing_radius`. The share that a row itself gets certifies
    nothing, as an attack may lower it.

    **Training.** Only the mixer is trained, by :class:`lossworks.losses.MixingLoss` on the output of :meth:`mix`, on
    clean rows and on attacks on the mixture itself: give the optimizer ``mixer.parameters()``. Both models stay in
    evaluation mode.

    In training mode a row's value depends on its batch. A batch that is split over ranks is exact with
    ``process_group=`` of :meth:`mix`, which normalises the rows of all ranks and leaves all ranks the same running
    statistics. A batch that is split into micro-batches is normalised part by part, so :math:`\gamma` and the
    running statistics differ from those of the whole batch. In evaluation mode each row stands alone.

    Args:
        standard: g, from x to logits.
        robust: h, from x to logits of the same classes.
        mixer: From x to one number per row, ``(n,)`` or ``(n, 1)``, high where h is to be preferred.
        alpha_low: :math:`\alpha_{low}`, in [0, alpha_high]; at 1/2 or below nothing is certified.
        alpha_high: :math:`\alpha_{high}`, in [0, 1].
        std_scale: :math:`s_g`, the inverse temperature of g, > 0.
        rob_scale: :math:`s_h`, the inverse temperature of h, > 0.
        clip: Where the mixer's outputs are cut off in training, in standard deviations, > 0.
        momentum: The weight of the newest batch in the running statistics, in (0, 1].

    Shape:
        - x: the input of all three; returns log-probabilities ``(n, C)`` or ``(n, C, d1, ...)``. Training mode needs
          n >= 2.
        - ``norm.running_mean``, ``norm.running_var``: ``(1,)`` float64, ``norm.num_batches_tracked``: ``()`` int64,
          buffers.

    Raises:
        ValueError: numbers out of range, logits that don't match, a mixer that does not give one finite number per row,
            fewer than 2 rows in training mode.
        TypeError: a model that is no module.

    Use it where a fixed share costs too much of either accuracy. Attack it with gradients through the mixer too: a
    mixer that was trained on other attacks is fooled as easily as any network. Choose the range and the scales on
    validation data; a narrow range far above 1/2 keeps most of the robustness.

    Papers: bai2024adaptive

    >>> mixed = AdaptiveMixedClassifier(nn.Linear(3, 2), nn.Linear(3, 2), nn.Linear(3, 1)).eval()
    >>> round(mixed(torch.ones(1, 3)).exp().sum().item(), 5)
    1.0
    """

    papers = ("bai2024adaptive",)
    helps = ("attacks",)
    couples_batch = True
    settings = (
        {
            "standard": nn.Identity(),
            "robust": nn.Tanh(),
            "mixer": nn.Sequential(nn.Flatten(), nn.AdaptiveMaxPool1d(1)),
        },
        {
            "standard": nn.Tanh(),
            "robust": nn.Identity(),
            "mixer": nn.Sequential(nn.Flatten(), nn.AdaptiveAvgPool1d(1)),
            "alpha_low": 0.5,
            "alpha_high": 1.0,
            "rob_scale": 2.0,
            "clip": 1.5,
            "momentum": 0.1,
        },
    )

    def __init__(
        self,
        standard: nn.Module,
        robust: nn.Module,
        mixer: nn.Module,
        alpha_low: float | Tensor = 0.8,
        alpha_high: float | Tensor = 0.95,
        std_scale: float | Tensor = 1.0,
        rob_scale: float | Tensor = 1.0,
        *,
        clip: float | Tensor = 0.6,
        momentum: float = 0.01,
    ) -> None:
        super().__init__(standard, robust, std_scale, rob_scale)
        _check_module("mixer", mixer)
        self.mixer = mixer
        self.alpha_low = check_between("alpha_low", alpha_low, 0, 1)
        self.alpha_high = check_between("alpha_high", alpha_high, 0, 1)
        low, high = (torch.as_tensor(share).detach() for share in (alpha_low, alpha_high))
        if readable(low) and readable(high) and bool(low > high):
            raise ValueError(f"alpha_low must be at most alpha_high = {float(high):g}, got {float(low):g}")
        self.clip = check_positive("clip", clip)
        self.momentum = check_between("momentum", momentum, 0, 1, open_low=True)
        self.norm = nn.BatchNorm1d(1, momentum=self.momentum, affine=False, dtype=torch.float64)
        self.train()

    def train(self, mode: bool = True) -> "AdaptiveMixedClassifier":
        """Set the mode of the mixer and its normalisation; both models stay in evaluation mode."""
        super().train(mode)
        self.standard.eval()
        self.robust.eval()
        return self

    def forward(self, x: Float[Tensor, "n *features"]) -> Float[Tensor, "n classes *rest"]:
        """The mixture's log-probabilities."""
        return self.mix(x).log_probabilities

    def mix(self, x: Float[Tensor, "n *features"], *, process_group: ProcessGroup | None = None) -> AdaptiveMixture:
        r"""The mixture's log-probabilities and :math:`\gamma`; updates the running statistics in training mode.

        Args:
            x: The inputs.
            process_group: The ranks that hold the other rows of the same batch; all of them must call this.
        """
        both = self._both(x)
        gamma = self._gamma(x, process_group)
        share = gamma.sigmoid()
        if not self.training:
            share = self.alpha_low + (self.alpha_high - self.alpha_low) * share
        return AdaptiveMixture(mix_probabilities(*both, share, self.std_scale, self.rob_scale), gamma)

    @torch.no_grad()
    def certify(self, x: Float[Tensor, "n *features"], lipschitz: float | Tensor) -> Certificate:
        """The answer in evaluation mode that no change within a radius can alter, and that radius, for the least share.

        Args:
            x: The inputs.
            lipschitz: The Lipschitz constant of each class probability of the robust model, after its scale.
        """
        return self._certified(x, self.alpha_low, lipschitz)

    def _gamma(self, x: Tensor, process_group: ProcessGroup | None) -> Float[Tensor, " n"]:
        raw = self.mixer(x)
        check_floating("mixer's output", raw)
        if raw.shape not in ((len(x),), (len(x), 1)):
            raise ValueError(f"mixer must give one number a row, (n,) or (n, 1), it gave {tuple(raw.shape)}")
        if readable(raw) and not bool(raw.isfinite().all()):
            raise ValueError("mixer must give finite numbers, it gave NaN or infinite ones")
        assert self.norm.running_mean is not None
        raw = raw.reshape(-1, 1).to(self.norm.running_mean.dtype)
        if not self.training:
            return self.norm(raw)[:, 0]
        if process_group is None:
            return self._normalised(raw)[:, 0]
        counts = row_counts(len(raw), process_group, raw.device)
        return own_rows(self._normalised(gather_rows(raw, process_group, counts)), process_group, counts)[:, 0]

    def _normalised(self, raw: Float[Tensor, "n 1"]) -> Float[Tensor, "n 1"]:
        """The outputs, cut off and then normalised by the batch's own statistics."""
        if len(raw) < 2:
            raise ValueError(f"x must have at least 2 rows in training mode, got {len(raw)}")
        mean, reach = raw.detach().mean(), self.clip * raw.detach().std()
        normalised: Tensor = self.norm(raw.clamp(mean - reach, mean + reach))
        return normalised
