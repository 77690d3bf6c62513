"""A task that trains almost instantly, with its batches and its log."""

import collections.abc

import jax.numpy as jnp
import numpy as np
from flax import nnx

from videoar_jax.nn import layers
from videoar_jax.train import task
from videoar_jax.train.logging import RunLog


class Weights(nnx.Module):
  def __init__(self, key):
    self.w = layers.param(nnx.Rngs(params=key), layers.normal(1.0), (2,), (None,))


class Task(task.Task):
  """Fits its weights to the batch."""

  adversary = None

  def __init__(self):
    self.frozen = {}

  def init(self, key):
    return Weights(key)

  def loss(self, module, frozen, batch, key, is_training):
    return jnp.mean((module.w[...] - batch["video"]) ** 2), {}

  def media(self, module, frozen, batch):
    return {}

  def rates(self, clips_per_s):
    return {}


class Batches(collections.abc.Iterator):
  """Batch i is about 1; some differ."""

  def __init__(self, values):
    self.values, self.position = values, 0

  def __next__(self):
    value = self.values.get(self.position, 1 + 0.1 * (self.position % 3))
    self.position += 1
    ids = np.array([10 * self.position, 10 * self.position + 1])
    return {"video": np.full((2, 2), value, np.float32), "id": ids, "bucket": np.zeros(2, np.int32)}

  def get_state(self):
    return {"position": self.position}


class Log(RunLog):
  def __init__(self):
    self.records = {}

  def scalars(self, step, values, *, is_line):
    self.records[step] = values

  def videos(self, step, videos):
    pass

  def flush(self):
    pass
