"""WAD's weights: unlabelled rows of known classes count more than rows of unknown ones."""

from statistics import mean

import torch
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA

from claims.record import Measurement
from claims.training import accuracy, mlp, outputs
from lossworks.distill import WeightAwareDistillationLoss
from lossworks.select import WADWeights

PAPER = "du2023wad"
RULE = (
    "Digits 0 to 4 with 4 labels each, and unlabelled 120 rows of these and 480 of digits 5 to 9; 20 principal "
    "components as features: the mean weight of rows of known classes is more than 2 times that of the others; means "
    "of 5 seeds. Accuracy, beside that of labelled rows alone and of equal weights, is recorded and does not decide."
)

SEEDS, CLASSES, LABELS, KNOWN, UNKNOWN, COMPONENTS, STEPS = 5, 5, 4, 120, 480, 20, 150


def measure() -> Measurement:
    runs = [_scores(seed) for seed in range(SEEDS)]
    means = {name: mean(run[name] for run in runs) for name in runs[0]}
    return Measurement(
        shown=means["weight, known"] > 2 * means["weight, unknown"],
        measured="mean weight {:.3f} of known classes, {:.3f} of unknown; accuracy {:.3f} by these weights, {:.3f} by "
        "equal ones, {:.3f} labelled rows alone".format(
            means["weight, known"],
            means["weight, unknown"],
            *(means[f"accuracy, {way}"] for way in ("WAD", "equal", "labelled alone")),
        ),
        numbers={name: [run[name] for run in runs] for name in runs[0]},
        seeds=SEEDS,
    )


def _scores(seed: int) -> dict[str, float]:
    draw = torch.Generator().manual_seed(seed)
    features, target = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
    x, order = features.float() / 16, torch.randperm(len(features), generator=draw)
    by_class = [order[target[order] == k] for k in range(CLASSES)]
    labelled = torch.cat([rows[:LABELS] for rows in by_class])
    rest = torch.cat([rows[LABELS:] for rows in by_class])
    rest = rest[torch.randperm(len(rest), generator=draw)]
    unlabelled = torch.cat([rest[:KNOWN], order[target[order] >= CLASSES][:UNKNOWN]])
    test = rest[KNOWN:]
    pca = PCA(COMPONENTS, random_state=seed).fit(x[torch.cat([labelled, unlabelled])].numpy())
    teacher = torch.from_numpy(pca.transform(x.numpy())).float()
    weights, pseudo, _ = WADWeights()(teacher[unlabelled], teacher[labelled], target[labelled], CLASSES)
    scores = {
        "weight, known": float(weights[:KNOWN].mean()),
        "weight, unknown": float(weights[KNOWN:].mean()),
        "pseudo-labels right, known": float((pseudo == target[unlabelled])[:KNOWN].double().mean()),
    }
    given = {"labelled alone": torch.zeros_like(weights), "equal": torch.ones_like(weights), "WAD": weights}
    for way, own in given.items():
        model, loss = mlp(64, 64, CLASSES, seed=seed), WeightAwareDistillationLoss()
        adam = torch.optim.Adam(model.parameters(), lr=3e-3)
        for _ in range(STEPS):
            adam.zero_grad()
            loss(model(x[labelled]), target[labelled], model(x[unlabelled]), pseudo, own).backward()
            adam.step()
        scores[f"accuracy, {way}"] = accuracy(outputs(model, x[test]), target[test])
    return scores
