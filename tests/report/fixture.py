"""Reports as a comparison would fill them: ten folds, nine objectives and boosting, seven classes, long names."""

import math
import random
from typing import Any

from lossworks.report import ReportData
from lossworks.report.panels import Cloud, Dot, Intervals, Key, Line, Lines, Panel, Table

REFERENCE = "CrossEntropyLoss"
OUTSIDE = "HistGradientBoosting"
OBJECTIVES = {
    "LogitAdjustedLoss": ("tau=1", 0.452, "better"),
    "BalancedSoftmaxLoss": ("", 0.447, "better"),
    "CrossEntropyLoss + ClassBalanced": ("beta=0.999", 0.438, "better"),
    OUTSIDE: ("", 0.431, "unclear"),
    "LDRLoss": ("lam=1", 0.421, "unclear"),
    REFERENCE: ("label_smoothing=0", 0.404, "reference"),
    "FocalLoss": ("gamma=2", 0.402, "equal"),
    "GeneralizedCrossEntropyLoss": ("q=0.7", 0.396, "unclear"),
    "AsymmetricGeneralizedCrossEntropyLoss": ("a=2.5, q=0.5", 0.371, "worse"),
    "MeanAbsoluteErrorLoss": ("", 0.283, "worse"),
}
CLASSES = (
    "Strong Democrat", "Weak Democrat", "Independent-Democrat", "Independent-Independent",
    "Independent-Republican", "Weak Republican", "Strong Republican (incl. leaners of the earlier waves)",
)  # fmt: skip
COUNTS = (200, 180, 108, 37, 94, 150, 175)
GROUPS = ("North", "South and the islands", "Abroad (by post)")
METRICS = {"balanced_accuracy": True, "accuracy": True, "macro_f1": True, "log_loss": False, "ece": False}
FOLDS = [(fold, repeat) for repeat in (1, 2) for fold in (1, 2, 3, 4, 5)]


def ranking_row(rank: int, objective: str, metric: str, mean: float, base: float, verdict: str) -> dict[str, Any]:
    difference = None if objective == REFERENCE else mean - base
    better = {"better": 0.94, "equal": 0.08, "worse": 0.004}.get(verdict, 0.41)
    equal = {"better": 0.052, "equal": 0.86, "worse": 0.016}.get(verdict, 0.37)
    known = difference is not None
    return {
        "objective": objective,
        "setting": OBJECTIVES.get(objective, ("", 0, ""))[0],
        metric: mean,
        "low": mean - 0.027 - 0.001 * rank,
        "high": mean + 0.027 + 0.001 * rank,
        "difference": difference,
        "difference_low": difference - 0.021 if known else None,
        "difference_high": difference + 0.021 if known else None,
        "p": {"better": 0.0006, "worse": 0.002}.get(verdict, 0.31) if known else None,
        "p_adjusted": {"better": 0.0048, "worse": 0.011}.get(verdict, 0.87) if known else None,
        "p_better": better if known else None,
        "p_equal": equal if known else None,
        "p_worse": 1 - better - equal if known else None,
        "rank": rank,
        "verdict": verdict,
    }


def group_score(rng: random.Random, row: dict[str, Any], index: int) -> dict[str, float | None]:
    mean = row["accuracy"] - 0.1 * index + rng.gauss(0, 0.01)
    change = None if row["difference"] is None else row["difference"] * (1 + index)
    half = 0.02 + 0.01 * index
    return {
        "mean": mean,
        "low": mean - half,
        "high": mean + half,
        "difference": change,
        "difference_low": None if change is None else change - half,
        "difference_high": None if change is None else change + half,
    }


def dots(rng: random.Random, slope: float) -> list[Dot]:
    middles = [(index + 0.5) / 15 for index in range(2, 15)]
    return [
        Dot(
            middle,
            min(1.0, max(0.0, 0.3 + (middle - 0.3) * slope + rng.gauss(0, 0.02))),
            int(300 * math.exp(-((middle - 0.5) ** 2) / 0.05)),
            f"confidence {middle:.2f}",
        )
        for middle in middles
    ]


def recall(rng: random.Random, mean: float, gain: float, index: int) -> float:
    extra = 2 * gain if index in (3, 4) else 0
    return min(1.0, max(0.0, mean + 0.28 * math.cos(index) + extra + rng.gauss(0, 0.03)))


