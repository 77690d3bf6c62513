"""The report agrees with the numbers."""

import json
import math
import re
import types

import av
import numpy as np
import pytest
from PIL import Image
from type_checks import stand_in

from videoar_jax.data.pipeline import DataConfig
from videoar_jax.data.sources.captions import CutCaptions
from videoar_jax.data.synthetic.sprites import SpritesSource
from videoar_jax.evals import curves, report, scores
from videoar_jax.experiment.schema import ReportConfig, RunConfig
from videoar_jax.experiment.stages import Stages
from videoar_jax.models.base import Curves
from videoar_jax.text.tokenizers import ByteTokenizer
from videoar_jax.tokenizers.base import Tokenizer

GENERATOR_CURVES = Curves("bits", {"bit_accuracy/scale_0": "1x1"}, chance=0.5)
NUM_FRAMES = 9
OFFSET = 5  # Pixel steps that the fake tokenizer adds: the PSNR is known.
PSNR = 20 * np.log10(255 / OFFSET)


class BrighteningTokenizer(Tokenizer):
  """Encodes nothing and returns slightly brighter clips. Records the input shapes."""

  config = types.SimpleNamespace(temporal_stride=1)
  dtype = np.dtype(np.float32)

  def __init__(self):
    self.shapes = []

  def encode(self, video):
    self.shapes.append(video.shape)
    return video

  def quantize(self, latents):
    return types.SimpleNamespace(quantized=latents, bits=[])

  def decode(self, latents):
    return latents + OFFSET / 127.5


class ForgetfulModel:
  """Shows what prompts ask for, except for the first ones, which get an empty clip."""

  def __init__(self, source, num_wrong):
    self.source, self.num_wrong = source, num_wrong

  def sample(self, prompts):
    clips = [self.source[i]["video"] for i in range(len(prompts))]
    for i in range(self.num_wrong):
      clips[i] = np.full_like(clips[i], 128)
    return np.stack(clips)


class FakeStages(Stages):
  """Finished stages with 7 parameters."""

  def __init__(self):
    pass

  def latest_step(self, stage):
    return stage.loop.num_steps

  def module_template(self, stage):
    return types.SimpleNamespace(shapes={"kernel": np.zeros((2, 3)), "bias": np.zeros(1)})


class Folder:
  """A folder source of plain clips."""

  def __init__(self, split, captions, skipped, has_test_split):
    self.bad_samples, self.split = types.SimpleNamespace(source="clips"), split
    self.captions, self.skipped, self.has_test_split = captions, skipped, has_test_split
    self.files = [f"{i}.mp4" for i in range(len(captions))]
    self.cut_captions = CutCaptions("clips")
    self.cut_captions.files.update(self.files[1:])

  def __len__(self):
    return len(self.captions)

  def __getitem__(self, index):
    assert index < len(self)
    video = np.full((NUM_FRAMES, 32, 32, 3), 40 + 10 * index, np.uint8)
    return {"video": video, "caption": self.captions[index]}


def make_run(source, kinds, num_clips=5, num_prompts=20, **settings):
  path = None if source == "sprites" else "clips"
  data = DataConfig(source=source, path=path, num_frames=NUM_FRAMES)
  loop = types.SimpleNamespace(num_steps=40, batch_size=3)
  stages = [
    types.SimpleNamespace(name=f"my_{kind}", kind=kind, loop=loop, data=data) for kind in kinds
  ]
  return stand_in(
    RunConfig,
    data=data,
    text=types.SimpleNamespace(encoder=ByteTokenizer(100)),
    stages=stages,
    family=types.SimpleNamespace(
      headline={"bit_accuracy": "bits {:.1%}"}, curves=lambda run: GENERATOR_CURVES
    ),
    report=ReportConfig(num_clips=num_clips, num_prompts=num_prompts, **settings),
    generator_stages=tuple(s for s in stages if s.kind == "generator"),
  )


def write_metrics(workdir, stage):
  folder = workdir / stage.name
  folder.mkdir(parents=True)
  with (folder / "metrics.jsonl").open("w") as file:
    for step in range(1, 41):
      record = {"step": step, "loss": 10.0 / step, "psnr": 20.0 + step}
      if stage.kind == "generator":
        record = {"step": step, "loss": 0.7 - step / 100}
        record |= {"bit_accuracy": 0.5 + step / 100}
        record |= {f"bit_accuracy/scale_{s}": 0.5 + step / 100 for s in range(2)}
      file.write(json.dumps(record) + "\n")


def fake_loading(monkeypatch, model=None):
  monkeypatch.setattr(report, "load_tokenizer", lambda path: BrighteningTokenizer())
  monkeypatch.setattr(report, "load_model", lambda path, **settings: model)


