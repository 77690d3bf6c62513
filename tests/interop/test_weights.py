"""Foreign weights: what is read out of a package, and what is rejected."""

import os
import pathlib
import pickle
import tarfile

import numpy as np
import pytest

from videoar_jax.interop import tensors, weights

MEMBER = "made_up/weights/net.ckpt"
ARRAYS = {
  "a": {"b/c": np.arange(6, dtype=np.float32).reshape(2, 3)},
  "d": np.ones((1, 1, 4), np.float16),
}


def make_package(folder, content: bytes, *, as_archive: bool, copies: int = 1) -> pathlib.Path:
  """Writes a source package with the given pickle in it."""
  root = folder / "made_up-1.0"
  for i in range(copies):
    path = root / ("x" * i) / MEMBER
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
  if not as_archive:
    return root
  archive = folder / "made_up-1.0.tar.gz"
  with tarfile.open(archive, "w:gz") as tar:
    tar.add(root, root.name)
  return archive


@pytest.mark.parametrize("as_archive", [True, False])
@pytest.mark.parametrize("protocol", [3, 4])
def test_reads_arrays_by_path(tmp_path, as_archive, protocol):
  package = make_package(tmp_path, pickle.dumps(ARRAYS, protocol), as_archive=as_archive)
  arrays = weights.read_pickle(package, MEMBER)
  assert set(arrays) == {"a/b/c", "d"}
  np.testing.assert_array_equal(arrays["a/b/c"], [[0, 1, 2], [3, 4, 5]])
  assert arrays["d"].shape == (1, 1, 4)


def test_reads_what_numpy_1_wrote(tmp_path):
  content = pickle.dumps(ARRAYS, 3).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
  assert b"numpy.core" in content
  package = make_package(tmp_path, content, as_archive=True)
  assert set(weights.read_pickle(package, MEMBER)) == {"a/b/c", "d"}


class Touch:
  """Creates a file when an unrestricted unpickler loads it."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return os.mkdir, (str(self.path),)


def test_code_is_refused_by_name_and_not_run(tmp_path):
  mark = tmp_path / "mark"
  content = pickle.dumps({"a": ARRAYS["d"], "b": Touch(mark)}, 3)
  package = make_package(tmp_path, content, as_archive=True)
  with pytest.raises(ValueError, match=r"names posix\.mkdir, but only numpy arrays"):
    weights.read_pickle(package, MEMBER)
  assert not mark.exists()
  pickle.loads(content)
  assert mark.exists()  # So the pickle was a working one.


@pytest.mark.parametrize(
  ("tree", "wanted"),
  [
    ([np.zeros(2)], "its root is a list"),
    ({"a": {"b": 3}}, "a/b is a int"),
    ({"a": np.arange(3)}, "a is a array of int64"),
    ({"a": np.array([{}], object)}, "a is a array of object"),
    ({"a": np.float32(3)}, r"names numpy\._core\.multiarray\.scalar"),
  ],
)
def test_anything_but_arrays_of_floats_is_refused(tmp_path, tree, wanted):
  package = make_package(tmp_path, pickle.dumps(tree, 4), as_archive=False)
  with pytest.raises(ValueError, match=wanted):
    weights.read_pickle(package, MEMBER)


def test_damaged_and_wrong_packages(tmp_path):
  whole = pickle.dumps(ARRAYS, 4)
  for name, content in (("cut", whole[:-40]), ("empty", b""), ("text", b"hello\n" * 9)):
    (tmp_path / name).mkdir()
    package = make_package(tmp_path / name, content, as_archive=False)
    with pytest.raises(ValueError, match=r"net\.ckpt in .* is (not a complete pickle|rejected)"):
      weights.read_pickle(package, MEMBER)
  package = make_package(tmp_path, whole, as_archive=True)
  with pytest.raises(ValueError, match=r"has no files \.\.\./other\.ckpt"):
    weights.read_pickle(package, "other.ckpt")
  package.write_bytes(package.read_bytes()[:150])
  with pytest.raises(ValueError, match=r"is not a complete \.tar\.gz"):
    weights.read_pickle(package, MEMBER)
  with pytest.raises(ValueError, match="missing does not exist"):
    weights.read_pickle(tmp_path / "missing", MEMBER)
  (tmp_path / "two").mkdir()
  package = make_package(tmp_path / "two", whole, as_archive=True, copies=2)
  with pytest.raises(ValueError, match="has 2 files"):
    weights.read_pickle(package, MEMBER)


def test_check_lists_every_key():
  arrays = {"a": np.zeros(3), "b": np.zeros((2, 2)), "z": np.zeros(1)}
  with pytest.raises(ValueError) as caught:
    weights.check(arrays, {"a": (3,), "b": (4,), "c": (1,), "d": (1,)}, "FILE")
  assert str(caught.value) == (
    "FILE does not have the network's weights: missing: c; missing: d; unexpected: z; "
    "shape: b is (2, 2), should be (4,)"
  )


def test_save_and_load(tmp_path, monkeypatch):
  path = tmp_path / "new" / "net.safetensors"
  # A transposed array is not laid out as its shape says.
  weights.save(path, {"a": np.arange(6.0).reshape(2, 3).T})
  arrays = weights.load(path, {"a": (3, 2)})
  assert arrays["a"].dtype == np.float32
  np.testing.assert_array_equal(arrays["a"], [[0, 3], [1, 4], [2, 5]])
  with pytest.raises(ValueError, match="missing: b"):
    weights.load(path, {"a": (3, 2), "b": (1,)})
  with pytest.raises(ValueError, match="there are no weights in"):
    weights.load(tmp_path / "none.safetensors", {})
  before = path.read_bytes()

  def fail(arrays):
    raise OSError("No space left on device")

  monkeypatch.setattr(tensors, "to_bytes", fail)
  with pytest.raises(OSError, match="No space"):
    weights.save(path, {"a": np.zeros(2)})
  assert path.read_bytes() == before
  assert list(path.parent.iterdir()) == [path]
  path.write_bytes(before[:-3])
  with pytest.raises(ValueError, match="is cut off or damaged"):
    weights.load(path, {"a": (3, 2)})


def test_default_path(monkeypatch, tmp_path):
  monkeypatch.setenv("HOME", str(tmp_path))
  monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
  monkeypatch.delenv("VIDEOAR_JAX_WEIGHTS", raising=False)
  below = pathlib.Path("videoar_jax/weights/lpips.safetensors")
  assert weights.default_path("lpips") == tmp_path / ".cache" / below
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "c"))
  assert weights.default_path("lpips") == tmp_path / "c" / below
  monkeypatch.setenv("VIDEOAR_JAX_WEIGHTS", str(tmp_path / "w"))
  assert weights.default_path("lpips") == tmp_path / "w" / "lpips.safetensors"
