"""A model that draws its clips instead of computing them, for tests of the page."""

import functools

import numpy as np
import tiny_runs
from type_checks import stand_in

from videoar_jax.experiment import parse
from videoar_jax.models.preview import Preview
from videoar_jax.page.studio import Studio
from videoar_jax.tokenizers.base import TokenizerConfig

NUM_FRAMES, SIDE, TAU, SCALES = 5, 16, 2, 2


class DrawnModel:
  """Makes clips whose pixels say which clip, frame and scale they are of.

  Attributes:
    steps: of previews that were begun, as (start, scales).
    calls: what was asked for.
    wait: called in each step.
  """

  num_frames, resolution, batch_size = NUM_FRAMES, (SIDE, SIDE), 16

  def __init__(self, text_encoder, wait=lambda: None):
    config = stand_in(TokenizerConfig, temporal_stride=TAU)
    self.tokenizer = type("Tokenizer", (), {"config": config})()
    self.text_encoder, self.wait = text_encoder, wait
    self.steps, self.calls = [], []

  def sample(self, prompts, num_frames=None, seed=0, **settings):
    raise AssertionError("the page shows previews")

  def extend(self, clips, prompts, num_frames, seed=0, **settings):
    raise AssertionError("the page shows previews")

  def preview(self, prompts, num_frames, seed=0, **settings):
    self.calls.append((prompts, num_frames, seed, settings))
    return self._preview(len(prompts), num_frames, seed, **settings)

  def _preview(self, num, num_frames, seed, clips=None, **_):
    begin = 0 if clips is None else clips.shape[1]
    starts = range(max(1, begin), num_frames, TAU)
    for start, count in [*([] if begin else [(0, 1)]), *((start, TAU) for start in starts)]:
      for scale in range(SCALES):
        self.wait()
        self.steps.append((start, scale + 1))
        yield Preview(drawn(num, start, count, seed, scale + 1), start, scale + 1, SCALES)


def drawn(num, start, count, seed, scale=SCALES):
  """Returns the frames of a preview, `[b, f, H, W, 3]`."""
  frames = np.zeros((num, count, SIDE, SIDE, 3), np.uint8)
  frames[..., 0] = 40 + 20 * np.arange(num, dtype=np.uint8)[:, None, None, None]
  frames[..., 1] = 10 * (start + np.arange(count, dtype=np.uint8))[None, :, None, None]
  frames[..., 2] = 50 * scale + seed
  return frames


@functools.cache
def tiny_run():
  """Returns the config of a run on moving shapes, which no test changes."""
  return parse.finalize(tiny_runs.make_config())


def make_studio(wait=lambda: None):
  """Returns a studio with such a model."""
  run = tiny_run()
  return Studio(DrawnModel(run.text.encoder, wait), run, run.generator_stages[-1])
