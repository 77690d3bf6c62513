"""NOVA for videos: 33 frames of 480x768 at 12 a second, started from the model for images.

Convert the public autoencoders (docs/tokenizer.md), take a folder of Phi-2, and prepare images and
videos once (`python -m videoar_jax.prepare --help`). Train images, write their weights, and train
videos:

  python -m videoar_jax.main --workdir=runs/t2i \
    --config=configs/nova_t2i.py:resolution=512,data=IMAGES,vae=IMAGE_VAE,text=PHI_2
  python -m videoar_jax.convert weights --workdir=runs/t2i --stage=generator --out=t2i.safetensors
  python -m videoar_jax.main --workdir=runs/t2v \
    --config=configs/nova_t2v.py:init=t2i.safetensors,data=VIDEOS,vae=VIDEO_VAE,text=PHI_2

Without `init=`, it is trained from scratch. Clips whose shards say how much moves (`flow`, see
docs/data.md) are trained with that; others count as moving 5 pixels a frame.
"""

from ml_collections import ConfigDict

from configs.common import generator_size, parse_arg
from configs.nova_t2i import nova_config

# As in the public code, in which motion tokens keep their random weights.
FROZEN = ("temporal.text.norm", "temporal.motion")


def get_config(arg: str | None = None) -> ConfigDict:
  """Returns the config.

  Args:
    arg: `data=` folder or URL of prepared shards; `vae=` folder of a converted autoencoder; `text=`
      folder of Phi-2; `init=` weights of a model for images; `steps=`.
  Raises:
    ValueError: one of the folders is missing.
  """
  args = parse_arg(arg, data="", vae="", text="", init="", steps=60_000)
  config = nova_config(args)
  config.data.num_frames, config.data.frame_rate = 33, 12.0
  config.data.resolution = (480, 768)
  config.generator.update(generator_size("d48w1024-t2v", "nova"), remat="full")
  config.generator.update(time_base=16, mixer_rank=24, has_motion=True, noise="ddpm")
  config.sampling.update(num_ar_steps=128, num_diffusion_steps=25, guidance=7.0)
  stage = config.stage.generator
  stage.loss.frozen = FROZEN
  stage.loop.update(num_steps=args.steps, batch_size=384, ema_decay=0.97)
  if args.init:
    # Images have neither motion tokens nor a mixer.
    stage.init.update({"from": args.init, "missing": "random"})
  return config
