"""NOVA from config to clips, through the commands, at a size that compiles fast."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import compiled_by
from flax import nnx
from tiny_nova import make_config

import videoar_jax
from videoar_jax import convert, sample
from videoar_jax.experiment import run
from videoar_jax.models.nova import generate, loss, orders
from videoar_jax.models.nova.config import NovaConfig
from videoar_jax.models.nova.network import Nova
from videoar_jax.models.nova.noise import DDPM, Flow
from videoar_jax.models.nova.task import NovaLossConfig
from videoar_jax.models.nova.temporal import TemporalEncoder
from videoar_jax.models.nova.tokens import patchify, places, rotary_angles
from videoar_jax.parallel.mesh import MeshConfig, make_mesh

PROMPTS = ["a large red circle moves left", "a small blue star moves up"]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(run, "start_log", lambda path: None)
    folder = tmp_path_factory.mktemp("nova") / "run"
    run.Run(make_config(), folder).train()
  return folder


@pytest.fixture(scope="module")
def model(workdir):
  return videoar_jax.load_model(workdir)


def test_a_clip_does_not_depend_on_its_batch(model):
  both = model.sample(PROMPTS, seed=1)
  assert both.shape == (2, 5, 16, 16, 3)
  alone = model.sample(PROMPTS[1:], seed=1, sample_ids=[1])
  # One unit is the rounding of pixels.
  assert np.abs(alone[0].astype(int) - both[1]).max() <= 1
  other = model.sample(PROMPTS[1:], seed=2, sample_ids=[1])
  assert np.abs(other[0].astype(int) - both[1]).max() > 1


def test_a_second_model_compiles_nothing(workdir, model):
  expected = model.sample(PROMPTS[:1], seed=3)
  scores = model.score(PROMPTS[:1], expected)
  other = videoar_jax.load_model(workdir)
  clips, compiled = compiled_by(lambda: other.sample(PROMPTS[:1], seed=3))
  np.testing.assert_array_equal(clips, expected)
  found, more = compiled_by(lambda: other.score(PROMPTS[:1], expected))
  assert found == scores and not compiled + more


def test_clips_begin_with_what_is_given(model):
  image = np.full((16, 16, 3), 90, np.uint8)
  clip = model.sample(PROMPTS[:1], image=image)
  coded = model.tokenizer.decode(model.tokenizer.encode(image[None, None] / 127.5 - 1.0))
  expected = np.round(np.clip((np.asarray(coded)[0, 0] + 1) * 127.5, 0, 255))
  assert np.abs(clip[0, 0] - expected).max() <= 1
  longer = model.sample(PROMPTS[:1], 9, overlap_frames=3)
  assert longer.shape[1] == 9
  extended = model.extend(longer, PROMPTS[:1], 11, overlap_frames=1)
  np.testing.assert_array_equal(extended[:, :9], longer)


def test_scores_do_not_depend_on_batches_or_devices(workdir, model):
  video = np.random.default_rng(0).integers(0, 256, (3, 5, 16, 16, 3), np.uint8)
  prompts = [PROMPTS[0], *PROMPTS]
  alone = [model.score(prompts[i : i + 1], video[i : i + 1]) for i in range(3)]
  mesh = make_mesh(MeshConfig(data=2))
  shared = videoar_jax.load_model(workdir, mesh=mesh).score(prompts, video)
  for name in ("loss", "loss_first", "loss_later"):
    expected = np.concatenate([each[name] for each in alone])
    np.testing.assert_allclose(shared[name], expected, rtol=1e-5)
    assert len(set(expected.tolist())) == 3
  np.testing.assert_allclose(shared["loss"], shared["loss_first"] + shared["loss_later"], rtol=1e-6)


def test_wrong_requests_are_named(model):
  for settings, text in (
    ({"motion": 3.0}, "without motion tokens"),
    ({"num_frames": 9}, "need overlap_frames"),
    ({"temperature": 1.0}, "temperature: no such setting; there are num_ar_steps"),
    ({"num_ar_steps": 0}, "num_ar_steps=0"),
    ({"guidance_renorm": 0.0}, "guidance_renorm=0"),
  ):
    with pytest.raises(ValueError, match=text):
      model.sample(PROMPTS[:1], **settings)


def test_an_exported_model_and_its_tokenizer_load(workdir, model, tmp_path):
  assert convert.main(["model", f"--workdir={workdir}", f"--out={tmp_path / 'm'}"]) == 0
  same = videoar_jax.load_model(tmp_path / "m").sample(PROMPTS, seed=1)
  np.testing.assert_array_equal(same, model.sample(PROMPTS, seed=1))
  rounded = [videoar_jax.load_model(path, dtype="int8") for path in (tmp_path / "m", workdir)]
  jax.tree.map(np.testing.assert_array_equal, *(each.generator for each in rounded))
  assert rounded[0].sample(PROMPTS, seed=1).shape == same.shape
  video = np.zeros((1, 5, 16, 16, 3), np.float32)
  tokenizer = videoar_jax.load_tokenizer(tmp_path / "m" / "tokenizer")
  np.testing.assert_array_equal(tokenizer.encode(video), model.tokenizer.encode(video))
  with pytest.raises(ValueError, match=r"video_patch_size=2 does not divide latents of 3x4"):
    videoar_jax.load_model(workdir, resolution=(12, 16))


def test_the_command_takes_the_flags_of_the_family(workdir, tmp_path, capsys):
  flags = [f"--workdir={workdir}", f"--prompt={PROMPTS[0]}", f"--out={tmp_path}"]
  assert sample.main([*flags, "--num_samples=1", "--num_ar_steps=2", "--guidance=1"]) == 0
  assert len(list(tmp_path.glob("*.mp4"))) == 1
  for flag, text in (
    ("--temperature=0.5", "--temperature is a setting of videoar, but the run's family is nova"),
    ("--guidance=ucf101", "--guidance=ucf101 is not a number"),
  ):
    assert sample.main([*flags, flag]) == 2
    assert text in capsys.readouterr().err


def test_sets_and_steps_of_any_grouping_make_the_same_clip(model, monkeypatch):
  net, text = model.generator, jnp.asarray(model.text_encoder.encode(PROMPTS[0]))[None]
  null = jnp.asarray(model.text_encoder.null())
  plan = generate.Plan(2, (4, 4), 5, 5, DDPM(), generate.Guidance(2.0))
  draws = generate.key_draws(0, jnp.arange(1), plan, net.config)
  made = []
  # In one chunk, and in three of two steps, of which the last one has a step too many.
  largest = orders.set_sizes(5, 16).max()
  for groups, ahead in ((1, 2**25), (5, 2 * 2 * largest * net.head.num_factors)):
    monkeypatch.setattr(generate, "_NUM_GROUPS", groups)
    monkeypatch.setattr(generate, "_MAX_FACTORS", int(ahead))
    # A new function each time, since the numbers are no arguments.
    make = jax.jit(lambda net: generate.generate(net, plan, text, null, None, draws))
    made.append(make(net))
  assert np.abs(made[0] - made[1]).max() < 1e-5 * np.abs(made[0]).max()


def test_every_token_is_filled_in_once():
  for steps, tokens in ((1, 7), (4, 16), (64, 24), (100, 1440)):
    sizes = orders.set_sizes(steps, tokens)
    assert sizes.sum() == tokens and sizes.min() >= 1 and len(sizes) <= steps


def test_known_tokens_of_training_follow_the_distribution():
  keys = jax.random.split(jax.random.key(0), 4000)
  known = np.asarray(jax.vmap(lambda key: orders.UnknownShare().draw_num_known(key, 1000))(keys))
  assert known.min() >= 0 and known.max() <= orders.UnknownShare().most_known(1000) == 300
  # Of a normal distribution around all unknown, cut off at 0.7, with deviation 0.25.
  x = np.linspace(0, 1.2, 10_001)
  density = np.exp(-(x**2) / 2)
  expected = 250 * (x * density).sum() / density.sum()
  assert abs(known.mean() - expected) < 6


def test_a_small_base_tells_places_of_small_grids_apart():
  def similarity(base):
    table = places((4, 4), 64, base)
    table = table / np.linalg.norm(table, axis=1, keepdims=True)
    return (table @ table.T)[0, 1:].max()

  assert 1 - similarity(10.0) > 2 * (1 - similarity(10_000.0))
  np.testing.assert_array_equal(places((4, 4), 64), places((4, 4), 64, 10_000.0))
  positions = jnp.array([[0.0, 1.0, 3.0]])
  # An eighth of a head for time, then rows: from 1 radian a token down to 1 / base.
  angles = rotary_angles(positions, 32, 10.0)[0]
  np.testing.assert_allclose(angles[2:9], 10.0 ** (-np.arange(0, 14, 2) / 14), rtol=1e-6)
  with pytest.raises(ValueError, match=r"generator\.position_base=0\.5 must be at least 1"):
    NovaConfig(position_base=0.5)


def test_shares_of_unknown_tokens_can_be_uniform():
  share = orders.UnknownShare(least=0.0, deviation=10.0)
  keys = jax.random.split(jax.random.key(0), 16_000)
  known = np.asarray(jax.vmap(lambda key: share.draw_num_known(key, 16))(keys))
  counts = np.bincount(known, minlength=16)
  assert len(counts) == 16 == share.most_known(16) + 1  # One is always unknown.
  # Rounding gives half of the interval to 0, and one and a half to 15.
  np.testing.assert_allclose(counts[1:15], 1000, rtol=0.15)
  np.testing.assert_allclose(counts[[0, 15]], [500, 1500], rtol=0.15)
  assert orders.UnknownShare(least=1.0).most_known(16) == 0


@pytest.mark.parametrize(
  ("share", "num_tokens"),
  [
    (orders.UnknownShare(least=0.0, deviation=0.4, num_ranges=4), 1024),
    (orders.UnknownShare(least=0.0, deviation=0.4, num_ranges=2), 16),
    (orders.UnknownShare(num_ranges=3), 64),
    (orders.UnknownShare(least=0.0, deviation=10.0, num_ranges=3), 9),
  ],
)
def test_ranges_of_known_tokens_are_about_equally_likely(share, num_tokens):
  ranges, most = share.ranges(num_tokens), share.most_known(num_tokens)
  assert [x for low, high, _ in ranges for x in range(low, high + 1)] == list(range(most + 1))
  keys = jax.random.split(jax.random.key(0), 20_000)
  known = np.asarray(jax.vmap(lambda key: share.draw_num_known(key, num_tokens))(keys))
  found = [np.mean((known >= low) & (known <= high)) for low, high, _ in ranges]
  np.testing.assert_allclose(found, [chance for *_, chance in ranges], atol=0.015)
  np.testing.assert_allclose(found, 1 / share.num_ranges, atol=0.08)


def test_no_range_of_known_tokens_is_empty():
  share = orders.UnknownShare(least=0.0, deviation=0.4, num_ranges=4)
  assert [each[:2] for each in share.ranges(2)] == [(0, 0), (1, 1)]
  assert orders.UnknownShare(least=1.0, num_ranges=3).ranges(16) == ((0, 0, 1.0),)


def test_branches_make_the_loss_and_gradients_of_one_program():
  config = NovaConfig(
    d_model=16, num_heads=2, num_video_layers=1, num_image_layers=2, head_mlp_dim=8,
    num_head_layers=1, patch_size=1, video_patch_size=2, num_channels=2, mixer_rank=0,
    text_dim=0, vocabulary_size=8, text_length=3, has_motion=False, noise="flow",
  )  # fmt: skip
  net, process = Nova(nnx.Rngs(0), config), config.process()
  structure, params = nnx.split(net)
  latents = jax.random.normal(jax.random.key(1), (2, 3, 4, 4, 2))
  whole, divided = (orders.UnknownShare(0.0, 0.4, num) for num in (1, 3))

  @functools.partial(jax.jit, static_argnums=1)
  def step(num_known, unknown):
    draws = loss.draw(jax.random.key(2), 6, 16, 2, 2, process)._replace(num_known=num_known)

    def total(params):
      net = nnx.merge(structure, params)
      prefix = net.temporal.prefix(jnp.ones((2, 3), jnp.int32), None, jnp.float32)
      result, parts = loss.training_loss(net, latents, prefix, draws, process, unknown)
      # Twice, so that the gradient is not that of the loss itself.
      return 2 * result + parts[0], parts

    return jax.value_and_grad(total, has_aux=True)(params)

  ranges = divided.ranges(16)
  assert len(ranges) == 3
  for known in {edge for low, high, _ in ranges for edge in (low, high)}:
    expected, found = (step(known, unknown) for unknown in (whole, divided))
    np.testing.assert_allclose(found[0][0], expected[0][0], rtol=1e-5)
    np.testing.assert_allclose(found[0][1], expected[0][1], rtol=1e-5)
    gradients, wanted = (
      np.concatenate([np.ravel(x) for x in jax.tree.leaves(each[1])]) for each in (found, expected)
    )
    np.testing.assert_allclose(gradients, wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())
    assert np.abs(wanted).max() > 1e-3


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"num_known_ranges": 0}, r"num_known_ranges=0 must be at least 1"),
    ({"min_unknown": 1.5}, r"min_unknown=1\.5 must be in \[0, 1\]"),
    ({"min_unknown": -0.1}, r"min_unknown=-0\.1 must be"),
    ({"unknown_deviation": 0.0}, r"unknown_deviation=0\.0 must be positive"),
  ],
)
def test_shares_that_do_not_exist_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    NovaLossConfig(**fields)


def test_a_later_slot_does_not_change_an_earlier_one():
  config = NovaConfig(
    d_model=32, num_heads=1, num_video_layers=2, num_image_layers=2, mlp_ratio=1, mixer_rank=0,
    num_channels=2, video_patch_size=2, patch_size=1, vocabulary_size=5, text_length=3,
  )  # fmt: skip
  for positions in ("absolute", "rope"):
    own = dataclasses.replace(config, positions=positions)
    encoder = TemporalEncoder(nnx.Rngs(params=jax.random.key(0)), own)
    clips = jax.random.normal(jax.random.key(1), (1, 4, 4, 4, 2))
    prefix = encoder.prefix(jnp.array([[1, 2, 0]]), None, jnp.float32)
    changed = clips.at[:, 2].add(1.0)
    first, second = (encoder(prefix, x) for x in (clips, changed))
    same = np.abs(np.asarray(first - second)).max((0, 2, 3)) < 1e-5
    # Slot 3 is the first that sees frame 2.
    assert same.tolist() == [True, True, True, False]


def test_patches_are_rows_of_cells():
  latents = np.arange(2 * 4 * 4 * 3).reshape(2, 4, 4, 3).astype(np.float32)
  tokens = patchify(jnp.asarray(latents), 2)
  np.testing.assert_array_equal(tokens[1, 1], latents[1, :2, 2:4].reshape(-1))


def test_windows_of_a_longer_clip_have_different_random_numbers(model):
  """From the same frames, the second window is no repetition of the first."""
  config, ids = model.generator.config, jnp.arange(2)
  plan = generate.Plan(1, (4, 4), 1, 1, Flow(), generate.Guidance(1.0))
  starts = [generate.key_draws(5, ids, plan, config, window).start(0, 0) for window in (0, 3, 5)]
  for i, start in enumerate(starts):
    for other in starts[:i]:
      assert np.abs(start - other).min(axis=(1, 2)).max() > 0
      assert np.abs(start - other).mean() > 0.5
  image = np.full((1, 1, 16, 16, 3), 90, np.uint8)
  windows = [
    model._clips(PROMPTS[:1], 5, 1, image, None, {}, window)[:, 1:].astype(int) for window in (0, 3)
  ]
  assert np.abs(windows[0] - windows[1]).max() > 1
