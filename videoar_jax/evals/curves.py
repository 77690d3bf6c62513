"""Draws the training curves of a run's stages; helpers of all figures."""

import pathlib

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from videoar_jax.interop.atomic import replacing
from videoar_jax.models.base import Curves

_INK, _GRID = "#333333", "#e6e6e6"
_COLOUR = "#2563a8"


def smooth(values: np.ndarray, radius: int) -> np.ndarray:
  """Returns the mean over each value and up to `radius` neighbours on each side."""
  total = np.cumsum(np.concatenate([[0.0], values]))
  middle = np.arange(len(values))
  start, end = np.maximum(middle - radius, 0), np.minimum(middle + radius + 1, len(values))
  return (total[end] - total[start]) / (end - start)


TOKENIZER_CURVES = Curves("PSNR, dB", {"psnr": ""})


def draw_curves(path: pathlib.Path, stages: list[tuple[str, Curves, list[dict]]]) -> None:
  """Draws a row for each stage: its loss, and its main metrics beside it.

  If a stage was evaluated on held-out clips, training is a thin line and held-out has markers.

  Args:
    path: of the PNG, which is written atomically.
    stages: (name, curves to draw beside the loss, records of `metrics.jsonl`) of each.
  """
  figure = Figure(figsize=(10, 3.2 * len(stages)), layout="constrained")
  for row, (name, curves, records) in enumerate(stages):
    loss, quality = (figure.add_subplot(len(stages), 2, 2 * row + i) for i in (1, 2))
    _plot(loss, records, "loss", _COLOUR)
    finish(loss, f"{name}: loss")
    _plot_curves(quality, records, curves)
    finish(quality, f"{name}: {curves.title}")
  save(path, figure)


def save(path: pathlib.Path, figure: Figure) -> None:
  """Writes a figure as PNG, atomically."""
  with replacing(path) as partial:
    figure.savefig(partial, format="png", dpi=120)


def _points(records, metric) -> np.ndarray:
  """Returns the steps at which a metric was recorded as a number, and its values, `[2, n]`."""
  points = [(record["step"], record.get(metric)) for record in records]
  points = [(step, value) for step, value in points if value is not None]
  return np.array(points, float).reshape(-1, 2).T


def _plot(axes, records, metric, colour, label=None) -> None:
  steps, values = _points(records, metric)
  if not len(values):
    axes.text(0.5, 0.5, "not recorded", transform=axes.transAxes, ha="center", color=_INK)
    return
  held_out_steps, held_out = _points(records, f"eval/{metric}")
  is_evaluated = len(held_out) > 0
  radius = len(values) // 60
  if label is None:
    axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
  # A stage of one step is a point, since a line would not show.
  marker = "o" if len(values) == 1 else None
  name = "training" if label is None and is_evaluated else label
  width = 0.8 if is_evaluated else 1.8
  axes.plot(steps, smooth(values, radius), color=colour, linewidth=width, label=name, marker=marker)
  if is_evaluated:
    # With several curves in one figure, only the thin ones are labelled.
    name = "held-out" if label is None else None
    axes.plot(
      *(held_out_steps, held_out), color=colour, linewidth=1.8, marker="o", markersize=4, label=name
    )
    if label is None:
      axes.legend(fontsize=8, frameon=False)
  if metric == "loss":
    # The first steps are far above the interesting rest.
    is_late = held_out_steps >= steps[len(steps) // 10]
    shown = np.concatenate([values[len(values) // 10 :], held_out[is_late]])
    low, high = shown.min(), shown.max()
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 0.05
    axes.set_ylim(low - margin, high + margin)


def _plot_curves(axes, records, curves: Curves) -> None:
  if list(curves.labels.values()) == [""]:
    _plot(axes, records, *curves.labels, _COLOUR)
    return
  colours = matplotlib.colormaps["viridis_r"](np.linspace(0.15, 1.0, len(curves.labels)))
  for (metric, label), colour in zip(curves.labels.items(), colours, strict=True):
    _plot(axes, records, metric, colour, label=label)
  if curves.chance is not None:
    axes.axhline(curves.chance, color=_INK, linewidth=0.8, linestyle=":", label="chance")
  if axes.lines:
    # Outside the axes, since curves may be anywhere.
    axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
  else:
    # Such as the loss of later frames in a stage of single ones.
    axes.set_visible(False)


def finish(axes, title: str, unit: str = "step") -> None:
  """Sets the title, the unit of x, and the common style."""
  axes.set_title(title, fontsize=10, loc="left", color=_INK)
  axes.set_xlabel(unit, fontsize=9, color=_INK)
  axes.tick_params(labelsize=8, colors=_INK)
  axes.grid(color=_GRID, linewidth=0.8)
  axes.set_axisbelow(True)
  for side in ("top", "right"):
    axes.spines[side].set_visible(False)
  for side in ("left", "bottom"):
    axes.spines[side].set_color("#bbbbbb")
