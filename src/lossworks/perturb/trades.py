"""Objectives that add to the clean loss a price on how far the output moves under the worst change of the input."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from lossworks.checks import check_classes, check_positive
from lossworks.perturb.pgd import PGD
from lossworks.roles import Consistency, Perturbation, cite

__all__ = ["TRADES", "LargestMarginChange", "cw_margin_loss"]


class TRADES(Consistency):
    r"""TRADES: the clean loss plus how far the prediction moves under attack, trading accuracy for robustness.

    .. math::
        \ell(f(x_i), y_i) + \beta \max_{\|\delta_i\| \le \varepsilon}
        \mathrm{KL}\big(p(x_i) \,\|\, p(x_i + \delta_i)\big), \qquad p = \mathrm{softmax} \circ f

    The attack increases the divergence and not the loss, so it needs no label. It must start at a random point, as
    :class:`PGD` does by default: the divergence has gradient zero at the clean input, so that an attack which begins
    there, such as :class:`FGSM`, is refused. The authors start at :math:`x + 0.001\, N(0, I)`; PGD starts anywhere in
    the ball. Starting points are drawn for the rows at hand, so a batch that is
    split gets other ones than the whole batch.

    Args:
        beta: The price :math:`\beta` of the divergence, >= 0; the authors use 1 to 6.
        attack: The perturbation that looks for the worst change; :class:`PGD` by default.

    Shape:
        - x: ``(n, ...)`` floating-point; the model gives logits ``(n, C)``.

    Raises:
        ValueError: ``beta < 0``, or ``attack`` begins at the clean input.
        TypeError: ``attack`` is no perturbation, or the objective's loss couples the rows of its batch.

    Use it as ``perturb=`` of an :class:`~lossworks.Objective` where some clean accuracy may be given up for robustness;
    ``beta`` sets how much. A training step costs the attack and two forward and backward passes.

    Papers: zhang2019trades

    >>> from lossworks import Objective
    >>> from lossworks.losses import CrossEntropyLoss
    >>> objective = Objective(CrossEntropyLoss(), perturb=TRADES(beta=6.0, attack=PGD(0.1, steps=2)))
    >>> objective(torch.nn.Linear(3, 2), torch.ones(4, 3), torch.tensor([0, 1, 1, 0])) > 0
    tensor(True)
    """

    papers = ("zhang2019trades",)
    helps = ("attacks",)
    stochastic = True
    settings = ({}, {"beta": 1.0})

    def __init__(self, beta: float | Tensor = 6.0, attack: Perturbation | None = None) -> None:
        super().__init__(PGD() if attack is None else attack, check_positive("beta", beta, allow_zero=True))

    @property
    def beta(self) -> float | Tensor:
        """The price of the divergence."""
        return self.strength

    def per_sample(
        self, perturbed: Float[Tensor, "n classes"], clean: Float[Tensor, "n classes"], target: Tensor
    ) -> Float[Tensor, " n"]:
        """The KL divergence of each row's perturbed prediction from its clean one."""
        moved, still = (_log_softmax(logits) for logits in (perturbed, clean))
        gone = still.isneginf()  # a class that has no probability adds nothing, also where it has none in either
        terms = kl_div(moved.masked_fill(gone, 0), still.masked_fill(gone, 0), reduction="none", log_target=True)
        return terms.sum(dim=1)


