"""`python -m videoar_jax.sample`: its files, and one-line user errors."""

import logging
import os
import pathlib
import subprocess
import sys
import types

import av
import numpy as np
import pytest
from media_files import encode
from PIL import Image
from type_checks import stand_in

from videoar_jax import sample
from videoar_jax.data.pipeline import DataConfig
from videoar_jax.experiment.schema import RunConfig, StageConfig
from videoar_jax.models.families import FAMILIES
from videoar_jax.models.videoar.guidance import guidance_table
from videoar_jax.parallel.mesh import MeshConfig
from videoar_jax.text.tokenizers import ByteTokenizer, make_text_encoder

ROOT = pathlib.Path(sample.__file__).parent.parent
PROMPT = "a large red circle moves left"


class FakeModel:
  """Makes uniform clips whose brightness encodes seed and sample."""

  num_frames = 9
  resolution = (64, 64)
  batch_size = 16

  def __init__(self):
    self.tokenizer = types.SimpleNamespace(config=types.SimpleNamespace(temporal_stride=4))
    self.text_encoder = ByteTokenizer(40)
    self.calls = []

  def sample(self, prompts, num_frames=None, seed=0, **settings):
    guidance_table(settings.get("guidance", 1.0), 3, 4)
    numbers = settings.pop("sample_ids", None) or range(len(prompts))
    self.calls.append((prompts, num_frames, seed, settings))
    clips = np.zeros((len(prompts), num_frames or 9, 64, 64, 3), np.uint8)
    return (
      clips
      + np.uint8(10 * seed)
      + np.array(numbers, np.uint8)[:, None, None, None, None] * np.uint8(50)
    )

  def extend(self, clips, prompts, num_frames, seed=0, **settings):
    self.calls.append((prompts, num_frames, seed, settings))
    return np.concatenate([clips, clips[:, : num_frames - clips.shape[1]]], axis=1)

  def stream(self, prompts, num_frames=None, seed=0, **settings):
    clips = self.sample(prompts, num_frames, seed, **settings)
    yield clips[:, :1]
    yield from np.split(clips[:, 1:], 2, axis=1)


@pytest.fixture
def model(monkeypatch):
  fake = FakeModel()

  def load_model(path, **settings):
    fake.loaded = settings
    return fake

  monkeypatch.setattr(sample, "load_model", load_model)
  stage = stand_in(StageConfig, data=stand_in(DataConfig, frame_rate=8.0))
  run = stand_in(RunConfig, family=FAMILIES["videoar"])
  monkeypatch.setattr(sample, "find_stage", lambda *_: (run, stage))
  return fake


def run(*arguments):
  return sample.main(list(arguments))


def expect_error(capsys, *arguments):
  """Runs a command that must fail; returns its one line on stderr."""
  try:
    status = run(*arguments)
  except SystemExit as stopped:
    status = stopped.code
  out, error = capsys.readouterr()
  assert status == 2
  assert out == ""
  assert error.startswith("error: ")
  assert error.count("\n") == 1
  return error


def test_writes_a_clip_a_sample_and_one_sheet(tmp_path, model, capsys):
  out = tmp_path / "new" / "folder"
  flags = ["--num_samples=3", "--seed=2", "--num_frames=5", "--guidance=constant:3", "--top_p=0.9"]
  assert run("--workdir=w", f"--prompt={PROMPT}", "--prompt=star!", f"--out={out}", *flags) == 0
  stems = ["a_large_red_circle_moves_left", "star"]
  names = [f"{stem}_2_{i}.mp4" for stem in stems for i in range(3)] + ["contact_sheet.png"]
  assert capsys.readouterr().out.splitlines() == [str(out / name) for name in names]
  assert sorted(path.name for path in out.glob("[!.]*")) == sorted(names)
  with av.open(str(out / names[4])) as container:
    assert float(container.streams.video[0].average_rate) == 8.0
    frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
  assert len(frames) == 5
  assert abs(float(frames[0].mean()) - 70) < 4  # Seed 2, sample 1.
  width, height = Image.open(out / "contact_sheet.png").size
  assert (width, height) == (5 * 130 + 2, 6 * (130 + 15) + 2)
  settings = {"guidance": "constant:3", "top_p": 0.9}
  assert model.calls == [([PROMPT] * 3 + ["star!"] * 3, 5, 2, settings)]


