"""Rank aggregation finds the order of systems where averaging their scores follows the task with the widest scale."""

import numpy as np
from scipy.stats import kendalltau

from claims.record import Measurement
from lossworks.verdict import borda_ranking, kemeny_consensus

PAPER = "colombo2022best"
RULE = (
    "10 systems on 12 tasks, Gumbel noise of 0.6 on their true quality, two tasks on a scale 50 times as wide and "
    "one exponentiated; over 200 draws Borda's mean Kendall tau to the true order is above the mean score's by more "
    "than 0.1"
)
SYSTEMS, TASKS, DRAWS, NOISE = 10, 12, 200, 0.6


def measure() -> Measurement:
    taus = np.array([_draw(np.random.default_rng(seed)) for seed in range(DRAWS)])
    borda, mean, scaled, kemeny = (float(tau) for tau in taus.mean(axis=0))
    return Measurement(
        shown=borda > mean + 0.1,
        measured=f"Kendall tau to the true order: Borda {borda:.3f}, Kemeny {kemeny:.3f}, mean score {mean:.3f}, "
        f"mean of min-max scaled scores {scaled:.3f}",
        numbers={"borda": borda, "mean": mean, "min_max_mean": scaled, "kemeny": kemeny},
        seeds=DRAWS,
    )


def _draw(rng: np.random.Generator) -> tuple[float, ...]:
    """The agreement with the truth of Borda, the mean score, the mean of scaled scores, and Kemeny."""
    quality = rng.normal(size=SYSTEMS)
    scores = quality[:, None] + NOISE * rng.gumbel(size=(SYSTEMS, TASKS))
    scores[:, :2] = 50 * (scores[:, :2] + rng.normal(size=2))
    scores[:, 2] = np.exp(scores[:, 2])
    low, high = scores.min(axis=0), scores.max(axis=0)
    scaled = ((scores - low) / (high - low)).mean(axis=1)
    place = np.empty(SYSTEMS)
    place[kemeny_consensus(scores)] = np.arange(SYSTEMS, 0, -1)
    ratings = (borda_ranking(scores)[1], scores.mean(axis=1), scaled, place)
    return tuple(float(kendalltau(rating, quality).statistic) for rating in ratings)
