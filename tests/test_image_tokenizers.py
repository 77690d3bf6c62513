"""The command line starts a video tokenizer from an image tokenizer."""

import numpy as np
from commands import command, run, run_until


def image_tokenizer(folder):
  """Writes a converted image tokenizer with TINY's shape, except for the number of bits."""
  from videoar_jax.tokenizers import files
  from videoar_jax.tokenizers.autoencoder import abstract_params
  from videoar_jax.tokenizers.bsq.config import BSQConfig

  config = BSQConfig(
    num_bits=8,
    patch_size=2,
    base_channels=4,
    multipliers=(1, 2),
    num_groups=2,
    num_encoder_blocks=1,
    num_decoder_blocks=1,
    strides=((1, 2),),
    num_mid_blocks=1,
    upsampling="subpixel",
    temporal_kernels="half",
    refine_channels=4,
  )
  generator = np.random.default_rng(0)
  params = files.flatten(abstract_params(config))
  for name, leaf in params.items():
    params[name] = generator.normal(0, 0.3, leaf.shape)
    if leaf.ndim == 5:
      params[name][:-1] = 0
  files.save_tokenizer(folder, files.Saved("bsq", config, "a test"), files.unflatten(params))


INFLATING = """
from configs import quickstart

def get_config(arg=None):
  config = quickstart.get_config("size=tiny")
  config.stages = ("tokenizer", "generator")
  config.stage.tokenizer.init = {{"from": {path!r}, "temporal": "zeros"}}
  return config
"""


def test_tokenizer_starts_from_an_image_tokenizer(tmp_path):
  import videoar_jax

  image_tokenizer(tmp_path / "image")
  config = tmp_path / "config.py"
  config.write_text(INFLATING.format(path=str(tmp_path / "image")))
  flags = ["--config.stages=('tokenizer',)", "--config.stage.tokenizer.loop.num_steps=1"]
  # Too small a step to move anything.
  flags += ["--config.stage.tokenizer.loop.optimizer.learning_rate=1e-20"]
  done = run(command(tmp_path / "run", *flags, config=config))
  assert done.returncode == 0, done.stderr[-3000:]
  assert "starts from" in done.stdout and "random, because" not in done.stdout
  image = videoar_jax.load_tokenizer(tmp_path / "image")
  trained = videoar_jax.load_tokenizer(tmp_path / "run")
  video = np.random.default_rng(1).uniform(-1, 1, (1, 5, 16, 16, 3)).astype(np.float32)
  np.testing.assert_allclose(trained.encode(video), image.encode(video)[:, ::2], atol=1e-5)

  # Other bits start two convolutions anew, and the log names them.
  flags_of_bits = [*flags, "--config.tokenizer.num_bits=6"]
  line = run_until(
    "6 bits instead of 8: ", command(tmp_path / "bits", *flags_of_bits, config=config)
  )
  assert "encoder.conv_out.kernel" in line

  for flag, message in (
    ("--config.tokenizer.base_channels=8", "tokenizer.base_channels=8, but 4 in"),
    ("--config.stage.tokenizer.init.from=nowhere", "nowhere: there are no weights in "),
    ("--config.stage.tokenizer.init.temporal=ones", "temporal='ones'"),
  ):
    done = run(command(tmp_path / "bad", *flags, flag, config=config))
    assert done.returncode == 2 and message in done.stderr, done.stderr[-1000:]
    assert "stage.tokenizer.init" in done.stderr and not (tmp_path / "bad").exists()
