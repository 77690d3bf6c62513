"""The command line that converts public checkpoints, and what it refuses."""

import json
import pathlib
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import videoar_jax
from videoar_jax import convert
from videoar_jax.converters import infinity, tokenizers
from videoar_jax.converters.checkpoints import read_tensors


@pytest.fixture(scope="module")
def checkpoint(golden_folder):
  return golden_folder / "a_vae_d48_ch32.safetensors"


def run(checkpoint, out, capsys):
  """Returns the exit status and the output."""
  status = convert.main(["infinity_tokenizer", f"--checkpoint={checkpoint}", f"--out={out}"])
  said = capsys.readouterr()
  return status, said.out if status == 0 else said.err


def refused(checkpoint, out, capsys):
  """Returns the error; the attempt must leave no files."""
  before = sorted(out.parent.rglob("*"))
  status, said = run(checkpoint, out, capsys)
  assert status == 2 and said.startswith("error: ") and said.count("\n") == 1
  assert sorted(out.parent.rglob("*")) == before
  return said


def test_converted_tokenizer_loads(checkpoint, golden, tmp_path, capsys):
  status, said = run(checkpoint, tmp_path / "new" / "tokenizer", capsys)
  assert status == 0 and "48 bits, stride 16" in said and "quantize.lfq.mask" in said
  assert [path.name for path in (tmp_path / "new").iterdir()] == ["tokenizer"]
  arrays = golden("a_vae_d48_ch32_img64.npz")
  tokenizer = videoar_jax.load_tokenizer(tmp_path / "new" / "tokenizer")
  latents = tokenizer.encode(np.moveaxis(arrays["x"], 1, -1)[:, None])
  schedule = tuple((int(h), int(w)) for _, h, w in arrays["schedule"])
  decoded = tokenizer.decode(tokenizer.quantize(latents, schedule).quantized)
  np.testing.assert_allclose(decoded[:, 0], np.moveaxis(arrays["recon"], 1, -1), atol=2e-5)
  saved = json.loads((tmp_path / "new" / "tokenizer" / "tokenizer.json").read_text())
  assert checkpoint.name in saved["source"] and saved["config"]["num_bits"] == 48


@pytest.mark.parametrize("is_nested", [False, True])
def test_pth_gives_the_same_tokenizer(is_nested, checkpoint, tmp_path, capsys):
  torch = pytest.importorskip("torch", reason="a .pth file needs PyTorch")
  state = {key: torch.from_numpy(value) for key, value in load_file(checkpoint).items()}
  nested = {"vae": state, "image_disc": {"weight": torch.zeros(2)}, "step": 3}
  torch.save(nested if is_nested else state, tmp_path / "vae.pth")
  status, said = run(tmp_path / "vae.pth", tmp_path / "out", capsys)
  assert status == 0 and ("image_disc" in said) == is_nested
  run(checkpoint, tmp_path / "same", capsys)
  ours, same = (load_file(tmp_path / name / "tokenizer.safetensors") for name in ("out", "same"))
  assert ours.keys() == same.keys()
  for name in ours:
    np.testing.assert_array_equal(ours[name], same[name])


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_a_prefix_that_all_keys_share_is_left_out(suffix, tmp_path):
  """As DataParallel and torch.compile add them."""
  path, arrays = tmp_path / f"vae.{suffix}", {"a.x": np.ones(2, np.float32), "b": np.zeros(3)}
  named = {f"module._orig_mod.{key}": value for key, value in arrays.items()}
  if suffix == "pth":
    torch = pytest.importorskip("torch", reason="a .pth file needs PyTorch")
    torch.save({"vae": {key: torch.from_numpy(value) for key, value in named.items()}}, path)
  else:
    save_file(named, path)
  found, _ = read_tensors(path, parts=["vae"])
  assert found.keys() == arrays.keys()
  for key, value in arrays.items():
    np.testing.assert_array_equal(found[key], value)


@pytest.mark.parametrize(
  ("part", "parts", "others"),
  [
    ("gpt_fsdp", infinity.PARTS, []),
    ("trainer.gpt_fsdp", infinity.PARTS, ["epoch", "trainer.vae_local"]),
    ("trainer.gpt_wo_ddp", infinity.PARTS, ["epoch", "trainer.vae_local"]),
    ("trainer.vae_local", tokenizers.PARTS, ["epoch", "trainer.gpt_fsdp"]),
    ("state_dict", infinity.PARTS, []),
  ],
)
def test_weights_in_training_checkpoints_are_found(part, parts, others, tmp_path):
  """Whatever is beside them: settings, optimizers, other networks."""
  torch = pytest.importorskip("torch", reason="a .pth file needs PyTorch")
  whole = {}
  for name in (part, *others):
    *outer, last = name.split(".")
    node = whole
    for key in outer:
      node = node.setdefault(key, {})
    node[last] = 3 if name == "epoch" else {"module.x": torch.ones(2), "module.y": torch.zeros(3)}
  torch.save(whole, tmp_path / "checkpoint.pth")
  found, unused = read_tensors(tmp_path / "checkpoint.pth", parts=parts)
  assert sorted(found) == ["x", "y"] and sorted(unused) == sorted(others)
  torch.save({"epoch": 3, "best": {"x": torch.ones(2)}}, tmp_path / "checkpoint.pth")
  with pytest.raises(ValueError, match=r"not tensors: epoch, best; save the tensors in"):
    read_tensors(tmp_path / "checkpoint.pth", parts=parts)


