"""Pictures of the parts: each is drawn from the part itself, as an SVG in the page's own colours.

Three roles have a usual picture: a loss is drawn against the margin, the score or the residual; weights are drawn
against the losses; and a perturbation is drawn by where it moves points. A part for which another picture says more has
a file of its name in ``drawings/`` with a function ``draw(ax)``, which draws on matplotlib's axes and returns the
caption. All other parts have no picture.
"""

import importlib
import inspect
import io
import re
from collections.abc import Callable, Mapping
from html import escape
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from lossworks.catalog import Entry
from lossworks.roles import Loss, Perturbation, Weighting
from lossworks.testing import from_data

__all__ = ["COLOURS", "contours", "curves", "draw"]

COLOURS = ("#2a7ae2", "#d9632a", "#2e9e6b", "#a35cc9")
DASHES = ("-", "--", "-.", ":")
INK = "#010203"
"""The colour that is replaced by the page's text colour."""
STYLE = {
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 10,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "lossworks",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}
CLASSES, ROWS = 5, 61


def draw(entry: Entry) -> str | None:
    """The picture as an HTML figure, or None for a part that has none."""
    with torch.random.fork_rng(devices=[]), mpl.rc_context(STYLE):
        torch.manual_seed(0)
        figure = Figure(figsize=(6.2, 3.1), layout="constrained")
        caption = _draw_on(figure.subplots(), entry)
        if caption is None:
            return None
        written = io.StringIO()
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = written.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{escape(caption)}" ', 1)
    svg = "\n".join(line.strip() for line in svg.splitlines() if line.strip())
    return f'<figure class="picture">\n{svg}\n<figcaption>{escape(caption)}</figcaption>\n</figure>\n'


def _draw_on(ax: Axes, entry: Entry) -> str | None:
    """Draw the part, and return what the picture shows."""
    if (Path(__file__).parent / "drawings" / f"{entry.name}.py").exists():
        return importlib.import_module(f"drawings.{entry.name}").draw(ax)
    part = entry.part
    if not inspect.isclass(part):
        return None
    if issubclass(part, Loss):
        return _loss(part, ax)
    if issubclass(part, Weighting):
        return _weighting(part, ax)
    if issubclass(part, Perturbation):
        return _perturbation(part, ax)
    return None


def curves(ax: Axes, x: Any, lines: Mapping[str, Any], across: str, up: str) -> None:
    """Draw lines over the same x, each with its name, colour and dashes."""
    for number, (name, y) in enumerate(lines.items()):
        at = number % len(COLOURS)
        ax.plot(x, y, color=COLOURS[at], linestyle=DASHES[at], linewidth=2, label=name)
    ax.set_xlabel(across)
    ax.set_ylabel(up)
    ax.grid(color="#8888", linewidth=0.5)
    if len(lines) > 1:
        ax.legend()


def _build(part: Any, setting: Mapping[str, Any]) -> Any:
    """Build the part for a data set that has one row for each point of the curve."""
    facts = from_data(num_samples=ROWS)
    return part(**{name: facts[name] for name in part.needs}, **setting)


def _named(setting: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in setting.items()) or "default"


# losses


def _loss(part: type[Loss], ax: Axes) -> str | None:
    if part.couples_batch or part.stochastic:
        return None
    kind = str(getattr(part.kind, "name", part.kind))
    if kind == "classes":
        return _of_margin(part, ax)
    if kind == "binary":
        x = torch.linspace(-3, 3, ROWS)
        lines = {_named(setting): _value(part, setting, x, torch.ones(ROWS)) for setting in part.settings}
        curves(ax, x, lines, "score", "loss")
        return "The loss of a row of class 1 against its score."
    if kind == "pairs":
        x = torch.linspace(-3, 3, ROWS)
        lines = {_named(setting): _value(part, setting, x, torch.zeros(ROWS)) for setting in part.settings}
        curves(ax, x, lines, "score of the preferred less score of the other", "loss")
        return "The loss of a pair against how far the preferred one is ahead."
    if kind == "real":
        return _of_residual(part, ax)
    return None


def _value(part: type[Loss], setting: Mapping[str, Any], output: Tensor, target: Tensor) -> Tensor:
    """The loss of each row; a loss with a memory is in evaluation mode, so that it does not change."""
    loss = _build(part, {**setting, "reduction": "none"}).eval()
    index = {"index": torch.arange(ROWS)} if loss.needs_index else {}
    return loss(output, target, **index).detach()


