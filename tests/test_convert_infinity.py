"""Public Infinity and InfinityStar models: from their files to a folder that samples."""

import json
import os
import pathlib

import numpy as np
import pytest
from safetensors.numpy import load_file
from tiny_encoders import T5, random_tensors, write_tokenizer

import videoar_jax
from videoar_jax import convert
from videoar_jax.experiment import model_folder
from videoar_jax.interop import tensors

ROOT = pathlib.Path(__file__).resolve().parents[2] / "shared"
GOLDEN = pathlib.Path(os.environ.get("VIDEOAR_GOLDEN", ROOT / "golden"))
# One is enough: samples are compared with reference numbers in tests/models/infinity.
INFINITY = sorted((GOLDEN / "infinity_generator").glob("e_*_vae.safetensors"))[:1]
STAR = GOLDEN / "infinity_star" / "star_tiny.safetensors"
STAR_VAE = GOLDEN / "infinity_star" / "f_star_vae_narrow.safetensors"

pytestmark = pytest.mark.golden


def run(capsys, name, *flags):
  """Returns the exit status and the output."""
  status = convert.main([name, *map(str, flags)])
  said = capsys.readouterr()
  return status, said.out if status == 0 else said.err


def write_encoder(folder, width):
  folder.mkdir()
  values = T5 | {"d_model": width}
  (folder / "config.json").write_text(json.dumps(values))
  tensors.write(folder / "model.safetensors", random_tensors(values))
  write_tokenizer(folder / "tokenizer.json")
  return folder


@pytest.mark.parametrize("vae", INFINITY, ids=lambda path: path.name)
def test_infinity_makes_images(vae, tmp_path, capsys):
  pytest.importorskip("tokenizers")
  checkpoint = vae.with_name(vae.name.replace("_vae", ""))
  width = load_file(checkpoint)["cfg_uncond"].shape[1]
  encoder, out = write_encoder(tmp_path / "t5", width), tmp_path / "model"
  flags = [f"--checkpoint={checkpoint}", f"--tokenizer={vae}", "--resolution=256"]
  status, said = run(
    capsys, "infinity", *flags, f"--text_encoder={encoder}", f"--out={out}", "--dtype=float32"
  )
  assert status == 0 and "missing" not in said, said
  model = videoar_jax.load_model(out)
  image = model.sample(["a red star"], seed=1)
  assert image.shape == (1, 1, 256, 256, 3) and image.std() > 0
  other = write_encoder(tmp_path / "wide", width + 4)
  status, said = run(
    capsys, "infinity", *flags, f"--text_encoder={other}", f"--out={tmp_path / 'other'}"
  )
  assert status == 2 and f"features of width {width + 4}, but the model takes {width}" in said


@pytest.mark.skipif(not STAR.exists(), reason=f"there is no {STAR}")
def test_infinity_star_is_converted_and_its_parts_are_named(tmp_path, capsys):
  out = tmp_path / "model"
  flags = [f"--checkpoint={STAR}", f"--out={out}"]
  status, said = run(capsys, "infinity_star", *flags, f"--tokenizer={STAR_VAE}")
  assert status == 0 and "missing: text_encoder/" in said, said
  values = json.loads((out / "config.json").read_text())
  assert values["data"]["resolution"] == [480, 848] and values["data"]["num_frames"] == 81
  found, public = tensors.read(out / model_folder.WEIGHTS), load_file(STAR)
  np.testing.assert_array_equal(found["codes_in.kernel"], public["word_embed.weight"].T)
  assert videoar_jax.load_tokenizer(out).config.num_channels == 64
  status, said = run(capsys, "infinity", f"--checkpoint={STAR}", f"--out={tmp_path / 'wrong'}")
  assert status == 2 and "InfinityStar" in said
