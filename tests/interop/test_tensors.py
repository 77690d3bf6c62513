"""Safetensors files: what is written is what is read, and what cannot be read is named."""

import json

import ml_dtypes
import numpy as np
import pytest

from videoar_jax.interop import tensors, weights
from videoar_jax.text.features import TextFeatures

COUNT = np.arange(12, dtype=np.float32).reshape(3, 4)


@pytest.mark.parametrize(
  "array",
  [
    COUNT.T,
    COUNT[:, ::-2],
    COUNT[::2],
    np.broadcast_to(COUNT[0], (2, 4)),
    np.asfortranarray(COUNT),
    COUNT.astype(">f4"),
    COUNT.astype(">i8").T,
    COUNT.astype(ml_dtypes.bfloat16).T,
    np.array(3, np.float32),
    COUNT[:0].T,
    COUNT > 5,
  ],
  ids=str,
)
def test_arrays_of_any_layout_are_as_they_were(tmp_path, array):
  tensors.write(tmp_path / "file", {"a": array, "b": COUNT})
  found = tensors.read(tmp_path / "file")
  assert found["a"].shape == np.shape(array)
  assert found["a"].dtype == np.asarray(array).dtype.newbyteorder("=")
  np.testing.assert_array_equal(found["a"], array)
  np.testing.assert_array_equal(found["b"], COUNT)
  assert tensors.shapes(tmp_path / "file") == {"a": np.shape(array), "b": (3, 4)}


@pytest.mark.parametrize("kind", ["F8_E4M3", "F8_E5M2"])
def test_types_that_numpy_lacks_get_a_sentence(tmp_path, kind):
  """A file as a float8 checkpoint has it."""
  facts = {"dtype": kind, "shape": [2, 2], "data_offsets": [0, 4]}
  header = json.dumps({"__metadata__": {"format": "pt"}, "layer.weight": facts}).encode()
  path = tmp_path / "small.safetensors"
  path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
  said = rf"small\.safetensors: the tensor 'layer\.weight' is of type {kind}, .*1 of 1.*as bfloat16"
  for read in (
    tensors.read,
    lambda path: weights.load(path, {"layer.weight": (2, 2)}),
    lambda path: weights.check_file(path, {"layer.weight": (2, 2)}),
    lambda path: TextFeatures(str(path), 2),
  ):
    with pytest.raises(ValueError, match=said):
      read(path)


def test_a_prefix_that_all_names_share_is_left_out(tmp_path):
  path, shapes = tmp_path / "file", {"a.x": (3, 4), "b.x": (4, 3)}
  arrays = {"a.x": COUNT.astype(np.float16), "b.x": COUNT.T}
  for prefix in ("", "module.", "_orig_mod.", "model.", "module._orig_mod."):
    tensors.write(path, {prefix + name: value for name, value in arrays.items()})
    weights.check_file(path, shapes)
    found = weights.load(path, shapes)
    for name in shapes:
      assert found[name].dtype == np.float32
      np.testing.assert_array_equal(found[name], arrays[name])
  tensors.write(path, {"module.a.x": COUNT, "other.b.x": COUNT.T})
  with pytest.raises(ValueError, match=r"missing: a\.x; missing: b\.x; unexpected: module\.a\.x"):
    weights.load(path, shapes)


def test_random_changes_of_bytes_give_arrays_or_a_sentence(tmp_path):
  rng = np.random.default_rng(0)
  whole = np.frombuffer(tensors.to_bytes({"": COUNT, "a red star": COUNT[1:]}), np.uint8)
  num_refused = 0
  for i in range(400):
    path = tmp_path / f"{i}.safetensors"
    data = whole.copy()
    # Most of them in the header, at the start.
    last = len(data) if rng.random() < 0.2 else len(data) - 2 * COUNT.nbytes
    places = rng.integers(0, last, rng.integers(1, 6))
    data[places] = rng.integers(0, 256, len(places))
    path.write_bytes(data[: rng.integers(0, len(data)) if rng.random() < 0.1 else None].tobytes())
    try:
      tensors.read(path)
      features = TextFeatures(str(path), 4)
      for prompt in tensors.shapes(path):
        features.encode(prompt)
    except ValueError:
      num_refused += 1
  assert 200 < num_refused < 400
