"""VideoAR and NOVA side by side, on moving shapes at equal processor time.

  python -m videoar_jax.ablation --config=configs/families.py --workdir=runs/families --seeds=3

trains the generators of both quickstarts for half the time, the time and twice the time with
several seeds, on a tokenizer of each family, and writes `ablation.md`. `:quick=1` is a size too
small to learn anything, to try the command.
"""

from ml_collections import ConfigDict

from configs import nova_quickstart, quickstart
from configs.common import TOY_GENERATOR, parse_arg, shrink_tokenizer

# Steps of the stages `frames` and `generator` in a time of 1. By the rates of both
# quickstarts' stages, they take about equal time; the table says what they took.
_STEPS = {"videoar": (1400, 1200), "nova": (400, 260)}
_NAMES = {"videoar": "VideoAR", "nova": "NOVA"}
_TIMES = {"half": 0.5, "one": 1, "twice": 2}

VARIANTS = {
  f"{family}_{time}": f"{name}, {factor:g} of the time"
  for time, factor in _TIMES.items()
  for family, name in _NAMES.items()
}


def get_config(arg: str | None = None) -> ConfigDict:
  """Returns the config of one variant.

  Args:
    arg: `variant=`; `scale=` to train all generators for longer or shorter; `image_steps=` and
      `tokenizer_steps=` likewise for tokenizers; `quick=1`.
  Raises:
    ValueError: an argument is unknown, or there is no such variant.
  """
  args = parse_arg(
    arg, variant="videoar_one", scale=1.0, image_steps=900, tokenizer_steps=680, quick=False
  )
  if args.variant not in VARIANTS:
    raise ValueError(f"variant={args.variant!r} is unknown; there are {', '.join(VARIANTS)}")
  family, time = args.variant.rsplit("_", 1)
  config = _quickstart(family, args, _TIMES[time])
  # All variants of a family read the same clips, those of the longest training.
  longest = _quickstart(family, args, max(_TIMES.values()))
  for name in config.stages:
    if config.stage[name].kind == "cache":
      config.stage[name].num_clips = longest.stage[name].num_clips
  if args.quick:
    _shrink(config)
  return config


def _quickstart(family: str, args: ConfigDict, time: float) -> ConfigDict:
  """Returns the quickstart of a family, with the steps of a time."""
  frame_steps, generator_steps = (
    max(1, round(args.scale * time * steps)) for steps in _STEPS[family]
  )
  return {"videoar": quickstart, "nova": nova_quickstart}[family].get_config(
    f"image_steps={args.image_steps},tokenizer_steps={args.tokenizer_steps},"
    f"frame_steps={frame_steps},generator_steps={generator_steps}"
  )


def _shrink(config: ConfigDict) -> None:
  """Shrinks a config so that it compiles in seconds; it learns nothing."""
  shrink_tokenizer(config)
  if config.family == "nova":
    config.generator.update(
      patch_size=1,
      video_patch_size=1,
      d_model=16,
      num_heads=1,
      num_video_layers=1,
      num_image_layers=2,
      head_mlp_dim=16,
    )
    config.sampling.update(num_ar_steps=2, num_diffusion_steps=2)
  else:
    config.generator.update(TOY_GENERATOR)
  config.stages = ("tokenizer", "generator_latents", "generator")
  config.stage.generator_latents.num_clips = 8
  config.stage.generator.loop.num_steps = 2
  config.stage.generator.loop.optimizer.kind = "adamw"
