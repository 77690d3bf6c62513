"""The discriminator and the adversarial losses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videoar_jax.tokenizers import adversarial
from videoar_jax.tokenizers.discriminator import Discriminator, DiscriminatorConfig, downsample

CONFIG = DiscriminatorConfig(base_channels=4, multipliers=(1, 2), strides=((1, 2), (2, 2)))
REAL, FAKE = jnp.array([2.0, -1.0]), jnp.array([0.5, -3.0])


@pytest.fixture(scope="module")
def judge():
  module = Discriminator(nnx.Rngs(params=0), CONFIG)
  return jax.jit(module.__call__)


def video(num_clips=2, num_frames=5, size=16):
  return jax.random.uniform(jax.random.key(num_frames), (num_clips, num_frames, size, size, 3))


def test_logits_of_images_and_clips(judge):
  assert judge(video(num_frames=5)).shape == (2, 3, 4, 4)
  assert judge(video(num_frames=1, size=24)).shape == (2, 1, 6, 6)


def test_a_clip_is_judged_alone(judge):
  clips = video()
  other = judge(clips.at[1].set(0.0))
  np.testing.assert_allclose(other[0], judge(clips)[0], atol=1e-5)
  assert jnp.abs(other[1] - judge(clips)[1]).max() > 1e-2


def test_every_frame_counts_in_both_directions_of_time(judge):
  clips = video()
  for frame in range(5):
    moved = jnp.abs(judge(clips.at[:, frame].add(1.0)) - judge(clips)).max((0, 2, 3))
    assert moved.max() > 1e-3
  # The first logit sees the last frames, which no causal network would.
  assert jnp.abs(judge(clips.at[:, 2].add(1.0)) - judge(clips))[:, 0].max() > 1e-4


def test_downsampling_keeps_even_pictures_and_drops_checkerboards():
  even = jnp.full((1, 5, 8, 8, 1), 3.0)
  np.testing.assert_allclose(downsample(even, (2, 2)), jnp.full((1, 3, 4, 4, 1), 3.0), rtol=1e-6)
  board = jnp.indices((8, 8)).sum(0) % 2 * 2.0 - 1.0
  inner = downsample(jnp.broadcast_to(board[None, None, :, :, None], (1, 1, 8, 8, 1)), (1, 2))
  np.testing.assert_allclose(inner[:, :, 1:-1, 1:-1], 0.0, atol=1e-6)
  # Frames 0, 2 and 4 of a ramp in time stay where they are, but for the ends.
  ramp = jnp.broadcast_to(jnp.arange(5.0)[None, :, None, None, None], (1, 5, 2, 2, 1))
  np.testing.assert_allclose(downsample(ramp, (2, 1))[0, :, 0, 0, 0], [0.25, 2.0, 3.75])


def test_losses_by_hand():

  def log(x):
    return np.log1p(np.exp(x))

  np.testing.assert_allclose(
    adversarial.discriminator_loss("non_saturating", REAL, FAKE),
    np.mean([log(-2.0), log(1.0)]) + np.mean([log(0.5), log(-3.0)]),
    rtol=1e-6,
  )
  np.testing.assert_allclose(
    adversarial.autoencoder_loss("non_saturating", FAKE), np.mean([log(-0.5), log(3.0)]), rtol=1e-6
  )
  assert adversarial.discriminator_loss("hinge", REAL, FAKE) == (0 + 2) / 2 + (1.5 + 0) / 2
  assert adversarial.autoencoder_loss("hinge", FAKE) == 1.25
  lecam_ema = {"real": jnp.float32(1.0), "fake": jnp.float32(-0.5)}
  lecam = adversarial.lecam_penalty(lecam_ema, REAL, FAKE)
  np.testing.assert_allclose(lecam, (2.5**2 + 0) / 2 + (0.5**2 + 4**2) / 2)
  moved = adversarial.update_lecam_ema(lecam_ema, REAL, FAKE, 0.75)
  np.testing.assert_allclose([moved["real"], moved["fake"]], [0.875, -0.6875])


def test_gradient_penalty_of_a_linear_judge():
  weight = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))

  def score(x):
    return jnp.einsum("bfhwc,fhwc->b", x, weight)[:, None]

  penalty = adversarial.r1_penalty(score, video(3, 2, 4))
  np.testing.assert_allclose(penalty, jnp.sum(weight**2), rtol=1e-5)


@pytest.mark.parametrize(
  ("field", "value"), [("strides", ((1, 2),)), ("strides", ((1, 3),) * 2), ("base_channels", 0)]
)
def test_impossible_networks_are_named(field, value):
  with pytest.raises(ValueError, match=field):
    DiscriminatorConfig(**{"multipliers": (1, 2), "strides": ((1, 2),) * 2, field: value})


def test_a_size_that_the_strides_do_not_divide_is_named():
  CONFIG.check_resolution((16, 24))
  with pytest.raises(ValueError, match="width 18 is not a multiple of 4"):
    CONFIG.check_resolution((16, 18))
