"""Scores of generated clips, for fake models whose results are known."""

import types

import numpy as np
import pytest

from videoar_jax.data.pipeline import DataConfig
from videoar_jax.data.synthetic.sprites import SpritesSource
from videoar_jax.evals import drift, fvd, generation, metrics, scores

SIZE = 9  # Frames of the clips of "training".
RATE = 4.0
ORACLE = scores.Oracle(RATE)
NUM_CLIPS = 7


@pytest.fixture(scope="module")
def source():
  return Few(SIZE)


@pytest.fixture(scope="module")
def long_source():
  return Few(drift.long_length(SIZE))


class Few(SpritesSource):
  """Sprites of a limited number."""

  def __init__(self, num_frames):
    super().__init__("test", num_frames=num_frames, resolution=(32, 32), frame_rate=RATE)

  def __len__(self):
    return 2 * NUM_CLIPS


class Painter:
  """Shows what prompts ask for, unless `spoil` changes it. Has only `sample`."""

  def __init__(self, source, spoil=lambda clips: clips):
    self.clips = {item["caption"]: item["video"] for item in map(source.__getitem__, range(14))}
    self.spoil, self.calls = spoil, []

  def sample(self, prompts, num_frames=None, seed=0, **settings):
    self.calls.append((len(prompts), num_frames, seed, settings))
    return self.spoil(np.stack([self.clips[prompt] for prompt in prompts]))


def darken(clips):
  return clips // 2


GAIN = {"gain": np.array(2, np.float32)}


def mean_colour(params, clips):
  """Replaces the features of I3D."""
  return params["gain"] * clips.mean((1, 2, 3))


def test_fvd_is_of_the_captions_own_clips(source, monkeypatch):
  monkeypatch.setattr(fvd, "MIN_CLIPS", 3)
  monkeypatch.setattr(fvd, "features", mean_colour)
  monkeypatch.setattr(scores, "BATCH_SIZE", 3)
  model = Painter(source, darken)
  found = generation.measure(model, source, NUM_CLIPS, i3d_params=GAIN).scores()
  order = scores.draw(source, 2 * NUM_CLIPS)
  features = np.stack([2.0 * source[i]["video"].mean((0, 1, 2)) for i in order])
  real, others = features[:NUM_CLIPS], features[NUM_CLIPS:]
  darker = [2.0 * darken(source[i]["video"]).mean((0, 1, 2)) for i in order[:NUM_CLIPS]]
  wanted = fvd.frechet_distance(real, np.stack(darker))
  assert found["gfvd"]["value"] == pytest.approx(wanted, rel=1e-6)
  wanted = fvd.frechet_distance(real, others)
  assert found["gfvd"]["real_against_other_real_clips"] == pytest.approx(wanted, rel=1e-6)
  # Batches of one size; each with draws of its own, then one more that is timed.
  assert model.calls == [(3, None, seed, {}) for seed in (0, 3, 6, 0)]
  assert found["seconds_a_clip"] > 0
  # Clips that are the real ones, and no other real ones beside.
  found = generation.measure(Painter(source), source, len(source), i3d_params=GAIN).scores()
  assert found["gfvd"] == {
    "value": pytest.approx(0, abs=1e-6),
    "real_against_other_real_clips": None,
  }


def test_the_own_protocol_has_the_numbers_that_it_always_had(source, monkeypatch):
  """Those of the code before there were other protocols, on the same clips."""
  monkeypatch.setattr(fvd, "MIN_CLIPS", 3)
  monkeypatch.setattr(fvd, "features", mean_colour)
  found = generation.measure(Painter(source, darken), source, NUM_CLIPS, i3d_params=GAIN).scores()
  assert found["gfvd"] == {
    "value": pytest.approx(46664.92096565562, rel=1e-6),
    "real_against_other_real_clips": pytest.approx(8242.848926665964, rel=1e-6),
  }


def test_what_a_model_does_not_have_is_not_measured(source):
  found = generation.measure(Painter(source), source, 2).scores()
  left_out = ("gfvd", "prompts", "teacher_forced", "steps_a_clip", "drift")
  assert all(found[name] is None for name in left_out)


def test_the_oracle_tells_seen_combinations_from_held_out_ones(source, monkeypatch):
  monkeypatch.setattr(scores, "BATCH_SIZE", 3)
  order = scores.draw(source, NUM_CLIPS)
  captions = [source[i]["caption"] for i in order]
  held_out = [scores.is_held_out(caption) for caption in captions]
  # Half of the sprites are held out here, so that both parts have some.
  chosen = [not i % 2 for i in range(NUM_CLIPS)]
  assert not all(held_out)
  known = dict(zip(captions, chosen, strict=True))
  monkeypatch.setattr(scores, "is_held_out", lambda caption: known[caption])
  lost = chosen.index(True)
  model = Painter(source)
  model.clips[captions[lost]] = np.full_like(model.clips[captions[lost]], 255)
  found = generation.measure(model, source, NUM_CLIPS, oracle=ORACLE).scores()["prompts"]
  assert found["count"] == {"all": 7, "seen": 3, "held_out": 4}
  real = ORACLE.matches(np.stack([source[i]["video"] for i in order]), captions)
  assert found["real"]["all"] == scores.accuracy(real)
  assert found["generated"]["seen"] == found["real"]["seen"]
  wanted = found["real"]["held_out"]["colour"] - 1 / 4
  assert found["generated"]["held_out"]["colour"] == pytest.approx(wanted)
  assert found["generated"]["all"]["colour"] == pytest.approx(
    found["real"]["all"]["colour"] - 1 / 7
  )


