"""Public checkpoints of NOVA's transformer as parameters of this package.

Source: NOVA sections 2 and 3.
"""

import re
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from videoar_jax.interop.public_keys import PublicTensors, Source, looks_like
from videoar_jax.interop.tensor_files import shapes_of
from videoar_jax.models.nova.config import NovaConfig
from videoar_jax.models.nova.network import template_of
from videoar_jax.train.state import flatten, unflatten

# Heads of the public widths; a checkpoint does not say.
_NUM_HEADS = {768: 12, 1024: 16, 1536: 16}


def config_of(
  values: dict, tensors: Mapping[str, np.ndarray], num_heads: int | None = None
) -> NovaConfig:
  """Returns the settings of a checkpoint.

  Args:
    values: of its `transformer/config.json`.
    tensors: by the public name; layers, widths and the mixer's rank are read off their shapes.
    num_heads: attention heads; None for those of the public width.
  Raises:
    ValueError: a tensor that says a width is missing, or the heads are not known.
  """

  shapes = shapes_of(tensors)
  if num_heads is not None and num_heads < 1:
    raise ValueError(f"num_heads={num_heads} must be at least 1")

  def shape(name: str) -> tuple[int, ...]:
    if name not in shapes:
      looks = looks_like(shapes)
      if "_class_name" in values:
        looks += f", and its config.json says {values['_class_name']}"
      raise ValueError(f"this is not a NOVA transformer, since {name} is missing; {looks}")
    return shapes[name]

  def count(stack: str) -> int:
    found = [re.fullmatch(rf"{stack}\.(\d+)\..*", name) for name in tensors]
    return len({match[1] for match in found if match})

  width, channels, patch, _ = shape("image_encoder.patch_embed.proj.weight")
  if num_heads is None and width not in _NUM_HEADS:
    known = ", ".join(map(str, _NUM_HEADS))
    raise ValueError(f"the heads of a transformer of width {width} are not known, only of {known}")
  rank = None
  if "video_encoder.mixer.proj.weight" in tensors:
    is_low = "video_encoder.mixer.lora.weight" in tensors
    rank = shape("video_encoder.mixer.lora.weight")[0] if is_low else 0
  if "video_base_size" not in values:
    raise ValueError("its config.json has no video_base_size; fetch the checkpoint's own")
  has_text = values.get("text_token_dim") is not None
  return NovaConfig(
    d_model=width,
    num_heads=num_heads or _NUM_HEADS[width],
    num_video_layers=count("video_encoder.blocks"),
    num_image_layers=count("image_encoder.blocks"),
    mlp_ratio=shape("video_encoder.blocks.0.mlp.fc1.weight")[0] // width,
    head_mlp_dim=shape("image_decoder.patch_embed.proj.weight")[0],
    num_head_layers=count("image_decoder.blocks"),
    patch_size=patch,
    video_patch_size=shape("video_encoder.patch_embed.proj.weight")[-1],
    time_base=values["video_base_size"][0],
    mixer_rank=rank,
    positions="absolute" if "video_pos_embed.norm.weight" in tensors else "rope",
    has_motion="motion_embed.flow_proj.0.weight" in tensors,
    num_channels=channels,
    # Public labels have no padding.
    vocabulary_size=0 if has_text else shape("label_embed.weight")[0] + 1,
    text_dim=values["text_token_dim"] if has_text else 0,
    text_length=values.get("text_token_len", 256) if has_text else 1,
  )


def import_params(tensors: Mapping[str, np.ndarray], config: NovaConfig) -> dict:
  """Returns the network's parameters, as a nested dict, in the types of the tensors.

  Raises:
    ValueError: lists every missing, unexpected or misshapen tensor.
  """
  return unflatten(public_tensors(tensors, config).read_all())


def public_tensors(tensors: Mapping[str, np.ndarray], config: NovaConfig) -> PublicTensors:
  """Returns the network's parameters, to be read one at a time.

  Raises:
    ValueError: lists every missing, unexpected or misshapen tensor.
  """
  shapes = {name: leaf.shape for name, leaf in flatten(template_of(config).shapes).items()}
  found = PublicTensors(tensors, dict(_sources(config)), shapes)
  found.check("a NOVA transformer as its config says")
  return found


Sources = Iterator[tuple[str, Source]]


def _sources(config: NovaConfig) -> Sources:
  """Yields the name of each parameter, and where it comes from."""
  yield from _stack(
    "temporal.blocks", "video_encoder.blocks", range(config.num_video_layers), config
  )
  half = config.num_image_layers // 2
  yield from _stack("spatial.encoder", "image_encoder.blocks", range(half), config)
  yield from _stack("spatial.decoder", "image_encoder.blocks", range(half, 2 * half), config)
  yield from _patch("temporal.patch", "video_encoder.patch_embed.proj")
  yield from _patch("spatial.patch", "image_encoder.patch_embed.proj")
  yield from _norm("temporal.norm", "video_encoder.norm")
  yield from _norm("spatial.norm", "image_encoder.norm")
  yield "temporal.start", Source(("mask_embed.bos_token",), np.ravel)
  yield "spatial.unknown", Source(("mask_embed.mask_token",), np.ravel)
  yield from _text(config)
  if config.positions == "absolute":
    yield from _waves("temporal.time", "video_pos_embed.time_proj", ("0", "2"))
    yield from _norm("temporal.time_norm", "video_pos_embed.norm")
  if config.has_motion:
    yield from _waves("temporal.motion.flow", "motion_embed.flow_proj", ("0", "2"))
    yield from _waves("temporal.motion.frame_rate", "motion_embed.fps_proj", ("0", "2"))
  if config.mixer_rank is not None:
    if config.mixer_rank:
      names = ("video_encoder.mixer.lora.weight",)
      yield "temporal.mixer.down.kernel", Source(names, np.transpose)
    yield from _linear("temporal.mixer.up", "video_encoder.mixer.proj")
  yield from _head(config)


