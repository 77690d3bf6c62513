import time

import numpy as np
import pytest

from videoar_jax.data.synthetic import captions, shapes, sprites
from videoar_jax.data.synthetic.sprites import SpritesSource


def source(split="train", num_frames=17, resolution=(64, 64), num_objects=1, seed=0):
  return SpritesSource(
    split, num_frames=num_frames, resolution=resolution, num_objects=num_objects, seed=seed
  )


def test_versions_differ_in_the_sizes_of_objects():
  """The scenes are the same, but for how large objects are and where they therefore start."""
  old, new = (
    SpritesSource("train", num_frames=1, resolution=(64, 64), version=version) for version in (1, 2)
  )
  radii = {"small": [], "large": []}
  for index in range(200):
    (scene, (path,)), (before, _) = new.scene(index), old.scene(index)
    assert scene == before
    radii[scene.objects[0].size].append(float(path.radius))
  for size, (low, high) in {"small": (0.14, 0.155), "large": (0.20, 0.215)}.items():
    assert low <= min(radii[size]) < low + 0.002 and high - 0.002 < max(radii[size]) <= high
  with pytest.raises(ValueError, match="version is 3; the versions are 1, 2"):
    SpritesSource("train", num_frames=1, resolution=(64, 64), version=3)


@pytest.mark.parametrize("num_objects", [1, 2, (1, 2)])
def test_a_shorter_clip_is_the_beginning_of_a_longer_one(num_objects):
  short, long = (
    source(num_frames=9, num_objects=num_objects),
    source(num_frames=70, num_objects=num_objects),
  )
  for index in range(20):
    a, b = short[index], long[index]
    assert np.array_equal(a["video"], b["video"][:9])
    assert a["caption"] == b["caption"]


def test_half_the_rate_is_every_second_frame():
  settings = {"resolution": (32, 32), "seed": 0}
  slow = SpritesSource("train", num_frames=9, frame_rate=sprites.FRAME_RATE / 2, **settings)
  for index in range(5):
    expected = source(num_frames=17, resolution=(32, 32))[index]["video"][::2]
    np.testing.assert_array_equal(slow[index]["video"], expected)


def test_an_item_is_a_function_of_seed_split_and_index_alone():
  first = source()[5]
  other = source()
  other[9]
  assert np.array_equal(other[5]["video"], first["video"])
  for changed in (source(seed=1)[5], source("test")[5], source()[6]):
    assert not np.array_equal(changed["video"], first["video"])


def test_item_is_what_it_says():
  item = source(resolution=(48, 80), num_frames=5)[3]
  assert item["video"].shape == (5, 48, 80, 3) and item["video"].dtype == np.uint8
  assert captions.parse_caption(item["caption"]) == item["attributes"]
  assert item["class_id"] == captions.class_id(item["attributes"].objects[0])
  assert item["id"] == 3


def test_larger_clips_show_the_same_scene():
  small, large = source(resolution=(32, 32))[1]["video"], source(resolution=(128, 128))[1]["video"]
  reduced = large.reshape(17, 32, 4, 32, 4, 3).mean(axis=(2, 4))
  assert np.abs(reduced - small).mean() < 1.0


def test_training_never_shows_held_out_combinations_and_testing_does():
  def held_out(split):
    scenes = [source(split, num_objects=2).scene(i)[0] for i in range(300)]
    return [captions.is_held_out(s.shape, s.colour, s.motion) for c in scenes for s in c.objects]

  assert not any(held_out("train"))
  assert 0.06 < np.mean(held_out("test")) < 0.2


@pytest.mark.parametrize("shape", captions.SHAPES)
@pytest.mark.parametrize("centre", [(30.0, 30.0), (30.3, 29.6)])
def test_shapes_have_the_area_and_centre_they_are_asked_for(shape, centre):
  alphas, corners = shapes.coverage(shape, 12.0, np.array([centre]))
  picture = np.zeros((60, 60))
  x, y = corners[0]
  picture[y : y + alphas.shape[1], x : x + alphas.shape[2]] = alphas[0]
  assert picture.sum() == pytest.approx(np.pi * 12**2, rel=0.02)
  rows, columns = np.mgrid[:60, :60] + 0.5
  assert (picture * columns).sum() / picture.sum() == pytest.approx(centre[0], abs=0.1)
  assert (picture * rows).sum() / picture.sum() == pytest.approx(centre[1], abs=0.1)
  # Nothing is cut off by the box.
  assert max(alphas[0][[0, -1]].max(), alphas[0][:, [0, -1]].max()) == 0


