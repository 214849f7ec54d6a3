"""The checks of a wrapper of an optimizer, on a small problem in float64."""

import contextlib
import copy
import io
import itertools
import pickle
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.func import functional_call
from torch.nn.functional import cross_entropy, mse_loss
from torch.optim import SGD, Optimizer
from torch.testing import assert_close

from lossworks.roles import Wrapper
from lossworks.testing.inputs import CLASSES, Recipe, expect_error, reads_rows, take_step

__all__ = [
    "Problem",
    "Update",
    "clear_errors",
    "closures",
    "copies_go_on",
    "distributed_checkpoint",
    "follows_the_inner",
    "foreach_is_the_loop",
    "frozen_parameters",
    "grad_scaler",
    "half_precision",
    "hooks_run",
    "maximises",
    "parameter_groups",
    "quiet",
    "resumes_in_mid_training",
    "scheduler_reaches_the_inner",
    "shows_itself",
    "sparse_gradients",
    "steps_without_a_closure",
    "torch_generator_left_alone",
    "two_passes",
    "two_passes_scaled",
    "used",
    "written_out",
    "zero_grad",
]

ROWS, FEATURES, STEPS, LR = 8, 4, 3, 0.1
INNER = partial(SGD, lr=LR, momentum=0.5)
"""The optimizer inside, where a check asks for no other."""


class Problem:
    """A small problem on which an update is written out: a model's weights as one vector, and its batches by number.

    Args:
        wrapper: A model of one number a row is made for one that reads rows itself, of some classes for the others.
    """

    lr = LR

    def __init__(self, wrapper: type[Wrapper]) -> None:
        self.of_numbers = reads_rows(wrapper)
        generator = torch.Generator().manual_seed(0)
        outputs = 1 if self.of_numbers else CLASSES
        self.x = torch.randn(STEPS, ROWS, FEATURES, generator=generator, dtype=torch.float64)
        if self.of_numbers:
            self.target = torch.randn(STEPS, ROWS, generator=generator, dtype=torch.float64)
        else:
            self.target = torch.randint(CLASSES, (STEPS, ROWS), generator=generator)
        self.model = nn.Sequential(nn.Linear(FEATURES, 3), nn.Tanh(), nn.Linear(3, outputs)).double()
        for parameter in self.model.parameters():
            parameter.data = 3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        self.shapes = [parameter.shape for parameter in self.model.parameters()]

    def start(self) -> Tensor:
        """The weights at first, as one vector."""
        return flat(self.model)

    def outputs(self, weights: Tensor, step: int) -> Tensor:
        """What a model of these weights gives for the step's rows, ``(n, C)`` or ``(n,)``."""
        names = [name for name, _ in self.model.named_parameters()]
        pieces = weights.split([shape.numel() for shape in self.shapes])
        state = {n: piece.reshape(shape) for n, piece, shape in zip(names, pieces, self.shapes, strict=True)}
        output = functional_call(self.model, state, (self.x[step],))
        assert isinstance(output, Tensor)
        return output.squeeze(1) if self.of_numbers else output

    def loss(self, output: Tensor, step: int) -> Tensor:
        """The step's loss of these outputs."""
        return (mse_loss if self.of_numbers else cross_entropy)(output, self.target[step])

    def gradient(self, weights: Tensor, step: int) -> Tensor:
        """The gradient of the step's loss in the weights."""
        leaf = weights.detach().requires_grad_()
        return torch.autograd.grad(self.loss(self.outputs(leaf, step), step), leaf)[0]


Update = Callable[..., Iterable[Tensor]]
"""A wrapper's update around plain SGD, written out: from a :class:`Problem` and the wrapper's setting to the weights
after each of the three steps. Torch's generator is seeded with the number of a step before it."""