@pytest.fixture(scope="module")
def sprites():
  return SpritesSource("test", num_frames=NUM_FRAMES, resolution=(64, 64))


@pytest.fixture(scope="module")
def shown(sprites):
  """The clips that a report shows, in order."""
  return [sprites[i] for i in scores.draw(sprites, 20)]


@pytest.fixture
def sprites_report(tmp_path, monkeypatch, sprites, shown):
  run = make_run("sprites", ["tokenizer", "generator"])
  for stage in run.stages:
    write_metrics(tmp_path, stage)
  fake_loading(monkeypatch, ForgetfulModel(shown, num_wrong=5))
  result = report.write_report(tmp_path, run, FakeStages(), sprites, sprites, seconds=3725.4)
  return tmp_path, result


def test_scores_of_sprites(sprites_report, shown):
  workdir, result = sprites_report
  assert json.loads((workdir / "scores.json").read_text()) == result
  psnr = result["reconstruction"]["psnr"]
  assert psnr["count"] == 5
  assert psnr["mean"] == pytest.approx(PSNR, abs=0.3)
  assert psnr["min"] <= psnr["mean"]

  prompts = result["prompts"]
  held_out = [scores.is_held_out(shown[i]["caption"]) for i in range(20)]
  assert prompts["count"] == {"all": 20, "seen": 20 - sum(held_out), "held_out": sum(held_out)}
  # An empty clip shows nothing but a background, grey, which some prompts ask for.
  num_grey = sum("grey" in shown[i]["caption"] for i in range(5))
  assert prompts["real"]["all"]["all"] == 1.0
  for name in ("size", "colour", "shape", "motion", "all"):
    assert prompts["generated"]["all"][name] == 15 / 20
  assert prompts["generated"]["all"]["background"] == (15 + num_grey) / 20
  num_wrong_held_out = sum(held_out[:5])
  assert prompts["generated"]["held_out"]["all"] == pytest.approx(
    1 - num_wrong_held_out / sum(held_out)
  )
  assert prompts["generated"]["seen"]["all"] == pytest.approx(
    1 - (5 - num_wrong_held_out) / (20 - sum(held_out))
  )
  assert prompts["chance"]["motion"] == pytest.approx(1 / 6)


def test_facts_of_stages(sprites_report):
  _, result = sprites_report
  facts = result["stages"]["my_tokenizer"]
  assert (facts["parameters"], facts["steps"], facts["batch_size"]) == (7, 40, 3)
  # The last 5 % of 40 steps are steps 39 and 40.
  assert facts["last"]["loss"] == pytest.approx((10 / 39 + 10 / 40) / 2)
  assert facts["last"]["psnr"] == pytest.approx(59.5)
  assert result["stages"]["my_generator"]["last"]["bit_accuracy"] == pytest.approx(0.895)
  assert result["resources"]["seconds"] == 3725.4
  assert result["resources"]["peak_memory_bytes"] > 10 * 2**20


def test_a_step_that_was_skipped_and_no_prompts_break_nothing(tmp_path, monkeypatch, sprites):
  """Steps 20 and 39 have no finite numbers, as an earlier version and as this one writes them."""
  run = make_run("sprites", ["tokenizer", "generator"], num_clips=2, num_prompts=0, batch_size=2)
  for stage in run.stages:
    write_metrics(tmp_path, stage)
    path = tmp_path / stage.name / "metrics.jsonl"
    lines = path.read_text().splitlines()
    for step, value in ((20, math.nan), (39, None)):
      record = json.loads(lines[step - 1])
      lines[step - 1] = json.dumps({k: step if k == "step" else value for k in record})
    path.write_text("\n".join(lines))
  fake_loading(monkeypatch)
  result = report.write_report(tmp_path, run, FakeStages(), sprites, sprites)
  assert result["stages"]["my_tokenizer"]["last"] == {"loss": 10 / 40, "psnr": 60.0}
  text = (tmp_path / "scores.json").read_text()
  assert json.loads(text, parse_constant=pytest.fail) == result
  assert Image.open(tmp_path / "report" / "curves.png").size[0] > 300
  assert "Samples" not in (tmp_path / "report.md").read_text()


def test_page_of_sprites(sprites_report, shown):
  workdir, result = sprites_report
  page = (workdir / "report.md").read_text()
  for picture in re.findall(r"\]\(([^)]+)\)", page):
    assert Image.open(workdir / picture).size[0] > 300
  assert len(re.findall(r"!\[", page)) == 4
  assert "Note" not in page
  assert f"{result['reconstruction']['psnr']['mean']:.2f} dB" in page
  assert "1 h 2 min 5 s" in page
  assert "| **generated** | 75 | 75 | 75 | 75 |" in page
  assert "| my_tokenizer | 7 | 40 | 3 of 9 frames | loss 0.2532, PSNR 59.50 dB |" in page
  assert "| my_generator | 7 | 40 | 3 of 9 frames | loss 0.3050, bits 89.5% |" in page
  assert f"--prompt='{shown[0]['caption']}'" in page
  assert not list(workdir.rglob("*.partial"))


