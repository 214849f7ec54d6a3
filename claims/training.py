"""The plain training that the claims share: a split, a small network, a loop of mini-batches.

Everything is seeded by argument and leaves torch's global generator as it was, so a measurement repeats exactly.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float, Int
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.optim import Optimizer

__all__ = ["Split", "accuracy", "digits", "fit", "flip_labels", "images", "mlp", "outputs", "split"]


@dataclass(frozen=True)
class Split:
    """Training and test rows; the features are float32, standardised by the training rows."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor


def split(features: np.ndarray, target: np.ndarray, *, seed: int, test_size: float = 0.5) -> Split:
    """A seeded split, stratified when the target is integer; a real target is left in its own units, as float32."""
    classes = np.issubdtype(target.dtype, np.integer)
    x, x_test, y, y_test = train_test_split(
        features, target, test_size=test_size, random_state=seed, stratify=target if classes else None
    )
    mean, std = x.mean(axis=0), x.std(axis=0)
    std = np.where(std > 0, std, 1)

    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(((array - mean) / std).astype(np.float32))

    kind = np.int64 if classes else np.float32
    return Split(tensor(x), torch.from_numpy(y.astype(kind)), tensor(x_test), torch.from_numpy(y_test.astype(kind)))


def digits(*, seed: int) -> Split:
    """scikit-learn's 1,797 handwritten digits, 64 features, 10 classes; half of them are the test."""
    features, target = load_digits(return_X_y=True)
    return split(features, target, seed=seed)


def images(*, seed: int) -> Split:
    """The same digits with pixels in [0, 1], as attacks and shifts need them."""
    features, target = load_digits(return_X_y=True)
    x, x_test, y, y_test = train_test_split(
        features.astype(np.float32) / 16, target, test_size=0.5, random_state=seed, stratify=target
    )
    return Split(*(torch.from_numpy(array) for array in (x, y, x_test, y_test)))


def flip_labels(target: Int[Tensor, " n"], rate: float, num_classes: int, *, seed: int) -> Int[Tensor, " n"]:
    """Symmetric label noise: with probability ``rate`` a label becomes another class, each as likely."""
    generator = torch.Generator().manual_seed(seed)
    flipped = torch.rand(target.shape, generator=generator) < rate
    shift = torch.randint(1, num_classes, target.shape, generator=generator)
    return torch.where(flipped, (target + shift) % num_classes, target)


def mlp(*sizes: int, seed: int) -> nn.Sequential:
    """Linear layers of these sizes with ReLU between; one output comes as ``(n,)``.

    >>> mlp(3, 8, 1, seed=0)(torch.zeros(5, 3)).shape
    torch.Size([5])
    """
    layers: list[nn.Module] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for width, following in pairwise(sizes):
            layers += [nn.Linear(width, following), nn.ReLU()]
    layers[-1:] = [nn.Flatten(0)] if sizes[-1] == 1 else []
    return nn.Sequential(*layers)


def fit(
    model: nn.Module,
    loss: Callable[..., Tensor],
    x: Float[Tensor, "n features"],
    y: Tensor,
    *,
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
    epochs: int,
    batch_size: int = 64,
    clip: float | None = None,
    seed: int = 0,
) -> None:
    """Train in place.

    Args:
        model: Called on a batch of ``x``.
        loss: Called as ``loss(output, target, index=rows)``, as every lossworks loss is; wrap others.
        x: The features.
        y: The targets, as the loss wants them (a binary loss wants floats or 0/1 integers in the output's shape).
        optimizer: Given the parameters, e.g. ``partial(torch.optim.Adam, lr=3e-3)``.
        epochs: Passes over the rows; the rows are shuffled in each, and the last batch may be smaller.
        batch_size: Rows a step.
        clip: The largest gradient norm, if any.
        seed: Of the shuffling.
    """
    generator = torch.Generator().manual_seed(seed)
    step = optimizer(model.parameters())
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator).split(batch_size):
            step.zero_grad()
            loss(model(x[rows]), y[rows], index=rows).backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            step.step()


@torch.no_grad()
def outputs(model: nn.Module, x: Float[Tensor, "n features"]) -> Tensor:
    """What the model says, in evaluation mode and without gradients."""
    model.eval()
    return model(x)


def accuracy(output: Tensor, target: Int[Tensor, " n"]) -> float:
    """The share of rows that are right: by the largest of ``(n, C)`` scores, or the sign of ``(n,)`` scores."""
    answer = output.argmax(dim=1) if output.ndim == 2 else (output > 0).long()
    return float((answer == target).double().mean())
