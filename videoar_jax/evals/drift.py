"""Drift of clips that are several times as long as the training clips.

A long clip is evaluated in windows of the trained length; each begins with the last frame of the
window before. Real clips of the same prompts, if there are any, are evaluated in the same way,
since objects may leave the frame over time, which is no error of the model.
"""

import dataclasses
import pathlib

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure

from videoar_jax.evals import metrics, scores
from videoar_jax.evals.curves import finish, save

TIMES = 4  # Length as a multiple of the trained one, not counting the first frame.


@dataclasses.dataclass(frozen=True)
class Drift:
  """Measurements of long clips, by kind: "generated" and possibly "real".

  Attributes:
    windows: first and last frame of each.
    num_clips: number of clips.
    settings: sampling settings that differ from the model's defaults.
    psnr: of each later frame against the first one, by kind.
    accuracy: of the oracle, by kind and window; None without an oracle.
  """

  windows: list[tuple[int, int]]
  num_clips: int
  settings: dict
  psnr: dict[str, Float[np.ndarray, "b later"]]
  accuracy: dict[str, list[dict[str, float]]] | None

  def scores(self) -> dict:
    """Returns all numbers except those of single clips."""
    spreads = {
      kind: {"mean": values.mean(0).tolist(), "deviation": values.std(0).tolist()}
      for kind, values in self.psnr.items()
    }
    return {
      "num_frames": self.windows[-1][1] + 1,
      "num_clips": self.num_clips,
      "settings": self.settings,
      "windows": self.windows,
      "accuracy": self.accuracy,
      "psnr_to_first_frame": spreads,
    }


def long_length(num_frames: int) -> int:
  """Returns the frames of a clip that is `TIMES` as long, not counting the first frame."""
  return 1 + TIMES * (num_frames - 1)


def windows_of(num_frames: int, size: int) -> list[tuple[int, int]]:
  """Returns the first and last frame of each window; an incomplete last window is left out.

  Args:
    num_frames: of the long clip.
    size: frames of a window, at least 2.
  """
  return [(start, start + size - 1) for start in range(0, num_frames - size + 1, size - 1)]


def psnr_to_first(clips: UInt8[np.ndarray, "b f H W 3"]) -> Float[np.ndarray, "b later"]:
  """Returns the PSNR of each later frame against the first one, in dB."""
  frames = range(1, clips.shape[1])
  return np.stack([metrics.psnr(clips[:, :1], clips[:, i : i + 1]) for i in frames], axis=1)


def measure(
  clips: dict[str, UInt8[np.ndarray, "b f H W 3"]],
  prompts: list[str],
  size: int,
  *,
  oracle: scores.Oracle | None,
  settings: dict,
) -> Drift:
  """Measures long clips.

  Args:
    clips: a clip for each prompt, by kind: "generated", possibly "real".
    prompts: of the clips.
    size: frames of a window.
    oracle: of sprites; None for clips of other data.
    settings: sampling settings.
  """
  windows = windows_of(clips["generated"].shape[1], size)

  def accuracies(videos) -> list[dict[str, float]]:
    parts = [videos[:, first : last + 1] for first, last in windows]
    return [scores.accuracy(oracle.matches(x, prompts)) for x in parts]

  return Drift(
    windows=windows,
    num_clips=len(prompts),
    settings=settings,
    psnr={kind: psnr_to_first(videos) for kind, videos in clips.items()},
    accuracy=None if oracle is None else {k: accuracies(x) for k, x in clips.items()},
  )


def table(drift: dict, columns: tuple[str, ...]) -> str:
  """Formats the result of `Drift.scores`.

  Args:
    drift: the scores.
    columns: the oracle's attributes, in order.
  """
  how = ", ".join(f"{name}={value}" for name, value in drift["settings"].items())
  lines = [f"drift: {drift['num_clips']} clips of {drift['num_frames']} frames, sampled with {how}"]
  for kind, rows in (drift["accuracy"] or {}).items():
    lines += ["", f"{kind + ', % correct':26}" + "".join(f"{name:>12}" for name in columns)]
    for (first, last), row in zip(drift["windows"], rows, strict=True):
      cells = "".join(f"{100 * row[c]:12.0f}" if c in row else f"{'':12}" for c in columns)
      lines.append(f"{f'frames {first} to {last}':26}{cells}")
  ends = [last for _, last in drift["windows"]]
  lines += ["", f"{'PSNR to the first frame, dB':26}" + "".join(f"{i:>12}" for i in ends)]
  for kind, spread in drift["psnr_to_first_frame"].items():
    cells = (f"{spread['mean'][i - 1]:.1f} ± {spread['deviation'][i - 1]:.1f}" for i in ends)
    lines.append(f"{kind:26}" + "".join(f"{cell:>12}" for cell in cells))
  return "\n".join(lines)


def draw(path: pathlib.Path, drift: Drift) -> None:
  """Draws PSNR to the first frame over time and, if there is an oracle, its accuracy.

  Args:
    path: of the PNG.
    drift: the measurements.
  """
  has_oracle = drift.accuracy is not None
  figure = Figure(figsize=(11 if has_oracle else 5.5, 3.4), layout="constrained")
  axes = figure.add_subplot(1, 2 if has_oracle else 1, 1)
  for (kind, values), colour in zip(drift.psnr.items(), ("#2563a8", "#777777"), strict=False):
    frames, mean, deviation = 1 + np.arange(values.shape[1]), values.mean(0), values.std(0)
    axes.plot(frames, mean, color=colour, label=kind)
    axes.fill_between(frames, mean - deviation, mean + deviation, color=colour, alpha=0.15)
  for first, _ in drift.windows[1:]:
    axes.axvline(first, color="#bbbbbb", linewidth=0.8, linestyle=":")
  axes.legend(fontsize=8, frameon=False)
  finish(axes, "PSNR to the first frame, dB, mean ± deviation over clips", "frame")
  if has_oracle:
    _draw_accuracy(figure.add_subplot(1, 2, 2), drift)
  save(path, figure)


def _draw_accuracy(axes, drift: Drift) -> None:
  ends = [last for _, last in drift.windows]
  for kind, style in (("generated", "-"), ("real", ":")):
    rows = drift.accuracy.get(kind, [])
    names = [name for name in (rows[0] if rows else {}) if name != "all"]
    for i, name in enumerate(names):
      label = name if kind == "generated" else None
      values = [row[name] for row in rows]
      axes.plot(ends, values, style, marker="o", markersize=3, color=f"C{i}", label=label)
  axes.set_ylim(-0.03, 1.03)
  # Outside the axes, since curves may be anywhere.
  axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
  finish(axes, "accuracy by window (dotted: real clips)", "last frame of the window")
