"""What is checked before anything is trained or written; each error names the field and the fix."""

import functools
import json
import math
import pathlib

from videoar_jax.experiment.checkpoints import StageCheckpoints
from videoar_jax.experiment.token_cache import Cache, check_fits
from videoar_jax.interop import weights
from videoar_jax.parallel.mesh import num_batch_shards, process_shard
from videoar_jax.parallel.rules import LOGICAL_AXIS_RULES
from videoar_jax.text.tokenizers import TextEncoder


def check_mixtures(stages: StageCheckpoints) -> None:
  """Checks that a mesh that was changed leaves the batches of a stage that has begun as they were.

  Raises:
    ValueError: it does not: its order of clips could not go on.
  """
  path = stages.workdir / "run.json"
  if not path.exists():
    return
  facts = json.loads(path.read_text())
  for stage in stages.run.stages:
    # Runs that began when all stages had one mesh say just that.
    mesh = facts["meshes"][stage.name] if "meshes" in facts else facts["mesh"]
    before = math.prod(mesh[axis] for axis in LOGICAL_AXIS_RULES["batch"])
    now = num_batch_shards(stages.on_mesh_of(stage).mesh)
    size_of = functools.partial(stages.run.batch_size_of, stage)
    num = stage.loop.grad_accum_steps
    if (
      any(
        size_of(part, shape, before * num) != size_of(part, shape, now * num)
        for part in stage.mixture
        for shape in part.shapes
      )
      and 0 < stages.latest_step(stage) < stage.loop.num_steps
    ):
      raise ValueError(
        f"stage.{stage.name}.mixture began with mesh.slice x mesh.data x mesh.fsdp = {before}, and "
        f"its batches would be others with {now}; keep the product until the stage ends"
      )


def check_batches(stages: StageCheckpoints) -> None:
  """Checks that batches and networks divide over the meshes of their stages.

  Raises:
    ValueError: one does not; names the field.
  """
  run = stages.run
  for stage in run.stages:
    mesh = stages.on_mesh_of(stage).mesh
    ways = num_batch_shards(mesh)
    process_shard(mesh)  # Raises where processes would share some samples and not others.
    if stage.kind == "generator":
      run.family.check_mesh(run, mesh)
    sizes, parts = {"loop": stage.loop.batch_size}, stage.loop.grad_accum_steps
    sizes |= {f"mixture.{part.name}": part.batch_size for part in stage.mixture if part.batch_size}
    for section in (name for name, size in sizes.items() if size % (ways * parts)):
      in_parts = f" in {parts} grad_accum_steps" if parts > 1 else ""
      raise ValueError(
        f"stage.{stage.name}.{section}.batch_size={sizes[section]} does not divide over the "
        f"{ways} devices of mesh.slice x mesh.data x mesh.fsdp{in_parts}; take a multiple of "
        f"{ways * parts}, or make another axis of the mesh larger"
      )
  ways = num_batch_shards(stages.mesh)
  for cache in run.caches:
    if cache.config.batch_size % ways:
      raise ValueError(
        f"stage.{cache.name}.batch_size={cache.config.batch_size} does not divide over the {ways} "
        f"devices of mesh.slice x mesh.data x mesh.fsdp; take a multiple of {ways}, or "
        "make another axis of the mesh larger"
      )


def check_captions(source, encoder: TextEncoder) -> None:
  """Raises ValueError if a caption of a source is not one of the text encoder's."""
  for caption in source.longest_captions():
    encoder.encode(caption)


def check_cache(stages: StageCheckpoints, cache: Cache, source) -> None:
  """Checks that a cache that was made before is of this config.

  Raises:
    ValueError: it is not; names the fields.
  """
  # The tokenizer is perhaps not trained yet.
  index = cache.index(stages.run.tokenizer, "", source)
  check_fits(cache.folder(stages.workdir), index, but=("fingerprint",))


def check_init(stages: StageCheckpoints) -> None:
  """Checks that the weights that stages are to start from are there and fit.

  Raises:
    ValueError: they are not, or do not; names the field.
  """
  for stage in stages.run.stages:
    path = stage.init.from_
    if path is None or stages.latest_step(stage) > 0:
      continue
    try:
      if stages.is_inflated(stage):
        stages.run.tokenizer_family.check_init(pathlib.Path(path), stages.run.tokenizer)
      else:
        weights.check_file(path, stages.shapes(stage))
    except (ValueError, OSError) as error:
      raise ValueError(f"stage.{stage.name}.init.from={path}: {error}") from error


def check_frozen(stages: StageCheckpoints) -> None:
  """Checks that the weights that losses need are there, before anything is trained.

  Raises:
    ValueError: they are not; names the field and the command that makes them.
  """
  for stage in stages.run.stages:
    if stage.kind == "tokenizer" and not stages.is_finished(stage):
      try:
        stages.run.tokenizer_family.load_frozen(stage.loss)
      except ValueError as error:
        raise ValueError(f"stage.{stage.name}.{error}") from None
