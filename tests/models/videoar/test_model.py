"""Layout, attention mask, rotary positions, and cached decoding against the full forward pass."""

import dataclasses
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from sequences import frame_ids, keep_of_window, scale_ids

from videoar_jax.models.videoar import corruption, guidance
from videoar_jax.models.videoar.config import GeneratorConfig
from videoar_jax.models.videoar.decode import decode, sample_bits, sample_keys
from videoar_jax.models.videoar.layout import Layout
from videoar_jax.models.videoar.network import Generator
from videoar_jax.nn.mask import AttentionMask
from videoar_jax.nn.rope import frequency_axes, rope_angles, rotate
from videoar_jax.parallel.mesh import MeshConfig, make_mesh

LAYOUT = Layout(text_length=5, num_frames=3, schedule=((1, 1), (2, 2), (3, 4)))
LAYOUTS = (
  LAYOUT,
  dataclasses.replace(LAYOUT, context="full_frame"),
  dataclasses.replace(
    LAYOUT, context="full_frame", prev_frame_input="all_scales", rope_grid="latent"
  ),
)
NAMES = ("paper", "final", "final-all-latent")
CONFIG = GeneratorConfig(
  num_layers=2,
  d_model=32,
  num_heads=4,
  num_kv_heads=2,
  head_dim=16,
  mlp_dim=48,
  num_bits=6,
  vocabulary_size=11,
)
TEXT = jnp.array([[3, 4, 5, 6, 1], [7, 1, 0, 0, 0]])
NULL = jnp.array([1, 0, 0, 0, 0])


def make_model(config=CONFIG, layout=LAYOUT):
  """A model with only random parameters, the zero-initialised head included."""
  model = Generator(nnx.Rngs(params=0), config, layout)
  leaves, tree = jax.tree.flatten(model)
  keys = jax.random.split(jax.random.key(9), len(leaves))
  drawn = [x + 0.2 * jax.random.normal(key, x.shape) for x, key in zip(leaves, keys, strict=True)]
  return jax.tree.unflatten(tree, drawn)


@pytest.fixture(scope="module")
def model():
  return make_model()


def make_batch(layout):
  latents = jax.random.normal(jax.random.key(1), (2, 3, 3, 4, 6))
  return corruption.corrupt(latents, layout.schedule, prev_frame_input=layout.prev_frame_input)


@pytest.fixture(scope="module")
def batch():
  return make_batch(LAYOUT)


@pytest.mark.parametrize("layout", LAYOUTS, ids=NAMES)
def test_layout_by_brute_force(layout):
  has_final = layout.context == "full_frame"
  tokens = [(-1, -1, i, i, i) for i in range(5)]
  for t in range(3):
    grids = list(enumerate(layout.schedule))
    if has_final and t < 2:
      grids.append((3, (3, 4)))
    for s, (h, w) in grids:
      # In the latent's grid, a cell lies at the mean of the cells that it covers.
      is_latent = layout.rope_grid == "latent"
      rows = [(3 * y + 3 * (y + 1) - h) / (2 * h) if is_latent else y for y in range(h)]
      columns = [(4 * x + 4 * (x + 1) - w) / (2 * w) if is_latent else x for x in range(w)]
      tokens += [(t, s, 5 + t, 5 + y, 5 + x) for y in rows for x in columns]
  assert len(tokens) == layout.length == 5 + 3 * 17 + has_final * 2 * 12
  ids = np.array(tokens)
  np.testing.assert_array_equal(ids[:, 0], frame_ids(layout))
  np.testing.assert_array_equal(ids[:, 1], scale_ids(layout))
  np.testing.assert_allclose(layout.positions, ids[:, 2:], atol=1e-6)

  def sees(query, key, q, k):
    (tq, sq, *_), (tk, sk, *_) = query, key
    if tq == -1:
      return k <= q
    if tk == -1:
      return True
    if tk < tq:
      return sk == 3 or not has_final
    return tk == tq and (sk == 3 if sq == 3 else sk <= sq)

  expected = [[sees(a, b, q, k) for k, b in enumerate(tokens)] for q, a in enumerate(tokens)]
  np.testing.assert_array_equal(layout.visible(), expected)
  for s in range(3):
    frame = scale_ids(layout)[5:22]
    np.testing.assert_array_equal(np.flatnonzero(frame == s), np.r_[layout.scale_slice(s)])


