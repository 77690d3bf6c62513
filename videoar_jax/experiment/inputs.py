"""What a stage is trained on, batch by batch, on the devices of a mesh."""

import contextlib
import dataclasses
import logging

import numpy as np
from jax.sharding import Mesh

from videoar_jax.data.mixture import Mixture, make_buckets
from videoar_jax.data.pipeline import make_iterator
from videoar_jax.data.sources.base import EncodedSource
from videoar_jax.experiment.schema import RunConfig, StageConfig
from videoar_jax.models.base import ClipShape
from videoar_jax.parallel.mesh import num_batch_shards, process_shard
from videoar_jax.text.tokenizers import TextEncoder

log = logging.getLogger(__name__)

NUM_MEDIA_CLIPS = 4  # Or a few more, where the mesh needs them.
TOKENS_TOLERANCE = 0.1  # More or fewer in a batch of another shape are told.


@dataclasses.dataclass(frozen=True)
class Batches:
  """A run's batches, of which each process reads the part of its devices."""

  run: RunConfig
  mesh: Mesh

  def iterator(self, stage: StageConfig, sources: list, seed: int, **reading):
    """Returns an iterator over this process's part of a stage's batches.

    Args:
      stage: which.
      sources: of `stage.source_data`, or the latents of a cache alone.
      seed: of the order.
      **reading: `num_threads` or `prefetch` in place of the config's.
    Raises:
      ValueError: a batch cannot be made, or would never be.
    """
    reading = {name: getattr(stage.data, name) for name in ("num_threads", "prefetch")} | reading
    part, num_parts = process_shard(self.mesh)
    processes = {"process_index": part, "process_count": num_parts}
    mixture = self.mixture(stage, sources, seed)
    if mixture is not None:
      return mixture.iterator(**processes, **reading)
    return make_iterator(
      sources[0],
      batch_size=stage.loop.batch_size,
      seed=seed,
      tokenize=self.run.text.encoder.encode,
      fields=self._fields(stage),
      **processes,
      **reading,
    )

  def mixture(self, stage: StageConfig, sources: list, seed: int) -> Mixture | None:
    """Returns the batches of several shapes or sources of a stage; None where it has one of both.

    Args:
      stage: which.
      sources: of the parts of its mixture, or its clips.
      seed: of the order.
    Raises:
      ValueError: a shape would have no batch.
    """
    if not stage.mixture:
      return None
    found, shards = [], num_batch_shards(self.mesh) * stage.loop.grad_accum_steps
    for part, source in zip(stage.mixture, sources, strict=True):
      found += make_buckets(
        part.name,
        source,
        num_frames=part.num_frames,
        resolutions=part.resolutions,
        batch_size=lambda shape, part=part: self.run.batch_size_of(
          stage, part, ClipShape(shape[0], shape[1:]), shards
        ),
        share=part.weight,
      )
    tokenize = self.run.text.encoder.encode
    return Mixture(found, seed=seed, tokenize=tokenize, fields=self._fields(stage))

  def _fields(self, stage: StageConfig) -> tuple[str, ...]:
    """Returns what a stage's batches have beside the clips and their texts."""
    return self.run.family.batch_fields if stage.kind == "generator" else ()

  def held_out(self, stage: StageConfig, source) -> list[dict[str, np.ndarray]]:
    """Returns this process's part of the batches that a stage is evaluated on.

    They are of one shape, and the same ones each time. Where the source has fewer clips than the
    config asks for, there are as many batches as show each of its clips.

    Args:
      stage: which.
      source: clips of `stage.data` that are not trained on.
    """
    loop = stage.loop
    if not loop.eval_every:
      return []
    # As many as go through the network at a time in training.
    size = loop.batch_size // loop.grad_accum_steps
    num_batches = min(loop.eval_batches, -(-len(source) // size))
    part, num_parts = process_shard(self.mesh)
    iterator = make_iterator(
      source,
      batch_size=size,
      seed=self.run.seed,
      tokenize=self.run.text.encoder.encode,
      fields=self._fields(stage),
      process_index=part,
      process_count=num_parts,
      num_threads=stage.data.num_threads,
      prefetch=stage.data.prefetch,
    )
    with contextlib.closing(iterator):
      batches = [next(iterator) for _ in range(num_batches)]
    return [{name: batch[name] for name in batch if name != "id"} for batch in batches]

  def tell_of(self, stage: StageConfig, mixture: Mixture) -> None:
    """Logs what a stage draws from its mixture, and which shapes of it are uneven."""
    _log_drawn(stage.name, mixture.drawn(0, stage.loop.num_steps))
    self.warn_of_uneven(stage, mixture)

  def warn_of_uneven(self, stage: StageConfig, mixture: Mixture) -> None:
    """Logs which shapes of a mixture have more or fewer tokens a batch than the stage asks for."""
    if not stage.mixture:
      return
    own = ClipShape(stage.data.num_frames, stage.data.resolution)
    budget = stage.loop.batch_size * self.run.num_tokens(stage, own)
    fixed = {shape for part in stage.mixture if part.batch_size for shape in part.shapes}
    for (frames, height, width), rows in mixture.shapes:
      shape = ClipShape(frames, (height, width))
      if shape in fixed:
        continue
      share = rows * self.run.num_tokens(stage, shape) / budget
      if abs(share - 1) > TOKENS_TOLERANCE:
        log.warning(
          "stage %s: a batch of %d clips of %dx%dx%d (frames x height x width) has %.2f times the "
          "tokens that batch_size=%d asks for, since its clips must divide over %d devices; with a "
          "larger batch_size, mesh.sequence or mesh.tensor it comes nearer",
          *(stage.name, rows, frames, height, width, share, stage.loop.batch_size),
          num_batch_shards(self.mesh),
        )


def _log_drawn(name: str, drawn: dict[str, dict[str, int]]) -> None:
  """Logs what share of a stage's batches each source and shape is."""
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


def media_batch(source, text_encoder: TextEncoder, mesh: Mesh) -> dict[str, np.ndarray]:
  """Returns the first clips of a source, to look at during training."""
  ways = num_batch_shards(mesh)
  num = -(-NUM_MEDIA_CLIPS // ways) * ways
  source = EncodedSource(source, text_encoder.encode)
  items = [source[i % len(source)] for i in range(num)]
  return {
    "video": np.stack([item["video"] for item in items]),
    "text": np.stack([item["text"] for item in items]),
  }
