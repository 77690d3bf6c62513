"""The paper's 4B text-to-video model, in three stages of growing resolution and length.

Prepare videos and images once (`python -m videoar_jax.prepare --help`), convert the public
image tokenizer (docs/tokenizer.md) and LPIPS (docs/evaluation.md), then:

  python -m videoar_jax.main --workdir=runs/t2v \
    --config=configs/videoar_t2v.py:data=VIDEOS,images=IMAGES,init=weights/infinity_d32

--stage=I, II or III trains one of them. Two CPU cores can try everything on moving shapes:

  python -m videoar_jax.main --config=configs/videoar_t2v.py:size=tiny,data=sprites --workdir=runs/t

Stages, lengths and resolutions are the paper's; mixture weights, batch sizes and numbers of steps,
which it does not report, are our choices.
"""

from ml_collections import ConfigDict

from configs import quickstart, tokenizer_ucf101
from configs.common import generator_size, parse_arg
from videoar_jax.experiment.defaults import default_config, mixture_part

STAGES = {"tokenizer": "tokenizer", "I": "generator", "II": "generator", "III": "generator"}
# Height by width, from the public tables: wide, square and tall.
RATIOS = (0.571, 1.0, 1.75)


def get_config(arg: str | None = None) -> ConfigDict:
  """Returns the config.

  Args:
    arg: `size=` of the generator; `data=` and `images=` folders or URLs of prepared shards, or
      data=sprites alone; `init=` a converted image tokenizer; `steps=` of each stage, 0 for
      its default.
  Raises:
    ValueError: `data=` or `images=` is missing.
  """
  args = parse_arg(arg, size="4b", data="", images="", init="", steps=0)
  if args.data == "sprites":
    return _sprites(args)
  if not args.data or not args.images:
    raise ValueError("data= and images= are missing; name the shards, or data=sprites alone")
  config = default_config(STAGES)
  config.data.source, config.data.path = "shards", args.data
  config.data.num_frames = 33
  config.data.frame_rates = (8.0, 12.0, 16.0, 24.0)
  config.data.resolution = (384, 672)
  config.data.is_randomly_cropped = True
  config.data.num_threads = 16
  config.text.length = 256
  config.generator.update(generator_size(args.size))
  config.sampling.guidance = "t2v"
  config.mesh.data, config.mesh.fsdp = 1, -1
  # Made by one host of the pod, a clip at a time.
  config.report.update({"num_clips": 16, "num_prompts": 8, "batch_size": 1})
  config.report.mesh, config.report.dtype = "tensor:-1", "bfloat16"

  # The tokenizer is trained at 256 pixels; it is convolutional and works at larger sizes, too.
  ucf101 = tokenizer_ucf101.get_config(f"data={args.data},init={args.init}")
  config.tokenizer.num_bits = ucf101.tokenizer.num_bits
  config.stage.tokenizer = ucf101.stage.tokenizer
  config.stage.tokenizer.mixture = ConfigDict()
  config.stage.tokenizer.data.update({"num_frames": 17, "resolution": (256, 256)})

  videos = {"aspect_ratios": RATIOS}
  images = {"path": args.images, "num_frames": 1, "aspect_ratios": RATIOS}
  I, II, III = (config.stage[name] for name in ("I", "II", "III"))
  for stage, num_steps, batch_size, num_frames, size in (
    (I, 100_000, 512, 17, (256, 256)),
    (II, 50_000, 128, 33, (384, 672)),
    (III, 20_000, 64, 65, (384, 672)),
  ):
    # Batches of all shapes have as many tokens as `batch_size` clips of this one.
    stage.data.num_frames, stage.data.resolution = num_frames, size
    stage.loss.p_frame_mask = 0.1
    stage.loop.num_steps, stage.loop.batch_size = args.steps or num_steps, batch_size
    stage.loop.ema_decay = 0.9999
    stage.loop.save_every, stage.loop.media_every = 1000, 5000
    stage.loop.on_nan, stage.loop.spike = "skip", 3.0
    stage.loop.optimizer.warmup_steps = 2000
  I.mixture.images = mixture_part(**images, weight=0.5, pixels=256)
  I.mixture.videos = mixture_part(**videos, weight=0.5, pixels=256, num_frames=(17, 33))
  II.mixture.images = mixture_part(**images, weight=0.3, pixels=512)
  II.mixture.videos = mixture_part(**videos, weight=0.7, pixels=512, num_frames=(17, 33))
  III.mixture.videos = mixture_part(**videos, weight=1.0, pixels=512, num_frames=65)
  return config


def _sprites(args: ConfigDict) -> ConfigDict:
  """Returns the same stages on moving shapes, at an eighth of the side lengths."""
  small = quickstart.get_config(f"size={args.size},image_steps=400,tokenizer_steps=220")
  config = default_config({"images": "tokenizer"} | STAGES)
  for section in ("data", "text", "tokenizer", "generator", "sampling", "report"):
    config[section] = small[section]
  for name in ("images", "tokenizer"):
    config.stage[name] = small.stage[name]
  # Stages have different numbers of scales, some of which 2 does not divide.
  config.generator.patch_sizes, config.generator.has_place_embedding = (1,), False
  shapes = {
    "I": (9, (32, 32), 600, 8),
    "II": (9, (64, 64), 700, 4),
    "III": (17, (64, 64), 150, 4),
  }
  for name, (num_frames, size, num_steps, batch_size) in shapes.items():
    stage = config.stage[name]
    stage.loss.scale_weighting = "sqrt"
    stage.loss.corruption.p_max = 0.1
    stage.data.num_frames, stage.data.resolution = num_frames, size
    stage.loop.update(small.stage.generator.loop.to_dict())
    stage.loop.num_steps, stage.loop.batch_size = args.steps or num_steps, batch_size
    stage.mixture.videos = mixture_part(weight=1.0 if name == "III" else 0.7)
    if name != "III":
      stage.mixture.images = mixture_part(weight=0.3, num_frames=1)
  return config
