"""Shared by config files: parsing of their argument, named sizes, small networks."""

from ml_collections import ConfigDict

from videoar_jax.models.families import FAMILIES


def generator_size(name: str, family: str = "videoar") -> ConfigDict:
  """Returns the `generator` settings of a named size.

  Raises:
    ValueError: there is no such size; lists the known ones.
  """
  sizes = FAMILIES[family].sizes
  if name not in sizes:
    raise ValueError(f"size={name!r} is unknown; sizes are {', '.join(sizes)}")
  return ConfigDict(sizes[name])


def small_tokenizer() -> dict:
  """Returns the `tokenizer` settings for clips of 64x64 pixels, without those of its latents."""
  return {
    "patch_size": 4,
    "base_channels": 16,
    "multipliers": (2, 4, 4),
    "strides": ((2, 2), (2, 1)),
    "num_encoder_blocks": 1,
    "num_decoder_blocks": 1,
    "num_mid_blocks": 1,
    "upsampling": "subpixel",
    "temporal_kernels": "half",
    "refine_channels": 16,
    "num_groups": 4,
  }


def set_sprites(config: ConfigDict, version: int, level: int) -> None:
  """Sets moving shapes and their prompts, with `level` objects in a clip."""
  # At half their frame rate, sprites cross much of the frame within a clip.
  config.data.frame_rate = 4.0
  config.data.version, config.data.num_objects = version, level
  config.text.tokenizer = "words"
  config.text.length = 13 if level == 1 else 22  # With the end token.


# Stages that train the generator of a quickstart: single frames, of which a step on many different
# ones costs less than one on few clips, then clips.
_GENERATOR_STAGES = ("frames", "generator")


def small_stages(is_cached: bool) -> dict[str, str]:
  """Returns the kind of each stage of a quickstart.

  Args:
    is_cached: encode what the generator sees only once; see `set_caches`.
  """
  stages = {"images": "tokenizer", "tokenizer": "tokenizer"}
  if is_cached:
    stages |= {f"{name}_latents": "cache" for name in _GENERATOR_STAGES}
  return stages | dict.fromkeys(_GENERATOR_STAGES, "generator")


def set_caches(config: ConfigDict, num_epochs: int = 3) -> None:
  """Sets how much the caches of `small_stages` hold.

  Args:
    config: with the number of steps of each stage.
    num_epochs: how often a stage sees each of its clips. Encoding them each time would take a tenth
      of the time of training on one core.
  """
  for name in _GENERATOR_STAGES:
    stage, cache = config.stage[name], config.stage[f"{name}_latents"]
    cache.data.num_frames = stage.data.num_frames
    cache.num_clips = -(-stage.loop.num_steps * stage.loop.batch_size // num_epochs)
    cache.batch_size = 64 if name == "frames" else 16


def set_small_tokenizer(config: ConfigDict, image_steps: int, tokenizer_steps: int) -> None:
  """Sets network and stages `images` and `tokenizer` of a tokenizer for clips of 64x64 pixels.

  Cells of latents see little of a frame, so single frames are learned from windows of a quarter.
  Who trains at another `data.resolution` sets those of `stage.images.data`, too.
  """
  config.tokenizer.update(small_tokenizer())
  loss = {"l2": 1.0, "l1": 0.0}
  if config.family == "nova":
    config.tokenizer.num_channels = 8
    loss |= {"kl": 1e-4}
  else:
    config.tokenizer.update(num_bits=24, schedule="1 2 4 8")
    loss |= {
      "commitment": 0.02,
      "quantization_error": 0.05,
      "entropy": 0.0,
      "scale_dropout": 0.0,
    }
  images = config.stage.images
  images.data.update(num_frames=1, resolution=(32, 32), crop_from=(64, 64))
  images.data.num_crops = 4  # Most windows of a sprites clip show only background.
  images.loop.update(small_loop(image_steps, 16, 3e-2, media_every=1000))
  config.stage.tokenizer.loop.update(small_loop(tokenizer_steps, 4, 1.5e-2, media_every=1000))
  for stage in (images, config.stage.tokenizer):
    stage.loss.update(loss)


def set_small_generator(config: ConfigDict, size: str) -> None:
  """Sets the network of a generator for a small grid and short training.

  Tokens of 2x2 cells cost a quarter. Distances are the same at every scale. Every input has the
  previous frame.
  """
  config.generator.update(generator_size(size))
  config.generator.update(
    remat="none",
    scan_layers=False,
    patch_sizes=(1, 2, 2, 2),
    rope_base=1000.0,
    rope_grid="latent",
    prev_frame_input="all_scales",
  )


def small_generator_loss() -> dict:
  """Returns the `loss` settings of a small generator."""
  return {
    # Coarse scales have few tokens but decide what moves where.
    "scale_weighting": "sqrt",
    # Bits whose residual is near zero are noise, and flipping them changes little.
    "bit_weighting": "residual",
  }


def small_loop(num_steps: int, batch_size: int, learning_rate: float, media_every: int) -> dict:
  """Returns the `loop` settings of a small network that trains for minutes."""
  return {
    "num_steps": num_steps,
    "batch_size": batch_size,
    "ema_decay": 0.99,
    "save_every": 200,
    "media_every": media_every,
    "optimizer": {
      "kind": "muon",
      "learning_rate": learning_rate,
      "muon_steps": 4,
      "warmup_steps": 50,
      "weight_decay": 1e-4,
      "final_fraction": 0.02,
    },
  }


# A VideoAR generator that compiles in seconds, on the grids of `shrink_tokenizer`.
TOY_GENERATOR = {
  "patch_sizes": (1, 2),
  "num_layers": 1,
  "d_model": 16,
  "num_heads": 1,
  "num_kv_heads": 1,
  "head_dim": 16,
  "mlp_dim": 16,
}


def shrink_tokenizer(config: ConfigDict) -> None:
  """Shrinks clips and tokenizer so that it compiles in seconds, trained for one step."""
  config.data.resolution = (16, 16)
  config.tokenizer.update(base_channels=4, multipliers=(1, 1), strides=((2, 2),), num_groups=1)
  if config.family == "nova":
    config.tokenizer.num_channels = 2
  else:
    config.tokenizer.update(schedule="1 2", num_bits=4)
  config.stage.tokenizer.loop.num_steps = 1
  config.stage.tokenizer.loop.optimizer.kind = "adamw"


def parse_arg(arg: str | None, **defaults):
  """Parses `"name=value,other=value"`, the part after the colon of `--config=FILE.py:...`.

  Args:
    arg: the text.
    **defaults: known names; values are converted to the type of their default.
  Returns:
    A ConfigDict of the defaults with the text's changes.
  Raises:
    ValueError: a name is unknown, or a value has the wrong type.
  """
  values = ConfigDict(defaults)
  parts: list[str] = []
  for text in filter(None, (arg or "").split(",")):
    if "=" in text or not parts:
      parts.append(text)
    else:
      # A comma that is not followed by `name=` is part of the value, such as a folder's name.
      parts[-1] += f",{text}"
  for part in parts:
    name, equals, text = part.partition("=")
    if not equals or name not in defaults:
      known = ", ".join(f"{key}={value}" for key, value in defaults.items())
      raise ValueError(f"config argument {part!r} is unknown; known, with defaults: {known}")
    kind = type(defaults[name])
    try:
      values[name] = text.lower() in ("1", "true", "yes") if kind is bool else kind(text)
    except ValueError:
      raise ValueError(f"config argument {part!r}: needs a value of type {kind.__name__}") from None
  return values
