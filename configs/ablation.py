"""Ablation of the paper's recipe, on moving shapes at a small size.

  python -m videoar_jax.ablation --config=configs/ablation.py --workdir=runs/ablation --seeds=3

trains every variant below with several seeds on one tokenizer and one cache of latents, and writes
`ablation.md`. `:quick=1` is a size too small to learn anything, to try the command. A single
variant is a config like any other:

  python -m videoar_jax.main --config=configs/ablation.py:variant=rope --workdir=runs/rope
"""

from ml_collections import ConfigDict

from configs.common import (
  TOY_GENERATOR,
  parse_arg,
  set_small_generator,
  set_small_tokenizer,
  set_sprites,
  shrink_tokenizer,
  small_generator_loss,
  small_loop,
)
from videoar_jax.experiment.defaults import default_config

# The paper's table 4, where each row adds to the one above; its table 5; and our own.
VARIANTS = {
  "baseline": "learned positions, constant corruption",
  "rope": "+ rotary positions",
  "time": "+ corruption that rises with time",
  "inheritance": "+ inheritance: the paper's",
  "frame_mask": "the paper's, with a random frame mask",
  "full_frame": "the paper's, with context=full_frame",
  "clean": "the paper's, without flipped bits",
  "contiguous": "the paper's, with contiguous rotary sections",
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
    image_steps=900,
    tokenizer_steps=680,
    generator_steps=2500,
    cache_clips=8192,
    quick=False,
  )
  if args.variant not in VARIANTS:
    raise ValueError(f"variant={args.variant!r} is unknown; there are {', '.join(VARIANTS)}")
  config = default_config(
    {"images": "tokenizer", "tokenizer": "tokenizer", "cache": "cache", "generator": "generator"}
  )
  config.data.num_frames = 9
  set_sprites(config, version=2, level=1)
  set_small_tokenizer(config, args.image_steps, args.tokenizer_steps)
  set_small_generator(config, args.size)
  config.sampling.guidance = "constant:3"
  config.sampling.temperature = 0.5
  config.stage.cache.num_clips = args.cache_clips
  generator = config.stage.generator
  generator.loop.update(small_loop(args.generator_steps, 8, 1.5e-2, media_every=1000))
  generator.loss.update(small_generator_loss())
  generator.loss.corruption.p_max = 0.1
  _vary(config, args.variant)
  if args.quick:
    _shrink(config)
  return config


def _vary(config: ConfigDict, variant: str) -> None:
  """Sets the fields of a variant."""
  table_4 = ("baseline", "rope", "time", "inheritance")
  # Variants outside table 4 start from its last row.
  row = table_4.index(variant) if variant in table_4 else len(table_4) - 1
  config.generator.positions = "rope" if row >= 1 else "learned"
  config.generator.context = "full_frame" if variant == "full_frame" else "scales"
  loss = config.stage.generator.loss
  loss.corruption.delta = 0.01 if row >= 2 else 0.0
  loss.corruption.has_inheritance = row >= 3
  loss.p_frame_mask = 0.2 if variant == "frame_mask" else 0.0
  if variant == "clean":
    loss.corruption.p_max = 0.0
  if variant == "contiguous":
    config.generator.rope_is_interleaved = False


def _shrink(config: ConfigDict) -> None:
  """Shrinks a config so that it compiles in seconds; it learns nothing."""
  shrink_tokenizer(config)
  config.generator.update(TOY_GENERATOR)
  config.stages = ("tokenizer", "cache", "generator")
  config.stage.cache.update({"num_clips": 8, "batch_size": 4})
  config.stage.generator.loop.num_steps = 4
  config.stage.generator.loop.optimizer.kind = "adamw"
