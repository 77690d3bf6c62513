"""The causal 3-D convolutional autoencoder.

Its 2-D slice is Infinity's public image tokenizer: names of levels and blocks follow that
checkpoint's keys. Not in the paper, and off by default, are settings for small machines:
`patch_size` folds pixels into channels before the first convolution, which skips the costly full
resolution; `refine_channels` puts a convolution at half of it back at the end;
`upsampling="subpixel"` and `temporal_kernels="half"` leave out arithmetic that brings little.

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
from videoar_jax.tokenizers import shapes

# The last inputs of each convolution: arrays in dicts that are nested like the modules.
State = dict


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
  """The network, without what lies between encoder and decoder.

  A subclass says how many channels a latent cell has, `num_channels`.

  Attributes:
    base_channels: channels at full resolution.
    multipliers: channels of each level, in units of `base_channels`.
    num_encoder_blocks: residual blocks of each level of the encoder.
    num_decoder_blocks: residual blocks of each level of the decoder.
    num_mid_blocks: residual blocks between the last level and the latent, of both.
    strides: (time, space) stride from each level to the next, each 1 or 2.
    num_groups: groups of the group normalization.
    patch_size: side in pixels of the patches that are folded into channels before the first
      convolution; 1 in the paper.
    upsampling: "nearest", repetition and then a convolution; or "subpixel", a convolution to more
      channels, which are then unfolded to frames and pixels.
    temporal_kernels: convolutions that see earlier frames: "all"; or "half", all but the first
      convolution of each residual block, the encoder's first and the decoder's last.
    refine_channels: channels of a last convolution at half of the full resolution, for sharper
      edges; 0 for none. It needs an even `patch_size`.
  """

  base_channels: int = 128
  multipliers: tuple[int, ...] = (1, 2, 4, 4, 4)
  num_encoder_blocks: int = 2
  num_decoder_blocks: int = 3
  num_mid_blocks: int = 2
  strides: tuple[tuple[int, int], ...] = ((1, 2), (1, 2), (2, 2), (2, 2))
  num_groups: int = 32
  patch_size: int = 1
  upsampling: str = "nearest"
  temporal_kernels: str = "all"
  refine_channels: int = 0

  def __post_init__(self):
    object.__setattr__(self, "multipliers", tuple(self.multipliers))
    object.__setattr__(self, "strides", tuple(tuple(pair) for pair in self.strides))
    for field in ("base_channels", "num_encoder_blocks", "num_groups", "patch_size"):
      if getattr(self, field) < 1:
        raise ValueError(f"tokenizer.{field}={getattr(self, field)} must be at least 1")
    for field in ("num_mid_blocks", "refine_channels"):
      if getattr(self, field) < 0:
        raise ValueError(f"tokenizer.{field}={getattr(self, field)} must not be negative")
    for field, known in (
      ("upsampling", ("nearest", "subpixel")),
      ("temporal_kernels", ("all", "half")),
    ):
      if getattr(self, field) not in known:
        raise ValueError(f"tokenizer.{field}={getattr(self, field)!r} must be in {known}")
    if self.refine_channels and self.patch_size % 2:
      raise ValueError(
        f"tokenizer.refine_channels={self.refine_channels} needs an even tokenizer.patch_size, got "
        f"{self.patch_size}; set it to 2 or 4, or leave refine_channels at 0"
      )
    if self.refine_channels % self.num_groups:
      raise ValueError(
        f"tokenizer.num_groups={self.num_groups} does not divide tokenizer.refine_channels="
        f"{self.refine_channels}"
      )
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

  @property
  def num_taps(self) -> int:
    """Frames that a kernel sees which `temporal_kernels="half"` leaves without earlier ones."""
    return 1 if self.temporal_kernels == "half" else 3

  @property
  def sees_whole_clips(self) -> bool:
    """Whether any frame of the result depends on all frames of a clip."""
    return False

  @property
  def num_encoded(self) -> int:
    """Channels that the encoder makes of a cell."""
    return self.num_channels

  def posterior_of(self, encoded: Float[Array, "b t h w e"]) -> Float[Array, "b t h w e"]:
    """Returns what a token cache stores of what the encoder made: itself."""
    return encoded

  def latents_of(
    self, encoded: Float[Array, "b t h w e"], key: jax.Array | None = None
  ) -> Float[Array, "b t h w d"]:
    """Returns the latents that what the encoder made stands for: itself, with any key."""
    return encoded

  @property
  def spatial_stride(self) -> int:
    """Side of a latent cell in pixels."""
    return self.patch_size * math.prod(space for _, space in self.strides)

  @property
  def temporal_stride(self) -> int:
    """Frames per latent frame, `tau`."""
    return math.prod(time for time, _ in self.strides)

  def latent_shape(self, num_frames: int, resolution: tuple[int, int]) -> tuple[int, int, int]:
    """Returns (t, h, w) of a clip's latent; see `shapes.latent_shape`."""
    return shapes.latent_shape(self.temporal_stride, self.spatial_stride, num_frames, resolution)


