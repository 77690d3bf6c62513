"""Sizes of pretrained text encoders, and the names of their tensors in public checkpoints.

Both follow the folders that Hugging Face `transformers` saves.
"""

import dataclasses
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple


class Tensor(NamedTuple):
  """Where a parameter is in a checkpoint.

  Attributes:
    key: the tensor's name; `{}` stands for the number of a layer.
    shape: of the tensor in the file, which has kernels as `[out, in]`.
  """

  key: str
  shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class T5Config:
  """The encoder of T5 1.1, flan-T5 or umT5.

  Attributes:
    vocabulary_size: rows of the embedding.
    d_model: width of a feature.
    num_layers: of the encoder.
    num_heads: attention heads.
    head_dim: width of a head.
    mlp_dim: width of the MLP.
    num_buckets: of relative positions, half of them for later tokens.
    max_distance: from which on distances share a bucket.
    epsilon: of RMSNorm.
    has_layer_distances: whether each layer has its own bias of distances, as in umT5; in T5 all
      layers share one.
  """

  vocabulary_size: int
  d_model: int
  num_layers: int
  num_heads: int
  head_dim: int
  mlp_dim: int
  num_buckets: int = 32
  max_distance: int = 128
  epsilon: float = 1e-6
  has_layer_distances: bool = False

  # The decoder of a whole T5, and the second name of the embedding.
  not_needed: ClassVar[re.Pattern] = re.compile(
    r"decoder\..*|lm_head\..*|shared\.weight|encoder\.embed_tokens\.weight"
  )

  def __post_init__(self):
    if self.num_buckets < 4 or self.num_buckets % 4:
      raise ValueError(
        f"relative_attention_num_buckets={self.num_buckets} must be a multiple of 4, at least 4"
      )
    if self.max_distance <= self.num_buckets // 4:
      raise ValueError(
        f"relative_attention_max_distance={self.max_distance} must be more than a quarter of "
        f"relative_attention_num_buckets={self.num_buckets}"
      )

  def tensors(self) -> dict[str, Tensor]:
    """Returns where each parameter is, by its dotted name in `t5.T5Encoder`."""
    m, inner, hidden = self.d_model, self.num_heads * self.head_dim, self.mlp_dim
    attention, mlp = (f"encoder.block.{{}}.layer.{i}" for i in range(2))
    projections = f"{attention}.SelfAttention"
    dense = f"{mlp}.DenseReluDense"
    distances = f"{projections}.relative_attention_bias.weight"
    found = {
      "embedding.table": Tensor("shared.weight", (self.vocabulary_size, m)),
      "blocks.attention_norm.scale": Tensor(f"{attention}.layer_norm.weight", (m,)),
      "blocks.query.kernel": Tensor(f"{projections}.q.weight", (inner, m)),
      "blocks.key.kernel": Tensor(f"{projections}.k.weight", (inner, m)),
      "blocks.value.kernel": Tensor(f"{projections}.v.weight", (inner, m)),
      "blocks.out.kernel": Tensor(f"{projections}.o.weight", (m, inner)),
      "blocks.mlp_norm.scale": Tensor(f"{mlp}.layer_norm.weight", (m,)),
      "blocks.gate.kernel": Tensor(f"{dense}.wi_0.weight", (hidden, m)),
      "blocks.up.kernel": Tensor(f"{dense}.wi_1.weight", (hidden, m)),
      "blocks.down.kernel": Tensor(f"{dense}.wo.weight", (m, hidden)),
      "norm.scale": Tensor("encoder.final_layer_norm.weight", (m,)),
    }
    table = (self.num_buckets, self.num_heads)
    if self.has_layer_distances:
      return found | {"blocks.distances": Tensor(distances, table)}
    return found | {"distances": Tensor(distances.format(0), table)}

  def other_key(self, key: str) -> str:
    """Returns the name that some files have for a tensor: the tied embedding has two."""
    return "encoder.embed_tokens.weight" if key == "shared.weight" else key


