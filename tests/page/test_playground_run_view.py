"""The page's tab of a run, from what a training run writes."""

import io
import os
import time

import numpy as np
import pytest
from drawn_model import tiny_run
from PIL import Image

from videoar_jax.page.run_view import RunView
from videoar_jax.train.logging import RunLog


@pytest.fixture(scope="module")
def run():
  return tiny_run()


def write(workdir, stage, steps, num_steps, loss=0.5):
  log = RunLog(workdir / stage, first_step=0, num_steps=num_steps, name=stage, frame_rate=4.0)
  for step in steps:
    log.scalars(step, {"loss": loss, "psnr": 20.0, "steps_per_s": 2.0}, is_line=True)
    log.videos(step, {"samples": np.full((1, 2, 8, 8, 3), 10 * step % 256, np.uint8)})
  log.flush()
  log.close()


def test_stages_show_how_far_they_are(run, tmp_path):
  view = RunView(tmp_path, run)
  empty, steps = view.html(), run.stages[0].loop.num_steps
  assert f"0 of {steps}" in empty and "curves.png" not in empty
  assert "when the last stage ends" in view.report()
  write(tmp_path, "tokenizer", [steps], steps)
  write(tmp_path, "generator", [1, 2], 4, loss=0.25)
  text = view.html()
  assert '"stageRow done"><b>tokenizer' in text and '"stageRow live"><b>generator' in text
  assert "2 of 4" in text and "loss 0.2500 · 2.0 steps/s · 1 s left" in text
  assert view.curves_png()[:4] == b"\x89PNG" and "curves.png?v=" in text
  long_ago = time.time() - 3600
  os.utime(tmp_path / "generator" / "metrics.jsonl", (long_ago, long_ago))
  text = view.html()
  assert '"stageRow idle"><b>generator' in text and "stopped" in text


def test_samples_are_there_by_step_and_new_ones_are_noticed(run, tmp_path):
  view = RunView(tmp_path, run)
  write(tmp_path, "generator", range(1, 11), 20)
  before = view.fingerprint()
  assert view.fingerprint() == before
  text = view.html()
  shown = [part.split("<")[0] for part in text.split("step ")[1:]]
  assert shown == ["1", "3", "5", "6", "8", "10"]  # Few of many, first and last included.
  names = [part.split(".gif")[0] for part in text.split("run/samples/")[1:]]
  gif = Image.open(io.BytesIO(view.sample_gif(names[-1])))
  assert np.asarray(gif.convert("RGB"))[0, 0, 0] == 100
  assert view.sample_gif("other") is None
  (events,) = (tmp_path / "generator" / "tensorboard").iterdir()
  whole = events.read_bytes()
  events.write_bytes(whole[:-5])  # As while it is being written.
  assert view.fingerprint() != before
  assert "step 9<" in view.html() and "step 10<" not in view.html()


def test_pictures_of_the_report_come_from_the_page(run, tmp_path):
  (tmp_path / "report.md").write_text("# name\n\ntext\n\n![Row](report/samples.png)\n")
  (tmp_path / "report").mkdir()
  view = RunView(tmp_path, run)
  (tmp_path / "report" / "samples.png").write_bytes(b"1")
  text = view.report()
  assert text.startswith("text") and "![Row](run/report/samples.png?v=" in text
  before = view.fingerprint()
  (tmp_path / "report" / "samples.png").write_bytes(b"22")
  assert view.report() != text and view.fingerprint() != before
