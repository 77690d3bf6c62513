"""The causal 3-D convolutional autoencoder.

Its 2-D slice is Infinity's public image tokenizer: names of levels and blocks follow that
checkpoint's keys. Not in the paper, and off by default: `patch_size` folds pixels into channels
before the first convolution, so that small machines skip the costly full resolution.

Source: VIDEOAR section 2.1.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float

from videoar_jax.nn.conv import CausalConv3d
from videoar_jax.nn.layers import GroupNorm
from videoar_jax.tokenizers.bsq.schedules import Schedule, default_schedule, parse_schedule

# The last inputs of each convolution: arrays in dicts that are nested like the modules.
State = dict


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig:
  """The network.

  Attributes:
    num_bits: bits per token, which are the channels of the latent.
    base_channels: channels at full resolution.
    multipliers: channels of each level, in units of `base_channels`.
    num_encoder_blocks: residual blocks of each level of the encoder.
    num_decoder_blocks: residual blocks of each level of the decoder.
    strides: (time, space) stride from each level to the next, each 1 or 2.
    num_groups: groups of the group normalization.
    patch_size: side in pixels of the patches that are folded into channels before the first
      convolution; 1 in the paper.
    schedule: scales of the quantizer, such as "1 2 4 8" or "2x3 4x6", ending with the latent grid
      of the run's clips. If it is "", and for clips of other sizes, the default is Infinity's
      table, or growing steps for small grids.
  """

  num_bits: int = 48
  base_channels: int = 128
  multipliers: tuple[int, ...] = (1, 2, 4, 4, 4)
  num_encoder_blocks: int = 2
  num_decoder_blocks: int = 3
  strides: tuple[tuple[int, int], ...] = ((1, 2), (1, 2), (2, 2), (2, 2))
  num_groups: int = 32
  patch_size: int = 1
  schedule: str = ""

  def __post_init__(self):
    object.__setattr__(self, "multipliers", tuple(self.multipliers))
    object.__setattr__(self, "strides", tuple(tuple(pair) for pair in self.strides))
    for field in ("num_bits", "base_channels", "num_encoder_blocks", "num_groups", "patch_size"):
      if getattr(self, field) < 1:
        raise ValueError(f"tokenizer.{field}={getattr(self, field)} must be at least 1")
    if len(self.strides) != len(self.multipliers) - 1:
      raise ValueError(
        f"tokenizer.strides has {len(self.strides)} entries, but {len(self.multipliers)} levels "
        f"(tokenizer.multipliers) need {len(self.multipliers) - 1}"
      )
    if not all(len(pair) == 2 and set(pair) <= {1, 2} for pair in self.strides):
      raise ValueError(f"tokenizer.strides={self.strides}: each is (time, space), of 1 and 2")
    for multiplier in self.multipliers:
      if self.base_channels * multiplier % self.num_groups:
        raise ValueError(
          f"tokenizer.num_groups={self.num_groups} does not divide "
          f"{self.base_channels * multiplier} channels (base_channels x multiplier)"
        )
    parse_schedule(self.schedule)

  @property
  def num_channels(self) -> int:
    """Channels of a latent cell: one per bit."""
    return self.num_bits

  def scales(self, resolution: tuple[int, int]) -> Schedule:
    """Returns the scales for frames of (H, W) pixels."""
    _, *grid = self.latent_shape(1, resolution)
    own = parse_schedule(self.schedule)
    return own if own and own[-1] == tuple(grid) else default_schedule(tuple(grid))

  @property
  def spatial_stride(self) -> int:
    """Side of a latent cell in pixels."""
    return self.patch_size * math.prod(space for _, space in self.strides)

  @property
  def temporal_stride(self) -> int:
    """Frames per latent frame, `tau`."""
    return math.prod(time for time, _ in self.strides)

  def latent_shape(self, num_frames: int, resolution: tuple[int, int]) -> tuple[int, int, int]:
    """Returns (t, h, w) of a clip's latent.

    Raises:
      ValueError: frames are not 1 + tau k, or the stride does not divide the resolution.
    """
    tau, stride = self.temporal_stride, self.spatial_stride
    if num_frames < 1 or (num_frames - 1) % tau:
      below = max(0, (num_frames - 1) // tau) * tau + 1
      raise ValueError(
        f"data.num_frames={num_frames} is not 1 + {tau} k; take {below} or {below + tau}"
      )
    for side, size in zip(("height", "width"), resolution, strict=True):
      if size < stride or size % stride:
        below = max(1, size // stride) * stride
        raise ValueError(
          f"data.resolution: {side} {size} is not a multiple of the tokenizer's stride {stride}; "
          f"take {below} or {below + stride}"
        )
    return (
      1 + (num_frames - 1) // tau,
      resolution[0] // stride,
      resolution[1] // stride,
    )


class ResidualBlock(nnx.Module):
  """Residual block: norm, swish and convolution, twice."""

  def __init__(self, rngs: nnx.Rngs, num_in: int, num_out: int, num_groups: int):
    self.norm1 = GroupNorm(rngs, num_in, num_groups)
    self.conv1 = CausalConv3d(rngs, num_in, num_out)
    self.norm2 = GroupNorm(rngs, num_out, num_groups)
    self.conv2 = CausalConv3d(rngs, num_out, num_out, gain=0.1)
    self.nin_shortcut = CausalConv3d(rngs, num_in, num_out, size=1) if num_in != num_out else None

  def __call__(
    self,
    x: Float[Array, "b t h w i"],
    past: State | None = None,
    is_start: Bool[Array, ""] | None = None,
  ) -> tuple[Float[Array, "b t h w o"], State]:
    past, last = past or {}, {}
    y, last["conv1"] = self.conv1(jax.nn.silu(self.norm1(x)), past.get("conv1"), is_start)
    y, last["conv2"] = self.conv2(jax.nn.silu(self.norm2(y)), past.get("conv2"), is_start)
    # The shortcut sees only the current frame, so it has no state.
    return y + (x if self.nin_shortcut is None else self.nin_shortcut(x)[0]), last


class Blocks(nnx.Module):
  """Residual blocks in a row, named `block_0`, `block_1` and so on."""

  def __init__(self, rngs: nnx.Rngs, num_in: int, num_out: int, num: int, num_groups: int):
    self.num = num
    for i in range(num):
      block = ResidualBlock(rngs, num_in if i == 0 else num_out, num_out, num_groups)
      setattr(self, f"block_{i}", block)

  def __call__(self, x, past: State | None = None, is_start=None):
    past, last = past or {}, {}
    for i in range(self.num):
      name = f"block_{i}"
      x, last[name] = getattr(self, name)(x, past.get(name), is_start)
    return x, last


class Upsample(nnx.Module):
  """Nearest repetition by a stride, then a convolution.

  In time the first frame stays one frame and every other becomes two.
  """

  def __init__(self, rngs: nnx.Rngs, channels: int, stride: tuple[int, int]):
    self.conv = CausalConv3d(rngs, channels, channels)
    self.stride = stride

  def __call__(
    self, x: Float[Array, "b t h w c"], past: State | None = None
  ) -> tuple[Float[Array, "b u y x c"], State]:
    time, space = self.stride
    if space > 1:
      x = jnp.repeat(jnp.repeat(x, space, axis=2), space, axis=3)
    if time > 1:
      x = jnp.repeat(x, time, axis=1)
      x = x[:, time - 1 :] if past is None else x
    y, last = self.conv(x, None if past is None else past["conv"])
    return y, {"conv": last}


class Encoder(nnx.Module):
  """Pixels to unquantized latents."""

  def __init__(self, rngs: nnx.Rngs, config: AutoencoderConfig):
    widths = [config.base_channels * multiplier for multiplier in config.multipliers]
    self.config = config
    self.conv_in = CausalConv3d(rngs, 3 * config.patch_size**2, widths[0])
    for level, width in enumerate(widths):
      previous = widths[max(0, level - 1)]
      blocks = Blocks(rngs, previous, width, config.num_encoder_blocks, config.num_groups)
      setattr(self, f"down_{level}", blocks)
      if level + 1 < len(widths):
        time, space = config.strides[level]
        conv = CausalConv3d(rngs, width, width, stride=(time, space, space))
        setattr(self, f"downsample_{level}", conv)
    self.mid = Blocks(rngs, widths[-1], widths[-1], 2, config.num_groups)
    self.norm_out = GroupNorm(rngs, widths[-1], config.num_groups)
    self.conv_out = CausalConv3d(rngs, widths[-1], config.num_bits)

  def __call__(self, video: Float[Array, "b f H W 3"]) -> Float[Array, "b t h w d"]:
    return self.chunk(video)[0]

  def chunk(
    self,
    video: Float[Array, "b f H W 3"],
    past: State | None = None,
    is_start: Bool[Array, ""] | None = None,
  ) -> tuple[Float[Array, "b t h w d"], State]:
    """Encodes the next frames of a clip; without a past, the first ones. See `Tokenizer`.

    Args:
      video: the frames.
      past: state after the chunk before.
      is_start: whether the clip starts at the last of these frames, see `CausalConv3d`; may be
        traced.
    """
    p = self.config.patch_size
    x = rearrange(video, "b f (h p) (w q) c -> b f h w (p q c)", p=p, q=p)
    past, last = past or {}, {}
    for name in self._names():
      if name == "conv_out":
        x = jax.nn.silu(self.norm_out(x))
      x, last[name] = getattr(self, name)(x, past.get(name), is_start)
    return x, last

  def _names(self) -> list[str]:
    """Returns the names of the modules that have a state, in order."""
    levels = range(len(self.config.multipliers))
    pairs = [name for level in levels for name in (f"down_{level}", f"downsample_{level}")]
    return ["conv_in", *pairs[:-1], "mid", "conv_out"]


class Decoder(nnx.Module):
  """Quantized latents to pixels, unclamped."""

  def __init__(self, rngs: nnx.Rngs, config: AutoencoderConfig):
    widths = [config.base_channels * multiplier for multiplier in config.multipliers]
    self.config = config
    self.conv_in = CausalConv3d(rngs, config.num_bits, widths[-1])
    self.mid = Blocks(rngs, widths[-1], widths[-1], 2, config.num_groups)
    for level in reversed(range(len(widths))):
      previous = widths[min(len(widths) - 1, level + 1)]
      blocks = Blocks(rngs, previous, widths[level], config.num_decoder_blocks, config.num_groups)
      setattr(self, f"up_{level}", blocks)
      if level > 0:
        setattr(self, f"upsample_{level}", Upsample(rngs, widths[level], config.strides[level - 1]))
    self.norm_out = GroupNorm(rngs, widths[0], config.num_groups)
    self.conv_out = CausalConv3d(rngs, widths[0], 3 * config.patch_size**2)

  def __call__(self, latents: Float[Array, "b t h w d"]) -> Float[Array, "b f H W 3"]:
    return self.chunk(latents)[0]

  def chunk(
    self, latents: Float[Array, "b t h w d"], past: State | None = None
  ) -> tuple[Float[Array, "b f H W 3"], State]:
    """Decodes the next latent frames of a clip; without a past, the first ones."""
    past = past or {}
    hidden, last = self._hidden(latents, past)
    x, last["conv_out"] = self.conv_out(hidden, past.get("conv_out"))
    return self.unfold(x), last

  def hidden(self, latents: Float[Array, "b t h w d"]) -> Float[Array, "b f y x c"]:
    """Returns the input of the last convolution, which `pixels` applies."""
    return self._hidden(latents, {})[0]

  def pixels(self, hidden: Float[Array, "b f y x c"]) -> Float[Array, "b f H W 3"]:
    """Applies the last convolution to the result of `hidden`."""
    return self.unfold(self.conv_out(hidden)[0])

  def unfold(self, x: Float[Array, "b f y x c"]) -> Float[Array, "b f H W 3"]:
    """Unfolds channels to pixels."""
    p = self.config.patch_size
    return rearrange(x, "b f h w (p q c) -> b f (h p) (w q) c", p=p, q=p)

  def _hidden(self, x, past: State):
    levels, last = reversed(range(len(self.config.multipliers))), {}
    pairs = [name for level in levels for name in (f"up_{level}", f"upsample_{level}")]
    for name in ["conv_in", "mid", *pairs[:-1]]:
      x, last[name] = getattr(self, name)(x, past.get(name))
    return jax.nn.silu(self.norm_out(x)), last


class Autoencoder(nnx.Module):
  """Encoder and decoder; the quantizer between them has no parameters."""

  def __init__(self, rngs: nnx.Rngs, config: AutoencoderConfig):
    self.config = config
    self.encoder = Encoder(rngs, config)
    self.decoder = Decoder(rngs, config)


def abstract_params(config: AutoencoderConfig) -> dict:
  """Returns the shapes of an autoencoder's parameters, without computing anything."""
  return _abstract(config)[1]


def autoencoder_of(config: AutoencoderConfig, params: dict) -> Autoencoder:
  """Returns the autoencoder with given parameters."""
  return nnx.merge(_abstract(config)[0], params)


def _abstract(config: AutoencoderConfig) -> tuple[nnx.GraphDef, dict]:
  module = jax.eval_shape(lambda key: Autoencoder(nnx.Rngs(params=key), config), jax.random.key(0))
  graphdef, variables = nnx.split(module)
  return graphdef, nnx.to_pure_dict(variables)
