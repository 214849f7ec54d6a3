"""Class-balanced weights: rows of rare classes count more."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lossworks.checks import check_amounts, check_between, check_choice, readable
from lossworks.roles import Weighting, cite

__all__ = ["ClassBalanced", "effective_number_weights"]


class ClassBalanced(Weighting):
    r"""Class-balanced weights: rare classes count more, by their inverse frequency or effective number of samples.

    .. math::
        w_i \propto \frac{1}{n_{y_i}} \quad\text{(inverse)}, \qquad
        w_i \propto \frac{1 - \beta}{1 - \beta^{n_{y_i}}} \quad\text{(effective)}, \qquad
        \sum_k n_k w_k = \sum_k n_k

    With the effective number, the weights go from uniform (:math:`\beta = 0`) to inverse frequency
    (:math:`\beta \to 1`). Their mean is 1 over the data set that was counted and not over each batch, so a batch that
    is split has the same sum.

    Args:
        class_counts: ``(C,)``, how many training rows each class has; a class without rows gets weight 0. A buffer.
        method: ``"inverse"`` or ``"effective"``, the two rules above.
        beta: The hyperparameter :math:`\beta` of the effective number, in [0, 1); the authors use 0.9 to 0.9999,
            depending on the size of the data.

    Shape:
        - losses: ``(n,)``; target: ``(n,)`` int64 in ``[0, C)``; returns ``(n,)``.

    Raises:
        ValueError: counts that are negative or all zero, ``beta`` outside [0, 1), target missing or out of range.

    Use it when rare classes matter as much as common ones; a logit adjustment often does the same with less variance.

    Papers: cui2019classbalanced

    >>> weights = ClassBalanced(torch.tensor([30.0, 10.0]))
    >>> weights(torch.zeros(2), target=torch.tensor([0, 1]))
    tensor([0.6667, 2.0000])
    """

    papers = ("cui2019classbalanced",)
    helps = ("imbalance",)
    needs = ("class_counts",)
    settings = ({}, {"method": "effective", "beta": 0.99})
    needs_target = True
    over_data_set = True
    reads_losses = False

    def __init__(
        self, class_counts: Float[Tensor, " classes"], *, method: str = "inverse", beta: float | Tensor = 0.999
    ) -> None:
        super().__init__()
        check_amounts("class_counts", class_counts, "C", least=2)
        self.method = check_choice("method", method, ("inverse", "effective"))
        self.beta = check_between("beta", beta, 0, 1, open_high=True)
        self.class_counts = class_counts

    def class_weights(self) -> Float[Tensor, " classes"]:
        """The weight of a row of each class."""
        beta = 1.0 if self.method == "inverse" else self.beta
        return effective_number_weights(self.class_counts, beta, normalize="rows")

    def forward(
        self,
        losses: Float[Tensor, " n"],
        *,
        index: Int[Tensor, " n"] | None = None,
        group: Int[Tensor, " n"] | None = None,
        target: Int[Tensor, " n"] | None = None,
    ) -> Float[Tensor, " n"]:
        """The weights of the rows' classes."""
        target = self._required("target", target, losses)
        if (
            readable(target)
            and target.numel()
            and not 0 <= int(target.min()) <= int(target.max()) < len(self.class_counts)
        ):
            raise ValueError(
                f"target must be in [0, {len(self.class_counts)}), got {int(target.min())}..{int(target.max())}"
            )
        return self._given(self.class_weights()[target], losses)


@cite("cui2019classbalanced", "wang2021srat", helps=("imbalance",))
def effective_number_weights(
    counts: Float[Tensor, " classes"], beta: float | Tensor = 0.9999, *, normalize: str = "classes"
) -> Float[Tensor, " classes"]:
    r"""Class weights by the inverse of each class's effective number of samples.

    .. math:: w_k \propto \frac{1 - \beta}{1 - \beta^{n_k}}

    The weights go from uniform at :math:`\beta = 0` to the inverse frequency at :math:`\beta = 1`.

    Args:
        counts: ``(C,)``, how many training rows each class has; a class without rows gets weight 0.
        beta: :math:`\beta`, in [0, 1].
        normalize: ``"classes"`` gives the weights the mean 1 over the classes that have rows, ``"rows"`` the mean 1
            over the rows.

    Raises:
        ValueError: counts that are negative or all zero, ``beta`` outside [0, 1], an unknown ``normalize``.

    Papers: cui2019classbalanced, wang2021srat

    >>> effective_number_weights(torch.tensor([30.0, 10.0]), beta=1.0)
    tensor([0.5000, 1.5000])
    """
    check_amounts("counts", counts, "C", least=1)
    check_between("beta", beta, 0, 1)
    check_choice("normalize", normalize, ("classes", "rows"))
    dtype = torch.promote_types(counts.dtype, torch.float32)  # half precision has neither the counts nor their sum
    counts, rate = counts.to(dtype), torch.as_tensor(beta, dtype=torch.float64, device=counts.device)
    # 1 - beta^n by expm1 keeps its digits where beta is near 1. At 0 and 1 stand the limits, with their slopes.
    inside = torch.where((rate > 0) & (rate < 1), rate, 0.5)
    size = torch.expm1(counts * inside.log()) / (inside - 1)
    near_one = counts + (rate - 1) * counts * (counts - 1) / 2
    size = torch.where(rate > 0, torch.where(rate < 1, size, near_one), 1 + rate * (counts > 1)).to(dtype)
    raw = torch.where(counts > 0, 1 / torch.where(counts > 0, size, 1), 0)
    if normalize == "rows":
        return raw * (counts.sum() / (counts * raw).sum())
    return raw * ((counts > 0).sum() / raw.sum())