def test_clips_that_fill_a_batch_up_do_not_count(source, monkeypatch):
  monkeypatch.setattr(scores, "BATCH_SIZE", 3)
  model, sizes = Painter(source), []
  model.num_steps = lambda num_frames: 12

  def score(prompts, clips):
    sizes.append((len(prompts), len(clips)))
    for prompt, clip in zip(prompts, clips, strict=True):
      np.testing.assert_array_equal(model.clips[prompt], clip)
    return {"loss": clips.mean((1, 2, 3, 4)), "bit_accuracy/scale_0": np.ones(len(clips))}

  model.score = score
  found = generation.measure(model, source, NUM_CLIPS).scores()
  assert sizes == [(3, 3)] * 3
  order = scores.draw(source, NUM_CLIPS)
  wanted = np.mean([source[i]["video"].mean() for i in order])
  assert found["teacher_forced"] == {"loss": pytest.approx(wanted), "bit_accuracy/scale_0": 1}
  assert found["steps_a_clip"] == 12


def test_windows_share_a_frame_and_cover_all():
  assert drift.long_length(9) == 33
  assert drift.windows_of(33, 9) == [(0, 8), (8, 16), (16, 24), (24, 32)]
  assert drift.windows_of(13, 5) == [(0, 4), (4, 8), (8, 12)]
  # Of a length that does not divide, what fills no window is left out.
  assert drift.windows_of(11, 5) == [(0, 4), (4, 8)]


def test_drift_shows_when_clips_go_wrong(source, long_source):
  """All pixels are white from frame 17 on."""

  def fade(clips):
    clips = clips.copy()
    clips[:, 17:] = 255
    return clips

  model = Painter(source)
  model.long = Painter(long_source, fade)
  sample = model.sample

  def sample_either(prompts, num_frames=None, seed=0, **settings):
    some = sample if num_frames is None else model.long.sample
    return some(prompts, num_frames, seed, **settings)

  model.sample = sample_either
  long_clips = generation.LongClips(5, SIZE, {"overlap_frames": 5}, long_source)
  found = generation.measure(model, source, 6, oracle=ORACLE, long_clips=long_clips)
  assert model.long.calls == [(5, 33, 0, {"overlap_frames": 5})]
  result = found.scores()["drift"]
  assert result["num_frames"] == 33 and result["num_clips"] == 5
  order = scores.draw(source, 5)
  captions = [source[i]["caption"] for i in order]
  real = np.stack([long_source[i]["video"] for i in order])
  for (first, last), row in zip(result["windows"], result["accuracy"]["real"], strict=True):
    matches = ORACLE.matches(real[:, first : last + 1], captions)
    assert row == scores.accuracy(matches)
  generated = result["accuracy"]["generated"]
  assert generated[:2] == result["accuracy"]["real"][:2]
  assert generated[0]["all"] == 1.0
  assert generated[3]["colour"] == generated[3]["all"] == 0.0
  faded = fade(real)
  spread = result["psnr_to_first_frame"]
  for frame in (1, 16, 17, 32):
    for kind, clips in (("real", real), ("generated", faded)):
      values = [metrics.psnr(clip[None, :1], clip[None, frame : frame + 1])[0] for clip in clips]
      assert spread[kind]["mean"][frame - 1] == pytest.approx(np.mean(values))
      assert spread[kind]["deviation"][frame - 1] == pytest.approx(np.std(values))
  assert len(spread["real"]["mean"]) == 32


def test_long_clips_start_anew_from_half_of_the_trained_ones():
  def model(num_frames, tau):
    config = types.SimpleNamespace(temporal_stride=tau)
    return types.SimpleNamespace(
      num_frames=num_frames, tokenizer=types.SimpleNamespace(config=config)
    )

  data = DataConfig(num_frames=9, resolution=(32, 32))
  for num_frames, tau, overlap_frames in ((9, 4, 5), (5, 4, 1), (17, 4, 9), (9, 2, 5), (13, 4, 5)):
    found = generation.long_clips_of(model(num_frames, tau), data, 3)
    assert found.settings == {"overlap_frames": overlap_frames}
    assert found.source.num_frames == drift.long_length(num_frames)
  folder = DataConfig(source="folder", path="none", num_frames=9)
  found = generation.long_clips_of(model(9, 4), folder, 3, {"window": 2})
  assert (found.settings, found.source) == ({"window": 2}, None)
