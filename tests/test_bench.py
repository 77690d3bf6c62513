"""Estimated FLOPs against those of the program, and the tables."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import pytest

from videoar_jax import bench
from videoar_jax.nn import conv
from videoar_jax.parallel import roofline
from videoar_jax.tokenizers.autoencoder import abstract_params, autoencoder_of
from videoar_jax.tokenizers.bsq.config import BSQConfig
from videoar_jax.tokenizers.flops import decoder_flops, encoder_flops

CONFIG = BSQConfig(
  num_bits=6,
  base_channels=8,
  multipliers=(1, 2, 2),
  num_encoder_blocks=1,
  num_decoder_blocks=2,
  strides=((1, 2), (2, 2)),
  num_groups=2,
  patch_size=2,
)


def convolutions(jaxpr) -> int:
  """Returns the FLOPs of all convolutions in a program."""
  total = 0
  for equation in jaxpr.eqns:
    if equation.primitive.name == "conv_general_dilated":
      kernel = equation.invars[1].aval.shape
      total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel[:-1])
    for value in equation.params.values():
      if hasattr(value, "jaxpr"):
        total += convolutions(value.jaxpr)
  return total


CHEAPER = dataclasses.replace(
  CONFIG,
  num_mid_blocks=1,
  upsampling="subpixel",
  temporal_kernels="half",
  refine_channels=6,
  patch_size=4,
)


@pytest.mark.parametrize("config", [CONFIG, CHEAPER], ids=["default", "cheaper"])
@pytest.mark.parametrize("num_frames", [1, 3, 9])
def test_flops_are_those_of_the_program(config, num_frames, monkeypatch):
  """The program skips the zero frames before a clip, as the estimate does."""
  monkeypatch.setattr(conv, "REWRITE", True)
  size = (32, 48)

  def encode(params, video):
    return autoencoder_of(config, params).encoder(video)

  def decode(params, latents):
    return autoencoder_of(config, params).decoder(latents)

  video = jax.ShapeDtypeStruct((1, num_frames, *size, 3), jnp.float32)
  latents = jax.ShapeDtypeStruct((1, *config.latent_shape(num_frames, size), 6), jnp.float32)
  params = abstract_params(config)
  counted = convolutions(jax.make_jaxpr(encode)(params, video).jaxpr)
  assert encoder_flops(config, num_frames, size) == counted > 0
  counted = convolutions(jax.make_jaxpr(decode)(params, latents).jaxpr)
  assert decoder_flops(config, num_frames, size) == counted > 0


SMALLEST = {"num_layers": 1, "d_model": 8, "num_heads": 1, "num_kv_heads": 1}
SMALLEST |= {"head_dim": 8, "mlp_dim": 8}


def test_table_of_a_training_step(monkeypatch, capsys):
  """With an even smaller network: every program runs, and the table shows the given seconds."""
  seconds = {"forward": 0.5, "with gradient": 2.0, "whole step": 4.0}

  def interleave(calls, repeats):
    for call in calls.values():
      jax.block_until_ready(call())
    return {**seconds, "product": calls["product"].amount / 1e5}  # A limit of 0.1 MFLOP/s.

  monkeypatch.setitem(bench.SIZES, "tiny", SMALLEST)
  monkeypatch.setattr(roofline, "interleave", interleave)
  assert bench.main(["train", "--size=tiny", "--batch_size=1", "--repeats=1"]) == 0
  *head, forward, gradient, whole = capsys.readouterr().out.splitlines()
  assert head[0].startswith("5 latent frames, 651 tokens, batches of 1, float32")
  assert head[1].startswith(f"{expected_parameters():,} parameters")
  shares = {}
  for line, (name, given) in zip((forward, gradient, whole), seconds.items(), strict=False):
    assert line.startswith(name)
    found, tokens, *_, share = line.removeprefix(name).split()
    assert float(found) == given
    assert float(tokens.replace(",", "")) == pytest.approx(651 / given, abs=0.5)
    shares[name] = float(share.rstrip("%"))
  assert shares["with gradient"] == pytest.approx(2 * shares["whole step"], abs=2)
  assert shares["forward"] * 0.5 == pytest.approx(shares["with gradient"] * 2 / 3, rel=0.1)


def expected_parameters():
  """For one layer of width 8: text, scales, start; attention, MLP, norms; input and output."""
  block = 4 * 8 * 8 + 3 * 8 * 8 + 2 * 8 + 2 * 8
  return 3 * 8 + 6 * 8 + 8 + 48 * 8 + block + 8 + 8 * 48


@pytest.mark.parametrize(
  ("flags", "said"),
  [
    (["--config=nowhere.py"], "nowhere.py"),
    (["--config=configs/tokenizer_ucf101.py:variant=quick"], "trains no generator"),
    (["--config=configs/common.py"], "has no get_config"),
    (["--config=configs/quickstart.py:size=huge"], "size='huge' is unknown"),
    (["--config=configs/quickstart.py", "--repeats=0"], "--repeats=0"),
  ],
)
def test_bad_flags_of_training_are_named(flags, said, capsys):
  assert bench.main(["train", *flags]) == 2
  error = capsys.readouterr().err
  assert error.startswith("error: ") and error.count("\n") == 1 and said in error


@pytest.mark.parametrize(
  ("flags", "said"),
  [
    (["--resolution=256x"], "HEIGHTxWIDTH"),
    (["--resolution=250x256"], "multiple of the tokenizer's stride 16"),
    (["--num_frames=4"], "1 + 4 k"),
    (["--repeats=0"], "--repeats=0"),
    (["--tokenizer=nowhere"], "nowhere does not exist"),
  ],
)
def test_bad_flags_are_named(flags, said, capsys):
  assert bench.main(["tokenizer", *flags]) == 2
  error = capsys.readouterr().err
  assert error.startswith("error: ") and error.count("\n") == 1 and said in error


def test_sizes_are_those_of_the_configs():
  from configs.common import generator_size

  for name, values in bench.SIZES.items():
    assert generator_size(name).to_dict() == values


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_sample_table(monkeypatch, capsys, dtype):
  """Of a network that is smaller still."""
  settings = SMALLEST | {"context": "full_frame"}
  monkeypatch.setitem(bench.SIZES, "small", settings)
  flags = ["sample", "--size=small", f"--dtype={dtype}", "--repeats=1", "--batch_size=2"]
  assert bench.main(flags) == 0
  lines = capsys.readouterr().out.splitlines()
  # A step for the prompt, one for each scale, and one for each frame that others see.
  assert f"{dtype}, batches of 2" in lines[0]
  assert "35 steps" in lines[-2] and "GFLOP, 0.00 GiB of weights" in lines[-2]
  assert float(lines[-1].split()[-1]) > 1  # Nothing is faster than the lower bound.
  assert bench.main(["sample", "--size=small", "--batch_size=0"]) == 2
  assert "--batch_size=0 must be at least 1" in capsys.readouterr().err


def test_data_table(tmp_path, capsys, without_type_checks):
  """With small sprites, with and without a simulated step time."""
  path = tmp_path / "config.py"
  path.write_text(
    "from configs import quickstart\n"
    "def get_config(arg=None):\n"
    "  config = quickstart.get_config()\n"
    "  config.data.resolution = (16, 16)\n"
    "  config.tokenizer.schedule = '1 2'\n"
    "  config.generator.patch_sizes = (1,)\n"
    "  return config\n"
  )
  flags = ["data", f"--config={path}", "--seconds=0.3", "--threads", "0", "2"]
  assert bench.main([*flags, "--step_s=0.05"]) == 0
  lines = capsys.readouterr().out.splitlines()
  assert lines[0] == "stage generator: sprites"
  rows = [line.split() for line in lines[3:]]
  assert [row[0] for row in rows] == ["0", "2"] and "waiting" in lines[2]
  for row in rows:
    assert float(row[2]) == pytest.approx(9 * float(row[1]), rel=0.1)
    assert float(row[3]) > float(row[1]) > 0  # It sleeps most of the time.
    assert 0 <= float(row[6].rstrip("%")) < 100
  assert bench.main([*flags, "--stage=images"]) == 0
  assert "waiting" not in capsys.readouterr().out
  assert bench.main([*flags, "--stage=none"]) == 2
  assert (
    "--stage=none is not one of images, tokenizer, frames, generator" in capsys.readouterr().err
  )
  assert bench.main(["data", f"--config={path}", "--seconds=0"]) == 2
  assert "--seconds=0.0 must be more than 0" in capsys.readouterr().err


SMALL_ALL = ["all", "--size=tiny", "--train_batch=1", "--sample_batches", "1", "2"]
SMALL_ALL += ["--tokenizer_batch=1"]
MEASURED = [
  "matrix products, bfloat16",
  "matrix products, float32",
  "reading memory",
  "matrix products, int8 weights",
  "training step, float32, batch 1",
  "sampling, bfloat16, batch 1",
  "sampling, bfloat16, batch 2",
  *(
    f"attention, {name}, {what}"
    for name in ("blocked", "cuDNN, a frame at a time", "tokamax xla_chunked", "dense", "splash")
    for what in ("forward", "with gradient")
  ),
  "tokenizer, encode",
  "tokenizer, decode",
  *(f"sampling, {dtype}, batch {b}" for b in (1, 2) for dtype in ("float32", "int8")),
]


def rows_of(folder):
  rows = json.loads((folder / "bench.json").read_text())["rows"]
  return {row["name"]: row for row in rows}


def test_all_skips_what_does_not_fit(tmp_path, capsys):
  """All of it, with less than a second."""
  out = tmp_path / "new" / "folder"
  assert bench.main([*SMALL_ALL, f"--out={out}", "--minutes=0.01"]) == 0
  text = capsys.readouterr().out
  assert text.strip() == (out / "bench.md").read_text().strip()
  assert "size tiny, minutes 0.01" in text.splitlines()[0]
  rows = rows_of(out)
  assert list(rows) == MEASURED
  assert {row["status"] for row in rows.values()} == {"skipped"}
  assert "would take about 60 s of 1 s left" in rows["training step, float32, batch 1"]["note"]


@pytest.mark.parametrize(
  ("flags", "said"),
  [
    (["--minutes=0"], "--minutes=0 must be more than 0"),
    (["--minutes=nan"], "--minutes=nan must be more than 0"),
    (["--size=huge"], "--size=huge is unknown; sizes are tiny, small"),
    (["--train_batch=0"], "--train_batch=0 must be at least 1"),
    (["--sample_batches", "1", "0"], "--sample_batches=1 0 must be at least 1"),
    (["--out={file}"], "is a file; name a folder"),
    (["--out=gs://bucket/speed"], "is a URL"),
  ],
)
def test_bad_flags_of_all_are_named(flags, said, tmp_path, capsys):
  (tmp_path / "file").write_text("")
  flags = [flag.format(file=tmp_path / "file") for flag in flags]
  assert bench.main([*SMALL_ALL, f"--out={tmp_path}", *flags]) == 2
  error = capsys.readouterr().err
  assert error.startswith("error: ") and error.count("\n") == 1 and said in error
  assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.slow
def test_all(monkeypatch, tmp_path, without_type_checks):
  """With an even smaller network that is trained in bfloat16, as `l` is, and enough time."""
  monkeypatch.setitem(bench.SIZES, "tiny", SMALLEST | {"dtype": "bfloat16"})
  monkeypatch.setattr(roofline, "SIDE", 128)
  assert bench.main([*SMALL_ALL, f"--out={tmp_path}", "--minutes=60"]) == 0
  rows = rows_of(tmp_path)
  step = "training step, bfloat16, batch 1"
  assert list(rows) == [step if "training" in name else name for name in MEASURED]
  absent = {name for name, row in rows.items() if row["status"] == "unavailable"}
  assert {name for name in MEASURED if "cuDNN" in name or "splash" in name} <= absent
  for name, row in rows.items():
    if name in absent:
      continue
    assert row["status"] == "done" and row["seconds"] > 0 and row["rate"] > 0, row
    assert (row["share"] is None) == name.startswith(("matrix", "reading"))
    if name != "reading memory":
      is_rounded = "bfloat16" in name + row["note"] or "int8" in name
      least, most = (1e-3, 0.1) if is_rounded else (0, 1e-4)
      assert least <= row["error"] < most, row
  tokens = rows[step]["note"].split()[0].replace(",", "")
  assert float(tokens) == pytest.approx(651 / rows[step]["seconds"], rel=0.01)
