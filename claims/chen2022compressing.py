"""Compressed features: with half of the labels wrong, features cut at random prefixes make a better classifier."""

from functools import partial
from statistics import mean

import torch
from torch import Tensor, nn

from claims.record import Measurement
from claims.training import accuracy, digits, fit, flip_labels, mlp, outputs
from lossworks.layers import NestedDropout, best_prefix_length, prefix_accuracies
from lossworks.losses import CrossEntropyLoss
from lossworks.select import CoTeachingSelector, co_teaching_step

PAPER = "chen2022compressing"
RULE = (
    "Half of digits for training with 50% symmetric label noise, a fifth of it held out with its noisy labels, "
    "64-128-64-10, Adam, 60 epochs: test accuracy with nested dropout (sigma=10) on the last 64 features, at the "
    "prefix that is best on the held-out rows, is above plain training's by more than 0.08; means of 4 seeds."
)

SEEDS, NOISE, SIGMA, EPOCHS, TUNED, BATCH = 4, 0.5, 10.0, 60, 20, 64


def measure() -> Measurement:
    runs = [_scores(seed) for seed in range(SEEDS)]
    means = {name: mean(run[name] for run in runs) for name in runs[0]}
    return Measurement(
        shown=means["accuracy, nested dropout, best prefix"] > means["accuracy, plain"] + 0.08,
        measured="; ".join(f"{name} {value:.3f}" for name, value in means.items() if name.startswith("accuracy"))
        + f"; best prefix {means['best prefix']:.0f} of 64",
        numbers={name: [run[name] for run in runs] for name in runs[0]},
        seeds=SEEDS,
    )


def _scores(seed: int) -> dict[str, float]:
    data = digits(seed=seed)
    noisy = flip_labels(data.y, NOISE, 10, seed=seed)
    own = len(noisy) * 4 // 5
    x, y, x_held, y_held = data.x[:own], noisy[:own], data.x[own:], noisy[own:]

    def test(model: nn.Module) -> float:
        return accuracy(outputs(model, data.x_test), data.y_test)

    plain, dropped = (_network(layer, seed) for layer in (nn.Identity(), nn.Dropout(0.5)))
    pair = [_network(_nested(seed), start) for start in (seed, seed + 100)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # of the ordinary dropout
        for model in (plain, dropped, *pair):
            adam = partial(torch.optim.Adam, lr=3e-3)
            fit(model, CrossEntropyLoss(), x, y, optimizer=adam, epochs=EPOCHS, seed=seed)
    scores = {
        "accuracy, plain": test(plain),
        "accuracy, dropout": test(dropped),
        "accuracy, nested dropout, all features": test(pair[0]),
        "best prefix": float(_cut(pair[0], x_held, y_held)),
        "accuracy, nested dropout, best prefix": test(pair[0]),
    }
    _cut(pair[1], x_held, y_held)
    _tune(pair, x, y, seed)
    for model in pair:
        _cut(model, x_held, y_held)
    together = sum(outputs(model, data.x_test) for model in pair)
    assert isinstance(together, Tensor)
    return scores | {"accuracy, nested dropout and co-teaching": accuracy(together, data.y_test)}


def _nested(seed: int) -> NestedDropout:
    """Of one seed in both networks, so that they are cut alike."""
    return NestedDropout(64, SIGMA, generator=torch.Generator().manual_seed(seed))


def _network(cut: nn.Module, seed: int) -> nn.Sequential:
    """Features, their cut, and a classifier without bias."""
    *features, last = mlp(64, 128, 64, 10, seed=seed)
    last.register_parameter("bias", None)
    return nn.Sequential(*features, cut, last)


def _cut(model: nn.Sequential, x: Tensor, y: Tensor) -> int:
    """Keep the prefix that is best on these rows in evaluation mode, and say how long it is."""
    layer, classifier = model[-2], model[-1]
    assert isinstance(layer, NestedDropout)
    assert isinstance(classifier, nn.Linear)
    layer.keep_prefix(layer.num_features)
    best = best_prefix_length(prefix_accuracies(outputs(model[:-1], x), classifier.weight, y))
    layer.keep_prefix(best)
    return best


def _tune(pair: list[nn.Sequential], x: Tensor, y: Tensor, seed: int) -> None:
    """Go on with both by co-teaching, which leaves out as many rows as there are wrong ones."""
    selector, draw = CoTeachingSelector(NOISE), torch.Generator().manual_seed(seed)
    optimizers = [torch.optim.Adam(model.parameters(), lr=1e-3) for model in pair]
    for model in pair:
        model.train()
    for epoch in range(TUNED):
        for rows in torch.randperm(len(x), generator=draw).split(BATCH):
            co_teaching_step(pair, optimizers, CrossEntropyLoss(), selector, x[rows], y[rows], epoch)
