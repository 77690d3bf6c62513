"""Configs of NOVA at a size that compiles fast."""

from videoar_jax.experiment.defaults import default_config


def make_config(**changes):
  """Returns a run of both stages, with changes by dotted name."""
  config = default_config({"tokenizer": "tokenizer", "generator": "generator"}, family="nova")
  config.data.update(num_frames=5, resolution=(16, 16), frame_rate=4.0)
  config.text.update(tokenizer="words", length=16)
  config.tokenizer.update(num_channels=2, patch_size=4, base_channels=4, multipliers=(1, 1))
  config.tokenizer.update(strides=((2, 1),), num_groups=1, num_mid_blocks=0)
  config.generator.update(d_model=16, num_heads=1, num_video_layers=1, num_image_layers=2)
  config.generator.update(head_mlp_dim=8, num_head_layers=1, patch_size=1, video_patch_size=2)
  config.generator.update(mlp_ratio=1, time_base=3, has_motion=False, mixer_rank=2, noise="flow")
  config.sampling.update(num_ar_steps=3, num_diffusion_steps=2, guidance=2.0)
  config.report.update(num_clips=2, num_prompts=2)
  for name in config.stages:
    config.stage[name].loop.update(num_steps=2, batch_size=2, save_every=2, media_every=2)
    config.stage[name].loop.optimizer.update(kind="adamw", warmup_steps=1)
  for name, value in changes.items():
    section, _, last = name.rpartition(".")
    node = config
    for part in filter(None, section.split(".")):
      node = node[part]
    node[last] = value
  return config
