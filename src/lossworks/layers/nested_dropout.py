"""Nested dropout: it drops all features beyond a random prefix, so that features are learned in order of their use."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lossworks.checks import (
    check_between,
    check_bool,
    check_classes,
    check_floating,
    check_generator,
    check_int,
    check_positive,
    readable,
)
from lossworks.roles import Part, cite

__all__ = ["NestedDropout", "best_prefix_length", "prefix_accuracies"]


class NestedDropout(Part):
    r"""Nested dropout: keeps the first k features and drops the rest, so that the first ones learn what matters most.

    .. math::
        h_j \leftarrow h_j\, [j \le k], \qquad P(k) \propto e^{-((k - \mu) / \sigma)^2}, \quad k = 1, \dots, F

    Nothing is rescaled, and by default one k is drawn per batch. A classifier that must do with few features learns
    what many rows share before it learns single wrong labels. In evaluation mode all features are kept, or only the
    prefix given to :meth:`keep_prefix`, such as the one that :func:`best_prefix_length` finds.

    Each call draws a new k, so a batch that is split draws other ones. Two networks draw the same k, as in co-teaching
    they should, if their layers have generators that started from the same seed.

    Args:
        num_features: F, the size of the dimension that is cut.
        sigma: :math:`\sigma`, the spread of k, in features, > 0: a small one gives k = 1 alone, a large one any k.
        mu: :math:`\mu`, the most likely k, in [0, F].
        per_row: Whether each row draws its own k.
        prefix: How many features to keep in evaluation mode, in [1, F]; all by default.
        generator: Where k is drawn from; torch's own generator by default.

    Shape:
        - x: features ``(n, F, ...)``, floating-point; returns the same shape.
        - prefix: ``()``, int64, a buffer.

    Raises:
        ValueError: ``sigma <= 0``, ``mu`` outside [0, F], ``prefix`` outside [1, F], x without F features.
        TypeError: x is not floating-point.

    Use it on the last features, before a linear classifier without bias, where labels are noisy. Do not use it where
    the features have an order or a place of their own.

    Papers: rippel2014nested, chen2022compressing

    >>> layer = NestedDropout(3, sigma=1e-3)
    >>> layer(torch.ones(1, 3)), layer.eval()(torch.ones(1, 3))
    (tensor([[1., 0., 0.]]), tensor([[1., 1., 1.]]))
    """

    papers = ("rippel2014nested", "chen2022compressing")
    helps = ("noisy labels", "overfitting")
    starts_as_identity = True
    stochastic = True
    settings = ({"num_features": 3}, {"num_features": 3, "sigma": 2.0, "per_row": True})

    def __init__(
        self,
        num_features: int,
        sigma: float | Tensor = 10.0,
        mu: float | Tensor = 0.0,
        *,
        per_row: bool = False,
        prefix: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.num_features = check_int("num_features", num_features, low=1, high=2**31 - 1)
        self.sigma = check_positive("sigma", sigma)
        self.mu = check_between("mu", mu, 0, num_features)
        self.per_row = check_bool("per_row", per_row)
        self.generator = check_generator("generator", generator)
        self.prefix = torch.tensor(num_features)
        if prefix is not None:
            self.keep_prefix(prefix)

    def keep_prefix(self, prefix: int) -> None:
        """From now on keep this many features in evaluation mode."""
        self.prefix.fill_(check_int("prefix", prefix, low=1, high=self.num_features))

    def probabilities(self) -> Float[Tensor, " features"]:
        """The probability of each k from 1 to F."""
        lengths = torch.arange(1, self.num_features + 1, device=self.prefix.device)
        far = (lengths - self.mu).abs()
        # The smallest square is subtracted, so that the most likely k has exponent 0 however small sigma is.
        beyond = (far.square() - far.min().square()).sqrt()
        return (-torch.where(beyond > 0, beyond / self.sigma, 0).square()).softmax(dim=0)

    def forward(self, x: Float[Tensor, "n features *rest"]) -> Float[Tensor, "n features *rest"]:
        """The features up to k, with zeros beyond."""
        check_floating("x", x)
        if x.ndim < 2 or x.shape[1] != self.num_features:
            raise ValueError(f"x must have shape (n, {self.num_features}, ...), got {tuple(x.shape)}")
        kept = self._draw(len(x) if self.per_row else 1) if self.training else self.prefix.reshape(1)
        mask = torch.arange(self.num_features, device=x.device) < kept.to(x.device)[:, None]
        return torch.where(mask.reshape(*mask.shape, *(1 for _ in x.shape[2:])), x, torch.zeros_like(x))

    def _draw(self, rows: int) -> Int[Tensor, " rows"]:
        likely = self.probabilities()
        uniform = torch.rand(rows, generator=self.generator, device=likely.device)
        return 1 + (uniform[:, None] >= likely.cumsum(0)[:-1]).sum(dim=1)


@cite("chen2022compressing", helps=("noisy labels",))
def prefix_accuracies(
    features: Float[Tensor, "n features"],
    weight: Float[Tensor, "classes features"],
    target: Int[Tensor, " n"],
    bias: Float[Tensor, " classes"] | None = None,
) -> Float[Tensor, " features"]:
    r"""The accuracy of a linear classifier on the first k features alone, for each k.

    .. math:: a_k = \frac1n \sum_i \Big[\arg\max_c \Big(b_c + \sum_{j \le k} W_{cj} h_{ij}\Big) = y_i\Big]

    Computing all F accuracies costs about as much as one pass of the classifier.

    Args:
        features: ``(n, F)``, the output of :class:`NestedDropout` in evaluation mode with all features kept.
        weight: ``(C, F)``, the classifier's weight, as that of ``nn.Linear``.
        target: ``(n,)`` int64 classes.
        bias: ``(C,)``, the classifier's bias, if it has one.

    Returns:
        The accuracies ``(F,)``, in [0, 1], without a gradient.

    Raises:
        ValueError: shapes that don't match, no rows, a class out of range.
        TypeError: labels that are not int64.

    Papers: chen2022compressing

    >>> prefix_accuracies(torch.tensor([[1.0, 3.0], [1.0, 0.0]]), torch.eye(2), torch.tensor([1, 0]))
    tensor([0.5000, 1.0000])
    """
    check_floating("features", features)
    check_floating("weight", weight)
    if features.ndim != 2 or not features.numel():
        raise ValueError(f"features must have shape (n, F) with n, F >= 1, got {tuple(features.shape)}")
    if weight.ndim != 2 or weight.shape[1] != features.shape[1] or not len(weight):
        raise ValueError(f"weight must have shape (C, {features.shape[1]}), got {tuple(weight.shape)}")
    if bias is not None:
        check_floating("bias", bias)
        if bias.shape != weight.shape[:1]:
            raise ValueError(f"bias must have shape ({len(weight)},), got {tuple(bias.shape)}")
    check_classes(features.detach().new_zeros(()).expand(len(features), len(weight)), target)
    dtype = torch.promote_types(torch.promote_types(features.dtype, weight.dtype), torch.float32)
    with torch.no_grad():
        logits = torch.zeros(len(features), len(weight), dtype=dtype, device=features.device)
        if bias is not None:
            logits = logits + bias
        right = []
        for column, share in zip(features.to(dtype).T, weight.to(dtype).T, strict=True):
            logits = logits + column[:, None] * share
            right.append((logits.argmax(dim=1) == target).to(dtype).mean())
        return torch.stack(right)


@cite("chen2022compressing", helps=("noisy labels",))
def best_prefix_length(accuracies: Float[Tensor, " features"], price: float | Tensor = 1e-5) -> int:
    r"""The number of features with the best accuracy; of several that are equally good, the smallest.

    .. math:: k^* = \arg\max_k\; a_k - \lambda k

    Args:
        accuracies: ``(F,)``, see :func:`prefix_accuracies`, computed on rows that were neither trained on nor are the
            test rows: choosing on test rows would leak them.
        price: :math:`\lambda`, how much accuracy one more feature must bring, >= 0.

    Returns:
        :math:`k^*`, from 1 to F.

    Raises:
        ValueError: no accuracies, one that is not finite, ``price < 0``.

    The authors' code takes all features where the best prefix is 1; this function returns 1.

    Papers: chen2022compressing

    >>> best_prefix_length(torch.tensor([0.5, 0.8, 0.7, 0.8]))
    2
    """
    check_floating("accuracies", accuracies)
    check_positive("price", price, allow_zero=True)
    if accuracies.ndim != 1 or not len(accuracies):
        raise ValueError(f"accuracies must have shape (F,) with F >= 1, got {tuple(accuracies.shape)}")
    if readable(accuracies) and not bool(accuracies.isfinite().all()):
        raise ValueError(f"accuracies must be finite, got {float(accuracies.detach()[~accuracies.isfinite()][0]):g}")
    own = accuracies.detach().double()
    return 1 + int((own - price * torch.arange(len(own), device=own.device)).argmax())
