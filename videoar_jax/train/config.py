"""From a config file to one frozen, checked description of a run.

Every section becomes a dataclass at its module's door; a field that no dataclass knows is an error.
"""

import dataclasses
import difflib
import functools
import itertools
import json
import pathlib
import types
import typing
from typing import Any

from ml_collections import ConfigDict

from videoar_jax.data.buckets import size_of
from videoar_jax.data.pipeline import DataConfig
from videoar_jax.data.text import TextEncoder, make_text_encoder
from videoar_jax.parallel.sharding import MeshConfig
from videoar_jax.tokenizer.autoencoder import AutoencoderConfig
from videoar_jax.tokenizer.inflation import InflateConfig
from videoar_jax.tokenizer.schedules import (
  Schedule,
  check_schedule,
  default_schedule,
  parse_schedule,
)
from videoar_jax.train.cache import Cache, CacheConfig
from videoar_jax.train.generator import GeneratorLossConfig, widest
from videoar_jax.train.loop import LoopConfig
from videoar_jax.train.tokenizer import TokenizerLossConfig
from videoar_jax.videoar.guidance import guidance_table
from videoar_jax.videoar.layout import Layout
from videoar_jax.videoar.model import GeneratorConfig


@dataclasses.dataclass(frozen=True)
class TextConfig:
  """Prompts as tokens.

  Attributes:
    length: `P`, with the end token; 1 for classes; with features, the most of a prompt.
    attention: see `Layout`.
    tokenizer: "bytes"; the path of a JSON file of Hugging Face `tokenizers`; "classes", where a
      prompt is the name of one; or the path of features made before, see `TextFeatures`.
    classes: their names.
  """

  length: int = 64
  attention: str = "causal"
  tokenizer: str = "bytes"
  classes: tuple[str, ...] = ()

  @functools.cached_property
  def encoder(self) -> TextEncoder:
    """What turns prompts into tokens."""
    return make_text_encoder(self.tokenizer, self.length, self.classes)


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
  """Defaults of sampling; see `Model.sample`."""

  guidance: str = "constant:1"
  temperature: float = 1.0
  top_p: float = 1.0


@dataclasses.dataclass(frozen=True)
class ReportConfig:
  """What the closing report measures: test clips reconstructed, test prompts generated."""

  num_clips: int = 64
  num_prompts: int = 64

  def __post_init__(self):
    for name in ("num_clips", "num_prompts"):
      if getattr(self, name) < 1:
        raise ValueError(f"report.{name}={getattr(self, name)} must be at least 1")


@dataclasses.dataclass(frozen=True)
class ImagesConfig:
  """Steps on single frames among those on clips, each kind of batch in its one shape.

  Attributes:
    share: of the steps; 0 for none.
    batch_size: frames a step, over all devices.
  """

  share: float = 0.0
  batch_size: int = 1

  def __post_init__(self):
    if not 0 <= self.share < 1:
      raise ValueError(f"share={self.share} must be in [0, 1); data of images alone: num_frames=1")
    if self.batch_size < 1:
      raise ValueError(f"batch_size={self.batch_size} must be at least 1")


@dataclasses.dataclass(frozen=True)
class PartConfig:
  """A part of a stage's mixture.

  Attributes:
    name: for people.
    data: its source; `num_frames` is the smallest of those below.
    weight: share of the batches, and so of the tokens; the weights of all parts sum to 1.
    num_frames: of clips; batches take turns.
    resolutions: (H, W) in pixels; a sample has that of the nearest aspect ratio.
  """

  name: str
  data: DataConfig
  weight: float
  num_frames: tuple[int, ...]
  resolutions: tuple[tuple[int, int], ...]

  @property
  def shapes(self) -> list[tuple[int, tuple[int, int]]]:
    """(frames, (height, width)) of its clips."""
    return list(itertools.product(self.num_frames, self.resolutions))