def test_full_text_attention():
  layout = dataclasses.replace(LAYOUT, text_attention="full")
  assert layout.visible()[:5, :5].all() and not layout.visible()[:5, 5:].any()


@pytest.mark.parametrize("layout", LAYOUTS, ids=NAMES)
def test_mask_hides_padding_and_dropped_frames(layout):
  text_mask = TEXT != 0
  keep = jnp.ones((2, 3, 3), bool).at[0, 2, 0].set(False)
  mask = np.asarray(AttentionMask(layout.mask(), text_mask, keep).mask())
  # What later frames see of a frame: all of it, or its complete latent.
  frames = np.where(scale_ids(layout) == 3, frame_ids(layout), -2)
  frames = np.where(frame_ids(layout) == 2, 2, frames) if layout.final_size else frame_ids(layout)
  frames = np.where(frame_ids(layout) == -1, -1, frames)
  assert not mask[1, 5:, 2:5].any() and mask[1, 5:, :2].all()
  assert not mask[0][np.ix_(frames == 2, frames == 0)].any()
  assert mask[0][np.ix_(frames == 2, frames == 1)].all()
  assert mask[1][np.ix_(frames == 2, frames == 0)].all()
  assert mask[0][np.ix_(frames == 2, frames == -1)].all()
  assert mask.any(-1).all()


def test_rope_depends_on_differences_per_axis():
  x, y = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 16))
  settings = {"base": 10000.0, "fractions": (0.25, 0.375, 0.375)}

  def score(p, q):
    turn = lambda z, position: rotate(z, rope_angles(np.array([position]), 16, **settings))  # noqa: E731
    return float(jnp.sum(turn(x, p) * turn(y, q)))

  assert abs(score((3, 4, 5), (1, 1, 1)) - score((5, 7, 9), (3, 4, 5))) < 1e-4
  for axis in range(3):
    moved = [1, 1, 1]
    moved[axis] += 1
    assert abs(score((3, 4, 5), (1, 1, 1)) - score((3, 4, 5), tuple(moved))) > 1e-4
  # Equal positions are ordinary RoPE: frequency i turns by base^(-i / pairs).
  angles = rope_angles(np.array([[7, 7, 7]]), 16, **settings)[0]
  np.testing.assert_allclose(angles, 7 * 10000.0 ** (-np.arange(8) / 8), rtol=1e-6)


def test_interleaved_rope_gives_each_axis_high_and_low_frequencies():
  fractions = (0.25, 0.375, 0.375)
  sections = frequency_axes(64, fractions, is_interleaved=False)
  np.testing.assert_array_equal(sections, np.repeat([0, 1, 2], [8, 12, 12]))
  dealt = frequency_axes(64, fractions, is_interleaved=True)
  np.testing.assert_array_equal(np.bincount(dealt), [8, 12, 12])
  for axis in range(3):
    places = np.flatnonzero(dealt == axis)
    assert places[0] <= 2 and places[-1] >= 29 and np.diff(places).max() <= 5
  # Equal positions remain ordinary RoPE, whichever axis a frequency belongs to.
  settings = {"base": 100.0, "fractions": fractions}
  plain = rope_angles(np.array([[3, 3, 3]]), 64, **settings)
  np.testing.assert_array_equal(
    rope_angles(np.array([[3, 3, 3]]), 64, **settings, is_interleaved=True), plain
  )


def forward(model, batch, **kwargs):
  return model(TEXT, batch.features, LAYOUT, **kwargs)


