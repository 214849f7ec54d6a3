r"""The roles of the formula: one base class a symbol, one file each.

.. math::
    \min_\theta \; \max_{w, \delta} \; \sum_i w_i \, \ell(f_\theta(x_i + \delta_i), y_i) + R(\theta)

:class:`Loss` is :math:`\ell`, :class:`Weighting` is :math:`w`, :class:`Perturbation` is :math:`\delta` and
:class:`Penalty` is :math:`R`. All are :class:`Part`: modules whose tensors are buffers and which say where they come
from.
"""

from lossworks.roles.batch_loss import BatchLoss, present_rows
from lossworks.roles.calibrator import Calibrator
from lossworks.roles.closed_form import ClosedForm, RowForm, SoftmaxForm
from lossworks.roles.directions import directions
from lossworks.roles.kinds import BINARY, CLASSES, COUNTS, KINDS, PAIRS, REAL, Kind, find_kind
from lossworks.roles.loss import Loss
from lossworks.roles.part import Part, cite, evaluating
from lossworks.roles.penalty import Penalty
from lossworks.roles.perturbation import Consistency, Perturbation
from lossworks.roles.reduction import (
    REDUCTIONS,
    absent_rows,
    any_row,
    check_no_nan,
    cleared,
    over_rows,
    weighted_reduction,
)
from lossworks.roles.remember import Offers, held_back, remember_over_ranks, remembering
from lossworks.roles.selector import Selector
from lossworks.roles.weighting import Weighting, about_kept, asked_once, inseparable
from lossworks.roles.wrapper import Wrapper

__all__ = [
    "BINARY",
    "CLASSES",
    "COUNTS",
    "KINDS",
    "PAIRS",
    "REAL",
    "REDUCTIONS",
    "BatchLoss",
    "Calibrator",
    "ClosedForm",
    "Consistency",
    "Kind",
    "Loss",
    "Offers",
    "Part",
    "Penalty",
    "Perturbation",
    "RowForm",
    "Selector",
    "SoftmaxForm",
    "Weighting",
    "Wrapper",
    "about_kept",
    "absent_rows",
    "any_row",
    "asked_once",
    "check_no_nan",
    "cite",
    "cleared",
    "directions",
    "evaluating",
    "find_kind",
    "held_back",
    "inseparable",
    "over_rows",
    "present_rows",
    "remember_over_ranks",
    "remembering",
    "weighted_reduction",
]
