"""The paradox of detection: a plane finds more of the noisy rows, and what it leaves makes a worse classifier."""

from collections.abc import Callable
from functools import partial
from statistics import mean

import torch
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn import functional as F

from claims.record import Measurement
from claims.training import accuracy, fit, flip_labels, mlp, outputs
from lossworks.losses import CrossEntropyLoss
from lossworks.select import LinearSeparationSelector, SmallLossGMMSelector

PAPER = "albert2024accurate"
RULE = (
    "Digits 0 to 7, 10 % of their labels flipped, with 300 rows of 8s, 9s and uniform noise under random labels among "
    "them: the area under the ROC curve of finding these 300 is above that of small losses by more than 0.02 for the "
    "plane on 32 principal components, and accuracy after dropping what is found is lower for the plane than for small "
    "losses; means of 4 seeds."
)

SEEDS, CLASSES, OUTSIDE, FLIPPED, WARM_UP, EPOCHS = 4, 8, 300, 0.1, 8, 30


def measure() -> Measurement:
    runs = [_scores(seed) for seed in range(SEEDS)]
    means = {name: mean(run[name] for run in runs) for name in runs[0]}
    better = means["area under ROC, plane"] > means["area under ROC, losses"] + 0.02
    return Measurement(
        shown=better and means["accuracy, plane"] < means["accuracy, losses"],
        measured="area under ROC {:.3f} plane, {:.3f} small losses; accuracy {:.3f} plane, {:.3f} small losses, "
        "{:.3f} all rows".format(
            *(means[f"area under ROC, {rule}"] for rule in ("plane", "losses")),
            *(means[f"accuracy, {rule}"] for rule in ("plane", "losses", "all rows")),
        ),
        numbers={name: [run[name] for run in runs] for name in runs[0]},
        seeds=SEEDS,
    )


def _scores(seed: int) -> dict[str, float]:
    x, y, outside, x_test, y_test = _data(seed)
    warm = mlp(64, 64, CLASSES, seed=seed)
    _train(warm, x, y, WARM_UP, seed)
    losses = F.cross_entropy(outputs(warm, x), y, reduction="none")
    features = torch.from_numpy(PCA(32, random_state=seed).fit_transform(x.numpy())).float()
    by_loss = SmallLossGMMSelector()
    by_plane = LinearSeparationSelector()
    noisy, probability = by_plane(features, by_loss(losses))
    drops = {"losses": by_loss(losses), "plane": noisy, "all rows": torch.zeros_like(noisy)}
    scores = {
        "area under ROC, losses": float(roc_auc_score(outside, losses)),
        "area under ROC, plane": float(roc_auc_score(outside, probability)),
    }
    for name, drop in drops.items():
        model = mlp(64, 64, CLASSES, seed=seed + 100)
        _train(model, x[~drop], y[~drop], EPOCHS, seed)
        scores[f"accuracy, {name}"] = accuracy(outputs(model, x_test), y_test)
        scores[f"rows dropped, {name}"] = float(drop.sum())
    return scores


def _train(model: torch.nn.Module, x: Tensor, y: Tensor, epochs: int, seed: int) -> None:
    adam: Callable[..., torch.optim.Optimizer] = partial(torch.optim.Adam, lr=3e-3)
    fit(model, CrossEntropyLoss(), x, y, optimizer=adam, epochs=epochs, seed=seed)


def _data(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Training rows with wrong and foreign ones among them, which are foreign, and clean test rows."""
    draw = torch.Generator().manual_seed(seed)
    features, target = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
    x, order = features.float() / 16, torch.randperm(len(features), generator=draw)
    known, foreign = (order[keep[order]] for keep in (target < CLASSES, target >= CLASSES))
    train, test = known.split([len(known) // 2, len(known) - len(known) // 2])
    alien = torch.cat([x[foreign[: OUTSIDE // 2]], torch.rand(OUTSIDE // 2, 64, generator=draw)])
    labels = torch.randint(CLASSES, (OUTSIDE,), generator=draw)
    rows = torch.cat([x[train], alien])
    y = torch.cat([flip_labels(target[train], FLIPPED, CLASSES, seed=seed), labels])
    return rows, y, torch.arange(len(rows)) >= len(train), x[test], target[test]
