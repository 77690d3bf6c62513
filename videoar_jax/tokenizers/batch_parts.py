"""Parts of a batch that a device codes at once, so that memory does not grow with the batch."""

# Most pixels that a device codes at once, if clips and network allow: 0.5 GiB for each activation
# of 128 channels. Batches of fewer pixels are coded whole.
MAX_PIXELS = 2**20


def part_of(
  temporal_stride: int, shape: tuple[int, ...], max_pixels: int = MAX_PIXELS
) -> tuple[int, int]:
  """Returns how many clips of how many frames a device codes at once.

  Args:
    temporal_stride: frames of a latent frame.
    shape: of the device's clips, `(b, f, H, W, ...)`.
    max_pixels: most pixels that a device codes at once, but at least those of a latent frame.
  """
  b, f, height, width, *_ = shape
  if b * f * height * width <= max_pixels:
    return b, f
  frames = min(f, temporal_stride)
  most = max(1, max_pixels // (frames * height * width))
  return max(rows for rows in range(1, min(b, most) + 1) if b % rows == 0), frames
