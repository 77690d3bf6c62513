"""The temporal encoder: says of each frame what is in it, from the text and earlier frames.

A sequence is [text, motion | slot 0 | slot 1 | ...]. Slot 0 holds the same learned token
everywhere, slot t the tokens of latent frame t - 1; a slot's output is the condition of its frame.
Text and slot 0 see each other, later slots see everything before and themselves.

Source: NOVA sections 6 to 9.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from videoar_jax.models.nova import blocks
from videoar_jax.models.nova.config import NovaConfig
from videoar_jax.models.nova.tokens import WaveMLP, patchify, places, rotary_angles
from videoar_jax.nn import layers
from videoar_jax.nn.cache import Cache, attend_cached
from videoar_jax.nn.mask import AttentionMask, BlockCausalMask
from videoar_jax.parallel.rules import is_for_tpu

MOTION_FLOW, FRAME_RATE = 5.0, 12.0  # Of a clip that says nothing of its motion.


class Motion(nnx.Module):
  """Two tokens: how much moves, and the frame rate."""

  def __init__(self, rngs: nnx.Rngs, width: int):
    self.flow, self.frame_rate = WaveMLP(rngs, width), WaveMLP(rngs, width)

  def __call__(self, flow: Float[Array, "b"]) -> Float[Array, "b 2 m"]:
    rate = self.frame_rate(jnp.full(flow.shape, FRAME_RATE))
    return jnp.stack([self.flow(flow), rate], axis=1)


class Text(nnx.Module):
  """Embeds prompts: features of a text encoder, or tokens."""

  def __init__(self, rngs: nnx.Rngs, config: NovaConfig):
    m = config.d_model
    if config.text_dim:
      # Stands for what a prompt lacks, up to `text_length`. It is never trained.
      self.padding = layers.param(
        rngs, layers.normal(0.02), (config.text_length, config.text_dim), (None, None)
      )
      self.project = layers.Linear(rngs, config.text_dim, m, (None, "embed"), use_bias=True)
    else:
      self.table = layers.Embedding(rngs, config.vocabulary_size, m)
    self.norm = layers.LayerNorm(rngs, m)
    self.has_features = bool(config.text_dim)

  def __call__(
    self, text: Int[Array, "b P"] | Float[Array, "b P e"], dtype
  ) -> Float[Array, "b P m"]:
    """Returns the tokens of prompts; of features, rows of zeros are padding."""
    if not self.has_features:
      return self.norm(self.table(text).astype(dtype))
    is_text = jnp.any(text != 0, axis=-1, keepdims=True)
    padding = jax.lax.stop_gradient(self.padding[...])[: text.shape[1]]
    rows = jnp.where(is_text, text, padding.astype(text.dtype))
    return self.norm(self.project(rows.astype(dtype)))


class Mixer(nnx.Module):
  """Scales and shifts the first frame's condition by a later one's."""

  def __init__(self, rngs: nnx.Rngs, config: NovaConfig):
    m, rank = config.d_model, config.mixer_rank
    self.down = layers.Linear(rngs, m, rank, ("embed", None)) if rank else None
    self.up = layers.Linear(rngs, rank or m, 2 * m, (None, "embed"), use_bias=True)

  def __call__(
    self, first: Float[Array, "b ... v m"], later: Float[Array, "b ... v m"]
  ) -> Float[Array, "b ... v m"]:
    hidden = jax.nn.silu(later)
    hidden = hidden if self.down is None else self.down(hidden)
    scale, shift = jnp.split(self.up(hidden), 2, axis=-1)
    return first * (1 + scale) + shift


class TemporalEncoder(nnx.Module):
  """From a prompt and latent frames to the condition of each frame."""

  def __init__(self, rngs: nnx.Rngs, config: NovaConfig):
    m = config.d_model
    self.config = config
    self.text = Text(rngs, config)
    self.motion = Motion(rngs, m) if config.has_motion else None
    self.patch = layers.Linear(
      rngs, config.video_patch_size**2 * config.num_channels, m, (None, "embed"), use_bias=True
    )
    self.start = layers.param(rngs, layers.normal(0.02), (m,), ("embed",))
    if config.positions == "absolute":
      self.time, self.time_norm = WaveMLP(rngs, m), layers.LayerNorm(rngs, m)
    self.blocks = layers.stack_layers(
      lambda r: blocks.Block(r, config), rngs.params(), config.num_video_layers
    )
    self.norm = layers.LayerNorm(rngs, m)
    self.mixer = None if config.mixer_rank is None else Mixer(rngs, config)

  def prefix(self, text, flow: Float[Array, "b"] | None, dtype) -> Float[Array, "b _ m"]:
    """Returns the tokens before slot 0.

    Args:
      text: tokens or features of prompts.
      flow: how much moves, in pixels a frame; None for the default, as NaN.
      dtype: of the tokens.
    """
    tokens = self.text(text, dtype)
    if self.motion is None:
      return tokens
    flow = jnp.full(len(tokens), jnp.nan) if flow is None else flow
    flow = jnp.where(jnp.isnan(flow), MOTION_FLOW, flow)
    return jnp.concatenate([tokens, self.motion(flow).astype(dtype)], axis=1)

  def slots(
    self, latents: Float[Array, "b t h w c"], first: int | Array, num_frames: int, dtype
  ) -> Float[Array, "b t v m"]:
    """Returns the tokens of slots that hold latent frames, with positions.

    Args:
      latents: of the frames before `first`, `first` + 1, and so on. What stands for the frame
        before the first one is not read.
      first: slot of the first of them.
      num_frames: latent frames of the whole clip, to which times are scaled.
      dtype: of the tokens.
    """
    grid = tuple(side // self.config.video_patch_size for side in latents.shape[2:4])
    tokens = self.patch(patchify(latents.astype(dtype), self.config.video_patch_size))
    index = first + jnp.arange(latents.shape[1])
    start = self.start[...].astype(dtype)
    tokens = jnp.where((index == 0)[:, None, None], start, tokens)
    if self.config.positions == "rope":
      return tokens
    times = index * (self.config.time_base / num_frames)
    times = self.time_norm(self.time(times))[:, None]
    return tokens + (times + places(grid, tokens.shape[-1], self.config.position_base)).astype(
      dtype
    )

  def angles(self, num_prefix: int, first: int | Array, num_slots: int, grid: tuple[int, int]):
    """Returns the rotary angles of a prefix and slots; None with absolute positions."""
    if self.config.positions == "absolute":
      return None
    t, row, column = (
      x.reshape(-1) for x in np.meshgrid(*map(np.arange, (num_slots, *grid)), indexing="ij")
    )
    own = jnp.stack([first + t, jnp.asarray(row), jnp.asarray(column)], axis=1)
    positions = jnp.concatenate([jnp.zeros((num_prefix, 3), own.dtype), own])
    return rotary_angles(
      positions.astype(jnp.float32), self.config.head_dim, self.config.position_base
    )

  def __call__(
    self, prefix: Float[Array, "b n m"], latents: Float[Array, "b t h w c"]
  ) -> Float[Array, "b t v m"]:
    """Returns the output of each slot of a clip, in one pass.

    Args:
      prefix: see `prefix`.
      latents: of all frames; the last one is not read.
    """
    b, t = latents.shape[:2]
    # Slot t holds frame t - 1; what comes before the first frame is not read.
    slots = self.slots(jnp.roll(latents, 1, axis=1), 0, t, prefix.dtype)
    v, num_prefix = slots.shape[2], prefix.shape[1]
    x = jnp.concatenate([prefix, slots.reshape(b, t * v, -1)], axis=1)
    grid = tuple(side // self.config.video_patch_size for side in latents.shape[2:4])
    rule = BlockCausalMask(num_prefix + v, False, t - 1, (v,))
    mask = AttentionMask(rule, jnp.ones((b, num_prefix + v), bool), None, self._backend(t))
    x = blocks.run(self.blocks, x, self.angles(num_prefix, 0, t, grid), mask, self.config)
    return self.norm(x[:, num_prefix:]).reshape(b, t, v, -1)

  def _backend(self, num_frames: int) -> str:
    if is_for_tpu():
      return "splash"
    return "blocked" if num_frames > 1 else "dense"  # In an image, all tokens see all.

  def step(
    self,
    x: Float[Array, "b l m"],
    angles,
    seen: Cache | None = None,
    is_seen: Bool[Array, "s"] | None = None,
    num_prefix: int = 0,
  ) -> tuple[Float[Array, "b v m"], Cache]:
    """Encodes the prefix and slot 0 of a clip, or its next slot.

    Args:
      x: tokens.
      angles: their rotary angles, or None.
      seen: keys and values of earlier tokens, with a leading layer axis; None for the first.
      is_seen: which of them there are so far; None for all.
      num_prefix: tokens of the prefix among `x`.
    Returns:
      The slot's output, and keys and values of `x`.
    """
    mask = None if is_seen is None else is_seen[None, None]

    def attend_to_all(query, key, value, *earlier):
      new = Cache.of(key, value)
      masks = (*(mask for _ in earlier), None)
      return attend_cached(query, (*earlier, new), masks), new

    x, new = blocks.step(self.blocks, x, angles, attend_to_all, self.config, seen)
    return self.norm(x[:, num_prefix:]), new

  def conditions(self, outputs: Float[Array, "b t v m"]) -> Float[Array, "b t v m"]:
    """Returns the condition of each frame, given the outputs of all slots."""
    if self.mixer is None:
      return outputs
    first, later = outputs[:, :1], outputs[:, 1:]
    return jnp.concatenate([first, self.mixer(jnp.broadcast_to(first, later.shape), later)], axis=1)
