"""Videos of several clips, each with a prompt of its own and from the frames before it."""

from typing import Any

import numpy as np
from jaxtyping import UInt8


def sample_shots(
  model: Any,
  prompts: list[str],
  num_videos: int,
  num_frames: int | None,
  seed: int,
  overlap_frames: int = 1,
  **settings: Any,
) -> UInt8[np.ndarray, "b f H W 3"]:
  """Generates videos of several shots; each continues from the last frames of the previous one.

  Args:
    model: has `sample` and `extend`, see `base.Model`.
    prompts: of the shots.
    num_videos: how many videos to make.
    num_frames: of the first shot; later ones add equally many, but for the first frame.
    seed: random seed.
    overlap_frames: frames that a shot continues from.
    **settings: see `Model.sample`; `image` and `video` are for the first shot.
  """
  first, *more = ([prompt] * num_videos for prompt in prompts)
  clips = model.sample(first, num_frames, seed, **settings)
  settings = {name: settings[name] for name in settings if name not in ("image", "video")}
  added = clips.shape[1] - 1
  for texts in more:
    length = clips.shape[1] + added
    clips = model.extend(clips, texts, length, seed, overlap_frames=overlap_frames, **settings)
  return clips


def sample_story(
  model: Any, prompts: list[str], num_videos: int, seed: int, **settings: Any
) -> UInt8[np.ndarray, "b f H W 3"]:
  """Generates videos in the interactive mode, clip after clip.

  Args:
    model: has the method `interact`, as InfinityStar's.
    prompts: of the clips that are generated.
    num_videos: how many videos to make.
    seed: random seed.
    **settings: see `interact`. `video` is a clip before those of the prompts, `image` the first
      frame of the first one.
  """
  texts = [[prompt] * num_videos for prompt in prompts]
  if "video" in settings:
    texts = [[""] * num_videos, *texts]
  first, *more = texts
  story = model.interact(first, seed, **settings)
  settings = {name: settings[name] for name in settings if name not in ("image", "video")}
  return np.concatenate([story.frames, *(story.extend(x, **settings) for x in more)], axis=1)
