"""Public checkpoints of InfinityStar's transformer as parameters of this package.

Tensors are read one at a time, so that a mapping may read them from disk when they are asked for.

Source: INFINITY sections 6.1, S2 and S3.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from videoar_jax.interop.public_keys import PublicTensors, Source, looks_like
from videoar_jax.interop.tensor_files import renamed
from videoar_jax.models.infinity_star.config import InfinityStarConfig
from videoar_jax.models.infinity_star.network import template_of
from videoar_jax.train.state import flatten, unflatten

# Names of earlier checkpoints, and what they are now.
_OLD_NAMES = {"semantic_head.weight": "semantic_head2.weight"}
_OLD_NAMES |= {"semantic_head.bias": "semantic_head2.bias"}
_UNUSED = frozenset({"sos_token"})  # No network reads it; it has no gradient.
_LAYER = re.compile(r"((?:block_chunks\.(\d+)\.module|blocks)\.(\d+))\.(.+)")
Transform = Callable[[np.ndarray], np.ndarray]


def config_of(
  shapes: Mapping[str, tuple[int, ...]], text_length: int | None = None
) -> InfinityStarConfig:
  """Returns the settings of a checkpoint.

  Args:
    shapes: of its tensors, by the public name.
    text_length: tokens of a prompt, after which ids of scales begin; None for as many as "no
      prompt" has, as in all public checkpoints.
  Raises:
    ValueError: a tensor that says a width is missing.
  """
  names = _by_name(shapes)
  layers = _layers(names)

  def shape(name: str) -> tuple[int, ...]:
    if name not in names and "semantic_head2.weight" in names:
      raise ValueError(f"{name} is missing: fetch all files of the checkpoint")
    if name not in names:
      raise ValueError(
        f"this is not a transformer of InfinityStar, since {name} is missing; {looks_like(names)}"
      )
    return tuple(shapes[names[name]])

  first = layers[0] if layers else "block_chunks.0.module.0"
  head_dim = shape(f"{first}.attn.q_norm.weight")[0]
  num_rows, text_dim = shape("cfg_uncond")
  return InfinityStarConfig(
    num_layers=len(layers),
    d_model=shape("word_embed.weight")[0],
    num_heads=shape(f"{first}.attn.q_proj.weight")[0] // head_dim,
    num_kv_heads=shape(f"{first}.attn.k_proj.weight")[0] // head_dim,
    head_dim=head_dim,
    mlp_dim=shape(f"{first}.mlp.gate_proj.weight")[0],
    has_attention_bias=f"{first}.attn.q_proj.bias" in names,
    num_channels=shape("word_embed.weight")[1],
    semantic_bits=shape("semantic_head2.weight")[0] // 2,
    text_dim=text_dim,
    text_length=text_length or num_rows,
  )


def import_params(tensors: Mapping[str, np.ndarray], config: InfinityStarConfig) -> dict:
  """Returns the network's parameters, as a nested dict, in the types of the tensors.

  Args:
    tensors: by the public name; each is read once.
    config: the network, from `config_of`.
  Raises:
    ValueError: lists every missing, unexpected or misshapen tensor.
  """
  return unflatten(public_tensors(tensors, config).read_all())


def public_tensors(tensors: Mapping[str, np.ndarray], config: InfinityStarConfig) -> PublicTensors:
  """Returns the network's parameters, to be read one at a time; see `import_params`."""
  names = _by_name(tensors.keys())
  shapes = {name: leaf.shape for name, leaf in flatten(template_of(config).shapes).items()}
  sources = _sources(config, _layers(names))
  found = PublicTensors(renamed(tensors, names), sources, shapes, _UNUSED)
  found.check("a transformer of InfinityStar as its config says")
  return found


def _by_name(names: Iterable[str]) -> dict[str, str]:
  """Returns the names of tensors by those of the newest checkpoints."""
  return {_OLD_NAMES.get(name, name): name for name in names}


def _layers(names: Iterable[str]) -> list[str]:
  """Returns the prefix of each layer; public layers are in chunks of equal size, or in one list."""
  found = {match[1]: match for match in map(_LAYER.fullmatch, names) if match}
  return sorted(found, key=lambda prefix: (int(found[prefix][2] or 0), int(found[prefix][3])))


def _sources(config: InfinityStarConfig, layers: list[str]) -> dict[str, Source]:
  """Returns where each parameter comes from."""
  if len(layers) != config.num_layers:
    layers = layers + [f"blocks.{i}" for i in range(len(layers), config.num_layers)]
  length = config.text_length
  sources = {
    "null_text": Source(("cfg_uncond",), lambda x: x[:length]),
    "norm_out.scale": Source(("norm_hidden_sates.weight",)),
  }
  for ours, theirs in _LINEAR.items():
    sources[f"{ours}.kernel"] = Source((f"{theirs}.weight",), np.transpose)
    sources[f"{ours}.bias"] = Source((f"{theirs}.bias",))
  for ours, theirs, transform in _of_layer(config):
    names = tuple(f"{layer}.{theirs}" for layer in layers)
    sources[f"blocks.{ours}"] = Source(names, transform, is_stacked=True)
  return sources


_LINEAR = {
  "text_in": "text_proj",
  "codes_in": "word_embed",
  "detail_head": "head",
  "semantic_head": "semantic_head2",
}


def _of_layer(config: InfinityStarConfig) -> Iterator[tuple[str, str, Transform]]:
  """Yields the parameters of a layer: our name, the public name, what makes one of the other."""

  def halves(x: np.ndarray) -> np.ndarray:
    """Moves pairs of neighbours, which public rotary heads rotate, to a head's two halves."""
    pairs = x.reshape(-1, config.head_dim // 2, 2, *x.shape[1:])
    return np.swapaxes(pairs, 1, 2).reshape(x.shape)

  for ours, theirs in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "o")):
    is_rotated = ours in ("query", "key")
    rows = halves if is_rotated else np.asarray
    name = f"attention.{ours}"
    yield f"{name}.kernel", f"attn.{theirs}_proj.weight", lambda x, rows=rows: rows(x).T
    if config.has_attention_bias:
      yield f"{name}.bias", f"attn.{theirs}_proj.bias", rows
    if is_rotated:
      yield f"{name}_norm.scale", f"attn.{theirs}_norm.weight", halves
  for part in ("gate", "up", "down"):
    yield f"mlp.{part}.kernel", f"mlp.{part}_proj.weight", np.transpose
  yield "attention_norm.scale", "input_layernorm.weight", np.asarray
  yield "mlp_norm.scale", "post_attention_layernorm.weight", np.asarray
