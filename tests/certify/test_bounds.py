import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from lossworks.certify import crown_bounds, interval_bounds, margin_spec, verified
from lossworks.perturb import PGD

POINTS = 10_000


class Residual(nn.Module):
    """A sum of branches, with functions and methods in place of modules."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        hidden = F.relu(self.first(x.flatten(1)))
        return self.last(torch.relu(self.second(hidden) + hidden) + hidden)


def mlp():
    return nn.Sequential(nn.Flatten(), nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 3))


def convolutional():
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3, padding=1, stride=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout2d(0.3)),
        *(nn.Conv2d(4, 6, 3, padding=1, groups=2), nn.ReLU(), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1)),
        *(nn.Flatten(), nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Identity(), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3)),
    )


def one_dimensional():
    return nn.Sequential(
        *(nn.Conv1d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool1d(3, stride=1, padding=1), nn.AvgPool1d(2)),
        *(nn.Flatten(), nn.Linear(8, 3)),
    )


MODELS = {
    "mlp": (mlp, (2, 4)),
    "residual": (Residual, (2, 4)),
    "convolutional": (convolutional, (1, 8, 8)),
    "one dimension": (one_dimensional, (2, 4)),
}


def trained_looking(make):
    """A network with statistics that are not those it was made with."""
    torch.manual_seed(0)
    model = make().double()
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, -1.5, 1.5)
            nn.init.normal_(module.bias)
    return model.eval()


def ball_points(x, eps, norm, generator):
    draws = torch.randn(POINTS, *x.shape[1:], generator=generator, dtype=x.dtype)
    flat = draws.flatten(1)
    if norm == "linf":
        flat = flat.sign() * torch.rand(flat.shape, generator=generator, dtype=x.dtype)
        flat[: POINTS // 2] = flat[: POINTS // 2].sign()  # corners
    else:
        flat = flat / torch.linalg.vector_norm(flat, ord=1 if norm == "l1" else 2, dim=1, keepdim=True)
    return x + eps * flat.reshape(draws.shape)


WAYS = [
    ("interval", "linf"),
    ("crown", "linf"),
    ("crown", "l2"),
    ("crown", "l1"),
    ("crown-ibp", "linf"),
    ("crown-ibp", "l2"),
    ("crown-ibp", "l1"),
]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("method", "norm"), WAYS)
def test_no_point_of_the_ball_and_no_attack_leaves_the_bounds(name, method, norm, generator):
    make, shape = MODELS[name]
    model = trained_looking(make)
    for eps in (0.05, 0.4):
        x = torch.randn(1, *shape, generator=generator, dtype=torch.float64)
        if method == "interval":
            low, high = interval_bounds(model, x, eps)
        else:
            low, high = crown_bounds(model, x, eps, norm=norm, method=method)
        low, high = low.detach(), high.detach()
        outputs = model(ball_points(x, eps, norm, generator))
        assert bool((low <= outputs + 1e-9).all())
        assert bool((outputs <= high + 1e-9).all())
        if norm == "l1":
            continue
        for k in range(3):
            for sign, bound in ((1, high), (-1, -low)):
                attack = PGD(eps, steps=30, norm=norm, restarts=3, generator=generator)
                found = attack(lambda z, k=k, sign=sign: sign * model(z)[:, k], x)
                assert float((sign * model(found)[0, k]).detach()) <= float(bound[0, k]) + 1e-9


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_affine_models_are_exact(norm, generator):
    model = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3)).double()
    x = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    low, high = crown_bounds(model, x, 0.3, norm=norm)
    weight = model[1].weight @ model[0].weight
    dual = torch.linalg.vector_norm(weight, ord={"linf": 1, "l2": 2, "l1": torch.inf}[norm], dim=1)
    assert_close(low, model(x) - 0.3 * dual)
    assert_close(high, model(x) + 0.3 * dual)


class Skips(nn.Module):
    """A chain of affine layers before the first ReLU, and the input once more after it."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.three = nn.Linear(30, 20), nn.Linear(20, 30), nn.Linear(30, 5)

    def forward(self, x):
        return F.relu(self.three(F.relu(self.two(self.one(x))) + x))


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_what_is_affine_in_the_input_is_exact_in_a_round_ball_without_own_passes(norm):
    """A box around the ball would be 10 times too wide for the first model under l2, and 100 times under l1."""
    model = nn.Sequential(nn.Linear(100, 1, bias=False), nn.ReLU()).double()
    nn.init.ones_(model[0].weight)
    x, right = torch.zeros(1, 100, dtype=torch.float64), {"l2": 1.0, "l1": 0.1}[norm]
    for method in ("crown", "crown-ibp"):
        low, high = crown_bounds(model, x, 0.1, norm=norm, method=method)
        assert_close(torch.cat([low, high]), torch.tensor([[0.0], [right]], dtype=torch.float64))


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_a_skip_from_the_input_counts_by_the_ball_and_the_rest_by_its_interval(norm):
    torch.manual_seed(1)
    model, x, eps = Skips().double(), torch.randn(4, 30, dtype=torch.float64), 0.2
    order = {"l2": 2, "l1": torch.inf}[norm]

    def ball(weight, bias):
        centre = x @ weight.T + bias
        reach = eps * torch.linalg.vector_norm(weight, ord=order, dim=1)
        return centre - reach, centre + reach

    one, two, three = model.one, model.two, model.three
    low, high = (end.relu() for end in ball(two.weight @ one.weight, two.weight @ one.bias + two.bias))
    skip = ball(three.weight, three.bias)
    middle, reach = ((low + high) / 2) @ three.weight.T, ((high - low) / 2) @ three.weight.abs().T
    wanted = ((skip[0] + middle - reach).relu(), (skip[1] + middle + reach).relu())
    found = crown_bounds(model, x, eps, norm=norm, method="crown-ibp")
    # The last ReLU's interval; the relaxation may be tighter still, and is for some.
    assert bool((found[0] >= wanted[0] - 1e-9).all())
    assert bool((found[1] <= wanted[1] + 1e-9).all())


