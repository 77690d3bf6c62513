"""Noise processes of the diffusion head: how tokens get noisy in training, and lose it in sampling.

`DDPM` predicts the noise of a variance-preserving process, `Flow` the velocity of a straight line
from tokens to noise. A step of sampling is the same expression for both:
`x <- keep x + add prediction + noise fresh noise`.

Source: NOVA section 11; arXiv 2006.11239 and arXiv 2210.02747.
"""

import dataclasses
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

NUM_STEPS = 1000  # Of the noise levels in training.
SPACINGS = ("leading", "trailing", "linspace")


class Steps(NamedTuple):
  """The steps of sampling, from pure noise to none; each array has an entry a step.

  Attributes:
    times: noise level that the head is told.
    keep, add, noise: factors of the tokens, of the prediction and of fresh noise.
  """

  times: Float[np.ndarray, "n"]
  keep: Float[np.ndarray, "n"]
  add: Float[np.ndarray, "n"]
  noise: Float[np.ndarray, "n"]


class Noisy(NamedTuple):
  """Tokens with noise, for training.

  Attributes:
    tokens: with noise.
    time: noise level that the head is told.
    target: what it has to predict.
  """

  tokens: Float[Array, "*b p"]
  time: Float[Array, "*b"]
  target: Float[Array, "*b p"]


@runtime_checkable
class NoiseProcess(Protocol):
  """A noise process."""

  def draw(self, key: Array, shape: tuple[int, ...]) -> Int[Array, "..."]:
    """Draws a noise level for each token; an index that `add` takes."""

  def add(
    self, tokens: Float[Array, "*b p"], noise: Float[Array, "*b p"], level: Int[Array, "*b"]
  ) -> Noisy:
    """Returns tokens with noise of the given levels."""

  def steps(self, num: int) -> Steps:
    """Returns the steps of sampling."""


