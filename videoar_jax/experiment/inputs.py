"""Batches of a stage's training and held-out clips, on a mesh."""

import contextlib
import dataclasses
import logging

import numpy as np
from jax.sharding import Mesh

from videoar_jax.data.mixture import Mixture, make_buckets
from videoar_jax.data.pipeline import DataConfig, make_iterator, windows_of
from videoar_jax.data.sources.base import EncodedSource
from videoar_jax.experiment.captions import stage_encoder
from videoar_jax.experiment.schema import RunConfig, StageConfig
from videoar_jax.models.base import ClipShape
from videoar_jax.parallel.mesh import num_batch_shards, process_shard
from videoar_jax.train.trainer import NUM_SHOWN

log = logging.getLogger(__name__)

TOKENS_TOLERANCE = 0.1  # Larger relative deviations of a batch's tokens are logged.


@dataclasses.dataclass(frozen=True)
class Batches:
  """A run's batches; each process reads the part for its devices."""

  run: RunConfig
  mesh: Mesh

  def iterator(
    self,
    stage: StageConfig,
    sources: list,
    seed: int,
    mixture: Mixture | None = None,
    **reading: int,
  ):
    """Returns an iterator over this process's part of a stage's batches.

    Args:
      stage: the stage.
      sources: one for each of `stage.source_data`, or only the latents of a cache.
      seed: of the order.
      mixture: as `mixture` returns it for the same arguments; None makes one if there are several
        shapes or sources.
      **reading: `num_threads` or `prefetch`, instead of the config's.
    Raises:
      ValueError: batches cannot be made, or a shape would never get one.
    """
    reading = {name: getattr(stage.data, name) for name in ("num_threads", "prefetch")} | reading
    part, num_parts = process_shard(self.mesh)
    processes = {"process_index": part, "process_count": num_parts}
    mixture = self.mixture(stage, sources, seed) if mixture is None else mixture
    if mixture is not None:
      return mixture.iterator(**processes, **reading)
    return make_iterator(
      sources[0],
      batch_size=stage.loop.batch_size,
      seed=seed,
      tokenize=stage_encoder(self.run, stage, stage.data).encode,
      fields=self._fields(stage),
      windows=windows_of(stage.data),
      **processes,
      **reading,
    )

  def mixture(self, stage: StageConfig, sources: list, seed: int) -> Mixture | None:
    """Returns the mixture of a stage's shapes and sources; None if it has only one of each.

    Args:
      stage: the stage.
      sources: one for each part of its mixture, or its clips.
      seed: of the order.
    Raises:
      ValueError: a shape would never get a batch.
    """
    if not stage.mixture:
      return None
    buckets, shards = [], num_batch_shards(self.mesh) * stage.loop.grad_accum_steps
    for part, source in zip(stage.mixture, sources, strict=True):
      buckets += make_buckets(
        part.name,
        source,
        num_frames=part.num_frames,
        resolutions=part.resolutions,
        batch_size=lambda shape, part=part: self.run.batch_size_of(
          stage, part, ClipShape(shape[0], shape[1:]), shards
        ),
        encoder=lambda shape, part=part: stage_encoder(self.run, stage, part.data, shape[0]).encode,
        share=part.weight,
      )
    return Mixture(buckets, seed=seed, fields=self._fields(stage))

  def _fields(self, stage: StageConfig) -> tuple[str, ...]:
    """Returns the fields of a stage's batches besides clips and texts."""
    return self.run.family.batch_fields if stage.kind == "generator" else ()

  def held_out(self, stage: StageConfig, source) -> list[dict[str, np.ndarray]]:
    """Returns this process's part of the batches that a stage is evaluated on.

    They have one shape and are the same each time. If the source has fewer clips than the config
    asks for, there are just enough batches to cover all clips.

    Args:
      stage: the stage.
      source: clips of `stage.data` that are not trained on.
    """
    loop = stage.loop
    if not loop.eval_every:
      return []
    # As many as in one forward pass of training.
    size = loop.batch_size // loop.grad_accum_steps
    num_batches = min(loop.eval_batches, -(-len(source) // size))
    part, num_parts = process_shard(self.mesh)
    iterator = make_iterator(
      source,
      batch_size=size,
      seed=self.run.seed,
      tokenize=stage_encoder(self.run, stage, stage.data).encode,
      fields=self._fields(stage),
      windows=windows_of(stage.data),
      process_index=part,
      process_count=num_parts,
      num_threads=stage.data.num_threads,
      prefetch=stage.data.prefetch,
    )
    with contextlib.closing(iterator):
      batches = [next(iterator) for _ in range(num_batches)]
    return [{name: batch[name] for name in batch if name != "id"} for batch in batches]

  def log_mixture(self, stage: StageConfig, mixture: Mixture) -> None:
    """Logs what a stage draws from its mixture, and which of its shapes have uneven batches."""
    _log_drawn(stage.name, mixture.drawn(0, stage.loop.num_steps))
    self.warn_of_uneven(stage, mixture)

  def warn_of_uneven(self, stage: StageConfig, mixture: Mixture) -> None:
    """Warns about shapes with more or fewer tokens per batch than the stage asks for."""
    budget = stage.loop.batch_size * self.run.num_tokens(stage, stage.shape)
    fixed = {shape for part in stage.mixture if part.batch_size for shape in part.shapes}
    for (frames, height, width), rows in mixture.shapes:
      shape = ClipShape(frames, (height, width))
      if shape in fixed:
        continue
      share = rows * self.run.num_tokens(stage, shape) / budget
      if abs(share - 1) > TOKENS_TOLERANCE:
        log.warning(
          "stage %s: a batch of %d clips of %dx%dx%d (frames x height x width) has %.2f times the "
          "tokens that batch_size=%d asks for, since its clips must divide over %d devices; to get "
          "closer, increase batch_size, mesh.sequence or mesh.tensor",
          *(stage.name, rows, frames, height, width, share, stage.loop.batch_size),
          num_batch_shards(self.mesh),
        )


def _log_drawn(name: str, drawn: dict[str, dict[str, int]]) -> None:
  """Logs the share of each source and shape in a stage's batches."""
  total = sum(counts["batches"] for counts in drawn.values())
  for what, counts in drawn.items():
    log.info(
      "stage %s: %.1f%% of the batches are %s (frames x height x width), %d clips in %d batches",
      name,
      100 * counts["batches"] / total,
      what,
      counts["clips"],
      counts["batches"],
    )


def media_batch(data: DataConfig, source, text_encoder) -> dict[str, np.ndarray]:
  """Returns the first clips of a source, to show during training."""
  source = EncodedSource(source, text_encoder.encode, windows_of(data))
  items = [source[i % len(source)] for i in range(NUM_SHOWN)]
  return {
    "video": np.stack([item["video"] for item in items]),
    "text": np.stack([item["text"] for item in items]),
  }
