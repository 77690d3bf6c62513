"""The programs that `bench` measures: a training step, sampling, and references in float32."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from videoar_jax.models.families import FAMILIES
from videoar_jax.models.request import sample_keys
from videoar_jax.models.videoar import decode
from videoar_jax.models.videoar.layout import Layout
from videoar_jax.models.videoar.network import Generator
from videoar_jax.models.videoar.sequences import guidance_of, layout_of
from videoar_jax.nn.resize import area_resize, linear_resize
from videoar_jax.parallel.mesh import MeshConfig, make_mesh
from videoar_jax.tokenizers.bsq.quantizer import bits_to_codes
from videoar_jax.train.trainer import Trainer


def config_of_size(size: str, dtype: str = "float32") -> dict:
  """Returns a class-conditional config for clips of 17x128x128 pixels.

  Args:
    size: a name of VideoAR's sizes.
    dtype: of activations in training.
  """
  loop = {"num_steps": 1_000_000, "batch_size": 1, "optimizer": {}}
  settings = FAMILIES["videoar"].sizes[size]
  # On CPU, unrolling pays off for few layers. Rematerialized ones are not unrolled there.
  scan_layers = jax.default_backend() != "cpu" or settings["num_layers"] > 12
  layers = {"scan_layers": scan_layers, "remat": "full" if scan_layers else "none"}
  return {
    "data": {"num_frames": 17, "resolution": (128, 128)},
    "text": {"tokenizer": "classes", "classes": ("one",), "length": 1},
    "tokenizer": {"schedule": "1 2 3 4 6 8"},
    "generator": settings | layers | {"dtype": dtype},
    "sampling": {"guidance": "constant:3"},
    "stages": ("tokenizer", "generator"),
    "stage": {"tokenizer": {"loop": loop}, "generator": {"loop": loop}},
  }


class TrainingStep:
  """A generator's training step on one device, on random latents of the config's shape.

  Args:
    run: with a generator.
    stage: of the generator.
    batch_size: clips.
    has_state: false leaves the state out, for `loss` alone.
  Attributes:
    state: parameters and the optimizer's state; each call replaces it.
    batch: text and latents.
    mesh: of one device, to be set around calls.
  """

  def __init__(self, run, stage, batch_size: int, *, has_state: bool = True):
    self.task = run.family.make_task(run, stage, None, {})
    self.mesh = make_mesh(MeshConfig(data=1), devices=jax.local_devices()[:1])
    self.trainer = Trainer(self.task, stage.loop, self.mesh, seed=0)
    null = run.text.encoder.null()
    grid = run.tokenizer.latent_shape(stage.data.num_frames, stage.data.resolution)
    latents = (batch_size, *grid, run.tokenizer.num_encoded)
    self.batch = {
      "text": jnp.ones((batch_size, *null.shape), null.dtype),
      "latents": jax.random.normal(jax.random.key(2), latents),
    }
    self.state = self.trainer.init() if has_state else {}

  def __call__(self) -> dict:
    """Makes a step; returns its metrics."""
    self.state, metrics = self.trainer.step(self.state, {}, self.batch, self.trainer.key)
    return metrics

  def loss(self, params: PyTree, batch: dict) -> Float[Array, ""]:
    """Returns the loss of a batch, in nats per bit."""
    module = self.trainer.template.module(params)
    return self.task.loss(module, {}, batch, jax.random.key(4), is_training=True)[0]


def sample_clips(run, stage, model: Generator, text: Array, seed: Array) -> decode.Decoded:
  """Samples latents with guidance, as `Family.sample_latents` does, and returns all of them."""
  layout = layout_of(run, stage.data)
  keys = sample_keys(seed, jnp.arange(len(text)))
  null, table = jnp.asarray(run.text.encoder.null()), jnp.asarray(guidance_of(run, layout))
  return decode.decode(model, layout, text, null, keys, table)


def teacher_forced_logits(
  run, stage, model: Generator, text: Array, bits: list[Array]
) -> Float[Array, "b t q d"]:
  """Returns the guided logits of given bits in one pass, without a cache.

  Cached decoding that drew these bits must have had the same logits, up to rounding.

  Args:
    run: with `generator.context="scales"` and `prev_frame_input="first_scale"`.
    stage: of the generator.
    model: the network.
    text: tokens of each prompt.
    bits: one array per scale, `[b, t, h_s, w_s, d]`.
  """
  layout, null = layout_of(run, stage.data), jnp.asarray(run.text.encoder.null())
  features = _features(layout, bits)
  both = jnp.concatenate([text, jnp.broadcast_to(null, text.shape)])
  logits = model(both, jnp.concatenate([features, features]), layout)
  conditional, unconditional = jnp.split(logits, 2)
  table = np.repeat(guidance_of(run, layout), layout.cell_sizes, axis=1)[None, :, :, None]
  return table * conditional + (1 - table) * unconditional


def _features(layout: Layout, bits: list[Array]) -> Float[Array, "b t q c"]:
  """Returns each cell's input: the sum of the scales before, or the frame before."""
  sums = [linear_resize(bits_to_codes(scale), layout.grid) for scale in bits]
  totals = [sum(sums[: s + 1]) for s in range(len(sums))]
  before = jnp.pad(totals[-1][:, :-1], ((0, 0), (1, 0), (0, 0), (0, 0), (0, 0)))
  inputs = [area_resize(before, layout.schedule[0])]
  inputs += [linear_resize(x, grid) for x, grid in zip(totals, layout.schedule[1:], strict=False)]
  return jnp.concatenate([x.reshape(*x.shape[:2], -1, x.shape[-1]) for x in inputs], axis=2)


@jax.jit
def without_zeros(params: PyTree) -> PyTree:
  """Returns parameters with small random numbers in those that begin as zeros.

  The head does: without this, all logits and nearly all gradients of a new network are zero.
  """
  leaves, structure = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(5), len(leaves))
  noise = [0.02 * jax.random.normal(key, x.shape) for key, x in zip(keys, leaves, strict=True)]
  filled = [jnp.where(jnp.any(x != 0), x, y) for x, y in zip(leaves, noise, strict=True)]
  return jax.tree.unflatten(structure, filled)


def relative_error(found: PyTree, reference: PyTree) -> float:
  """Returns the norm of the difference over the norm of the reference, over all leaves."""
  return float(_relative_error(found, reference))


@jax.jit
def _relative_error(found, reference):
  def norm(tree):
    return jnp.sqrt(sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(tree)))

  found, reference = (jax.tree.map(lambda x: x.astype(jnp.float32), x) for x in (found, reference))
  return norm(jax.tree.map(jnp.subtract, found, reference)) / norm(reference)
