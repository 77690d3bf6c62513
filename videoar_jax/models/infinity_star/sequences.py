"""Sequences of clips, and the parts of them that a training step takes. Source: INFINITY S7."""

import dataclasses
from collections.abc import Sequence

from videoar_jax.models.infinity_star.config import InfinityStarConfig
from videoar_jax.models.infinity_star.layout import Layout
from videoar_jax.tokenizers.base import TokenizerConfig
from videoar_jax.tokenizers.star.schedules import Schedule

# Of the parts of one clip after the first frame, and of two; by the number of scales.
_WEIGHTS = {
  (14, 1): (40, 30, 20, 6, 3, 1),
  (15, 1): (60, 20, 10, 6, 2, 1),
  (14, 2): (40, 30, 20, 6, 3, 1, 60, 40, 12, 6, 2),
  (15, 2): (40, 30, 20, 6, 3, 1, 60, 40, 12, 6, 2),
}


def layout_of(config: InfinityStarConfig, latent_shape: Sequence[int]) -> Layout:
  """Returns the sequence of a clip.

  Args:
    config: the network.
    latent_shape: (t, h, w) of its latents.
  Raises:
    ValueError: the network's scales do not fit.
  """
  t, h, w = latent_shape
  return Layout(config.text_length, config.pyramid((h, w)).schedule(t))


def given_lengths(layout: Layout, tokenizer: TokenizerConfig) -> tuple[int, ...]:
  """Returns how many frames may be given of a clip, whose rest is then generated.

  They are the first frame, and it with whole pyramids, which are coded as one.

  Args:
    layout: of the whole clip.
    tokenizer: codes the frames.
  """
  stops = [scale.stop for scale in layout.schedule if scale.is_last]
  return tuple(1 + tokenizer.temporal_stride * (stop - 1) for stop in stops[:-1])


@dataclasses.dataclass(frozen=True)
class Part:
  """Scales that are trained together.

  Attributes:
    share: of the steps.
    kept: numbers of the scales.
  """

  share: float
  kept: tuple[int, ...]


def released_parts(schedule: Schedule) -> tuple[Part, ...]:
  """Returns the parts that the released models were trained on.

  A part has the first frame, and of a clip the small scales, or these and a single large one; of a
  second clip also without all that it does not see. The largest scale of 720p is in none.

  Raises:
    ValueError: there are none for such clips.
  """
  num = sum(scale.pyramid == 0 for scale in schedule)
  num_clips = schedule[-1].pyramid
  if (num, num_clips) not in _WEIGHTS:
    raise ValueError(
      f"loss.parts='released' needs one or two clips of 14 or 15 scales after the first frame, but "
      f"there are {num_clips} of {num}; set 'all'"
    )
  first, second = range(num), range(2 * num, 2 * num + 11)
  small = (*first, *range(num, num + 11))
  # The first frame's largest scale, and the first clip's, which the second clip sees.
  seen = (num - 1, 2 * num - 1)
  least = small[: num + 8]
  parts = [tuple(first), least, small, (*small, num + 11), (*small, num + 12)]
  if num_clips == 1:
    parts.append((*least, num + 13))
  else:
    parts += [(*small, num + 13), (*seen, *second), (*seen, *second)]
    parts += [(*seen, 2 * num + last) for last in (11, 12, 13)]
  weights = _WEIGHTS[num, num_clips]
  total = sum(weights)
  return tuple(
    Part(weight / total, tuple(sorted(set(kept))))
    for weight, kept in zip(weights, parts, strict=True)
  )
