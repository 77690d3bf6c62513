"""Sequence layouts of a run's clips."""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Float

from videoar_jax.models.base import ClipShape, Data, Run, Stage
from videoar_jax.models.videoar.guidance import guidance_table
from videoar_jax.models.videoar.layout import Layout


def layout_of(run: Run, clip: ClipShape | Data) -> Layout:
  """Returns the layout of a clip.

  Raises:
    ValueError: the tokenizer cannot code such clips.
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
    patch_sizes=run.generator.patch_sizes,
  )


def stage_layouts(run: Run, stage: Stage) -> tuple[Layout, ...]:
  """Returns the layouts of all clip shapes of a stage."""
  return tuple(layout_of(run, shape) for shape in stage.shapes)


def sampling_window(run: Run, stage: Stage) -> int | None:
  """Returns how many earlier latent frames a frame attends to in samples; None for all."""
  window = run.sampling.window
  return stage.loss.window if window is None else window


def trained_frames(run: Run, stage: Stage) -> int:
  """Returns the latent frames of a stage's longest clips, those of its mixture included."""
  layouts = (layout_of(run, stage.data), *stage_layouts(run, stage))
  return max(layout.num_frames for layout in layouts)


def all_layouts(run: Run) -> list[Layout]:
  """Returns the layouts of all stages."""
  stages = run.generator_stages
  own = [layout_of(run, stage.data) for stage in stages]
  return [*own, *(layout for stage in stages for layout in stage_layouts(run, stage))]


def guidance_shapes(run: Run) -> tuple[tuple[int, int], ...]:
  """Returns the (latent frames, scales) that a table of guidance may be for: those of all stages.

  So one table serves stages of several lengths.
  """
  return tuple({(layout.num_frames, layout.num_scales) for layout in all_layouts(run)})


def guidance_of(run: Run, layout: Layout) -> Float[np.ndarray, "t s"]:
  """Returns the guidance of a run's samples of a layout.

  Raises:
    ValueError: the table in a file is not for the clips of any stage.
  """
  shapes = guidance_shapes(run)
  return guidance_table(run.sampling.guidance, layout.num_frames, layout.num_scales, shapes=shapes)


def widest_layout(run: Run) -> Layout:
  """Returns the layout with the most scales of all stages, for which the network is made."""
  return widest(all_layouts(run))


def widest(layouts: Iterable[Layout]) -> Layout:
  """Returns the layout with the most scales; the network has an embedding for each of them."""
  return max(layouts, key=lambda layout: layout.num_scales)