def curve(rng: random.Random, end: float) -> list[tuple[int, float]]:
    length = rng.randint(12, 30)
    return [
        (50 * step, end - 0.25 * math.exp(-step / 4) - 0.0008 * step + rng.gauss(0, 0.006)) for step in range(length)
    ]


def class_panels(rng: random.Random, ranking: list[dict[str, Any]]) -> list[Panel]:
    base = OBJECTIVES[REFERENCE][1]
    return [
        Table(
            name="recall",
            title="Recall of each class",
            lede=["Of a hundred rows, how many were found: ", Key("more found", "up"), "."],
            heading="Class",
            several="classes",
            rows=CLASSES,
            counts=COUNTS,
            columns={
                row["objective"]: [
                    recall(rng, row["balanced_accuracy"], row["balanced_accuracy"] - base, index)
                    for index in range(len(CLASSES))
                ]
                for row in ranking
            },
        ),
        Lines(
            name="reliability",
            title="Reliability",
            lede=["How often a prediction is right, ", Key("before", "dot-before"), " and ", Key("after", "dot-after")],
            figures={
                row["objective"]: [Line("before", dots(rng, 0.55)), Line("after", dots(rng, 0.96))] for row in ranking
            },
            notes={row["objective"]: [["ECE 0.118 → ", Key("0.020", "bold")], ["T = 1.63"]] for row in ranking},
            summaries={row["objective"]: f"{row['objective']}: calibration error" for row in ranking},
        ),
    ]


def multiclass(**changes: Any) -> ReportData:
    rng = random.Random(0)
    metric = "balanced_accuracy"
    base = OBJECTIVES[REFERENCE][1]
    ranking = []
    for rank, (objective, (_, mean, verdict)) in enumerate(OBJECTIVES.items(), 1):
        row = ranking_row(rank, objective, metric, mean, base, verdict)
        row |= {"accuracy": mean + 0.03, "macro_f1": mean - 0.02, "log_loss": 1.9 - mean, "ece": 0.02 + 0.004 * rank}
        ranking.append(row)
    fields: dict[str, Any] = {
        "title": "lossworks compare",
        "data_name": "anes96.csv",
        "task": "7 classes",
        "metric": metric,
        "metric_higher_is_better": True,
        "answer": "LogitAdjustedLoss is better than CrossEntropyLoss on these data: its balanced accuracy is 0.452 "
        "instead of 0.404, and the difference is real.",
        "reference": REFERENCE,
        "outside": OUTSIDE,
        "winner": "LogitAdjustedLoss",
        "ranking": ranking,
        "metric_columns": list(METRICS),
        "higher_is_better": METRICS,
        "titles": {"balanced_accuracy": "balanced accuracy", "ece": "calibration error"},
        "differences": {
            row["objective"]: [
                {"fold": fold, "repeat": repeat, "difference": row["difference"] + rng.gauss(0, 0.022)}
                for fold, repeat in FOLDS
            ]
            for row in ranking
            if row["difference"] is not None
        },
        "groups": {
            "metric": "accuracy",
            "names": GROUPS,
            "counts": (610, 240, 94),
            "objectives": {row["objective"]: [group_score(rng, row, index) for index in range(3)] for row in ranking},
        },
        "panels": class_panels(rng, ranking),
        "curves": {
            row["objective"]: [curve(rng, row[metric]) for _ in FOLDS]
            for row in ranking
            if row["objective"] != OUTSIDE
        },
        "findings": [
            {
                "level": "warning",
                "text": "The classes are uneven: Strong Democrat has 5.4 times as many rows as "
                "Independent-Independent, of which there are 37.",
                "numbers": {"imbalance_ratio": 5.41, "rarest_class": "Independent-Independent", "rows": 37},
            },
            {
                "level": "notice",
                "text": "The models confidently contradict about 11 % of the labels.",
                "numbers": {"share": 0.112, "rows": 106},
            },
            {"level": "info", "text": "No cell is missing.", "numbers": {}},
        ],
        "candidates": [
            {
                "name": objective,
                "why": "The classes are uneven (5.4 to 1), and this objective shifts the logits by the classes' "
                "frequencies." if verdict == "better" else "Always tried.",
                "settings": ["tau=0.5", setting, "tau=1.5"] if setting else [],
                "chosen": {setting: 7, "tau=1.5": 3} if setting else {},
                "papers": ["Menon et al. 2021, Long-tail learning via logit adjustment"] if verdict == "better" else [],
            }
            for objective, (setting, _, verdict) in OBJECTIVES.items()
        ],
        "method": [
            "The 944 rows were divided into five folds, stratified by class, twice with different divisions. Every "
            "objective was trained on the same four fifths and scored on the same fifth that it had not seen.",
            "Intervals and p-values are those of the corrected resampled t-test (Nadeau and Bengio), which allows for "
            "folds sharing training rows; p-values are adjusted for the nine comparisons by Holm's method.",
            "Differences within ±0.01 count as equal. The belief in better, equal and worse is that of the Bayesian "
            "correlated t-test. Gradient boosting saw the same folds; it is no candidate.",
        ],
        "reuse": {
            "run": "runs/anes96-1",
            "predict": "lossworks predict runs/anes96-1 new_rows.csv",
            "python": 'import lossworks as lw\n\nmodel = lw.load("runs/anes96-1")\nmodel.predict(frame)',
            "recipe": "python runs/anes96-1/recipe.py",
        },
        "versions": {"lossworks": "0.1.0", "torch": "2.13.0", "python": "3.11.9"},
        "seed": 0,
        "rows": 944,
        "columns": 9,
        "seconds": 83.4,
        "rope": 0.01,
    }  # fmt: skip
    return ReportData(**(fields | changes))


