"""The memory of decoding pixels: it does not grow with the number or the length of clips."""

from videoar_jax.tokenizers.autoencoder import AutoencoderConfig

_PIXEL_BYTES = 2**28  # Largest array; more clips or frames are decoded in parts.


def parts_of(
  size: tuple[int, int], config: AutoencoderConfig, resolution: tuple[int, int], *, is_split: bool
) -> tuple[int, int]:
  """Returns how many clips, and how many of their latent frames, are decoded together.

  Args:
    size: number of clips, and of latent frames of each.
    config: of the tokenizer.
    resolution: (H, W) in pixels.
    is_split: whether clips may be decoded in several groups.
  """
  num_clips, num_frames = size
  # Of the decoder's largest array, for each pixel.
  channels = config.base_channels * config.multipliers[0] / config.patch_size**2
  channels = max(channels, config.refine_channels / 4)
  frame_bytes = round(4 * config.temporal_stride * resolution[0] * resolution[1] * channels)
  fitting = max(1, _PIXEL_BYTES // frame_bytes)  # Latent frames, of one clip or of several.
  rows = num_clips
  if is_split:
    # Equal groups, so that all share one compiled program.
    rows = max(n for n in range(1, num_clips + 1) if num_clips % n == 0 and n <= fitting)
  return rows, min(num_frames, max(1, fitting // rows))
