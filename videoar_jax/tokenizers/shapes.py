"""Shapes of latents, and what clips have to do with them."""


def latent_shape(
  temporal_stride: int, spatial_stride: int, num_frames: int, resolution: tuple[int, int]
) -> tuple[int, int, int]:
  """Returns (t, h, w) of a clip's latent.

  Args:
    temporal_stride: `tau`, frames per latent frame.
    spatial_stride: side of a latent cell in pixels.
    num_frames: of the clip.
    resolution: (H, W) in pixels.
  Raises:
    ValueError: frames are not 1 + tau k, or the stride does not divide the resolution.
  """
  tau, stride = temporal_stride, spatial_stride
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
  return 1 + (num_frames - 1) // tau, resolution[0] // stride, resolution[1] // stride