def real(**changes: Any) -> ReportData:
    """A real target: lower is better, residuals instead of recall and reliability."""
    rng = random.Random(1)
    names = {"PseudoHuberLoss": 41.2, "HLGaussLoss": 42.0, OUTSIDE: 42.9, "MSELoss": 47.3, "TwoHotLoss": 310.0}
    ranking = []
    for rank, (objective, mean) in enumerate(names.items(), 1):
        row = ranking_row(rank, objective, "rmse", mean, 47.3, "unclear")
        row |= {"low": mean * 0.94, "high": mean * 1.06, "mae": mean * 0.7, "r2": 1 - (mean / 60) ** 2}
        row |= {"difference": mean - 47.3, "difference_low": mean - 49.9, "difference_high": mean - 44.7}
        if objective == "MSELoss":
            row |= dict.fromkeys(("difference", "difference_low", "difference_high", "p_better", "p_adjusted"))
            row["verdict"] = "reference"
        ranking.append(row)
    levels = [0.05, 0.25, 0.5, 0.75, 0.95]
    fields: dict[str, Any] = {
        "title": "lossworks compare",
        "data_name": "prices.parquet",
        "task": "a real value",
        "metric": "rmse",
        "metric_higher_is_better": False,
        "answer": "No objective is clearly better than MSELoss on these data.",
        "reference": "MSELoss",
        "outside": OUTSIDE,
        "ranking": ranking,
        "metric_columns": ["rmse", "mae", "r2"],
        "higher_is_better": {"rmse": False, "mae": False, "r2": True},
        "titles": {"rmse": "RMSE"},
        "differences": {
            row["objective"]: [
                {"fold": fold, "repeat": repeat, "difference": row["difference"] + rng.gauss(0, 3)}
                for fold, repeat in FOLDS
            ]
            for row in ranking
            if row["difference"] is not None
        },
        "curves": {name: [curve(rng, -mean / 50) for _ in FOLDS] for name, mean in names.items() if name != OUTSIDE},
        "panels": [
            Intervals(
                name="residuals",
                title="Errors",
                lede=["Predicted minus actual."],
                levels=levels,
                quantiles={name: [mean * (level - 0.48) * 3 for level in levels] for name, mean in names.items()},
                ends=("too low", "too high"),
            ),
            Cloud(
                name="predictions",
                title="Predicted over actual",
                lede=["Some rows."],
                what="predicted over actual",
                pairs={
                    name: [(actual, actual * 0.9 + rng.gauss(0, names[name])) for actual in range(0, 600, 2)]
                    for name in ("PseudoHuberLoss", "MSELoss")
                },
            ),
        ],
        "method": ["Five folds, twice."],
        "versions": {"lossworks": "0.1.0"},
        "seed": 7,
        "rows": 1_234_567,
        "columns": 30,
        "seconds": 4000.0,
    }
    return ReportData(**(fields | changes))