@dataclasses.dataclass(frozen=True)
class StageConfig:
  """One stage of training.

  Attributes:
    name: of its folder in the workdir.
    kind: "tokenizer" or "generator", what is trained. It starts from the weights of the stage
      before it of the same kind, unless `inflate` names others; so does a discriminator, where it
      is the same network.
    data: the clips, which a stage may have of another length than the run's.
    loop: for how long.
    loss: on what.
    inflate: the image tokenizer to start from, if any.
    images: single frames of the same data, beside the clips.
    cache: what a generator reads in place of the clips, if there is one between the tokenizer and
      it.
    start: file of weights, of `python -m videoar_jax.convert weights`, to start from, if any.
    continues: whether the optimizer goes on from the stage before it of the same kind, with the
      averaged parameters and one schedule over the steps of both; otherwise, it starts anew, from
      the averaged parameters.
    mixture: what it is trained on in place of `data` alone, which then says what a batch costs:
      `loop.batch_size` clips of it. Batches of other shapes have as many as make as many tokens.
  """

  name: str
  kind: str
  data: DataConfig
  loop: LoopConfig
  loss: TokenizerLossConfig | GeneratorLossConfig
  inflate: InflateConfig | None = None
  images: ImagesConfig = ImagesConfig()
  cache: Cache | None = None
  start: str | None = None
  continues: bool = False
  mixture: tuple[PartConfig, ...] = ()

  @property
  def source_data(self) -> list[DataConfig]:
    """What its batches are made of: the parts of its mixture, or its clips and its images."""
    data = [part.data for part in self.mixture] or [self.data]
    if self.images.share > 0:
      data.append(dataclasses.replace(self.data, num_frames=1))
    return data


