"""Counts what InfinityStar's video autoencoder costs: FLOPs, and bytes of encoding.

A multiply-add is two FLOPs. Norms, activations and shortcuts are not counted.
"""

import dataclasses

from videoar_jax.tokenizers.star.config import CELL, NUM_MID_BLOCKS, STRIDES, StarConfig

_NUM_TAPS = 3  # Of a convolution, in time, height and width.


def encoder_flops(config: StarConfig, num_frames: int, resolution: tuple[int, int]) -> int:
  """Returns the FLOPs of encoding one clip."""
  convolutions = _encoder(config, num_frames, resolution)
  return sum(each.flops for each in convolutions) + _map_flops(config, num_frames, resolution)


def decoder_flops(config: StarConfig, num_frames: int, resolution: tuple[int, int]) -> int:
  """Returns the FLOPs of decoding one clip of that length and size."""
  t, h, w = config.latent_shape(num_frames, resolution)
  frames, cells, total = t, h * w * CELL**2, 0
  num_norms = 2 * NUM_MID_BLOCKS * config.widths[-1] + config.widths[0]

  def conv(num_in, num_out):
    return _Convolution(num_in, num_out, frames, cells).flops

  total += conv(config.z_channels, config.widths[-1])
  total += 2 * NUM_MID_BLOCKS * conv(config.widths[-1], config.widths[-1])
  for level, (time, space) in reversed(list(enumerate(STRIDES))):
    width, num_convs = config.widths[level + 1], 2 * (config.num_blocks + 1)
    total += num_convs * conv(width, width)
    num_norms += num_convs * width
    if space > 1:
      total += conv(width, config.widths[level] * time * space**2)
      frames, cells = 1 + time * (frames - 1), cells * space**2
  total += conv(config.widths[0], 3)
  # The scale and the shift of each channel that is normalized, for each cell of the latents.
  modulation = 2 * 2 * config.z_channels * num_norms * t * h * w * CELL**2
  return total + modulation + _map_flops(config, num_frames, resolution)


def encode_bytes(
  config: StarConfig, rows: int, num_frames: int, resolution: tuple[int, int]
) -> int:
  """Returns the peak bytes of encoding `rows` clips of that many frames at once, in float32.

  The last two inputs of each convolution are kept from chunk to chunk, those of the chunk before
  and the new ones. A convolution of the widest level also has its input, its result, and the input
  of its block. XLA on CPU needs three quarters of this.
  """
  convolutions = _encoder(config, num_frames, resolution)
  frame = max(each.num_in * each.cells for each in convolutions)
  past = _NUM_TAPS - 1
  kept = past * sum(each.num_in * each.cells for each in convolutions)
  return 4 * rows * (2 * kept + (3 * num_frames + past) * frame)


@dataclasses.dataclass(frozen=True)
class _Convolution:
  """A convolution of a clip.

  Attributes:
    num_in: channels of its input.
    num_out: channels of its result.
    frames: of a clip.
    cells: of a frame.
  """

  num_in: int
  num_out: int
  frames: int
  cells: int

  @property
  def flops(self) -> int:
    """FLOPs of one clip. Before a clip there are frames, too."""
    return 2 * self.frames * self.cells * _NUM_TAPS**3 * self.num_in * self.num_out


def _encoder(config: StarConfig, num_frames: int, resolution: tuple[int, int]):
  """Returns the encoder's convolutions."""
  frames, cells, widths = num_frames, resolution[0] * resolution[1], config.widths
  found = [_Convolution(3, widths[0], frames, cells)]
  for level, (time, space) in enumerate(STRIDES):
    width = widths[level]
    found += [_Convolution(width, width, frames, cells)] * (2 * config.num_blocks)
    if space > 1:
      found.append(_Convolution(width, widths[level + 1] // space**2, frames, cells))
      frames, cells = -(-frames // time), cells // space**2
  found += [_Convolution(widths[-1], widths[-1], frames, cells)] * (2 * NUM_MID_BLOCKS)
  return [*found, _Convolution(widths[-1], 2 * config.z_channels, frames, cells)]


def _map_flops(config: StarConfig, num_frames: int, resolution: tuple[int, int]) -> int:
  """Returns the FLOPs of the linear map between convolutions and latents."""
  t, h, w = config.latent_shape(num_frames, resolution)
  return 2 * t * h * w * config.num_channels**2
