"""Public checkpoints of Infinity's transformer as parameters of this package.

Source: INFINITY section 5.9.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from videoar_jax.interop.public_keys import PublicTensors, Source, looks_like
from videoar_jax.interop.tensor_files import LazyTensors, renamed
from videoar_jax.models.infinity.config import InfinityConfig
from videoar_jax.models.infinity.network import template_of
from videoar_jax.train.state import flatten, unflatten

Shapes = Mapping[str, tuple[int, ...]]


# Buffers that old checkpoints hold, which follow from the settings.
_LEGACY = ("lvl_1L", "attn_bias_for_masking", "Infinity_visible_kvlen", "Infinity_invisible_qlen")


class Target(NamedTuple):
  """Where a tensor, or a part of it, goes: a parameter, and what is done before."""

  name: str
  transform: Callable[[np.ndarray], np.ndarray]


class Entry(NamedTuple):
  """A public tensor; `layer` is its place in stacked parameters, None for others."""

  key: str
  shape: tuple[int, ...]
  layer: int | None
  targets: tuple[Target, ...]


def config_of(shapes: Shapes, patch_size: int | None = None) -> InfinityConfig:
  """Returns the settings of a checkpoint, from the shapes of its tensors.

  Args:
    shapes: by the public name, with any prefix such as `module.`.
    patch_size: side of a token in latent cells, which shapes do not show; None for 2 with the 56
      bits a token of the public 8B model, else 1.
  Raises:
    ValueError: a tensor that says a size is missing, or is not as in a public network.
  """
  shapes = dict(_without_prefix(shapes))
  first = f"{_layer_prefixes(shapes)[0]}."

  def shape(name: str) -> tuple[int, ...]:
    if name not in shapes:
      raise ValueError(f"this is not an Infinity transformer: {name} is missing")
    return tuple(shapes[name])

  text_length, text_dim = shape("cfg_uncond")
  m, num_token_bits = shape("word_embed.weight")
  if patch_size is None:
    patch_size = 2 if num_token_bits == 56 else 1
  num_bits, rest = divmod(num_token_bits, patch_size**2)
  if rest:
    raise ValueError(f"tokens of {num_token_bits} bits are not {patch_size}x{patch_size} cells")
  return InfinityConfig(
    num_layers=len(_layer_prefixes(shapes)),
    d_model=m,
    num_heads=shape(first + "sa.scale_mul_1H11")[1],
    mlp_dim=shape(first + "ffn.fc1.weight")[0],
    num_pool_heads=shape("text_proj_for_sos.ca.mat_q")[1],
    patch_size=patch_size,
    num_levels=shape("lvl_embed.weight")[0],
    num_bits=num_bits,
    text_dim=text_dim,
    text_length=text_length,
  )


def import_params(tensors: Mapping[str, np.ndarray], config: InfinityConfig) -> dict:
  """Returns the network's parameters, as a nested dict, in the types of the tensors.

  Args:
    tensors: by the public name, with any prefix such as `module.`.
    config: from `config_of`; fewer rows of `text_length` cut off those of "no prompt".
  Raises:
    ValueError: lists every missing, unexpected or misshapen tensor.
  """
  return unflatten(public_tensors(tensors, config).read_all())


def public_tensors(tensors: Mapping[str, np.ndarray], config: InfinityConfig) -> PublicTensors:
  """Returns the network's parameters, to be read one at a time; see `import_params`."""
  names = _without_prefix(tensors.keys())
  sources: dict[str, Source] = {}
  for entry in _entries(config, _layer_prefixes(names)):
    for name, transform in entry.targets:
      before = sources[name].names if name in sources else ()
      sources[name] = Source((*before, entry.key), transform, entry.layer is not None)
  shapes = {name: leaf.shape for name, leaf in flatten(template_of(config).shapes).items()}
  buffers = frozenset(filter(_is_buffer, names))
  found = PublicTensors(renamed(tensors, names), sources, shapes, buffers)
  found.check("an Infinity transformer of that size")
  return found


def check_keys(shapes: Shapes, config: InfinityConfig) -> None:
  """Checks the names and shapes of a checkpoint.

  Raises:
    ValueError: lists every missing, unexpected or misshapen tensor.
  """
  public_tensors(LazyTensors(shapes, lambda name: np.zeros(shapes[name])), config)


def _without_prefix(names: Iterable[str] | Shapes) -> dict:
  """Returns names without what comes before those of the network; of a mapping, with its values.

  Names alone are mapped to what they were.
  """
  values = names if isinstance(names, Mapping) else {name: name for name in names}
  found = [name.removesuffix("pos_start") for name in values if name.endswith("pos_start")]
  prefix = found[0] if len(found) == 1 else ""
  return {name.removeprefix(prefix): value for name, value in values.items()}


def _layer_prefixes(names: Iterable[str]) -> list[str]:
  """Returns the start of each layer's names, in order: `block_chunks.0.module.3`, or `blocks.3`.

  Raises:
    ValueError: there are no layers; says what the names look like.
  """
  names = list(names)
  found = set()
  for name in names:
    match = re.match(r"(block_chunks\.(\d+)\.module\.(\d+)|blocks\.(\d+))\.ada_gss$", name)
    if match:
      numbers = tuple(int(number) for number in match.groups()[1:] if number is not None)
      found.add((numbers, match[1]))
  if found:
    return [prefix for _, prefix in sorted(found)]
  raise ValueError(f"this is not an Infinity transformer: there are no blocks; {looks_like(names)}")


