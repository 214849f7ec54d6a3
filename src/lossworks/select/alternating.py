"""A selector of noisy rows that alternates between two rules from epoch to epoch."""

from collections.abc import Sequence

from jaxtyping import Bool, Float
from torch import Tensor

from lossworks.checks import check_choice, check_int, check_sequence
from lossworks.roles import Selector
from lossworks.select.linear_separation import LinearSeparationSelector
from lossworks.select.small_loss import SmallLossGMMSelector

__all__ = ["AlternatingSelector"]


class AlternatingSelector(Selector):
    r"""Finds noisy rows by alternating rules: by their features in one epoch, by their losses in the next.

    .. math::
        \text{noisy}_e = \text{rule}_{e \bmod m}(\ell, h)

    The linear rule finds more of the noisy rows, and drops hard clean rows too; those come back in the epochs of the
    loss rule. The linear rule trusts the loss rule's split into clean and noisy rows. When the data are split over
    ranks, gather the losses and features first.

    Args:
        order: The rules, ``"linear"`` and ``"loss"``, in the order in which the epochs take them, over and over.
        loss: The rule by losses; by default a :class:`SmallLossGMMSelector`.
        linear: The rule by features; by default a :class:`LinearSeparationSelector`.

    Raises:
        ValueError: an order without rules or with other rules, an epoch below 0, losses or features that the rules
            refuse.
        TypeError: a rule of another type.

    Use it for labels from web searches, where most noisy rows are pictures of no known class. Where the noise is among
    the known classes, ``order=("loss",)`` is as good and needs no features.

    Papers: albert2024accurate

    >>> import torch
    >>> losses = torch.tensor([0.1, 0.2, 0.1, 5.0, 5.1])
    >>> AlternatingSelector(order=("loss",))(0, losses)
    tensor([False, False, False,  True,  True])
    """

    papers = ("albert2024accurate",)
    helps = ("noisy labels", "outliers")
    rows = ("losses", "features")

    def __init__(
        self,
        order: Sequence[str] = ("linear", "loss"),
        *,
        loss: SmallLossGMMSelector | None = None,
        linear: LinearSeparationSelector | None = None,
    ) -> None:
        check_sequence("order", order)
        if not len(order):
            raise ValueError("order must have at least one of 'linear' and 'loss', got none")
        self.order = tuple(check_choice("order", rule, ("linear", "loss")) for rule in order)
        self.loss = SmallLossGMMSelector() if loss is None else loss
        self.linear = LinearSeparationSelector() if linear is None else linear
        if not isinstance(self.loss, SmallLossGMMSelector):
            raise TypeError(f"loss must be a SmallLossGMMSelector, got {type(loss).__name__}")
        if not isinstance(self.linear, LinearSeparationSelector):
            raise TypeError(f"linear must be a LinearSeparationSelector, got {type(linear).__name__}")

    def __call__(
        self, epoch: int, losses: Float[Tensor, " N"], features: Float[Tensor, "N d"] | None = None
    ) -> Bool[Tensor, " N"]:
        """Which rows are noisy in this epoch, counted from 0."""
        check_int("epoch", epoch, low=0)
        noisy = self.loss(losses)
        if self.order[epoch % len(self.order)] == "loss":
            return noisy
        if features is None:
            raise ValueError(f"features must be given in epoch {epoch}, whose rule is 'linear', got None")
        return self.linear(features, noisy)[0]
