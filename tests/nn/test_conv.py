"""Our convolution against that of `lax`, and causality."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videoar_jax.nn.conv import CausalConv3d, conv3d, num_past, without_zero_taps

CASES = [
  ((1, 1, 1), ((1, 1), (1, 1)), 3, 5),
  ((1, 1, 1), ((1, 0), (2, 1)), 3, 3),
  ((2, 2, 2), ((0, 1), (0, 1)), 3, 5),
  ((2, 1, 1), ((1, 1), (1, 1)), 3, 2),
  ((1, 2, 2), ((0, 1), (0, 1)), 3, 4),
  ((1, 1, 1), ((0, 0), (0, 0)), 1, 5),
]


@pytest.mark.parametrize("num_frames", [1, 4, 5])
@pytest.mark.parametrize("has_past", [False, True])
@pytest.mark.parametrize(("stride", "pads", "size", "num_out"), CASES)
def test_rewrite_equals_lax(stride, pads, size, num_out, num_frames, has_past):
  x = jax.random.normal(jax.random.key(0), (2, num_frames, 6, 4, 3))
  num = num_past(size, stride[0])
  past = jax.random.normal(jax.random.key(2), (2, num, 6, 4, 3)) if has_past else None
  kernel = jax.random.normal(jax.random.key(1), (size, size, size, 3, num_out))

  def run(rewrite):
    def loss(x, kernel):
      y = conv3d(x, kernel, stride=stride, pads=pads, past=past, rewrite=rewrite)
      return jnp.sum(jnp.sin(y)), y

    gradients, y = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(x, kernel)
    return (y, *gradients)

  if has_past and num_frames < stride[0]:
    return  # No output.
  for ours, theirs in zip(run(True), run(False), strict=True):
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, atol=5e-6 * float(jnp.abs(theirs).max()))


@pytest.mark.parametrize("num_frames", [2, 4, 5])
@pytest.mark.parametrize(
  ("size", "stride", "time_pads"), [(3, 1, (1, 1)), (7, 2, (2, 3)), (7, 2, (3, 3)), (2, 1, (0, 1))]
)
def test_rewrite_equals_lax_where_time_is_not_causal(size, stride, time_pads, num_frames):
  x = jax.random.normal(jax.random.key(0), (2, num_frames, 5, 4, 2))
  kernel = jax.random.normal(jax.random.key(1), (size, 3, 3, 2, 3))
  settings = {"stride": (stride, 1, 1), "pads": ((1, 1), (1, 1)), "time_pads": time_pads}
  ours, theirs = (conv3d(x, kernel, **settings, rewrite=rewrite) for rewrite in (True, False))
  assert ours.shape == theirs.shape
  np.testing.assert_allclose(ours, theirs, atol=5e-6 * float(jnp.abs(theirs).max()))


@pytest.mark.parametrize(
  ("num_frames", "stride", "has_past", "num_taps"),
  [
    (1, 1, False, 1),
    (2, 1, False, 2),
    (3, 1, False, 3),
    (1, 2, False, 1),
    (3, 2, False, 3),
    (1, 1, True, 3),
    (4, 2, True, 3),
  ],
)
def test_taps_that_see_only_padding_are_left_out(num_frames, stride, has_past, num_taps):
  """A single frame costs no more than an image convolution, where `lax` convolves."""
  x, kernel = jnp.ones((1, num_frames, 4, 4, 2)), jnp.ones((3, 3, 3, 2, 5))
  past = jnp.ones((1, num_past(3, stride), 4, 4, 2)) if has_past else None
  settings = {"stride": (stride, 1, 1), "pads": ((1, 1), (1, 1)), "rewrite": False}
  jaxpr = jax.make_jaxpr(lambda x, kernel: conv3d(x, kernel, past=past, **settings))(x, kernel)
  (conv,) = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "conv_general_dilated"]
  assert conv.invars[1].aval.shape == (num_taps, 3, 3, 2, 5)


def test_no_frame_sees_a_later_one():
  x = jax.random.normal(jax.random.key(0), (1, 6, 4, 4, 2))
  kernel = jax.random.normal(jax.random.key(1), (3, 3, 3, 2, 2))
  settings = {"stride": (2, 1, 1), "pads": ((1, 1), (1, 1))}
  y = conv3d(x, kernel, **settings)
  changed = conv3d(x.at[:, 3].add(1.0), kernel, **settings)
  moved = np.abs(np.asarray(changed - y)).max((0, 2, 3, 4)) > 1e-6
  # Output j sees frames 2j - 2 to 2j, so frame 3 moves output 2 alone.
  np.testing.assert_array_equal(moved, [False, False, True])


@pytest.mark.parametrize(
  ("stride", "num_zero", "num_left", "repeats_first"),
  [
    (1, 0, 3, False),
    (1, 1, 2, False),
    (1, 2, 1, False),
    (1, 3, 1, False),
    (2, 2, 2, False),
    (1, 2, 1, True),
    (1, 1, 2, True),
  ],
)
def test_without_zero_taps(stride, num_zero, num_left, repeats_first):
  """Whole clips, and chunks with states that a checkpoint could hold, give the same."""
  settings = {"stride": (stride, 1, 1), "repeats_first": repeats_first}
  conv = CausalConv3d(nnx.Rngs(0), 2, 5, **settings)
  kernel = jax.random.normal(jax.random.key(1), (3, 3, 3, 2, 5)).at[:num_zero].set(0)
  conv.kernel.set_value(kernel)
  short = without_zero_taps(nnx.List([conv]))[0]
  assert len(short.kernel) == num_left and len(conv.kernel) == 3
  x = jax.random.normal(jax.random.key(2), (1, 7, 4, 4, 2))
  expected, _ = conv(x)
  parts, past = [], None
  for start, end in ((0, 1), (1, 3), (3, 7)):
    part, past = short(x[:, start:end], past)
    assert past.size
    parts.append(part)
  # A state of the whole network fits, too.
  again, _ = short(x[:, 3:], conv(x[:, :3])[1])
  np.testing.assert_allclose(again, parts[-1], atol=1e-5)
  first, _ = short(x[:, [0, 0]], jnp.zeros_like(past), jnp.asarray(True))
  for ours in (short(x)[0], jnp.concatenate(parts, axis=1)):
    np.testing.assert_allclose(ours, expected, atol=1e-5)
  np.testing.assert_allclose(first[:, -1], expected[:, 0], atol=1e-5)


def test_zero_taps_between_others_stay():
  conv = CausalConv3d(nnx.Rngs(0), 2, 2)
  conv.kernel.set_value(jnp.ones(conv.kernel.shape).at[1].set(0))
  assert len(without_zero_taps(nnx.List([conv]))[0].kernel) == 3