def _text(config: NovaConfig) -> Sources:
  if not config.text_dim:
    yield "temporal.text.table.table", Source(("label_embed.weight",), _labels)
    yield from _norm("temporal.text.norm", "label_embed.norm")
    return
  length = config.text_length
  yield "temporal.text.padding", Source(("text_embed.weight",), lambda x: x[:length])
  yield from _linear("temporal.text.project", "text_embed.proj")
  yield from _norm("temporal.text.norm", "text_embed.norm")


def _head(config: NovaConfig) -> Sources:
  yield from _patch("head.embed", "image_decoder.patch_embed.proj")
  condition = "image_decoder.time_cond_embed"
  yield from _waves("head.time", f"{condition}.timestep_proj", ("fc1", "fc2"))
  yield from _linear("head.condition_in", f"{condition}.condition_proj.fc1")
  yield from _linear("head.condition_out", f"{condition}.condition_proj.fc2")
  linear = {"modulated.project": "norm1.proj", "up": "proj.fc1", "down": "proj.fc2"}
  stacked = _stacker("image_decoder.blocks", range(config.num_head_layers))
  yield from _stacked("head.blocks", stacked, linear, {"norm": "norm2"})
  yield from _linear("head.modulated.project", "image_decoder.norm.proj")
  yield from _linear("head.out", "image_decoder.head")


def _stack(ours: str, theirs: str, numbers: range, config: NovaConfig) -> Sources:
  """Yields the parameters of stacked transformer blocks."""
  stacked = _stacker(theirs, numbers)
  for place, part in enumerate(("query", "key", "value")):

    def third(x, place=place):
      x = np.split(x, 3)[place]
      return x if place == 2 or config.positions == "absolute" else _halves(x, config.num_heads)

    yield (
      f"{ours}.attention.{part}.kernel",
      stacked("attn.qkv.weight", lambda x, third=third: third(x).T),
    )
    yield f"{ours}.attention.{part}.bias", stacked("attn.qkv.bias", third)
  linear = {"attention.out": "attn.proj", "up": "mlp.fc1", "down": "mlp.fc2"}
  yield from _stacked(ours, stacked, linear, {"attention_norm": "norm1", "mlp_norm": "norm2"})


def _stacker(theirs: str, numbers: range) -> Callable[..., Source]:
  """Returns a function from a name in each block, and a transform, to the stacked parameter."""

  def stacked(name: str, transform: Callable[[np.ndarray], np.ndarray] = np.asarray) -> Source:
    return Source(tuple(f"{theirs}.{i}.{name}" for i in numbers), transform, is_stacked=True)

  return stacked


def _stacked(
  ours: str, stacked: Callable[..., Source], linear: dict[str, str], norms: dict[str, str]
) -> Sources:
  for own, other in linear.items():
    yield f"{ours}.{own}.kernel", stacked(f"{other}.weight", np.transpose)
    yield f"{ours}.{own}.bias", stacked(f"{other}.bias")
  for own, other in norms.items():
    yield f"{ours}.{own}.scale", stacked(f"{other}.weight")
    yield f"{ours}.{own}.bias", stacked(f"{other}.bias")


def _halves(x: np.ndarray, num_heads: int) -> np.ndarray:
  """Moves pairs of neighbours, which public rotary heads rotate, to a head's two halves."""
  pairs = x.reshape(num_heads, -1, 2, *x.shape[1:])
  return np.swapaxes(pairs, 1, 2).reshape(x.shape)


def _linear(ours: str, theirs: str) -> Sources:
  yield f"{ours}.kernel", Source((f"{theirs}.weight",), np.transpose)
  yield f"{ours}.bias", Source((f"{theirs}.bias",))


def _norm(ours: str, theirs: str) -> Sources:
  yield f"{ours}.scale", Source((f"{theirs}.weight",))
  yield f"{ours}.bias", Source((f"{theirs}.bias",))


def _waves(ours: str, theirs: str, names: tuple[str, str]) -> Sources:
  for own, name in zip(("into", "out"), names, strict=True):
    yield from _linear(f"{ours}.{own}", f"{theirs}.{name}")


def _patch(ours: str, theirs: str) -> Sources:
  """A convolution over patches is a product with patches in the order (row, column, channel)."""

  def make(kernel: np.ndarray) -> np.ndarray:
    return kernel.transpose(2, 3, 1, 0).reshape(-1, kernel.shape[0])

  yield f"{ours}.kernel", Source((f"{theirs}.weight",), make)
  yield f"{ours}.bias", Source((f"{theirs}.bias",))


def _labels(x: np.ndarray) -> np.ndarray:
  """Moves the last label, "no condition", to the front, after padding; see `ClassTokenizer`."""
  return np.concatenate([np.zeros_like(x[:1]), x[-1:], x[:-1]])
