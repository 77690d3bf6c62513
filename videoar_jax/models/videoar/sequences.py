"""The sequences of a run's clips."""

from collections.abc import Iterable

from videoar_jax.models.base import ClipShape, Data, Run, Stage
from videoar_jax.models.videoar.layout import Layout


def layout_of(run: Run, clip: ClipShape | Data) -> Layout:
  """Returns the sequence of a clip.

  Raises:
    ValueError: the tokenizer makes no such clips.
  """
  num_latents, *_ = run.tokenizer.latent_shape(clip.num_frames, clip.resolution)
  return Layout(
    run.text.length,
    num_latents,
    run.tokenizer.scales(clip.resolution),
    text_attention=run.text.attention,
    context=run.generator.context,
    prev_frame_input=run.generator.prev_frame_input,
    rope_grid=run.generator.rope_grid,
  )


def stage_layouts(run: Run, stage: Stage) -> tuple[Layout, ...]:
  """Returns the sequences of all clips of a stage."""
  return tuple(layout_of(run, shape) for shape in stage.shapes)


def all_layouts(run: Run) -> list[Layout]:
  """Returns the sequences of all stages."""
  stages = run.generator_stages
  own = [layout_of(run, stage.data) for stage in stages]
  return [*own, *(layout for stage in stages for layout in stage_layouts(run, stage))]


def widest_layout(run: Run) -> Layout:
  """Returns the sequence of the most scales of all stages, by which they have one network."""
  return widest(all_layouts(run))


def widest(layouts: Iterable[Layout]) -> Layout:
  """Returns the layout of the most scales, by which the network has rows for each of them."""
  return max(layouts, key=lambda layout: layout.num_scales)
