"""From a config file to one frozen, checked description of a run.

Every section becomes a dataclass at its module's door; a field that no dataclass knows is an error.
"""

import dataclasses
import json
import pathlib

from ml_collections import ConfigDict

from videoar_jax.data.buckets import size_of
from videoar_jax.data.pipeline import DataConfig
from videoar_jax.experiment.fields import build, check_names
from videoar_jax.experiment.renamed import check_renamed, with_new_names
from videoar_jax.experiment.schema import (
  InitConfig,
  PartConfig,
  ReportConfig,
  RunConfig,
  StageConfig,
  TextConfig,
)
from videoar_jax.experiment.token_cache import Cache, CacheConfig
from videoar_jax.interop.atomic import write_text
from videoar_jax.models.base import Family
from videoar_jax.models.families import FAMILIES, family_of
from videoar_jax.parallel.mesh import MeshConfig
from videoar_jax.tokenizers.base import TokenizerConfig
from videoar_jax.tokenizers.families import TOKENIZERS
from videoar_jax.train.config import LoopConfig

_KINDS = ("tokenizer", "generator")
_STAGE_FIELDS = (
  "kind",
  "data",
  "mixture",
  "loop",
  "loss",
  "init",
  "mesh",
)
_SECTIONS = (
  "seed",
  "family",
  "data",
  "text",
  "tokenizer",
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
  check_renamed(values)
  check_names(values, _SECTIONS, "config")
  family = family_of(values.get("family", "videoar"))
  coder = TOKENIZERS[family.tokenizer]
  tokenizer = _build_of(coder.network, values, "tokenizer", family)
  data = build(DataConfig, values.get("data", {}), "data")
  text = build(TextConfig, values.get("text", {}), "text")
  tokenizer.latent_shape(data.num_frames, data.resolution)
  mesh = build(MeshConfig, values.get("mesh", {}), "mesh")
  stages, caches = _stages(values, data, mesh, family)
  # A run that trains a tokenizer alone need not say what a generator would be.
  generator = None
  if values.get("generator") or any(stage.kind == "generator" for stage in stages):
    generator = _generator(values.get("generator", {}), family, tokenizer, text)
  run = RunConfig(
    seed=values.get("seed", 0),
    family=family,
    data=data,
    text=text,
    tokenizer=tokenizer,
    generator=generator,
    sampling=_build_of(family.sampling, values, "sampling", family),
    mesh=mesh,
    report=build(ReportConfig, values.get("report", {}), "report"),
    stages=stages,
    caches=caches,
  )
  coder.check(tokenizer, None, data.resolution)
  for cache in run.caches:
    tokenizer.latent_shape(cache.data.num_frames, cache.data.resolution)
  for stage in run.stages:
    tokenizer.latent_shape(stage.data.num_frames, stage.data.resolution)
    if stage.kind == "tokenizer":
      try:
        coder.check(tokenizer, stage.loss, stage.data.resolution)
      except ValueError as error:
        raise ValueError(f"stage.{stage.name}.{error}") from None
  if run.generator is not None:
    family.check(run)
  return run


def _generator(values: dict, family: Family, tokenizer: TokenizerConfig, text: TextConfig):
  """Returns the settings of the generator's network.

  Raises:
    ValueError: a field is unknown, or follows from others; names it.
  """
  for name in family.derived:
    if name in values:
      raise ValueError(f"generator.{name} follows from other fields; remove it")
  complete = family.network_config(dict(values), tokenizer, text)
  return _build_of(family.network, {"generator": complete}, "generator", family)


def _build_of(cls: type, values: dict, section: str, family: Family):
  """Builds a section that differs between families; names the family whose field it may be.

  Raises:
    ValueError: a field is unknown or impossible.
  """
  _check_family(cls, values.get(section, {}), section, family)
  return build(cls, values.get(section, {}), section)


def _check_family(cls: type, section: dict, path: str, family: Family) -> None:
  """Raises ValueError where a field is no one of this family's, but of another one's."""
  attribute = path.rpartition(".")[2].replace("generator", "network")
  known = {field.name for field in dataclasses.fields(cls)}
  name = next(key for key, other in FAMILIES.items() if other is family)
  for field in section.keys() - known:
    for other_name, other in FAMILIES.items():
      others = getattr(other, attribute, None)
      if attribute == "tokenizer":
        others = TOKENIZERS[other.tokenizer].network
      if others is not None and field in {each.name for each in dataclasses.fields(others)}:
        raise ValueError(
          f"{path}.{field} is a setting of family {other_name!r}, but config.family={name!r}; "
          "remove it"
        )


def _stages(
  values: dict, data: DataConfig, mesh: MeshConfig, family: Family
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
    if kind not in _KINDS:
      raise ValueError(f"{path}.kind={kind!r} is unknown; kinds are {', '.join(_KINDS)}, cache")
    loop = build(LoopConfig, section.get("loop", {}), f"{path}.loop")
    losses = {"tokenizer": TOKENIZERS[family.tokenizer].loss, "generator": family.loss}[kind]
    _check_family(losses, section.get("loss", {}), f"{path}.loss", family)
    loss = build(losses, section.get("loss", {}), f"{path}.loss")
    clips = _stage_data(section, path, data)
    mixture = _mixture(section.get("mixture", {}), f"{path}.mixture", clips)
    init = build(InitConfig, section.get("init", {}), f"{path}.init")
    cache = source if kind == "generator" and isinstance(source, Cache) else None
    if cache is not None and cache.data != clips:
      field = next(name for name, x in vars(clips).items() if x != getattr(cache.data, name))
      raise ValueError(
        f"{path}: data.{field} is {getattr(clips, field)!r}, but {getattr(cache.data, field)!r} in "
        f"stage.{cache.name}, which it reads; set both alike, or put a cache of its own before it"
      )
    if mixture and cache is not None:
      raise ValueError(f"{path}.mixture is for stages that read clips, but this one reads a cache")
    made = StageConfig(
      name=name,
      kind=kind,
      data=clips,
      loop=loop,
      loss=loss,
      init=init,
      cache=cache,
      mesh=build(MeshConfig, dataclasses.asdict(mesh) | section.get("mesh", {}), f"{path}.mesh"),
      mixture=mixture,
    )
    if made.init.with_optimizer:
      _check_with_optimizer(made, [stage for stage in stages if stage.kind == kind], path)
    stages.append(made)
    source = stages[-1] if kind == "tokenizer" else source
  kinds = [stage.kind for stage in stages]
  if "generator" in kinds and "tokenizer" not in kinds[: kinds.index("generator")]:
    raise ValueError("config.stages trains a generator before any tokenizer; put one before it")
  if not stages:
    raise ValueError("config.stages trains nothing; name at least one stage that does")
  return tuple(stages), tuple(caches)


def _check_with_optimizer(stage: StageConfig, before: list[StageConfig], path: str) -> None:
  """Raises ValueError if a stage cannot continue the optimizer of the last of those before it."""
  if not before:
    raise ValueError(f"{path}.init.with_optimizer: no {stage.kind} is trained before it; remove it")
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
        f"{path}.init.with_optimizer: {path}.{field} is not as in stage.{last.name}; set both "
        "alike, or remove with_optimizer"
      )


def _stage_data(section: dict, path: str, data: DataConfig) -> DataConfig:
  """Returns the run's data with what a stage changes of it."""
  return _changed(data, section.get("data", {}), f"{path}.data")


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
    batch_size = changes.pop("batch_size", None)
    if batch_size is not None and batch_size < 1:
      raise ValueError(f"{own}.batch_size={batch_size} must be at least 1")
    changes |= {"num_frames": min(num_frames), "resolution": resolutions[0]}
    clips = _changed(data, changes, own)
    parts.append(PartConfig(name, clips, weight, num_frames, resolutions, batch_size))
  total = sum(part.weight for part in parts)
  if parts and abs(total - 1) > 1e-6:
    raise ValueError(f"{path}: the weights sum to {total:g}; let them sum to 1")
  return tuple(parts)


def _cache(section: dict, path: str, name: str, after: str, data: DataConfig) -> Cache:
  options = {key: value for key, value in section.items() if key not in ("kind", "data")}
  config = build(CacheConfig, options, path)
  clips = _stage_data(section, path, data)
  try:
    return Cache(name, after, clips, config)
  except ValueError as error:
    raise ValueError(f"{path}.{error}") from None


def save_config(config: ConfigDict, path: pathlib.Path) -> None:
  """Writes a config as JSON."""
  write_text(path, json.dumps(config.to_dict(), indent=2) + "\n")


def load_config(path: pathlib.Path) -> dict:
  """Reads what `save_config` wrote, with today's names for fields that had others."""
  return with_new_names(json.loads(path.read_text()))
