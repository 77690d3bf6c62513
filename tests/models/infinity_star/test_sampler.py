"""Sampling of InfinityStar: against teacher forcing, and what a clip depends on."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_star import AUTOENCODER, CONFIG, make_net

from videoar_jax.models.base import ClipShape
from videoar_jax.models.infinity_star import generate
from videoar_jax.models.infinity_star.config import InfinityStarSampling
from videoar_jax.models.infinity_star.sampler import Model
from videoar_jax.models.infinity_star.sequences import layout_of
from videoar_jax.tokenizers.bsq.tokenizer import Tokenizer
from videoar_jax.tokenizers.star.quantizer import input_of, quantize

# The first frame, two clips, and a short one.
SHAPE = ClipShape(11, (16, 16))
PROMPTS = ["left", "right and up"]
SAMPLING = InfinityStarSampling(guidance=4.0, prompt_prefix="{seconds}", prompt_suffix=".")


class Words:
  """Encodes letters, and remembers what it was asked for."""

  def __init__(self):
    self.asked = []

  def encode(self, text):
    self.asked.append(text)
    tokens = [1 + ord(letter) % 29 for letter in text][:6]
    return np.array(tokens + [0] * (6 - len(tokens)), np.int32)


@pytest.fixture(scope="module")
def model(random_autoencoder):
  tokenizer = Tokenizer(random_autoencoder(AUTOENCODER))
  return Model(
    make_net(), tokenizer, Words(), SHAPE, SAMPLING, frame_rate=5.0, batch_size=len(PROMPTS)
  )


def record(net, plan, prompts, keys):
  """Returns latents, and all steps of a clip."""

  @jax.jit
  def run(net):
    steps = []

    def run_scale(*arguments, **settings):
      done = generate.run_scale(*arguments, **settings)
      steps.extend(done.steps)
      return done

    return generate.generate(net, plan, prompts, keys, run=run_scale), steps

  return run(net)


def test_cached_sampling_is_teacher_forcing():
  """With one repetition of each scale, a scale sees just what it sees in training."""
  config = dataclasses.replace(CONFIG, image_repetitions=(1, 1, 1), clip_repetitions=(1, 1, 1))
  net, layout = make_net(config), layout_of(config, (6, 4, 4))
  text = jnp.array([[3, 4, 5, 0, 0, 0], [7, 8, 9, 1, 2, 3]])
  prompts = generate.prompts_of(net, text, None, is_guided=False)
  plan = generate.Plan.of(layout, dataclasses.replace(SAMPLING, guidance=1.0))
  keys = jax.random.key_data(jax.random.split(jax.random.key(1), 2))
  latents, steps = record(net, plan, prompts, keys)
  logits = jax.jit(lambda net, inputs: net(text, inputs, layout))(
    net, jnp.concatenate([step.inputs[0] for step in steps], axis=1)
  )
  for kind, expected in zip((False, True), logits, strict=True):
    own = [x.logits[0] for x, s in zip(steps, layout.scales, strict=True) if s.is_detail == kind]
    np.testing.assert_allclose(jnp.concatenate(own, axis=1), expected, atol=1e-4)
  # The codes of all bits are the latents; those of a pyramid so far are a scale's input.
  last = steps[5], layout.scales[5]
  assert last[1].pyramid == 1
  before = latents[:, 1:3] - generate.code_of_bits(last[0].bits[0], (4, 4), 6)
  np.testing.assert_allclose(
    last[0].inputs[0], input_of(before, (4, 4)).reshape(2, -1, 6), atol=1e-5
  )


def test_guidance_leads_away_from_a_negative_prompt_of_any_length():
  net, layout = make_net(), layout_of(CONFIG, (1, 4, 4))
  long, short = jnp.array([[3, 4, 5, 6, 7, 8]]), jnp.array([[9, 2, 0, 0, 0, 0]])
  plan = generate.Plan.of(layout, SAMPLING)
  _, both = record(net, plan, generate.prompts_of(net, long, short, is_guided=True), None)
  # Without its padding, the short one gives the same.
  for row, text in enumerate((long, short[:, :2])):
    _, alone = record(net, plan, generate.prompts_of(net, text, None, is_guided=False), None)
    np.testing.assert_allclose(both[0].logits[0][row], alone[0].logits[0][0], atol=1e-5)


def test_adaptive_projected_guidance():
  cond, uncond = np.random.default_rng(0).normal(size=(2, 3, 5, 4, 2))
  for threshold in (0.0, 0.3):
    guidance = generate.Guidance.of(InfinityStarSampling(guidance=7.0, apg_threshold=threshold))
    found = guidance.mix(*(jnp.asarray(x, jnp.float32) for x in (cond, uncond)))
    for i in range(3):
      difference, unit = cond[i] - uncond[i], cond[i] / np.linalg.norm(cond[i])
      if threshold:
        difference = difference * min(1, threshold / np.sqrt(np.mean(difference**2)))
      expected = cond[i] + 6 * (difference - np.sum(difference * unit) * unit)
      np.testing.assert_allclose(found[i], expected, atol=1e-4)
  guidance = generate.Guidance.of(InfinityStarSampling(guidance_kind="cfg", guidance=7.0))
  found = guidance.mix(jnp.asarray(cond), jnp.asarray(uncond))
  np.testing.assert_allclose(found, uncond + 7 * (cond - uncond), atol=1e-4)


def test_a_clip_depends_on_its_prompt_seed_and_number_alone(model):
  both = model.sample(PROMPTS, seed=1)
  assert both.shape == (2, 11, 16, 16, 3)
  other = model.sample(["down", PROMPTS[1]], seed=1)
  np.testing.assert_array_equal(other[1], both[1])
  assert (other[0] != both[0]).any()
  # Padded batches, and numbers of samples.
  alone = model.sample([*PROMPTS, PROMPTS[0]], seed=1, sample_ids=[0, 5, 1])
  np.testing.assert_array_equal(alone[0], both[0])
  for i in (1, 2):
    assert (alone[i] != both[1]).any()
  assert (model.sample(PROMPTS, seed=2) != both).any()
  assert model.num_steps() == 1 + 5 + 3 * 4 and model.num_steps(1) == 6


def test_streams_yield_the_frames_of_samples(model):
  parts = list(model.stream(PROMPTS, 15, seed=1))
  assert [part.shape[1] for part in parts] == [1, 4, 4, 2, 4]
  whole = model.sample(PROMPTS, seed=1)
  # One unit is the rounding of pixels.
  frames = np.concatenate(parts, axis=1)
  assert np.abs(frames[:, :11].astype(int) - whole).max() <= 1
  longer = model.sample(PROMPTS, 15, seed=1, overlap_frames=1)
  np.testing.assert_array_equal(longer[:, :11], whole)
  assert np.abs(frames.astype(int) - longer).max() <= 1


def test_windows_are_drawn_independently(model):
  grey = np.full((2, 1, 16, 16, 3), 90, np.uint8)
  first = model.extend(grey, PROMPTS, 3, seed=1)
  second = model.extend(np.repeat(grey, 3, axis=1), PROMPTS, 5, seed=1)
  assert (first[:, 1:] != second[:, 3:]).any()


def test_given_frames_are_coded_at_all_repetitions(model):
  generator = np.random.default_rng(0)
  video = generator.integers(0, 256, (2, 5, 16, 16, 3), np.uint8)
  for given in ({"image": video[:, 0]}, {"video": video}):
    head = next(iter(given.values())).reshape(2, -1, 16, 16, 3)
    clips = model.sample(PROMPTS, 11, seed=1, **given)
    latents = model.tokenizer.encode(jnp.asarray(head / 127.5 - 1.0, jnp.float32))
    schedule = layout_of(CONFIG, latents.shape[1:4]).schedule
    coded = model.tokenizer.decode(quantize(latents, schedule).quantized)
    expected = np.round(np.clip((np.asarray(coded) + 1) * 127.5, 0, 255))
    assert np.abs(clips[:, : head.shape[1]] - expected).max() <= 1
    other = model.sample(PROMPTS, 11, seed=2, **given)
    assert (other[:, head.shape[1] :] != clips[:, head.shape[1] :]).any()


def test_prompts_have_their_duration_and_what_models_were_trained_with(model):
  words = model.text_encoder.text_encoder
  words.asked.clear()
  model.sample(PROMPTS, seed=1)
  model.sample(PROMPTS, seed=1, prompt_suffix="!", negative_prompt="no")
  assert words.asked == ["2left.", "2right and up.", "2left!", "2right and up!", "no"]
  words.asked.clear()
  model.text_encoder.encode("up")
  model.sample(PROMPTS, 1)
  assert words.asked == ["2up.", "left.", "right and up."]
  text = "a cat, Close-up on big objects, emphasize scale and detail"
  assert InfinityStarSampling().prompt("a cat", 80 / 16) == f"<<<t=5s>>>{text}"
  assert InfinityStarSampling().prompt("a cat", 0) == text


def test_clips_are_scored_alike_in_any_batch(model):
  video = np.random.default_rng(0).integers(0, 256, (3, 5, 16, 16, 3), np.uint8)
  found = model.score([*PROMPTS, "up"], video)
  assert {name: x.shape for name, x in found.items()} == {"loss": (3,), "bit_accuracy": (3,)}
  again = model.score(["up", PROMPTS[0]], video[[2, 0]])
  for name, values in again.items():
    np.testing.assert_allclose(values, found[name][[2, 0]], atol=1e-5)
  assert len(set(found["loss"])) == 3


def test_wrong_requests_are_named(model, without_type_checks):
  video = np.zeros((2, 3, 16, 16, 3), np.uint8)
  for settings, text in (
    ({"guidance_kind": "both"}, r"guidance_kind='both' must be in \('apg', 'cfg'\)"),
    ({"video_temperature": 0.0}, "video_temperature=0.0 must be a positive number"),
    ({"temperature": 1.0}, "temperature: no such setting; there are guidance_kind"),
    ({"num_frames": 13}, "num_frames=13: the model was trained on 11 frames"),
    ({"video": video}, "video: 3 frames end within a clip .* give one of 1, 5, 9$"),
    ({"num_frames": 13, "overlap_frames": 3}, "overlap_frames=3 must be 1 or 5 or 9: the first"),
    ({"sample_ids": [1]}, "sample_ids: needs one for each of 2 prompts"),
  ):
    with pytest.raises(ValueError, match=text):
      model.sample(PROMPTS, **settings)
  with pytest.raises(ValueError, match="needs a list of texts"):
    model.sample("left")