@dataclasses.dataclass(frozen=True)
class DDPM:
  """Ancestral sampling with a cosine schedule, of which the head predicts the noise.

  Attributes:
    spacing: of the noise levels in sampling: "leading", "trailing" or "linspace".
    steps_offset: added to the levels of "leading".
  """

  spacing: str = "leading"
  steps_offset: int = 0

  def __post_init__(self):
    if self.spacing not in SPACINGS:
      raise ValueError(
        f"noise spacing {self.spacing!r} is unknown; known are {', '.join(SPACINGS)}"
      )

  @property
  def signal(self) -> Float[np.ndarray, "1000"]:
    """Share of a token's variance that is left at each level: the cumulative alpha."""

    def curve(t):
      return np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2

    t = np.arange(NUM_STEPS) / NUM_STEPS
    betas = np.minimum(1 - curve(t + 1 / NUM_STEPS) / curve(t), 0.999)
    return np.cumprod(1 - betas)

  def draw(self, key: Array, shape: tuple[int, ...]) -> Int[Array, "..."]:
    """See `NoiseProcess`."""
    return jax.random.randint(key, shape, 0, NUM_STEPS)

  def add(self, tokens, noise, level) -> Noisy:
    """See `NoiseProcess`."""
    signal = jnp.asarray(self.signal, jnp.float32)[level][..., None]
    noisy = jnp.sqrt(signal) * tokens + jnp.sqrt(1 - signal) * noise
    return Noisy(noisy, level.astype(jnp.float32), noise)

  def levels(self, num: int) -> Int[np.ndarray, "n"]:
    """Returns the noise levels of sampling, the noisiest first.

    Raises:
      ValueError: there are more steps than levels.
    """
    if not 1 <= num <= NUM_STEPS:
      raise ValueError(f"{num} diffusion steps: there are 1 to {NUM_STEPS}")
    if self.spacing == "leading":
      levels = np.arange(num)[::-1] * (NUM_STEPS // num) + self.steps_offset
      if levels[0] >= NUM_STEPS:
        raise ValueError(
          f"{num} diffusion steps with an offset of {self.steps_offset} begin above the last of "
          f"{NUM_STEPS} noise levels; take fewer"
        )
      return levels
    if self.spacing == "trailing":
      # Not by a range with a step that is no whole number, which may have one level too many.
      return np.round(NUM_STEPS - np.arange(num) * NUM_STEPS / num).astype(int) - 1
    return np.round(np.linspace(0, NUM_STEPS - 1, num)).astype(int)[::-1]

  def steps(self, num: int) -> Steps:
    """See `NoiseProcess`."""
    levels, signal = self.levels(num), self.signal
    before = levels - NUM_STEPS // num
    now = signal[levels]
    then = np.where(before >= 0, signal[np.maximum(before, 0)], 1.0)
    alpha = now / then
    # The mean is a mixture of the predicted clean token and of the noisy one.
    by_clean = np.sqrt(then) * (1 - alpha) / (1 - now)
    by_noisy = np.sqrt(alpha) * (1 - then) / (1 - now)
    variance = np.maximum((1 - then) / (1 - now) * (1 - alpha), 1e-20)
    return Steps(
      times=levels.astype(np.float32),
      keep=(by_clean / np.sqrt(now) + by_noisy).astype(np.float32),
      add=(-by_clean * np.sqrt(1 - now) / np.sqrt(now)).astype(np.float32),
      noise=np.where(levels > 0, np.sqrt(variance), 0.0).astype(np.float32),
    )


@dataclasses.dataclass(frozen=True)
class Flow:
  """Rectified flow: straight lines from tokens to noise, of which the head predicts the velocity.

  Attributes:
    shift: above 1, more of the levels are high.
    sampling_shift: the same for the steps of sampling; None for that of training.
  """

  shift: float = 1.0
  sampling_shift: float | None = None

  def __post_init__(self):
    for shift in (self.shift, self.sampling_shift):
      if shift is not None and not shift > 0:
        raise ValueError(f"a flow's shift of {shift}: it must be positive")

  def draw(self, key: Array, shape: tuple[int, ...]) -> Int[Array, "..."]:
    """See `NoiseProcess`: logit-normal, so that middle levels are drawn most."""
    return self.level_of(jax.random.normal(key, shape))

  def level_of(self, normal: Float[Array, "*b"]) -> Int[Array, "*b"]:
    """Returns the levels that draws from a normal distribution stand for; 0 is pure noise."""
    index = jnp.floor(NUM_STEPS * jax.nn.sigmoid(normal)).astype(jnp.int32)
    return jnp.minimum(index, NUM_STEPS - 1)

  def add(self, tokens, noise, level) -> Noisy:
    """See `NoiseProcess`."""
    sigmas = _shifted(np.arange(NUM_STEPS, 0, -1) / NUM_STEPS, self.shift)
    sigma = jnp.asarray(sigmas, jnp.float32)[level]
    noisy = (1 - sigma[..., None]) * tokens + sigma[..., None] * noise
    return Noisy(noisy, sigma * NUM_STEPS, noise - tokens)

  def steps(self, num: int) -> Steps:
    """See `NoiseProcess`.

    Raises:
      ValueError: there is no step.
    """
    if num < 1:
      raise ValueError(f"{num} diffusion steps: there must be at least 1")
    # The lowest level is shifted twice, as in the public code.
    low, shift = _shifted(1 / NUM_STEPS, self.shift), self.sampling_shift or self.shift
    sigma = _shifted(np.linspace(1.0, low, num), shift)
    return Steps(
      times=(sigma * NUM_STEPS).astype(np.float32),
      keep=np.ones(num, np.float32),
      add=np.diff(np.append(sigma, 0.0)).astype(np.float32),
      noise=np.zeros(num, np.float32),
    )


def _shifted(sigma, shift: float):
  return shift * sigma / (1 + (shift - 1) * sigma)
