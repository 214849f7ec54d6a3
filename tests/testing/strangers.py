"""Parts that the library has never seen, one of each role and sound, and broken ones made of them."""

import torch
from jaxtyping import Float
from torch import nn
from torch.nn.functional import cross_entropy

import lossworks as lw
from lossworks.checks import as_float, check_floating, check_positive
from lossworks.distributed import replicated
from lossworks.losses import CrossEntropyLoss
from lossworks.optim import SAM
from lossworks.roles import Calibrator, Part, Selector, Wrapper, cite, weighted_reduction
from lossworks.roles.calibrator import class_logits

DOCUMENTED = r"""Does what its name says.

    .. math:: a + b
{arguments}
    Shape:
        - what its role says.

    Raises:
        ValueError: a number that is out of range.

    Use it to try the contract.

    Papers: none
{example}
    >>> 1 + 1
    2
    """


def documented(*arguments, example=""):
    """A class with the docstring that the contract asks for."""
    said = (
        "\n    Args:\n" + "".join(f"        {name}: What its name says.\n" for name in arguments) if arguments else ""
    )

    def give(part):
        part.__doc__ = DOCUMENTED.format(arguments=said, example=f"\n    {example}" if example else "")
        return part

    return give


@documented("power")
class PowerLoss(lw.Loss):
    kind = "real"
    rowwise = True

    def __init__(self, power=2.0, *, reduction="mean"):
        super().__init__(reduction)
        self.power = check_positive("power", power)

    def per_sample(self, output, target):
        return (self.power / 2 * (output - target).square().log1p()).expm1()


class CancellingLoss(PowerLoss):
    def per_sample(self, output, target):
        return ((output - target).square() + 1) ** (self.power / 2) - 1


class KinkedLoss(PowerLoss):
    def per_sample(self, output, target):
        return ((output - target).square() + 1e-30).sqrt().square() / (output - target).abs()


@documented()
class OneHotLoss(lw.Loss):
    def per_sample(self, output, target):
        return -(torch.nn.functional.one_hot(target, output.shape[1]) * output.log_softmax(dim=1)).sum(dim=1)


@documented()
class ShiftedLoss(lw.Loss):
    def per_sample(self, output, target):
        return torch.nn.functional.cross_entropy(output + 0.1 * torch.arange(output.shape[1]), target, reduction="none")


@documented()
class FocusedLoss(lw.Loss):
    def per_sample(self, output, target):
        surprise = torch.nn.functional.cross_entropy(output, target, reduction="none")
        return surprise * -torch.expm1(-surprise)


class UnclearedLoss(lw.Loss):
    """Reads ignored rows like all others, and multiplies what comes of them by 0."""

    def rows(self, output, target, index=None):
        kept = target != self.ignore_index
        losses = cross_entropy(output, target.where(kept, 0), reduction="none")
        return losses.where(kept, 0), kept


class MultipliedLoss(PowerLoss):
    """Multiplies losses of weight 0 by 0, whatever they are."""

    def weighted_rows(self, output, target, *, sample_weight=None, **columns):
        losses, _ = super().weighted_rows(output, target, **columns)
        return losses, sample_weight


@documented("strength")
class CentredLoss(lw.BatchLoss):
    """Compares each row with the mean of all, those of weight 0 too."""

    def __init__(self, strength=1.0):
        super().__init__()
        self.strength = check_positive("strength", strength)

    def forward(self, output, target, *, sample_weight=None):
        gap = output - target
        return weighted_reduction(self.strength * (gap - gap.mean()).square(), sample_weight, "mean")


@documented("power")
class PowerWeights(lw.Weighting):
    couples_batch = True

    def __init__(self, power=0.5):
        super().__init__()
        self.power = check_positive("power", power)

    def forward(self, losses, *, index=None, group=None, target=None):
        check_floating("losses", losses)
        raw = (losses.double().clamp(min=0) + 1) ** self.power
        return (raw / raw.mean()).to(losses.dtype)


class NegativeWeights(PowerWeights):
    def forward(self, losses, **columns):
        weights = super().forward(losses, **columns)
        return 20 * weights - 19 * weights.mean()


class NarrowWeights(PowerWeights):
    """Sums the rows in the losses' own precision."""

    def forward(self, losses, **columns):
        check_floating("losses", losses)
        raw = losses.clamp(min=0) + 1
        return raw / (raw.sum() / len(losses)) if len(losses) else raw


