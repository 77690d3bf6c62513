"""Turns a config into one frozen, checked description of a run: a dataclass for each section."""

import dataclasses
import json
import pathlib

from ml_collections import ConfigDict

from videoar_jax.data.buckets import size_of
from videoar_jax.data.pipeline import DataConfig
from videoar_jax.experiment.defaults import complete, inherited
from videoar_jax.experiment.fields import build, default_of, fields_of
from videoar_jax.experiment.renamed import with_new_names
from videoar_jax.experiment.schema import (
  InitConfig,
  PartConfig,
  ReportConfig,
  RunConfig,
  StageConfig,
  TextConfig,
)
from videoar_jax.experiment.token_cache import Cache, CacheConfig
from videoar_jax.interop import hub
from videoar_jax.interop.strict_json import write_json
from videoar_jax.models.base import Family
from videoar_jax.models.families import family_of
from videoar_jax.parallel.mesh import MeshConfig
from videoar_jax.tokenizers.base import TokenizerConfig, TokenizerFamily
from videoar_jax.tokenizers.families import TOKENIZERS
from videoar_jax.tokenizers.files import read_saved, saved_family
from videoar_jax.train.config import LoopConfig


def _check_windows(run: RunConfig) -> None:
  """Checks that windows are cut out of clips only to train a tokenizer on.

  Raises:
    ValueError: names the section.
  """
  sections = {"data": run.data}
  sections |= {f"stage.{cache.name}.data": cache.data for cache in run.caches}
  for stage in run.stages:
    if stage.kind == "generator" or stage.mixture:
      sections[f"stage.{stage.name}.data"] = stage.data
      sections |= {f"stage.{stage.name}.mixture.{part.name}": part.data for part in stage.mixture}
  for name, data in sections.items():
    if data.crop_from is not None:
      raise ValueError(
        f"{name}.crop_from={data.crop_from}: windows are for tokenizer stages without a mixture; "
        "set it in the `data` of such a stage"
      )


def finalize(config: ConfigDict | dict) -> RunConfig:
  """Checks a config and returns the run that it describes.

  Raises:
    ValueError: a field is unknown, missing or impossible; names it and the fix.
  """
  values = complete(config).to_dict()
  family = family_of(values["family"])
  tokenizer_family, tokenizer = _tokenizer(values, family)
  data = build(DataConfig, values["data"], "data")
  tokenizer_file = hub.local(values["text"]["tokenizer"], "text.tokenizer")
  text = build(TextConfig, values["text"] | {"tokenizer": tokenizer_file}, "text")
  tokenizer.latent_shape(data.num_frames, data.resolution)
  mesh = build(MeshConfig, values["mesh"], "mesh")
  frozen = values["frozen_tokenizer"]
  frozen = None if frozen is None else hub.local(frozen, "frozen_tokenizer")
  stages, caches = _stages(values, data, mesh, family, is_frozen=frozen is not None)
  # A run that only trains a tokenizer need not configure a generator.
  generator = None
  if any(stage.kind == "generator" for stage in stages) or _has_generator(values, family):
    network = family.network_config(values["generator"], tokenizer, text)
    generator = build(family.network, network, "generator")
  run = RunConfig(
    seed=values["seed"],
    family=family,
    tokenizer_family=tokenizer_family,
    data=data,
    text=text,
    tokenizer=tokenizer,
    generator=generator,
    sampling=build(family.sampling, values["sampling"], "sampling"),
    mesh=mesh,
    report=build(ReportConfig, values["report"], "report"),
    stages=stages,
    caches=caches,
    frozen_tokenizer=None if frozen is None else pathlib.Path(frozen).expanduser(),
    tokenizer_dtype=values["tokenizer_dtype"],
  )
  _check_windows(run)
  tokenizer_family.check(tokenizer, None, data.resolution)
  for cache in run.caches:
    tokenizer.latent_shape(cache.data.num_frames, cache.data.resolution)
  for stage in run.stages:
    tokenizer.latent_shape(stage.data.num_frames, stage.data.resolution)
    if stage.kind == "tokenizer":
      try:
        tokenizer_family.check(tokenizer, stage.loss, stage.data.resolution)
      except ValueError as error:
        raise ValueError(f"stage.{stage.name}.{error}") from None
  if run.generator is not None:
    family.check(run)
  return run


