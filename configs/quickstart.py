"""The whole system at a small size: tokenizer, then generator; about 7 minutes on two CPU cores.

  python -m videoar_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

Your own clips, a folder of videos and images:

  python -m videoar_jax.main --config=configs/quickstart.py:data=FOLDER --workdir=runs/mine
"""

from ml_collections import ConfigDict

from configs.common import (
  parse_arg,
  set_caches,
  set_small_generator,
  set_small_tokenizer,
  set_sprites,
  small_generator_loss,
  small_loop,
  small_stages,
)
from videoar_jax.experiment.defaults import default_config


def get_config(arg: str | None = None) -> ConfigDict:
  """Returns the config.

  Args:
    arg: `data=FOLDER` for your own clips; `version=1` for the smaller sprites of earlier numbers;
      `level=2` for two of them in a clip; `size=` of the generator; `image_steps=`,
      `tokenizer_steps=`, `frame_steps=` and `generator_steps=` to train for longer or shorter;
      `long_steps=600` for a last stage on clips of 33 frames, so that longer clips keep moving.
  """
  args = parse_arg(
    arg,
    data="sprites",
    version=2,
    level=1,
    size="tiny",
    image_steps=1000,
    tokenizer_steps=780,
    frame_steps=2800,
    generator_steps=2400,
    long_steps=0,
  )
  # A later stage of longer clips would need a cache of its own.
  is_cached = args.data == "sprites" and not args.long_steps
  kinds = small_stages(is_cached) | ({"long": "generator"} if args.long_steps else {})
  config = default_config(kinds)
  config.data.num_frames = 9
  config.data.resolution = (64, 64)
  if args.data == "sprites":
    set_sprites(config, args.version, args.level)
  else:
    config.data.source, config.data.path = "folder", args.data
    config.data.clips_per_file = 16
    config.text.tokenizer, config.text.length = "words", 48

  set_small_tokenizer(config, args.image_steps, args.tokenizer_steps)
  set_small_generator(config, args.size)
  config.generator.has_place_embedding = True
  config.sampling.guidance = "constant:3"
  config.sampling.temperature = 0.5
  config.report.num_prompts = 128
  if not arg:  # Over runs of three seeds; other arguments have other scores.
    config.report.expected_psnr, config.report.expected_all = (27.9, 28.3), (0.55, 0.67)

  config.stage.frames.data.num_frames = 1
  loops = {
    "frames": (args.frame_steps, 16, 1.5e-2),
    "generator": (args.generator_steps, 8, 1.5e-2),
  }
  if args.long_steps:
    loops["long"] = (args.long_steps, 8, 1e-2)
    # Within 9 frames no object reaches the border on a straight path; later frames are of objects
    # that leave and come back. The window is that of sampling: a clip may have any length.
    clips = {"weight": 1.0, "num_frames": 33, "batch_size": 3}
    config.stage.long.mixture = ConfigDict({"clips": clips})
    config.stage.long.loss.window = 2
  for name, loop in loops.items():
    stage = config.stage[name]
    stage.loop.update(small_loop(*loop, media_every=1000))
    stage.loss.update(small_generator_loss())
    # In so short a training flipped bits cost shapes, see docs/ablation.md.
    stage.loss.corruption.p_max = 0.0
  if is_cached:
    set_caches(config)
  return config
