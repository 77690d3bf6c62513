"""Writes docs/config.md from the docstrings of the dataclasses that a config becomes.

python -m videoar_jax.experiment.config_docs > docs/config.md
"""

import dataclasses
import types
import typing
from collections.abc import Iterator
from typing import Any

from videoar_jax.data.pipeline import DataConfig
from videoar_jax.experiment.fields import attribute_docs, default_of, fields_of
from videoar_jax.experiment.schema import (
  InitConfig,
  PartSettings,
  ReportConfig,
  RunConfig,
  StageConfig,
  TextConfig,
)
from videoar_jax.experiment.token_cache import CacheConfig
from videoar_jax.models.families import FAMILIES
from videoar_jax.parallel.mesh import MeshConfig
from videoar_jax.tokenizers.families import TOKENIZERS
from videoar_jax.train.config import FREE_FIELDS, LoopConfig

INTRODUCTION = """\
# Settings of a run

A config file has a function `get_config(arg)` that returns a `ConfigDict`. It starts from
`default_config`, which has every field below, and sets what differs:

```python
from videoar_jax.experiment.defaults import default_config, mixture_part


def get_config(arg=None):
  config = default_config({"tokenizer": "tokenizer", "generator": "generator"})
  config.data.resolution = (128, 128)
  config.stage.tokenizer.mixture.clips = mixture_part(weight=0.8)
  config.stage.tokenizer.mixture.images = mixture_part(weight=0.2, num_frames=1)
  ...
  return config
```

The argument of `default_config` maps the names of the stages, in order, to their kinds: a stage
trains a `"tokenizer"` or a `"generator"`, or it encodes the clips once with the latest tokenizer
into a `"cache"`, which later generator stages of the same `data` read. A `ConfigDict` with only
some of the fields works, too.

The command line can set any field, with `--config.FIELD=VALUE` or `--config.FIELD VALUE`:

```
--config.seed=1 --config.data.resolution=(128,128) --config.stage.generator.loop.batch_size=8
--config.stages="('tokenizer',)" --config.stage.generator.loss.window=None
```

`None` means that a field is not set. Fields of `stage.NAME.data` and `stage.NAME.mesh` that are not
set are inherited from the run's `data` and `mesh`, those of a part of a mixture from the `data` of
its stage. There `""` unsets a path or another text that the run sets.

The workdir stores all fields in `config.json`. A run that resumes in it must have the same values,
except for where it runs, how it reads, and what it saves, logs and tolerates: `mesh`;
`num_threads`, `prefetch`, `cache_bytes` and `max_bad_share` of `data`; and, of `loop`,
{free_fields}.

This page is generated: `python -m videoar_jax.experiment.config_docs > docs/config.md`.
"""


def render() -> str:
  """Returns the page."""
  names = ", ".join(f"`{name}`" for name in FREE_FIELDS)
  blocks = [INTRODUCTION.replace("{free_fields}", names), *_run(), *_stages(), *_families()]
  return "\n".join(blocks)


def _run() -> Iterator[str]:
  texts = attribute_docs(RunConfig)
  yield "## The run\n"
  yield _table(
    [
      ("seed", "int", "0", texts["seed"]),
      ("family", "str", '"videoar"', texts["family"]),
      ("frozen_tokenizer", "str", "None", texts["frozen_tokenizer"]),
      ("tokenizer_dtype", "str", '"float32"', texts["tokenizer_dtype"]),
      ("stages", "(str, ...)", "required", "names of the stages that run, in order."),
      ("stage", "sections", "required", "the section of each stage, by its name."),
    ]
  )
  for name, cls in (
    ("data", DataConfig),
    ("text", TextConfig),
    ("mesh", MeshConfig),
    ("report", ReportConfig),
  ):
    yield from section(name, cls)


def _stages() -> Iterator[str]:
  texts = attribute_docs(StageConfig)
  yield "## Stages that train: `stage.NAME`\n"
  yield _table(
    [
      ("kind", "str", "NAME", texts["kind"]),
      *((name, "section", "", texts[name]) for name in ("data", "mesh", "loop", "loss", "init")),
      ("mixture", "sections", "none", texts["mixture"]),
    ]
  )
  yield from section("stage.NAME.loop", LoopConfig)
  yield from section("stage.NAME.init", InitConfig)
  yield from section("stage.NAME.mixture.PART", PartSettings)
  yield "## Stages that encode: `stage.NAME` of kind `cache`\n"
  text = "the clips to encode; unset fields are inherited from the run's `data`."
  yield _table([("data", "section", "", text)])
  yield from section("stage.NAME", CacheConfig)


def _families() -> Iterator[str]:
  for name, family in FAMILIES.items():
    yield f"## Model family `{name}`\n"
    yield f"It uses the tokenizer family `{family.tokenizer}`.\n"
    yield from section("generator", family.network, family.derived)
    yield from section("sampling", family.sampling)
    yield from section("stage.NAME.loss", family.loss)
  for name, tokenizer in TOKENIZERS.items():
    yield f"## Tokenizer family `{name}`\n"
    yield from section("tokenizer", tokenizer.network)
    yield from section("stage.NAME.loss", tokenizer.loss)


def section(
  path: str, cls: type, without: tuple[str, ...] = (), default: Any = None
) -> Iterator[str]:
  """Yields the tables of a section and of its subsections.

  Args:
    path: the section's name.
    cls: its dataclass.
    without: derived fields.
    default: an object with the defaults; None for the dataclass's own.
  Raises:
    ValueError: a field is missing from the docstring.
  """
  texts, hints = attribute_docs(cls), typing.get_type_hints(cls)
  rows, within = [], []
  for name, field in fields_of(cls, without).items():
    if name not in texts:
      raise ValueError(f"the docstring of {cls.__name__} does not describe {name}")
    own = default_of(field) if default is None else getattr(default, field.name)
    hint = hints[field.name]
    if dataclasses.is_dataclass(hint):
      rows.append((name, "section", "", texts[name]))
      within += section(f"{path}.{name}", hint, default=own)
    else:
      is_required = own is None and types.NoneType not in typing.get_args(hint)
      rows.append((name, _type(hint), "required" if is_required else _value(own), texts[name]))
  yield f"### `{path}`\n"
  yield (cls.__doc__ or "").partition("\n\n")[0].strip() + "\n"
  if rows:
    yield _table(rows)
  yield from within


def _table(rows: list[tuple[str, str, str, str]]) -> str:
  lines = ["| field | type | default | meaning |", "|---|---|---|---|"]
  for name, kind, default, text in rows:
    text = text.replace("|", "\\|")
    lines.append(f"| `{name}` | {kind} | {f'`{default}`' if default else ''} | {text} |")
  return "\n".join(lines).replace("`required`", "required").replace("`none`", "none") + "\n"


def _type(hint: Any) -> str:
  arguments = typing.get_args(hint)
  if typing.get_origin(hint) is tuple:
    return "(" + ", ".join("..." if x is Ellipsis else _type(x) for x in arguments) + ")"
  if arguments:
    return " or ".join(map(_type, arguments))
  return "None" if hint is types.NoneType else hint.__name__


def _value(value: Any) -> str:
  if isinstance(value, str):
    return f'"{value}"'
  return "()" if value == () else repr(value)


if __name__ == "__main__":
  print(render(), end="")