class ResidualBlock(nnx.Module):
  """Residual block: norm, swish and convolution, twice."""

  def __init__(self, rngs: nnx.Rngs, num_in: int, num_out: int, config: AutoencoderConfig):
    self.norm1 = GroupNorm(rngs, num_in, config.num_groups)
    self.conv1 = CausalConv3d(rngs, num_in, num_out, num_taps=config.num_taps)
    self.norm2 = GroupNorm(rngs, num_out, config.num_groups)
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

  def __init__(
    self, rngs: nnx.Rngs, num_in: int, num_out: int, num: int, config: AutoencoderConfig
  ):
    self.num = num
    for i in range(num):
      block = ResidualBlock(rngs, num_in if i == 0 else num_out, num_out, config)
      setattr(self, f"block_{i}", block)

  def __call__(self, x, past: State | None = None, is_start=None):
    past, last = past or {}, {}
    for i in range(self.num):
      name = f"block_{i}"
      x, last[name] = getattr(self, name)(x, past.get(name), is_start)
    return x, last


class Upsample(nnx.Module):
  """Nearest repetition by a stride and a convolution, or a convolution to unfolded channels.

  In time the first frame stays one frame and every other becomes two.
  """

  def __init__(
    self, rngs: nnx.Rngs, num_in: int, num_out: int, stride: tuple[int, int], is_subpixel: bool
  ):
    copies = stride[0] * stride[1] ** 2 if is_subpixel else 1
    self.conv = CausalConv3d(rngs, num_in, num_out * copies)
    self.stride, self.is_subpixel = stride, is_subpixel

  def __call__(
    self, x: Float[Array, "b t h w i"], past: State | None = None
  ) -> tuple[Float[Array, "b u y x o"], State]:
    time, space = self.stride
    state = None if past is None else past["conv"]
    if self.is_subpixel:
      y, last = self.conv(x, state)
      y = rearrange(y, "b t h w (u p q c) -> b (t u) (h p) (w q) c", u=time, p=space, q=space)
      return y if past is not None else y[:, time - 1 :], {"conv": last}
    if space > 1:
      x = jnp.repeat(jnp.repeat(x, space, axis=2), space, axis=3)
    if time > 1:
      x = jnp.repeat(x, time, axis=1)
      x = x[:, time - 1 :] if past is None else x
    y, last = self.conv(x, state)
    return y, {"conv": last}


