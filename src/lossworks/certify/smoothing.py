"""Randomized smoothing: certificates for any model from its answers to noisy copies of an input."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lossworks.checks import (
    check_between,
    check_floating,
    check_function,
    check_generator,
    check_int,
    check_positive,
    check_probabilities,
    check_tensor,
    wide,
)
from lossworks.roles import cite, evaluating

__all__ = [
    "ABSTAIN",
    "Certificate",
    "DualRandomizedSmoothing",
    "RandomizedSmoothing",
    "checkerboard_split",
    "clopper_pearson_lower",
    "dual_smoothing_radius",
]

ABSTAIN = -1
"""The answer where no class is certain enough."""
LEAST_ALPHA = 1e-50
"""The smallest alpha: for smaller ones the quantile of the beta distribution is not found."""
_LONGEST = 2**14
"""The longest side of an image that is accepted."""
Classifier = Callable[[Float[Tensor, "n *features"]], Float[Tensor, "n classes"]]


class Certificate(NamedTuple):
    """The certified class and radius of each row.

    Args:
        answer: The class ``(n,)``, int64, or -1 where the classifier abstains.
        radius: The l2 radius within which the smoothed answer is that class, in input units; 0 where it abstains.
    """

    answer: Int[Tensor, " n"]
    radius: Float[Tensor, " n"]


@cite("cohen2019smoothing", helps=("attacks",))
def clopper_pearson_lower(
    successes: Int[Tensor, "*shape"], trials: int, alpha: float = 0.001
) -> Float[Tensor, "*shape"]:
    r"""Clopper-Pearson bound: an exact lower bound on a probability from counts, with confidence :math:`1 - \alpha`.

    .. math:: \underline{p} = \mathrm{Beta}^{-1}(\alpha;\, k, n - k + 1), \qquad \underline{p} = 0 \text{ for } k = 0

    Args:
        successes: The number of successes k, in [0, trials].
        trials: The number of trials n, >= 1.
        alpha: The chance that the bound is wrong, in [1e-50, 1): for smaller ones the quantile is not found.

    Shape:
        - successes: any shape, int64; returns the same shape, float64.

    Raises:
        ValueError: numbers out of range.
        TypeError: successes that are not int64.

    Papers: cohen2019smoothing

    >>> clopper_pearson_lower(torch.tensor([0, 100]), 100, 0.05)
    tensor([0.0000, 0.9705], dtype=torch.float64)
    """
    check_tensor("successes", successes)
    if successes.dtype != torch.int64:
        raise TypeError(f"successes must be int64, got {successes.dtype}")
    check_int("trials", trials, low=1)
    check_between("alpha", alpha, LEAST_ALPHA, 1, open_high=True)
    if not bool(((successes >= 0) & (successes <= trials)).all()):
        raise ValueError(f"successes must be in [0, {trials}]")
    from scipy.stats import beta

    k = successes.cpu().numpy()
    found = torch.from_numpy(beta.ppf(float(alpha), k.clip(min=1), trials - k + 1)).reshape(successes.shape)
    return torch.where(successes > 0, found.to(successes.device), 0.0)


@cite("xia2024drs", helps=("attacks",))
def dual_smoothing_radius(
    p_left: Float[Tensor, " n"], p_right: Float[Tensor, " n"], sigma: float | Tensor
) -> Float[Tensor, " n"]:
    r"""Certified l2 radius of dual randomized smoothing, from the two halves' probability bounds.

    .. math:: R = \tfrac{\sigma}{\sqrt 2} \big(\Phi^{-1}(p_l) + \Phi^{-1}(p_r)\big)

    One of the two probabilities may be below 1/2; its quantile is then negative. The published code counts such a half
    as 0, or takes the root of the sum of the two squared single radii. Both are larger and not sound: two half-spaces
    with probabilities :math:`\Phi(1)` and 1/2 change their answer at the distance :math:`\sigma / \sqrt 2`, where the
    root claims :math:`\sigma`.

    Args:
        p_left: Lower bounds on the class's probability for one half of the input, in [0, 1].
        p_right: Lower bounds on the class's probability for the other half, in [0, 1].
        sigma: The noise's standard deviation, in input units, > 0.

    Shape:
        - ``(n,)`` each; returns ``(n,)``, 0 where nothing is certified; half precision is computed in float32.

    Raises:
        ValueError: ``sigma <= 0``, shapes that differ, a probability outside [0, 1].

    Papers: xia2024drs

    >>> dual_smoothing_radius(torch.tensor([0.8413]), torch.tensor([0.5]), 1.0)
    tensor([0.7070])
    """
    check_positive("sigma", sigma)
    for name, value in (("p_left", p_left), ("p_right", p_right)):
        check_probabilities(name, value)
    if p_left.shape != p_right.shape:
        raise ValueError(f"p_right must have p_left's shape {tuple(p_left.shape)}, got {tuple(p_right.shape)}")
    left, right = (torch.special.ndtri(wide(p)) for p in (p_left, p_right))
    radius = sigma / 2**0.5 * (left + right)
    return radius.nan_to_num(nan=0.0, posinf=torch.inf, neginf=0.0).clamp(min=0)


@cite("xia2024drs")
def checkerboard_split(height: int, width: int) -> Bool[Tensor, "height width"]:
    """Checkerboard mask that halves an image: True on the white squares; the other half is the rest.

    Args:
        height: The image's height, >= 1.
        width: The image's width, >= 1.

    Shape:
        - returns ``(height, width)`` bool.

    Raises:
        ValueError: a size below 1 or above 16384.

    Papers: xia2024drs

    >>> checkerboard_split(2, 2)
    tensor([[ True, False],
            [False,  True]])
    """
    check_int("height", height, low=1, high=_LONGEST)
    check_int("width", width, low=1, high=_LONGEST)
    return (torch.arange(height)[:, None] + torch.arange(width)) % 2 == 0


@dataclass
class RandomizedSmoothing:
    r"""Randomized smoothing: predicts the class of most noisy copies of an input, and certifies an l2 radius for it.

    .. math::
        g(x) = \arg\max_c P\big(f(x + N(0, \sigma^2 I)) = c\big), \qquad R = \sigma\, \Phi^{-1}(\underline{p_A})

    with :math:`\underline{p_A}` a lower bound that holds with confidence :math:`1 - \alpha`
    (:func:`clopper_pearson_lower`). Any model can be smoothed, but it should be trained on inputs with that noise
    (:class:`lossworks.perturb.GaussianNoise`). The certificate is for the smoothed classifier :math:`g`, not for f, and
    for changes measured in l2.

    Args:
        model: :math:`f`, from inputs to logits; a module is asked in evaluation mode, and keeps its own.
        sigma: The noise's standard deviation, in input units, > 0.
        batch_size: How many noisy copies are passed to the model at a time.
        generator: Where the noise is drawn from; torch's own generator by default.

    Shape:
        - x: ``(n, ...)`` floating-point. :meth:`certify` returns a :class:`Certificate`, :meth:`predict` ``(n,)``.

    Raises:
        ValueError: numbers out of range, x without features.
        TypeError: a model that cannot be called, x that is not floating-point.

    Use it where the network has layers that :func:`crown_bounds` does not know, or is too deep for bounds. It costs
    thousands of passes per row.

    Papers: cohen2019smoothing

    >>> smoothed = RandomizedSmoothing(lambda x: torch.stack([-x[:, 0], x[:, 0]], 1), 0.5)
    >>> smoothed.certify(torch.tensor([[9.0]]), n0=10, n=1000).answer
    tensor([1])
    """

    model: Classifier
    sigma: float
    batch_size: int = 1024
    generator: torch.Generator | None = None
    papers: ClassVar[tuple[str, ...]] = ("cohen2019smoothing",)
    helps: ClassVar[tuple[str, ...]] = ("attacks",)

    def __post_init__(self) -> None:
        check_function("model", self.model, "the input")
        check_positive("sigma", self.sigma)
        check_int("batch_size", self.batch_size, low=1)
        check_generator("generator", self.generator)

    def certify(
        self, x: Float[Tensor, "n *features"], *, n0: int = 100, n: int = 10_000, alpha: float = 0.001
    ) -> Certificate:
        """The class that ``n0`` copies choose, and the radius that ``n`` others prove with confidence 1 - alpha."""
        _check(x, n0, n, alpha)
        chosen = self._counts(x, n0).argmax(dim=1)
        hits = self._counts(x, n).gather(1, chosen[:, None])[:, 0]
        bound = clopper_pearson_lower(hits, n, alpha)
        sure = bound > 0.5
        radius = torch.where(sure, self.sigma * torch.special.ndtri(torch.where(sure, bound, 0.5)), 0.0)
        return Certificate(torch.where(sure, chosen, ABSTAIN), radius)

    def predict(self, x: Float[Tensor, "n *features"], *, n: int = 1000, alpha: float = 0.001) -> Int[Tensor, " n"]:
        """The smoothed class, or -1 where the two most frequent cannot be told apart with confidence 1 - alpha."""
        from scipy.stats import binom

        _check(x, 1, n, alpha)
        counts, classes = self._counts(x, n).topk(2, dim=1)
        both = counts.sum(dim=1).cpu().numpy()
        p = torch.from_numpy(2 * binom.sf(counts[:, 0].cpu().numpy() - 1, both, 0.5)).to(x.device)
        return torch.where(p <= alpha, classes[:, 0], ABSTAIN)

    @torch.no_grad()
    def _counts(self, x: Tensor, copies: int) -> Int[Tensor, "n classes"]:
        with evaluating(self.model):
            rows = [_counted(self.model, row, copies, self.sigma, self.batch_size, self.generator) for row in x]
        return torch.stack(rows) if rows else torch.zeros(0, 2, dtype=torch.int64, device=x.device)


@dataclass
class DualRandomizedSmoothing:
    r"""Dual randomized smoothing (DRS): two smoothed models, each on one half of the input, certify a joint radius.

    .. math::
        G(x) = \arg\max_c \big(p_l^c(x) + p_r^c(x)\big), \qquad
        R = \tfrac{\sigma}{\sqrt 2} \big(\Phi^{-1}(\underline{p_l}) + \Phi^{-1}(\underline{p_r})\big)

    Each model meets noise in only half the dimensions, which costs it less accuracy, and the largest radius that can be
    certified grows. Each bound holds with confidence :math:`1 - \alpha / 2`, so both hold with :math:`1 - \alpha`.

    Args:
        left: The first model, from inputs whose second half is set to 0 to logits.
        right: The second model, from inputs whose first half is set to 0 to logits.
        split: Which features the first model sees, bool, in the shape of one row or one that broadcasts to it
            (:func:`checkerboard_split`).
        sigma: The noise's standard deviation, in input units, > 0.
        batch_size: How many noisy copies are passed to a model at a time.
        generator: Where the noise is drawn from; torch's own generator by default.

    Shape:
        - x: ``(n, ...)`` floating-point; :meth:`certify` returns a :class:`Certificate`.

    Raises:
        ValueError: numbers out of range, x without features.
        TypeError: a model that cannot be called, a split that is not bool.

    Use it on large images, where half of the pixels still shows the class. On tiny images the missing half is needed.

    Papers: xia2024drs

    >>> sign = lambda x: torch.stack([-x.sum(1), x.sum(1)], 1)
    >>> dual = DualRandomizedSmoothing(sign, sign, torch.tensor([True, False]), 0.5)
    >>> dual.certify(torch.tensor([[9.0, 9.0]]), n0=10, n=1000).answer
    tensor([1])
    """

    left: Classifier
    right: Classifier
    split: Bool[Tensor, " *features"]
    sigma: float
    batch_size: int = 1024
    generator: torch.Generator | None = None
    papers: ClassVar[tuple[str, ...]] = ("xia2024drs",)
    helps: ClassVar[tuple[str, ...]] = ("attacks",)

    def __post_init__(self) -> None:
        for name in ("left", "right"):
            check_function(name, getattr(self, name), "the input")
        if not isinstance(self.split, Tensor) or self.split.dtype != torch.bool:
            raise TypeError("split must be a bool tensor")
        check_positive("sigma", self.sigma)
        check_int("batch_size", self.batch_size, low=1)
        check_generator("generator", self.generator)

    @torch.no_grad()
    def certify(
        self, x: Float[Tensor, "n *features"], *, n0: int = 100, n: int = 10_000, alpha: float = 0.001
    ) -> Certificate:
        """The class that ``n0`` copies choose, and the radius that ``n`` others prove with confidence 1 - alpha."""
        _check(x, n0, n, alpha)
        answers, radii = [], []
        for row in x:
            first = [self._half(row, side, n0) for side in (0, 1)]
            chosen = (first[0] + first[1]).argmax()
            bounds = [clopper_pearson_lower(self._half(row, side, n)[chosen][None], n, alpha / 2) for side in (0, 1)]
            radii.append(dual_smoothing_radius(bounds[0], bounds[1], self.sigma)[0])
            answers.append(torch.where(radii[-1] > 0, chosen, ABSTAIN))
        if not answers:
            empty = torch.zeros(0, device=x.device)
            return Certificate(empty.long(), empty.double())
        return Certificate(torch.stack(answers), torch.stack(radii))

    def _half(self, row: Tensor, side: int, copies: int) -> Int[Tensor, " classes"]:
        seen = self.split if side == 0 else ~self.split
        model = self.left if side == 0 else self.right
        kept = torch.broadcast_to(seen.to(row.device), row.shape)

        def masked(noisy: Tensor) -> Tensor:
            return model(torch.where(kept, noisy, 0))

        with evaluating(model):
            return _counted(masked, row, copies, self.sigma, self.batch_size, self.generator)


def _counted(
    model: Classifier, row: Tensor, copies: int, sigma: float, at_once: int, generator: torch.Generator | None
) -> Int[Tensor, " classes"]:
    """How many noisy copies of a row get each class; a copy whose logits have NaN gets none."""
    counts = None
    for start in range(0, copies, at_once):
        some = row.expand(min(at_once, copies - start), *row.shape)
        noise = torch.empty_like(some, memory_format=torch.contiguous_format).normal_(generator=generator)
        output = model(some + sigma * noise)
        if output.ndim != 2 or len(output) != len(some):
            raise ValueError(f"model must give logits of shape ({len(some)}, C), got {tuple(output.shape)}")
        answered = output[~output.isnan().any(dim=1)]
        found = answered.argmax(dim=1).bincount(minlength=output.shape[1])
        counts = found if counts is None else counts + found
    assert counts is not None
    return counts


def _check(x: Tensor, n0: int, n: int, alpha: float) -> None:
    check_floating("x", x)
    if x.ndim < 2:
        raise ValueError(f"x must have shape (n, ...) with features, got {tuple(x.shape)}")
    check_int("n0", n0, low=1)
    check_int("n", n, low=1)
    check_between("alpha", alpha, LEAST_ALPHA, 1, open_high=True)
