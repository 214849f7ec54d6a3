"""The trained model that a run hands over: preprocessing, network and calibration, saved without pickle."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from lossworks.checks import InputError, shown
from lossworks.comparison.attack import RESTARTS, STEPS, Attack, accuracy_curve
from lossworks.comparison.models.architecture import Architecture
from lossworks.comparison.read.columns import check_kind
from lossworks.comparison.read.dataset import read_features, read_labelled
from lossworks.comparison.read.encode import Encoder
from lossworks.comparison.tasks.base import Task
from lossworks.comparison.tasks.known import find_task, tasks
from lossworks.roles import KINDS, Kind
from lossworks.runs.files import check_own, parse_json
from lossworks.runs.memory import is_out_of_memory

VERSION = 1
ROWS_AT_ONCE = 16_384
POINTS = 6
"""The number of radii at which a model's robustness is measured, including 0."""
FORMULA = "^\\s*[=+\\-@\\t\\r\\n\uff1d\uff0b\uff0d\uff20]"
"""The start of a text that a spreadsheet may run as a formula; East Asian settings also accept full-width signs."""
NUMBER = r"^[+\-]?[0-9]+(\.[0-9]+)?([eE][+\-]?[0-9]+)?$"


@dataclass(frozen=True)
class Model:
    """A trained model with everything that it needs to predict on new rows.

    Attributes:
        task: The task, which says what kind of target the model predicts.
        target_name: The column that the model predicts.
        classes: The labels in the order of the probabilities; empty if the target is not a class.
        objective: The name of the objective that the model was trained with.
        setting: The setting of that objective.
        temperature: The number that the logits are divided by before they are turned into probabilities.
        encoder: The encoder that turns raw columns into numbers.
        architecture: The architecture of the network.
        network: The network, which maps encoded rows to one value, one score or one logit per class.
        columns: How to read raw columns whose values do not show it, such as ``{"signup": "date:%Y-%m-%d"}``.
    """

    task: Task
    target_name: str
    classes: tuple[str, ...]
    objective: str
    setting: str
    temperature: float
    encoder: Encoder
    architecture: Architecture
    network: nn.Module
    columns: Mapping[str, str] = field(default_factory=dict)

    def scores(self, data: Any) -> Tensor:
        """The logits ``(n, C)``, or scores or values ``(n,)``, of raw rows: a file, a frame, a dict or an array."""
        features, place = read_features(data, {"columns": self.columns})
        x = torch.from_numpy(self.encoder.transform(features, place))
        try:
            with torch.inference_mode():
                found = torch.cat([self.network(rows) for rows in x.split(ROWS_AT_ONCE)])
        except Exception as error:
            if isinstance(self.architecture.model, str) or is_out_of_memory(error):
                raise
            reason = str(error).partition("\n")[0]
            raise InputError(f"model: the network of your own fails ({type(error).__name__}: {reason})") from error
        wrong = ~found.isfinite().unsqueeze(-1).flatten(1).all(dim=1)
        if bool(wrong.any()):
            row, others = int(wrong.int().argmax()), int(wrong.sum()) - 1
            raise InputError(
                f"{place.label}, {place.row(row)}: the model's answer is not a finite number"
                f"{f', as for {others} other row' + 's' * (others > 1) if others else ''}; look for extreme values"
            )
        return found

    def predict_proba(self, data: Any) -> np.ndarray:
        """The class probabilities ``(n, C)``, at the temperature that was fitted on the inner rows."""
        return self.task.probabilities(self.scores(data), self.temperature, self.target_name)

    def predict(self, data: Any) -> np.ndarray:
        """The prediction for each row ``(n,)``: the most probable label as text, or the value as float64."""
        return self.task.answers(self._predicted(data), self.classes)

    def frame(self, data: Any) -> pl.DataFrame:
        """The predictions as a table: the label or value of each row, and a column of probabilities for each class."""
        return self.task.frame(self._predicted(data), self.target_name, self.classes)

    def _predicted(self, data: Any) -> np.ndarray:
        return self.task.predicted(self.scores(data), self.temperature)

    def robustness(
        self,
        data: Any,
        eps: float,
        *,
        norm: str = "linf",
        steps: int = STEPS,
        restarts: int = RESTARTS,
        seed: int = 0,
    ) -> pl.DataFrame:
        """Measure the accuracy under attack, as a table of ``radius`` (from 0 to ``eps``) and ``accuracy``.

        PGD searches for the worst input within a ball, whose radius is in the units of the scaled columns; only numbers
        and dates are moved. A stronger attack may find worse inputs.

        Args:
            data: Rows with their target: a file, a polars or pandas frame, a dict, or a pair ``(X, y)``.
            eps: The largest radius, > 0.
            norm: ``"linf"`` or ``"l2"``.
            steps: The number of steps of each search, >= 1.
            restarts: The number of searches for each row, >= 1.
            seed: The seed of the restarts, >= 0.

        Raises:
            InputError: the target is not a class; a label is unknown to the model; no column can be moved; an argument
                is out of range.
        """
        if not self.task.has_classes:
            raise InputError(f"{self.target_name!r} is {self.task.title}: there is no accuracy to attack")
        attack = Attack.parse(f"{norm}:{eps}", self.encoder)
        for name, value, low in (("steps", steps, 1), ("restarts", restarts, 1), ("seed", seed, 0)):
            check_option(name, value, low)
        features, labels, place = read_labelled(data, self.target_name, {"columns": self.columns})
        if not labels:
            raise InputError(f"{place.label} has no rows to attack")
        codes = {name: code for code, name in enumerate(self.classes)}
        if unknown := [row for row, label in enumerate(labels) if label not in codes]:
            raise InputError(
                f"{place.label}, {place.row(unknown[0])}: column {self.target_name!r} has {labels[unknown[0]]!r}, "
                f"which is none of the model's classes"
            )
        x = torch.from_numpy(self.encoder.transform(features, place))
        y = torch.tensor([codes[label] for label in labels])
        radii = [attack.eps * number / (POINTS - 1) for number in range(1, POINTS)]
        assert isinstance(self.network, nn.Sequential)
        curve = accuracy_curve(self.network, x, y, attack, radii, seed=seed, steps=steps, restarts=restarts)
        return pl.DataFrame(curve, schema={"radius": pl.Float64, "accuracy": pl.Float64}, orient="row")

    def save(self, folder: Path) -> None:
        """Write ``model.safetensors``, and then ``model.json``, which marks the model as complete, into the folder."""
        state = {name: tensor.contiguous() for name, tensor in self.network.state_dict().items()}
        (folder / "model.safetensors").write_bytes(save(state))
        described = {
            "version": VERSION,
            "task": self.task.name,
            "target": self.target_name,
            "classes": list(self.classes),
            "objective": self.objective,
            "setting": self.setting,
            "temperature": self.temperature,
            "architecture": self.architecture.to_json(),
            "encoder": self.encoder.to_json(),
            "columns": dict(self.columns),
        }
        (folder / "model.json").write_text(json.dumps(described, indent=1), encoding="utf-8")