class PlaceWeights(PowerWeights):
    """Gives the largest losses weight, of equal ones those that come first."""

    def forward(self, losses, **columns):
        check_floating("losses", losses)
        half = max(len(losses) // 2, 1)
        rank = losses.argsort(descending=True, stable=True).argsort()
        return (rank < half).to(losses.dtype) * len(losses) / half


@documented("strength")
class WeightSum(lw.Penalty):
    def __init__(self, strength=0.1):
        super().__init__()
        self.strength = check_positive("strength", strength, allow_zero=True)

    def forward(self, model, *, features=None):
        weights = list(model.parameters())
        if not weights:
            raise ValueError(f"model must have weights, {type(model).__name__} has none")
        return self.strength * torch.stack([replicated(w.square().sum()) for w in weights]).sum()


@documented("strength")
class FeatureSpread(WeightSum):
    reads_features = True

    def forward(self, model, *, features=None):
        if not list(model.parameters()):
            raise ValueError("model must have weights")
        if features is None:
            raise ValueError("features must be given, got None")
        return self.strength * (features - features.mean(dim=0)).square().mean()


class FeaturesIgnored(FeatureSpread):
    def forward(self, model, *, features=None):
        if features is None:
            raise ValueError("features must be given, got None")
        return WeightSum.forward(self, model)


@documented("eps")
class Shift(lw.Perturbation):
    def __init__(self, eps=0.1):
        super().__init__()
        self.eps = check_positive("eps", eps)

    def forward(self, risk, x):
        check_floating("x", x)
        return x.detach() + self.eps


class Uphill(Shift):
    """Takes one step along the sign of a slope that it takes at the clean input, and does not say where it begins."""

    def forward(self, risk, x):
        check_floating("x", x)
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(risk(leaf).sum(), leaf)
        return x.detach() + self.eps * slope.sign()


class JointlyUphill(Uphill):
    """Takes a step of a length that the whole batch shares, so that one row's slope moves the others."""

    begins_at_input = True

    def forward(self, risk, x):
        step = super().forward(risk, x) - x
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(risk(leaf).sum(), leaf)
        return x.detach() + step / (1 + slope.square().sum())


class ShiftByPlace(Shift):
    """Moves each row by its place in the batch."""

    def forward(self, risk, x):
        check_floating("x", x)
        place = torch.arange(len(x), dtype=x.dtype).reshape(-1, *(1 for _ in x.shape[1:]))
        return x.detach() + self.eps * place


@documented("smoothing")
class SmoothedObjective(lw.Objective):
    def __init__(self, smoothing=0.1):
        super().__init__(CrossEntropyLoss())
        self.smoothing = check_positive("smoothing", smoothing)

    def _outputs(self, model, x, changed, target):
        return model(changed) * (1 - self.smoothing), None


class CentringObjective(SmoothedObjective):
    """Takes the mean of all rows' outputs from each, also of those of weight 0."""

    def _outputs(self, model, x, changed, target):
        output, _ = super()._outputs(model, x, changed, target)
        return output - output.mean(dim=0), None


class CountingObjective(SmoothedObjective):
    """Is NaN from its fifth call on."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, *given, **columns):
        self.calls += 1
        value = super().forward(*given, **columns)
        return value * torch.nan if self.calls > 4 else value


class ForgetfulObjective(SmoothedObjective):
    """Is NaN from its fifth call on, which a list of its own counts."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, *given, **columns):
        self.seen.append(1)
        value = super().forward(*given, **columns)
        return value * torch.nan if len(self.seen) > 4 else value


class NaNObjective(SmoothedObjective):
    def _outputs(self, model, x, changed, target):
        output, _ = super()._outputs(model, x, changed, target)
        return output, torch.full((len(x),), torch.nan, dtype=output.dtype)


class RawObjective(SmoothedObjective):
    """Multiplies a weight by the rows as they were given."""

    def forward(self, model, x, target, **columns):
        return super().forward(model, x, target, **columns) + 1e-9 * (model[0].weight.sum() * x).sum()


class EvaluatingObjective(SmoothedObjective):
    """Leaves the model in evaluation mode."""

    def _outputs(self, model, x, changed, target):
        return super()._outputs(model.eval(), x, changed, target)


class DetachedObjective(SmoothedObjective):
    """Lets half of the gradient fall."""

    def _outputs(self, model, x, changed, target):
        output, _ = super()._outputs(model, x, changed, target)
        return (output + output.detach()) / 2, None


@documented("scale")
class Scaled(Part):
    def __init__(self, scale=2.0):
        super().__init__()
        self.scale = check_positive("scale", scale)

    def forward(self, x):
        check_floating("x", x)
        return x * self.scale


class RootLayer(Scaled):
    """Has NaN where the input is below 0."""

    def forward(self, x):
        return super().forward(x).sqrt()


class RoundedWeights(PowerWeights):
    """Lets its memory be cast with the model."""

    def __init__(self):
        super().__init__()
        self.counts = torch.tensor([900_000.0, 7.0])

    def _apply(self, fn, recurse=True):
        return nn.Module._apply(self, fn, recurse)


class Identity(Scaled):
    starts_as_identity = True


@documented("optimizer", "decay")
class Decayed(Wrapper):
    own = ("steps",)

    def __init__(self, optimizer, decay=0.1):
        super().__init__(optimizer)
        self.decay = check_positive("decay", decay)
        self.steps = 0

    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        scale = 1 / (1 + as_float(self.decay) * self.steps)
        for parameter in self.parameters():
            parameter.grad = parameter.grad * scale
        self.inner.step()
        self.steps += 1
        return loss


class ForgetfulDecayed(Decayed):
    own = ()


class PartedDecayed(Decayed):
    """Keeps the list of groups that it was built on."""

    def __init__(self, optimizer, decay=0.1):
        super().__init__(optimizer, decay)
        self.kept = optimizer.param_groups

    @property
    def param_groups(self):
        return vars(self).get("kept", self.inner.param_groups)

    @param_groups.setter
    def param_groups(self, groups):
        self.kept = groups


class UncheckpointedDecayed(Decayed):
    """Keeps its number where a distributed checkpoint does not look."""

    def state_dict(self):
        return {**self.inner.state_dict(), "own": {"steps": self.steps}}

    def load_state_dict(self, state_dict):
        self.inner.load_state_dict(state_dict)
        self.steps = state_dict.get("own", {"steps": 0})["steps"]


class UnhookedDecayed(Decayed):
    """Saves without its hooks."""

    def state_dict(self):
        self._mark()
        return self.inner.state_dict()


class DriftingSAM(SAM):
    """Knows nothing of a scaler between its passes."""

    def _unscaled(self, scaler, outermost):
        return None


class DescendingSAM(SAM):
    """Goes along the gradient where the objective is maximised too."""

    def ascend(self):
        turned = [group for group in self.param_groups if group["maximize"]]
        for group in turned:
            group["maximize"] = False
        super().ascend()
        for group in turned:
            group["maximize"] = True


class NarrowSAM(SAM):
    """Squares gradients in their own precision."""

    @torch.no_grad()
    def ascend(self):
        square = sum(parameter.grad.square().sum() for parameter in self.parameters())
        for parameter in self.parameters():
            parameter.grad.mul_(square > 0)
        super().ascend()


def decayed(problem, decay=0.1):
    """The update of Decayed written out."""
    weights = problem.start()
    for step in range(3):
        weights = weights - problem.lr * problem.gradient(weights, step) / (1 + decay * step)
        yield weights


def without_the_scale(problem, decay=0.1):
    """Another update than that of Decayed."""
    weights = problem.start()
    for step in range(3):
        weights = weights - problem.lr * problem.gradient(weights, step)
        yield weights


@documented("share", example=">>> SmallHalf()(torch.tensor([1.0, 3.0, 2.0, 4.0])).sum()\n    tensor(2)")
class SmallHalf(Selector):
    def __init__(self, share=0.5):
        self.share = check_positive("share", share)

    def __call__(self, losses):
        check_floating("losses", losses)
        kept = max(round(float(self.share) * len(losses)), 1)
        return losses <= losses.sort().values[kept - 1]


@documented(
    "share", example=">>> FirstHalf()(torch.tensor([1.0, 1.0, 1.0, 1.0]))\n    tensor([ True,  True, False, False])"
)
class FirstHalf(SmallHalf):
    def __call__(self, losses):
        check_floating("losses", losses)
        mask = torch.zeros(len(losses), dtype=torch.bool)
        mask[losses.argsort(stable=True)[: max(round(float(self.share) * len(losses)), 1)]] = True
        return mask


@documented("strength")
class Tempered(Calibrator):
    def __init__(self, strength=1.0):
        super().__init__()
        self.strength = check_positive("strength", strength)
        self.divisor = torch.ones((), dtype=torch.float64)

    @torch.no_grad()
    def fit(self, logits, target):
        z, y = class_logits(logits, target)
        divisors = torch.linspace(1, 10, 19, dtype=torch.float64)
        losses = [nn.functional.cross_entropy(z / (self.strength * divisor), y) for divisor in divisors]
        self.divisor.copy_(self.strength * divisors[int(torch.stack(losses).argmin())])
        return self

    def forward(self, logits):
        check_floating("logits", logits)
        return logits / self.divisor.to(logits.dtype)


class Mixed(Tempered):
    """Changes an answer."""

    def forward(self, logits):
        return super().forward(logits).roll(1, dims=-1)


class Masking(Tempered):
    """Counts a masked class among the others."""

    def fit(self, logits, target):
        return super().fit(logits.masked_fill(logits.isneginf(), 0.0), target)


@cite(helps=("calibration",))
def spread(scores: Float[torch.Tensor, "*shape"], power: float = 2.0) -> Float[torch.Tensor, ""]:
    """How far scores are from their mean.

    >>> spread(torch.tensor([1.0, 3.0]))
    tensor(1.)
    """
    check_floating("scores", scores)
    check_positive("power", power)
    return (scores - scores.mean()).abs().pow(power).mean()


@cite(helps=("calibration",))
def centred_in_place(scores: Float[torch.Tensor, " n"]) -> Float[torch.Tensor, " n"]:
    """The scores less their mean.

    >>> centred_in_place(torch.tensor([1.0, 3.0]))
    tensor([-1.,  1.])
    """
    check_floating("scores", scores)
    return scores.sub_(scores.mean())


@cite(helps=("calibration",))
def unchecked(scores: Float[torch.Tensor, " n"]) -> Float[torch.Tensor, " n"]:
    """Twice the scores, whatever they are.

    >>> unchecked(torch.tensor([1.0]))
    tensor([2.])
    """
    return 2 * scores