def test_what_the_model_is_loaded_with(tmp_path, model):
  flags = ["--resolution=32x48", "--dtype=bfloat16", "--text_features=f", f"--out={tmp_path}"]
  assert run("--workdir=w", f"--prompt={PROMPT}", *flags) == 0
  assert model.loaded == {
    "resolution": (32, 48),
    "mesh": None,
    "dtype": "bfloat16",
    "batch_size": None,
    "text_features": "f",
  }


def test_earlier_clips_are_kept(tmp_path, model):
  """Clips of another seed have names of their own; others get the next free ones."""
  flags = ["--workdir=w", "--prompt=a star", f"--out={tmp_path}"]
  names = []
  for more, stem in (
    (["--num_samples=1"], "a_star_0"),
    (["--num_samples=1", "--seed=1"], "a_star_1"),
    (["--num_samples=2"], "a_star-2_0"),
    (["--num_samples=1", "--temperature=0"], "a_star-3_0"),
  ):
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert run(*flags, *more) == 0
    assert before.items() <= {path: path.read_bytes() for path in tmp_path.iterdir()}.items()
    names += [f"{stem}_{i}.mp4" for i in range(int(more[0][-1]))]
    assert sorted(path.name for path in tmp_path.glob("*.mp4")) == sorted(names)
  assert len(list(tmp_path.glob("contact_sheet*.png"))) == 4


def test_prompts_with_one_name_get_files_of_their_own(tmp_path, model):
  prompts = ["--prompt=a star", "--prompt=A star!", "--prompt=a  star"]
  assert run("--workdir=w", *prompts, "--num_samples=1", f"--out={tmp_path}") == 0
  names = {path.name for path in tmp_path.glob("*.mp4")}
  assert names == {"a_star_0_0.mp4", "a_star-2_0_0.mp4", "a_star-3_0_0.mp4"}


@pytest.mark.parametrize(
  ("flags", "wanted"),
  [
    (["--num_samples=0"], "--num_samples=0 must be at least 1"),
    (["--num_samples=many"], "--num_samples"),
    (["--num_frames=8"], "--num_frames=8 is not 1 + 4 k; take 5 or 9"),
    (["--num_frames=-3"], "take 1 or 5"),
    (["--guidance=strong"], "guidance: 'strong' is unknown"),
    (["--guidance=nan"], "guidance: 'nan' is not a finite number"),
    (["--guidance=none.json"], "--guidance=none.json cannot be read"),
    (["--guidance={tmp}/broken.json"], "is not valid JSON"),
    (["--guidance={tmp}/small.json"], "has shape (1, 2)"),
    (["--temperature=-1"], "--temperature=-1.0"),
    (["--top_p=0"], "--top_p=0.0 must be in (0, 1]"),
    (["--prefix_guidance=much"], "--prefix_guidance=much must be WEIGHT or WEIGHT,SHARE"),
    (["--prefix_guidance=0.5,2"], "--prefix_guidance.share=2.0 must be in (0, 1]"),
    (["--seed=-1"], "--seed=-1"),
    (["--prompt=" + "long " * 20], "text.length"),
    (["--out={tmp}/small.json"], "is a file; name a folder"),
    (["--out={tmp}/small.json/below"], "is a file; name a folder"),
    (["--promt=x"], "--promt"),
    (["--prompts_file={tmp}/small.json"], "not allowed with argument --prompt"),
    (["--image=a", "--video=b"], "not allowed with argument --image"),
    (["--overlap_frames=1", "--stream"], "not allowed with argument --overlap_frames"),
    (["--window=0"], "--window=0 must be at least 1"),
    (["--overlap_frames=1"], "is for clips longer than the trained 9"),
    (["--multi_shot", "--stream"], "--multi_shot and --stream exclude each other"),
    (["--resize"], "nothing to resize; add --image or --video"),
    (["--image=none.png"], "none.png cannot be read as an image (No such file"),
    (["--image={tmp}/small.json"], "small.json cannot be read as an image"),
    (["--image={tmp}/wide.png"], "is 48x80 pixels (height x width), but the model makes 64x64"),
    (["--video=none.mp4"], "none.mp4: cannot be opened as a video"),
    (["--video={tmp}/small.json"], "small.json: no video stream"),
    (["--video={tmp}/large.mp4"], "is 256x256 pixels (height x width), but the model makes 64x64"),
    (["--video={tmp}/fits.mp4"], "has more than 5 frames at 8 a second, but the model needs"),
  ],
)
def test_bad_input_is_one_line(tmp_path, model, capsys, flags, wanted):
  (tmp_path / "broken.json").write_text("[[1, 2]")
  (tmp_path / "small.json").write_text("[[1, 2]]")
  Image.new("RGB", (80, 48)).save(tmp_path / "wide.png")
  write_video(tmp_path / "large.mp4", 5, 256)
  write_video(tmp_path / "fits.mp4", 8, 64)
  out = tmp_path / "out"
  flags = [flag.format(tmp=tmp_path) for flag in flags]
  error = expect_error(capsys, "--workdir=w", f"--prompt={PROMPT}", f"--out={out}", *flags)
  assert wanted in error
  assert not out.exists()


