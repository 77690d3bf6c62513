"""`python -m videoar_jax.evaluate --protocol=...`: counts, numbers, files, one-line errors."""

import json
import types

import numpy as np
import pytest
from ucf_layout import CLASSES, write_ucf

from configs import quickstart
from videoar_jax import evaluate
from videoar_jax.data.media.numbered import read_numbered
from videoar_jax.evals import fvd, i3d, protocols, published
from videoar_jax.experiment import load, parse
from videoar_jax.interop import weights
from videoar_jax.text.tokenizers import ByteTokenizer

SIDE = 64
WIDTH = i3d.NUM_POOLED + i3d.NUM_CLASSES


class Painter:
  """Shows each clip's class, seed and number as its colour."""

  num_frames, resolution, batch_size = 17, (SIDE, SIDE), 4

  def __init__(self, tau=4):
    self.tokenizer = types.SimpleNamespace(config=types.SimpleNamespace(temporal_stride=tau))
    self.text_encoder = ByteTokenizer(72)
    self.made = []

  def sample(self, prompts, num_frames=None, seed=0, *, sample_ids=None, **settings):
    self.made += list(zip(prompts, [seed] * len(prompts), sample_ids, strict=True))
    pairs = zip(prompts, sample_ids, strict=True)
    colours = [(40 * CLASSES.index(prompt), 5 * seed, 3 * i) for prompt, i in pairs]
    clips = np.array(colours, np.uint8)[:, None, None, None, :]
    return np.broadcast_to(clips, (len(prompts), num_frames, SIDE, SIDE, 3))

  def num_steps(self, num_frames):
    return num_frames + 5


def colours_of(params, clips):
  """Replaces I3D: mean colours are the first pooled features; those of frame 1, the logits."""
  found = np.zeros((len(clips), WIDTH), np.float32)
  found[:, :3] = clips.mean((1, 2, 3))
  found[:, i3d.NUM_POOLED : i3d.NUM_POOLED + 3] = clips[:, 1].mean((1, 2)) * params["gain"]
  return found


@pytest.fixture(scope="module")
def ucf(tmp_path_factory):
  return write_ucf(tmp_path_factory.mktemp("ucf"))


@pytest.fixture
def model(tmp_path, monkeypatch):
  monkeypatch.setenv("VIDEOAR_JAX_DATA", str(tmp_path / "data"))
  monkeypatch.setenv("VIDEOAR_JAX_WEIGHTS", str(tmp_path / "weights"))
  monkeypatch.setattr(i3d, "shapes", lambda: {"gain": (1,)})
  monkeypatch.setattr(fvd, "pooled_and_logits", colours_of)
  weights.save(tmp_path / "weights" / "i3d.safetensors", {"gain": np.full(1, 2.0)})
  model = Painter()
  monkeypatch.setattr(load, "load_model", lambda path, **settings: model)
  return model


@pytest.fixture
def workdir(tmp_path):
  folder = tmp_path / "run"
  folder.mkdir()
  parse.save_config(quickstart.get_config(), folder / "config.json")
  return folder


def run(workdir, ucf, *flags):
  data = [] if ucf is None else [f"--data={ucf[0]}", f"--split_file={ucf[1]}"]
  return evaluate.main([f"--workdir={workdir}", "--suite=generation", *data, *flags])


def wanted_distance(protocol, ucf, num_clips, seed, num_seeds=1):
  """Computes gFVD by logits clip by clip; every clip is made as the `Painter` says."""
  files = protocols.read_lists(ucf[0], str(ucf[1]), protocol)
  clips = protocols.choose(protocol, ucf[0], files, num_clips, seed)
  real, made = [], []
  for number, clip in enumerate(clips):
    path = ucf[0] / clip.file
    frames = read_numbered(path, clip.start, protocol.num_frames, clip.stride, (SIDE, SIDE))
    real.append(2 * frames[1].mean((0, 1)))
    made.append([80 * CLASSES.index(clip.class_name), 10 * seed, 6 * number])
  return fvd.frechet_distance(np.array(real), np.array(made, float), is_biased=protocol.is_biased)


def test_2048x4_counts_clips_of_four_seeds(tmp_path, ucf, model, workdir, capsys):
  out = tmp_path / "out"
  flags = ["--protocol=ucf101-2048x4", "--num_clips=6", f"--out={out}"]
  assert run(workdir, ucf, *flags) == 0
  printed = capsys.readouterr().out
  # Two batches of four for each seed; what fills the last one up does not count.
  assert len(model.made) == 4 * 8
  assert [number for *_, number in model.made] == 4 * list(range(8))
  assert [seed for _, seed, _ in model.made] == [s for s in (0, 2, 4, 6) for _ in range(8)]
  result = json.loads((out / "generation.json").read_text())
  protocol = protocols.UCF101_2048X4
  values = [wanted_distance(protocol, ucf, 6, seed) for seed in protocol.seeds]
  assert result["gfvd"]["value"] == pytest.approx(np.mean(values), rel=1e-5)
  assert result["gfvd"]["deviation"] == pytest.approx(np.std(values), rel=1e-5)
  assert list(result["gfvd"]["by_seed"]) == ["0", "2", "4", "6"]
  assert result["gfvd_pooled"]["value"] != result["gfvd"]["value"]
  written = result["protocol"]
  assert written["num_clips"] == 2048 and written["num_clips_used"] == 6
  assert not written["is_complete"] and "showlab/FAR" in written["sources"][0]
  assert (written["num_frames"], written["stride"], written["lists"]) == (16, 3, ["train", "test"])
  assert written["real_clips"] and "centre crop" in written["resize"]
  assert "C3D" in result["not_measured"]["inception_score"]
  assert result["data"]["frame_rate"] == pytest.approx(25 / 3)
  cost = result["cost"]
  assert cost["steps_a_clip"] == 22 and cost["parameters"] > 1e5 and cost["device"] == "cpu"
  assert cost["seconds_a_clip"] > 0 and cost["tokens_a_clip"] > 17
  assert "note: the protocol has 2048 clips; not comparable" in printed
  assert (
    "note: the model was trained at 4 frames a second, the protocol's clips have 8.33" in printed
  )
  assert sorted(path.suffix for path in out.iterdir()) == [".json", ".mp4", ".png"]


