"""The whole system at a small size: tokenizer, then generator; 9.5 to 13 minutes on two CPU cores.

  python -m videoar_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

Your own clips, a folder of mp4, webm, mov, mkv or avi files:

  python -m videoar_jax.main --config=configs/quickstart.py:data=FOLDER --workdir=runs/mine
"""

from ml_collections import ConfigDict

from configs.common import (
  generator_size,
  parse_arg,
  small_loop,
  small_tokenizer,
  small_tokenizer_loss,
)
from videoar_jax.experiment.defaults import default_config


def get_config(arg: str | None = None) -> ConfigDict:
  """Returns the config.

  Args:
    arg: `data=FOLDER` for your own clips; `size=` of the generator; `image_steps=`,
      `tokenizer_steps=` and `generator_steps=` to train for longer or shorter.
  """
  args = parse_arg(
    arg,
    data="sprites",
    size="tiny",
    image_steps=550,
    tokenizer_steps=220,
    generator_steps=2100,
  )
  # Single frames first: a step on many different images costs less than one on few clips.
  config = default_config(
    {"images": "tokenizer", "tokenizer": "tokenizer", "generator": "generator"}
  )
  config.data.num_frames = 9
  config.data.resolution = (64, 64)
  config.text.tokenizer = "words"
  if args.data == "sprites":
    # At half their frame rate, sprites cross much of the frame within a clip.
    config.data.frame_rate = 4.0
    config.text.length = 16  # Their captions have up to 12 words.
  else:
    config.data.source, config.data.path = "folder", args.data
    config.data.clips_per_file = 16
    config.text.length = 48

  config.tokenizer.update(small_tokenizer("1 2 4 8"))
  config.generator.update(generator_size(args.size))
  config.generator.remat = "none"
  config.generator.scan_layers = False
  # For a small grid and short training: rotary frequencies of the whole range for every axis,
  # distances that are the same at every scale, the previous frame in every input, and complete
  # earlier frames as context.
  config.generator.rope_is_interleaved = True
  config.generator.rope_base = 1000.0
  config.generator.rope_grid = "latent"
  config.generator.prev_frame_input = "all_scales"
  config.generator.context = "full_frame"
  config.sampling.guidance = "constant:3"
  config.sampling.temperature = 0.7
  config.report.num_prompts = 128

  config.stage.images.data.num_frames = 1
  loops = {
    "images": (args.image_steps, 16, 3e-2),
    "tokenizer": (args.tokenizer_steps, 4, 1e-2),
    "generator": (args.generator_steps, 4, 1.5e-2),
  }
  for name, loop in loops.items():
    config.stage[name].loop.update(small_loop(*loop, media_every=300))
    if name != "generator":
      config.stage[name].loss.update(small_tokenizer_loss())
  # Coarse scales have few tokens but decide what moves where.
  config.stage.generator.loss.scale_weighting = "sqrt"
  config.stage.generator.loss.corruption.p_max = 0.1
  return config
