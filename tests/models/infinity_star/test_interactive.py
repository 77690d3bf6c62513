"""The interactive mode: against teacher forcing, and what a clip depends on."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_star import AUTOENCODER, CONFIG, make_net

from videoar_jax.models.base import ClipShape
from videoar_jax.models.infinity_star import generate
from videoar_jax.models.infinity_star.config import InfinityStarSampling
from videoar_jax.models.infinity_star.interactive import conditions_of, layout_of_clip
from videoar_jax.models.infinity_star.network import rotary_angles
from videoar_jax.models.infinity_star.sampler import Model
from videoar_jax.nn.documents import DocumentMask, DocumentRule
from videoar_jax.nn.transformer import run_blocks
from videoar_jax.tokenizers.bsq.tokenizer import Tokenizer

# The condition takes the grid of the eighth of nine scales.
GRIDS = ((1, 1), (1, 2), (2, 2), (2, 3), (3, 3), (3, 4), (4, 4), (4, 5), (4, 6))
STORIES = dataclasses.replace(
  CONFIG,
  schedule=" ".join(f"{h}x{w}" for h, w in GRIDS),
  image_repetitions=(1,) * 9,
  clip_repetitions=(1,) * 9,
  min_detail_tokens=16,
  clip_length=3,
)
SAMPLING = InfinityStarSampling(
  guidance_kind="cfg", guidance=3.0, prompt_prefix="{seconds}", prompt_suffix=""
)


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
  shape = ClipShape(7, (16, 24))
  return Model(make_net(STORIES), tokenizer, Words(), shape, SAMPLING, frame_rate=5.0)


def places_of(scale_id, frames, grid):
  """Rotary positions, one cell after the other."""
  return [
    (scale_id, frame, round(y * 4 / grid[0]), round(x * 6 / grid[1]))
    for frame in frames
    for y in range(grid[0])
    for x in range(grid[1])
  ]


def test_cached_sampling_is_teacher_forcing():
  net, layout = make_net(STORIES), layout_of_clip(STORIES, (4, 6))
  assert [(scale.start, scale.num_frames) for scale in layout.scales] == [(0, 3)] * 9
  first, previous = jax.random.normal(jax.random.key(1), (2, 2, 3, 4, 6, 6))
  first, text = first[:, :1], jnp.array([[3, 4, 5, 0, 0, 0], [7, 8, 9, 1, 2, 3]])
  plan, steps = generate.Plan.of(layout, SAMPLING), []

  def run_scale(*arguments, **settings):
    done = generate.run_scale(*arguments, **settings)
    steps.extend(done.steps)
    return done

  @jax.jit
  def sample(net):
    steps.clear()
    prompts = generate.prompts_of(net, text, None, is_guided=True)
    context = tuple(
      generate.read_latents(net, *condition, num_passes=2)
      for condition in conditions_of(first, previous, layout)
    )
    generate.generate(net, plan, prompts, None, (), context, run=run_scale)
    return list(steps)

  found = sample(net)
  # The same as a single sequence: semantic frames, detail frames, all scales, the prompt.
  inputs = [step.inputs[0] for step in found]
  coarse = np.zeros((2, 3, 4, 5, 6), np.float32)
  for x in range(5):  # Column x averages the columns that it touches, of six.
    columns = np.asarray(previous)[:, :, :, x * 6 // 5 : -(-(x + 1) * 6 // 5)]
    coarse[:, :, :, x] = columns.mean(axis=3)
  detail = jnp.concatenate([first, previous[:, 1:]], axis=1)
  rows = jnp.concatenate([x.reshape(2, -1, 6) for x in (coarse, detail, *inputs)], axis=1)
  places = places_of(6 + 800, (1, 2, 3), (4, 5)) + places_of(6 + 801, (0, 2, 3), (4, 6))
  for number, grid in enumerate(GRIDS):
    places += places_of(6 + number, (0, 1, 2), grid)
  places += [(i, 0, 0, 0) for i in range(6)]
  sizes = (60, 72, *(3 * h * w for h, w in GRIDS), 6)
  seen = ((0,), (1,), *((0, 1, scale, 11) for scale in range(2, 11)), (11,))

  @jax.jit
  def forced(net, prompt):
    x = jnp.concatenate([net.codes_in(rows), prompt], axis=1)
    present = jnp.pad(text != 0, ((0, 0), (rows.shape[1], 0)), constant_values=True)
    mask = DocumentMask(DocumentRule(sizes, seen), present)
    angles = rotary_angles(np.array(places, np.float32), 8)
    x = run_blocks(net.blocks, x, angles, mask, net.config)
    ends = np.cumsum(sizes)
    return [net.head(x[:, ends[i + 1] : ends[i + 2]], layout.scales[i].is_detail) for i in range(9)]

  for row, prompt in enumerate((net.embed_text(text), net.embed_nothing(text != 0))):
    for step, expected in zip(found, forced(net, prompt), strict=True):
      np.testing.assert_allclose(step.logits[0][2 * row :][:2], expected, atol=1e-4)


def test_a_story_goes_on_from_the_clip_before_and_the_first_frame(model):
  video = np.random.default_rng(0).integers(0, 256, (2, 17, 16, 24, 3), np.uint8)
  words = model.text_encoder.text_encoder
  story = model.interact(["", ""], 1, video=video)
  latents = model.tokenizer.encode(jnp.asarray(video[:, 10:] / 127.5 - 1.0, jnp.float32))
  recoded = np.asarray(model.tokenizer.decode(latents) + 1) * 127.5
  assert np.abs(story.frames - np.clip(recoded, 0, 255)).max() <= 1
  assert not words.asked
  first = story.extend(["left", "right"])
  second = story.extend(["left", "up"])
  assert first.shape == second.shape == (2, 6, 16, 24, 3) and words.asked[0] == "1left"
  assert (first != second).any()

  def clips(seed=1, prompts=("left", "right")):
    story = model.interact(["", ""], seed, video=video)
    return [story.extend([*prompts]), story.extend(["left", "up"])]

  for ours, expected in zip(clips(), (first, second), strict=True):
    np.testing.assert_array_equal(ours, expected)
  assert (clips(seed=2)[0] != first).any()
  # A row depends on its own prompts alone; the second clip also on the first clip's prompt.
  other = clips(prompts=("down", "right"))
  for ours, expected in zip(other, (first, second), strict=True):
    np.testing.assert_array_equal(ours[1], expected[1])
    assert (ours[0] != expected[0]).any()


@pytest.mark.slow
def test_a_story_may_begin_with_a_prompt_or_an_image(model):
  image = np.full((16, 24, 3), 90, np.uint8)
  story = model.interact(["left"], 3, image=image)
  np.testing.assert_array_equal(story.frames, model.sample(["left"], seed=3, image=image))
  assert story.extend(["right"]).shape == (1, 6, 16, 24, 3)


def test_what_does_not_fit_is_named(model, monkeypatch):
  with pytest.raises(ValueError, match="video: 5 frames are less than a clip's 7"):
    model.interact([""], video=np.zeros((5, 16, 24, 3), np.uint8))
  with pytest.raises(ValueError, match="temperature: no such setting"):
    model.interact([""], temperature=1.0)
  with pytest.raises(ValueError, match=r"needs at least 8 scales.* cells have 3"):
    layout_of_clip(CONFIG, (4, 4))
  monkeypatch.setattr(model, "num_frames", 5)
  with pytest.raises(ValueError, match=r"begins with a clip of 7 frames, but .* trained on 5"):
    model.interact(["left"])