def test_a_skip_beside_a_branch_that_is_zero_keeps_its_radius():
    """auto_LiRPA 0.7.1 (commit a050a3d) gives [1, 1] here."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.zero = nn.Linear(1, 1)

        def forward(self, x):
            return F.relu(F.relu(self.zero(x)) + x)

    model = Model()
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    for norm in ("l2", "l1", "linf"):
        for method in ("crown", "crown-ibp"):
            low, high = crown_bounds(model, torch.ones(1, 1), 0.5, norm=norm, method=method)
            assert (low.item(), high.item()) == (0.5, 1.5)


@pytest.mark.parametrize("name", MODELS)
def test_without_a_radius_the_bounds_are_the_outputs(name, generator):
    make, shape = MODELS[name]
    model, x = trained_looking(make), torch.randn(3, *shape, generator=generator, dtype=torch.float64)
    for bounds in (interval_bounds(model, x, 0.0), crown_bounds(model, x, 0.0)):
        for bound in bounds:
            assert_close(bound, model(x))


def test_the_bounds_hold_what_a_grid_finds_and_are_near_it(generator):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 1)).double()
    x, eps = torch.randn(1, 2, generator=generator, dtype=torch.float64), 0.1
    steps = torch.linspace(-eps, eps, 101, dtype=torch.float64)
    values = model(x + torch.cartesian_prod(steps, steps)).detach()
    with torch.no_grad():
        low, high = crown_bounds(model, x, eps)
        wide = interval_bounds(model, x, eps)
    assert float(low) <= float(values.min()) <= float(values.max()) <= float(high)
    assert float(high - low) <= float(wide[1] - wide[0])
    assert float(high - low) <= 1.5 * float(values.max() - values.min())


def test_a_network_whose_units_are_all_stable_is_exact(generator):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).double()
    model[0].bias.data = torch.tensor([9.0, -9, 9, -9, 9, 9], dtype=torch.float64)
    x = torch.randn(2, 4, generator=generator, dtype=torch.float64)
    active = (model[0](x[0]) > 0).double()
    weight = (model[2].weight * active) @ model[0].weight
    low, high = crown_bounds(model, x, 0.2)
    assert_close(high, model(x) + 0.2 * weight.abs().sum(dim=1))
    assert_close(low, model(x) - 0.2 * weight.abs().sum(dim=1))


def test_crown_is_nearer_than_intervals_and_a_larger_ball_is_wider(generator):
    model = trained_looking(mlp)
    x = torch.randn(20, 2, 4, generator=generator, dtype=torch.float64)

    def width(bounds):
        return float((bounds[1] - bounds[0]).detach().mean())

    widths = [
        width(crown_bounds(model, x, 0.1)),
        width(crown_bounds(model, x, 0.1, method="crown-ibp")),
        width(interval_bounds(model, x, 0.1)),
    ]
    assert widths == sorted(widths)
    assert widths[0] < 0.8 * widths[2]
    small, large = interval_bounds(model, x, 0.1), interval_bounds(model, x, 0.2)
    assert bool((large[0] <= small[0]).all() and (small[1] <= large[1]).all())


@pytest.mark.parametrize("slope", ["adaptive", "zero", "same"])
def test_every_lower_slope_is_sound(slope, generator):
    model, x = trained_looking(mlp), torch.randn(1, 2, 4, generator=generator, dtype=torch.float64)
    low, high = crown_bounds(model, x, 0.3, lower_slope=slope)
    outputs = model(ball_points(x, 0.3, "linf", generator))
    assert bool((low <= outputs).all() and (outputs <= high).all())


def test_margins_are_bounded_as_a_whole(generator):
    model, x = trained_looking(mlp), torch.randn(6, 2, 4, generator=generator, dtype=torch.float64)
    target = torch.arange(6) % 3
    spec = margin_spec(target, 3)
    low, _ = crown_bounds(model, x, 0.2, spec=spec)
    each = crown_bounds(model, x, 0.2)
    own = each[0].gather(1, target[:, None])
    others = torch.stack([each[1][i][[j for j in range(3) if j != int(t)]] for i, t in enumerate(target)])
    assert bool((low >= own - others - 1e-9).all())
    assert float((low - (own - others)).detach().mean()) > 0
    for row in range(6):
        points = model(ball_points(x[row : row + 1], 0.2, "linf", generator))
        assert bool((low[row] <= points @ spec[row].T.double() + 1e-9).all())


def test_a_box_and_a_ball_are_one_where_they_are_alike(generator):
    model, x = trained_looking(mlp), torch.randn(3, 2, 4, generator=generator, dtype=torch.float64)
    box = (x - 0.1, x + 0.1)
    for bounds, others in (
        (interval_bounds(model, x, 0.1), interval_bounds(model, x, 9.0, box=box)),
        (crown_bounds(model, x, 0.1), crown_bounds(model, x, 9.0, box=box)),
    ):
        assert_close(bounds, others)


def test_bounds_have_gradients(generator):
    model, x = trained_looking(mlp), torch.randn(3, 2, 4, generator=generator, dtype=torch.float64)
    for bounds in (interval_bounds(model, x, 0.1), crown_bounds(model, x, 0.1, method="crown-ibp")):
        (bounds[1] - bounds[0]).sum().backward()
        assert all(bool(p.grad.isfinite().all()) for p in (model[1].weight, model[5].weight))
        assert float(model[1].weight.grad.abs().sum()) > 0


def test_clean_statistics_are_those_of_the_batch_itself(generator):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2)).double()
    x = torch.randn(20, 4, generator=generator, dtype=torch.float64)
    before = model[1].running_mean.clone()
    low, high = interval_bounds(model, x, 0.0, statistics="clean")
    assert torch.equal(model[1].running_mean, before)
    assert_close(low, model(x))
    assert_close(high, model(x))


def test_verified_accuracy_is_never_above_that_under_attack(generator):
    model = trained_looking(mlp)
    x = torch.randn(200, 2, 4, generator=generator, dtype=torch.float64)
    target = model(x).argmax(dim=1)
    for eps in (0.01, 0.05, 0.2):
        sure = verified(model, x, target, eps)

        def risk(z):
            return F.cross_entropy(model(z), target, reduction="none")

        found = PGD(eps, steps=20, restarts=3, generator=generator)(risk, x)
        right = model(found).argmax(dim=1) == target
        assert bool(right[sure].all())
    assert bool(verified(model, x, target, 0.0).all())
    assert verified(model, x[:0], target[:0], 0.1).shape == (0,)
    with pytest.raises(ValueError, match="target must have shape"):
        verified(model, x, target[:0], 0.1)


class Traced(nn.Module):
    """One layer, and what a function makes of its value and of the input."""

    def __init__(self, then, **options):
        super().__init__()
        self.layer, self.relu, self.then = nn.Linear(4, 4), nn.ReLU(**options), then

    def forward(self, x):
        return self.then(self, self.layer(x), x)


def added_in_place(model, hidden, x):
    before = hidden
    hidden += x
    return before + hidden


def rectified_through_a_view(model, hidden, x):
    view = torch.flatten(hidden, 1)
    F.relu(view, inplace=True)
    return view + hidden


def doubled_by_a_hook():
    layer = nn.Linear(4, 3)
    layer.register_forward_hook(lambda module, x, output: 2 * output)
    return layer


class Scaled(nn.Linear):
    def forward(self, x):
        return F.linear(x, 3 * self.weight)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Traced(lambda m, hidden, x: torch.add(x, hidden, alpha=-5)), "not certified"),
        (Traced(lambda m, hidden, x: m.relu(hidden) + hidden, inplace=True), "in place"),
        (Traced(added_in_place), "in place"),
        (Traced(rectified_through_a_view), "in place"),
        (Scaled(4, 3), "not certified"),
        (doubled_by_a_hook(), "no forward hooks"),
        (nn.Sequential(doubled_by_a_hook()), "no forward hooks, .*'0'"),
    ],
)
def test_what_a_graph_would_not_tell_is_refused(model, message):
    for bounds in (interval_bounds, crown_bounds):
        with pytest.raises(TypeError, match=message):
            bounds(model, torch.ones(2, 4), 0.1)


def test_values_that_nobody_else_reads_may_be_written_over(generator):
    torch.manual_seed(0)
    x = torch.randn(3, 4, generator=generator)
    for model in (
        Traced(lambda m, hidden, x: m.relu(hidden) + x, inplace=True),
        Traced(lambda m, hidden, x: F.relu(hidden, inplace=True).flatten(start_dim=1)),
        Traced(lambda m, hidden, x: torch.flatten(hidden, start_dim=1)),
    ):
        for bound in (*interval_bounds(model, x, 0.0), *crown_bounds(model, x, 0.0)):
            assert_close(bound, model(x.clone()))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Linear(4, 4), nn.GELU()), r"'1' \(GELU\)"),
        (nn.Sequential(nn.Linear(4, 4), nn.Softmax(1)), "not certified"),
        (nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), r"call model.eval\(\)"),
        (nn.Sequential(nn.Linear(4, 4), nn.Dropout()), "call model.eval"),
        (nn.LSTM(4, 4), "torch.fx|not certified|one tensor"),
        (3, "model must be a torch module"),
    ],
)
def test_layers_that_are_not_known_are_named(model, message):
    for bounds in (interval_bounds, crown_bounds):
        with pytest.raises((TypeError, ValueError), match=message):
            bounds(model, torch.ones(2, 4), 0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": -1.0}, "eps"),
        ({"x": torch.ones(3)}, "x must have shape"),
        ({"x": torch.ones(2, 4).long()}, "x must be floating-point"),
        ({"norm": "l0"}, "norm"),
        ({"method": "alpha"}, "method"),
        ({"lower_slope": "free"}, "lower_slope"),
        ({"box": 3}, "box must be a pair"),
        ({"box": (torch.ones(2, 3), torch.ones(2, 3))}, "box must have x's shape"),
        ({"box": (torch.ones(2, 4), torch.zeros(2, 4))}, "low <= high"),
        ({"spec": torch.ones(2, 3)}, "spec must have shape"),
    ],
)
def test_bad_arguments_are_named(options, message):
    given = {"model": nn.Linear(4, 3), "x": torch.ones(2, 4), "eps": 0.1} | options
    with pytest.raises((TypeError, ValueError), match=message):
        crown_bounds(given.pop("model"), given.pop("x"), given.pop("eps"), **given)


def test_bad_margins_are_named():
    with pytest.raises(ValueError, match="num_classes"):
        margin_spec(torch.tensor([0]), 1)
    with pytest.raises(ValueError, match="num_classes"):
        margin_spec(torch.tensor([0]), 2**31)
    with pytest.raises(ValueError, match="target must be in"):
        margin_spec(torch.tensor([3]), 3)
    with pytest.raises(TypeError, match="target"):
        margin_spec(torch.tensor([0.0]), 3)


def test_a_relu_that_writes_nothing_over_may_be_read_beside_what_it_reads():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(2, 2)

        def forward(self, x):
            hidden = self.first(x)
            return F.relu(hidden) + hidden

    class Over(Model):
        def forward(self, x):
            hidden = self.first(x)
            return F.relu(hidden, True) + hidden

    x = torch.zeros(1, 2)
    low, high = interval_bounds(Model(), x, 0.1)
    assert bool((low <= high).all())
    with pytest.raises(TypeError, match="writes over 'first' in place"):
        interval_bounds(Over(), x, 0.1)