def write_video(path, num_frames, side):
  """Writes frames of rising brightness, at 8 per second."""
  with av.open(str(path), "w") as container:
    stream = container.add_stream("libx264", rate=8, options={"crf": "1"})
    stream.height, stream.width, stream.pix_fmt = side, side, "yuv420p"
    for i in range(num_frames):
      frame = np.full((side, side, 3), 20 * i, np.uint8)
      container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
    container.mux(stream.encode())


def test_given_frames_are_passed_on(tmp_path, model):
  write_video(tmp_path / "fits.mp4", 5, 64)
  write_video(tmp_path / "large.mp4", 8, 128)
  colours = np.zeros((48, 80, 3), np.uint8)
  colours[:, :16] = colours[:, 64:] = 255  # Outside the middle square.
  Image.fromarray(colours).save(tmp_path / "wide.png")
  flags = ["--workdir=w", "--prompt=x", "--num_samples=1", f"--out={tmp_path / 'out'}"]
  assert (
    run(*flags, f"--video={tmp_path / 'fits.mp4'}", "--overlap_frames=5", "--num_frames=17") == 0
  )
  assert run(*flags, f"--video={tmp_path / 'large.mp4'}", "--resize") == 0
  assert run(*flags, f"--image={tmp_path / 'wide.png'}", "--resize", "--window=2") == 0
  first, second, third = (settings for *_, settings in model.calls)
  assert first["overlap_frames"] == 5 and first["video"].shape == (5, 64, 64, 3)
  for video in (first["video"], second["video"]):
    brightness = video.mean((1, 2, 3))
    np.testing.assert_allclose(brightness, 20 * np.arange(5), atol=4)
  assert third["window"] == 2 and third["image"].shape == (64, 64, 3)
  assert third["image"][:, 4:60].max() == 0


def test_given_frames_have_the_background_of_the_data(tmp_path, model, monkeypatch):
  data = stand_in(DataConfig, frame_rate=8.0, background=(10, 20, 30))
  found = stand_in(RunConfig, family=FAMILIES["videoar"]), stand_in(StageConfig, data=data)
  monkeypatch.setattr(sample, "find_stage", lambda *_: found)
  Image.new("RGBA", (64, 64)).save(tmp_path / "a.png")
  flags = ["--prompt=x", "--num_samples=1", f"--out={tmp_path / 'out'}"]
  assert run("--workdir=w", *flags, f"--image={tmp_path / 'a.png'}") == 0
  assert (model.calls[0][-1]["image"] == data.background).all()


def test_warnings_of_libraries_are_not_printed(tmp_path, model, monkeypatch):
  monkeypatch.setattr(logging.getLogger("absl"), "level", logging.WARNING)
  flags = ["--prompt=x", "--num_samples=1", f"--out={tmp_path / 'out'}"]
  assert run("--workdir=w", *flags) == 0
  assert logging.getLogger("absl").level == logging.ERROR


def test_stream_writes_frames(tmp_path, model):
  flags = ["--num_samples=2", "--seed=1", f"--out={tmp_path}", "--stream"]
  assert run("--workdir=w", "--prompt=a star", "--num_frames=13", *flags) == 0
  assert run("--workdir=w", "--prompt=a star", *flags) == 0  # Shorter clips, beside those.
  for stem, num_frames in (("a_star", 13), ("a_star-2", 9)):
    for i in range(2):
      frames = sorted((tmp_path / f"{stem}_1_{i}").iterdir())
      assert [path.name for path in frames] == [f"{n:05}.png" for n in range(num_frames)]
      assert np.asarray(Image.open(frames[-1])).max() == 10 + 50 * i
      assert (tmp_path / f"{stem}_1_{i}.mp4").is_file()


