"""Two processes that share a VBench folder."""

import json
import sys

import numpy as np
import pytest
from commands import run, start_two
from tiny_runs import make_config, save_run

from videoar_jax.data.media.clips import decode_video

PROMPTS = ["a cat", "a dog", "a red ball rolls", "a still lake"]


@pytest.mark.slow
def test_two_processes_write_the_clips_of_one(tmp_path):
  workdir = tmp_path / "run"
  workdir.mkdir()
  save_run(make_config(**{"text.length": 24}), workdir)
  info = [{"prompt_en": prompt, "dimension": ["color"]} for prompt in PROMPTS]
  (tmp_path / "info.json").write_text(json.dumps(info))
  clips = {}
  for name in ("alone", "together"):
    out = tmp_path / name
    flags = ["--suite=vbench", f"--workdir={workdir}", f"--vbench_info={tmp_path}/info.json"]
    flags = [sys.executable, "-m", "videoar_jax.evaluate", *flags, f"--out={out}", "--batch_size=4"]
    if name == "alone":
      done = run(flags)
      assert done.returncode == 0, done.stderr[-3000:]
    else:
      processes = start_two([*flags, "--distributed"])
      ends = [(process.wait(300), process.stdout.read()) for process in processes]
      assert [status for status, _ in ends] == [0, 0], ends
      # The first process alone prints.
      assert ["20 clips for 1 dimensions" in text for _, text in ends] == [True, False]
    paths = sorted((out / "videos").glob("*.mp4"))
    names = [f"{prompt}-{index}.mp4" for prompt in PROMPTS for index in range(5)]
    assert [path.name for path in paths] == sorted(names)
    clips[name] = np.stack([decode_video(path, (16, 16)).frames for path in paths])
  difference = np.abs(clips["alone"].astype(int) - clips["together"])
  assert (difference > 8).mean() < 0.01
