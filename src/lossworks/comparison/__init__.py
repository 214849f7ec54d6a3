"""Comparison of objectives: it finds which objective is better on a data set, and hands over the trained model.

A comparison has six steps. The data is read (``read``) and examined (``findings``), and the trainings are planned
(``plan``). The models are trained (``train``) and judged (:mod:`lossworks.verdict`), and the result is handed over
(``handover``). All code that depends on the kind of target is in ``tasks``.
"""

from lossworks.checks import InputError
from lossworks.comparison.findings import Finding
from lossworks.comparison.handover.comparison import Comparison
from lossworks.comparison.handover.model import Model, load_model
from lossworks.comparison.read.dataset import Dataset, embedded, read
from lossworks.comparison.read.encode import Encoder
from lossworks.comparison.run import compare
from lossworks.comparison.train.jobs import Training
from lossworks.runs.bench import Progress

load = load_model

__all__ = [
    "Comparison",
    "Dataset",
    "Encoder",
    "Finding",
    "InputError",
    "Model",
    "Progress",
    "Training",
    "compare",
    "embedded",
    "load",
    "load_model",
    "read",
]
