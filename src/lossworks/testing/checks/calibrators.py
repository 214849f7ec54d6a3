"""The checks of a calibrator."""

import copy
import math
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from lossworks.roles import Calibrator
from lossworks.testing.inputs import CLASSES, expect_error

__all__ = [
    "clear_errors",
    "dtype_kept",
    "fit_returns_itself",
    "fits_any_order",
    "gradcheck",
    "helps_what_it_was_fitted_to",
    "keeps_the_answers",
    "masked_classes",
    "one_logit",
    "used",
    "vmaps",
]

FITTED = 60


def _example(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Logits that are three times too sure, and classes."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(FITTED, CLASSES, generator=generator, dtype=torch.float64)
    target = torch.distributions.Categorical(logits=logits).probs.multinomial(1, generator=generator)[:, 0]
    return (3 * logits).to(dtype), target


def _fitted(calibrator: Calibrator, dtype: torch.dtype = torch.float64) -> Calibrator:
    return copy.deepcopy(calibrator).fit(*_example(dtype))


def used(calibrator: Calibrator) -> Tensor:
    """The example's logits after a fit to them."""
    logits, target = _example()
    if calibrator.training:
        calibrator.fit(logits, target)
    calibrated: Tensor = calibrator(logits)
    return calibrated


def fit_returns_itself(calibrator: Calibrator) -> None:
    """``fit`` gives the calibrator itself, and leaves logits and target as they were."""
    own = copy.deepcopy(calibrator)
    logits, target = _example()
    before = logits.clone(), target.clone()
    assert own.fit(logits, target) is own, "fit must return the calibrator itself"
    assert torch.equal(logits, before[0]), "fit changed the logits"
    assert torch.equal(target, before[1]), "fit changed the target"


def keeps_the_answers(calibrator: Calibrator) -> None:
    """The largest entry of the calibrated logits is where that of the logits is."""
    logits, _ = _example()
    assert torch.equal(_fitted(calibrator)(logits).argmax(dim=1), logits.argmax(dim=1)), "an answer changed"


def helps_what_it_was_fitted_to(calibrator: Calibrator) -> None:
    """The cross-entropy on the rows that it was fitted to is no larger than without it."""
    logits, target = _example()
    after, before = cross_entropy(_fitted(calibrator)(logits), target), cross_entropy(logits, target)
    assert bool(after <= before + 1e-9), f"the cross-entropy went from {float(before):g} to {float(after):g}"


def fits_any_order(calibrator: Calibrator) -> None:
    """The rows in another order lead to the same fit."""
    logits, target = _example()
    other = copy.deepcopy(calibrator).fit(logits.flip(0), target.flip(0))
    assert_close(other(logits), _fitted(calibrator)(logits))


def one_logit(calibrator: Calibrator) -> None:
    """One logit a row, with a target of 0 and 1, comes back as one logit a row."""
    logits, target = _example()
    own = copy.deepcopy(calibrator).fit(logits[:, 0], target % 2)
    assert own(logits[:, 0]).shape == (FITTED,), "logits (n,) must come back as (n,)"


def masked_classes(calibrator: Calibrator) -> None:
    """A class at a logit of -inf in every row is as if absent, and one that is the label is an error."""
    logits, target = _example()
    masked = torch.cat([logits, torch.full_like(logits[:, :1], -math.inf)], dim=1)
    own = copy.deepcopy(calibrator).fit(masked, target)
    assert_close(own(masked)[:, :-1], _fitted(calibrator)(logits), msg="a masked class changes the fit: {}".format)
    assert bool(own(masked)[:, -1].isneginf().all()), "a masked class is no longer at -inf"
    expect_error("logits", partial(own.fit, masked, torch.full_like(target, CLASSES)))


def dtype_kept(calibrator: Calibrator) -> None:
    """Calibrated logits have the dtype and the shape of the logits, and are finite where these are ±1e4."""
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        logits = _example(dtype)[0]
        for given in (logits, logits.sign() * 1e4):
            calibrated = _fitted(calibrator)(given)
            assert calibrated.dtype == dtype, f"logits in {dtype} come back in {calibrated.dtype}"
            assert calibrated.shape == given.shape, f"logits come back as {tuple(calibrated.shape)}"
            assert bool(calibrated.isfinite().all()), f"calibrated logits in {dtype} are not finite"


def gradcheck(calibrator: Calibrator) -> None:
    """The gradient in the logits is the derivative."""
    own = _fitted(calibrator)
    assert torch.autograd.gradcheck(own, _example()[0][:4].requires_grad_())


def vmaps(calibrator: Calibrator) -> None:
    """Stacked logits are calibrated as each would be alone."""
    own, logits = _fitted(calibrator), _example()[0]
    stacked = torch.stack([logits, -logits])
    assert_close(torch.func.vmap(own)(stacked), torch.stack([own(one) for one in stacked]))


def clear_errors(calibrator: Calibrator) -> None:
    """Logits and targets that do not fit raise errors that name them."""
    logits, target = _example()
    own = copy.deepcopy(calibrator)
    first = torch.arange(logits.numel()).reshape(logits.shape) == 0
    for name, wrong in (
        ("logits", (logits.long(), target)),
        ("logits", (logits[None], target)),
        ("logits", (logits[:0], target[:0])),
        ("logits", (logits.masked_fill(first, math.nan), target)),
        ("target", (logits, target[:-1])),
        ("target", (logits, target + CLASSES)),
        ("target", (logits, target.double())),
    ):
        expect_error(name, partial(own.fit, *wrong))
    expect_error("logits", partial(own, logits.long()))