def test_no_token_sees_the_future(model, batch):
  """Changing one block's input changes exactly the logits that see it."""
  logits = forward(model, batch)
  changed_features = batch.features.at[:, 1, LAYOUT.scale_slice(1)].add(1.0)
  changed = model(TEXT, changed_features, LAYOUT)
  moved = np.abs(np.asarray(changed - logits)).max(-1) > 1e-5
  assert not moved[:, 0].any() and not moved[:, 1, LAYOUT.scale_slice(0)].any()
  assert moved[:, 1, 1:].all() and moved[:, 2].all()


def test_later_frames_see_the_complete_latent(batch):
  layout = LAYOUTS[1]
  model = make_model(layout=layout)

  def run(latents):
    return model(TEXT, batch.features, layout, quantized=latents)

  moved = np.abs(run(batch.quantized.at[:, 1].add(1.0)) - run(batch.quantized)).max((-1, -2)) > 1e-5
  np.testing.assert_array_equal(moved, [[False, False, True]] * 2)
  with pytest.raises(ValueError, match="complete latents"):
    model(TEXT, batch.features, layout)


def test_learned_positions_end():
  model = make_model(dataclasses.replace(CONFIG, positions="learned"))
  longer = dataclasses.replace(LAYOUT, num_frames=4)
  with pytest.raises(ValueError, match="learned positions"):
    decoded(model, sample_keys(0, jnp.arange(2)), longer, guidance=jnp.ones((4, 3)))


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("rope_fractions", (0.5, 0.5)),
    ("rope_base", 0.0),
    ("context", "none"),
    ("prev_frame_input", "no"),
    ("rope_grid", "no"),
    ("remat", True),
    ("attention", "flash"),
  ],
)
def test_impossible_settings_are_named(field, value, wrong_types):
  with pytest.raises(ValueError, match=field):
    if field in ("context", "prev_frame_input", "rope_grid"):
      dataclasses.replace(LAYOUT, **{field: value})
    else:
      dataclasses.replace(CONFIG, **{field: value})


def test_padding_does_not_matter(model, batch):
  other = make_model()
  rows = other.text_embedding.table
  rows[...] = rows[...].at[0].add(3.0)
  np.testing.assert_allclose(forward(other, batch), forward(model, batch), atol=1e-6)
  rows[...] = rows[...].at[7].add(3.0)
  assert jnp.abs(forward(other, batch) - forward(model, batch))[1].max() > 1e-3


@pytest.mark.parametrize("layout", LAYOUTS, ids=NAMES)
def test_gradients_with_remat_or_unrolled_equal_those_without(layout):
  batch = make_batch(layout)

  def gradient(**settings):
    model = make_model(dataclasses.replace(CONFIG, **settings), layout)

    def loss(model):
      kwargs = {"quantized": batch.quantized}
      return jnp.sum(jnp.sin(model(TEXT, batch.features, layout, **kwargs)))

    return jax.tree.leaves(jax.jit(jax.grad(loss))(model))

  expected = gradient(remat="none")
  for settings in (
    {"remat": "dots"},
    {"remat": "full", "attention": "dense"},
    {"remat": "none", "scan_layers": False},
  ):
    for a, b in zip(gradient(**settings), expected, strict=True):
      np.testing.assert_allclose(a, b, atol=1e-4)
  assert max(float(jnp.abs(x).max()) for x in expected) > 0.1


