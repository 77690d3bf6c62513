"""A minimal family: from a prompt it predicts each frame's mean latent, and decodes that."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from videoar_jax.models.base import ClipShape, Curves
from videoar_jax.models.request import ClipRequests
from videoar_jax.nn import layers
from videoar_jax.tokenizers.families import TOKENIZERS
from videoar_jax.tokenizers.pixels import to_float, to_uint8


@dataclasses.dataclass(frozen=True)
class MeanConfig:
  d_model: int = 8
  dtype: str = "float32"
  vocabulary_size: int = 0
  shape: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class MeanLoss:
  power: float = 2.0


@dataclasses.dataclass(frozen=True)
class MeanSampling:
  """Settings of sampling.

  Attributes:
    brightness: factor of the latents.
  """

  brightness: float = 1.0


class Network(nnx.Module):
  def __init__(self, rngs, config):
    self.shape = config.shape
    self.words = layers.Embedding(rngs, config.vocabulary_size, config.d_model)
    self.out = layers.Linear(rngs, config.d_model, int(np.prod(config.shape)), ("embed", None))

  def __call__(self, text):
    return self.out(self.words(text).mean(1)).reshape(-1, *self.shape)


class Task:
  adversary = None

  def __init__(self, run, stage, tokenizer, params):
    self.run, self.loss_config, self.tokenizer, self.frozen = run, stage.loss, tokenizer, params

  def init(self, key):
    return Network(nnx.Rngs(params=key), self.run.generator)

  def loss(self, module, frozen, batch, key, is_training):
    latents = batch.get("latents")
    if latents is None:
      coder = TOKENIZERS["bsq"]
      latents = jax.lax.stop_gradient(coder.encode(self.tokenizer.module(frozen), batch["video"]))
    error = jnp.abs(module(batch["text"]) - latents.astype(jnp.float32).mean((2, 3)))
    return jnp.mean(error**self.loss_config.power), {"mean_error": jnp.mean(error)}

  def rates(self, clips_per_s):
    return {}

  def media(self, module, frozen, batch):
    return {}


class Model:
  def __init__(self, run, module, tokenizer):
    self.module, self.tokenizer, self.text_encoder = module, tokenizer, run.text.encoder
    shape, defaults = ClipShape(run.data.num_frames, run.data.resolution), run.sampling
    self.requests = ClipRequests(
      self.text_encoder, tokenizer.config, shape, defaults=dataclasses.asdict(defaults)
    )
    self.num_frames, self.resolution = shape
    self.batch_size = self.requests.batch_size

  def sample(self, prompts, num_frames=None, seed=0, *, sample_ids=None, **settings):
    self.requests.check_prompts(prompts)
    brightness = self.requests.with_defaults(settings)["brightness"]
    means = self._means(prompts) * brightness
    _, h, w = self.tokenizer.config.latent_shape(self.num_frames, self.resolution)
    latents = jnp.broadcast_to(means[:, :, None, None], (*means.shape[:2], h, w, means.shape[2]))
    return np.asarray(to_uint8(self.tokenizer.decode(latents)))

  def extend(self, clips, prompts, num_frames, seed=0, *, overlap_frames=1, **settings):
    raise ValueError("num_frames: clips have one length")

  def stream(self, prompts, num_frames=None, seed=0, **settings):
    yield self.sample(prompts, num_frames, seed, **settings)

  def num_steps(self, num_frames=None):
    return 1

  def score(self, prompts, video):
    means = self.tokenizer.encode(to_float(video)).mean((2, 3))
    return {"mean_error": np.asarray(jnp.abs(self._means(prompts) - means).mean((1, 2)))}

  def _means(self, prompts):
    return self.module(jnp.stack([self.text_encoder.encode(prompt) for prompt in prompts]))


class Mean:
  tokenizer, network, loss, sampling = "bsq", MeanConfig, MeanLoss, MeanSampling
  tokenizers = ("bsq",)
  sizes, derived, batch_fields = {}, ("vocabulary_size", "shape"), ()
  headline = types.MappingProxyType({"mean_error": "error {:.3f}"})

  def network_config(self, values, tokenizer, text):
    return values | {"vocabulary_size": text.encoder.vocabulary_size, "shape": (3, 4)}

  def check(self, run):
    frames, *_ = run.tokenizer.latent_shape(run.data.num_frames, run.data.resolution)
    if run.generator.shape != (frames, run.tokenizer.num_channels):
      raise ValueError("the mean family is of three latent frames of four channels")

  def check_mesh(self, run, mesh):
    pass

  def num_tokens(self, run, shape):
    return shape.num_frames

  def describe(self, run):
    return {}

  def curves(self, run):
    return Curves("error of means", {"mean_error": ""})

  def make_module(self, run):
    return lambda key: Network(nnx.Rngs(params=key), run.generator)

  def make_task(self, run, stage, tokenizer, tokenizer_params):
    return Task(run, stage, tokenizer, tokenizer_params)

  def make_model(self, run, stage, module, tokenizer_module, **_):
    return Model(run, module, TOKENIZERS["bsq"].make_tokenizer(tokenizer_module))

  def flops(self, run, stage):
    return None

  def step_work(self, run, stage, mesh):
    return None

  def sample_latents(self, run, stage, module, text, seed):
    return module(text)[:, :, None, None]

  def sampling_work(self, run, stage, batch_size):
    return None

  def sampling_program(self, run, stage, template, mesh, num_clips, dtype):
    return None
