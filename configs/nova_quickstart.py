"""NOVA at a small size: continuous tokenizer, then generator. Scores so far: docs/nova.md.

python -m videoar_jax.main --config=configs/nova_quickstart.py --workdir=runs/nova
"""

from ml_collections import ConfigDict

from configs.common import (
  generator_size,
  parse_arg,
  set_caches,
  set_small_tokenizer,
  set_sprites,
  small_loop,
  small_stages,
)
from videoar_jax.experiment.defaults import default_config


def get_config(arg: str | None = None) -> ConfigDict:
  """Returns the config.

  Args:
    arg: `version=1` for the smaller sprites; `level=2` for two of them in a clip; `size=` of the
      generator; `image_steps=`, `tokenizer_steps=`, `frame_steps=` and `generator_steps=` to train
      for longer or shorter.
  """
  args = parse_arg(
    arg,
    version=2,
    level=1,
    size="tiny",
    image_steps=900,
    tokenizer_steps=680,
    frame_steps=2400,
    generator_steps=1800,
  )
  config = default_config(small_stages(is_cached=True), family="nova")
  config.data.num_frames = 9
  config.data.resolution = (64, 64)
  set_sprites(config, args.version, args.level)
  set_small_tokenizer(config, args.image_steps, args.tokenizer_steps)
  config.generator.update(generator_size(args.size, "nova"))
  config.generator.update(
    position_base=10.0,
    time_base=3,
    has_motion=False,
    noise="flow",
    # Where an object is gets decided at high noise levels, of which few would be drawn.
    noise_shift=4.0,
    has_noise_skip=True,
    # None, as in the public configs: each frame has its own condition.
    mixer_rank=None,
    # Fewer than those of `tiny`: steps cost less than half, most of it the optimizer's.
    num_video_layers=2,
    num_image_layers=4,
    num_head_layers=2,
    head_mlp_dim=128,
    scan_layers=False,
  )
  config.sampling.update(num_ar_steps=8, num_diffusion_steps=16, guidance=3.0)
  config.report.num_prompts = 128

  config.stage.frames.data.num_frames = 1
  loops = {"frames": (args.frame_steps, 64), "generator": (args.generator_steps, 24)}
  for name, loop in loops.items():
    stage = config.stage[name]
    stage.loop.update(small_loop(*loop, 1e-2, media_every=10_000))
    # The paper's draws know at most 5 of a frame's 16 tokens, which sampling goes beyond. With
    # uniform ones, prompts are seldom needed: known tokens show most of what they say.
    stage.loss.min_unknown, stage.loss.unknown_deviation = 0.0, 0.4
    stage.loss.num_known_ranges = 2
  set_caches(config, num_epochs=6)
  return config
