"""The main job: which objective is better on this data, is the difference real, and the trained model.

The data takes one way: it is read (``read``), examined (``findings``), planned (``plan``), trained (``train``), judged
(:mod:`lossworks.verdict`) and handed over (``handover``). What depends on what is predicted stands in ``tasks``.
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
