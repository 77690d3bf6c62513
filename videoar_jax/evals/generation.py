"""How good generated clips are: likeness to real ones, obedience to prompts, drift, speed.

A model needs no more than `sample(prompts, num_frames, seed, **settings)`. What else it has is
used: `score(prompts, clips)`, measures of each clip by name, with the true clip given up to each
part that is foretold; and `num_steps(num_frames)`, how often its network runs for a clip.
"""

import dataclasses
import json
import pathlib
import time

import numpy as np
from jaxtyping import Float, UInt8

from videoar_jax.data.pipeline import DataConfig, make_source
from videoar_jax.evals import drift, fvd, i3d, scores
from videoar_jax.evals.media import contact_sheet, side_by_side, write_mp4, write_png, write_text

NUM_SHOWN = 8  # Clips that are kept to be looked at.
_COLUMNS = ("size", "colour", "shape", "motion", "background", "all")


@dataclasses.dataclass(frozen=True)
class LongClips:
  """Clips that are longer than those of training, to see how they drift.

  Attributes:
    num_clips: how many.
    window_size: frames of the clips of training.
    settings: `window` or `overlap_frames`, as `sample` takes them.
    source: of real clips as long, of the same captions at the same indices; None where there is
      none.
  """

  num_clips: int
  window_size: int
  settings: dict
  source: object | None = None


@dataclasses.dataclass
class Generation:
  """What was measured of a model.

  Attributes:
    real, captions, generated: the first ones, to be looked at.
    gfvd: distance of generated clips to the real ones whose captions were their prompts, if it was
      asked for.
    real_fvd: that of the same real clips to as many other real ones, if there are.
    prompts: what the oracle reads, see `scores.accuracy_by_novelty`; None where there is none.
    foretold: of real clips, what the model's `score` measures, by name; None where it has none.
    seconds_a_clip: in full batches, after compiling.
    steps_a_clip: None where the model does not tell.
    drift: of long clips, if it was asked for.
  """

  real: UInt8[np.ndarray, "n f H W 3"]
  captions: list[str]
  generated: UInt8[np.ndarray, "n f H W 3"]
  gfvd: float | None
  real_fvd: float | None
  prompts: dict | None
  foretold: dict[str, Float[np.ndarray, "b"]] | None
  seconds_a_clip: float
  steps_a_clip: int | None
  drift: drift.Drift | None

  def scores(self) -> dict:
    """Returns every number but those of single clips; None for what was not measured."""
    gfvd = {"value": self.gfvd, "real_against_other_real_clips": self.real_fvd}
    foretold = self.foretold
    return {
      "gfvd": None if self.gfvd is None else gfvd,
      "prompts": self.prompts,
      "foretold": foretold and {name: float(x.mean()) for name, x in foretold.items()},
      "seconds_a_clip": self.seconds_a_clip,
      "steps_a_clip": self.steps_a_clip,
      "drift": None if self.drift is None else self.drift.scores(),
    }


def long_clips_of(model, data: DataConfig, num_clips: int, settings: dict | None = None):
  """Returns what to measure of long clips.

  Args:
    model: with `num_frames` and `tokenizer`.
    data: of the test clips; sprites have real ones of any length.
    num_clips: how many.
    settings: as `sample` takes them; None for re-encoding half a clip, which every model can do:
      learned positions have no more.
  """
  size, tau = model.num_frames, model.tokenizer.config.temporal_stride
  if settings is None:
    settings = {"overlap_frames": 1 + (size - 1) // (2 * tau) * tau}
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
  oracle_rate: float | None = None,
  i3d_params: i3d.Params | None = None,
  long_clips: LongClips | None = None,
) -> Generation:
  """Generates clips for a source's captions, and measures them beside its clips.

  Captions and clips are drawn, always the same ones, as for `reconstruction.measure`.

  Args:
    model: to measure.
    source: of real clips; for FVD among real clips, as many others are read as well.
    num_clips: how many, at most what the source holds.
    num_frames: of a clip, as in the source; None for as many as the model was trained on.
    oracle_rate: frames a second, for the sprites' oracle; None for clips of something else.
    i3d_params: converted weights; FVD is left out without.
    long_clips: to see how they drift; None leaves that out.
  Raises:
    ValueError: clips do not fit the model, or are too few for FVD.
  """
  has_others = len(source) >= 2 * num_clips
  order = scores.draw(source, 2 * num_clips if has_others else num_clips)
  # First, since it is what may turn out to be impossible.
  found_drift = None
  if long_clips is not None:
    found_drift = _measure_drift(model, source, order, long_clips, oracle_rate)
  size = min(scores.BATCH_SIZE, num_clips)
  shown, captions, foretold = {"generated": [], "real": []}, [], []
  matches, features = ({kind: [] for kind in shown} for _ in range(2))
  for real, prompts in scores.batches(source, order[:num_clips], "generate"):
    made = _sample(model, prompts, num_frames, size, seed=len(captions))
    for kind, clips in (("generated", made), ("real", real)):
      shown[kind].extend(clips[: NUM_SHOWN - len(shown[kind])])
      if oracle_rate is not None:
        matches[kind] += scores.oracle_matches(clips, prompts, oracle_rate)
      if i3d_params is not None:
        features[kind].append(fvd.features(i3d_params, clips))
    if hasattr(model, "score"):
      foretold.append(_score(model, prompts, real, size))
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
    prompts=None if oracle_rate is None else scores.accuracy_by_novelty(captions, matches),
    foretold=_joined(foretold) if foretold else None,
    seconds_a_clip=_time(model, captions, num_frames, size),
    steps_a_clip=model.num_steps(num_frames) if hasattr(model, "num_steps") else None,
    drift=found_drift,
  )