def test_samples_can_be_played(sprites_report, shown):
  workdir, _ = sprites_report
  files = sorted((workdir / "samples").iterdir())
  assert len(files) == report.NUM_SHOWN
  assert files[0].name == f"00_{shown[0]['caption'].replace(' ', '_')}.mp4"
  with av.open(str(files[7])) as container:
    frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
  assert len(frames) == NUM_FRAMES
  expected = shown[7]["video"].repeat(4, axis=1).repeat(4, axis=2)
  assert np.abs(np.stack(frames).astype(float) - expected).mean() < 4


def test_a_last_stage_may_have_clips_of_another_shape(tmp_path, monkeypatch, sprites, shown):
  """Then no real clips are shown below the samples."""

  class Longer(ForgetfulModel):
    def sample(self, prompts):
      return np.repeat(super().sample(prompts), 2, axis=1)

  run = make_run("sprites", ["tokenizer", "generator"])
  for stage in run.stages:
    write_metrics(tmp_path, stage)
  fake_loading(monkeypatch, Longer(shown, num_wrong=0))
  report.write_report(tmp_path, run, FakeStages(), sprites, sprites)
  assert Image.open(tmp_path / "report" / "samples.png").height > 1000


def test_a_run_far_below_earlier_ones_says_so(tmp_path, monkeypatch, sprites, shown):
  expected = {"expected_psnr": (PSNR + 2, PSNR + 3), "expected_all": (0.9, 0.95)}
  monkeypatch.setattr(report, "FAR_PROMPTS", 20)
  run = make_run("sprites", ["tokenizer", "generator"], **expected)
  for stage in run.stages:
    write_metrics(tmp_path, stage)
  fake_loading(monkeypatch, ForgetfulModel(shown, num_wrong=5))
  report.write_report(tmp_path, run, FakeStages(), sprites, sprites)
  page = (tmp_path / "report.md").read_text()
  assert "75% of the generated clips are right in everything" in page
  assert "earlier runs had 90% to 95%" in page
  assert re.search(r"reconstructions have 3\d\.\d dB, where earlier runs had 36\.2 to 37\.2", page)
  with pytest.raises(ValueError, match="expected_all"):
    ReportConfig(expected_all=(0.5, 0.4))


def test_folder_without_test_split(tmp_path, monkeypatch):
  run = make_run("folder", ["tokenizer", "generator"], num_clips=64, num_prompts=64)
  train = Folder("train", ["dog", "cat", "dog"], [("bad.mp4", "empty file")], False)
  test = Folder(
    "test",
    ["dog", "cat", "dog"],
    [("bad.mp4", "empty file"), ("late.mkv", "cannot be decoded")],
    False,
  )
  for stage in run.stages:
    write_metrics(tmp_path, stage)
  fake_loading(monkeypatch, ForgetfulModel(test, num_wrong=0))
  result = report.write_report(tmp_path, run, FakeStages(), train, test)
  assert result["data"]["skipped"] == [
    {"file": "bad.mp4", "reason": "empty file"},
    {"file": "late.mkv", "reason": "cannot be decoded"},
  ]
  assert result["data"]["has_test_split"] is False and result["data"]["path"] == "clips"
  assert "prompts" not in result
  # The folder has three clips: they are not counted twice to make 64.
  assert result["reconstruction"]["psnr"] == {
    "mean": pytest.approx(PSNR, abs=1e-6),
    "min": pytest.approx(PSNR, abs=1e-6),
    "count": 3,
  }
  first = test.captions[scores.draw(test, 3)[0]]
  assert [path.name for path in sorted((tmp_path / "samples").iterdir())] == [
    f"00_{first}.mp4",
    f"01_{'cat' if first == 'dog' else 'dog'}.mp4",
  ]
  page = (tmp_path / "report.md").read_text()
  assert "`bad.mp4`: empty file" in page
  assert "`late.mkv`: cannot be decoded" in page
  assert "too few" in page and "2 have captions that were cut to text.length" in page
  assert "what the prompt" not in page


