"""Errors under attack follow a power law in its size, and a price on the prediction's entropy makes them fewer."""

from functools import partial
from statistics import mean

import torch

from claims.record import Measurement
from claims.training import accuracy, fit, images, mlp, outputs
from lossworks.diagnose import adversarial_error_curve, fit_power_law
from lossworks.losses import PredictionEntropyLoss
from lossworks.perturb import FGSM

PAPER = "cubuk2017intriguing"
RULE = (
    "On digits scaled to [0, 1], the error under FGSM at 8 sizes spaced evenly in logarithm over [0.005, 0.13]: the "
    "power law fitted to it has R² above 0.9 for each of 4 seeds, and at size 0.06 the mean error with lam = 2 is "
    "below that with lam = 0."
)

SEEDS, EPOCHS, SIZE = 4, 30, 0.06
LAMS = (0.0, 0.5, 1.0, 2.0)
SIZES = torch.logspace(torch.tensor(0.005).log10().item(), torch.tensor(0.13).log10().item(), 8, dtype=torch.float64)


def measure() -> Measurement:
    found = {lam: [_scores(lam, seed) for seed in range(SEEDS)] for lam in LAMS}
    laws = [fit_power_law(SIZES, curve[:-1]) for curve, _ in found[0.0]]
    robust = {lam: [float(curve[-1]) for curve, _ in runs] for lam, runs in found.items()}
    clean = {lam: [error for _, error in runs] for lam, runs in found.items()}
    return Measurement(
        shown=min(law.r2 for law in laws) > 0.9 and mean(robust[2.0]) < mean(robust[0.0]),
        measured=f"R² at least {min(law.r2 for law in laws):.3f}, exponent {mean(law.exponent for law in laws):.2f}; "
        "error under attack (clean) "
        + ", ".join(f"{mean(robust[lam]):.3f} ({mean(clean[lam]):.3f}) with lam = {lam:g}" for lam in LAMS),
        numbers={
            "R²": [law.r2 for law in laws],
            "exponent": [law.exponent for law in laws],
            **{f"error at {SIZE}, lam = {lam:g}": values for lam, values in robust.items()},
            **{f"clean error, lam = {lam:g}": values for lam, values in clean.items()},
        },
        seeds=SEEDS,
    )


def _scores(lam: float, seed: int) -> tuple[torch.Tensor, float]:
    """The errors at all sizes and at the one that is compared, and the clean error, on test images."""
    data, model = images(seed=seed), mlp(64, 64, 10, seed=seed)
    adam = partial(torch.optim.Adam, lr=3e-3)
    fit(model, PredictionEntropyLoss(lam), data.x, data.y, optimizer=adam, epochs=EPOCHS, seed=seed)
    attack = partial(FGSM, bounds=(0.0, 1.0))
    curve = adversarial_error_curve(model, data.x_test, data.y_test, [*SIZES.tolist(), SIZE], attack)
    return curve, 1 - accuracy(outputs(model, data.x_test), data.y_test)
