"""The page's HTML of clips."""

import base64
import io
import re
import threading

import numpy as np
import pytest
from drawn_model import NUM_FRAMES, drawn, make_studio
from PIL import Image

from videoar_jax.page.cards import cards, data_uri, notice, strip
from videoar_jax.page.clip_files import ClipFiles

PROMPT = "a red <b> circle"


@pytest.fixture(scope="module")
def growths():
  studio = make_studio()
  values = [setting.default for setting in studio.settings]
  wish = studio.wish(PROMPT, 2, NUM_FRAMES, 7, values)
  return list(studio.make(wish, threading.Event()))


def pictures(text):
  """Returns the images in a page."""
  found = re.findall(r'src="data:image/png;base64,([^"]+)"', text)
  return [np.asarray(Image.open(io.BytesIO(base64.b64decode(code)))) for code in found]


def test_cards_show_the_newest_frame_and_those_before_it(growths):
  text = cards(growths[3])
  assert 'data-state="growing"' in text and "frames 2 to 3 of 5 · scale 1 of 2" in text
  assert "<b>" not in text and "&lt;b&gt;" in text
  newest, row, other, _ = pictures(text)
  np.testing.assert_array_equal(newest, drawn(2, 2, 1, 7, scale=1)[0, 0])
  np.testing.assert_array_equal(other, drawn(2, 2, 1, 7, scale=1)[1, 0])
  # Five frames with gaps of a pixel, of which two are still to come.
  assert row.shape == (16, 5 * 17 - 1, 3)
  np.testing.assert_array_equal(row[:, :16], drawn(2, 0, 1, 7)[0, 0])
  np.testing.assert_array_equal(row[:, 51:67], row[:, 68:])
  assert 'data-state="starting"' in cards(growths[0]) and not pictures(cards(growths[0]))
  assert "cancelled at frames 2 to 3" in cards(growths[3], is_stopped=True)


def test_finished_clips_play_in_a_loop_and_can_be_saved(growths):
  sources = ["clips/one.mp4", "clips/two.mp4"]
  readings = [[("large", True), ("green", False)], [("large", True)]]
  text = cards(growths[-1], sources, readings)
  assert 'data-state="finished"' in text
  assert re.search(r'<video src="clips/two.mp4" [^>]*autoplay loop muted', text)
  assert 'href="clips/two.mp4" download="a_red_b_circle_7_1.mp4"' in text
  assert '<span class="wrong">green</span>' in text and text.count("wrong") == 1


def test_long_and_large_clips_are_drawn_small():
  frames = np.zeros((40, 256, 512, 3), np.uint8)
  frames[-1] = 255
  row = strip(frames, 40)
  assert row.shape[0] == 64 and row.shape[1] == 17 * (128 + 4) - 4
  assert row[:, -128:].min() == 255 and row[:, :128].max() == 0  # First and last are among them.
  assert data_uri(frames[0]).startswith("data:image/jpeg")
  assert "&lt;script&gt;" in notice("<script>", "waiting")


def test_files_have_names_that_nobody_guesses_and_are_not_kept_for_ever(monkeypatch):
  monkeypatch.setattr("videoar_jax.page.clip_files._MAX_FILES", 2)
  files = ClipFiles(8.0)
  names = [files.add(np.zeros((3, 16, 16, 3), np.uint8)) for _ in range(3)]
  assert len(set(names)) == 3 and min(map(len, names)) >= 24
  assert files.path(names[0]) is None and files.path("x") is None
  paths = [files.path(name) for name in names[1:]]
  assert all(path.stat().st_size for path in paths)
  assert len(list(paths[0].parent.iterdir())) == 2