def test_tokenizer_alone(tmp_path, monkeypatch, sprites):
  run = make_run("sprites", ["tokenizer"], num_prompts=4)
  write_metrics(tmp_path, run.stages[0])
  fake_loading(monkeypatch)
  result = report.write_report(tmp_path, run, FakeStages(), sprites, sprites)
  assert set(result["prompts"]) == {"count", "reconstructed", "real", "chance"}
  page = (tmp_path / "report.md").read_text()
  assert "## Samples" not in page
  assert "| real test clips | 100 | 100 | 100 | 100 | 100 | 100 |" in page
  assert not (tmp_path / "samples").exists()


def test_curves_draw_the_recorded_values(tmp_path, monkeypatch):
  figures = []

  class Kept(curves.Figure):
    def __init__(self, *args, **kwargs):
      super().__init__(*args, **kwargs)
      figures.append(self)

  monkeypatch.setattr(curves, "Figure", Kept)
  records = [{"step": s, "loss": 1 / s, "bit_accuracy/scale_0": s / 50} for s in range(1, 41)]
  stages = [
    ("one", curves.TOKENIZER_CURVES, records),
    ("two", GENERATOR_CURVES, records),
    ("three", curves.TOKENIZER_CURVES, []),
  ]
  curves.draw_curves(tmp_path / "curves.png", stages)
  axes = figures[0].axes
  assert len(axes) == 6
  steps, values = axes[0].lines[0].get_data()
  assert list(steps) == list(range(1, 41))
  np.testing.assert_allclose(values, 1 / np.arange(1, 41))
  assert [text.get_text() for text in axes[3].get_legend().get_texts()] == ["1x1", "chance"]
  assert axes[4].texts[0].get_text() == "not recorded"
  assert Image.open(tmp_path / "curves.png").size[0] == 1200


def test_curves_draw_held_out_clips_with_markers(tmp_path, monkeypatch):
  figures = []
  monkeypatch.setattr(curves, "save", lambda path, figure: figures.append(figure))
  names = ("loss", "psnr", "bit_accuracy/scale_0")
  records = [{"step": s, **{name: s / 50 for name in names}} for s in range(1, 41)]
  for record in records[9::10]:
    record |= {f"eval/{name}": 2.0 - record["step"] / 50 for name in names}
  stages = [("one", curves.TOKENIZER_CURVES, records), ("two", GENERATOR_CURVES, records)]
  curves.draw_curves(tmp_path / "curves.png", stages)
  axes = figures[0].axes
  for drawn in axes:
    thin, held_out = drawn.lines[-3:-1] if drawn is axes[3] else drawn.lines[-2:]
    assert len(thin.get_xdata()) == 40 and thin.get_marker() == "None"
    assert list(held_out.get_xdata()) == [10, 20, 30, 40] and held_out.get_marker() == "o"
    np.testing.assert_allclose(held_out.get_ydata(), [1.8, 1.6, 1.4, 1.2])
    assert thin.get_linewidth() < held_out.get_linewidth()
  texts = [[text.get_text() for text in drawn.get_legend().get_texts()] for drawn in axes]
  assert texts == [*[["training", "held-out"]] * 3, ["1x1", "chance"]]
  assert axes[0].get_ylim()[1] > 1.8  # Both are within the picture.


def test_smooth_is_a_centred_mean():
  values = np.array([1.0, 3.0, 5.0, 11.0, 0.0])
  np.testing.assert_allclose(curves.smooth(values, 0), values)
  np.testing.assert_allclose(curves.smooth(values, 1), [2, 3, 19 / 3, 16 / 3, 5.5])
  np.testing.assert_allclose(curves.smooth(values, 9), [4] * 5)


def test_accuracy_leaves_out_what_is_not_asked():
  matches = [{"shape": True, "size": False}, {"shape": True}, {"shape": False}]
  assert scores.accuracy(matches) == {"shape": 2 / 3, "size": 0.0, "all": 1 / 3}


def test_oracle_judges_only_what_is_asked(sprites):
  item = sprites[0]
  sprite = item["attributes"].objects[0]
  (match,) = scores.Oracle().matches(item["video"][None], [f"a {sprite.colour} {sprite.shape}"])
  assert match == {"colour": True, "shape": True}
  other = "white" if item["attributes"].background != "white" else "black"
  (match,) = scores.Oracle().matches(
    item["video"][None], [f"a {sprite.size} {sprite.shape} on a {other} background"]
  )
  assert match == {"size": True, "shape": True, "background": False}


def test_reconstruct_keeps_order_and_number():
  clips = np.arange(19, dtype=np.uint8)[:, None, None, None, None] * np.ones((2, 4, 4, 3), np.uint8)
  tokenizer = BrighteningTokenizer()
  np.testing.assert_array_equal(scores.reconstruct(tokenizer, clips), clips + OFFSET)
  # One shape, so one program.
  assert tokenizer.shapes == [(scores.BATCH_SIZE, 2, 4, 4, 3)] * 2
