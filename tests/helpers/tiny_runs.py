"""Configs and checkpoints of runs in this process, at a size that compiles fast."""

import jax.numpy as jnp

from configs import quickstart
from videoar_jax.experiment import parse
from videoar_jax.experiment.stages import Stages
from videoar_jax.parallel.mesh import make_mesh
from videoar_jax.train.checkpoint import Checkpointer
from videoar_jax.train.trainer import Trainer

NUM_CLIPS = 18  # More than four batches of four, and no multiple of a batch.


def make_config(**changes):
  """Returns the quickstart at a size that compiles fast, with a cache."""
  values = quickstart.get_config("size=tiny")
  settings = {
    "data.num_frames": 5,
    "data.resolution": (16, 16),
    "tokenizer.patch_size": 4,
    "tokenizer.base_channels": 4,
    "tokenizer.multipliers": (1, 1),
    "tokenizer.strides": ((2, 1),),
    "tokenizer.num_groups": 1,
    "tokenizer.refine_channels": 0,
    "tokenizer.num_bits": 4,
    "tokenizer.schedule": "1 4",
    "generator.num_layers": 1,
    "generator.d_model": 16,
    "generator.num_heads": 1,
    "generator.num_kv_heads": 1,
    "generator.head_dim": 16,
    "generator.mlp_dim": 16,
    "generator.patch_sizes": (1, 2),
    "stages": ("tokenizer", "cache", "generator"),
    "stage.cache": {
      "kind": "cache",
      "num_clips": NUM_CLIPS,
      "batch_size": 4,
      "clips_per_shard": 4,
    },
    "stage.generator.loop.num_steps": 4,
    "stage.generator.loop.batch_size": 4,
    "stage.generator.loop.save_every": 2,
    "stage.generator.loop.eval_every": 2,
    "stage.generator.loop.optimizer.kind": "adamw",
    **changes,
  }
  for name, value in settings.items():
    section, _, last = name.rpartition(".")
    node = values
    for part in filter(None, section.split(".")):
      node = node[part]
    node[last] = value
  return values


def make_mixed_config(**changes):
  """Returns two generator stages: images and clips of two lengths; then larger resolutions."""
  small = {
    "images": {"weight": 0.4, "num_frames": 1},
    "clips": {"weight": 0.6, "num_frames": (1, 5)},
  }
  loop = {"num_steps": 10, "batch_size": 4, "save_every": 4, "media_every": 100, "eval_every": 3}
  loop["optimizer"] = {"kind": "adamw"}
  settings = {
    "stages": ("tokenizer", "I", "II"),
    "tokenizer.schedule": "1 2 4",
    "generator.patch_sizes": (1,),
    "generator.has_place_embedding": False,
    "generator.context": "scales",
    "generator.prev_frame_input": "first_scale",
    "stage.I": {"kind": "generator", "mixture": small, "loop": loop},
    "stage.II": {
      "kind": "generator",
      "data": {"resolution": (24, 16), "num_frames": 1},
      "loop": loop | {"num_steps": 2, "batch_size": 2},
    },
  }
  return make_config(**settings | changes)


def open_stages(values, workdir):
  """Returns the stages of a run on its mesh."""
  settings = parse.finalize(values)
  return Stages(settings, workdir, make_mesh(settings.mesh))


def save_run(values, workdir):
  """Writes a run whose stages all seem finished, with random weights."""
  for i in range(len(parse.finalize(values).stages)):
    save_tokenizer(values, workdir, seed=i, index=i)
  parse.save_config(values, workdir / "config.json")


def save_tokenizer(values, workdir, seed, index=0):
  """Saves the first stage of a run, or another one, as finished, without training it."""
  stages = open_stages(values, workdir)
  stage = stages.run.stages[index]
  trainer = Trainer(stages.make_task(stage), stage.loop, stages.mesh, seed)
  checkpointer = Checkpointer(stages.checkpoints(stage))
  state = trainer.init() | {"step": jnp.int32(stage.loop.num_steps)}
  checkpointer.save(stage.loop.num_steps, state, {})
  checkpointer.close()


def damage_checkpoint(directory, step):
  """Truncates every file of a checkpoint to half its size."""
  for path in (directory / str(step)).rglob("*"):
    if path.is_file():
      path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
