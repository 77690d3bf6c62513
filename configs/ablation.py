"""What each part of the paper's recipe is worth, on moving shapes at a small size.

  python -m videoar_jax.ablation --config=configs/ablation.py --workdir=runs/ablation --seeds=3

trains every variant below with several seeds on one tokenizer and one cache of latents, and writes
`ablation.md`. `:quick=1` is a size at which nothing is learned, to try the command. A single
variant is a config like any other:

  python -m videoar_jax.main --config=configs/ablation.py:variant=rope --workdir=runs/rope
"""

from ml_collections import ConfigDict

from configs.common import generator_size, parse_arg

# As in the paper's tables: 4, each row with what those above it have; 5; and our own.
VARIANTS = {
  "baseline": "learned positions, constant corruption",
  "rope": "+ rotary positions",
  "time": "+ corruption that rises with time",
  "inheritance": "+ inheritance: the paper's",
  "frame_mask": "the paper's, with a random frame mask",
  "final": "the paper's, with context=full_frame",
}


def get_config(arg: str | None = None) -> ConfigDict:
  """Returns the config of one variant.

  Args:
    arg: `variant=`; `size=` of the generator; `image_steps=`, `tokenizer_steps=`,
      `generator_steps=` and `cache_clips=` to train for longer or shorter, on more or fewer clips;
      `quick=1`.
  Raises:
    ValueError: an argument is unknown, or there is no such variant.
  """
  args = parse_arg(
    arg,
    variant="inheritance",
    size="tiny",
    image_steps=550,
    tokenizer_steps=270,
    generator_steps=1000,
    cache_clips=4096,
    quick=False,
  )
  if args.variant not in VARIANTS:
    raise ValueError(f"variant={args.variant!r} is unknown; there are {', '.join(VARIANTS)}")
  config = ConfigDict({"seed": 0})
  config.text = ConfigDict({"length": 16, "tokenizer": "words"})
  config.data = ConfigDict(
    {"source": "sprites", "num_frames": 9, "frame_rate": 4.0, "resolution": (64, 64)}
  )
  config.tokenizer = ConfigDict(
    {
      "num_bits": 16,
      "patch_size": 4,
      "base_channels": 16,
      "multipliers": (3, 4, 4),
      "strides": ((2, 2), (2, 1)),
      "num_encoder_blocks": 1,
      "num_decoder_blocks": 1,
      "num_groups": 4,
      "schedule": "1 2 4 8",
    }
  )
  config.generator = generator_size(args.size)
  config.generator.remat = "none"
  config.generator.scan_layers = False
  config.sampling = ConfigDict({"guidance": "constant:2", "temperature": 0.7, "top_p": 1.0})
  config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})

  config.stages = ("images", "tokenizer", "cache", "generator")
  config.stage = ConfigDict()
  config.stage.images = _tokenizer(args.image_steps, batch_size=16, learning_rate=3e-2)
  config.stage.images.data = ConfigDict({"num_frames": 1})
  config.stage.tokenizer = _tokenizer(args.tokenizer_steps, batch_size=4, learning_rate=1e-2)
  config.stage.cache = ConfigDict({"kind": "cache", "num_clips": args.cache_clips})
  config.stage.generator = ConfigDict({"kind": "generator"})
  config.stage.generator.loop = _loop(args.generator_steps, batch_size=4, learning_rate=1.5e-2)
  config.stage.generator.loss = ConfigDict({"scale_weighting": "sqrt"})
  _vary(config, args.variant)
  if args.quick:
    _shrink(config)
  return config


def _vary(config: ConfigDict, variant: str) -> None:
  """Sets what a variant is about."""
  table_4 = ("baseline", "rope", "time", "inheritance")
  # Those that are not of table 4 start from its last row.
  row = table_4.index(variant) if variant in table_4 else len(table_4) - 1
  config.generator.positions = "rope" if row >= 1 else "learned"
  config.generator.context = "full_frame" if variant == "final" else "scales"
  loss = config.stage.generator.loss
  loss.corruption = ConfigDict({"p_min": 0.0, "p_max": 0.25})
  loss.corruption.delta = 0.01 if row >= 2 else 0.0
  loss.corruption.has_inheritance = row >= 3
  loss.p_frame_mask = 0.2 if variant == "frame_mask" else 0.0


def _shrink(config: ConfigDict) -> None:
  """Makes a config that compiles in seconds, and learns nothing."""
  config.data.resolution = (16, 16)
  config.tokenizer.schedule = "1 2"
  config.tokenizer.base_channels = 4
  config.tokenizer.multipliers = (1, 1)
  config.tokenizer.strides = ((2, 2),)
  config.tokenizer.num_groups = 1
  config.tokenizer.num_bits = 4
  sizes = {"num_layers": 1, "d_model": 16, "num_heads": 1, "num_kv_heads": 1, "head_dim": 16}
  config.generator.update(sizes | {"mlp_dim": 16})
  config.stages = ("tokenizer", "cache", "generator")
  config.stage.cache.update({"num_clips": 8, "batch_size": 4})
  for name, num_steps in (("tokenizer", 1), ("generator", 4)):
    config.stage[name].loop.num_steps = num_steps
    config.stage[name].loop.optimizer.kind = "adamw"


def _tokenizer(num_steps: int, **settings) -> ConfigDict:
  loss = {"l2": 1.0, "l1": 0.0, "commitment": 0.02, "quantization_error": 0.05, "entropy": 0.0}
  stage = ConfigDict({"kind": "tokenizer", "loss": loss | {"scale_dropout": 0.4}})
  stage.loop = _loop(num_steps, **settings)
  return stage


def _loop(num_steps: int, *, batch_size: int, learning_rate: float) -> ConfigDict:
  return ConfigDict(
    {
      "num_steps": num_steps,
      "batch_size": batch_size,
      "ema_decay": 0.99,
      "save_every": 200,
      "media_every": 1000,
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
