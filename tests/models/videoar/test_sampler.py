"""Sampling: batches, streams, given frames, windows and re-encoding."""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_networks import AUTOENCODER

from videoar_jax.models.preview import preview
from videoar_jax.models.videoar import decode, sampler, stepper
from videoar_jax.models.videoar.config import GeneratorConfig
from videoar_jax.models.videoar.corruption import corrupt
from videoar_jax.models.videoar.layout import Layout
from videoar_jax.models.videoar.network import Generator
from videoar_jax.parallel.mesh import MeshConfig, make_mesh
from videoar_jax.parallel.rules import replicated
from videoar_jax.text.tokenizers import ByteTokenizer
from videoar_jax.tokenizers.bsq.tokenizer import Tokenizer
from videoar_jax.tokenizers.pixels import to_float, to_uint8

SCHEDULE = ((1, 1), (2, 2))
PROMPTS = ["a", "bc", ""]
OFF = {"weight": 0.0, "share": 0.25}


@pytest.fixture(scope="module")
def model(random_autoencoder):
  """A model with random weights: 9 frames of 16x16 pixels, 5 latent frames of 2x2, tau 2."""
  config = dataclasses.replace(AUTOENCODER, patch_size=4)
  layout = Layout(5, 5, SCHEDULE, context="full_frame")
  generator_config = GeneratorConfig(
    num_layers=1,
    d_model=8,
    num_heads=2,
    num_kv_heads=1,
    head_dim=4,
    mlp_dim=8,
    num_bits=4,
    vocabulary_size=ByteTokenizer.vocabulary_size,
    context="full_frame",
  )

  def make():
    leaves, tree = jax.tree.flatten(Generator(nnx.Rngs(params=0), generator_config, layout))
    keys = jax.random.split(jax.random.key(9), len(leaves))
    drawn = [x + 0.5 * jax.random.normal(key, x.shape) for x, key in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(tree, drawn)

  return sampler.Model(
    jax.jit(make)(),
    Tokenizer(random_autoencoder(config), SCHEDULE),
    ByteTokenizer(5),
    layout,
    defaults={"guidance": "ucf101", "temperature": 1.0, "top_p": 1.0, "prefix_guidance": OFF},
  )


@pytest.fixture(scope="module")
def clips(model):
  return model.sample(PROMPTS, seed=3)


@pytest.fixture(scope="module")
def video():
  return np.random.default_rng(0).integers(0, 256, (3, 5, 16, 16, 3), dtype=np.uint8)


def near(one, other):
  """Returns whether clips are equal, up to rounding."""
  assert one.shape == other.shape and one.dtype == other.dtype == np.uint8
  difference = np.abs(one.astype(int) - other.astype(int))
  return difference.max() <= 1 and (difference > 0).mean() < 0.01


def coded(model, video):
  """Reconstructs frames with the tokenizer."""
  codes = model.tokenizer.quantize(model.tokenizer.encode(to_float(video)))
  return np.asarray(to_uint8(model.tokenizer.decode(codes.quantized)))


def test_batches_do_not_change_clips(model, clips, monkeypatch):
  assert clips.shape == (3, 9, 16, 16, 3)
  monkeypatch.setattr(model.requests, "batch_size", 2)
  np.testing.assert_array_equal(model.sample(PROMPTS, seed=3), clips)
  assert not near(clips[:1], clips[1:2])
  assert not near(model.sample(PROMPTS[:2], seed=4), clips[:2])
  swapped = model.sample([PROMPTS[2], PROMPTS[0]], seed=3, sample_ids=[2, 0])
  assert near(swapped, clips[[2, 0]])
  with pytest.raises(ValueError, match="one for each of 3 prompts"):
    model.sample(PROMPTS, sample_ids=[0, 1])


def test_guidance_of_one_runs_no_unconditional_half(model, monkeypatch):
  """The clips are those of guidance that differs from 1 by less than rounding."""
  halves, begin = [], decode.start

  def start(*arguments, **settings):
    state = begin(*arguments, **settings)
    halves.append(state.num_halves)
    return state

  monkeypatch.setattr(decode, "start", start)
  plain = model.sample(PROMPTS, guidance=1.0)
  assert halves == [1]  # It was traced, without the half.
  assert near(plain, model.sample(PROMPTS, guidance=1.0 + 1e-6))


def test_devices_share_any_number_of_clips(model, clips):
  """Three prompts on two devices; batches that do not divide are refused."""
  mesh = make_mesh(MeshConfig(), jax.devices()[:2])
  whole = replicated(mesh)
  tokenizer = Tokenizer(jax.device_put(model.tokenizer.autoencoder, whole), SCHEDULE)
  parts = (jax.device_put(model.generator, whole), tokenizer, model.text_encoder, model.layout)
  settings = {"defaults": model.requests.defaults, "mesh": mesh}
  shared = sampler.Model(*parts, **settings)
  assert shared.batch_size == model.batch_size == 16
  assert near(shared.sample(PROMPTS, seed=3), clips)
  two = sampler.Model(*parts, **settings, batch_size=2)
  video, expected = clips[:, :5], model.score(PROMPTS, clips[:, :5])
  found = two.score(PROMPTS, video)
  for name, values in expected.items():
    np.testing.assert_allclose(found[name], values, atol=1e-5)
  given = two.sample(PROMPTS, seed=3, video=video)
  assert near(given, model.sample(PROMPTS, seed=3, video=video))
  with pytest.raises(ValueError, match=r"batch_size=3 does not divide over the 2 shards"):
    sampler.Model(*parts, **settings, batch_size=3)


def test_stream_hands_frames_out_before_the_next_are_begun(model, clips, monkeypatch):
  decode_frame, begun = stepper._decode_frame, []

  def count(*arguments, **settings):
    begun.append(1)
    return decode_frame(*arguments, **settings)

  monkeypatch.setattr(stepper, "_decode_frame", count)
  parts, counts = [], []
  for part in model.stream(PROMPTS, seed=3):
    parts.append(part)
    counts.append(len(begun))
  assert counts == [1, 2, 3, 4, 5]
  assert [part.shape[1] for part in parts] == [1, 2, 2, 2, 2]
  assert near(np.concatenate(parts, axis=1), clips)


def test_prefix_guidance_in_clips_and_streams(model, clips, video):
  """It changes clips, streams are the same, and given frames come back as they are."""
  guidance = {"prefix_guidance": {"weight": 2.0, "share": 1.0}}
  guided = model.sample(PROMPTS, seed=3, video=video, **guidance)
  assert near(guided[:, :5], coded(model, video))
  assert not near(guided[:, 5:], model.sample(PROMPTS, seed=3, video=video)[:, 5:])
  streamed = list(model.stream(PROMPTS, seed=3, video=video, **guidance))
  assert near(np.concatenate(streamed, axis=1), guided)
  np.testing.assert_array_equal(model.sample(PROMPTS, seed=3, prefix_guidance=OFF), clips)


def test_given_frames_come_back_coded_and_lead_on(model, clips, video):
  out = model.sample(PROMPTS, seed=3, video=video)
  assert out.shape == clips.shape
  assert near(out[:, :5], coded(model, video))
  assert not near(out[:, 5:], clips[:, 5:])
  streamed = list(model.stream(PROMPTS, seed=3, video=video))
  assert [part.shape[1] for part in streamed] == [5, 2, 2]
  assert near(np.concatenate(streamed, axis=1), out)
  image = video[0, 0]
  out = model.sample(PROMPTS, seed=3, image=image)
  first = coded(model, image[None, None])
  assert near(out[:, :1], np.repeat(first, 3, axis=0))


def test_previews_grow_scale_by_scale_into_the_samples(model, clips, monkeypatch):
  decode_scale, begun = stepper._decode_scale, []

  def count(*arguments, **settings):
    begun.append(1)
    return decode_scale(*arguments, **settings)

  monkeypatch.setattr(stepper, "_decode_scale", count)
  parts, counts = [], []
  for part in preview(model, PROMPTS, 9, seed=3):
    parts.append(part)
    counts.append(len(begun))
  assert counts == list(range(1, 11))  # None is begun before it is asked for.
  steps = [(part.start, part.frames.shape[1], part.num_done, part.num_scales) for part in parts]
  assert steps == [
    (start, num, s, 2) for start, num in ((0, 1), (1, 2), (3, 2), (5, 2), (7, 2)) for s in (1, 2)
  ]
  assert near(np.concatenate([part.frames for part in parts[1::2]], axis=1), clips)
  # A first scale alone is the same everywhere in a latent frame, so that it looks otherwise.
  assert not near(parts[0].frames, clips[:, :1])


def test_previews_begin_with_an_image_and_continue_clips(model, clips, video):
  image = video[0, 0]
  parts = list(preview(model, PROMPTS, 5, seed=3, image=image))
  assert [(part.start, part.num_done) for part in parts] == [
    (0, 2),
    *((1, 1), (1, 2), (3, 1), (3, 2)),
  ]
  found = np.concatenate([part.frames for part in parts if part.num_done == 2], axis=1)
  assert near(found, model.sample(PROMPTS, 5, seed=3, image=image))
  longer = model.extend(clips, PROMPTS, 17, seed=3, overlap_frames=3)
  parts = list(preview(model, PROMPTS, 17, seed=3, clips=clips, overlap_frames=3))
  # Two windows, of three and of one latent frame.
  assert [part.start for part in parts] == [9, 9, 11, 11, 13, 13, 15, 15]
  found = np.concatenate([clips, *(part.frames for part in parts[1::2])], axis=1)
  assert near(found, longer)
  with pytest.raises(ValueError, match="take 11 or 13"):
    preview(model, PROMPTS, 12, clips=clips)
  with pytest.raises(ValueError, match="give one"):
    model.preview(PROMPTS, 13, clips=clips, image=image)


def test_a_window_of_samples_leaves_scores_as_in_training(model):
  other = sampler.Model(
    *(model.generator, model.tokenizer, model.text_encoder, model.layout),
    defaults=model.requests.defaults,
    window=3,
    sampling_window=1,
  )
  assert other.window == 3 and other.requests.window == 1


def test_window_and_length_leave_the_beginning_as_it_is(model, clips, video):
  """The first frames see the same with a window, and do not depend on how many more follow."""
  longer = model.sample(PROMPTS, 13, seed=3, window=2)
  assert near(longer[:, :5], clips[:, :5])
  assert not near(longer[:, 5:9], clips[:, 5:])
  endless = model.stream(PROMPTS, math.inf, seed=3, window=2)
  parts = list(itertools.islice(endless, 7))
  assert near(np.concatenate(parts, axis=1), longer)
  given = np.concatenate([video, video[:, :4]], axis=1)  # As long as the trained clips.
  first, second = itertools.islice(model.stream(PROMPTS, math.inf, video=given, window=2), 2)
  assert first.shape[1] == 9 and second.shape[1] == 2


def test_reencoding_goes_on_without_repeating(model, clips):
  long = model.sample(PROMPTS, 17, seed=3, overlap_frames=3)
  assert long.shape[1] == 17
  np.testing.assert_array_equal(long[:, :9], clips)
  # In a window of 9 frames, 3 of them given, 6 are new.
  once = model.extend(clips, PROMPTS, 15, seed=3, overlap_frames=3)
  np.testing.assert_array_equal(long[:, :15], once)
  twice = model.extend(once, PROMPTS, 17, seed=3, overlap_frames=3)
  np.testing.assert_array_equal(long, twice)
  head = coded(model, clips[:, -3:])
  assert not near(once[:, 9:12], head) and not near(once[:, 9:15], once[:, 3:9])
  shot = model.extend(clips, ["z"] * 3, 15, seed=3, overlap_frames=3)
  np.testing.assert_array_equal(shot[:, :9], clips)
  assert not near(shot[:, 9:], once[:, 9:])


def test_weights_and_cache_in_bfloat16(model):
  small = sampler.Model(
    model.generator,
    model.tokenizer,
    model.text_encoder,
    model.layout,
    defaults=model.requests.defaults,
    dtype=jnp.bfloat16,
  )
  assert {x.dtype for x in jax.tree.leaves(small.generator)} == {jnp.dtype(jnp.bfloat16)}
  assert small.sample(PROMPTS, temperature=0.0).shape == (3, 9, 16, 16, 3)


@pytest.mark.parametrize(
  ("settings", "wanted"),
  [
    ({"image": np.zeros((16, 24, 3), np.uint8)}, "16x24 pixels, but the model makes 16x16"),
    ({"image": np.zeros((16, 16, 3))}, "uint8"),
    ({"image": np.zeros((16, 16), np.uint8)}, r"\[H, W, 3\]"),
    ({"image": np.zeros((2, 16, 16, 3), np.uint8)}, "for 3 prompts"),
    ({"video": np.zeros((4, 16, 16, 3), np.uint8)}, "4 frames are not 1 . 2 k; give 3"),
    ({"video": np.zeros((9, 16, 16, 3), np.uint8)}, "leave nothing of num_frames=9"),
    ({"image": np.zeros(1), "video": np.zeros(1)}, "one of them"),
    ({"num_frames": 13}, r"13 is more than the 9 trained ones: set window= .*\(4 at most"),
    ({"window": 0}, "window=0 must be at least 1"),
    ({"overlap_frames": 2}, "overlap_frames=2 must be 1 . 2 k, from 1 to 7"),
    ({"overlap_frames": 9}, "overlap_frames=9 must be"),
    ({"num_frames": 10}, "10 is not 1 . 2 k"),
    ({"temprature": 1.0}, "temprature: no such setting"),
    ({"temperature": math.nan}, "temperature=nan"),
  ],
)
def test_bad_input_is_named(model, settings, wanted, without_type_checks):
  with pytest.raises(ValueError, match=wanted):
    model.sample(PROMPTS, **settings)


def test_bad_streams_and_extensions_are_named(model, clips):
  with pytest.raises(ValueError, match="set window="):
    model.stream(PROMPTS, math.inf)
  with pytest.raises(ValueError, match="2 k more than the 9 frames given; take 13 or 15"):
    model.extend(clips, PROMPTS, 14)
  with pytest.raises(ValueError, match="take 11 or 13"):
    model.extend(clips, PROMPTS, 9)
  with pytest.raises(ValueError, match="for 2 prompts"):
    model.extend(clips, PROMPTS[:2], 15)
  with pytest.raises(ValueError, match="are less than overlap_frames=3"):
    model.extend(clips[:, :1], PROMPTS, 15, overlap_frames=3)


def test_learned_positions_have_no_end(model):
  config = dataclasses.replace(model.generator.config, positions="learned")
  learned = Generator(nnx.Rngs(params=0), config, model.layout)
  fixed = sampler.Model(
    learned, model.tokenizer, model.text_encoder, model.layout, defaults=model.requests.defaults
  )
  for num_frames in (11, math.inf):
    with pytest.raises(ValueError, match="learned positions end"):
      fixed.stream(PROMPTS, num_frames, window=2)


def test_foretold_bits_are_counted_clip_by_clip(model, video):
  """Against a loop over bits, with clips shorter than trained and prompts of several lengths."""
  found = model.score(PROMPTS, video)
  layout = dataclasses.replace(model.layout, num_frames=3)
  text = np.stack([model.text_encoder.encode(prompt) for prompt in PROMPTS])
  latents = model.tokenizer.encode(to_float(video))

  @jax.jit
  def logits_of(generator, latents):
    inputs = corrupt(latents, SCHEDULE)
    return generator(text, inputs.features, layout, quantized=inputs.quantized)

  logits = np.asarray(logits_of(model.generator, latents))
  codes = model.tokenizer.quantize(latents)
  for clip in range(3):
    right, losses = {}, []
    for frame in range(3):
      bits = [np.asarray(scale[clip, frame]).reshape(-1, 4) for scale in codes.bits]
      scales = np.repeat([0, 1], [len(x) for x in bits])
      for token, scale in enumerate(scales):
        for bit, wanted in enumerate(np.concatenate(bits)[token]):
          p = 1 / (1 + math.exp(-float(logits[clip, frame, token, bit])))
          losses.append(-math.log(p if wanted else 1 - p))
          for part in ("", f"/scale_{scale}", f"/frame_{frame}"):
            right.setdefault("bit_accuracy" + part, []).append((p > 0.5) == wanted)
    assert set(found) == {"loss", *right}
    assert found["loss"][clip] == pytest.approx(np.mean(losses), rel=1e-4)
    for name, values in right.items():
      assert found[name][clip] == pytest.approx(np.mean(values), abs=1e-6), name
  assert len(set(found["loss"].tolist())) == 3
  with pytest.raises(ValueError, match="needs frames"):
    model.score(PROMPTS[:2], video)


def test_steps_count_the_complete_latents(model):
  assert model.num_steps() == 1 + 5 * 2 + 4 and model.num_steps(5) == 1 + 3 * 2 + 2
  layout = dataclasses.replace(model.layout, context="scales")
  paper = sampler.Model(model.generator, model.tokenizer, model.text_encoder, layout, defaults={})
  assert paper.num_steps() == 1 + 5 * 2