def _is_buffer(name: str) -> bool:
  """Returns whether a tensor holds no weights: zeros in place of the bias of keys, for example."""
  return name in _LEGACY or name.endswith(".zero_k_bias")


def _entries(config: InfinityConfig, layers: list[str]) -> Iterator[Entry]:
  """Yields every public tensor that holds weights."""
  m, e, i = config.d_model, config.text_dim, config.token_width

  def one(key: str, shape: tuple[int, ...], name: str, transform=np.asarray) -> Entry:
    return Entry(key, shape, None, (Target(name, transform),))

  yield one("cfg_uncond", (config.text_length, e), "text.no_prompt", _first(config.text_length))
  yield one("pos_start", (1, 1, m), "start", np.ravel)
  yield one("text_norm.weight", (e,), "text.norm.scale")
  n = config.num_pool_heads
  pool = "text_proj_for_sos.ca"
  yield one(f"{pool}.mat_q", (1, n, m // n), "text.pool.query", _row)
  yield _keys_and_values(f"{pool}.mat_kv.weight", (2 * m, e), "text.pool", None)
  yield one(f"{pool}.v_bias", (m,), "text.pool.value.bias")
  linear = (
    (f"{pool}.proj", m, m, "text.pool.out"),
    ("text_proj_for_ca.0", m, e, "text.up"),
    ("text_proj_for_ca.2", m, m, "text.out"),
    ("word_embed", m, i, "bits_in"),
    ("shared_ada_lin.1", 6 * m, m, "modulation"),
    ("head_nm.ada_lin.1", 2 * m, m, "head_modulation"),
    ("head", 2 * i, m, "head"),
  )
  for key, num_out, num_in, name in linear:
    yield one(f"{key}.weight", (num_out, num_in), f"{name}.kernel", np.transpose)
    yield one(f"{key}.bias", (num_out,), f"{name}.bias")
  yield one("lvl_embed.weight", (config.num_levels, m), "level_embedding.table")
  for layer, prefix in enumerate(layers):
    yield from _layer(config, layer, prefix)


def _layer(config: InfinityConfig, layer: int, prefix: str) -> Iterator[Entry]:
  m, n, hidden = config.d_model, config.num_heads, config.mlp_dim

  def one(key: str, shape: tuple[int, ...], name: str, transform=np.asarray) -> Entry:
    return Entry(f"{prefix}.{key}", shape, layer, (Target(f"blocks.{name}", transform),))

  def pairs(x: np.ndarray) -> np.ndarray:
    return _halves(x, n)

  yield one("ada_gss", (1, 1, 6, m), "modulation", lambda x: x[0, 0])
  yield one("ca_norm.weight", (m,), "cross_norm.scale")
  yield one("ca_norm.bias", (m,), "cross_norm.bias")
  targets = (
    Target("blocks.attention.query.kernel", lambda x: pairs(x[:m]).T),
    Target("blocks.attention.key.kernel", lambda x: pairs(x[m : 2 * m]).T),
    Target("blocks.attention.value.kernel", lambda x: x[2 * m :].T),
  )
  yield Entry(f"{prefix}.sa.mat_qkv.weight", (3 * m, m), layer, targets)
  yield one("sa.q_bias", (m,), "attention.query.bias", pairs)
  yield one("sa.v_bias", (m,), "attention.value.bias")
  yield one("sa.scale_mul_1H11", (1, n, 1, 1), "attention.log_scale", np.ravel)
  yield _keys_and_values(f"{prefix}.ca.mat_kv.weight", (2 * m, m), "blocks.cross", layer)
  yield one("ca.v_bias", (m,), "cross.value.bias")
  linear = (
    ("sa.proj", m, m, "attention.out"),
    ("ca.mat_q", m, m, "cross.query"),
    ("ca.proj", m, m, "cross.out"),
    ("ffn.fc1", hidden, m, "up"),
    ("ffn.fc2", m, hidden, "down"),
  )
  for key, num_out, num_in, name in linear:
    yield one(f"{key}.weight", (num_out, num_in), f"{name}.kernel", np.transpose)
    yield one(f"{key}.bias", (num_out,), f"{name}.bias")


def _keys_and_values(key: str, shape: tuple[int, ...], name: str, layer: int | None) -> Entry:
  half = shape[0] // 2
  targets = (
    Target(f"{name}.key.kernel", lambda x: x[:half].T),
    Target(f"{name}.value.kernel", lambda x: x[half:].T),
  )
  return Entry(key, shape, layer, targets)


def _halves(x: np.ndarray, num_heads: int) -> np.ndarray:
  """Moves pairs of neighbours, which public rotary heads rotate, to a head's two halves."""
  pairs = x.reshape(num_heads, -1, 2, *x.shape[1:])
  return np.swapaxes(pairs, 1, 2).reshape(x.shape)


def _row(x: np.ndarray) -> np.ndarray:
  return x[0]


def _first(num: int) -> Callable[[np.ndarray], np.ndarray]:
  return lambda x: x[:num]
