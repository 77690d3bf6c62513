"""Coding a clip in chunks, against coding the whole clip."""

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from compiling import compiled_by
from tiny_networks import DEEP_AUTOENCODER

from videoar_jax.tokenizers.bsq.tokenizer import Tokenizer

TAU, NUM_LATENTS = 4, 17  # 65 frames.
LENGTHS = (1, 2, 5)  # Of chunks, in latent frames; each compiles two programs.


@pytest.fixture(scope="module")
def tokenizer(random_autoencoder):
  return Tokenizer(random_autoencoder(DEEP_AUTOENCODER))


@pytest.fixture(scope="module")
def whole(tokenizer):
  """A clip of 65 frames and its latents; random latents and their clip."""
  video = jax.random.uniform(jax.random.key(0), (1, 65, 8, 8, 3), minval=-1)
  codes = 0.3 * jax.random.normal(jax.random.key(1), (1, NUM_LATENTS, 2, 2, 6))
  return video, tokenizer.encode(video), codes, tokenizer.decode(codes)


def frames(num_latents):
  return 1 + TAU * (num_latents - 1)


def assert_close(ours, theirs):
  assert ours.shape == theirs.shape
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


def chunkings(num_latents, num_draws):
  """Returns different divisions of a clip into chunks of LENGTHS."""
  generator, found = np.random.default_rng(num_latents), set()
  for _ in range(num_draws):
    ends = [0]
    while ends[-1] < num_latents:
      room = [length for length in LENGTHS if ends[-1] + length <= num_latents]
      ends.append(ends[-1] + int(generator.choice(room)))
    found.add(tuple(ends[1:]))
  return sorted(found)


def in_chunks(code, x, ends, keep=lambda state: state):
  parts, start, state = [], 0, None
  for end in ends:
    part, state = code(x[:, start:end], state)
    parts.append(part)
    start, state = end, keep(state)
  return np.concatenate(parts, axis=1)


@pytest.mark.parametrize("num_latents", range(1, NUM_LATENTS + 1))
def test_chunks_equal_the_whole(tokenizer, whole, num_latents):
  """Clips of 1 to 65 frames, divided in many ways; later frames do not change earlier ones."""
  video, latents, codes, decoded = whole
  for ends in chunkings(num_latents, 6):
    ours = in_chunks(tokenizer.encode_chunk, video, [frames(end) for end in ends])
    assert_close(ours, latents[:, :num_latents])
    assert_close(in_chunks(tokenizer.decode_chunk, codes, ends), decoded[:, : frames(num_latents)])


def test_the_whole_of_a_shorter_clip_is_the_beginning(tokenizer, whole):
  video, latents, codes, decoded = whole
  assert_close(tokenizer.encode(video[:, :5]), latents[:, :2])
  assert_close(tokenizer.decode(codes[:, :2]), decoded[:, :5])


def test_a_state_survives_on_disk(tokenizer, whole, tmp_path):
  video, latents, codes, decoded = whole
  count = 0

  def keep(state):
    nonlocal count
    count += 1
    with ocp.StandardCheckpointer() as checkpointer:
      checkpointer.save(tmp_path / str(count), state)
      checkpointer.wait_until_finished()
      return checkpointer.restore(tmp_path / str(count))

  ends = (2, 7, 12, 17)
  ours = in_chunks(tokenizer.encode_chunk, video, [frames(end) for end in ends], keep)
  assert_close(ours, latents)
  assert_close(in_chunks(tokenizer.decode_chunk, codes, ends, keep), decoded)
  assert count == 8


@pytest.mark.parametrize(("chunk", "num_latents"), [(1, 17), (5, 17), (40, 5)])
def test_whole_calls_go_in_chunks(tokenizer, whole, chunk, num_latents):
  video, latents, codes, decoded = whole
  num_frames = frames(num_latents)
  video = np.asarray(video[:, :num_frames])
  assert_close(tokenizer.encode(video, chunk=chunk), latents[:, :num_latents])
  assert_close(tokenizer.decode(codes[:, :num_latents], chunk=chunk), decoded[:, :num_frames])


def test_memory_does_not_grow_with_the_clip(tokenizer):
  """A state keeps its shapes, and a chunk needs much less memory than a whole clip."""

  def chunk(latents, state):
    return tokenizer.autoencoder.decoder.chunk(latents, state)

  def temporary(function, *arguments):
    return jax.jit(function).lower(*arguments).compile().memory_analysis().temp_size_in_bytes

  part = jax.ShapeDtypeStruct((1, 2, 8, 8, 6), jnp.float32)
  clip = jax.ShapeDtypeStruct((1, 66, 8, 8, 6), jnp.float32)
  first = jax.eval_shape(chunk, part, None)[1]
  assert jax.eval_shape(chunk, part, first)[1] == first
  once = temporary(chunk, part, first)
  kept = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(first))
  at_once = temporary(lambda latents: chunk(latents, None)[0], clip)
  assert once + kept < at_once / 8

  # There is a program for the first chunk, one for all others, whatever the length of the clip.
  def decode():
    for num_latents in (6, 12, 66):
      decoded = tokenizer.decode(np.zeros((1, num_latents, 3, 3, 6), np.float32), chunk=2)
      assert isinstance(decoded, np.ndarray)  # In host memory, not on the device.

  _, names = compiled_by(decode)
  assert names.count("jit(_decode)") == 2


def test_chunks_that_do_not_fit_are_named(tokenizer, whole):
  video, _, codes, _ = whole
  _, state = tokenizer.encode_chunk(video[:, :5])
  for length in (0, 3, 5):
    with pytest.raises(ValueError, match="4 k frames"):
      tokenizer.encode_chunk(video[:, :length], state)
  with pytest.raises(ValueError, match=r"1 \+ 4 k"):
    tokenizer.encode_chunk(video[:, :4])
  with pytest.raises(ValueError, match=r"state: has .*\(1, 4, 4\), needs \(1, 4, 8\)"):
    tokenizer.encode_chunk(jnp.zeros((1, 4, 8, 16, 3)), state)
  _, state = tokenizer.decode_chunk(codes[:, :1])
  with pytest.raises(ValueError, match=r"state: has .*\(1, 2, 2\), needs \(2, 2, 2\)"):
    tokenizer.decode_chunk(jnp.zeros((2, 1, 2, 2, 6)), state)
  with pytest.raises(ValueError, match="chunk=0"):
    tokenizer.decode(codes, chunk=0)