def test_prompts_of_a_file(tmp_path, model, capsys):
  path, out = tmp_path / "prompts.txt", tmp_path / "out"
  flags = ["--workdir=w", f"--prompts_file={path}", f"--out={out}"]
  path.write_bytes("\ufeffein Stück\r\nzwei\n".encode())
  assert run(*flags, "--num_samples=1") == 0
  assert [call[0] for call in model.calls] == [["ein Stück", "zwei"]]
  capsys.readouterr()
  for data, wanted in (
    (b"one\n \nthree\n", "line 2 is empty"),
    (b"one\ntw\xff\n", "line 2: byte 3 is not UTF-8"),
    (b"", "is empty; write one prompt per line"),
  ):
    path.write_bytes(data)
    assert wanted in expect_error(capsys, *flags)
  path.unlink()
  assert "cannot be read" in expect_error(capsys, *flags)


def test_classes_are_those_of_the_data_or_the_config(tmp_path, capsys, monkeypatch):
  """Only folders with files are classes, as for training."""
  from configs import quickstart
  from videoar_jax.experiment.parse import save_config

  fake = FakeModel()
  monkeypatch.setattr(sample, "load_model", lambda *_, **__: fake)
  data, workdir = tmp_path / "data", tmp_path / "run"
  for name in ("run", "data/train/b", "data/train/a", "data/empty", "sprites", "named"):
    (tmp_path / name).mkdir(parents=True)
  for name in "ab":
    (data / "train" / name / "one.mp4").touch()
  save_config(quickstart.get_config(f"data={data}"), workdir / "config.json")
  flags = [f"--workdir={workdir}", f"--out={tmp_path / 'out'}", "--num_samples=1"]
  assert run(*flags, "--class_id=1", "--class_id=0") == 0
  assert fake.calls[-1][0] == ["b", "a"]
  capsys.readouterr()
  assert "has 2 classes, from 0" in expect_error(capsys, *flags, "--class_id=2")
  save_config(quickstart.get_config(), tmp_path / "sprites" / "config.json")
  flags[0] = f"--workdir={tmp_path / 'sprites'}"
  assert "has no classes" in expect_error(capsys, *flags, "--class_id=0")
  config = quickstart.get_config()
  config.text = {"tokenizer": "classes", "classes": ("run", "jump"), "length": 1}
  save_config(config, tmp_path / "named" / "config.json")
  fake.text_encoder = make_text_encoder("classes", 1, ("run", "jump"))
  flags[0] = f"--workdir={tmp_path / 'named'}"
  assert run(*flags, "--class_id=1") == 0
  assert fake.calls[-1][0] == ["jump"]


def test_shots_go_on_from_each_other(tmp_path, model):
  flags = ["--workdir=w", "--num_samples=2", f"--out={tmp_path}", "--num_frames=5", "--multi_shot"]
  assert (
    run(*flags, "--prompt=a star", "--prompt=b", "--prompt=c", "--overlap_frames=5", "--top_p=0.5")
    == 0
  )
  rest = {"overlap_frames": 5, "top_p": 0.5}
  assert model.calls == [
    (["a star"] * 2, 5, 0, {"top_p": 0.5}),
    (["b"] * 2, 9, 0, rest),
    (["c"] * 2, 13, 0, rest),
  ]
  with av.open(str(tmp_path / "a_star_0_1.mp4")) as container:
    assert sum(1 for _ in container.decode(video=0)) == 13


def test_the_interactive_mode_goes_on_from_clip_to_clip(tmp_path, model, capsys):
  flags = ["--workdir=w", "--num_samples=2", f"--out={tmp_path / 'out'}", "--interactive"]
  prompts = ["--prompt=a star", "--prompt=b"]
  assert "--interactive: this model has no" in expect_error(capsys, *flags, *prompts)
  for flag in ("--multi_shot", "--stream"):
    assert "exclude each other" in expect_error(capsys, *flags, *prompts, flag)
  assert "--num_frames: clips of --int" in expect_error(capsys, *flags, *prompts, "--num_frames=5")
  calls = []

  def interact(prompts, seed, **settings):
    first = settings.pop("video", np.zeros((9, 64, 64, 3), np.uint8)).mean((1, 2, 3))
    calls.append((prompts, seed, np.round(first / 20).tolist(), settings))

    def extend(prompts, **settings):
      calls.append((prompts, settings))
      return np.zeros((2, 8, 64, 64, 3), np.uint8)

    return types.SimpleNamespace(frames=np.zeros((2, 9, 64, 64, 3), np.uint8), extend=extend)

  model.interact, model.clip_frames = interact, 9
  assert run(*flags, *prompts, "--seed=3", "--top_p=0.5") == 0
  assert calls == [(["a star"] * 2, 3, [0] * 9, {"top_p": 0.5}), (["b"] * 2, {"top_p": 0.5})]
  with av.open(str(tmp_path / "out" / "a_star_3_1.mp4")) as container:
    assert sum(1 for _ in container.decode(video=0)) == 17
  # From the last frames of a video, each prompt with a clip of its own.
  calls.clear()
  frames = [np.full((64, 64, 3), 20 * i, np.uint8) for i in range(12)]
  encode(tmp_path / "a.mp4", frames)
  assert run(*flags, *prompts, f"--video={tmp_path / 'a.mp4'}") == 0
  assert calls == [([""] * 2, 0, list(range(3, 12)), {}), (["a star"] * 2, {}), (["b"] * 2, {})]
  encode(tmp_path / "short.mp4", frames[:8])
  capsys.readouterr()
  error = expect_error(capsys, *flags, *prompts, f"--video={tmp_path / 'short.mp4'}")
  assert "short.mp4 is too short: the model goes on from the last 9 frames" in error