@dataclasses.dataclass(frozen=True)
class RunConfig:
  """A run, checked and complete: `stages` are those that train, `caches` those that encode."""

  seed: int
  data: DataConfig
  text: TextConfig
  tokenizer: AutoencoderConfig
  schedule: Schedule
  generator: GeneratorConfig | None
  sampling: SamplingConfig
  mesh: MeshConfig
  report: ReportConfig
  stages: tuple[StageConfig, ...]
  caches: tuple[Cache, ...] = ()

  def schedule_of(self, resolution: tuple[int, int]) -> Schedule:
    """The scales of a picture: the run's own at its resolution, else those of the public tables."""
    if tuple(resolution) == self.data.resolution:
      return self.schedule
    return default_schedule(self.tokenizer.latent_shape(1, resolution)[1:])

  def layout_of(self, data: DataConfig) -> Layout:
    """The sequence of a clip."""
    return self.layout(data.num_frames, data.resolution)

  def layouts_of(self, stage: StageConfig) -> tuple[Layout, ...]:
    """The sequences of all clips of a stage."""
    shapes = [shape for part in stage.mixture for shape in part.shapes]
    return tuple(self.layout(*shape) for shape in shapes) or (self.layout_of(stage.data),)

  @property
  def widest_layout(self) -> Layout:
    """The sequence of the most scales of all stages, by which they have one network."""
    stages = [stage for stage in self.stages if stage.kind == "generator"]
    own = [self.layout_of(stage.data) for stage in stages]
    return widest([*own, *(layout for stage in stages for layout in self.layouts_of(stage))])

  def layout(self, num_frames: int, resolution: tuple[int, int]) -> Layout:
    """The sequence of a clip of a number of frames of (H, W) pixels."""
    frames, _, _ = self.tokenizer.latent_shape(num_frames, resolution)
    generator = self.generator
    return Layout(
      self.text.length,
      frames,
      self.schedule_of(resolution),
      text_attention=self.text.attention,
      past=generator.past,
      previous=generator.previous,
      rope_grid=generator.rope_grid,
    )

  def batch_size_of(self, stage: StageConfig, shape: tuple[int, tuple[int, int]], ways: int) -> int:
    """The clips of a batch of one shape of a stage's mixture, of about as many tokens as others.

    Args:
      stage: with a mixture.
      shape: (frames, (height, width)).
      ways: parts that batches are split into; a batch has as many clips for each.
    """
    tokens = stage.loop.batch_size * self.layout_of(stage.data).length
    rows = tokens // self.layout(*shape).length
    return max(rows // ways, 1) * ways

  def chain(self, stage: StageConfig) -> list[StageConfig]:
    """Returns the stages that have one optimizer and one schedule with a stage, it included."""
    chains: list[list[StageConfig]] = []
    for other in self.stages:
      if other.kind == stage.kind:
        if not other.continues:
          chains.append([])
        chains[-1].append(other)
    return next(chain for chain in chains if stage in chain)

  def stage_of_kind(self, kind: str) -> StageConfig | None:
    """Returns the last stage that trains a tokenizer or a generator."""
    return next((stage for stage in reversed(self.stages) if stage.kind == kind), None)


_LOSSES = {"tokenizer": TokenizerLossConfig, "generator": GeneratorLossConfig}
_STAGE_FIELDS = (
  "kind",
  "num_frames",
  "data",
  "mixture",
  "loop",
  "loss",
  "inflate",
  "images",
  "start",
  "continues",
)
_SECTIONS = (
  "seed",
  "data",
  "text",
  "tokenizer",
  "schedule",
  "generator",
  "sampling",
  "mesh",
  "report",
  "stages",
  "stage",
)


def finalize(config: ConfigDict | dict) -> RunConfig:
  """Derives what follows from a config and checks it.

  Raises:
    ValueError: a field is unknown, missing or impossible; names it and the mend.
  """
  values = config.to_dict() if isinstance(config, ConfigDict) else dict(config)
  _check_names(values, _SECTIONS, "config")
  tokenizer = build(AutoencoderConfig, values.get("tokenizer", {}), "tokenizer")
  data = build(DataConfig, values.get("data", {}), "data")
  text = build(TextConfig, values.get("text", {}), "text")
  _, *grid = tokenizer.latent_shape(data.num_frames, data.resolution)
  grid = tuple(grid)
  schedule_text = values.get("schedule", "")
  schedule = parse_schedule(schedule_text) if schedule_text else default_schedule(grid)
  check_schedule(schedule, grid)
  derived = {"num_bits": tokenizer.num_bits} | {
    name: getattr(text.encoder, name) for name in ("vocabulary_size", "text_width")
  }
  for name in derived:
    if name in values.get("generator", {}):
      raise ValueError(f"generator.{name} follows from other fields; remove it")
  # A run that trains a tokenizer alone need not say what a generator would be.
  generator = None
  if values.get("generator") or "generator" in _kinds(values):
    generator = build(GeneratorConfig, values.get("generator", {}) | derived, "generator")
  stages, caches = _stages(values, data)
  run = RunConfig(
    seed=values.get("seed", 0),
    data=data,
    text=text,
    tokenizer=tokenizer,
    schedule=schedule,
    generator=generator,
    sampling=build(SamplingConfig, values.get("sampling", {}), "sampling"),
    mesh=build(MeshConfig, values.get("mesh", {}), "mesh"),
    report=build(ReportConfig, values.get("report", {}), "report"),
    stages=stages,
    caches=caches,
  )
  for cache in run.caches:
    tokenizer.latent_shape(cache.data.num_frames, cache.data.resolution)
  for stage in run.stages:
    tokenizer.latent_shape(stage.data.num_frames, stage.data.resolution)
    if stage.kind == "tokenizer" and stage.loss.adversarial.weight > 0:
      discriminator = stage.loss.adversarial.discriminator
      try:
        discriminator.check_resolution(stage.data.resolution)
      except ValueError as error:
        raise ValueError(f"stage.{stage.name}.loss.adversarial.discriminator: {error}") from None
    if run.generator is not None:
      layout = run.layout_of(stage.data)
      guidance_table(run.sampling.guidance, layout.num_frames, layout.num_scales)
  if run.generator is not None:
    _check_layouts(run)
  return run


def _check_layouts(run: RunConfig) -> None:
  """Raises ValueError if one network cannot serve the sequences of all stages."""
  stages = [stage for stage in run.stages if stage.kind == "generator"]
  layouts = [layout for stage in stages for layout in run.layouts_of(stage)]
  layouts += [run.layout_of(stage.data) for stage in stages]
  if run.generator.positions == "learned" and len({layout.length for layout in layouts}) > 1:
    raise ValueError("generator.positions='learned' has one length of clips; set 'rope'")
  if run.generator.past == "final" and len({layout.num_scales for layout in layouts}) > 1:
    raise ValueError(
      "generator.past='final' has one number of scales, but stages have several; set 'scales'"
    )


def _kinds(values: dict) -> set[str]:
  """Returns what the stages train, as far as they say."""
  settings = values.get("stage", {})
  return {settings.get(name, {}).get("kind", name) for name in values.get("stages", ())}


def _stages(values: dict, data: DataConfig) -> tuple[tuple[StageConfig, ...], tuple[Cache, ...]]:
  names, settings = tuple(values.get("stages", ())), values.get("stage", {})
  if not names:
    raise ValueError("config.stages is empty; name at least one stage")
  twice = [name for name in names if names.count(name) > 1]
  if twice:
    raise ValueError(f"config.stages names {twice[0]!r} twice; give each its own name and section")
  stages, caches = [], []
  source: StageConfig | Cache | None = None  # The last tokenizer or cache so far.
  for name in names:
    if name not in settings:
      raise ValueError(
        f"config.stages names {name!r}, but config.stage.{name} is missing; add it, or remove the "
        "name"
      )
    section, path = settings[name], f"stage.{name}"
    if section.get("kind", name) == "cache":
      if not any(stage.kind == "tokenizer" for stage in stages):
        raise ValueError(f"{path} encodes before any tokenizer is trained; put one before it")
      source = _cache(section, path, name, stages[-1].name, data)
      caches.append(source)
      continue
    _check_names(section, _STAGE_FIELDS, path)
    kind = section.get("kind", name)
    if kind not in _LOSSES:
      raise ValueError(f"{path}.kind={kind!r} is unknown; kinds are {', '.join(_LOSSES)}, cache")
    loop = build(LoopConfig, section.get("loop", {}), f"{path}.loop")
    loss = build(_LOSSES[kind], section.get("loss", {}), f"{path}.loss")
    clips = _stage_data(section, path, data)
    mixture = _mixture(section.get("mixture", {}), f"{path}.mixture", clips)
    inflate = build(InflateConfig, section.get("inflate", {}), f"{path}.inflate")
    if inflate.path and kind != "tokenizer":
      raise ValueError(f"{path}.inflate starts a tokenizer, but the stage is a {kind}; remove it")
    inflate = inflate if inflate.path else None
    start = section.get("start") or None
    if start and inflate:
      raise ValueError(f"{path}.start={start} and {path}.inflate exclude each other; remove one")
    images = build(ImagesConfig, section.get("images", {}), f"{path}.images")
    if images.share > 0 and kind != "tokenizer":
      raise ValueError(f"{path}.images: a {kind} trains on clips of one length; set share=0")
    cache = source if kind == "generator" and isinstance(source, Cache) else None
    if cache is not None and cache.data != clips:
      field = next(name for name, x in vars(clips).items() if x != getattr(cache.data, name))
      raise ValueError(
        f"{path}: data.{field} is {getattr(clips, field)!r}, but {getattr(cache.data, field)!r} in "
        f"stage.{cache.name}, which it reads; set both alike, or put a cache of its own before it"
      )
    if mixture and (kind != "generator" or cache is not None):
      what = "reads a cache" if cache is not None else f"is a {kind}"
      raise ValueError(f"{path}.mixture is for generators that read clips, but this one {what}")
    made = StageConfig(
      name=name,
      kind=kind,
      data=clips,
      loop=loop,
      loss=loss,
      inflate=inflate,
      images=images,
      cache=cache,
      start=start,
      continues=_convert(bool, section.get("continues", False), f"{path}.continues"),
      mixture=mixture,
    )
    if made.continues:
      _check_continues(made, [stage for stage in stages if stage.kind == kind], path)
    stages.append(made)
    source = stages[-1] if kind == "tokenizer" else source
  kinds = [stage.kind for stage in stages]
  if "generator" in kinds and "tokenizer" not in kinds[: kinds.index("generator")]:
    raise ValueError("config.stages trains a generator before any tokenizer; put one before it")
  if not stages:
    raise ValueError("config.stages trains nothing; name at least one stage that does")
  return tuple(stages), tuple(caches)


def _check_continues(stage: StageConfig, before: list[StageConfig], path: str) -> None:
  """Raises ValueError if a stage cannot go on with the optimizer of the last of those before it."""
  if not before:
    raise ValueError(f"{path}.continues: no {stage.kind} is trained before it; remove it")
  if stage.start or stage.inflate:
    field = "start" if stage.start else "inflate"
    raise ValueError(f"{path}.continues and {path}.{field} exclude each other; remove one")
  last = before[-1]
  pairs = {
    "loop.optimizer": (stage.loop.optimizer, last.loop.optimizer),
    "loop.ema_decay": (stage.loop.ema_decay, last.loop.ema_decay),
  }
  if stage.kind == "tokenizer":
    pairs["loss.adversarial"] = (stage.loss.adversarial, last.loss.adversarial)
  for field, (own, other) in pairs.items():
    if own != other:
      raise ValueError(
        f"{path}.continues: {path}.{field} is not as in stage.{last.name}; set both alike, or "
        "remove `continues`"
      )


def _stage_data(section: dict, path: str, data: DataConfig) -> DataConfig:
  """Returns the run's data with what a stage changes of it."""
  changes = dict(section.get("data", {}))
  if section.get("num_frames"):
    changes["num_frames"] = section["num_frames"]
  return _changed(data, changes, f"{path}.data")


def _changed(data: DataConfig, changes: dict, path: str) -> DataConfig:
  return build(DataConfig, dataclasses.asdict(data) | changes, path)


def _mixture(sections: dict, path: str, data: DataConfig) -> tuple[PartConfig, ...]:
  """Returns the parts of a mixture; what one does not say is as in the stage's data.

  Raises:
    ValueError: a field is wrong, or weights do not sum to 1; names it.
  """
  parts = []
  for name, section in sections.items():
    own, changes = f"{path}.{name}", dict(section)
    weight = changes.pop("weight", None)
    if not isinstance(weight, int | float) or not 0 < weight <= 1:
      raise ValueError(f"{own}.weight={weight!r} must be more than 0, up to 1")
    num_frames = changes.pop("num_frames", data.num_frames)
    num_frames = (num_frames,) if isinstance(num_frames, int) else tuple(num_frames)
    pixels, ratios = changes.pop("pixels", None), changes.pop("aspect_ratios", None)
    resolutions = (tuple(changes.pop("resolution", data.resolution)),)
    if (pixels is None) != (ratios is None):
      raise ValueError(f"{own}: pixels and aspect_ratios belong together; set both or none")
    if pixels is not None:
      try:
        resolutions = tuple(size_of(pixels, ratio) for ratio in ratios)
      except ValueError as error:
        raise ValueError(f"{own}: {error}") from None
    if not num_frames or not resolutions:
      raise ValueError(f"{own}: num_frames and aspect_ratios need one value at least")
    changes |= {"num_frames": min(num_frames), "resolution": resolutions[0]}
    parts.append(PartConfig(name, _changed(data, changes, own), weight, num_frames, resolutions))
  total = sum(part.weight for part in parts)
  if parts and abs(total - 1) > 1e-6:
    raise ValueError(f"{path}: the weights sum to {total:g}; let them sum to 1")
  return tuple(parts)


def _cache(section: dict, path: str, name: str, after: str, data: DataConfig) -> Cache:
  options = {key: value for key, value in section.items() if key not in ("kind", "num_frames")}
  config = build(CacheConfig, options, path)
  clips = dataclasses.replace(data, num_frames=section.get("num_frames") or data.num_frames)
  try:
    return Cache(name, after, clips, config)
  except ValueError as error:
    raise ValueError(f"{path}.{error}") from None


def build(cls: type, values: dict, path: str):
  """Builds a dataclass from a section, sections within it included.

  Args:
    cls: the dataclass.
    values: its fields.
    path: the section's name, for errors.
  Raises:
    ValueError: a field is unknown, missing, of another type, or out of range.
  """
  fields = {field.name: field for field in dataclasses.fields(cls)}
  _check_names(values, tuple(fields), path)
  hints, arguments = typing.get_type_hints(cls), {}
  for name, field in fields.items():
    if name in values:
      arguments[name] = _convert(hints[name], values[name], f"{path}.{name}")
    elif dataclasses.is_dataclass(hints[name]):
      arguments[name] = _convert(hints[name], {}, f"{path}.{name}")
    elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
      raise ValueError(f"{path}.{name} is missing; set it")
  try:
    return cls(**arguments)
  except ValueError as error:
    # Dataclasses name their field; where it stands in the config is known here.
    prefix = "" if str(error).startswith(path.rpartition(".")[0] or path) else f"{path}: "
    raise ValueError(f"{prefix}{error}") from None


def _convert(hint: Any, value: Any, path: str) -> Any:
  if dataclasses.is_dataclass(hint):
    return build(hint, value, path)
  options = typing.get_args(hint) if _is_union(hint) else (hint,)
  kinds = tuple(typing.get_origin(option) or option for option in options)
  if tuple in kinds and isinstance(value, list | tuple):
    return _as_tuple(value)
  if float in kinds and isinstance(value, int) and not isinstance(value, bool):
    return float(value) if int not in kinds else value
  if isinstance(value, kinds) and not (isinstance(value, bool) and bool not in kinds):
    return value
  wanted = " or ".join(kind.__name__ for kind in kinds)
  raise ValueError(f"{path}={value!r} must be of type {wanted}")


def _is_union(hint: Any) -> bool:
  return typing.get_origin(hint) in (typing.Union, types.UnionType)


def _as_tuple(value):
  return tuple(_as_tuple(item) if isinstance(item, list | tuple) else item for item in value)


def _check_names(values: dict, known: tuple[str, ...], path: str) -> None:
  for name in values:
    if name not in known:
      near = difflib.get_close_matches(name, known, n=1)
      hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
      raise ValueError(f"{path}.{name} is not a field; {hint}")


def save_config(config: ConfigDict, path: pathlib.Path) -> None:
  """Writes a config as JSON."""
  partial = path.with_suffix(".partial")
  partial.write_text(json.dumps(config.to_dict(), indent=2) + "\n")
  partial.replace(path)


def load_config(path: pathlib.Path) -> dict:
  """Reads what `save_config` wrote."""
  return json.loads(path.read_text())