def check_option(name: str, value: object, low: int, high: int | None = None) -> None:
    """Raise unless the option is an ``int`` from ``low`` to ``high``; by default ``high`` is the largest of 64 bits."""
    most, end = (2**63 - 1, "below 2**63") if high is None else (high, f"<= {high:,}")
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= most:
        raise InputError(f"{name} must be an int >= {low} and {end}, got {shown(value)}")


def spreadsheet_safe(frame: pl.DataFrame) -> pl.DataFrame:
    """Quote all texts that a spreadsheet would run as formulas, both in cells and in column names.

    A text that is a number, such as the label -1, is not a formula and is not changed.
    """
    texts = pl.selectors.string()
    risky = texts.str.contains(FORMULA) & ~texts.str.contains(NUMBER)
    safe = frame.with_columns(pl.when(risky).then("'" + texts).otherwise(texts).name.keep())
    names: dict[str, str] = {}
    for name in frame.columns:
        names[name] = f"'{name}" if re.match(FORMULA, name) else name
        while names[name] != name and names[name] in (*frame.columns, *list(names.values())[:-1]):
            names[name] = f"'{names[name]}"
    return safe.rename(names)


def write_csv(frame: pl.DataFrame, path: Path | None = None) -> str | None:
    """Write the table as CSV that is safe to open in a spreadsheet; without a path, return it as text.

    All texts are in quotation marks, so that a spreadsheet does not split them at a separator other than the comma.
    """
    return spreadsheet_safe(frame).write_csv(path, quote_style="non_numeric")


