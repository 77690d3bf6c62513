"""`python -m videoar_jax.convert star_tokenizer`: InfinityStar's autoencoder, to clips."""

import json

import numpy as np
import pytest
import star_tokenizer_golden as golden
from safetensors.numpy import load_file, save_file

import videoar_jax
from videoar_jax import convert, evaluate


@pytest.fixture(scope="module")
def checkpoint():
  path = golden.FOLDER / "f_star_vae_narrow.safetensors"
  if not path.is_file():
    pytest.skip(f"there are no reference numbers in {golden.FOLDER}")
  return path


def run(checkpoint, out, capsys):
  """Returns the exit status and the output."""
  status = convert.main(["star_tokenizer", f"--checkpoint={checkpoint}", f"--out={out}"])
  said = capsys.readouterr()
  return status, said.out if status == 0 else said.err


@pytest.mark.golden
def test_a_converted_tokenizer_loads_and_is_evaluated(checkpoint, tmp_path, capsys):
  status, said = run(checkpoint, tmp_path / "star", capsys)
  assert status == 0 and "64 channels, widths [16, 16, 32, 32, 32], 1 blocks a level" in said
  assert "proj_down_two.weight" in said.partition("not needed, omitted")[2]
  tokenizer = videoar_jax.load_tokenizer(tmp_path / "star")
  for name in golden.cases("f_star_vae_T*.npz"):
    arrays = np.load(golden.FOLDER / name)
    latents = golden.channels_last(arrays["z_from_mean"])
    assert golden.error(tokenizer.encode(golden.channels_last(arrays["x"])), latents) < 5e-5
    pixels = np.clip(golden.channels_last(arrays["recon"]), -1, 1)
    assert golden.error(tokenizer.decode(latents, chunk=2), pixels) < 5e-5
  flags = ["--suite=reconstruction", "--data=sprites", "--num_frames=5", "--resolution=32"]
  flags += ["--num_clips=1", "--batch_size=1", f"--out={tmp_path / 'evaluation'}"]
  assert evaluate.main([f"--workdir={tmp_path / 'star'}", *flags]) == 0
  result = json.loads((tmp_path / "evaluation" / "reconstruction.json").read_text())
  assert np.isfinite(result["psnr"]["mean"])


@pytest.mark.golden
def test_a_pth_file_gives_the_same_tokenizer(checkpoint, tmp_path, capsys):
  torch = pytest.importorskip("torch", reason="a .pth file needs PyTorch")
  state = {key: torch.from_numpy(value) for key, value in load_file(checkpoint).items()}
  torch.save({"vae": state, "disc": {"weight": torch.zeros(2)}}, tmp_path / "vae.pth")
  for name, path in (("pth", tmp_path / "vae.pth"), ("same", checkpoint)):
    assert run(path, tmp_path / name, capsys)[0] == 0
  ours, same = (load_file(tmp_path / name / "tokenizer.safetensors") for name in ("pth", "same"))
  assert ours.keys() == same.keys()
  for key, value in ours.items():
    np.testing.assert_array_equal(value, same[key])


def test_what_is_no_such_checkpoint_is_one_line(tmp_path, capsys):
  save_file({"encoder.weight": np.zeros(2, np.float32)}, tmp_path / "other.safetensors")
  for file, reason in (
    ("other.safetensors", "it holds no InfinityStar video autoencoder"),
    ("missing.safetensors", "is not a file"),
  ):
    status, said = run(tmp_path / file, tmp_path / "out", capsys)
    assert status == 2 and said.startswith("error: ") and said.count("\n") == 1
    assert reason in said and file in said
    assert not (tmp_path / "out").exists()