def box(path, shape, num_frames):
  left, right, up, down = path.radius * np.array(shapes.EXTENTS[shape])
  centres = path.at(np.arange(num_frames))
  return centres - (left, up), centres - (-right, -down)


@pytest.mark.parametrize("resolution", [(64, 64), (64, 112)])
def test_paths_are_as_their_names_say(resolution):
  height, width = np.array(resolution) / min(resolution)
  for index in range(400):
    scene, (path,) = source("test", resolution=resolution).scene(index)
    sprite = scene.objects[0]
    low, high = box(path, sprite.shape, 17)
    # A large star needs a little more room than there is.
    out = max(-low.min(), (high - (width, height)).max())
    assert out < (0.02 if sprite.shape == "star" else 1e-9)
    steps = np.diff(path.at(np.arange(17)), axis=0)
    speed = np.linalg.norm(path.velocity)
    assert 0.025 <= speed <= 0.03
    signs = np.sign(steps)
    if sprite.motion == "bounce":
      fine = path.at(np.arange(0, 9, 0.01))
      turns = np.nonzero((np.diff(np.sign(np.diff(fine, axis=0)), axis=0) != 0).any(1))[0]
      assert 2.9 < turns[0] / 100 < 5.1
    else:
      direction = tuple(int(s) for s in signs[0])
      names = {(-1, 0): "left", (1, 0): "right", (0, -1): "up", (0, 1): "down"}
      assert names.get(direction, "diagonal") == sprite.motion
      assert np.allclose(steps, path.velocity)


def test_objects_that_leave_come_back_from_the_other_side_and_are_never_on_both():
  axes = {"left": (1, 3), "right": (1, 3), "up": (2, 3), "down": (2, 3)}
  for index in range(60):
    scene, (path,) = source().scene(index)
    if scene.objects[0].motion in axes:
      video = source(num_frames=90)[index]["video"]
      background = sprites.BACKGROUND_PALETTE[scene.background]
      lines = (video != np.array(background)).any(axis=axes[scene.objects[0].motion])
      assert not (lines[:, 0] & lines[:, -1]).any()
      assert lines[:, 0].any() and lines[:, -1].any()
      # It is out of mask, but just so, where it goes from one side to the other.
      left, right, up, down = path.radius * np.array(shapes.EXTENTS[scene.objects[0].shape])
      assert np.allclose(path.low, (-right, -down))
      assert np.allclose(path.high, (1 + left, 1 + up))
    elif scene.objects[0].motion == "bounce":
      low, high = box(path, scene.objects[0].shape, 200)
      assert low.min() > -1e-9 and high.max() < 1 + 1e-9


def test_two_objects_differ_in_colour_and_rarely_meet():
  gaps = []
  for index in range(300):
    scene, paths = source(num_objects=2).scene(index)
    assert scene.objects[0].colour != scene.objects[1].colour
    gaps.append(sprites.smallest_gap(scene.objects, paths))
  assert np.mean(np.array(gaps) <= 0) < 0.06


def test_colours_are_exact_inside_and_mixed_at_edges():
  item = source()[0]
  scene = item["attributes"]
  found = {tuple(c) for c in item["video"].reshape(-1, 3).tolist()}
  assert sprites.PALETTE[scene.objects[0].colour] in found
  assert sprites.BACKGROUND_PALETTE[scene.background] in found
  assert len(found) > 20


@pytest.mark.slow  # Its bound is of a usual core; some machines have slower ones.
@pytest.mark.parametrize("num_objects", [1, 2])
def test_makes_300_clips_a_second(num_objects, without_type_checks):
  clips, times = source(num_objects=num_objects), []
  for repeat in range(7):
    start = time.thread_time()  # Not the wall clock: others use this machine too.
    for index in range(20):
      clips[20 * repeat + index]
    times.append((time.thread_time() - start) / 20)
  assert 1 / np.median(times) > 300
