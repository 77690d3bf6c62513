"""InfinityStar on your own clips, from public weights.

Convert the weights once (docs/weights.md), then:

  python -m videoar_jax.main --workdir=runs/mine \\
    --config=configs/infinity_star_finetune.py:weights=weights/star_480p,data=FOLDER
  python -m videoar_jax.sample --workdir=runs/mine --prompt="..."

Losses, the random parts of a clip and the optimizer are those of the released models.
"""

from ml_collections import ConfigDict

from configs.common import parse_arg
from videoar_jax.experiment.model_folder import fine_tuning_config


def get_config(arg: str | None = None) -> ConfigDict:
  """Returns the config.

  Args:
    arg: `weights=` folder of a converted model; `data=` folder of clips with captions; `steps=`;
      `batch_size=`; `lora=` rank of low-rank adapters, which are trained alone, or 0 for all
      weights.
  Raises:
    ValueError: one of the folders is missing, or holds no model.
  """
  args = parse_arg(arg, weights="", data="", steps=1000, batch_size=8, lora=0)
  for name in ("weights", "data"):
    if not args[name]:
      raise ValueError(f"{name}= is missing; weights= and data= name folders")
  config = fine_tuning_config(args.weights)
  config.data.source, config.data.path = "folder", args.data
  config.generator.update(lora_rank=args.lora, dtype="bfloat16")
  # Captions have the duration before them, as prompts do, but nothing after them.
  config.sampling.prompt_suffix = ""
  config.mesh.data, config.mesh.fsdp = 1, -1
  config.report.update(num_clips=8, num_prompts=4, batch_size=1, dtype="bfloat16")
  config.report.mesh = "tensor:-1"
  stage = config.stage.generator
  if args.lora:
    # The converted weights have no adapters.
    stage.init.missing = "random"
  if config.data.num_frames > 1:
    stage.loss.parts = "released"
  # A constant rate without decay.
  stage.loop.update(num_steps=args.steps, batch_size=args.batch_size, ema_decay=0.0)
  stage.loop.update(save_every=200, media_every=1000, on_nan="skip")
  stage.loop.optimizer.update(learning_rate=4e-5, warmup_steps=0, final_fraction=1.0)
  stage.loop.optimizer.update(b1=0.9, b2=0.97, weight_decay=0.0, grad_clip_norm=5.0)
  return config
