"""The whole system, small: tokenizer, then generator, in 9.5 to 13 minutes on two CPU cores.

  python -m videoar_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

Your own clips, a folder of mp4, webm or mov files:

  python -m videoar_jax.main --config=configs/quickstart.py:data=FOLDER --workdir=runs/mine
"""

from ml_collections import ConfigDict, config_dict

from configs.common import generator_size, parse_arg


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
  config = ConfigDict()
  config.seed = 0

  config.data = ConfigDict()
  config.data.source = "sprites" if args.data == "sprites" else "folder"
  config.data.path = config_dict.placeholder(str)
  if args.data != "sprites":
    config.data.path = args.data
    config.data.clips_per_file = 16
  config.data.num_frames = 9
  # At half their rate, sprites cross a good part of the picture within a clip.
  config.data.frame_rate = 4.0 if args.data == "sprites" else 8.0
  config.data.resolution = (64, 64)

  # The sprites' captions have up to 12 words.
  length = 16 if args.data == "sprites" else 48
  config.text = ConfigDict({"length": length, "tokenizer": "words"})

  config.tokenizer = ConfigDict()
  config.tokenizer.num_bits = 16
  config.tokenizer.patch_size = 4
  config.tokenizer.base_channels = 16
  config.tokenizer.multipliers = (3, 4, 4)
  config.tokenizer.strides = ((2, 2), (2, 1))
  config.tokenizer.num_encoder_blocks = 1
  config.tokenizer.num_decoder_blocks = 1
  config.tokenizer.num_groups = 4
  config.tokenizer.schedule = "1 2 4 8"

  config.generator = generator_size(args.size)
  config.generator.remat = "none"
  config.generator.scan_layers = False
  # A small grid and a short training: every axis gets high frequencies, a way across the picture is
  # as long at every scale, what the frame before showed stands beside every input, and all earlier
  # frames are seen in full.
  config.generator.rope_is_interleaved = True
  config.generator.rope_base = 1000.0
  config.generator.rope_grid = "latent"
  config.generator.prev_frame_input = "all_scales"
  config.generator.context = "full_frame"

  config.sampling = ConfigDict({"guidance": "constant:3", "temperature": 0.7, "top_p": 1.0})
  config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})
  config.report = ConfigDict({"num_clips": 64, "num_prompts": 128})

  # Single frames first: a step on many different pictures costs less than one on few clips.
  config.stages = ("images", "tokenizer", "generator")
  config.stage = ConfigDict()
  config.stage.images = ConfigDict({"kind": "tokenizer", "data": {"num_frames": 1}})
  config.stage.images.loss = _tokenizer_loss()
  config.stage.images.loop = _loop(args.image_steps, batch_size=16, learning_rate=3e-2)
  config.stage.tokenizer = ConfigDict({"kind": "tokenizer", "loss": _tokenizer_loss()})
  config.stage.tokenizer.loop = _loop(args.tokenizer_steps, batch_size=4, learning_rate=1e-2)
  config.stage.generator = ConfigDict({"kind": "generator"})
  config.stage.generator.loop = _loop(args.generator_steps, batch_size=4, learning_rate=1.5e-2)
  # Coarse scales, of few tokens, decide what moves where.
  config.stage.generator.loss = ConfigDict({"scale_weighting": "sqrt"})
  config.stage.generator.loss.corruption = ConfigDict(
    {"p_min": 0.0, "p_max": 0.1, "delta": 0.01, "has_inheritance": True}
  )
  return config


def _tokenizer_loss() -> ConfigDict:
  return ConfigDict(
    {
      "l2": 1.0,
      "l1": 0.0,
      "commitment": 0.02,
      "quantization_error": 0.05,
      "entropy": 0.0,
      "scale_dropout": 0.4,
    }
  )


def _loop(num_steps: int, *, batch_size: int, learning_rate: float) -> ConfigDict:
  return ConfigDict(
    {
      "num_steps": num_steps,
      "batch_size": batch_size,
      "ema_decay": 0.99,
      "save_every": 200,
      "media_every": 300,
      "optimizer": {
        "kind": "muon",
        "learning_rate": learning_rate,
        "muon_steps": 4,
        "warmup_steps": 50,
        "weight_decay": 1e-4,
        "final_fraction": 0.02,
      },
    }
  )