def test_10k_takes_windows_of_the_training_list_and_keeps_them(
  tmp_path, ucf, model, workdir, monkeypatch
):
  flags = ["--protocol=ucf101-10k", "--num_clips=26", f"--out={tmp_path / 'out'}"]
  assert run(workdir, ucf, *flags) == 0
  assert len(model.made) == 28 and {seed for _, seed, _ in model.made} == {42}
  result = json.loads((tmp_path / "out" / "generation.json").read_text())
  wanted = wanted_distance(protocols.UCF101_10K, ucf, 26, 42)
  assert result["gfvd"]["value"] == pytest.approx(wanted, rel=1e-5)
  assert result["gfvd"]["deviation"] == 0
  # The second time, real clips are read to be shown only.
  reads = []
  monkeypatch.setattr(
    published, "read_numbered", lambda *args: reads.append(args) or read_numbered(*args)
  )
  assert run(workdir, ucf, *flags) == 0
  assert len(reads) == 4
  again = json.loads((tmp_path / "out" / "generation.json").read_text())
  assert again["gfvd"] == result["gfvd"]


def test_processes_share_clips(ucf, model, monkeypatch):
  """Each makes and embeds its own batches; together they have all, each once."""
  params, protocol = {"gain": np.full(1, 2.0)}, protocols.UCF101_10K
  monkeypatch.setattr(published.jax, "process_count", lambda: 2)
  rows = []

  def gather(blocks, num, width):
    rows.append(sorted(blocks))
    return np.zeros((num, width), np.float32)

  monkeypatch.setattr(published.feature_cache, "gather", gather)
  for process in range(2):
    monkeypatch.setattr(published.jax, "process_index", lambda process=process: process)
    model.made.clear()
    maker = published._Maker(model, 17, 17, params, False)
    maker.features([CLASSES[i % 3] for i in range(14)], 0)
    assert [number for *_, number in model.made[::4]] == [[0, 8], [4, 12]][process]
    model.made.clear()
    published._Maker(model, 17, 17, params, True).features(["Diving"] * 14, 0)
    assert len(model.made) == 16  # Devices of all processes make each batch together.
  assert rows == [[0, 8], [0, 8], [4, 12], [4, 12]]
  assert protocol.num_frames == published.check_model(protocol, model)


def test_clips_are_as_long_as_the_protocols(model):
  one, other = protocols.UCF101_2048X4, protocols.UCF101_10K
  assert published.check_model(one, model) == 17  # 16 of which are compared.
  assert published.check_model(one, Painter(tau=1)) == 16
  assert published.check_model(other, Painter(tau=1)) == 17
  model.num_frames = 9
  with pytest.raises(ValueError, match=r"of 16 frames, but the model was trained on 9; .*=17"):
    published.check_model(one, model)


@pytest.mark.parametrize(
  ("flags", "wanted"),
  [
    (["--protocol=ucf101-10k", "--num_frames=17"], "--num_frames: --protocol=ucf101-10k fixes"),
    (["--protocol=ucf101-10k", "--frame_rate=8"], "--frame_rate: --protocol=ucf101-10k fixes"),
    (["--protocol=ucf101-9k"], "invalid choice: 'ucf101-9k'"),
    (["--protocol=ucf101-10k"], "wants 10000 clips, but the 9 videos have 26 windows"),
    (["--protocol=ucf101-2048x4", "--num_clips=13"], "Archery has 4; complete the data, or lower"),
    (["--protocol=ucf101-10k", "--i3d={tmp}/none"], "--i3d: {tmp}/none does not exist; run `pip"),
  ],
)
def test_bad_input_is_one_line(tmp_path, ucf, model, workdir, capsys, flags, wanted):
  flags = [flag.format(tmp=tmp_path) for flag in flags]
  check_error(workdir, ucf, flags, wanted.format(tmp=tmp_path), tmp_path, capsys)


def test_data_that_do_not_serve_are_one_line(tmp_path, ucf, model, workdir, capsys):
  flags = ["--protocol=ucf101-10k", "--num_clips=8"]
  check_error(
    workdir, None, flags, "the run's data are sprites; add --data=FOLDER", tmp_path, capsys
  )
  without = [*flags, f"--data={ucf[0]}"]
  check_error(workdir, None, without, "needs UCF-101's lists", tmp_path, capsys)
  suite = ["--suite=reconstruction", *flags]
  check_error(workdir, ucf, suite, "is for --suite=generation; remove it", tmp_path, capsys)


def check_error(workdir, ucf, flags, wanted, tmp_path, capsys):
  out = tmp_path / "out"
  try:
    status = run(workdir, ucf, *flags, f"--out={out}")
  except SystemExit as stopped:
    status = stopped.code
  printed, error = capsys.readouterr()
  assert (status, printed) == (2, "")
  assert error.startswith("error: ") and error.count("\n") == 1
  assert wanted in error
  assert not out.exists()
