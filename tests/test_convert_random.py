"""Models of random weights with the layouts of public ones, and plans of these layouts."""

import dataclasses
import json
import os
import pathlib

import ml_dtypes  # noqa: F401  # Registers bfloat16 with numpy.
import numpy as np
import pytest
from safetensors.numpy import load_file

import videoar_jax
from videoar_jax import convert, plan
from videoar_jax.converters import layouts, random_weights
from videoar_jax.converters.infinity import image_settings
from videoar_jax.experiment import model_folder
from videoar_jax.models.infinity import convert as infinity
from videoar_jax.models.infinity.config import InfinityConfig
from videoar_jax.models.infinity_star import convert as star
from videoar_jax.models.nova.config import NovaConfig
from videoar_jax.tokenizers.bsq.config import BSQConfig
from videoar_jax.tokenizers.files import Saved

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"
GOLDEN = pathlib.Path(os.environ.get("VIDEOAR_GOLDEN", SHARED / "golden"))
KEYS = {
  "infinity_2b": GOLDEN / "infinity_generator" / "d_full_infinity_2b_keys.json",
  "infinity_8b": GOLDEN / "infinity_generator" / "d_full_infinity_8b_keys.json",
  "infinity_star_480p": GOLDEN / "infinity_star" / "d_full_infinity_qwen8b_keys.json",
}
CONFIG = InfinityConfig(
  num_layers=1, d_model=16, num_heads=2, mlp_dim=16, num_pool_heads=2, num_bits=4, text_dim=6
)
CONFIG = dataclasses.replace(CONFIG, text_length=5)
TOKENIZER = BSQConfig(
  num_bits=4, patch_size=4, base_channels=4, multipliers=(1, 1), strides=((1, 1),), num_groups=1
)


@pytest.fixture
def tiny(monkeypatch):
  """Makes the layout `infinity_2b` a tiny one, of images of 16 pixels."""
  settings = image_settings(CONFIG, (16, 16))
  source = "random weights, with the layout of infinity_2b"
  layout = layouts.PublicLayout(CONFIG, settings, Saved("bsq", TOKENIZER, source))
  for module in (layouts, random_weights):
    monkeypatch.setattr(module, "public_layout", lambda name: layout)
  for name, value in plan._NO_TPU.items():
    monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("tiny")
def test_a_random_model_is_written_planned_and_sampled(tmp_path, capsys):
  out = tmp_path / "model"
  assert convert.main(["random", "--like=infinity_2b", f"--out={out}"]) == 0
  assert "random parameters of type bfloat16" in capsys.readouterr().out
  facts = json.loads((out / model_folder.FILE).read_text())
  assert facts["source"] == "random weights, with the layout of infinity_2b"
  weights = load_file(out / model_folder.WEIGHTS)
  assert {str(x.dtype) for x in weights.values()} == {"bfloat16"}
  kernel = weights["blocks.up.kernel"].astype(np.float32)
  assert kernel.std() == pytest.approx(0.02, rel=0.2) and abs(kernel.mean()) < 0.005
  assert (weights["blocks.cross_norm.scale"] == 1).all() and not weights["blocks.up.bias"].any()
  assert not np.array_equal(kernel, weights["blocks.down.kernel"])
  image = videoar_jax.load_model(out, dtype="bfloat16").sample([""])
  assert image.shape == (1, 1, 16, 16, 3)
  tables = []
  for name in ("--like=infinity_2b", f"--model={out}"):
    assert plan.main([name, "--topology=h100:2", "--mesh=tensor:2"]) == 0
    tables.append(capsys.readouterr().out)
  # A plan reads no weights: one of a model is that of its layout.
  assert tables[0] == tables[1] and "1 clips of 1x16x16, guided" in tables[0]


def test_drawing_part_by_part_changes_nothing(monkeypatch):
  whole = random_weights._draw("a", (3, 5), 1.0)
  monkeypatch.setattr(random_weights, "_PART", 4)
  parts = random_weights._draw("a", (3, 5), 1.0)
  assert parts.shape == (3, 5) and abs(parts).min() > 0
  np.testing.assert_array_equal(parts.reshape(-1)[:4], whole.reshape(-1)[:4])


def test_mistakes_are_named(tmp_path, capsys):
  (tmp_path / "file").touch()
  flags = ["--topology=h100:2", "--mesh=tensor:2"]
  for command, text in (
    (
      lambda: convert.main(["random", "--like=infinity_3b", f"--out={tmp_path / 'a'}"]),
      "infinity_2b",
    ),
    (lambda: convert.main(["random", "--like=infinity_2b", f"--out={tmp_path}"]), "is not empty"),
    (lambda: plan.main(["--like=infinity_3b", *flags]), "there are infinity_125m, infinity_2b"),
    (lambda: plan.main(["--like=infinity_2b", *flags, "--config.seed=1"]), "not with --model"),
    (lambda: plan.main(["--like=infinity_125m", "--topology=h100:3", "--mesh=tensor:3"]), "heads"),
  ):
    assert command() == 2
    said = capsys.readouterr().err
    assert text in said and said.count("\n") == 1, said
  assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("name", layouts.NAMES)
def test_every_layout_is_a_run(name):
  with layouts.run_of(name) as run:
    layout = layouts.public_layout(name)
    assert dataclasses.replace(run.generator) == layout.config
    assert run.tokenizer == layout.tokenizer.config
    assert run.generator.text_dim == (2560 if isinstance(layout.config, NovaConfig) else 2048)


@pytest.mark.golden
@pytest.mark.parametrize("name", KEYS)
def test_layouts_are_those_of_the_public_networks(name):
  if not KEYS[name].is_file():
    pytest.skip(f"there is no {KEYS[name]}")
  shapes = {key: tuple(shape) for key, (shape, _) in json.loads(KEYS[name].read_text()).items()}
  module = star if "star" in name else infinity
  config = layouts.public_layout(name).config
  assert dataclasses.replace(module.config_of(shapes), dtype=config.dtype) == config