class _Trained:
    """A problem's model under a recipe's optimizer."""

    def __init__(self, recipe: Recipe, inner: Callable[..., Optimizer] = INNER) -> None:
        self.problem = Problem(recipe.wrapper)
        self.model: nn.Module = copy.deepcopy(self.problem.model)
        self.optimizer = recipe.build(inner(self.model.parameters()), self.model)

    def step(self, number: int) -> Tensor:
        """One step, with the number's rows and draws."""
        torch.manual_seed(number)
        row = number % STEPS
        x = self.problem.x[row]

        def backward() -> Tensor:
            output = self.model(x)
            loss = self.problem.loss(output.squeeze(1) if self.problem.of_numbers else output, row)
            loss.backward()
            return loss.detach()

        return take_step(self.optimizer, self.model, x, backward)

    def steps(self, *numbers: int) -> Tensor:
        """The weights after these steps."""
        for number in numbers:
            self.step(number)
        return flat(self.model)


def used(recipe: Recipe) -> Tensor:
    """The weights after two steps on the example."""
    return _Trained(recipe).steps(0, 1)


def flat(model: nn.Module) -> Tensor:
    """All weights as one vector."""
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def written_out(recipe: Recipe, update: Update) -> None:
    """The weights after each of three steps around plain SGD are those of the update written out in float64."""
    trained = _Trained(recipe, partial(SGD, lr=LR))
    wanted = list(update(trained.problem, **recipe.setting))
    assert len(wanted) == STEPS, f"the update written out must give {STEPS} vectors of weights, it gave {len(wanted)}"
    for number, weights in enumerate(wanted):
        got = trained.steps(number)
        off = float((got - weights.detach()).abs().max())
        assert off <= 1e-9, f"the weights after step {number} are off by {off:.0e}"


def resumes_in_mid_training(recipe: Recipe) -> None:
    """Saved after two steps and loaded into fresh objects, it goes on to the last bit as if it had not stopped."""
    wanted = _Trained(recipe).steps(0, 1, 2, 3)
    stopped, fresh = _Trained(recipe), _Trained(recipe)
    stopped.steps(0, 1)
    file = io.BytesIO()
    torch.save([stopped.model.state_dict(), stopped.optimizer.state_dict()], file)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    fresh.model.load_state_dict(weights)
    fresh.optimizer.load_state_dict(state)
    assert_close(fresh.steps(2, 3), wanted, atol=0, rtol=0, msg="after a stop other weights come: {}".format)


def parameter_groups(recipe: Recipe) -> None:
    """Each group goes by its own learning rate, also one that is added later, and the inner optimizer has them all."""

    def grouped(parameters: Iterable[nn.Parameter]) -> Optimizer:
        first, *others = parameters
        groups: list[dict[str, Any]] = [{"params": [first], "lr": 0.0}, {"params": others}]
        return SGD(groups, lr=LR)

    trained = _Trained(recipe, grouped)
    before = copy.deepcopy(trained.model.state_dict())
    trained.steps(0, 1)
    after = list(trained.model.named_parameters())
    assert torch.equal(after[0][1], before[after[0][0]]), "a group with a learning rate of 0 moved"
    assert not torch.equal(after[2][1], before[after[2][0]]), "the other group did not move"
    later = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    trained.optimizer.add_param_group({"params": [later], "lr": 1.0})
    rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in (trained.optimizer, _inner(trained))]
    assert rates[0] == rates[1] == [0.0, LR, 1.0], f"the groups' learning rates are {rates[0]}, inside {rates[1]}"


def _inner(trained: _Trained) -> Optimizer:
    return trained.optimizer.inner


def follows_the_inner(recipe: Recipe) -> None:
    """Wrapper and inner optimizer keep one set of groups, whichever of them loads, is assigned or is added to."""
    trained = _Trained(recipe, partial(SGD, lr=LR))
    optimizer, inner = trained.optimizer, _inner(trained)

    def assigned(to: Optimizer) -> None:
        to.param_groups = [dict(group) for group in inner.param_groups]

    later = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    changes: dict[str, Callable[[], Any]] = {
        "the inner optimizer loads its state": lambda: inner.load_state_dict(inner.state_dict()),
        "the wrapper loads its state": lambda: optimizer.load_state_dict(optimizer.state_dict()),
        "groups are assigned to the wrapper": partial(assigned, optimizer),
        "groups are assigned to the inner optimizer": partial(assigned, inner),
        "a group is added inside": lambda: inner.add_param_group({"params": [later]}),
    }
    for what, change in changes.items():
        change()
        optimizer.param_groups[0]["lr"] = LR / 2
        assert inner.param_groups[0]["lr"] == LR / 2, f"after {what} the groups are parted"
        assert optimizer.state is inner.state, f"after {what} the states are parted"
        assert len(optimizer.param_groups) == len(inner.param_groups), f"after {what} a group is missing"
        inner.param_groups[0]["lr"] = LR