def load_model(folder: str | Path, factory: Any = None) -> Model:
    """Load the trained model of a run folder.

    Args:
        folder: The run folder.
        factory: The model factory, if the run was trained with the user's own; the folder does not contain its code.

    Raises:
        InputError: the folder is not a run folder, is of another version or is damaged; or the factory is missing, is
            not needed or builds another network.
    """
    folder = Path(folder)
    described = _read_description(folder)
    try:
        _check_fields(described)
        encoder = Encoder.from_json(described["encoder"])
        architecture = Architecture.from_json(described["architecture"], factory=factory)
        if architecture.input_shape != encoder.width:
            raise ValueError(f"a network of inputs {architecture.input_shape} does not fit rows of {encoder.width}")
        task = find_task(described["task"])
        weights = load_file(check_own(folder / "model.safetensors"))
        for name, weight in weights.items():
            if not bool(weight.isfinite().all()):
                raise ValueError(f"model.safetensors: {name} holds numbers that are not finite")
        network = architecture.loaded(weights, task.empty_head)
        return Model(
            task=task,
            target_name=described["target"],
            classes=tuple(described["classes"]),
            objective=described["objective"],
            setting=described["setting"],
            temperature=float(described["temperature"]),
            encoder=encoder,
            architecture=architecture,
            network=network.eval(),
            columns=described["columns"],
        )
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, RuntimeError, OSError, OverflowError, SafetensorError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{folder}: the saved model is damaged ({reason}); train it again") from error


FIELDS = {
    "version": int,
    "task": str,
    "target": str,
    "classes": list,
    "objective": str,
    "setting": str,
    "temperature": float,
    "architecture": dict,
    "encoder": dict,
    "columns": dict,
}
"""The fields of ``model.json`` and their types; any other field is an error."""


def _check_fields(described: Mapping[str, Any]) -> None:
    """Raise unless the description has exactly the known fields, each of its type, and they fit together."""
    if strange := sorted(set(described) ^ set(FIELDS)):
        raise ValueError(f"model.json has{' not' * (strange[0] in FIELDS)} the field {strange[0]!r}")
    for name, kind in FIELDS.items():
        if not isinstance(described[name], kind):
            raise ValueError(f"model.json: {name} must be of type {kind.__name__}, got {shown(described[name])}")
    classes, outputs = described["classes"], described["architecture"].get("outputs")
    if described["task"] not in tasks():
        raise ValueError(f"model.json: there is no task {shown(described['task'])}")
    task = find_task(described["task"])
    if not all(isinstance(name, str) for name in classes):
        raise ValueError("model.json: classes must be texts")
    if not 0 < described["temperature"] < math.inf:
        raise ValueError(f"model.json: temperature must be finite and > 0, got {described['temperature']}")
    for name, kind in described["columns"].items():
        if not isinstance(kind, str):
            raise ValueError(f"model.json: columns must say how each is read, got {shown(kind)}")
        check_kind(name, kind)
    named = described["architecture"].get("kind")
    trained_for = KINDS.get(named) if isinstance(named, str) else None
    if trained_for is None or not task.fits(trained_for) or not _classes_fit(task, trained_for, classes, outputs):
        raise ValueError(
            f"model.json: {len(classes)} classes do not fit a {task.name} model of {shown(outputs)} outputs"
        )


def _classes_fit(task: Task, kind: Kind, classes: list[str], outputs: object) -> bool:
    wanted = kind.levels(outputs) if task.has_classes and isinstance(outputs, int) else 0
    return len(classes) == wanted and len(set(classes)) == len(classes)


def _read_description(folder: Path) -> dict[str, Any]:
    path = folder / "model.json"
    try:
        there = folder.is_dir()
    except OSError:  # a name that is too long
        there = False
    if not there:
        raise InputError(f"{folder}: no such run folder")
    if not path.is_file() or not (folder / "model.safetensors").is_file():
        raise InputError(f"{folder}: not a finished run folder (model.json and model.safetensors must be in it)")
    try:
        described = parse_json(check_own(path).read_text(encoding="utf-8"))
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    version = described.get("version") if isinstance(described, dict) else None
    if type(version) is not int or version != VERSION:
        raise InputError(f"{path}: is of version {shown(version)}, this lossworks reads {VERSION}; train it again")
    return dict(described)