class Encoder(nnx.Module):
  """Pixels to what the latents are made of."""

  def __init__(self, rngs: nnx.Rngs, config: AutoencoderConfig):
    widths = [config.base_channels * multiplier for multiplier in config.multipliers]
    self.config = config
    self.conv_in = CausalConv3d(rngs, 3 * config.patch_size**2, widths[0], num_taps=config.num_taps)
    for level, width in enumerate(widths):
      previous = widths[max(0, level - 1)]
      blocks = Blocks(rngs, previous, width, config.num_encoder_blocks, config)
      setattr(self, f"down_{level}", blocks)
      if level + 1 < len(widths):
        time, space = config.strides[level]
        conv = CausalConv3d(rngs, width, width, stride=(time, space, space))
        setattr(self, f"downsample_{level}", conv)
    self.mid = Blocks(rngs, widths[-1], widths[-1], config.num_mid_blocks, config)
    self.norm_out = GroupNorm(rngs, widths[-1], config.num_groups)
    self.conv_out = CausalConv3d(rngs, widths[-1], config.num_encoded)

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
  """Latents to pixels, unclamped."""

  def __init__(self, rngs: nnx.Rngs, config: AutoencoderConfig):
    widths = [config.base_channels * multiplier for multiplier in config.multipliers]
    self.config = config
    self.conv_in = CausalConv3d(rngs, config.num_channels, widths[-1])
    self.mid = Blocks(rngs, widths[-1], widths[-1], config.num_mid_blocks, config)
    is_subpixel = config.upsampling == "subpixel"
    previous = widths[-1]
    for level in reversed(range(len(widths))):
      width = widths[level]
      blocks = Blocks(rngs, previous, width, config.num_decoder_blocks, config)
      setattr(self, f"up_{level}", blocks)
      if level > 0:
        # Subpixels go straight to the next level's width.
        previous = widths[level - 1] if is_subpixel else width
        upsample = Upsample(rngs, width, previous, config.strides[level - 1], is_subpixel)
        setattr(self, f"upsample_{level}", upsample)
    self.norm_out = GroupNorm(rngs, widths[0], config.num_groups)
    p, fine = config.patch_size, config.refine_channels
    num_out = 4 * fine if fine else 3 * p**2
    self.conv_out = CausalConv3d(rngs, widths[0], num_out, num_taps=config.num_taps)
    self.norm_refine = GroupNorm(rngs, fine, config.num_groups) if fine else None
    self.refine = (
      CausalConv3d(rngs, fine, 3 * (p // 2) ** 2, num_taps=config.num_taps) if fine else None
    )

  def __call__(self, latents: Float[Array, "b t h w d"]) -> Float[Array, "b f H W 3"]:
    return self.chunk(latents)[0]

  def chunk(
    self, latents: Float[Array, "b t h w d"], past: State | None = None
  ) -> tuple[Float[Array, "b f H W 3"], State]:
    """Decodes the next latent frames of a clip; without a past, the first ones."""
    past = past or {}
    hidden, last = self._hidden(latents, past)
    x, last[self.last_name] = self.last_conv(hidden, past.get(self.last_name))
    return self.unfold(x), last

  @property
  def last_name(self) -> str:
    """Name of the last convolution."""
    return "conv_out" if self.refine is None else "refine"

  @property
  def last_conv(self) -> CausalConv3d:
    """The last convolution."""
    return getattr(self, self.last_name)

  def hidden(self, latents: Float[Array, "b t h w d"]) -> Float[Array, "b f y x c"]:
    """Returns the input of the last convolution, which `pixels` applies."""
    return self._hidden(latents, {})[0]

  def pixels(self, hidden: Float[Array, "b f y x c"]) -> Float[Array, "b f H W 3"]:
    """Applies the last convolution to the result of `hidden`."""
    return self.unfold(self.last_conv(hidden)[0])

  def unfold(self, x: Float[Array, "b f y x c"]) -> Float[Array, "b f H W 3"]:
    """Unfolds channels to pixels."""
    p = self.config.patch_size if self.refine is None else self.config.patch_size // 2
    return _unfold(x, p)

  def _hidden(self, x, past: State):
    levels, last = reversed(range(len(self.config.multipliers))), {}
    pairs = [name for level in levels for name in (f"up_{level}", f"upsample_{level}")]
    for name in ["conv_in", "mid", *pairs[:-1]]:
      x, last[name] = getattr(self, name)(x, past.get(name))
    x = jax.nn.silu(self.norm_out(x))
    if self.refine is not None:
      x, last["conv_out"] = self.conv_out(x, past.get("conv_out"))
      x = jax.nn.silu(self.norm_refine(_unfold(x, 2)))
    return x, last


def _unfold(x: Float[Array, "b f y x c"], side: int) -> Float[Array, "b f H W i"]:
  """Unfolds channels to squares of cells."""
  return rearrange(x, "b f h w (p q c) -> b f (h p) (w q) c", p=side, q=side)


class Autoencoder(nnx.Module):
  """Encoder and decoder; what lies between them has no parameters."""

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
