"""Checks before anything is trained or written; each error names the field and the fix."""

import functools
import hashlib
import json
import math
import pathlib
from typing import Any

import numpy as np

from videoar_jax.data.sources.base import ClipSource
from videoar_jax.experiment import model_folder
from videoar_jax.experiment.checkpoints import StageCheckpoints, init_path
from videoar_jax.experiment.token_cache import Cache, check_fits
from videoar_jax.interop import hub, weights
from videoar_jax.parallel import processes
from videoar_jax.parallel.mesh import num_batch_shards, process_shard
from videoar_jax.parallel.rules import LOGICAL_AXIS_RULES
from videoar_jax.text.pretrained import PretrainedText


def check_mixtures(stages: StageCheckpoints) -> None:
  """Checks that a new mesh does not change the batches of a stage that has begun.

  Raises:
    ValueError: it does, so the stage's order of clips could not be resumed.
  """
  path = stages.workdir / "run.json"
  if not path.exists():
    return
  facts = json.loads(path.read_text())
  for stage in stages.run.stages:
    # Runs from before stages had their own meshes recorded a single one.
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
        f"its batches would differ with {now}; keep the product until the stage ends"
      )


def check_batches(stages: StageCheckpoints) -> None:
  """Checks that the stages' meshes divide their batches and networks.

  Raises:
    ValueError: one does not; names the field.
  """
  run = stages.run
  for stage in run.stages:
    mesh = stages.on_mesh_of(stage).mesh
    shards = num_batch_shards(mesh)
    process_shard(mesh)  # Raises if processes would share only some of their samples.
    if stage.kind == "generator":
      run.family.check_mesh(run, mesh)
    sizes, parts = {"loop": stage.loop.batch_size}, stage.loop.grad_accum_steps
    sizes |= {f"mixture.{part.name}": part.batch_size for part in stage.mixture if part.batch_size}
    for section in (name for name, size in sizes.items() if size % (shards * parts)):
      in_parts = f" in {parts} grad_accum_steps" if parts > 1 else ""
      raise ValueError(
        f"stage.{stage.name}.{section}.batch_size={sizes[section]} does not divide over the "
        f"{shards} devices of mesh.slice x mesh.data x mesh.fsdp{in_parts}; take a multiple of "
        f"{shards * parts}, or make another axis of the mesh larger"
      )
  shards = num_batch_shards(stages.mesh)
  for cache in run.caches:
    if cache.config.batch_size % shards:
      raise ValueError(
        f"stage.{cache.name}.batch_size={cache.config.batch_size} does not divide over the "
        f"{shards} devices of mesh.slice x mesh.data x mesh.fsdp; take a multiple of {shards}, or "
        "make another axis of the mesh larger"
      )


def check_report(stages: StageCheckpoints) -> None:
  """Checks that the devices of the first process suit the report, which is made at the end.

  Raises:
    ValueError: they do not; names the field.
  """
  run = stages.run
  if not run.report.num_clips or not processes.is_first():
    return
  mesh = run.report.devices()
  if mesh is not None and run.generator_stages:
    try:
      run.family.check_mesh(run, mesh)
    except ValueError as error:
      raise ValueError(f"report.mesh={run.report.mesh}: {error}") from None


def check_captions(source, encoder: Any) -> None:
  """Finds captions of a source that have to be cut, or cannot be encoded, before it is read.

  Args:
    source: from `make_source`.
    encoder: of its captions, with `encode`; or what completes them before it, see `captions`.
  Raises:
    ValueError: too many cannot be encoded, or a caption of sprites does not fit.
  """
  # Some models complete prompts before their encoder gets them.
  if isinstance(getattr(encoder, "text_encoder", encoder), PretrainedText):
    return  # It encodes any caption, and cuts those that are too long.
  if isinstance(source, ClipSource):
    source.check_captions(encoder.encode)
    return
  for caption in source.known_captions():
    encoder.encode(caption)


def check_null_text(encoder: Any) -> None:
  """Checks that all processes compute the same features of "", a constant of their programs.

  Raises:
    ValueError: they do not.
  """
  if not isinstance(encoder, PretrainedText):
    return
  null = encoder.null()
  if not processes.all_true(np.array_equal(null, processes.broadcast(null))):
    raise ValueError(
      'text.tokenizer: processes have other features of "", as of other devices; remove '
      "~/.cache/videoar_jax/text on each of their machines"
    )


def check_cache(stages: StageCheckpoints, cache: Cache, source) -> None:
  """Checks that an existing cache was made with this config.

  Raises:
    ValueError: it was not; names the fields.
  """
  # The tokenizer may not be trained yet.
  run = stages.run
  index = cache.index(run.tokenizer, "", source, run.tokenizer_dtype)
  network = run.tokenizer_family.network
  check_fits(cache.folder(stages.workdir), index, network, but=("fingerprint",))


def check_init(stages: StageCheckpoints) -> None:
  """Checks that the initial weights of stages exist and fit.

  Raises:
    ValueError: they do not; names the field.
  """
  for stage in stages.run.stages:
    if stage.init.from_ is None or stages.latest_step(stage) > 0:
      continue
    path = init_path(stage)
    try:
      if stages.is_inflated(stage):
        stages.run.tokenizer_family.check_init(pathlib.Path(path), stages.run.tokenizer)
      else:
        may_lack = stage.init.missing == "random"
        path = model_folder.weights_of(path)
        weights.check_file(path, stages.shapes(stage), may_lack=may_lack)
    except (ValueError, OSError) as error:
      raise ValueError(f"stage.{stage.name}.init.from={path}: {error}") from error


def check_commits() -> None:
  """Checks that all processes took the same commits of what is on the hub.

  Raises:
    ValueError: they did not.
  """
  text = json.dumps(hub.commits(), sort_keys=True)
  own = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
  if not processes.all_true(np.array_equal(own, processes.broadcast(own))):
    raise ValueError(
      f"processes took other commits of {', '.join(hub.commits())}; start again, or name one as "
      "@REVISION"
    )


def check_frozen(stages: StageCheckpoints) -> None:
  """Checks that the weights of the losses' frozen networks exist, before anything is trained.

  Raises:
    ValueError: they do not; names the field and the command that makes them.
  """
  for stage in stages.run.stages:
    if stage.kind == "tokenizer" and not stages.is_finished(stage):
      try:
        stages.run.tokenizer_family.load_frozen(stage.loss)
      except ValueError as error:
        raise ValueError(f"stage.{stage.name}.{error}") from None