def _full(items, size: int):
  """Fills up a last batch, so that one program serves all."""
  rows = np.minimum(np.arange(size), len(items) - 1)
  return [items[i] for i in rows] if isinstance(items, list) else items[rows]


def _sample(model, prompts: list[str], num_frames: int | None, size: int, seed: int, **settings):
  clips = model.sample(_full(prompts, size), num_frames, seed, **settings)
  return clips[: len(prompts)]


def _score(model, prompts: list[str], clips, size: int) -> dict[str, np.ndarray]:
  found = model.score(_full(prompts, size), _full(clips, size))
  return {name: values[: len(prompts)] for name, values in found.items()}


def _joined(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
  return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _time(model, prompts: list[str], num_frames: int | None, size: int) -> float:
  """Returns the seconds that a clip of a full batch takes, which was compiled before."""
  started = time.perf_counter()
  _sample(model, prompts[:size], num_frames, size, seed=0)
  return (time.perf_counter() - started) / size


def _distances(source, features: dict, others: list[int] | None, params: i3d.Params):
  """Returns FVD of real clips to generated ones, and to other real ones; None without these."""
  real, generated = (np.concatenate(features[kind]) for kind in ("real", "generated"))
  if others is None:
    return fvd.fvd(real, generated), None
  batches = scores.batches(source, others, "other real clips")
  other = np.concatenate([fvd.features(params, clips) for clips, _ in batches])
  return fvd.fvd(real, generated), fvd.fvd(real, other)


def _measure_drift(
  model, source, order: list[int], long: LongClips, oracle_rate: float | None
) -> drift.Drift:
  order, clips, captions = order[: long.num_clips], {"generated": []}, []
  num_frames = drift.long_length(long.window_size)
  size = min(scores.BATCH_SIZE, len(order))
  for _, prompts in scores.batches(source, order, "generate long clips"):
    settings = {"seed": len(captions), **long.settings}
    clips["generated"].append(_sample(model, prompts, num_frames, size, **settings))
    captions += prompts
  if long.source is not None:
    clips["real"] = [x for x, _ in scores.batches(long.source, order, "real long clips")]
  return drift.measure(
    {kind: np.concatenate(parts) for kind, parts in clips.items()},
    captions,
    long.window_size,
    oracle_rate=oracle_rate,
    settings=long.settings,
  )


def table(result: dict) -> str:
  """Returns what `generation.json` holds, to be read."""
  data, missing = result["data"], result["not_measured"]
  lines = scores.head_lines(result)
  steps = result["steps_a_clip"]
  lines += [
    "",
    scores.fvd_line("gFVD".ljust(26), result["gfvd"], missing.get("gfvd"), data["num_clips"]),
  ]
  lines.append(f"{'seconds a clip':26}{result['seconds_a_clip']:8.2f}")
  lines += [] if steps is None else [f"{'steps a clip':26}{steps:8}"]
  if result["prompts"]:
    lines += ["", _prompt_table(result["prompts"])]
  if result["foretold"]:
    lines += ["", _foretold_table(result["foretold"])]
  if result["drift"]:
    lines += ["", drift.table(result["drift"], _COLUMNS)]
  else:
    lines += ["", f"{'drift':26}  not measured: {missing['drift']}"]
  return "\n".join(lines) + "\n"


def _prompt_table(prompts: dict) -> str:
  """Returns the accuracies in per cent."""
  lines = [f"{'% right':26}" + "".join(f"{name:>12}" for name in _COLUMNS)]

  def add(name: str, values: dict) -> None:
    cells = (f"{100 * values[c]:12.0f}" if c in values else f"{'':12}" for c in _COLUMNS)
    lines.append(f"{name:26}" + "".join(cells))

  count = prompts["count"]
  for part, label in (("all", "generated"), ("seen", "... seen"), ("held_out", "... held out")):
    if count[part]:
      add(f"{label} ({count[part]})", prompts["generated"][part])
  add("real clips", prompts["real"]["all"])
  if "chance" in prompts:
    add("a blind guess", prompts["chance"])
  return "\n".join(lines)


def _foretold_table(foretold: dict) -> str:
  """Returns measures by name, those that are numbered in one line."""
  lines, numbered = ["real clips, foretold from the true clip before each part"], {}
  for name, value in foretold.items():
    group, _, number = name.rpartition("_")
    if number.isdigit():
      numbered.setdefault(f"{group} 0, 1, ...", []).append(f"{value:8.4f}")
    else:
      lines.append(f"{name:26}{value:8.4f}")
  lines += [f"{name:26}{''.join(cells)}" for name, cells in numbered.items()]
  return "\n".join(lines)


def write(out: pathlib.Path, result: dict, found: Generation) -> list[pathlib.Path]:
  """Writes the numbers and the pictures, and returns the files; each appears once it is whole."""
  out.mkdir(parents=True, exist_ok=True)
  numbers, video, sheet = (out / f"generation.{end}" for end in ("json", "mp4", "png"))
  write_text(numbers, json.dumps(result, indent=2) + "\n")
  write_mp4(video, side_by_side(found.real, found.generated), result["data"]["frame_rate"])
  write_png(sheet, contact_sheet(found.generated, found.captions))
  if found.drift is None:
    return [numbers, video, sheet]
  drift.draw(out / "drift.png", found.drift)
  return [numbers, video, sheet, out / "drift.png"]
