"""A config of Infinity, at a size that compiles fast."""

from videoar_jax.experiment.defaults import default_config


def make_config(**changes):
  """Returns a config of tokenizer and generator; `changes` are fields by dotted name."""
  config = default_config({"tokenizer": "tokenizer", "generator": "generator"}, family="infinity")
  config.data.update(num_frames=1, resolution=(16, 16), frame_rate=4.0)
  config.text.update(tokenizer="words", length=16)
  config.tokenizer.update(num_bits=4, patch_size=4, base_channels=4, multipliers=(1, 1))
  config.tokenizer.update(strides=((1, 1),), num_groups=1, num_mid_blocks=0, schedule="1 2 4")
  config.generator.update(num_layers=2, d_model=16, num_heads=1, mlp_dim=16, num_pool_heads=2)
  config.sampling.update(guidance="2,1.5", temperature="0.5")
  config.report.update(num_clips=2, num_prompts=2)
  for name in config.stages:
    config.stage[name].loop.update(num_steps=4, batch_size=2, save_every=2, media_every=4)
    config.stage[name].loop.optimizer.update(kind="adamw", warmup_steps=1)
  for name, value in changes.items():
    section, _, last = name.rpartition(".")
    node = config
    for part in section.split("."):
      node = node[part]
    node[last] = value
  return config
