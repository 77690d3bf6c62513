"""`python -m videoar_jax.convert kl_tokenizer`: public autoencoders from files to clips."""

import json

import nova_golden as golden
import numpy as np
import pytest
from public_kl import clips, golden_values, public_tensors, random_params, weights_of
from safetensors.numpy import load_file, save_file

import videoar_jax
from videoar_jax import convert, evaluate
from videoar_jax.interop import tensors as tensor_files
from videoar_jax.tokenizers.kl import convert as keys

VALUES = {
  "_class_name": "AutoencoderKL",
  "block_out_channels": [2, 2, 4, 4],
  "layers_per_block": 1,
  "latent_channels": 3,
  "norm_num_groups": 2,
}


def write(folder, values, tensors):
  folder.mkdir(parents=True)
  (folder / "config.json").write_text(json.dumps(values))
  save_file(tensors, folder / "diffusion_pytorch_model.safetensors")
  return folder


@pytest.fixture
def checkpoint(tmp_path):
  family, config = keys.config_of(VALUES)
  return write(tmp_path / "public", VALUES, public_tensors(config, random_params(family, config)))


def run(checkpoint, out, capsys, *flags):
  """Returns the exit status and the output."""
  status = convert.main(["kl_tokenizer", f"--checkpoint={checkpoint}", f"--out={out}", *flags])
  said = capsys.readouterr()
  return status, said.out if status == 0 else said.err


@pytest.mark.golden
@pytest.mark.parametrize("name", golden.cases("vae[23]d*.npz"))
def test_clips_of_a_converted_tokenizer_are_the_public_ones(name, tmp_path, capsys):
  values, arrays = golden_values(name), np.load(golden.FOLDER / name)
  is_video = name.startswith("vae3d")
  folder = write(tmp_path / "pipeline" / "vae", values, load_file(weights_of(name)))
  flags = ["--tiling"] if is_video else []
  status, said = run(folder.parent, tmp_path / "out", capsys, *flags)
  assert status == 0, said
  assert f"scaled by {values['scaling_factor']:g}" in said
  tokenizer = videoar_jax.load_tokenizer(tmp_path / "out")
  end = "17" if is_video else ""
  latents = tokenizer.encode(clips(arrays[f"x{end}"]))
  mean = clips(arrays[f"moments{end}"])[..., : values["latent_channels"]]
  assert golden.error(latents, mean * values["scaling_factor"]) < 2e-5
  expected = np.clip(clips(arrays[f"decoded{end}"]), -1, 1)
  assert golden.error(tokenizer.decode(latents), expected) < 5e-5


def test_a_converted_tokenizer_is_evaluated(checkpoint, tmp_path, capsys):
  assert run(checkpoint, tmp_path / "out", capsys)[0] == 0
  flags = ["--suite=reconstruction", "--data=sprites", "--num_frames=2", "--resolution=16"]
  flags += ["--num_clips=2", "--batch_size=2", f"--out={tmp_path / 'evaluation'}"]
  assert evaluate.main([f"--workdir={tmp_path / 'out'}", *flags]) == 0
  printed = capsys.readouterr().out
  assert "2 clips of sprites: 2 frames of 16x16" in printed and "PSNR" in printed
  result = json.loads((tmp_path / "evaluation" / "reconstruction.json").read_text())
  assert result["codebook_usage"] is None and np.isfinite(result["psnr"]["mean"])


def test_shards_and_files_give_the_same_tokenizer(checkpoint, tmp_path, capsys):
  whole = checkpoint / "diffusion_pytorch_model.safetensors"
  assert run(whole, tmp_path / "one", capsys)[0] == 0
  tensors = load_file(whole)
  parts = {"a.safetensors": {}, "b.safetensors": {}}
  for i, (name, value) in enumerate(tensors.items()):
    parts[("a.safetensors", "b.safetensors")[i % 2]][name] = value
  whole.unlink()
  for file, part in parts.items():
    save_file(part, checkpoint / file)
  index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
  text = json.dumps(index)
  (checkpoint / "diffusion_pytorch_model.safetensors.index.json").write_text(text)
  assert run(checkpoint, tmp_path / "two", capsys)[0] == 0
  one, two = (
    tensor_files.read(tmp_path / name / "tokenizer.safetensors") for name in ("one", "two")
  )
  assert one.keys() == two.keys() and len(one) == len(tensors)
  for name, value in one.items():
    np.testing.assert_array_equal(value, two[name])


def test_what_cannot_be_converted_is_one_line(checkpoint, tmp_path, capsys):
  out, config = tmp_path / "out", checkpoint / "config.json"

  def refused(*flags):
    status, said = run(checkpoint, out, capsys, *flags)
    assert status == 2 and said.startswith("error: ") and said.count("\n") == 1
    assert not out.exists()
    return said

  assert "config.json: --tiling is for AutoencoderKLOpenSora" in refused("--tiling")
  config.write_text(json.dumps(VALUES | {"_class_name": "AutoencoderDC"}))
  said = refused()
  assert "_class_name='AutoencoderDC'" in said and "AutoencoderKL, AutoencoderKLOpenSora" in said
  config.write_text(json.dumps(VALUES | {"layers_per_block": 2}))
  assert "missing encoder.down_blocks.0.resnets.1.conv1.weight (2, 2, 3, 3)" in refused()
  config.write_text("[]")
  assert "holds no settings by name" in refused()
  config.write_text("{")
  assert "config.json is damaged" in refused()
  config.unlink()
  assert "config.json is missing" in refused()
  config.write_text(json.dumps(VALUES))
  (checkpoint / "diffusion_pytorch_model.safetensors").unlink()
  assert "has no .safetensors files" in refused()
