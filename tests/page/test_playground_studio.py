"""What visitors of the page may ask for, and what they get."""

import threading

import numpy as np
import pytest
from drawn_model import NUM_FRAMES, SCALES, SIDE, drawn, make_studio
from PIL import Image

from videoar_jax.models.families import FAMILIES
from videoar_jax.page.settings import FieldError, parse_settings, settings_of

PROMPT = "a large red circle moves left on a grey background"


@pytest.fixture
def studio():
  return make_studio()


def values_of(studio, **changes):
  """Returns what the page's fields of settings hold."""
  return [changes.get(setting.name, setting.default) for setting in studio.settings]


def wish(studio, prompt=PROMPT, num_clips=3, num_frames=NUM_FRAMES, seed=7, changes=None, **given):
  values = values_of(studio, **(changes or {}))
  return studio.wish(prompt, num_clips, num_frames, seed, values, **given)


def make(studio, request):
  return list(studio.make(request, threading.Event()))


def test_clips_grow_by_scale_and_frame(studio):
  growths = make(studio, wish(studio))
  first, *growing, last = growths
  assert first.frames is None and first.share == 0 and last.is_finished
  lengths = [growth.frames.shape for growth in growing]
  assert lengths == [(3, f, SIDE, SIDE, 3) for f in (1, 1, 3, 3, 5, 5)]
  shares = [growth.share for growth in growing]
  np.testing.assert_allclose(shares, [0.1, 0.2, 0.4, 0.6, 0.8, 1.0])
  # What is unfinished is replaced, what is finished stays.
  np.testing.assert_array_equal(growing[2].frames[:, :1], drawn(3, 0, 1, 7))
  np.testing.assert_array_equal(growing[2].frames[:, 1:], drawn(3, 1, 2, 7, scale=1))
  parts = [drawn(3, start, count, 7) for start, count in ((0, 1), (1, 2), (3, 2))]
  np.testing.assert_array_equal(last.frames, np.concatenate(parts, axis=1))
  ((prompts, num_frames, seed, settings),) = studio.model.calls
  assert (prompts, num_frames, seed) == ([PROMPT] * 3, NUM_FRAMES, 7)
  # Empty settings are left to the model.
  assert set(settings) == {setting.name for setting in studio.settings} - {"window"}


def test_longer_clips_begin_with_those_that_are_there(studio):
  before = make(studio, wish(studio))[-1]
  other = "a small blue star moves up"
  request = wish(studio, other, num_clips=1, seed=3, before=before)
  # Number and seed are those of the clips; half a window of them is read again.
  assert (request.num_clips, request.seed, request.num_frames) == (3, 7, NUM_FRAMES + 2)
  after = make(studio, request)[-1]
  assert after.frames.shape[1] == NUM_FRAMES + 2
  np.testing.assert_array_equal(after.frames[:, :NUM_FRAMES], before.frames)
  np.testing.assert_array_equal(after.frames[:, NUM_FRAMES:], drawn(3, NUM_FRAMES, 2, 7))
  prompts, _, _, settings = studio.model.calls[-1]
  assert prompts == [other] * 3 and settings["overlap_frames"] == 3
  np.testing.assert_array_equal(settings["clips"], before.frames)


def test_a_start_image_is_fitted_and_passed_on(studio, tmp_path):
  path = tmp_path / "image.png"
  Image.new("RGB", (50, 30), (200, 10, 60)).save(path)
  image = studio.read_image(str(path))
  assert image.shape == (SIDE, SIDE, 3) and tuple(image[0, 0]) == (200, 10, 60)
  make(studio, wish(studio, image=image))
  assert studio.model.calls[-1][3]["image"] is image


def test_nothing_is_computed_after_a_stop(studio):
  studio.enter("a", keeps_clips=False)
  stopped = studio.visitor("a").stopped
  growing = studio.make(wish(studio), stopped)
  for _ in range(4):
    last = next(growing)
  studio.visitor("a").stop()
  assert list(growing) == [] and not last.is_finished
  assert len(studio.model.steps) == 3 < 3 * SCALES
  # One that was stopped while it waited does not begin.
  assert [growth.frames for growth in studio.make(wish(studio), stopped)] == [None]
  assert len(studio.model.steps) == 3


