"""Models that cannot show single scales: what they stream, or whole clips."""

import numpy as np
import pytest

from videoar_jax.models.preview import preview

CLIPS = np.arange(2 * 5, dtype=np.uint8).reshape(2, 5, 1, 1, 1) + np.zeros(
  (2, 5, 4, 4, 3), np.uint8
)


class Sampler:
  tokenizer = text_encoder = None
  num_frames, resolution, batch_size = 5, (4, 4), 16

  def sample(self, prompts, num_frames, seed, **settings):
    self.settings = settings
    return CLIPS[:, :num_frames]


class Streamer(Sampler):
  def stream(self, prompts, num_frames, seed, **settings):
    clips = self.sample(prompts, num_frames, seed, **settings)
    yield clips[:, :1]
    yield clips[:, 1:]

  def extend(self, clips, prompts, num_frames, seed, *, overlap_frames, **settings):
    return np.concatenate([clips, CLIPS[:, overlap_frames:]], axis=1)[:, :num_frames]


def test_clips_come_as_they_are_streamed():
  model = Streamer()
  parts = list(preview(model, ["a", "b"], 5, image=CLIPS[0, 0], guidance=3.0))
  assert [(part.start, part.num_done, part.num_scales) for part in parts] == [(0, 1, 1), (1, 1, 1)]
  np.testing.assert_array_equal(np.concatenate([part.frames for part in parts], 1), CLIPS)
  assert set(model.settings) == {"image", "guidance"}
  (part,) = preview(Sampler(), ["a", "b"], 3)
  assert part.start == 0
  np.testing.assert_array_equal(part.frames, CLIPS[:, :3])


def test_what_follows_a_clip_comes_without_the_clip():
  (part,) = preview(Streamer(), ["a", "b"], 8, clips=CLIPS, overlap_frames=2)
  assert part.start == 5
  np.testing.assert_array_equal(part.frames, CLIPS[:, 2:])
  with pytest.raises(ValueError, match="makes images"):
    next(preview(Sampler(), ["a", "b"], 8, clips=CLIPS))
