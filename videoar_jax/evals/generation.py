"""Evaluates generated clips: FVD to real ones, agreement with prompts, drift, speed.

A model needs only `sample(prompts, num_frames, seed, **settings)`. These are used if it has them:
`batch_size`, clips that it makes together; `score(prompts, clips)`, teacher-forced metrics of each
clip by name; and `num_steps(num_frames)`, how often its network runs for a clip.
"""

import dataclasses
import pathlib
import time

import numpy as np
from jaxtyping import Float, UInt8

from videoar_jax.data.pipeline import DataConfig, make_source
from videoar_jax.evals import drift, fvd, i3d, scores
from videoar_jax.evals.cost import cost_lines
from videoar_jax.evals.media import contact_sheet, side_by_side, write_mp4, write_png
from videoar_jax.interop.strict_json import write_json

NUM_SHOWN = 8  # Clips that are kept to show.


@dataclasses.dataclass(frozen=True)
class LongClips:
  """Clips longer than the training clips, to measure drift.

  Attributes:
    num_clips: number of clips.
    window_size: frames of the training clips.
    settings: `window` or `overlap_frames`, as `sample` takes them.
    source: of real clips of that length, with the same captions at the same indices; None if there
      is none.
  """

  num_clips: int
  window_size: int
  settings: dict
  source: object | None = None


@dataclasses.dataclass
class Generation:
  """Measurements of a model.

  Attributes:
    real, captions, generated: the first ones, to show.
    gfvd: FVD between generated clips and the real ones of the same captions, if asked for.
    real_fvd: FVD between the same real clips and as many other real ones, if there are enough.
    prompts: accuracy by the oracle, see `scores.accuracy_by_novelty`; None without an oracle.
    teacher_forced: metrics of real clips by the model's `score`, by name; None if it has none.
    seconds_a_clip: in full batches, after compilation.
    steps_a_clip: None if the model has no `num_steps`.
    drift: of long clips, if asked for.
  """

  real: UInt8[np.ndarray, "n f H W 3"]
  captions: list[str]
  generated: UInt8[np.ndarray, "n f H W 3"]
  gfvd: float | None
  real_fvd: float | None
  prompts: dict | None
  teacher_forced: dict[str, Float[np.ndarray, "b"]] | None
  seconds_a_clip: float
  steps_a_clip: int | None
  drift: drift.Drift | None

  def scores(self) -> dict:
    """Returns all numbers except those of single clips; None for what was not measured."""
    gfvd = {"value": self.gfvd, "real_against_other_real_clips": self.real_fvd}
    teacher_forced = self.teacher_forced
    return {
      "gfvd": None if self.gfvd is None else gfvd,
      "prompts": self.prompts,
      "teacher_forced": teacher_forced
      and {name: float(x.mean()) for name, x in teacher_forced.items()},
      "seconds_a_clip": self.seconds_a_clip,
      "steps_a_clip": self.steps_a_clip,
      "drift": None if self.drift is None else self.drift.scores(),
    }


def long_clips_of(model, data: DataConfig, num_clips: int, settings: dict | None = None):
  """Returns the long clips to measure.

  Args:
    model: with `num_frames` and `tokenizer`.
    data: of the test clips; sprites have real ones of any length.
    num_clips: number of clips.
    settings: as `sample` takes them; None re-encodes half a clip, or what the model says, which
      works for every model, also with learned positions.
  """
  size, tau = model.num_frames, model.tokenizer.config.temporal_stride
  if settings is None:
    half = 1 + (size - 1) // (2 * tau) * tau
    settings = {"overlap_frames": getattr(model, "default_overlap_frames", half)}
  source = None
  if data.source == "sprites":
    source = make_source(dataclasses.replace(data, num_frames=drift.long_length(size)), "test")
  return LongClips(num_clips, size, settings, source)


