"""Files that a run writes during training."""

import io
import json

import numpy as np
from PIL import Image

from videoar_jax.train.logging import RunLog, gif_bytes, read_metrics, tile


def test_a_log_knows_the_time_of_the_steps_that_it_drops(tmp_path):
  # Rates are of some steps each: those of the last two steps say nothing of the four before.
  records = [{"step": step, "steps_per_s": 1.0 if step > 6 else 4.0} for step in range(1, 9)]
  (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, records)))
  for first_step, expected in ((2, 3.0), (2, 0.0)):  # What was dropped is lost once.
    log = RunLog(tmp_path, first_step=first_step, num_steps=9, name="I", frame_rate=8.0)
    log.close()
    assert log.lost_s == expected


def test_a_step_without_numbers_is_null_in_files_and_none_to_readers(tmp_path):
  (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": NaN, "steps_per_s": 1.0}\n')
  log = RunLog(tmp_path, first_step=1, num_steps=9, name="I", frame_rate=8.0)
  log.scalars(2, {"loss": float("nan"), "psnr": float("inf"), "steps_per_s": 1.0}, is_line=True)
  log.close()
  text = (tmp_path / "metrics.jsonl").read_text()
  assert "NaN" not in text and "Infinity" not in text
  assert read_metrics(tmp_path / "metrics.jsonl") == [
    {"step": 1, "loss": None, "steps_per_s": 1.0},
    {"step": 2, "loss": None, "psnr": None, "steps_per_s": 1.0},
  ]


def test_any_number_of_large_clips_makes_one_small_picture():
  clips = np.zeros((9, 2, 384, 672, 3), np.uint8)
  clips[5, 1] = 200
  sheet = tile(clips)
  assert sheet.shape == (2, 3 * 146, 4 * 256, 3)
  assert (sheet[1, 146:292, 256:512] == 200).all() and sheet.sum() == 146 * 256 * 3 * 200
  assert Image.open(io.BytesIO(gif_bytes(sheet, 8.0))).size == (1024, 438)
  # Small ones keep their pixels.
  small = np.random.default_rng(0).integers(0, 256, (2, 2, 4, 6, 3), np.uint8)
  np.testing.assert_array_equal(tile(small), np.concatenate(list(small), axis=2))
