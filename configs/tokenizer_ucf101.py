"""The paper's tokenizer on UCF-101: 17 frames of 128x128, stride 16 in space and 4 in time.

Convert the public image tokenizer (docs/tokenizer.md) and LPIPS (docs/evaluation.md) once, then:

  python -m videoar_jax.main --workdir=runs/tokenizer \
    --config=configs/tokenizer_ucf101.py:data=FOLDER,init=weights/infinity_d32

FOLDER has the videos, in one folder a class. Two CPU cores can try it all at a small size, in
minutes:

  python -m videoar_jax.main --config=configs/tokenizer_ucf101.py:variant=quick --workdir=runs/quick

Without the weights of LPIPS, add lpips=0 to either. The paper trains for 2000 epochs of
batches of 128, to rFVD 61; the weights of its losses it does not say, nor its frame rate, and our
split is not the official one: the numbers do not compare.
"""

from ml_collections import ConfigDict, config_dict

from configs.common import parse_arg

# 2000 epochs of the 9537 training videos of the first split, and as many steps on images as the
# share below says.
NUM_STEPS = round(2000 * 9537 / 128 / 0.8)


def get_config(arg: str | None = None) -> ConfigDict:
  """Returns the config.

  Args:
    arg: `data=` a folder, or sprites, which only quick takes by itself; `variant=` full, or quick
      for small machines; `init=` a converted image tokenizer; `steps=`, 0 for the variant's own
      number; `lpips=`, `adversarial=` and `entropy=` the weights of these losses.
  Raises:
    ValueError: the variant is unknown, or the full one is not told its data.
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
  data = args.data or "sprites"
  config = ConfigDict()
  config.seed = 0

  config.data = ConfigDict()
  config.data.source = "sprites" if data == "sprites" else "folder"
  config.data.path = config_dict.placeholder(str)
  if data != "sprites":
    config.data.path = data
    config.data.clips_per_file = 1
  config.data.num_frames = 9 if is_quick else 17
  config.data.frame_rate = 8.0
  config.data.resolution = (64, 64) if is_quick else (128, 128)

  config.text = ConfigDict({"length": 72})
  config.tokenizer = ConfigDict({"num_bits": 16 if is_quick else 48})
  if is_quick:
    config.tokenizer.patch_size = 4
    config.tokenizer.base_channels = 16
    config.tokenizer.multipliers = (3, 4, 4)
    config.tokenizer.strides = ((2, 2), (2, 1))
    config.tokenizer.num_encoder_blocks = 1
    config.tokenizer.num_decoder_blocks = 1
    config.tokenizer.num_groups = 4
  config.tokenizer.schedule = "1 2 3 4 6 8"
  config.mesh = ConfigDict({"data": 1, "fsdp": -1, "tensor": 1})
  config.report = ConfigDict({"num_clips": 64})

  discriminator = ConfigDict()
  discriminator.base_channels = 8 if is_quick else 64
  discriminator.multipliers = (2, 4) if is_quick else (2, 4, 4, 4)
  discriminator.strides = ((2, 2), (2, 2)) if is_quick else ((1, 2), (2, 2), (2, 2), (1, 2))
  discriminator.patch_size = 4 if is_quick else 1

  config.stages = ("tokenizer",)
  stage = ConfigDict({"kind": "tokenizer"})
  stage.init = ConfigDict({"from": config_dict.placeholder(str), "temporal": "zeros"})
  if args.init:
    stage.init["from"] = args.init
  # One step in five is on single frames, which keeps images as good as video.
  images = {"weight": 0.2, "num_frames": 1, "batch_size": 16 if is_quick else 512}
  stage.mixture = ConfigDict({"clips": {"weight": 0.8}, "images": images})
  stage.loss = ConfigDict()
  # Small networks that train from scratch learn no objects from absolute differences.
  stage.loss.l1 = 0.0 if is_quick else 1.0
  stage.loss.l2 = 1.0 if is_quick else 0.0
  stage.loss.lpips = args.lpips
  stage.loss.lpips_weights = config_dict.placeholder(str)
  # VGG16 costs more than all the rest.
  stage.loss.lpips_frames = 1 if is_quick else 4
  stage.loss.commitment = 0.02 if is_quick else 0.25
  stage.loss.quantization_error = 0.05 if is_quick else 0.0
  stage.loss.entropy = args.entropy
  stage.loss.adversarial = ConfigDict()
  stage.loss.adversarial.weight = args.adversarial
  stage.loss.adversarial.kind = "non_saturating"
  stage.loss.adversarial.is_adaptive = True
  stage.loss.adversarial.start_step = 100 if is_quick else 10_000
  stage.loss.adversarial.r1 = 0.0
  stage.loss.adversarial.lecam = 0.001
  stage.loss.adversarial.lecam_decay = 0.999
  stage.loss.adversarial.discriminator = discriminator
  stage.loss.adversarial.optimizer = ConfigDict(
    {"learning_rate": 1e-3 if is_quick else 1e-4, "b1": 0.5, "b2": 0.9, "weight_decay": 0.0}
  )
  stage.loop = ConfigDict()
  stage.loop.num_steps = args.steps or (500 if is_quick else NUM_STEPS)
  stage.loop.batch_size = 4 if is_quick else 128
  stage.loop.ema_decay = 0.99 if is_quick else 0.9999
  stage.loop.save_every = 100 if is_quick else 2000
  stage.loop.media_every = 250 if is_quick else 2000
  stage.loop.optimizer = ConfigDict({"warmup_steps": 50 if is_quick else 5000})
  stage.loop.optimizer.kind = "muon" if is_quick else "adamw"
  stage.loop.optimizer.learning_rate = 1e-2 if is_quick else 1e-4
  stage.loop.optimizer.weight_decay = 1e-4
  config.stage = ConfigDict({"tokenizer": stage})
  return config
