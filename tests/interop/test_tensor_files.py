"""Checkpoints in one or several files: read lazily, and what is wrong with them is named."""

import hashlib
import json

import ml_dtypes
import numpy as np
import pytest

from videoar_jax.interop import tensor_files, tensors
from videoar_jax.interop.tensor_files import TensorFiles

ARRAYS = {
  "module.a": np.arange(6, dtype=np.float32).reshape(2, 3),
  "module.b": np.array(2, np.float32),
  "module.c": np.arange(4, dtype=np.float32).astype(ml_dtypes.bfloat16),
}


def write_shards(folder):
  names = list(ARRAYS)
  tensors.write(folder / "m-1.safetensors", {name: ARRAYS[name] for name in names[:2]})
  tensors.write(folder / "m-2.safetensors", {name: ARRAYS[name] for name in names[2:]})
  files = dict.fromkeys(names[:2], "m-1.safetensors") | {names[2]: "m-2.safetensors"}
  write_index(folder, files)
  return files


def write_index(folder, files):
  (folder / "m.safetensors.index.json").write_text(json.dumps({"weight_map": files}))


def test_one_file_a_folder_and_an_index_hold_the_same(tmp_path):
  write_shards(tmp_path)
  (tmp_path / "whole").mkdir()
  tensors.write(tmp_path / "whole" / "m.safetensors", ARRAYS)
  for path in ("", "m.safetensors.index.json", "whole", "whole/m.safetensors"):
    found = TensorFiles(tmp_path / path)
    assert found.keys() == ARRAYS.keys()
    assert found.shapes == {name: value.shape for name, value in ARRAYS.items()}
    bare = tensor_files.without_prefix(found)
    for name, value in ARRAYS.items():
      np.testing.assert_array_equal(found[name], value)
      np.testing.assert_array_equal(bare[name.removeprefix("module.")], value)
      assert name not in bare and found[name].dtype == value.dtype


def test_what_does_not_fit_is_named(tmp_path):
  files = write_shards(tmp_path)

  def said(text, path=tmp_path):
    with pytest.raises(ValueError, match=text):
      TensorFiles(path)

  said("nothing does not exist", tmp_path / "nothing")
  (tmp_path / "empty").mkdir()
  said("empty has no .safetensors files", tmp_path / "empty")
  write_index(tmp_path, files | {"module.d": "m-2.safetensors"})
  said("names 1 tensors that its files lack: module.d")
  write_index(tmp_path, files | {"module.d": "m-3.safetensors"})
  said("names files that are missing: m-3.safetensors")
  write_index(tmp_path, files | {"module.d": "../m-2.safetensors"})
  said("must be in its own folder")
  (tmp_path / "m.safetensors.index.json").write_text("[]")
  said("is not an index")
  write_index(tmp_path, files)
  (tmp_path / "n.safetensors.index.json").write_text("{}")
  said("several indices, m.safetensors.index.json, n.safetensors.index.json")
  for index in tmp_path.glob("*.json"):
    index.unlink()
  tensors.write(tmp_path / "m-3.safetensors", {"module.a": ARRAYS["module.a"]})
  said("m-3.safetensors: the tensor 'module.a' is in another file")
  (tmp_path / "m-3.safetensors").unlink()
  whole = (tmp_path / "m-2.safetensors").read_bytes()
  (tmp_path / "m-2.safetensors").write_bytes(whole[:-3])
  said("m-2.safetensors is cut off or damaged")


def test_arrays_that_are_written_one_at_a_time_are_as_they_were(tmp_path):
  path = tmp_path / "file.safetensors"
  kinds = {name: (value.shape, value.dtype) for name, value in ARRAYS.items()}
  kinds["half"] = ((3, 2), np.dtype(np.float16))
  arrays = ARRAYS | {"half": ARRAYS["module.a"].T}
  digest = tensors.write_each(path, kinds, arrays.__getitem__)
  assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
  found = tensors.read(path)
  assert found.keys() == arrays.keys() and found["half"].dtype == np.float16
  for name, value in arrays.items():
    np.testing.assert_array_equal(found[name], value)
  with pytest.raises(ValueError, match=r"half has shape \(3, 2\), not \(2, 3\)"):
    tensors.write_each(path, kinds | {"half": ((2, 3), np.float16)}, arrays.__getitem__)
  assert tensors.read(path).keys() == arrays.keys()  # The file is as it was.
