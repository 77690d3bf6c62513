"""A tiny NOVA pipeline with random weights, as Diffusers saves it."""

import json

import numpy as np
from safetensors.numpy import save_file

WIDTH, HEADS, HEAD_WIDTH, TEXT_WIDTH, TEXT_LENGTH, RANK, CHANNELS = 32, 2, 24, 12, 6, 3, 4
NUM_VIDEO, NUM_IMAGE, NUM_HEAD = 1, 2, 2
CONFIG = {
  "_class_name": "NOVATransformer3DModel",
  "image_dim": CHANNELS,
  "image_size": [32, 64],
  "image_stride": 8,
  "text_token_dim": TEXT_WIDTH,
  "text_token_len": TEXT_LENGTH,
  "image_base_size": [2, 4],
  "video_base_size": [9, 1, 2],
}
DDPM = {
  "_class_name": "DDPMScheduler",
  "num_train_timesteps": 1000,
  "beta_schedule": "squaredcos_cap_v2",
  "clip_sample": False,
  "steps_offset": 1,
}


def shapes() -> dict[str, tuple[int, ...]]:
  """Returns the shapes of the transformer's tensors."""
  found = {}

  def linear(name, out, into):
    found[f"{name}.weight"], found[f"{name}.bias"] = (out, into), (out,)

  def norm(name, width=WIDTH):
    found[f"{name}.weight"], found[f"{name}.bias"] = (width,), (width,)

  def patch(name, width, size):
    found[f"{name}.weight"], found[f"{name}.bias"] = (width, CHANNELS, size, size), (width,)

  for stack, num, size in (("video_encoder", NUM_VIDEO, 4), ("image_encoder", NUM_IMAGE, 2)):
    patch(f"{stack}.patch_embed.proj", WIDTH, size)
    norm(f"{stack}.norm")
    for i in range(num):
      block = f"{stack}.blocks.{i}"
      norm(f"{block}.norm1"), norm(f"{block}.norm2")
      linear(f"{block}.attn.qkv", 3 * WIDTH, WIDTH), linear(f"{block}.attn.proj", WIDTH, WIDTH)
      linear(f"{block}.mlp.fc1", 4 * WIDTH, WIDTH), linear(f"{block}.mlp.fc2", WIDTH, 4 * WIDTH)
  found["video_encoder.mixer.lora.weight"] = (RANK, WIDTH)
  linear("video_encoder.mixer.proj", 2 * WIDTH, RANK)
  patch("image_decoder.patch_embed.proj", HEAD_WIDTH, 2)
  time = "image_decoder.time_cond_embed"
  linear(f"{time}.timestep_proj.fc1", HEAD_WIDTH, 256)
  linear(f"{time}.timestep_proj.fc2", HEAD_WIDTH, HEAD_WIDTH)
  linear(f"{time}.condition_proj.fc1", HEAD_WIDTH, WIDTH)
  linear(f"{time}.condition_proj.fc2", HEAD_WIDTH, HEAD_WIDTH)
  for i in range(NUM_HEAD):
    block = f"image_decoder.blocks.{i}"
    linear(f"{block}.norm1.proj", 3 * HEAD_WIDTH, HEAD_WIDTH)
    linear(f"{block}.proj.fc1", HEAD_WIDTH, HEAD_WIDTH)
    linear(f"{block}.proj.fc2", HEAD_WIDTH, HEAD_WIDTH)
    norm(f"{block}.norm2", HEAD_WIDTH)
  linear("image_decoder.norm.proj", 2 * HEAD_WIDTH, HEAD_WIDTH)
  linear("image_decoder.head", 4 * CHANNELS, HEAD_WIDTH)
  found["mask_embed.bos_token"] = found["mask_embed.mask_token"] = (1, WIDTH)
  found["text_embed.weight"] = (512, TEXT_WIDTH)
  linear("text_embed.proj", WIDTH, TEXT_WIDTH), norm("text_embed.norm")
  (
    linear("video_pos_embed.time_proj.0", WIDTH, 256),
    linear("video_pos_embed.time_proj.2", WIDTH, WIDTH),
  )
  norm("video_pos_embed.norm")
  for kind in ("flow", "fps"):
    linear(f"motion_embed.{kind}_proj.0", WIDTH, 256)
    linear(f"motion_embed.{kind}_proj.2", WIDTH, WIDTH)
  return found


def tensors(seed: int = 0) -> dict[str, np.ndarray]:
  """Returns random tensors; scales of norms are near one."""
  generator = np.random.default_rng(seed)
  found = {}
  for name, shape in shapes().items():
    spread = 1 if len(shape) < 2 else np.prod(shape[1:]) ** -0.5
    array = generator.normal(0, 0.3 * spread, shape).astype(np.float32)
    found[name] = (
      array + 1 if "norm" in name and name.endswith(".weight") and len(shape) < 2 else array
    )
  return found


def write_transformer(folder, found=None, num_files=2) -> None:
  """Writes `transformer/`, in shards with an index, and `scheduler/`."""
  found = tensors() if found is None else found
  target = folder / "transformer"
  target.mkdir(parents=True)
  (target / "config.json").write_text(json.dumps(CONFIG))
  names = list(found)
  files = {}
  for i in range(num_files):
    file = f"diffusion_pytorch_model-{i + 1:05}-of-{num_files:05}.safetensors"
    own = names[i::num_files]
    save_file({name: found[name] for name in own}, target / file)
    files |= dict.fromkeys(own, file)
  index = target / "diffusion_pytorch_model.safetensors.index.json"
  index.write_text(json.dumps({"weight_map": files}))
  write_scheduler(folder, DDPM)


def write_scheduler(folder, values) -> None:
  """Writes `scheduler/`."""
  (folder / "scheduler").mkdir(exist_ok=True)
  (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(values))
