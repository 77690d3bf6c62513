"""Default configs with all fields, typed: config files start from them and are completed by them.

A field whose default is None, that has to be set, or that a stage inherits from the run is a typed
placeholder: None until it is set to a value of its type.
"""

import dataclasses
import functools
import typing
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict, config_dict

from videoar_jax.data.pipeline import DataConfig
from videoar_jax.experiment.fields import (
  allows_none,
  check_names,
  convert,
  default_of,
  fields_of,
  kinds_of,
)
from videoar_jax.experiment.renamed import check_renamed
from videoar_jax.experiment.schema import InitConfig, PartSettings, ReportConfig, TextConfig
from videoar_jax.experiment.token_cache import CacheConfig
from videoar_jax.models.base import Family
from videoar_jax.models.families import FAMILIES, family_of
from videoar_jax.parallel.mesh import MeshConfig
from videoar_jax.tokenizers.families import TOKENIZERS
from videoar_jax.train.config import LoopConfig

KINDS = ("tokenizer", "generator", "cache")
STAGE_SECTIONS = ("kind", "data", "mixture", "loop", "loss", "init", "mesh")
SECTIONS = (
  "seed",
  "family",
  "frozen_tokenizer",
  "tokenizer_dtype",
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


def default_config(stages: dict[str, str], family: str = "videoar") -> ConfigDict:
  """Returns a config with all fields of all sections, for a config file to modify.

  Args:
    stages: kind of each stage by name, in order: "tokenizer", "generator" or "cache".
    family: model family, see `FAMILIES`.
  Raises:
    ValueError: a kind of stage or the family is unknown.
  """
  sections = {name: {"kind": kind} for name, kind in stages.items()}
  return complete({"family": family, "stages": tuple(stages), "stage": sections})


def mixture_part(**settings: Any) -> ConfigDict:
  """Returns a part of a stage's mixture; unset fields are inherited from the stage's `data`.

  Raises:
    ValueError: a field is unknown or has the wrong type.
  """
  return _part(settings, "mixture")


def complete(config: ConfigDict | dict) -> ConfigDict:
  """Returns a config with all missing fields filled in.

  Raises:
    ValueError: a field is unknown, renamed or has a value of the wrong type; names it.
  """
  values = config.to_dict() if isinstance(config, ConfigDict) else dict(config)
  check_renamed(values)
  check_names(values, SECTIONS, "config")
  name = _value(str, values, "family", "config", "videoar")
  family = family_of(name)
  _check_family(values, "tokenizer", name, lambda other: TOKENIZERS[other.tokenizer].network)
  _check_family(values, "generator", name, lambda other: other.network)
  _check_family(values, "sampling", name, lambda other: other.sampling)
  for field in family.derived:
    if field in _values(values, "generator", "config"):
      raise ValueError(f"generator.{field} follows from other fields; remove it")
  frozen = _value(str, values, "frozen_tokenizer", "config", None)
  network = TOKENIZERS[family.tokenizer].network
  if frozen is not None:
    _check_unset(network, _values(values, "tokenizer", "config"), frozen)
    values, network = values | {"tokenizer": {}}, NoSettings
  sections = {
    "data": (DataConfig, ()),
    "text": (TextConfig, ()),
    "tokenizer": (network, ()),
    "generator": (family.network, family.derived),
    "sampling": (family.sampling, ()),
    "mesh": (MeshConfig, ()),
    "report": (ReportConfig, ()),
  }
  result = ConfigDict({"seed": _value(int, values, "seed", "config", 0), "family": name})
  result.frozen_tokenizer = config_dict.FieldReference(frozen, field_type=str)
  result.tokenizer_dtype = _value(str, values, "tokenizer_dtype", "config", "float32")
  for section, (cls, without) in sections.items():
    result[section] = _section(cls, _values(values, section, "config"), section, without=without)
  result.stages = _value(tuple, values, "stages", "config", ())
  result.stage = ConfigDict()
  stages = _values(values, "stage", "config")
  for stage in stages:
    result.stage[stage] = _stage(_values(stages, stage, "stage"), stage, name)
  return result


@dataclasses.dataclass(frozen=True)
class NoSettings:
  """The `tokenizer` section of a run with a frozen tokenizer, whose folder has its settings."""


def _check_unset(network: type, values: dict, frozen: str) -> None:
  """Raises ValueError if a config sets the network of a tokenizer that comes from a folder."""
  own, default = (_section(network, x, "tokenizer").to_dict() for x in (values, {}))
  for field, value in own.items():
    if value != default[field]:
      raise ValueError(
        f"tokenizer.{field} is set, but frozen_tokenizer={frozen} is a folder with settings of its "
        "own; remove one of them"
      )


def inherited(values: dict, changes: dict) -> dict:
  """Returns the fields of a `data` or `mesh` section, overridden by those that a subsection sets.

  "" unsets text that may be None, since None means inherited.
  """
  hints = typing.get_type_hints(DataConfig)
  return values | {
    name: None if value == "" and allows_none(hints.get(name)) else value
    for name, value in changes.items()
    if value is not None
  }


def _stage(values: dict, name: str, family: str) -> ConfigDict:
  path = f"stage.{name}"
  kind = _value(str, values, "kind", path, name)
  if kind not in KINDS:
    raise ValueError(f"{path}.kind={kind!r} is unknown; kinds are {', '.join(KINDS)}")
  if kind == "cache":
    own = {field: x for field, x in values.items() if field not in ("kind", "data")}
    result = _section(CacheConfig, own, path)
    result.kind, result.data = kind, _inherits(DataConfig, values, "data", path)
    return result
  check_names(values, STAGE_SECTIONS, path)
  loss_of = _LOSSES[kind]
  _check_family(values, "loss", family, loss_of, path)
  result = ConfigDict({"kind": kind})
  result.data = _inherits(DataConfig, values, "data", path)
  parts = _values(values, "mixture", path)
  result.mixture = ConfigDict(
    {
      part: _part(_values(parts, part, f"{path}.mixture"), f"{path}.mixture.{part}")
      for part in parts
    }
  )
  for section, cls in (
    ("loop", LoopConfig),
    ("loss", loss_of(FAMILIES[family])),
    ("init", InitConfig),
  ):
    result[section] = _section(cls, _values(values, section, path), f"{path}.{section}")
  result.mesh = _inherits(MeshConfig, values, "mesh", path)
  return result


_LOSSES: dict[str, Callable[[Family], type]] = {
  "tokenizer": lambda family: TOKENIZERS[family.tokenizer].loss,
  "generator": lambda family: family.loss,
}


def _inherits(cls: type, values: dict, section: str, path: str) -> ConfigDict:
  """Returns a section of a stage whose unset fields are inherited from the run."""
  return _section(cls, _values(values, section, path), f"{path}.{section}", _inherited)


def _part(values: dict, path: str) -> ConfigDict:
  own = fields_of(PartSettings)
  check_names(values, (*own, *fields_of(DataConfig, tuple(own))), path)
  result = _section(PartSettings, {name: x for name, x in values.items() if name in own}, path)
  others = {name: x for name, x in values.items() if name not in own}
  result.update(_section(DataConfig, others, path, _inherited, tuple(own)))
  return result


def _inherited(field: dataclasses.Field) -> None:
  """Returns None, the placeholder of an inherited value."""


def _section(
  cls: type,
  values: dict,
  path: str,
  default: Callable[[dataclasses.Field], Any] = default_of,
  without: tuple[str, ...] = (),
) -> ConfigDict:
  """Returns a section with all fields of a dataclass.

  Args:
    cls: the dataclass.
    values: values of some fields.
    path: the section's name, for errors.
    default: returns the value of any other field.
    without: fields that are not part of configs.
  """
  fields, hints = fields_of(cls, without), typing.get_type_hints(cls)
  check_names(values, tuple(fields), path)
  section = ConfigDict()
  for name, field in fields.items():
    hint, own = hints[field.name], default(field)
    if dataclasses.is_dataclass(hint):
      of_own = default_of if own is None else functools.partial(_field_of, own)
      section[name] = _section(hint, _values(values, name, path), f"{path}.{name}", of_own)
      continue
    is_given = name in values and (values[name] is not None or allows_none(hint))
    value = convert(hint, values[name], f"{path}.{name}") if is_given else own
    section[name] = _typed(hint, value, may_be_none=own is None)
  return section


def _field_of(section: Any, field: dataclasses.Field) -> Any:
  return getattr(section, field.name)


def _typed(hint: Any, value: Any, *, may_be_none: bool) -> Any:
  """Returns a value for a ConfigDict, as a typed reference if the value does not show its type."""
  kinds = kinds_of(hint)
  if len(kinds) > 1:
    return config_dict.FieldReference(value, field_type=object)
  if may_be_none or allows_none(hint):
    return config_dict.FieldReference(value, field_type=kinds[0])
  return value


def _values(values: dict, section: str, path: str) -> dict:
  """Returns a section; an empty one if it is missing.

  Raises:
    ValueError: it is a value, not a section.
  """
  found = values.get(section)
  if found is not None and not isinstance(found, dict):
    name = section if path == "config" else f"{path}.{section}"
    raise ValueError(f"{name}={found!r} must be a section, with fields")
  return found or {}


def _value(hint: Any, values: dict, name: str, path: str, default: Any) -> Any:
  value = values.get(name)
  return default if value is None else convert(hint, value, f"{path}.{name}")


def _check_family(
  values: dict, section: str, family: str, of: Callable[[Family], type], path: str = ""
) -> None:
  """Raises ValueError if a field belongs to another family.

  Args:
    values: the fields around the section.
    section: its name.
    family: the config's family.
    of: returns a family's dataclass for the section.
    path: path of the section's parent.
  """
  path = f"{path}.{section}" if path else section
  for field in _values(values, section, path).keys() - fields_of(of(FAMILIES[family])).keys():
    for name, other in FAMILIES.items():
      if field in fields_of(of(other)):
        raise ValueError(
          f"{path}.{field} is a setting of family {name!r}, but config.family={family!r}; remove it"
        )