def measure(
  model,
  source,
  num_clips: int,
  *,
  num_frames: int | None = None,
  oracle: scores.Oracle | None = None,
  i3d_params: i3d.Params | None = None,
  long_clips: LongClips | None = None,
) -> Generation:
  """Generates clips for a source's captions, and compares them with its clips.

  Clips are drawn with a fixed seed, as in `reconstruction.measure`.

  Args:
    model: to measure.
    source: of real clips; FVD between real clips reads as many others.
    num_clips: number of clips, at most the size of the source.
    num_frames: of a clip, as in the source; None for the model's training length.
    oracle: of sprites; None for clips of other data.
    i3d_params: converted weights; None leaves FVD out.
    long_clips: to measure drift; None leaves it out.
  Raises:
    ValueError: clips do not fit the model, or are too few for FVD.
  """
  has_others = len(source) >= 2 * num_clips
  order = scores.draw(source, 2 * num_clips if has_others else num_clips)
  # Drift first, since it may turn out to be impossible.
  measured_drift = None
  if long_clips is not None:
    measured_drift = _measure_drift(model, source, order, long_clips, oracle)
  size = min(_batch_size(model), num_clips)
  shown, captions, teacher_forced = {"generated": [], "real": []}, [], []
  matches, features = ({kind: [] for kind in shown} for _ in range(2))
  for real, prompts in scores.batches(source, order[:num_clips], "generate", size):
    made = _sample(model, prompts, num_frames, size, seed=len(captions))
    for kind, clips in (("generated", made), ("real", real)):
      shown[kind].extend(clips[: NUM_SHOWN - len(shown[kind])])
      if oracle is not None:
        matches[kind] += oracle.matches(clips, prompts)
      if i3d_params is not None:
        features[kind].append(fvd.features(i3d_params, clips))
    if hasattr(model, "score"):
      teacher_forced.append(_score(model, prompts, real, size))
    captions += prompts
  gfvd, real_fvd = None, None
  if i3d_params is not None:
    others = order[num_clips:] if has_others else None
    gfvd, real_fvd = _distances(source, features, others, i3d_params)
  return Generation(
    real=np.stack(shown["real"]),
    captions=captions[:NUM_SHOWN],
    generated=np.stack(shown["generated"]),
    gfvd=gfvd,
    real_fvd=real_fvd,
    prompts=None if oracle is None else scores.accuracy_by_novelty(captions, matches),
    teacher_forced=_joined(teacher_forced) if teacher_forced else None,
    seconds_a_clip=_time(model, captions, num_frames, size),
    steps_a_clip=model.num_steps(num_frames) if hasattr(model, "num_steps") else None,
    drift=measured_drift,
  )


def _batch_size(model) -> int:
  """Returns how many clips are made together."""
  return getattr(model, "batch_size", scores.BATCH_SIZE)


def _full(items, size: int):
  """Pads a last batch, so that all batches share one compiled program."""
  rows = np.minimum(np.arange(size), len(items) - 1)
  return [items[i] for i in rows] if isinstance(items, list) else items[rows]


def _sample(model, prompts: list[str], num_frames: int | None, size: int, seed: int, **settings):
  clips = model.sample(_full(prompts, size), num_frames, seed, **settings)
  return clips[: len(prompts)]


def _score(model, prompts: list[str], clips, size: int) -> dict[str, np.ndarray]:
  metrics = model.score(_full(prompts, size), _full(clips, size))
  return {name: values[: len(prompts)] for name, values in metrics.items()}


