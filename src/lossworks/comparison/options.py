"""The options of a comparison: their checks, and their form as plain values that a run folder keeps."""

import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from lossworks.checks import InputError
from lossworks.comparison.attack import Attack, check_certified
from lossworks.comparison.handover.model import check_option
from lossworks.comparison.models.architecture import Architecture
from lossworks.comparison.plan import digest_of
from lossworks.comparison.read.dataset import Dataset
from lossworks.comparison.read.encode import Encoder
from lossworks.comparison.train.jobs import Training
from lossworks.metrics.registry import Metric, find_metric
from lossworks.runs.folder import RUN, Options

__all__ = ["OPTIONS", "attack_of", "check_model", "check_options", "find_device", "metric_of"]

MOST_REPEATS = 1_000
"""The largest number of repeats: the plan has a row for every model, and would take all memory for a million."""


def find_device(device: str) -> torch.device:
    """The device of this name; raise if this machine does not have it."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device not in ("cpu", "cuda"):
        raise InputError(f"device must be 'auto', 'cpu' or 'cuda', got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("device: 'cuda' was asked for, but torch finds no GPU here; use --device cpu")
    return torch.device(device)


def metric_of(name: str | None, dataset: Dataset) -> Metric:
    """The metric of this name among those of the task, or the task's default metric if there is no name."""
    if name is None:
        return dataset.task.default_metric(dataset.target)
    try:
        metric = find_metric(name, dataset.task.metrics)
    except ValueError as error:
        raise InputError(f"{error} (the target is {dataset.task.name})") from error
    if metric.of_groups and dataset.group is None:
        raise InputError(f"metric: {name!r} needs groups: name their column, as --group or group= does")
    return metric


def attack_of(
    text: str | None, certify: bool, dataset: Dataset, encoder: Encoder, architecture: Architecture
) -> Attack | None:
    """Build the attack from a text such as ``"linf:0.1"``; raise if the data or the network do not allow it."""
    if not isinstance(certify, bool):
        raise InputError(f"certify must be True or False, got {certify!r}")
    if text is None:
        if certify:
            raise InputError("certify: say against what, as --attack linf:0.1 or attack= does")
        return None
    if not dataset.task.has_classes:
        raise InputError(f"attack: {dataset.target_name!r} is {dataset.task.title}, and there is no accuracy to attack")
    attack = replace(Attack.parse(text, encoder), certify=certify)
    if certify:
        with torch.random.fork_rng([]):
            network = architecture.sized(encoder.width, 3).network()
        check_certified(network, attack, encoder.width)
    return attack


def check_options(folds: int, repeats: int, seed: int, budget: float | None, rope: float | None) -> None:
    """Raise unless these numbers are in range."""
    check_option("folds", folds, 2)
    check_option("repeats", repeats, 1, MOST_REPEATS)
    check_option("seed", seed, 0)
    if budget is not None and not budget > 0:
        raise InputError(f"budget must be a number of seconds > 0, got {budget!r}")
    if rope is not None and not 0 <= rope <= sys.float_info.max:
        raise InputError(f"rope must be a number >= 0 in the metric's unit, got {rope!r}")


def check_model(architecture: Architecture, shape: tuple[int, ...]) -> str:
    """Check that the user's model factory builds a network for these rows, and return a digest of the network.

    It is empty for the built-in architectures.
    """
    if isinstance(architecture.model, str):
        return ""
    name = getattr(architecture.model, "__name__", "model")
    try:
        with torch.no_grad(), torch.random.fork_rng([]):
            torch.manual_seed(0)
            network = architecture.sized(shape, 3).network().eval()
            got = network(torch.randn(2, *shape))
    except InputError:
        raise
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"model: {name}({shape}, 3) fails on two rows ({type(error).__name__}: {reason})") from error
    if tuple(got.shape) != (2, 3):
        raise InputError(
            f"model: {name}({shape}, 3) must map two rows to outputs of shape (2, 3), got {tuple(got.shape)}"
        )
    behaves = (got.double().round(decimals=3) + 0.0).tolist()
    return f"{digest_of(network)} {behaves}"


# The options in a run folder


def _plain(name: str, value: Any) -> Any:
    """The option as a JSON value; the user's own code is represented by its name alone."""
    if name == "model" and not isinstance(value, str):
        return {"own": str(getattr(value, "__name__", type(value).__name__))}
    if name == "objectives" and isinstance(value, Mapping):
        return {"own": list(value)}
    if name == "training" and value is not None:
        return asdict(value)
    if name in ("objectives", "drop") and value is not None:
        return list(value)
    return (dict(value) or None) if name == "columns" and value is not None else value


def _is_plain(name: str, value: Any) -> bool:
    """Whether the option, with everything in it, is a value that :func:`_plain` can return."""
    if name in ("model", "objectives") and isinstance(value, dict):
        own = value.get("own")
        return len(value) == 1 and (isinstance(own, str) if name == "model" else _are_texts(own))
    if name in ("objectives", "drop"):
        return value is None or _are_texts(value)
    return name != "columns" or value is None or _are_texts(list(value.values()))


def _are_texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def _again(folder: Path, name: str, kept: Any, given: Any, default: Any) -> Any:
    """The option's value in a resumed run: the one in the folder, or the user's own code, which must be given again.

    The user may repeat the folder's value; any other value is an error.
    """
    if isinstance(kept, dict) and "own" in kept:
        own = kept["own"]
        if _plain(name, given) == kept or (name == "model" and callable(given)):
            return given
        if name == "model":
            raise InputError(
                f"{folder}: the run's model is the factory {own!r} of your own, and code is never run from a run "
                f"folder: name it again, --model FILE.py:{own} (in Python model=)"
            )
        raise InputError(f"{folder}: the run's objectives are your own: give {', '.join(map(repr, own))} again")
    said = _plain(name, given)
    if said not in (kept, _plain(name, default)):
        raise InputError(
            f"{name}: the run in {folder} has {kept!r}, got {said!r}: a resumed run takes its options from its "
            f"folder; leave {name} out"
        )
    if name != "training" or kept is None:
        return kept
    try:
        return Training(**kept)
    except (TypeError, ValueError) as error:
        raise InputError(f"{folder / RUN}: training: {error}") from error


OPTIONS = Options(
    kinds={
        "target": (str, type(None)),
        "objectives": (list, dict, type(None)),
        "metric": (str, type(None)),
        "model": (str, dict),
        "folds": (int,),
        "repeats": (int,),
        "group": (str, type(None)),
        "seed": (int,),
        "device": (str,),
        "task": (str, type(None)),
        "drop": (list,),
        "columns": (dict, type(None)),
        "rope": (float, int, type(None)),
        "training": (dict, type(None)),
        "attack": (str, type(None)),
        "certify": (bool,),
    },
    plain=_plain,
    is_plain=_is_plain,
    again=_again,
)
