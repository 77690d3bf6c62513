"""NOVA for images: 768, 1024 or 1536 wide, at 512 or 1024 pixels.

Convert the public autoencoder (docs/tokenizer.md), take a folder of Phi-2, and prepare images once
(`python -m videoar_jax.prepare --help`), then:

  python -m videoar_jax.main --workdir=runs/t2i \
    --config=configs/nova_t2i.py:data=IMAGES,vae=VAE,text=PHI_2

Network, noise, optimizer and what is frozen are those of the public code and the paper; the number
of steps at 512 pixels, which it does not report, is ours.
"""

from ml_collections import ConfigDict

from configs.common import generator_size, parse_arg
from videoar_jax.experiment.defaults import default_config

# What the public code does not train. Of single images, the temporal encoder sees no frame, and
# always the same time.
FROZEN = ("temporal.text.norm", "temporal.time", "temporal.time_norm", "temporal.patch")
RESOLUTIONS = (512, 1024)


def get_config(arg: str | None = None) -> ConfigDict:
  """Returns the config.

  Args:
    arg: `data=` folder or URL of prepared shards; `vae=` folder of a converted autoencoder; `text=`
      folder of Phi-2; `size=` of the generator; `resolution=` 512 or 1024 pixels; `steps=`.
  Raises:
    ValueError: one of the folders is missing, or there is no such resolution.
  """
  args = parse_arg(arg, data="", vae="", text="", size="d48w1024", resolution=1024, steps=30_000)
  if args.resolution not in RESOLUTIONS:
    raise ValueError(f"resolution={args.resolution} must be 512 or 1024")
  config = nova_config(args)
  config.data.num_frames = 1
  config.data.resolution = (args.resolution, args.resolution)
  config.generator.update(generator_size(args.size, "nova"), remat="full")
  config.generator.update(time_base=1, mixer_rank=None, has_motion=False, noise="flow")
  if args.resolution == 512:
    # As in the video model, which starts from this one.
    config.generator.update(head_mlp_dim=1280, num_head_layers=3, noise="ddpm")
  config.sampling.update(num_ar_steps=64, num_diffusion_steps=25, guidance=5.0)
  stage = config.stage.generator
  stage.loss.frozen = FROZEN
  stage.loop.update(num_steps=args.steps, batch_size=1024, ema_decay=0.98)
  return config


def nova_config(args: ConfigDict) -> ConfigDict:
  """Returns what the models for images and for videos have in common.

  Args:
    args: with the folders `data`, `vae` and `text`.
  Raises:
    ValueError: one of them is missing.
  """
  for name in ("data", "vae", "text"):
    if not args[name]:
      raise ValueError(f"{name}= is missing; data=, vae= and text= name folders")
  config = default_config({"generator": "generator"}, family="nova")
  config.frozen_tokenizer = args.vae
  config.data.source, config.data.path = "shards", args.data
  config.data.num_threads, config.data.p_short_caption = 16, 0.5
  config.text.update(tokenizer=args.text, length=256, dtype="bfloat16")
  config.mesh.data, config.mesh.fsdp = 1, -1
  # Made by one host of the pod, a clip at a time.
  config.report.update(num_clips=16, num_prompts=8, batch_size=1)
  config.report.mesh, config.report.dtype = "tensor:-1", "bfloat16"
  loop = config.stage.generator.loop
  loop.update(ema_every=100, save_every=500, media_every=5000, on_nan="skip")
  # A constant rate, and gradients that are never clipped.
  loop.optimizer.update(learning_rate=1e-4, warmup_steps=0, final_fraction=1.0)
  loop.optimizer.update(b1=0.9, b2=0.95, weight_decay=0.02, grad_clip_norm=1e9)
  return config