def _of_margin(part: type[Loss], ax: Axes) -> str:
    x = torch.linspace(-4, 4, ROWS)
    others = torch.tensor([0.0, -0.5, -1.0, -1.5]).expand(ROWS, -1)

    def of_class(target: int, setting: Mapping[str, Any]) -> Tensor:
        output = torch.cat([others[:, :target], x[:, None], others[:, target:]], dim=1)
        return _value(part, setting, output, torch.full((ROWS,), target))

    caption = "The loss of a row of five classes against the lead of the label's logit over the highest other one"
    if "class_counts" in part.needs:
        lines = {"most frequent class": of_class(0, part.settings[0])}
        lines["rarest class"] = of_class(CLASSES - 1, part.settings[0])
        caption += ", for a label that is five times as frequent as the other."
    else:
        lines = {_named(setting): of_class(0, setting) for setting in part.settings}
        caption += "; the others are at 0, -0.5, -1 and -1.5."
    curves(ax, x, lines, "lead of the label's logit", "loss")
    return caption


def _of_residual(part: type[Loss], ax: Axes) -> str:
    x, lines = torch.linspace(-4, 4, ROWS), {}
    caption = "The loss of a row against how far its output is above its target."
    if "v_min" in part.needs:
        x = torch.linspace(-2.5, 2.5, ROWS)
        caption = "The loss of a histogram in the shape of a bell (deviation 0.5), against its centre less the target."
    for setting in part.settings:
        output = x
        if "v_min" in part.needs:
            bins = torch.linspace(-3, 3, _build(part, setting).output_size())
            output = -((bins - x[:, None]) ** 2) / (2 * 0.5**2)
        lines[_named(setting)] = _value(part, setting, output, torch.zeros(ROWS))
    curves(ax, x, lines, "output less target", "loss")
    return caption


# weights


def _weighting(part: type[Weighting], ax: Axes) -> str | None:
    losses = torch.linspace(0, 3, ROWS) ** 2 / 3
    columns = {
        "index": torch.arange(ROWS),
        "group": torch.arange(ROWS) * 3 // ROWS,
        "target": torch.arange(ROWS) * CLASSES // ROWS,
    }
    lines = {}
    for setting in part.settings:
        weighting = _build(part, setting)
        for _ in range(10 if not weighting.over_data_set else 1):
            weights = weighting(losses, **columns).detach()
        lines[_named(setting)] = weights
    if all(bool((weights == 1).all()) for weights in lines.values()):
        return None
    if part.reads_losses:
        caption = "The weight of each row of a batch against its loss"
        caption += ", after ten steps with the same batch" if _remembers(part) else ""
        caption += "; the rows are three groups, by their losses." if part.needs_group else "."
        curves(ax, losses, lines, "loss of the row", "weight")
        return caption
    if part.needs_target:
        curves(ax, columns["target"], lines, "class of the row", "weight")
        return "The weight of a row by its class, the first of which is five times as frequent as the last."
    return None


def _remembers(part: type[Weighting]) -> bool:
    return bool(list(_build(part, part.settings[0]).buffers()))


# perturbations


def _landscape(x: Tensor) -> Tensor:
    """A risk over the plane: a ridge that bends around the origin."""
    return torch.sigmoid(2 * (x[:, 0] + 0.5 * x[:, 1] ** 2 - 0.6)) + 0.3 * torch.exp(-(x**2).sum(1))


def _perturbation(part: type[Perturbation], ax: Axes) -> str:
    perturb = _build(part, _visible(part))
    grid = torch.cartesian_prod(torch.linspace(-1.2, 1.2, 6), torch.linspace(-1.2, 1.2, 5))
    moved = perturb(_landscape, grid.clone()).detach()
    contours(ax, _landscape)
    for start, end in zip(grid.tolist(), moved.tolist(), strict=True):
        ax.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": COLOURS[1], "linewidth": 1.4})
    ax.plot(*grid.T, ".", color=COLOURS[0], markersize=6)
    ax.set_xlabel("first input")
    ax.set_ylabel("second input")
    drawn = _named(_visible(part))
    return f"Where points of the plane are moved to ({drawn}); grey lines join points of equal risk."


def contours(ax: Axes, height: Callable[[Tensor], Tensor], reach: float = 1.7) -> None:
    """Draw lines of equal height over the plane."""
    side = torch.linspace(-reach, reach, 90)
    plane = torch.cartesian_prod(side, side)
    ax.contour(
        side, side, height(plane).reshape(90, 90).T, levels=9, colors="#888888", linewidths=0.8, linestyles="solid"
    )
    ax.set_aspect("equal")


def _visible(part: type[Perturbation]) -> dict[str, Any]:
    """A setting whose steps can be seen in the plane."""
    takes = inspect.signature(part).parameters
    return {name: value for name, value in (("eps", 0.3), ("std", 0.2)) if name in takes}
