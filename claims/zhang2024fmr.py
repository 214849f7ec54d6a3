"""FMR: beside an oracle, a robustly trained network scores higher than a plainly trained one."""

from statistics import mean

import torch
from sklearn.svm import SVC
from torch import Tensor

from claims.madry2018pgd import train
from claims.record import Measurement
from claims.training import images, mlp
from lossworks.diagnose import FoundationModelRobustness, foundation_model_robustness
from lossworks.losses import CrossEntropyLoss
from lossworks.objective import Objective
from lossworks.perturb import PGD

PAPER = "zhang2024fmr"
RULE = (
    "On digits scaled to [0, 1] with a support vector machine of the training rows as the oracle (steps of 0.02, at "
    "most 30), for each of 2 seeds: the score of a network trained on PGD's inputs (linf 0.1) is more than 0.1 above "
    "that of one trained on the clean ones, while their accuracies on the inputs as they are differ by less than 0.05."
)

SEEDS, RADIUS, STEP, BUDGET = 2, 0.1, 0.02, 30


def measure() -> Measurement:
    found = {name: [_score(name == "PGD", seed) for seed in range(SEEDS)] for name in ("clean", "PGD")}
    pairs = list(zip(found["clean"], found["PGD"], strict=True))
    return Measurement(
        shown=all(pgd.fmr > clean.fmr + 0.1 and abs(pgd.standard - clean.standard) < 0.05 for clean, pgd in pairs),
        measured="FMR = PA / SA: "
        + ", ".join(
            f"{mean(run.fmr for run in runs):.3f} = {mean(run.perturbed for run in runs):.3f} / "
            f"{mean(run.standard for run in runs):.3f} trained on {name} inputs"
            for name, runs in found.items()
        ),
        numbers={
            f"{part}, {name}": [float(getattr(run, part)) for run in runs]
            for name, runs in found.items()
            for part in FoundationModelRobustness._fields
        },
        seeds=SEEDS,
    )


def _score(attacked: bool, seed: int) -> FoundationModelRobustness:
    data, draw = images(seed=seed), torch.Generator().manual_seed(seed)
    machine = SVC(C=10.0).fit(data.x.numpy(), data.y.numpy())

    def oracle(x: Tensor) -> Tensor:
        return torch.from_numpy(machine.predict(x.numpy()))

    model = mlp(64, 64, 64, 10, seed=seed)
    attack = PGD(RADIUS, steps=7, bounds=(0.0, 1.0), generator=draw) if attacked else None
    train(model, Objective(CrossEntropyLoss(), perturb=attack), data.x, data.y, draw)
    return foundation_model_robustness(
        model, oracle, data.x_test, data.y_test, step=STEP, budget=BUDGET, bounds=(0.0, 1.0)
    )
