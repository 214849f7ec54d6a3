"""Denoised smoothing: a trained denoiser before a classifier that gives only its answers."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lossworks.checks import (
    check_choice,
    check_classes,
    check_floating,
    check_function,
    check_generator,
    check_int,
    check_positive,
    check_tensor,
    wide,
)
from lossworks.objective.states import resting
from lossworks.objectives.relabelled import RelabelledObjective
from lossworks.perturb import GaussianNoise, zeroth_order
from lossworks.perturb.zeroth_order import METHODS
from lossworks.roles import Loss, check_no_nan, cleared

__all__ = ["DenoisedSmoothingObjective"]

TARGETS = ("own_prediction", "labels")


class DenoisedSmoothingObjective(RelabelledObjective):
    r"""Denoised smoothing: trains a denoiser before a frozen black-box classifier, so that it withstands noise.

    .. math::
        \tfrac1n \sum_i \mathrm{CE}\big(f(\mathrm{Dec}(z_i)), t_i\big), \qquad
        z_i = g_\theta(x_i + \delta_i), \quad \delta_i \sim N(0, \sigma^2 I), \quad t_i = \arg\max_k f_k(x_i)

    The trained model :math:`g_\theta` is either a denoiser, and Dec is left out (ZO-DS); or it is a denoiser followed
    by an encoder, and Dec is the frozen decoder of the same autoencoder (ZO-AE-DS), so that z has few coordinates. Only
    :math:`g_\theta` is differentiated: the gradient of the loss with respect to z is estimated from values, see
    :func:`~lossworks.perturb.zeroth_order`. Its ``"cge"`` sums over the coordinates; published code has a variant that
    averages, and is too small by the number of coordinates.

    Call it like any :class:`~lossworks.Objective`, with :math:`g_\theta` as the model. A batch that is split over ranks
    or micro-batches gets other noise and other random directions. The classifier and the decoder are called in
    evaluation mode and without autocast, whose rounding errors are larger than the differences that count. They are no
    part of the objective, which neither trains nor saves nor moves them.

    Args:
        black_box: f, from inputs to logits or log-probabilities ``(n, C)``; any function, torch or not.
        sigma: :math:`\sigma`, the noise's standard deviation, in input units, >= 0.
        decoder: Dec, from codes to inputs; none by default.
        target: ``"own_prediction"``, f's answer to the clean input, or ``"labels"``, the given targets.
        method: ``"rge"`` for random directions, or ``"cge"`` for one difference per coordinate of z.
        mu: The length of a difference, in z's units, > 0; not below 1e-3 in float32.
        q: The number of random directions, >= 1.
        generator: Where noise and directions are drawn from; torch's own generator by default.

    Shape:
        - model: from x to z, ``(n, ...)`` floating-point, in x's shape where there is no decoder; target: classes
          ``(n,)``, int64. Rows whose target is the loss's ``ignore_index``, -100, are left out; of the other targets
          ``"own_prediction"`` reads nothing. Returns ``()``.

    Raises:
        ValueError: ``sigma < 0``, ``mu <= 0``, ``q < 1``, an unknown target or method, answers that are not ``(n, C)``,
            a class outside ``[0, C)``.
        TypeError: ``black_box`` or ``decoder`` cannot be called.

    Use it to defend a model whose inside is not at hand, and certify :meth:`logits` by
    :class:`~lossworks.certify.RandomizedSmoothing`. A step calls f q + 1 times per row with ``"rge"``, or 2 d + 1 times
    with ``"cge"`` for d coordinates of z, and once more with ``"own_prediction"``. With few coordinates take ``"cge"``,
    which has no variance. Where the classifier can be differentiated, training through it is as good and far cheaper.

    Papers: zhang2022blackbox

    >>> box = nn.Linear(3, 2)
    >>> objective = DenoisedSmoothingObjective(lambda x: box(x), sigma=0.1, method="cge")
    >>> objective(nn.Linear(3, 3), torch.ones(4, 3), torch.tensor([0, 1, 1, 0])) > 0
    tensor(True)
    """

    papers = ("zhang2022blackbox",)
    helps = ("attacks",)
    settings = ({"black_box": nn.Identity()}, {"black_box": nn.Identity(), "method": "cge", "target": "labels"})
    loss: "_BlackBoxLoss"

    def __init__(
        self,
        black_box: Callable[[Tensor], Float[Tensor, "n classes"]],
        sigma: float | Tensor = 0.25,
        decoder: Callable[[Tensor], Tensor] | None = None,
        *,
        target: str = "own_prediction",
        method: str = "rge",
        mu: float = 0.005,
        q: int = 20,
        generator: torch.Generator | None = None,
    ) -> None:
        check_positive("sigma", sigma, allow_zero=True)
        check_choice("target", target, TARGETS)
        super().__init__(
            _BlackBoxLoss(black_box, decoder, method, mu, q, generator),
            perturb=GaussianNoise(sigma, generator=generator),
        )
        self.target = target

    def logits(self, model: nn.Module, x: Float[Tensor, "n *features"]) -> Float[Tensor, "n classes"]:
        """The defended classifier: f's answer to the model's output for x, without a gradient."""
        with torch.no_grad():
            return self.loss.answers(model(x))

    def relabel(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        """The classifier's own answers to the clean rows that are not left out, or the targets unchanged."""
        check_floating("x", x)
        if self.target == "labels":
            return target
        own = self.loss.ask(x).argmax(dim=1)
        self.loss.check_rows(own, target)
        return torch.where(target == self.loss.ignore_index, target, own)


