"""Counts the FLOPs of the autoencoder's convolutions, two per multiply-add.

Products with the zero frames before a clip are not counted, nor are norms and activations.
"""

from videoar_jax.tokenizers.autoencoder import AutoencoderConfig


def encoder_flops(config: AutoencoderConfig, num_frames: int, resolution: tuple[int, int]) -> int:
  """Returns the FLOPs of encoding one clip."""
  counter = _Counter(config, num_frames, resolution, is_encoder=True)
  widths = [config.base_channels * multiplier for multiplier in config.multipliers]
  counter.conv(3 * config.patch_size**2, widths[0], num_taps=config.num_taps)
  for level, width in enumerate(widths):
    counter.blocks(widths[max(0, level - 1)], width, config.num_encoder_blocks)
    if level + 1 < len(widths):
      counter.conv(width, width, stride=config.strides[level])
  counter.blocks(widths[-1], widths[-1], config.num_mid_blocks)
  counter.conv(widths[-1], config.num_encoded)
  return counter.total


def decoder_flops(config: AutoencoderConfig, num_frames: int, resolution: tuple[int, int]) -> int:
  """Returns the FLOPs of decoding one clip of that length and size."""
  counter = _Counter(config, num_frames, resolution, is_encoder=False)
  widths = [config.base_channels * multiplier for multiplier in config.multipliers]
  counter.conv(config.num_channels, widths[-1])
  counter.blocks(widths[-1], widths[-1], config.num_mid_blocks)
  previous = widths[-1]
  for level in reversed(range(len(widths))):
    counter.blocks(previous, widths[level], config.num_decoder_blocks)
    previous = widths[level]
    if level == 0:
      continue
    time, space = config.strides[level - 1]
    if config.upsampling == "subpixel":
      previous = widths[level - 1]
      counter.conv(widths[level], previous * time * space**2)
      counter.upsample((time, space))
    else:
      counter.upsample((time, space))
      counter.conv(widths[level], widths[level])
  taps, p, fine = config.num_taps, config.patch_size, config.refine_channels
  counter.conv(widths[0], 4 * fine if fine else 3 * p**2, num_taps=taps)
  if fine:
    counter.upsample((1, 2))
    counter.conv(fine, 3 * (p // 2) ** 2, num_taps=taps)
  return counter.total


class _Counter:
  """Walks through a network's layers and tracks the shape of the activations."""

  def __init__(self, config, num_frames, resolution, *, is_encoder: bool):
    t, h, w = config.latent_shape(num_frames, resolution)
    if is_encoder:
      t, h, w = num_frames, *(size // config.patch_size for size in resolution)
    self.frames, self.cells = t, (h, w)
    self.num_taps = config.num_taps
    self.total = 0

  def conv(
    self, num_in: int, num_out: int, *, size: int = 3, num_taps: int | None = None, stride=(1, 1)
  ) -> None:
    time, space = stride
    num_taps = size if num_taps is None else num_taps
    outputs = range(0, self.frames, time)
    # The output at frame u sees at most u + 1 frames.
    num_inputs = sum(min(num_taps, frame + 1) for frame in outputs)
    self.frames = len(outputs)
    self.cells = tuple(side // space for side in self.cells)
    self.total += 2 * num_inputs * size**2 * num_in * num_out * self.cells[0] * self.cells[1]

  def blocks(self, num_in: int, num_out: int, num: int) -> None:
    for block in range(num):
      width = num_in if block == 0 else num_out
      self.conv(width, num_out, num_taps=self.num_taps)
      self.conv(num_out, num_out)
      if width != num_out:
        self.conv(width, num_out, size=1)

  def upsample(self, stride) -> None:
    time, space = stride
    self.frames = (self.frames - 1) * time + 1
    self.cells = tuple(side * space for side in self.cells)