def distributed_checkpoint(recipe: Recipe) -> None:
    """It goes through ``torch.distributed.checkpoint``, and goes on as if it had not stopped."""
    for flat_keys in (False, True):
        options = StateDictOptions(flatten_optimizer_state_dict=flat_keys)
        adam = partial(torch.optim.Adam, lr=LR)
        stopped, fresh, wanted = (_Trained(recipe, adam) for _ in range(3))
        before = stopped.steps(0, 1)
        state = copy.deepcopy(get_optimizer_state_dict(stopped.model, stopped.optimizer, options=options))
        fresh.model.load_state_dict(stopped.model.state_dict())
        set_optimizer_state_dict(fresh.model, fresh.optimizer, state, options=options)
        assert torch.equal(flat(fresh.model), before), "to load a state moved the weights"
        wanted.steps(0, 1)
        how = "flat" if flat_keys else "nested"
        said = f"after a distributed checkpoint of {how} keys other weights come: {{}}".format
        assert_close(fresh.steps(2, 3), wanted.steps(2, 3), atol=0, rtol=0, msg=said)


def hooks_run(recipe: Recipe) -> None:
    """Hooks of a step, of saving and of loading run once each, on the wrapper and on the inner optimizer."""
    trained = _Trained(recipe)
    ran: list[str] = []

    def note(name: str, *_: Any) -> None:
        ran.append(name)

    for side, optimizer in (("wrapper", trained.optimizer), ("inner", _inner(trained))):
        optimizer.register_step_pre_hook(partial(note, f"{side}, before a step"))
        optimizer.register_step_post_hook(partial(note, f"{side}, after a step"))
        optimizer.register_state_dict_pre_hook(partial(note, f"{side}, before saving"))
        optimizer.register_state_dict_post_hook(partial(note, f"{side}, after saving"))
        optimizer.register_load_state_dict_pre_hook(partial(note, f"{side}, before loading"))
        optimizer.register_load_state_dict_post_hook(partial(note, f"{side}, after loading"))
    trained.step(0)
    trained.optimizer.load_state_dict(trained.optimizer.state_dict())
    wanted = [
        f"{s}, {w} {v}"
        for s in ("wrapper", "inner")
        for w in ("before", "after")
        for v in ("a step", "saving", "loading")
    ]
    assert sorted(ran) == sorted(wanted), f"hooks ran {sorted(ran)}, each must run once"


def maximises(recipe: Recipe) -> None:
    """With ``maximize`` inside, and the objective's sign turned, the weights are those of minimising it."""

    def ended(maximize: bool) -> Tensor:
        trained = _Trained(recipe, partial(SGD, lr=LR, maximize=maximize))
        problem = trained.problem
        for number in range(STEPS):
            x = problem.x[number]

            def backward(number: int = number, x: Tensor = x) -> Tensor:
                output = trained.model(x)
                loss = problem.loss(output.squeeze(1) if problem.of_numbers else output, number)
                (-loss if maximize else loss).backward()
                return loss.detach()

            take_step(trained.optimizer, trained.model, x, backward)
        return flat(trained.model)

    assert_close(ended(True), ended(False), msg="maximising minus the objective leads to other weights: {}".format)