class _BlackBoxLoss(Loss):
    """Cross-entropy of a frozen classifier's answers, as a function of the classifier's input."""

    stochastic = True
    surrogate_gradient = True
    black_box: Callable[[Tensor], Tensor]
    decoder: Callable[[Tensor], Tensor] | None

    def __init__(
        self,
        black_box: Callable[[Tensor], Tensor],
        decoder: Callable[[Tensor], Tensor] | None,
        method: str,
        mu: float,
        q: int,
        generator: torch.Generator | None,
    ) -> None:
        super().__init__()
        for name, function in (("black_box", black_box), ("decoder", decoder)):
            if name == "black_box" or function is not None:
                check_function(name, function, "a tensor")
        # This bypasses __setattr__, which would register a module and so have it trained, saved and moved.
        self.__dict__.update(black_box=black_box, decoder=decoder)
        self.method = check_choice("method", method, METHODS)
        self.mu = check_positive("mu", mu)
        self.q = check_int("q", q, low=1)
        self.generator = check_generator("generator", generator)

    def rows(self, output: Tensor, target: Tensor, index: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The losses of the answers, with the estimated gradient with respect to ``output``."""
        check_floating("output", output)
        self.check_rows(output, target)
        output = _full(output)
        kept = target != self.ignore_index
        classes, output = torch.where(kept, target, 0), cleared(output, ~kept)

        def losses(z: Tensor) -> Float[Tensor, " n"]:
            answers = self.answers(z)
            check_classes(answers, classes)
            return cross_entropy(answers, classes, reduction="none")

        found = torch.where(kept, zeroth_order(losses, output, self.method, self.mu, self.q, self.generator), 0)
        check_no_nan(output, found)
        return found, kept

    def predict(self, output: Tensor) -> Tensor:
        """The classifier's probabilities."""
        with torch.no_grad():
            return self.answers(output).softmax(dim=-1)

    def answers(self, z: Tensor) -> Float[Tensor, "n classes"]:
        """The classifier's answers to the codes."""
        check_floating("output", z)
        z = _full(z)
        if self.decoder is None:
            return self.ask(z)
        with resting(self.decoder), torch.autocast(z.device.type, enabled=False):
            return self.ask(self.decoder(z))

    def ask(self, x: Tensor) -> Float[Tensor, "n classes"]:
        """The classifier's answers to the inputs."""
        with resting(self.black_box), torch.autocast(x.device.type, enabled=False):
            answers = self.black_box(x)
        check_floating("black_box's answers", answers)
        if answers.ndim != 2 or len(answers) != len(x):
            raise ValueError(f"black_box must answer x with logits ({len(x)}, C), it gave {tuple(answers.shape)}")
        return answers

    def check_rows(self, output: Tensor, target: Int[Tensor, " n"]) -> None:
        """Raise unless there is one class for each row of the output."""
        check_tensor("target", target)
        if target.dtype != torch.int64:
            raise TypeError(f"target must be int64 classes, got {target.dtype}")
        if target.shape != output.shape[:1]:
            raise ValueError(f"target must have shape {tuple(output.shape[:1])}, got {tuple(target.shape)}")


def _full(z: Tensor) -> Tensor:
    """z unchanged, or in float32 where half precision would round the differences away."""
    return wide(z)
