"""Scores a generator by a published protocol, see `protocols`.

Each clip depends on the seed, its number and its class alone, so that processes share the work:
each makes or embeds its own batches, and all get all features.
"""

import dataclasses
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, UInt8
from tqdm import tqdm

from videoar_jax.data.media.numbered import read_numbered
from videoar_jax.evals import feature_cache, fvd, i3d, protocols
from videoar_jax.evals.cost import cost_lines
from videoar_jax.evals.media import contact_sheet, side_by_side, write_mp4, write_png
from videoar_jax.evals.protocols import Protocol, RealClip
from videoar_jax.interop.strict_json import write_json

NUM_SHOWN = 8
_WIDTH = i3d.NUM_POOLED + i3d.NUM_CLASSES
_PARTS = {"pooled": slice(i3d.NUM_POOLED), "logits": slice(i3d.NUM_POOLED, _WIDTH)}


@dataclasses.dataclass
class Published:
  """Measurements of a model by a protocol.

  Attributes:
    protocol: the protocol.
    num_clips: of each side; the protocol's, unless the caller asked for fewer.
    distances: by features, then by seed.
    seconds_a_clip: of full batches after the first, which compiles; of the first if it is alone.
    steps_a_clip: None if the model has no `num_steps`.
    real, generated, captions: the first ones, to show.
  """

  protocol: Protocol
  num_clips: int
  distances: dict[str, dict[int, float]]
  seconds_a_clip: float
  steps_a_clip: int | None
  real: UInt8[np.ndarray, "n f H W 3"]
  generated: UInt8[np.ndarray, "n f H W 3"]
  captions: list[str]

  def scores(self) -> dict:
    """Returns the scores: mean and deviation (divisor n) over the seeds, by features."""
    result = {}
    for name, by_seed in self.distances.items():
      values = np.array(list(by_seed.values()))
      result["gfvd" if name == self.protocol.features else f"gfvd_{name}"] = {
        "value": float(values.mean()),
        "deviation": float(values.std()),
        "by_seed": {str(seed): value for seed, value in by_seed.items()},
      }
    return result


