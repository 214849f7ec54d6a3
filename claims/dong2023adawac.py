"""AdaWACObjective's weights: images with labels in them go to supervision, empty ones to consistency."""

from statistics import mean

import torch

from claims.blobs import Segmenter, blobs, overlap
from claims.record import Measurement
from lossworks.objectives import AdaWACObjective
from lossworks.perturb import GaussianNoise

PAPER = "dong2023adawac"
RULE = (
    "Images of 12 x 12 pixels, 60 % of them without foreground: after training, the mean weight on supervision of "
    "images with foreground is above that of empty ones by more than 0.1; means of 4 seeds. The intersection over "
    "union on new images, beside that of equal weights, is recorded and does not decide."
)

SEEDS, IMAGES, EMPTY, SIZE, EPOCHS, BATCH = 4, 200, 0.6, 12, 20, 20


def measure() -> Measurement:
    runs = [_scores(seed) for seed in range(SEEDS)]
    means = {name: mean(run[name] for run in runs) for name in runs[0]}
    return Measurement(
        shown=means["weight, foreground"] > means["weight, empty"] + 0.1,
        measured="weight on supervision {:.3f} with foreground, {:.3f} without; intersection over union {:.3f}, {:.3f} "
        "with equal weights".format(
            *(
                means[name]
                for name in ("weight, foreground", "weight, empty", "overlap, AdaWACObjective", "overlap, equal")
            )
        ),
        numbers={name: [run[name] for run in runs] for name in runs[0]},
        seeds=SEEDS,
    )


def _scores(seed: int) -> dict[str, float]:
    draw = torch.Generator().manual_seed(seed)
    x, y = blobs(2 * IMAGES, size=SIZE, classes=2, empty=EMPTY, noise=0.5, generator=draw)
    scores = {}
    for name, rate in (("AdaWACObjective", 1.0), ("equal", 0.0)):
        model, order = Segmenter(2, seed=seed), torch.Generator().manual_seed(seed)
        augment = GaussianNoise(0.3, generator=torch.Generator().manual_seed(seed))
        objective = AdaWACObjective(IMAGES, lr_w=rate, augment=augment)
        sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for _ in range(EPOCHS):
            for rows in torch.randperm(IMAGES, generator=order).split(BATCH):
                sgd.zero_grad()
                objective(model, x[rows], y[rows], index=rows).backward()
                sgd.step()
        scores[f"overlap, {name}"] = overlap(model, x[IMAGES:], y[IMAGES:], 2)
        if rate:
            dense = y[:IMAGES].flatten(1).any(dim=1)
            weights = objective.loss.logit.sigmoid()
            scores["weight, foreground"], scores["weight, empty"] = (float(weights[r].mean()) for r in (dense, ~dense))
    return scores