def half_precision(recipe: Recipe) -> None:
    """In half precision a step asks for the same points however tiny or huge gradients are, and all is put back."""

    def asked(scale: float) -> list[Tensor]:
        trained = _Trained(recipe, partial(SGD, lr=0.0))
        trained.model.to(torch.bfloat16)
        before = flat(trained.model)
        x = trained.problem.x[0].to(torch.bfloat16)
        seen = []

        def backward() -> Tensor:
            output = trained.model(x)
            output.backward(torch.full_like(output, scale))
            seen.append(output.detach())
            return output.detach().sum()

        torch.manual_seed(0)
        take_step(trained.optimizer, trained.model, x, backward)
        assert torch.equal(flat(trained.model), before), (
            f"at a learning rate of 0 and slopes of {scale:g} weights moved"
        )
        return seen

    wanted = asked(1.0)
    for scale in (2.0**-90, 2.0**90):  # by which bfloat16 is multiplied without rounding
        said = f"gradients {scale:g} times as large lead to other points: {{}}".format
        assert_close(asked(scale), wanted, atol=1e-2, rtol=1e-2, msg=said)


def frozen_parameters(recipe: Recipe) -> None:
    """Weights without ``requires_grad`` stay, and the others move."""
    trained = _Trained(recipe)
    next(trained.model.children()).requires_grad_(False)
    before = copy.deepcopy(trained.model.state_dict())
    trained.steps(0, 1)
    after = trained.model.state_dict()
    assert torch.equal(after["0.weight"], before["0.weight"]), "a frozen weight moved"
    assert not torch.equal(after["2.weight"], before["2.weight"]), "a weight that is not frozen did not move"


