"""Counts the FLOPs of the public autoencoders' products, two per multiply-add.

Products with the zeros around frames are not counted, nor are norms and activations.
"""

from videoar_jax.tokenizers.kl.layouts import AutoencoderKLConfig


def encoder_flops(config: AutoencoderKLConfig, num_frames: int, resolution: tuple[int, int]) -> int:
  """Returns the FLOPs of encoding one clip."""
  total = 0
  for frames, count in _tiles(num_frames, config.tile_frames):
    counter, widths = _Counter(frames, resolution), config.block_channels
    counter.conv(3, widths[0], is_flat=True)
    for level, width in enumerate(widths):
      is_flat = level < config.num_flat_levels
      counter.blocks(widths[max(level - 1, 0)], width, config.num_blocks, is_flat=is_flat)
      if level + 1 < len(widths):
        counter.downsample(width, is_flat=level + 1 < config.num_flat_levels)
    counter.middle(widths[-1], is_flat=config.is_flat)
    counter.conv(widths[-1], config.num_encoded, is_flat=config.is_flat)
    counter.conv(config.num_encoded, config.num_encoded, is_flat=True, size=1)
    total += count * counter.total
  return total


def decoder_flops(config: AutoencoderKLConfig, num_frames: int, resolution: tuple[int, int]) -> int:
  """Returns the FLOPs of decoding one clip of that length and size."""
  total, num_latents = 0, 1 + (num_frames - 1) // config.temporal_stride
  for frames, count in _tiles(num_latents, config.tile_latents):
    counter = _Counter(frames, tuple(side // config.spatial_stride for side in resolution))
    widths, is_flat = config.block_channels[::-1], config.is_flat
    counter.conv(config.num_channels, config.num_channels, is_flat=True, size=1)
    counter.conv(config.num_channels, widths[0], is_flat=is_flat)
    counter.middle(widths[0], is_flat=is_flat)
    for level, width in enumerate(widths):
      previous = widths[max(level - 1, 0)]
      counter.blocks(previous, width, config.num_blocks + 1, is_flat=is_flat)
      if level + 1 < len(widths):
        has_time = level < len(widths) - config.num_flat_levels
        counter.upsample(width, has_time=has_time)
    counter.conv(widths[-1], 3, is_flat=is_flat)
    total += count * counter.total
  return total


def _tiles(num_frames: int, size: int | None) -> list[tuple[int, int]]:
  """Returns (frames, number) of the tiles of a clip."""
  if size is None or num_frames <= size:
    return [(num_frames, 1)]
  return [(size, (num_frames - 1) // (size - 1))]


class _Counter:
  """Walks through a network's layers and tracks the shape of the activations."""

  def __init__(self, num_frames: int, cells: tuple[int, int]):
    self.frames, self.cells, self.total = num_frames, cells, 0

  def conv(self, num_in: int, num_out: int, *, is_flat: bool, size: int = 3) -> None:
    taps = 1 if is_flat or size == 1 else 3
    # A side of n cells has 3 n - 2 pairs of a cell and one that its kernel sees.
    pairs = [side * size - (size - 1) for side in self.cells]
    self.total += 2 * self.frames * taps * pairs[0] * pairs[1] * num_in * num_out

  def blocks(self, num_in: int, num_out: int, num: int, *, is_flat: bool) -> None:
    for block in range(num):
      width = num_in if block == 0 else num_out
      self.conv(width, num_out, is_flat=is_flat)
      self.conv(num_out, num_out, is_flat=is_flat)
      if width != num_out:
        self.conv(width, num_out, is_flat=is_flat, size=1)

  def middle(self, width: int, *, is_flat: bool) -> None:
    self.blocks(width, width, 2, is_flat=is_flat)
    num_cells = self.cells[0] * self.cells[1]
    # Query, key, value and output; scores and their weighted sums.
    products = 4 * num_cells * width**2 + 2 * num_cells**2 * width
    self.total += 2 * self.frames * products

  def downsample(self, width: int, *, is_flat: bool) -> None:
    self.frames = self.frames if is_flat else (self.frames + 1) // 2
    self.cells = tuple(side // 2 for side in self.cells)
    # Zeros are at the right and bottom alone.
    pairs = [3 * side - 1 for side in self.cells]
    taps = 1 if is_flat else 3
    self.total += 2 * self.frames * taps * pairs[0] * pairs[1] * width**2

  def upsample(self, width: int, *, has_time: bool) -> None:
    self.frames = 2 * self.frames - 1 if has_time else self.frames
    self.cells = tuple(2 * side for side in self.cells)
    self.conv(width, width, is_flat=not has_time)
