"""Frechet video distance, by the project's own fixed protocol; `protocols` has published ones.

- Features: the 400 logits of I3D (RGB, Kinetics-400), before the softmax, averaged over time, as in
  the first public FVD; not the 1024 pooled activations that some report.
- Clips: all frames of a clip, at least 9, at the clip's own rate. Pixels are scaled to [-1, 1], and
  each frame is resized to 224x224 by bilinear interpolation: half-pixel centres, no antialiasing,
  the aspect ratio is not kept.
- Distance: between Gaussians with the means and the covariances (divisor n - 1) of two sets of
  clips, in float64.
- Number of clips: the same in both sets, and at least 256. The value falls as the number grows, so
  only values with equal numbers are comparable. Report beside each value the distance between two
  sets of real clips of the same size, which shows how much of it is sampling noise.

Source: "Towards Accurate Generative Models of Video" (arXiv 1812.01717).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from videoar_jax.evals import i3d
from videoar_jax.nn.resize import linear_resize

MIN_CLIPS = 256


def own_protocol(num_frames: int, frame_rate: float, num_clips: int) -> dict:
  """Returns this protocol for a result file; `protocols` has the others.

  Args:
    num_frames, frame_rate: of a clip.
    num_clips: of each side.
  """
  return {
    "name": "own",
    "num_clips": num_clips,
    "num_frames": num_frames,
    "stride": f"by time, {frame_rate:g} frames a second",
    "lists": ["test"],
    "real_clips": "drawn from the test split with a fixed seed; prompts are their captions",
    "resize": "as the model's data; then each frame to 224x224, bilinear without antialiasing",
    "features": "logits",
    "is_biased": False,
    "sources": ["videoar_jax/evals/fvd.py"],
  }


def features(
  params: i3d.Params, clips: UInt8[np.ndarray, "b f H W 3"]
) -> Float[np.ndarray, "b 400"]:
  """Returns each clip's features for FVD.

  Raises:
    ValueError: clips have fewer than 9 frames.
  """
  # One clip at a time: at 224x224, each takes a quarter of a gigabyte.
  return np.concatenate([_jitted_features()(params, clip[None]) for clip in clips])


def pooled_and_logits(
  params: i3d.Params, clips: UInt8[np.ndarray, "b f H W 3"]
) -> Float[np.ndarray, "b 1424"]:
  """Returns each clip's 1024 pooled features and its 400 logits, from one pass.

  Raises:
    ValueError: clips have fewer than 9 frames.
  """
  return np.concatenate([_jitted_pooled_and_logits()(params, clip[None]) for clip in clips])


@functools.cache
def _jitted_pooled_and_logits():
  def apply(params, clips: UInt8[Array, "b f H W 3"]):
    with jax.default_matmul_precision("highest"):
      features = i3d.pooled(params, _enlarged(clips))
      return jnp.concatenate([features, i3d.classify(params, features)], axis=-1)

  return jax.jit(apply)


@functools.cache
def _jitted_features():
  def apply(params, clips: UInt8[Array, "b f H W 3"]):
    # Float32 on every device: by default, accelerators multiply in lower precision.
    with jax.default_matmul_precision("highest"):
      return i3d.logits(params, _enlarged(clips))

  return jax.jit(apply)


def _enlarged(clips: UInt8[Array, "b f H W 3"]) -> Float[Array, "b f 224 224 3"]:
  """Returns clips in [-1, 1], each frame resized to the side of I3D."""
  return linear_resize(jnp.asarray(clips, jnp.float32) / 127.5 - 1.0, (i3d.SIDE, i3d.SIDE))


def fvd(real: Float[np.ndarray, "n d"], other: Float[np.ndarray, "m d"]) -> float:
  """Returns the Frechet video distance of two sets of clips.

  Args:
    real, other: their `features`.
  Raises:
    ValueError: the sets are smaller than the protocol asks for, or of different sizes.
  """
  if len(real) != len(other):
    raise ValueError(f"FVD needs two sets of equal size, got {len(real)} and {len(other)} clips")
  if len(real) < MIN_CLIPS:
    raise ValueError(f"FVD needs at least {MIN_CLIPS} clips, got {len(real)}")
  return frechet_distance(real, other)


def frechet_distance(
  one: Float[np.ndarray, "n d"], other: Float[np.ndarray, "m d"], *, is_biased: bool = False
) -> float:
  """Returns the squared Frechet distance between the Gaussians that fit two sets of vectors.

  `|mean_1 - mean_2|^2 + tr(S_1) + tr(S_2) - 2 tr((S_1^1/2 S_2 S_1^1/2)^1/2)`, with covariances S.

  Args:
    one, other: the sets.
    is_biased: covariances have the divisor n instead of n - 1.
  Raises:
    ValueError: a set has fewer than two vectors.
  """
  if min(len(one), len(other)) < 2:
    raise ValueError(f"a covariance needs two vectors, got {len(one)} and {len(other)}")
  (mean_1, root_1), (mean_2, root_2) = (_mean_and_root(x, is_biased) for x in (one, other))
  # With S = R'R, the last trace is the sum of the singular values of R_1 R_2'. Nothing is squared,
  # so sets of fewer vectors than dimensions, whose S is singular, are just as exact.
  shared = np.linalg.svd(root_1 @ root_2.T, compute_uv=False).sum()
  spread = np.square(root_1).sum() + np.square(root_2).sum() - 2 * shared
  # Rounding may make it negative for equal sets.
  return float(np.square(mean_1 - mean_2).sum() + max(spread, 0.0))


def _mean_and_root(x, is_biased: bool) -> tuple[np.ndarray, np.ndarray]:
  """Returns the mean, and R of at most d rows such that R'R is the covariance."""
  x = np.asarray(x, np.float64)
  mean = x.mean(0)
  return mean, np.linalg.qr((x - mean) / np.sqrt(len(x) - (not is_biased)), mode="r")
