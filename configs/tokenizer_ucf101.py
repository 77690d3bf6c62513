"""The paper's tokenizer on UCF-101: 17 frames of 128x128, stride 16 in space and 4 in time.

Convert the public image tokenizer (docs/tokenizer.md) and LPIPS (docs/evaluation.md) once, then:

  python -m videoar_jax.main --workdir=runs/tokenizer \
    --config=configs/tokenizer_ucf101.py:data=FOLDER,init=weights/infinity_d32

FOLDER has the videos, with one folder per class. Two CPU cores can try everything at a small size,
in minutes:

  python -m videoar_jax.main --config=configs/tokenizer_ucf101.py:variant=quick --workdir=runs/quick

Without LPIPS weights, add lpips=0 to either. The paper trains for 2000 epochs with batches of 128,
to rFVD 61. It does not report the weights of its losses or the frame rate, and our split is not
the official one, so the numbers are not comparable.
"""

from ml_collections import ConfigDict

from configs.common import parse_arg, small_tokenizer
from videoar_jax.experiment.defaults import default_config, mixture_part

# 2000 epochs of the 9537 training videos of the first split, plus steps on images by their share
# below.
NUM_STEPS = round(2000 * 9537 / 128 / 0.8)


def get_config(arg: str | None = None) -> ConfigDict:
  """Returns the config.

  Args:
    arg: `data=` a folder, or sprites, the default of quick; `variant=` full, or quick for small
      machines; `init=` a converted image tokenizer; `steps=`, 0 for the variant's default;
      `lpips=`, `adversarial=` and `entropy=` the weights of these losses.
  Raises:
    ValueError: the variant is unknown, or the full one has no data.
  """
  args = parse_arg(
    arg,
    data="",
    variant="full",
    init="",
    steps=0,
    lpips=1.0,
    adversarial=0.1,
    entropy=0.01,
  )
  if args.variant not in ("full", "quick"):
    raise ValueError(f"variant={args.variant!r} is unknown; variants are full, quick")
  is_quick = args.variant == "quick"
  if not args.data and not is_quick:
    raise ValueError("data= is missing; name the folder of videos, or sprites, or variant=quick")
  config = default_config({"tokenizer": "tokenizer"})
  if args.data not in ("", "sprites"):
    config.data.source, config.data.path = "folder", args.data
  config.data.num_frames = 9 if is_quick else 17
  config.data.resolution = (64, 64) if is_quick else (128, 128)
  config.text.length = 72
  config.tokenizer.schedule = "1 2 3 4 6 8"
  if is_quick:
    config.tokenizer.update(small_tokenizer() | {"num_bits": 24, "schedule": "1 2 3 4 6 8"})
  config.mesh.data, config.mesh.fsdp = 1, -1

  stage = config.stage.tokenizer
  if args.init:
    stage.init["from"] = args.init
  # One step in five is on single frames, so that images stay as good as video.
  stage.mixture.clips = mixture_part(weight=0.8)
  stage.mixture.images = mixture_part(weight=0.2, num_frames=1, batch_size=16 if is_quick else 512)
  stage.loss.lpips = args.lpips
  stage.loss.lpips_frames = 4  # VGG16 costs more than everything else.
  stage.loss.entropy = args.entropy
  adversarial = stage.loss.adversarial
  adversarial.weight = args.adversarial
  adversarial.is_adaptive = True
  adversarial.start_step = 10_000
  stage.loop.num_steps = args.steps or (500 if is_quick else NUM_STEPS)
  stage.loop.batch_size = 128
  stage.loop.ema_decay = 0.9999
  stage.loop.save_every = stage.loop.media_every = 2000
  stage.loop.optimizer.warmup_steps = 5000
  stage.loop.optimizer.weight_decay = 1e-4
  if is_quick:
    _shrink(stage)
  return config


def _shrink(stage: ConfigDict) -> None:
  """Shrinks the stage to a small network that trains in minutes."""
  # Small networks that train from scratch learn no objects with the L1 loss.
  stage.loss.l1, stage.loss.l2 = 0.0, 1.0
  stage.loss.lpips_frames = 1
  stage.loss.commitment = 0.02
  stage.loss.quantization_error = 0.05
  adversarial = stage.loss.adversarial
  adversarial.start_step = 100
  adversarial.discriminator.update(
    {"base_channels": 8, "multipliers": (2, 4), "strides": ((2, 2), (2, 2)), "patch_size": 4}
  )
  adversarial.optimizer.learning_rate = 1e-3
  stage.loop.update({"batch_size": 4, "ema_decay": 0.99, "save_every": 100, "media_every": 250})
  stage.loop.optimizer.update({"kind": "muon", "learning_rate": 1e-2, "warmup_steps": 50})
