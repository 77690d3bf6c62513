"""Reference implementation of sequence layouts, independent of the package."""

import jax.numpy as jnp
import numpy as np

TEXT = -1


def frame_ids(layout):
  """Returns the frame of each token."""
  video = np.repeat(np.arange(layout.num_frames), layout.frame_stride)
  return np.concatenate([np.full(layout.text_length, TEXT), video])[: layout.length]


def scale_ids(layout):
  """Returns the scale of each token, `num_scales` for a frame's complete latent."""
  sizes = [*layout.scale_sizes, layout.final_size]
  frame = np.repeat(np.arange(layout.num_scales + 1), sizes)
  video = np.tile(frame, layout.num_frames)
  return np.concatenate([np.full(layout.text_length, TEXT), video])[: layout.length]


def keep_of_window(batch_size, num_frames, window):
  """Returns which earlier frames are in each frame's window, `[b, t, t]`; None is all of them."""
  frames = np.arange(num_frames)
  keep = frames[:, None] - frames <= (num_frames if window is None else window)
  return jnp.broadcast_to(keep, (batch_size, num_frames, num_frames))