def _has_generator(values: dict, family: Family) -> bool:
  """Returns whether a config sets any required field of the generator."""
  fields = fields_of(family.network, family.derived).items()
  return any(default_of(x) is None and values["generator"][name] is not None for name, x in fields)


def _tokenizer(values: dict, family: Family) -> tuple[TokenizerFamily, TokenizerConfig]:
  """Returns the tokenizer's family and settings.

  Raises:
    ValueError: a setting is wrong, or the folder of a frozen tokenizer does not suit the model.
  """
  if (path := values["frozen_tokenizer"]) is None:
    tokenizer_family = TOKENIZERS[family.tokenizer]
    return tokenizer_family, build(tokenizer_family.network, values["tokenizer"], "tokenizer")
  folder = pathlib.Path(hub.local(path, "frozen_tokenizer")).expanduser()
  try:
    kind = saved_family(folder)
    if kind is None:
      raise ValueError("it holds no converted tokenizer; make one: `python -m videoar_jax.convert`")
    if kind not in family.tokenizers:
      raise ValueError(
        f"it is of the tokenizer family {kind!r}, but {values['family']!r} takes "
        f"{' or '.join(family.tokenizers)}"
      )
    return TOKENIZERS[kind], read_saved(folder, TOKENIZERS[kind]).config
  except (ValueError, OSError) as error:
    raise ValueError(f"frozen_tokenizer={path}: {error}") from error


def _stages(
  values: dict, data: DataConfig, mesh: MeshConfig, family: Family, *, is_frozen: bool
) -> tuple[tuple[StageConfig, ...], tuple[Cache, ...]]:
  names, settings = values["stages"], values["stage"]
  if not names:
    raise ValueError("config.stages is empty; name at least one stage")
  twice = [name for name in names if names.count(name) > 1]
  if twice:
    raise ValueError(f"config.stages names {twice[0]!r} twice; give each its own name and section")
  stages, caches = [], []
  readable: list[Cache] = []  # Those of the last tokenizer so far.
  for name in names:
    if name not in settings:
      raise ValueError(
        f"config.stages names {name!r}, but config.stage.{name} is missing; add it, or remove the "
        "name"
      )
    section, path = settings[name], f"stage.{name}"
    if section["kind"] == "cache":
      if not is_frozen and not any(stage.kind == "tokenizer" for stage in stages):
        raise ValueError(f"{path} encodes before any tokenizer is trained; put one before it")
      caches.append(_cache(section, path, name, stages[-1].name if stages else "", data))
      readable.append(caches[-1])
      continue
    kind, tokenizer_family = section["kind"], TOKENIZERS[family.tokenizer]
    if is_frozen and kind == "tokenizer":
      raise ValueError(
        f"{path} trains a tokenizer, but frozen_tokenizer is set; remove one of them"
      )
    loop = build(LoopConfig, section["loop"], f"{path}.loop")
    losses = tokenizer_family.loss if kind == "tokenizer" else family.loss
    loss = build(losses, section["loss"], f"{path}.loss")
    clips = _changed(data, section["data"], f"{path}.data")
    mixture = _mixture(section["mixture"], f"{path}.mixture", clips)
    init = build(InitConfig, section["init"], f"{path}.init")
    cache = _cache_of(clips, readable, path) if kind == "generator" else None
    if mixture and cache is not None:
      raise ValueError(f"{path}.mixture is for stages that read clips, but this one reads a cache")
    stage = StageConfig(
      name=name,
      kind=kind,
      data=clips,
      loop=loop,
      loss=loss,
      init=init,
      cache=cache,
      mesh=build(MeshConfig, inherited(dataclasses.asdict(mesh), section["mesh"]), f"{path}.mesh"),
      mixture=mixture,
    )
    if stage.init.with_optimizer:
      _check_with_optimizer(stage, [other for other in stages if other.kind == kind], path)
    stages.append(stage)
    readable = [] if kind == "tokenizer" else readable
  kinds = [stage.kind for stage in stages]
  has_tokenizer = is_frozen or "generator" not in kinds
  if not has_tokenizer and "tokenizer" not in kinds[: kinds.index("generator")]:
    raise ValueError(
      "config.stages trains a generator before any tokenizer; put one before it, or set "
      "frozen_tokenizer to the folder of a converted one"
    )
  if not stages:
    raise ValueError("config.stages trains nothing; name at least one stage that does")
  return tuple(stages), tuple(caches)