class _Embedded(nn.Module):
    """A table that is looked up by the sign of what comes in, before a layer."""

    def __init__(self, model: nn.Module, sparse: bool) -> None:
        super().__init__()
        self.table = nn.Embedding(4, FEATURES, sparse=sparse, dtype=torch.float64)
        self.table.weight.data = torch.linspace(-1, 1, 4 * FEATURES, dtype=torch.float64).reshape(4, FEATURES)
        self.rest = copy.deepcopy(model)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.rest(self.table((x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long()))
        return output


def sparse_gradients(recipe: Recipe) -> None:
    """A table with sparse gradients ends with the weights that it has with dense ones."""
    ended = []
    for sparse in (False, True):
        trained = _Trained(recipe)
        trained.model = _Embedded(trained.problem.model, sparse)
        trained.optimizer = recipe.build(SGD(trained.model.parameters(), lr=LR), trained.model)
        ended.append(trained.steps(0, 1, 2))
    assert_close(ended[1], ended[0], msg="sparse gradients lead to other weights: {}".format)


def closures(recipe: Recipe) -> None:
    """A step with a closure gives the closure's first loss, and asks for it with gradients even where none are kept."""
    trained = _Trained(recipe)
    row = trained.problem
    with torch.no_grad():
        loss = trained.step(0)
    assert isinstance(loss, Tensor), f"a step with a closure must give its loss, it gave {type(loss).__name__}"
    if not recipe.wrapper.takes_outputs:
        assert_close(loss.detach(), row.loss(row.outputs(row.start(), 0), 0))


def needs_a_closure(recipe: Recipe) -> bool:
    """Whether a step asks for the loss itself, and so refuses to be taken from gradients alone."""
    trained = _Trained(recipe)
    _backward(trained, 0)
    try:
        trained.optimizer.step()
    except (TypeError, RuntimeError, ValueError):
        return True
    return False


def _backward(trained: _Trained, number: int) -> Tensor:
    torch.manual_seed(number)
    trained.optimizer.zero_grad()
    output = trained.model(trained.problem.x[number])
    return trained.problem.loss(output.squeeze(1) if trained.problem.of_numbers else output, number)


def steps_without_a_closure(recipe: Recipe) -> None:
    """Without a closure it takes the gradients that there are, or says that it needs a closure."""
    if needs_a_closure(recipe):
        trained = _Trained(recipe)
        _backward(trained, 0).backward()
        try:
            trained.optimizer.step()
        except (TypeError, RuntimeError, ValueError) as error:
            assert "closure" in str(error), f"the error must name the closure, it says: {error}"
        return
    if reads_rows(recipe.wrapper):
        return
    given, asked = _Trained(recipe), _Trained(recipe)
    for number in range(STEPS):
        _backward(given, number).backward()
        given.optimizer.step()
    assert_close(flat(given.model), asked.steps(*range(STEPS)), msg="a closure leads to other weights: {}".format)


def scheduler_reaches_the_inner(recipe: Recipe) -> None:
    """A scheduler of the wrapper sets the inner optimizer's learning rate, and the next step goes by it."""
    trained = _Trained(recipe, partial(SGD, lr=LR))
    scheduler = torch.optim.lr_scheduler.StepLR(trained.optimizer, 1, gamma=0.0)
    before = trained.steps(0)
    scheduler.step()
    assert _inner(trained).param_groups[0]["lr"] == 0, "the inner optimizer has another learning rate"
    assert torch.equal(trained.steps(1), before), "the weights moved at a learning rate of 0"


def grad_scaler(recipe: Recipe) -> None:
    """Under a ``GradScaler`` the weights are those without it, and a step with infinite gradients is left out."""
    plain, scaled = _Trained(recipe), _Trained(recipe)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    for number in range(2):
        _backward(plain, number).backward()
        plain.optimizer.step()
        scaler.scale(_backward(scaled, number)).backward()
        scaler.unscale_(scaled.optimizer)
        scaler.step(scaled.optimizer)
        scaler.update()
    assert_close(flat(scaled.model), flat(plain.model), msg="a GradScaler leads to other weights: {}".format)
    before = flat(scaled.model)
    scaler.scale(_backward(scaled, 2) * torch.inf).backward()
    scaler.step(scaled.optimizer)
    assert torch.equal(flat(scaled.model), before), "a step with infinite gradients was taken"


def two_passes(recipe: Recipe) -> bool:
    """Whether a step may be written as two passes with ``ascend`` between them."""
    return hasattr(recipe.wrapper, "ascend") and not recipe.wrapper.takes_outputs


def two_passes_scaled(recipe: Recipe) -> None:
    """Two passes under a ``GradScaler``, in each order, are those without it, and infinite ones are left out."""
    plain = _Trained(recipe)
    for number in range(STEPS):
        _backward(plain, number).backward()
        plain.optimizer.ascend()  # type: ignore[attr-defined]
        _outcome(plain, number).backward()
        plain.optimizer.step()
    for first, between, second in itertools.product((False, True), repeat=3):
        if between and not first:
            continue  # torch refuses to update a scaler that has unscaled nothing
        scaled = _Trained(recipe)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=1)
        for number in range(STEPS):
            _scaled_passes(scaled, scaler, number, first, between, second, (1.0, 1.0))
        order = f"unscaled first: {first}, updated between: {between}, unscaled second: {second}"
        assert_close(
            flat(scaled.model), flat(plain.model), msg=f"a GradScaler leads to other weights ({order}): {{}}".format
        )
        for factors in ((torch.inf, 1.0), (1.0, torch.inf)):
            before, scale = flat(scaled.model), scaler.get_scale()
            _scaled_passes(scaled, scaler, 0, first, between, second, factors)
            assert torch.equal(flat(scaled.model), before), f"infinite gradients moved the weights ({order})"
            assert between or scaler.get_scale() < scale, f"infinite gradients did not lower the scale ({order})"


def _outcome(trained: _Trained, number: int) -> Tensor:
    output = trained.model(trained.problem.x[number])
    return trained.problem.loss(output.squeeze(1) if trained.problem.of_numbers else output, number)


def _scaled_passes(
    trained: _Trained,
    scaler: torch.amp.GradScaler,
    number: int,
    first: bool,
    between: bool,
    second: bool,
    factors: tuple[float, float],
) -> None:
    """One step of two passes, and whether the scaler unscales the first, is updated after it, unscales the second."""
    scaler.scale(_backward(trained, number) * factors[0]).backward()
    if first:
        scaler.unscale_(trained.optimizer)
    trained.optimizer.ascend()  # type: ignore[attr-defined]
    if between:
        scaler.update()
    scaler.scale(_outcome(trained, number) * factors[1]).backward()
    if second:
        scaler.unscale_(trained.optimizer)
    scaler.step(trained.optimizer)
    scaler.update()