def test_many_prompts_share_batches_and_devices(tmp_path, model, monkeypatch):
  model.batch_size = 3
  flags = ["--mesh=fsdp:3,tensor:2", "--dtype=bfloat16", "--batch_size=3", f"--out={tmp_path}"]
  assert run("--workdir=w", "--prompt=a", "--prompt=b", "--num_samples=2", *flags) == 0
  assert model.loaded["mesh"] == MeshConfig(data=1, fsdp=3, tensor=2)
  assert (model.loaded["dtype"], model.loaded["batch_size"]) == ("bfloat16", 3)
  assert [call[0] for call in model.calls] == [["a", "a", "b"], ["b"]]
  for name, value in (("a_0_0", 0), ("a_0_1", 50), ("b_0_0", 0), ("b_0_1", 50)):
    with av.open(str(tmp_path / f"{name}.mp4")) as container:
      frame = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert abs(float(frame.mean()) - value) < 4


def test_a_table_of_guidance_is_passed_on(tmp_path, model):
  table = tmp_path / "table.json"
  table.write_text(str([[1.0] * 4] * 3))
  flags = [f"--guidance={table}", "--num_samples=1", f"--out={tmp_path / 'out'}"]
  assert run("--workdir=w", f"--prompt={PROMPT}", *flags) == 0
  assert model.calls[0][3] == {"guidance": str(table)}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_unwritable_out(tmp_path, model, capsys):
  tmp_path.chmod(0o500)
  error = expect_error(capsys, "--workdir=w", "--prompt=x", f"--out={tmp_path / 'out'}")
  assert "cannot be written to" in error


def test_a_failed_write_leaves_no_files(tmp_path, model, capsys, monkeypatch):
  def fail(path, *_):
    path.write_bytes(b"half")
    raise OSError("No space left on device")

  monkeypatch.setattr("videoar_jax.evals.media._encode", fail)
  error = expect_error(capsys, "--workdir=w", f"--prompt={PROMPT}", f"--out={tmp_path}")
  assert "No space left" in error
  assert not list(tmp_path.glob("[!.]*"))


def test_no_workdir_and_no_run(tmp_path, capsys):
  missing = tmp_path / "missing"
  error = expect_error(capsys, f"--workdir={missing}", "--prompt=x", f"--out={tmp_path / 'o'}")
  assert f"{missing} does not exist" in error
  error = expect_error(capsys, f"--workdir={tmp_path}", "--prompt=x", f"--out={tmp_path / 'o'}")
  assert "config.json" in error
  assert "--workdir" in expect_error(capsys, "--prompt=x")
  assert "--prompt" in expect_error(capsys, f"--workdir={tmp_path}")


def test_no_checkpoint_of_a_generator(tmp_path, capsys):
  from configs import quickstart
  from videoar_jax.experiment.parse import save_config

  save_config(quickstart.get_config("size=tiny"), tmp_path / "config.json")
  error = expect_error(capsys, f"--workdir={tmp_path}", "--prompt=x", f"--out={tmp_path / 'o'}")
  assert "no checkpoint" in error
  assert not (tmp_path / "o").exists()


def test_help_shows_an_example_and_defaults():
  command = [sys.executable, "-m", "videoar_jax.sample", "--help"]
  done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60, check=True)
  assert '--prompt="a large red circle moves left"' in done.stdout
  assert "(default: 4)" in done.stdout
  assert "None" not in done.stdout and "False" not in done.stdout