@dataclasses.dataclass(frozen=True)
class PhiConfig:
  """Phi-2, or a Phi of another size.

  Attributes:
    vocabulary_size: rows of the embedding.
    d_model: width of a feature.
    num_layers: of the network.
    num_heads: attention heads.
    mlp_dim: width of the MLP.
    rotary_dim: leading numbers of a head that rotate with its position.
    rope_base: base of the wavelengths.
    epsilon: of LayerNorm.
  """

  vocabulary_size: int
  d_model: int
  num_layers: int
  num_heads: int
  mlp_dim: int
  rotary_dim: int
  rope_base: float = 10_000.0
  epsilon: float = 1e-5

  # Logits are not computed; early files also have the wavelengths, which follow from the config.
  not_needed: ClassVar[re.Pattern] = re.compile(r"lm_head\..*|.*\.rotary_emb\.inv_freq")

  def __post_init__(self):
    if self.d_model % self.num_heads:
      raise ValueError(
        f"num_attention_heads={self.num_heads} does not divide hidden_size={self.d_model}"
      )
    if self.rotary_dim % 2 or not 0 < self.rotary_dim <= self.d_model // self.num_heads:
      raise ValueError(
        f"partial_rotary_factor makes {self.rotary_dim} numbers of a head rotate; it must be an "
        f"even number up to {self.d_model // self.num_heads}"
      )

  def tensors(self) -> dict[str, Tensor]:
    """Returns where each parameter is, by its dotted name in `phi.Phi`."""
    m, hidden, layer = self.d_model, self.mlp_dim, "model.layers.{}"
    linear = {
      "query": (f"{layer}.self_attn.q_proj", m, m),
      "key": (f"{layer}.self_attn.k_proj", m, m),
      "value": (f"{layer}.self_attn.v_proj", m, m),
      "out": (f"{layer}.self_attn.dense", m, m),
      "up": (f"{layer}.mlp.fc1", hidden, m),
      "down": (f"{layer}.mlp.fc2", m, hidden),
    }
    norms = {"blocks.norm": f"{layer}.input_layernorm", "norm": "model.final_layernorm"}
    found = {"embedding.table": Tensor("model.embed_tokens.weight", (self.vocabulary_size, m))}
    for name, (key, num_out, num_in) in linear.items():
      found[f"blocks.{name}.kernel"] = Tensor(f"{key}.weight", (num_out, num_in))
      found[f"blocks.{name}.bias"] = Tensor(f"{key}.bias", (num_out,))
    for name, key in norms.items():
      found[f"{name}.scale"] = Tensor(f"{key}.weight", (m,))
      found[f"{name}.bias"] = Tensor(f"{key}.bias", (m,))
    return found

  def other_key(self, key: str) -> str:
    """Returns the name that some files have for a tensor: those without the head omit `model.`."""
    return key.removeprefix("model.")


EncoderConfig = T5Config | PhiConfig


def config_of(values: Mapping[str, Any]) -> EncoderConfig:
  """Returns the sizes that a `config.json` of `transformers` states.

  Raises:
    ValueError: the type or a setting is not supported, or a size is missing; names it.
  """
  kind = values.get("model_type")
  if kind not in list(_KINDS):
    raise ValueError(f"model_type={kind!r} is not supported; known are {', '.join(_KINDS)}")
  return _KINDS[kind](values)


def read_values(folder: str | pathlib.Path) -> dict[str, Any]:
  """Returns what the `config.json` of a folder holds; an empty dict if there is none.

  Raises:
    ValueError: it cannot be read.
  """
  path = pathlib.Path(folder) / "config.json"
  if not path.is_file():
    return {}
  try:
    values = json.loads(path.read_text("utf-8"))
  except (OSError, ValueError, RecursionError) as error:
    raise ValueError(f"{path} is damaged ({error})") from error
  if not isinstance(values, dict):
    raise ValueError(f"{path} holds a {type(values).__name__}, not an object")
  return values


def _t5(values: Mapping[str, Any]) -> T5Config:
  _check_known(values, "feed_forward_proj", ("gated-gelu",))
  return T5Config(
    vocabulary_size=_size(values, "vocab_size"),
    d_model=_size(values, "d_model"),
    num_layers=_size(values, "num_layers"),
    num_heads=_size(values, "num_heads"),
    head_dim=_size(values, "d_kv"),
    mlp_dim=_size(values, "d_ff"),
    num_buckets=_size(values, "relative_attention_num_buckets", 32),
    max_distance=_size(values, "relative_attention_max_distance", 128),
    epsilon=_number(values, "layer_norm_epsilon", 1e-6),
    has_layer_distances=values["model_type"] == "umt5",
  )


def _phi(values: Mapping[str, Any]) -> PhiConfig:
  _check_known(values, "hidden_act", ("gelu_new",))
  _check_known(values, "qk_layernorm", (False, None))
  _check_known(values, "rope_scaling", (None,))
  num_heads = _size(values, "num_attention_heads")
  _check_known(values, "num_key_value_heads", (num_heads, None))
  # Later versions of the library have a section for it.
  rope = values.get("rope_parameters") or {}
  if not isinstance(rope, dict):
    raise ValueError(f"rope_parameters={rope!r} must be an object")
  _check_known(rope, "rope_type", ("default", None))
  rope = {**values, **rope}
  width = _size(values, "hidden_size")
  share = _number(rope, "partial_rotary_factor", 0.5)
  return PhiConfig(
    vocabulary_size=_size(values, "vocab_size"),
    d_model=width,
    num_layers=_size(values, "num_hidden_layers"),
    num_heads=num_heads,
    mlp_dim=_size(values, "intermediate_size"),
    rotary_dim=int(share * (width // num_heads)),
    rope_base=_number(rope, "rope_theta", 10_000.0),
    epsilon=_number(values, "layer_norm_eps", 1e-5),
  )


_KINDS = {"t5": _t5, "umt5": _t5, "phi": _phi}


def _check_known(values: Mapping[str, Any], name: str, known: tuple) -> None:
  value = values.get(name)
  if value not in known or (value is None and None not in known):
    names = ", ".join(repr(x) for x in known if x is not None) or "null"
    raise ValueError(f"{name}={value!r} is not supported; known: {names}")


def _size(values: Mapping[str, Any], name: str, default: int | None = None) -> int:
  value = values.get(name, default)
  if not isinstance(value, int) or isinstance(value, bool) or value < 1:
    raise ValueError(f"{name}={value!r} must be a whole number, at least 1")
  return value


def _number(values: Mapping[str, Any], name: str, default: float) -> float:
  value = values.get(name, default)
  if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
    raise ValueError(f"{name}={value!r} must be a number above 0")
  return float(value)