def check_model(protocol: Protocol, model) -> int:
  """Returns the frames that the model has to make for a protocol's clips: its next length.

  Raises:
    ValueError: it was trained on shorter clips.
  """
  tau = model.tokenizer.config.temporal_stride
  num_frames = 1 + -(-(protocol.num_frames - 1) // tau) * tau
  if num_frames > model.num_frames:
    raise ValueError(
      f"--protocol={protocol.name} compares clips of {protocol.num_frames} frames, but the model "
      f"was trained on {model.num_frames}; train one with data.num_frames={num_frames} or more"
    )
  return num_frames


def measure(
  model,
  protocol: Protocol,
  folder: str,
  split_file: str | None,
  num_clips: int,
  i3d_params: i3d.Params,
  *,
  is_shared: bool = False,
) -> Published:
  """Measures a model by a protocol; all processes must call this.

  Args:
    model: to measure.
    protocol: the protocol.
    folder: of the videos.
    split_file: UCF-101's `trainlist01.txt`.
    num_clips: of each side.
    i3d_params: converted weights.
    is_shared: whether the model's devices are those of all processes, which then make each batch
      together; else each process makes batches of its own.
  Raises:
    ValueError, OSError: there are too few clips, one cannot be read, or the model cannot make them.
  """
  num_frames = check_model(protocol, model)
  files = protocols.read_lists(folder, split_file, protocol)
  chosen = {
    seed: protocols.choose(protocol, folder, files, num_clips, seed) for seed in protocol.seeds
  }
  for name in sorted({clip.class_name for clips in chosen.values() for clip in clips}):
    model.text_encoder.encode(name)  # Raises before the first clip is made.
  reader = _Reader(protocol, folder, model.resolution)
  network = feature_cache.fingerprint(i3d_params)
  distances: dict[str, dict[int, float]] = {name: {} for name in _PARTS}
  maker = _Maker(model, num_frames, protocol.num_frames, i3d_params, is_shared)
  for seed, clips in chosen.items():
    key = _key(protocol, folder, clips, model.resolution, network)
    real = feature_cache.features_of(
      clips,
      lambda part: fvd.pooled_and_logits(i3d_params, reader.read(part)),
      _WIDTH,
      key,
      f"real clips, seed {seed}",
    )
    made = maker.features([clip.class_name for clip in clips], seed)
    for name, part in _PARTS.items():
      distance = fvd.frechet_distance(real[:, part], made[:, part], is_biased=protocol.is_biased)
      distances[name][seed] = distance
  first = chosen[protocol.seeds[0]][: len(maker.shown)]
  return Published(
    protocol=protocol,
    num_clips=num_clips,
    distances=distances,
    seconds_a_clip=maker.seconds_a_clip(),
    steps_a_clip=model.num_steps(num_frames) if hasattr(model, "num_steps") else None,
    real=reader.read(first),
    generated=maker.shown,
    captions=[clip.class_name for clip in first],
  )


@dataclasses.dataclass(frozen=True)
class _Reader:
  """Reads real clips."""

  protocol: Protocol
  folder: str
  resolution: tuple[int, int]

  def read(self, clips: Sequence[RealClip]) -> UInt8[np.ndarray, "b f H W 3"]:
    if not clips:
      return np.zeros((0, self.protocol.num_frames, *self.resolution, 3), np.uint8)
    return np.stack([self._read(clip) for clip in clips])

  def _read(self, clip: RealClip) -> UInt8[np.ndarray, "f H W 3"]:
    path = pathlib.Path(self.folder).expanduser() / clip.file
    try:
      return read_numbered(path, clip.start, self.protocol.num_frames, clip.stride, self.resolution)
    except ValueError as error:
      raise ValueError(f"{path}: {error}; replace it, or remove it from the lists") from error


class _Maker:
  """Makes clips batch by batch, and embeds them."""

  def __init__(self, model, num_made: int, num_frames: int, params: i3d.Params, is_shared: bool):
    self._model, self._num_made, self._num_frames = model, num_made, num_frames
    self._params, self._is_shared = params, is_shared
    self._seconds: list[float] = []
    self.shown = np.zeros((0, num_frames, *model.resolution, 3), np.uint8)

  def features(self, prompts: list[str], seed: int) -> Float[np.ndarray, "n d"]:
    """Returns the features of a clip for each prompt; all processes must call this."""
    size, rank, count = self._model.batch_size, jax.process_index(), jax.process_count()
    starts = range(0, len(prompts), size)
    blocks = {}
    with tqdm(total=len(prompts), desc=f"generate, seed {seed}", unit="clip", disable=None) as bar:
      for number, start in enumerate(starts):
        is_own = number % count == rank
        if is_own or self._is_shared:
          clips = self._make(prompts[start : start + size], start, seed)
          if not len(self.shown):
            self.shown = clips[:NUM_SHOWN]  # The first process writes them, and makes batch 0.
          if is_own:
            blocks[start] = fvd.pooled_and_logits(self._params, clips)
        bar.update(min(size, len(prompts) - start))
    return feature_cache.gather(blocks, len(prompts), _WIDTH)

  def _make(self, prompts: list[str], start: int, seed: int) -> UInt8[np.ndarray, "b f H W 3"]:
    num, size = len(prompts), self._model.batch_size
    full = prompts + [prompts[-1]] * (size - num)  # All batches share one compiled program.
    numbers = list(range(start, start + size))
    started = time.perf_counter()
    clips = self._model.sample(full, self._num_made, seed, sample_ids=numbers)
    self._seconds.append((time.perf_counter() - started) / size)
    return clips[:num, : self._num_frames]

  def seconds_a_clip(self) -> float:
    """Returns the mean over all batches but the first, which compiles."""
    return float(np.mean(self._seconds[1:] or self._seconds))


def _key(
  protocol: Protocol,
  folder: str,
  clips: Sequence[RealClip],
  resolution: tuple[int, int],
  network: str,
) -> dict[str, Any]:
  """Describes real features completely: the files by their sizes and times of change."""
  root = pathlib.Path(folder).expanduser().resolve()
  stamps = {}
  for clip in clips:
    status = (root / clip.file).stat()
    stamps[clip.file] = [status.st_size, status.st_mtime_ns]
  return {
    "version": 1,
    "folder": str(root),
    "files": stamps,
    "clips": [[clip.file, clip.start, clip.stride] for clip in clips],
    "num_frames": protocol.num_frames,
    "resize": protocol.resize,
    "resolution": list(resolution),
    "network": network,
  }


def describe(protocol: Protocol, num_clips: int) -> dict:
  """Returns a protocol for a result file, with the number of clips that was used."""
  facts = dataclasses.asdict(protocol)
  return facts | {"num_clips_used": num_clips, "is_complete": num_clips == protocol.num_clips}


def table(result: dict) -> str:
  """Formats the contents of `generation.json`."""
  protocol, data, cost = result["protocol"], result["data"], result["cost"]
  height, width = data["resolution"]
  lines = [
    f"{protocol['name']}: {data['num_clips']} clips of {data['path']}, {protocol['num_frames']} "
    f"frames of {height}x{width}, each {_ordinal(protocol['stride'])} of "
    f"{protocol['frame_rate']:g} a second; measured in {result['seconds']:.0f} s"
  ]
  if not protocol["is_complete"]:
    lines.append(f"note: the protocol has {protocol['num_clips']} clips; not comparable")
  lines += [f"note: {text}" for text in result["notes"]]
  lines.append("")
  for name, label in (("gfvd", "gFVD"), ("gfvd_pooled", "  by pooled features")):
    found = result[name]
    seeds = ", ".join(found["by_seed"])
    spread = f" +- {found['deviation']:.1f}" if len(found["by_seed"]) > 1 else ""
    lines.append(f"{label:26}{found['value']:8.1f}{spread}  (seeds {seeds})")
  lines.append(f"{'seconds a clip':26}{cost['seconds_a_clip']:8.2f}")
  if cost["steps_a_clip"] is not None:
    lines.append(f"{'steps a clip':26}{cost['steps_a_clip']:8}")
  lines += cost_lines(cost)
  lines += [f"{name:26}  not measured: {why}" for name, why in result["not_measured"].items()]
  return "\n".join(lines) + "\n"


def _ordinal(stride: int) -> str:
  return {1: "frame", 2: "second frame", 3: "third frame"}.get(stride, f"{stride}th frame")


def notes_on(protocol: Protocol, trained_rate: float) -> list[str]:
  """Returns what makes a model's clips differ from a protocol's.

  Args:
    protocol: the protocol.
    trained_rate: frames a second of the clips that the model was trained on.
  """
  rate = protocol.frame_rate / protocol.stride
  if abs(trained_rate - rate) < 0.01 * rate:
    return []
  return [
    f"the model was trained at {trained_rate:g} frames a second, the protocol's clips have "
    f"{rate:.3g}"
  ]


def write(out: pathlib.Path, result: dict, measured: Published) -> list[pathlib.Path]:
  """Writes numbers, video and images atomically; returns the files."""
  out.mkdir(parents=True, exist_ok=True)
  numbers, video, sheet = (out / f"generation.{end}" for end in ("json", "mp4", "png"))
  write_json(numbers, result)
  write_mp4(video, side_by_side(measured.real, measured.generated), result["data"]["frame_rate"])
  write_png(sheet, contact_sheet(measured.generated, measured.captions))
  return [numbers, video, sheet]