class LargestMarginChange(Consistency):
    r"""The clean loss plus how far the label's margins over the other classes move under attack, in Euclidean length.

    .. math::
        \ell(f(x_i), y_i) + \nu \max_{\|\delta_i\| \le \varepsilon} \| D(x_i + \delta_i) - D(x_i) \|_2, \qquad
        D(x) = (f_y(x) - f_k(x))_{k \ne y}

    With the comp-sum loss at scale :math:`\rho` it is
    :class:`lossworks.objectives.SmoothAdversarialCompSumObjective`, which is an upper bound on the loss under attack
    for :math:`\nu \ge \sqrt{C - 1} / \rho`, as far as the attack finds the maximum. The change is 0 at the clean input
    and has no gradient there, so an attack that begins there, such as :class:`FGSM`, is refused. Starting points are
    drawn for the rows at hand, so a batch that is split gets other ones than the whole batch.

    Args:
        nu: The price :math:`\nu`, >= 0, in loss units per logit unit.
        attack: The perturbation that looks for the worst change; :class:`PGD` by default.

    Shape:
        - x: ``(n, ...)`` floating-point; the model gives logits ``(n, C)``, target classes ``(n,)``.

    Raises:
        ValueError: ``nu < 0``, ``attack`` begins at the clean input, a class outside ``[0, C)``.
        TypeError: ``attack`` is no perturbation, or the objective's loss couples the rows of its batch.

    Use it in place of :class:`TRADES` where a bound on the loss under attack is wanted.

    Papers: mao2023crossentropy

    >>> LargestMarginChange(1.0).per_sample(torch.tensor([[3.0, 0.0]]), torch.tensor([[1.0, 1.0]]), torch.tensor([0]))
    tensor([3.])
    """

    papers = ("mao2023crossentropy",)
    helps = ("attacks",)
    stochastic = True

    def __init__(self, nu: float | Tensor = 1.0, attack: Perturbation | None = None) -> None:
        super().__init__(PGD() if attack is None else attack, check_positive("nu", nu, allow_zero=True))

    @property
    def nu(self) -> float | Tensor:
        """The price of the margins' change."""
        return self.strength

    def per_sample(
        self, perturbed: Float[Tensor, "n classes"], clean: Float[Tensor, "n classes"], target: Int[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """The Euclidean distance of each row's margins from its clean ones."""
        check_classes(clean, target)
        change = perturbed - clean
        gone = perturbed.isneginf() & clean.isneginf()  # the margin over a class that is masked in both stays
        margins = (change.gather(1, target[:, None]) - change).masked_fill(gone, 0)
        squares = margins.square().sum(dim=1)
        moved = squares > 0  # the square root has no gradient at 0
        return torch.where(moved, torch.where(moved, squares, 1).sqrt(), 0)


@cite("carlini2017towards", helps=("attacks",))
def cw_margin_loss(
    output: Float[Tensor, "n classes"], target: Int[Tensor, " n"], confidence: float | Tensor = 0.0
) -> Float[Tensor, " n"]:
    r"""The Carlini-Wagner margin: by how much the label's logit leads. An attacker minimises it; below 0 it has won.

    .. math:: \max\big(f_y - \max_{k \ne y} f_k, -\kappa\big)

    Its gradient does not vanish where a row is classified with confidence, as that of cross-entropy does. Give an
    attack its negative as the risk: ``PGD(0.1)(lambda x: -cw_margin_loss(model(x), y), x)``.

    Args:
        output: Logits ``(n, C)``, C >= 2.
        target: Classes ``(n,)``, int64.
        confidence: By how much another class must lead before the attack stops, :math:`\kappa`, in logit units, >= 0.

    Returns:
        One margin per row, ``(n,)``, at least :math:`-\kappa`.

    Raises:
        ValueError: shapes that don't match, a class outside ``[0, C)``, ``confidence < 0``.

    Papers: carlini2017towards

    >>> cw_margin_loss(torch.tensor([[3.0, 1.0], [0.0, 2.0]]), torch.tensor([0, 0]))
    tensor([2., -0.])
    """
    check_classes(output, target)
    check_positive("confidence", confidence, allow_zero=True)
    if output.shape[1] < 2:
        raise ValueError(f"output must have at least two classes, got {tuple(output.shape)}")
    own = target[:, None]
    others = output.scatter(1, own, -torch.inf).amax(dim=1)
    margin = output.gather(1, own).squeeze(1) - others
    return torch.maximum(margin, -torch.as_tensor(confidence, dtype=output.dtype, device=output.device))


def _log_softmax(logits: Tensor) -> Tensor:
    return log_softmax(logits.float() if logits.dtype.itemsize < 4 else logits, dim=1)