def _cache_of(clips: DataConfig, caches: list[Cache], path: str) -> Cache | None:
  """Returns the cache that a generator stage reads: the last one of its clips; None without any."""
  if not caches:
    return None
  for cache in reversed(caches):
    if cache.data == clips:
      return cache
  last = caches[-1]
  field = next(name for name, x in vars(clips).items() if x != getattr(last.data, name))
  raise ValueError(
    f"{path}: data.{field} is {getattr(clips, field)!r}, but {getattr(last.data, field)!r} in "
    f"stage.{last.name}, which it reads; set both to one value, or add a cache stage for it"
  )


def _check_with_optimizer(stage: StageConfig, before: list[StageConfig], path: str) -> None:
  """Raises ValueError if a stage cannot continue the optimizer of the last stage of its kind."""
  if not before:
    raise ValueError(f"{path}.init.with_optimizer: no {stage.kind} is trained before it; remove it")
  last = before[-1]
  pairs = {
    "loop.optimizer": (stage.loop.optimizer, last.loop.optimizer),
    "loop.ema_decay": (stage.loop.ema_decay, last.loop.ema_decay),
  }
  if stage.kind == "tokenizer":
    pairs["loss.adversarial"] = (stage.loss.adversarial, last.loss.adversarial)
  elif hasattr(stage.loss, "frozen"):  # What is frozen has no state of the optimizer.
    pairs["loss.frozen"] = (stage.loss.frozen, last.loss.frozen)
  for field, (own, other) in pairs.items():
    if own != other:
      raise ValueError(
        f"{path}.init.with_optimizer: {path}.{field} differs from stage.{last.name}; set both "
        "to the same value, or remove with_optimizer"
      )


def _changed(data: DataConfig, changes: dict, path: str) -> DataConfig:
  """Returns the data settings of a run or a stage, with a section's changes."""
  return build(DataConfig, inherited(dataclasses.asdict(data), changes), path)


def _mixture(sections: dict, path: str, data: DataConfig) -> tuple[PartConfig, ...]:
  """Returns the parts of a mixture; unset fields are inherited from the stage's data.

  Raises:
    ValueError: a field is wrong, or the weights do not sum to 1; names it.
  """
  parts = []
  for name, section in sections.items():
    own, changes = f"{path}.{name}", {key: x for key, x in section.items() if x is not None}
    weight = changes.pop("weight", None)
    if weight is None or not 0 < weight <= 1:
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
      raise ValueError(f"{own}: num_frames and aspect_ratios need at least one value")
    batch_size = changes.pop("batch_size", None)
    if batch_size is not None and batch_size < 1:
      raise ValueError(f"{own}.batch_size={batch_size} must be at least 1")
    changes |= {"num_frames": min(num_frames), "resolution": resolutions[0]}
    clips = _changed(data, changes, own)
    parts.append(PartConfig(name, clips, weight, num_frames, resolutions, batch_size))
  total = sum(part.weight for part in parts)
  if parts and abs(total - 1) > 1e-6:
    raise ValueError(f"{path}: the weights sum to {total:g}; they must sum to 1")
  return tuple(parts)


def _cache(section: dict, path: str, name: str, after: str, data: DataConfig) -> Cache:
  config = build(CacheConfig, section, path)
  clips = _changed(data, section["data"], f"{path}.data")
  try:
    return Cache(name, after, clips, config)
  except ValueError as error:
    raise ValueError(f"{path}.{error}") from None


def save_config(config: ConfigDict | dict, path: pathlib.Path) -> None:
  """Writes a config with all fields, as JSON."""
  write_json(path, complete(config).to_dict())


def load_config(path: pathlib.Path) -> dict:
  """Reads what `save_config` of this or an earlier version wrote; fields get today's names.

  Raises:
    ValueError: a field is unknown or has the wrong type; names the file.
  """
  try:
    return complete(with_new_names(json.loads(path.read_text()))).to_dict()
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from error