def test_a_pth_of_float8_gets_a_sentence(tmp_path):
  torch = pytest.importorskip("torch", reason="a .pth file needs PyTorch")
  small = torch.zeros(2, 2).to(torch.float8_e4m3fn)
  torch.save({"a": small, "b": torch.zeros(2)}, tmp_path / "vae.pth")
  with pytest.raises(ValueError, match=r"tensor 'a' is of type torch\.float8_e4m3fn, as 1 of 2"):
    read_tensors(tmp_path / "vae.pth")


class Code:
  """Code that a pickle could run."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return (pathlib.Path.touch, (self.path,))


def test_pickled_code_is_refused_and_not_run(tmp_path, capsys):
  torch = pytest.importorskip("torch", reason="a .pth file needs PyTorch")
  torch.save({"vae": {}, "code": Code(tmp_path / "ran")}, tmp_path / "bad.pth")
  assert "contains code" in refused(tmp_path / "bad.pth", tmp_path / "out", capsys)
  assert not (tmp_path / "ran").exists()


def test_damaged_files_are_named(checkpoint, tmp_path, capsys):
  whole = checkpoint.read_bytes()
  cases = {"half": whole[: len(whole) // 2], "head": whole[:4], "text": b"no weights", "empty": b""}
  for name, content in cases.items():
    (tmp_path / f"{name}.safetensors").write_bytes(content)
    said = refused(tmp_path / f"{name}.safetensors", tmp_path / "out", capsys)
    assert f"{name}.safetensors is cut off or damaged" in said


def test_damaged_pth_files_are_named(checkpoint, tmp_path, capsys):
  torch = pytest.importorskip("torch", reason="a .pth file needs PyTorch")
  torch.save({"weight": torch.zeros(1000)}, tmp_path / "whole.pth")
  whole = (tmp_path / "whole.pth").read_bytes()
  cases = {"half": whole[: len(whole) // 2], "text": b"no weights", "empty": b""}
  for name, content in cases.items():
    (tmp_path / f"{name}.pth").write_bytes(content)
    said = refused(tmp_path / f"{name}.pth", tmp_path / "out", capsys)
    assert f"{name}.pth is cut off or damaged" in said
  torch.save([1, 2], tmp_path / "list.pth")
  assert "not tensors by key" in refused(tmp_path / "list.pth", tmp_path / "out", capsys)
  torch.save({"a": 1}, tmp_path / "numbers.pth")
  assert "not tensors: a" in refused(tmp_path / "numbers.pth", tmp_path / "out", capsys)


def test_without_torch_a_pth_names_what_to_install(tmp_path, capsys, monkeypatch):
  monkeypatch.setitem(sys.modules, "torch", None)
  (tmp_path / "vae.pth").write_bytes(b"")
  assert "pip install" in refused(tmp_path / "vae.pth", tmp_path / "out", capsys)


def test_wrong_files_and_folders_are_named(checkpoint, tmp_path, capsys):
  out = tmp_path / "out"
  assert "is not a file" in refused(tmp_path / "nope.pth", out, capsys)
  (tmp_path / "a.npz").touch()
  assert "must be a .safetensors or a .pth file" in refused(tmp_path / "a.npz", out, capsys)
  save_file({"layer.weight": np.zeros((2, 2), np.float32)}, tmp_path / "other.safetensors")
  said = refused(tmp_path / "other.safetensors", out, capsys)
  assert "other.safetensors: it holds no Infinity image tokenizer" in said
  tensors = load_file(checkpoint)
  del tensors["encoder.conv_in.conv.bias"]
  save_file(tensors, tmp_path / "less.safetensors")
  said = refused(tmp_path / "less.safetensors", out, capsys)
  assert "missing encoder.conv_in.conv.bias (32,)" in said
  assert "is a file; name a folder" in refused(checkpoint, tmp_path / "a.npz" / "x", capsys)
  out.mkdir()
  (out / "mine.txt").touch()
  assert "is not empty" in refused(checkpoint, out, capsys)


def test_a_failed_write_leaves_nothing(checkpoint, tmp_path, capsys, monkeypatch):
  def fail(self, target):
    raise OSError("disk full")

  monkeypatch.setattr(pathlib.Path, "replace", fail)
  assert "disk full" in refused(checkpoint, tmp_path / "out", capsys)


def test_a_damaged_folder_is_named(checkpoint, tmp_path, capsys):
  folder = tmp_path / "out"
  run(checkpoint, folder, capsys)
  weights, text = folder / "tokenizer.safetensors", folder / "tokenizer.json"
  whole = weights.read_bytes()
  weights.write_bytes(whole[:-9])
  with pytest.raises(ValueError, match="safetensors is cut off or damaged"):
    videoar_jax.load_tokenizer(folder)
  weights.write_bytes(whole)
  text.write_text(text.read_text().replace('"num_bits": 48', '"num_bits": 32'))
  with pytest.raises(ValueError, match="does not fit"):
    videoar_jax.load_tokenizer(folder)
  text.write_text("{}")
  with pytest.raises(ValueError, match="json is damaged"):
    videoar_jax.load_tokenizer(folder)
