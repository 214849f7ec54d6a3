"""A mixed classifier: about as accurate as the standard network, and far more robust."""

from statistics import mean

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from claims.madry2018pgd import train
from claims.record import Measurement
from claims.training import accuracy, images, mlp, outputs
from lossworks.certify import MixedClassifier
from lossworks.losses import CrossEntropyLoss
from lossworks.objective import Objective
from lossworks.perturb import PGD

PAPER = "bai2024adaptive"
RULE = (
    "Digits scaled to [0, 1], a standard network and one trained on PGD at linf 0.12, attacks of that radius with 20 "
    "steps: their mixture with alpha 0.7 has at least the clean accuracy of the robust network, and is under attack at "
    "least 0.25 more accurate than the standard one; means of 3 seeds. A row counts as right under attack if it "
    "withstands the attack on the mixture and those on either network."
)

SEEDS, RADIUS = 3, 0.12
SHARES = (0.5, 0.7, 0.9)
FIXED = "alpha 0.7"


def measure() -> Measurement:
    runs = [_scores(seed) for seed in range(SEEDS)]
    clean, robust = ({name: [run[name][side] for run in runs] for name in runs[0]} for side in (0, 1))
    return Measurement(
        shown=mean(clean[FIXED]) >= mean(clean["robust"]) and mean(robust[FIXED]) >= mean(robust["standard"]) + 0.25,
        measured="accuracy clean / under attack: "
        + ", ".join(f"{mean(clean[name]):.3f} / {mean(robust[name]):.3f} {name}" for name in clean),
        numbers={
            **{f"clean accuracy, {name}": values for name, values in clean.items()},
            **{f"accuracy under attack, {name}": values for name, values in robust.items()},
        },
        seeds=SEEDS,
    )


def _scores(seed: int) -> dict[str, tuple[float, float]]:
    """Clean accuracy and that under attack, of both networks and of their mixtures."""
    data, draw = images(seed=seed), torch.Generator().manual_seed(seed)
    models = {}
    for name in ("standard", "robust"):
        attack = PGD(RADIUS, steps=7, bounds=(0.0, 1.0), generator=draw) if name == "robust" else None
        models[name] = mlp(64, 64, 64, 10, seed=seed)
        train(models[name], Objective(CrossEntropyLoss(), perturb=attack), data.x, data.y, draw)
        models[name].requires_grad_(False)

    def attacked(model: nn.Module) -> Tensor:
        worst = PGD(RADIUS, steps=20, bounds=(0.0, 1.0), generator=draw)
        return worst(lambda x: cross_entropy(model(x), data.y_test, reduction="none"), data.x_test)

    found = {name: attacked(model) for name, model in models.items()}
    scores = {
        name: (accuracy(outputs(model, data.x_test), data.y_test), accuracy(outputs(model, found[name]), data.y_test))
        for name, model in models.items()
    }
    for share in SHARES:
        mixed = MixedClassifier(models["standard"], models["robust"], share).eval()
        tried = [outputs(mixed, x).argmax(dim=1) == data.y_test for x in (attacked(mixed), *found.values())]
        right = torch.stack(tried).all(dim=0)
        scores[f"alpha {share}"] = (accuracy(outputs(mixed, data.x_test), data.y_test), float(right.double().mean()))
    return scores