@pytest.mark.parametrize(("sequence", "layout"), [(2, LAYOUTS[0]), (1, LAYOUTS[1])], ids=NAMES[:2])
def test_a_sequence_that_is_filled_up_for_the_kernel_gives_the_same(sequence, layout):
  """Padded to 128 tokens of any content; the interpreted kernel against dense attention."""
  batch = make_batch(layout)

  def run(attention, mesh):
    model = make_model(dataclasses.replace(CONFIG, attention=attention), layout)

    def loss(model):
      logits = model(TEXT, batch.features, layout, quantized=batch.quantized, frame_keep=keep)
      return jnp.sum(jnp.sin(logits))

    with jax.set_mesh(make_mesh(mesh, jax.devices()[: mesh.sequence])):
      lowered = jax.jit(jax.value_and_grad(loss)).lower(model)
      assert ("tensor<2x128x32xf32>" in lowered.as_text()) == (attention == "splash")
      return jax.tree.leaves(lowered.compile()(model))

  keep = jax.random.bernoulli(jax.random.key(3), 0.5, (2, 3, 3))
  expected = run("dense", MeshConfig(data=1))
  for a, b in zip(run("splash", MeshConfig(data=1, sequence=sequence)), expected, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("attention", ["dense", "blocked"])
def test_bfloat16_activations_are_near(batch, attention):
  """Logits, parameters and gradients are float32; the gradients point in the same direction."""

  def gradient(dtype):
    model = make_model(dataclasses.replace(CONFIG, dtype=dtype, attention=attention))
    loss = lambda model: jnp.sum(jnp.square(forward(model, batch)))  # noqa: E731
    return jax.jit(lambda model: (forward(model, batch), jax.grad(loss)(model)))(model)

  (logits, exact), (rounded, found) = gradient("float32"), gradient("bfloat16")
  assert {x.dtype for x in jax.tree.leaves((rounded, found))} == {np.dtype(np.float32)}
  error = float(jnp.abs(rounded - logits).max() / jnp.abs(logits).max())
  assert 1e-5 < error < 0.05
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True):
    assert jnp.vdot(a, b) > 0.98 * jnp.linalg.norm(a) * jnp.linalg.norm(b)


def check_split(attention, num_kv_heads, slack, **sizes):
  """Compares a gradient on a mesh with one device's, and checks each device's share of the work."""
  layout = dataclasses.replace(LAYOUT, text_length=6)
  batch, text = make_batch(layout), jnp.pad(TEXT, ((0, 0), (0, 1)))
  config = dataclasses.replace(CONFIG, attention=attention, num_kv_heads=num_kv_heads)
  model = make_model(config, layout)

  def loss(model):
    return jnp.sum(jnp.sin(model(text, batch.features, layout)))

  found, flops = [], []
  for mesh in (MeshConfig(data=1), MeshConfig(data=1, **sizes)):
    ways = mesh.sequence * mesh.tensor
    with jax.set_mesh(make_mesh(mesh, jax.devices()[:ways])):
      lowered = jax.jit(jax.value_and_grad(loss)).lower(model)
      compiled = lowered.compile()
      flops.append(compiled.cost_analysis()["flops"])
      found.append(compiled(model))
  # Of its 57 tokens, devices have an equal number.
  assert "tensor<2x58x32xf32>" in lowered.as_text()
  # Each device has its share of the work and, in time, no part of the others'.
  assert flops[1] < slack / ways * flops[0], flops
  for one, two in zip(*map(jax.tree.leaves, found), strict=True):
    np.testing.assert_allclose(one, two, atol=1e-4)


@pytest.mark.parametrize(
  ("attention", "num_kv_heads"),
  # With one head of keys, two devices share it.
  [("dense", 2), ("blocked", 1), ("blocked", 2)],
)
def test_a_sequence_is_split_over_devices_and_attention_by_heads(attention, num_kv_heads):
  check_split(attention, num_kv_heads, 1.15, sequence=2)