def _joined(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
  return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _time(model, prompts: list[str], num_frames: int | None, size: int) -> float:
  """Returns the seconds per clip of a full batch, already compiled."""
  started = time.perf_counter()
  _sample(model, prompts[:size], num_frames, size, seed=0)
  return (time.perf_counter() - started) / size


def _distances(source, features: dict, others: list[int] | None, params: i3d.Params):
  """Returns FVD of real clips to generated ones, and to other real ones (None without others)."""
  real, generated = (np.concatenate(features[kind]) for kind in ("real", "generated"))
  if others is None:
    return fvd.fvd(real, generated), None
  batches = scores.batches(source, others, "other real clips")
  other = np.concatenate([fvd.features(params, clips) for clips, _ in batches])
  return fvd.fvd(real, generated), fvd.fvd(real, other)


def _measure_drift(
  model, source, order: list[int], long: LongClips, oracle: scores.Oracle | None
) -> drift.Drift:
  order, clips, captions = order[: long.num_clips], {"generated": []}, []
  num_frames = drift.long_length(long.window_size)
  size = min(_batch_size(model), len(order))
  for _, prompts in scores.batches(source, order, "generate long clips", size):
    settings = {"seed": len(captions), **long.settings}
    clips["generated"].append(_sample(model, prompts, num_frames, size, **settings))
    captions += prompts
  if long.source is not None:
    clips["real"] = [x for x, _ in scores.batches(long.source, order, "real long clips")]
  return drift.measure(
    {kind: np.concatenate(parts) for kind, parts in clips.items()},
    captions,
    long.window_size,
    oracle=oracle,
    settings=long.settings,
  )


def table(result: dict) -> str:
  """Formats the contents of `generation.json`."""
  data, missing = result["data"], result["not_measured"]
  lines = scores.head_lines(result)
  steps = result["steps_a_clip"]
  lines += [
    "",
    scores.fvd_line("gFVD".ljust(26), result["gfvd"], missing.get("gfvd"), data["num_clips"]),
  ]
  lines.append(f"{'seconds a clip':26}{result['seconds_a_clip']:8.2f}")
  lines += [] if steps is None else [f"{'steps a clip':26}{steps:8}"]
  lines += cost_lines(result["cost"])
  if result["prompts"]:
    lines += ["", _prompt_table(result["prompts"])]
  if result["teacher_forced"]:
    lines += ["", _teacher_forced_table(result["teacher_forced"])]
  if result["drift"]:
    lines += ["", drift.table(result["drift"], scores.ATTRIBUTES)]
  else:
    lines += ["", f"{'drift':26}  not measured: {missing['drift']}"]
  return "\n".join(lines) + "\n"


def _prompt_table(prompts: dict) -> str:
  """Formats the accuracies in per cent."""
  lines = [f"{'% correct':26}" + "".join(f"{name:>12}" for name in scores.ATTRIBUTES)]
  for label, values in scores.prompt_rows(prompts):
    cells = (f"{100 * values[c]:12.0f}" if c in values else f"{'':12}" for c in scores.ATTRIBUTES)
    lines.append(f"{label:26}" + "".join(cells))
  return "\n".join(lines)


def _teacher_forced_table(teacher_forced: dict) -> str:
  """Formats metrics by name; numbered ones share a line."""
  lines, numbered = (
    ["real clips, teacher-forced: each part predicted from the true clip before it"],
    {},
  )
  for name, value in teacher_forced.items():
    group, _, number = name.rpartition("_")
    if number.isdigit():
      numbered.setdefault(f"{group} 0, 1, ...", []).append(f"{value:8.4f}")
    else:
      lines.append(f"{name:26}{value:8.4f}")
  lines += [f"{name:26}{''.join(cells)}" for name, cells in numbered.items()]
  return "\n".join(lines)


def write(out: pathlib.Path, result: dict, measured: Generation) -> list[pathlib.Path]:
  """Writes numbers, video and images atomically; returns the files."""
  out.mkdir(parents=True, exist_ok=True)
  numbers, video, sheet = (out / f"generation.{end}" for end in ("json", "mp4", "png"))
  write_json(numbers, result)
  write_mp4(video, side_by_side(measured.real, measured.generated), result["data"]["frame_rate"])
  write_png(sheet, contact_sheet(measured.generated, measured.captions))
  if measured.drift is None:
    return [numbers, video, sheet]
  drift.draw(out / "drift.png", measured.drift)
  return [numbers, video, sheet, out / "drift.png"]
