"""From a config file to one frozen, checked description of a run.

Every section becomes a dataclass at its module's door; a field that no dataclass knows is an error.
"""

import dataclasses
import json
import pathlib

from ml_collections import ConfigDict

from videoar_jax.data.buckets import size_of
from videoar_jax.data.pipeline import DataConfig
from videoar_jax.experiment.fields import build, check_names, convert
from videoar_jax.experiment.schema import (
  ImagesConfig,
  PartConfig,
  ReportConfig,
  RunConfig,
  SamplingConfig,
  StageConfig,
  TextConfig,
)
from videoar_jax.experiment.token_cache import Cache, CacheConfig
from videoar_jax.models.videoar.guidance import guidance_table
from videoar_jax.models.videoar.network import GeneratorConfig
from videoar_jax.models.videoar.task import GeneratorLossConfig
from videoar_jax.parallel.mesh import MeshConfig
from videoar_jax.tokenizers.bsq.autoencoder import AutoencoderConfig
from videoar_jax.tokenizers.bsq.inflation import InflateConfig
from videoar_jax.tokenizers.bsq.schedules import check_schedule, default_schedule, parse_schedule
from videoar_jax.tokenizers.bsq.task import TokenizerLossConfig
from videoar_jax.train.config import LoopConfig

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
  "mesh",
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
  check_names(values, _SECTIONS, "config")
  tokenizer = build(AutoencoderConfig, values.get("tokenizer", {}), "tokenizer")
  data = build(DataConfig, values.get("data", {}), "data")
  text = build(TextConfig, values.get("text", {}), "text")
  _, *grid = tokenizer.latent_shape(data.num_frames, data.resolution)
  grid = tuple(grid)
  schedule_text = values.get("schedule", "")
  schedule = parse_schedule(schedule_text) if schedule_text else default_schedule(grid)
  check_schedule(schedule, grid)
  derived = {"num_bits": tokenizer.num_bits} | {
    name: getattr(text.encoder, name) for name in ("vocabulary_size", "text_dim")
  }
  for name in derived:
    if name in values.get("generator", {}):
      raise ValueError(f"generator.{name} follows from other fields; remove it")
  # A run that trains a tokenizer alone need not say what a generator would be.
  generator = None
  if values.get("generator") or "generator" in _kinds(values):
    generator = build(GeneratorConfig, values.get("generator", {}) | derived, "generator")
  mesh = build(MeshConfig, values.get("mesh", {}), "mesh")
  stages, caches = _stages(values, data, mesh)
  run = RunConfig(
    seed=values.get("seed", 0),
    data=data,
    text=text,
    tokenizer=tokenizer,
    schedule=schedule,
    generator=generator,
    sampling=build(SamplingConfig, values.get("sampling", {}), "sampling"),
    mesh=mesh,
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
  if run.generator.context == "full_frame" and len({layout.num_scales for layout in layouts}) > 1:
    raise ValueError(
      "generator.context='full_frame' has one number of scales, but stages have several; set "
      "'scales'"
    )


def _kinds(values: dict) -> set[str]:
  """Returns what the stages train, as far as they say."""
  settings = values.get("stage", {})
  return {settings.get(name, {}).get("kind", name) for name in values.get("stages", ())}


def _stages(
  values: dict, data: DataConfig, mesh: MeshConfig
) -> tuple[tuple[StageConfig, ...], tuple[Cache, ...]]:
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
    check_names(section, _STAGE_FIELDS, path)
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
      continues=convert(bool, section.get("continues", False), f"{path}.continues"),
      mesh=build(MeshConfig, dataclasses.asdict(mesh) | section.get("mesh", {}), f"{path}.mesh"),
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


def save_config(config: ConfigDict, path: pathlib.Path) -> None:
  """Writes a config as JSON."""
  partial = path.with_suffix(".partial")
  partial.write_text(json.dumps(config.to_dict(), indent=2) + "\n")
  partial.replace(path)


def load_config(path: pathlib.Path) -> dict:
  """Reads what `save_config` wrote."""
  return json.loads(path.read_text())