def foreach_is_the_loop(recipe: Recipe) -> None:
    """Around an inner optimizer that takes all weights at once it is what it is around one that loops."""
    ended = [
        _Trained(recipe, partial(SGD, lr=LR, momentum=0.5, foreach=foreach)).steps(0, 1, 2) for foreach in (True, False)
    ]
    assert_close(ended[0], ended[1], atol=1e-12, rtol=0)


def zero_grad(recipe: Recipe) -> None:
    """``zero_grad`` sets gradients to None, or to 0 where it is asked to."""
    for to_none in (True, False):
        trained = _Trained(recipe)
        _backward(trained, 0).backward()
        trained.optimizer.zero_grad(set_to_none=to_none)
        for parameter in trained.model.parameters():
            if to_none:
                assert parameter.grad is None, "zero_grad left a gradient"
            else:
                assert parameter.grad is not None, "zero_grad(set_to_none=False) took a gradient away"
                assert not bool(parameter.grad.any()), "zero_grad(set_to_none=False) left a gradient that is not 0"


def copies_go_on(recipe: Recipe) -> None:
    """A deep copy, and a pickled one, of model and optimizer go on as these do."""
    trained = _Trained(recipe)
    trained.steps(0)
    pairs = [
        copy.deepcopy((trained.model, trained.optimizer)),
        pickle.loads(pickle.dumps((trained.model, trained.optimizer))),
    ]
    wanted = trained.steps(1, 2)
    for how, (model, optimizer) in zip(("a deep copy", "pickle"), pairs, strict=True):
        other = _Trained(recipe)
        other.model, other.optimizer = model, optimizer
        assert_close(other.steps(1, 2), wanted, atol=0, rtol=0, msg=f"{how} leads to other weights: {{}}".format)


def quiet(recipe: Recipe) -> None:
    """No prints and no warnings in normal use."""
    printed = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        warnings.simplefilter("error")
        _Trained(recipe).steps(0, 1)
    assert not printed.getvalue(), f"printed: {printed.getvalue()!r}"


def torch_generator_left_alone(recipe: Recipe) -> None:
    """A wrapper that is not declared to draw leaves torch's generator where it was."""
    trained = _Trained(recipe)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        before = torch.get_rng_state()
        trained.step(0)
        assert torch.equal(torch.get_rng_state(), before), "it draws without declaring itself stochastic"


def shows_itself(recipe: Recipe) -> None:
    """Its representation names the wrapper and what is inside."""
    shown = repr(_Trained(recipe).optimizer)
    assert recipe.wrapper.__name__ in shown, f"the representation does not name the wrapper: {shown}"
    assert "SGD" in shown, f"the representation does not name the inner optimizer: {shown}"


def _made(recipe: Recipe, optimizer: Any, **changed: Any) -> Wrapper:
    other = Recipe(recipe.wrapper, {**recipe.setting, **changed}, None)
    return other.build(optimizer, nn.Linear(1, 1))


def _held(recipe: Recipe) -> Iterator[str]:
    """The hyperparameters that it holds as floats under the names of the constructor's arguments."""
    held = vars(_Trained(recipe).optimizer)
    yield from (name for name in recipe.hyperparameters() if isinstance(held.get(name), float))


def clear_errors(recipe: Recipe) -> None:
    """Something that is no optimizer, a foreign state and a hyperparameter that is NaN raise errors that name them."""
    trained = _Trained(recipe)
    foreign = SGD(trained.model.parameters(), lr=LR).state_dict()
    expect_error("state_dict", partial(trained.optimizer.load_state_dict, foreign))
    if recipe.factory is not None:
        return
    expect_error("optimizer", partial(_made, recipe, "sgd"))
    for name in _held(recipe):
        inner = SGD(nn.Linear(1, 1).parameters(), lr=LR)
        expect_error(name, partial(_made, recipe, inner, **{name: float("nan")}))
