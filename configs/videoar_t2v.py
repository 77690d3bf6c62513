"""The paper's text-to-video model of 4B, in three stages: ever larger pictures, ever longer clips.

Prepare videos and images once (`python -m videoar_jax.prepare --help`), convert the public
image tokenizer (docs/tokenizer.md) and LPIPS (docs/evaluation.md), then:

  python -m videoar_jax.main --workdir=runs/t2v \
    --config=configs/videoar_t2v.py:data=VIDEOS,images=IMAGES,init=weights/infinity_d32

With --stage=I, II or III it trains one of them. Two CPU cores can try it all on moving shapes:

  python -m videoar_jax.main --config=configs/videoar_t2v.py:size=tiny,data=sprites --workdir=runs/t

Stages, lengths and resolutions are the paper's; it does not say the weights of the mixtures, the
batches and the numbers of steps, which are choices of ours.
"""

from ml_collections import ConfigDict

from configs import quickstart, tokenizer_ucf101
from configs.common import generator_size, parse_arg

# Height by width, of the public tables: wide, square and high pictures.
RATIOS = (0.571, 1.0, 1.75)


def get_config(arg: str | None = None) -> ConfigDict:
  """Returns the config.

  Args:
    arg: `size=` of the generator; `data=` and `images=` folders or URLs of prepared shards, or
      data=sprites alone; `init=` a converted image tokenizer; `steps=` of each stage, 0 for its
      own number.
  Raises:
    ValueError: the data or the images are not named.
  """
  args = parse_arg(arg, size="4b", data="", images="", init="", steps=0)
  if args.data == "sprites":
    return _sprites(args)
  if not args.data or not args.images:
    raise ValueError("data= and images= are missing; name the shards, or data=sprites alone")
  config = tokenizer_ucf101.get_config(f"data={args.data},init={args.init}")
  config.data = ConfigDict({"source": "shards", "path": args.data, "num_frames": 33})
  config.data.frame_rate = 8.0
  config.data.frame_rates = (8.0, 12.0, 16.0, 24.0)
  config.data.resolution = (384, 672)
  config.data.is_randomly_cropped = True
  config.data.num_threads = 16
  config.tokenizer.schedule = ""
  config.text = ConfigDict({"length": 256, "tokenizer": "bytes"})
  config.generator = generator_size(args.size)
  config.sampling = ConfigDict({"guidance": "t2v", "temperature": 1.0, "top_p": 1.0})
  config.mesh = ConfigDict({"data": 1, "fsdp": -1, "tensor": 1})
  # The tokenizer learns at 256 pixels; it is convolutional, and serves larger pictures.
  config.stage.tokenizer.data = ConfigDict({"num_frames": 17, "resolution": (256, 256)})
  del config.stage.tokenizer.mixture

  images = {"path": args.images, "num_frames": 1, "aspect_ratios": RATIOS}
  videos = {"aspect_ratios": RATIOS}
  config.stage.I = _stage(args.steps or 100_000, batch_size=512, num_frames=17, size=(256, 256))
  config.stage.I.mixture = ConfigDict(
    {
      "images": {**images, "weight": 0.5, "pixels": 256},
      "videos": {**videos, "weight": 0.5, "pixels": 256, "num_frames": (17, 33)},
    }
  )
  config.stage.II = _stage(args.steps or 50_000, batch_size=128, num_frames=33, size=(384, 672))
  config.stage.II.mixture = ConfigDict(
    {
      "images": {**images, "weight": 0.3, "pixels": 512},
      "videos": {**videos, "weight": 0.7, "pixels": 512, "num_frames": (17, 33)},
    }
  )
  config.stage.III = _stage(args.steps or 20_000, batch_size=64, num_frames=65, size=(384, 672))
  config.stage.III.mixture = ConfigDict(
    {"videos": {**videos, "weight": 1.0, "pixels": 512, "num_frames": 65}}
  )
  config.stages = ("tokenizer", "I", "II", "III")
  return config


def _stage(
  num_steps: int, *, batch_size: int, num_frames: int, size: tuple[int, int]
) -> ConfigDict:
  """Returns a stage whose batches have as many tokens as `batch_size` clips of this shape."""
  stage = ConfigDict({"kind": "generator", "loss": {"p_frame_mask": 0.1}})
  stage.data = ConfigDict({"num_frames": num_frames, "resolution": size})
  stage.loss.corruption = ConfigDict(
    {"p_min": 0.0, "p_max": 0.25, "delta": 0.01, "has_inheritance": True}
  )
  stage.loop = ConfigDict({"num_steps": num_steps, "batch_size": batch_size, "ema_decay": 0.9999})
  stage.loop.save_every, stage.loop.media_every = 1000, 5000
  stage.loop.on_nan, stage.loop.spike = "skip", 3.0
  stage.loop.optimizer = ConfigDict(
    {"kind": "adamw", "learning_rate": 1e-4, "warmup_steps": 2000, "weight_decay": 0.05}
  )
  return stage


def _sprites(args: ConfigDict) -> ConfigDict:
  """Returns the same stages on moving shapes, at an eighth of the sides."""
  config = quickstart.get_config(f"size={args.size},image_steps=400,tokenizer_steps=220")
  # A stage of other resolution has another number of scales.
  config.generator.context = "scales"
  shared = config.stage.generator
  del config.stage.generator
  shapes = {
    "I": (9, (32, 32), 600, 8),
    "II": (9, (64, 64), 700, 4),
    "III": (17, (64, 64), 150, 4),
  }
  for name, (num_frames, size, num_steps, batch_size) in shapes.items():
    stage = shared.copy_and_resolve_references()
    stage.data = ConfigDict({"num_frames": num_frames, "resolution": size})
    stage.loop.num_steps, stage.loop.batch_size = args.steps or num_steps, batch_size
    stage.mixture = ConfigDict({"videos": {"weight": 1.0 if name == "III" else 0.7}})
    if name != "III":
      stage.mixture.images = ConfigDict({"weight": 0.3, "num_frames": 1})
    config.stage[name] = stage
  config.stages = ("images", "tokenizer", "I", "II", "III")
  return config