def test_visitors_stand_in_line_and_see_their_own(studio):
  assert [studio.enter(name, keeps_clips=False) for name in "abc"] == [0, 1, 2]
  assert studio.enter("a", keeps_clips=False) == 2  # Behind the others, once.
  studio.leave("b")
  assert studio.enter("d", keeps_clips=False) == 2
  list(studio.make(wish(studio), studio.visitor("c").stopped))
  assert studio.enter("e", keeps_clips=False) == 2
  visitor = studio.visitor("a")
  visitor.growth = visitor.image = object()
  assert studio.visitor("a") is visitor and studio.visitor("c").growth is None
  studio.enter("a", keeps_clips=True)
  assert visitor.growth is not None
  studio.enter("a", keeps_clips=False)
  assert visitor.growth is None
  studio.leave("a")
  assert visitor.stopped.is_set() and studio.visitor("a").image is None


@pytest.mark.parametrize(
  ("changes", "field", "message"),
  [
    ({"prompt": "  "}, "prompt", "Say what"),
    ({"prompt": "very " * 60}, "prompt", "as far as 'very very very very'; shorten it"),
    ({"num_clips": 9}, "num_clips", "from 1 to 8"),
    ({"num_clips": None}, "num_clips", "whole number"),
    ({"num_frames": 4}, "num_frames", "one of 1, 3, 5"),
    ({"num_frames": 7}, "num_frames", "from 1 to 5"),
    ({"seed": -1}, "seed", "from 0 to"),
    ({"seed": 1.5}, "seed", "whole number"),
    ({"changes": {"top_p": 7}}, "top_p", r"must be in \(0, 1\]"),
    ({"changes": {"temperature": None}}, "temperature", "Set temperature, such as 0.5"),
    ({"changes": {"window": "two"}}, "window", "'two' is not a number"),
    ({"changes": {"window": "1.5"}}, "window", "not a whole number"),
    ({"changes": {"guidance": "much"}}, "guidance", "much"),
    ({"changes": {"guidance": "/etc/table.json"}}, "guidance", "reads no files"),
  ],
)
def test_what_is_wrong_is_said_beside_the_field(studio, changes, field, message):
  with pytest.raises(FieldError, match=message) as caught:
    wish(studio, **changes)
  assert caught.value.field == field
  assert caught.value.message.endswith(".") and "\n" not in caught.value.message


def test_an_image_that_is_none_is_refused(studio, tmp_path):
  path = tmp_path / "none.png"
  path.write_text("no picture")
  with pytest.raises(FieldError, match=r"^none.png cannot be read .* PNG or JPEG\.$") as caught:
    studio.read_image(str(path))
  assert caught.value.field == "image"
  image = np.zeros((SIDE, SIDE, 3), np.uint8)
  with pytest.raises(FieldError, match="nothing of 1 frame"):
    wish(studio, num_frames=1, image=image)


def test_errors_of_the_model_name_their_field(studio):
  def refuse(*_, **__):
    raise ValueError("guidance=nan: is not for\nthese scales")

  studio.model.preview = refuse
  with pytest.raises(FieldError) as caught:
    make(studio, wish(studio))
  assert caught.value.field == "guidance"
  assert caught.value.message == "guidance=nan: is not for these scales."


def test_warming_up_makes_the_usual_clips(studio):
  studio.warm_up()
  calls = [(len(prompts), num_frames) for prompts, num_frames, *_ in studio.model.calls]
  assert calls == [(4, NUM_FRAMES), (4, NUM_FRAMES + 2)]
  assert len(studio.model.steps) == (3 + 1) * SCALES

  def refuse(*_, **__):
    raise ValueError("the prompt '' has no features")

  studio.model.preview = refuse
  studio.warm_up()  # What visitors write may have.


@pytest.mark.parametrize("name", FAMILIES)
def test_settings_of_every_family_go_there_and_back(name):
  family = FAMILIES[name]
  settings = settings_of(family.sampling())
  assert settings and all(setting.text for setting in settings)
  # As the page shows them: numbers that may be missing are texts.
  shown = ["" if setting.default is None else setting.default for setting in settings]
  parsed = parse_settings(settings, shown, family.sampling)
  assert family.sampling(**parsed) == family.sampling()
