"""The configs of the paper's runs: shapes, stages and sizes agree with the paper."""

import importlib

import pytest

from configs import videoar_t2v, videoar_ucf101
from videoar_jax.experiment.parse import finalize
from videoar_jax.models.videoar.sequences import layout_of, stage_layouts, widest_layout


def test_ucf101_is_the_papers():
  run = finalize(videoar_ucf101.get_config("size=xl,data=videos,lists=lists"))
  assert (run.generator.num_layers, run.generator.d_model, run.generator.num_heads) == (
    32,
    2048,
    16,
  )
  layout = layout_of(run, run.stages[-1].data)
  # 30 steps; 650 tokens of video and the class.
  assert layout.num_frames * layout.num_scales == 30 and layout.length == 651
  assert len(run.text.classes) == 101 and run.data.split_file == "lists/trainlist01.txt"
  assert sorted(run.text.classes, key=str.lower) == list(run.text.classes)
  with pytest.raises(ValueError, match="data= is missing"):
    videoar_ucf101.get_config()


def test_t2v_has_the_papers_stages():
  run = finalize(videoar_t2v.get_config("data=gs://x/videos,images=gs://x/images"))
  assert [stage.name for stage in run.stages] == ["tokenizer", "I", "II", "III"]
  shapes = {
    stage.name: {(p.name, f, s) for p in stage.mixture for f, s in p.shapes} for stage in run.stages
  }
  assert ("images", 1, (256, 256)) in shapes["I"] and ("videos", 33, (192, 336)) in shapes["I"]
  assert {size for _, _, size in shapes["III"]} == {(384, 672), (512, 512), (672, 384)}
  assert {(name, frames) for name, frames, _ in shapes["III"]} == {("videos", 65)}
  assert {frames for _, frames, _ in shapes["II"]} == {1, 17, 33}
  layouts = {layout.grid: layout for layout in stage_layouts(run, run.stages[-1])}
  assert layouts[24, 42].schedule[-3:] == ((16, 28), (20, 35), (24, 42))
  assert {layout.num_scales for layout in stage_layouts(run, run.stages[1])} == {7}
  assert widest_layout(run).num_scales == 10 and run.generator.num_layers == 36
  with pytest.raises(ValueError, match="data= and images= are missing"):
    videoar_t2v.get_config("data=videos")


def test_t2v_of_sprites_has_three_stages():
  run = finalize(videoar_t2v.get_config("size=tiny,data=sprites"))
  assert [stage.name for stage in run.stages] == ["images", "tokenizer", "I", "II", "III"]
  assert [len(stage.mixture) for stage in run.stages] == [0, 0, 2, 2, 1]
  assert [stage.data.num_frames for stage in run.stages[2:]] == [9, 9, 17]


@pytest.mark.parametrize("name", ["videoar_t2v", "videoar_ucf101"])
def test_commands_of_the_docstrings_name_arguments_that_there_are(name):
  module = importlib.import_module(f"configs.{name}")
  words = [word for word in module.__doc__.split() if word.startswith("--config=")]
  assert words
  for word in words:
    module.get_config(word.partition(":")[2])