def test_a_sequence_and_heads_are_split_together():
  """On four devices, in another process."""
  folder = pathlib.Path(__file__).parent
  paths = [str(folder.parents[1] / "helpers"), str(folder)]
  lines = (
    f"import sys; sys.path[:0] = {paths!r}",
    "from test_model import check_split",
    "check_split('blocked', 2, 1.5, sequence=2, tensor=2)",
  )
  flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
  flags["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
  done = subprocess.run(
    [sys.executable, "-c", "\n".join(lines)],
    cwd=folder.parents[2],
    env=os.environ | flags,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr[-3000:]


def test_heads_that_do_not_divide_over_a_sequence_are_named():
  model = make_model(dataclasses.replace(CONFIG, num_heads=3, num_kv_heads=1))
  mesh = make_mesh(MeshConfig(data=1, sequence=2), jax.devices()[:2])
  wrong = pytest.raises(ValueError, match=r"'attended_heads' of size 3 .*mesh\.sequence")
  with jax.set_mesh(mesh), wrong:
    jax.eval_shape(lambda model: forward(model, make_batch(LAYOUT)), model)


def test_remat_saves_memory():
  """Each policy keeps less for the backward pass than the previous one."""
  text = jax.ShapeDtypeStruct((8, 5), jnp.int32)
  features = jax.ShapeDtypeStruct((8, 3, 17, 6), jnp.float32)

  def temporaries(remat):
    config = dataclasses.replace(CONFIG, num_layers=12, remat=remat, attention="dense")

    def loss(model, text, features):
      return jnp.sum(model(text, features, LAYOUT))

    model = jax.eval_shape(lambda: Generator(nnx.Rngs(params=0), config, LAYOUT))
    gradient = jax.jit(jax.grad(loss), compiler_options={"xla_backend_optimization_level": 0})
    compiled = gradient.lower(model, text, features).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  none, dots, full = (temporaries(remat) for remat in ("none", "dots", "full"))
  assert none > 1.5 * dots and dots > 1.5 * full, (none, dots, full)


def test_window_is_a_table_of_kept_frames(model, batch):
  keep = keep_of_window(2, 3, 1)
  logits = forward(model, batch, window=1)
  np.testing.assert_allclose(logits, forward(model, batch, frame_keep=keep), atol=1e-5)
  assert float(jnp.abs(logits - forward(model, batch)).max()) > 0.01


def test_scan_equals_unrolled(model, batch):
  logits = forward(model, batch)
  mask, angles = AttentionMask(LAYOUT.mask(), TEXT != 0), model.angles(LAYOUT.positions)
  video = model.embed_features(batch.features, LAYOUT, jnp.arange(3)[:, None] == 0)
  x = jnp.concatenate([model.embed_text(TEXT, jnp.float32), video.reshape(2, -1, 32)], 1)
  for layer in range(CONFIG.num_layers):
    block = jax.tree.map(lambda p, layer=layer: p[layer], model.blocks)
    x, _ = block(x, angles, mask)
  np.testing.assert_allclose(model.logits(x[:, 5:]).reshape(logits.shape), logits, atol=1e-5)


def decoded(model, keys, layout=LAYOUT, **kwargs):
  settings = {"guidance": jnp.full((3, 3), 2.0), "temperature": 1.0, **kwargs}
  return jax.jit(lambda model, keys: decode(model, layout, TEXT, NULL, keys, **settings))(
    model, keys
  )


@pytest.mark.parametrize("layout", LAYOUTS, ids=NAMES)
@pytest.mark.parametrize("positions, window", [("rope", None), ("rope", 1), ("learned", None)])
def test_cached_decoding_equals_full_forward(positions, window, layout):
  model = make_model(dataclasses.replace(CONFIG, positions=positions), layout)
  g = jnp.linspace(0.5, 4.0, 9).reshape(3, 3)
  out = decoded(model, sample_keys(0, jnp.arange(2)), layout, guidance=g, window=window)
  # The sampled bits, not a fresh quantization, are what the decoder went on with.
  features = features_of(out.bits, layout.prev_frame_input)
  keep = keep_of_window(2, 3, window)
  null = jnp.broadcast_to(NULL, TEXT.shape)
  kwargs = {"frame_keep": keep, "quantized": out.quantized}
  conditional = model(TEXT, features, layout, **kwargs)
  unconditional = model(null, features, layout, **kwargs)
  table = jnp.repeat(g, np.array(LAYOUT.scale_sizes), axis=1)[None, :, :, None]
  expected = table * conditional + (1 - table) * unconditional
  assert float(jnp.abs(expected).max()) > 1.0
  np.testing.assert_allclose(out.logits, expected, atol=1e-4)


def features_of(bits, prev_frame_input):
  """The decoder's inputs, computed from its own bits by the formula."""
  from videoar_jax.nn.resize import area_resize, linear_resize
  from videoar_jax.tokenizers.bsq.quantizer import bits_to_codes

  frames, before = [], jnp.zeros((2, 3, 4, 6))
  for t in range(3):
    total, parts = jnp.zeros((2, 3, 4, 6)), []
    for s, grid in enumerate(LAYOUT.schedule):
      source = area_resize(before, grid) if s == 0 else linear_resize(total, grid)
      if prev_frame_input == "all_scales":
        source = jnp.concatenate([source, area_resize(before, grid)], -1)
      parts.append(source.reshape(2, grid[0] * grid[1], -1))
      total = total + linear_resize(bits_to_codes(bits[s][:, t]), (3, 4))
    frames.append(jnp.concatenate(parts, 1))
    before = total
  return jnp.stack(frames, 1)


def test_samples_depend_on_their_own_key_only(model):
  keys = sample_keys(3, jnp.arange(2))
  both = decoded(model, keys)
  swapped = decoded(model, jnp.stack([keys[0], sample_keys(3, 7 + jnp.arange(1))[0]]))
  for a, b in zip(both.bits, swapped.bits, strict=True):
    np.testing.assert_array_equal(a[0], b[0])
  assert any((a[1] != b[1]).any() for a, b in zip(both.bits, swapped.bits, strict=True))
  np.testing.assert_array_equal(
    jax.random.key_data(sample_keys(3, 1 + jnp.arange(1))[0]), jax.random.key_data(keys[1])
  )


def test_forced_frames_are_kept(model):
  free = decoded(model, sample_keys(0, jnp.arange(2)))
  forced = [1 - bits for bits in free.bits]
  out = decoded(model, sample_keys(0, jnp.arange(2)), conditioning=[bits[:, :2] for bits in forced])
  for a, b in zip(out.bits, forced, strict=True):
    np.testing.assert_array_equal(a[:, :2], b[:, :2])
    assert a.shape == b.shape
  assert any((a[:, 2] != b[:, 2]).any() for a, b in zip(out.bits, forced, strict=True))


def test_bit_sampling():
  keys = sample_keys(0, jnp.arange(512))
  logits = jnp.broadcast_to(jnp.array([-1.0, 0.5, 2.0]), (512, 4, 3))
  p = np.asarray(jax.nn.sigmoid(logits[0, 0]))
  draw = lambda **kwargs: np.asarray(sample_bits(keys, logits, **kwargs)).mean((0, 1))  # noqa: E731
  np.testing.assert_allclose(draw(temperature=1.0, top_p=1.0), p, atol=0.04)
  halved = np.asarray(jax.nn.sigmoid(logits[0, 0] / 2))
  np.testing.assert_allclose(draw(temperature=2.0, top_p=1.0), halved, atol=0.04)
  np.testing.assert_array_equal(draw(temperature=0.0, top_p=1.0), [0, 1, 1])
  # 1 - p of the third is 0.12, which is dropped at top-p 0.8; the others keep both values.
  kept = draw(temperature=1.0, top_p=0.8)
  assert kept[2] == 1.0 and 0 < kept[0] < 1 and 0 < kept[1] < 1


def test_guidance_schedules(tmp_path):
  table = guidance.guidance_table("ucf101", 5, 6)
  np.testing.assert_allclose(table[:, 0], [1, 2, 3, 4, 5])
  np.testing.assert_allclose(table[:, -1], 10)
  np.testing.assert_allclose(np.diff(table[1]), 8 / 5, rtol=1e-5)
  t2v = guidance.guidance_table("t2v", 5, 6)
  assert t2v[0, 0] == 5 and t2v[-1, -1] == 3 and (np.diff(t2v.reshape(-1)) < 0).all()
  assert (guidance.guidance_table("constant:3", 2, 2) == 3).all()
  assert (guidance.guidance_table(1.5, 2, 2) == 1.5).all()
  (tmp_path / "g.json").write_text("[[1, 2], [3, 4]]")
  assert guidance.guidance_table(str(tmp_path / "g.json"), 2, 2)[1, 0] == 3
  with pytest.raises(ValueError, match=r"\(2, 2\).*\(3, 2\)"):
    guidance.guidance_table(str(tmp_path / "g.json"), 3, 2)
  with pytest.raises(ValueError, match="unknown"):
    guidance.guidance_table("strong", 3, 2)
  (tmp_path / "bad.json").write_text('{"1": [2]}')
  with pytest.raises(ValueError, match=r"bad\.json holds no table of numbers"):
    guidance.guidance_table(str(tmp_path / "bad.json"), 3, 2)


def test_guidance_of_a_clip_of_another_length(tmp_path):
  """The first rows are those of the trained length; further frames repeat the last row."""
  (tmp_path / "g.json").write_text("[[1, 2], [3, 4], [5, 6]]")
  for spec in ("ucf101", "t2v", str(tmp_path / "g.json")):
    trained = guidance.guidance_table(spec, 3, 2)
    np.testing.assert_array_equal(guidance.guidance_table(spec, 2, 2, 3), trained[:2])
    longer = guidance.guidance_table(spec, 5, 2, 3)
    np.testing.assert_array_equal(longer, trained[[0, 1, 2, 2, 2]])
  # A table for this very clip counts, too; others do not.
  assert guidance.guidance_table(str(tmp_path / "g.json"), 3, 2, 5)[2, 1] == 6
  with pytest.raises(ValueError, match=r"need \(4, 2\) or \(5, 2\)"):
    guidance.guidance_table(str(tmp_path / "g.json"), 4, 2, 5)


def test_features_of_text_are_as_good_as_tokens():
  """A linear layer on one-hot features is a lookup; it gives the same logits and bits."""
  tokens = make_model()
  features = Generator(
    nnx.Rngs(params=0), dataclasses.replace(CONFIG, vocabulary_size=0, text_dim=11), LAYOUT
  )
  features.text_embedding.kernel[...] = tokens.text_embedding.table[...]
  for name in ("scale_embedding", "start", "feature_in", "blocks", "norm_out", "head"):
    setattr(features, name, getattr(tokens, name))
  batch = make_batch(LAYOUT)
  one_hot = lambda text: jax.nn.one_hot(text, 11) * (text != 0)[..., None]  # noqa: E731
  logits = tokens(TEXT, batch.features, LAYOUT)
  np.testing.assert_allclose(features(one_hot(TEXT), batch.features, LAYOUT), logits, atol=1e-5)
  table, keys = jnp.full((3, 3), 2.0), sample_keys(0, jnp.arange(2))
  plain = decode(tokens, LAYOUT, TEXT, NULL, keys, table)
  given = decode(features, LAYOUT, one_hot(TEXT), one_hot(NULL), keys, table)
  np.testing.assert_allclose(given.logits, plain.logits, atol=1e-4)
  for one, other in zip(given.bits, plain.bits, strict=True):
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("layout", LAYOUTS, ids=NAMES)
def test_wide_tokens_are_never_parted_into_frames(layout):
  """TPU's compiler takes minutes to reshape `[b, t n, m]` if n is not a multiple of 8."""
  inputs = make_batch(layout)

  def logits(features, latents):
    return make_model(layout=layout)(TEXT, features, layout, quantized=latents)

  traced = jax.make_jaxpr(logits)(inputs.features, inputs.quantized)
  shapes = [x.aval.shape for equation in traced.eqns for x in equation.outvars]
  assert any(len(shape) == 3 and shape[-1] == CONFIG.d_model for shape in shapes)
  assert not [shape for shape in shapes if len(shape) == 4 and shape[-1] == CONFIG.d_model]
