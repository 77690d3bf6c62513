"""InfinityStar from config to clips, through the commands, with a frozen tokenizer."""

import contextlib
import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from compiling import compiled_by
from tiny_star import SHAPE, write_tokenizer

import videoar_jax
from videoar_jax import sample
from videoar_jax.data.pipeline import make_source
from videoar_jax.experiment import parse, run
from videoar_jax.experiment.captions import stage_encoder
from videoar_jax.experiment.defaults import default_config
from videoar_jax.experiment.inputs import Batches, media_batch
from videoar_jax.experiment.renamed import with_new_names
from videoar_jax.models.infinity_star.family import sampled_resolution
from videoar_jax.parallel.mesh import MeshConfig, make_mesh
from videoar_jax.parallel.rules import ShardingError

PROMPT = "a large red circle moves left"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  return write_tokenizer(tmp_path_factory.mktemp("star") / "tokenizer")


def make_config(tokenizer):
  config = default_config({"generator": "generator"}, family="infinity_star")
  config.frozen_tokenizer = str(tokenizer)
  config.data.update(SHAPE)
  config.text.update(tokenizer="words", length=24)
  config.generator.update(num_layers=1, d_model=16, num_heads=2, num_kv_heads=1, head_dim=8)
  config.generator.update(mlp_dim=16, semantic_bits=4, clip_length=1, min_detail_tokens=4)
  config.sampling.update(guidance=3.0, prompt_suffix=".")
  config.report.update(num_clips=2, num_prompts=2)
  loop = config.stage.generator.loop
  loop.update(num_steps=4, batch_size=2, save_every=2, eval_every=2, media_every=4)
  # The released optimizer: a constant rate, without decay.
  loop.optimizer.update(learning_rate=4e-5, warmup_steps=0, final_fraction=1.0, b2=0.97)
  loop.optimizer.update(weight_decay=0.0, grad_clip_norm=5.0)
  return config


@pytest.fixture(scope="module")
def workdir(tokenizer, tmp_path_factory):
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(run, "start_log", lambda path: None)
    folder = tmp_path_factory.mktemp("infinity_star") / "run"
    run.Run(make_config(tokenizer), folder).train()
  return folder


def records(workdir):
  lines = (workdir / "generator" / "metrics.jsonl").read_text().splitlines()
  return [{k: v for k, v in json.loads(line).items() if "per_s" not in k} for line in lines]


def test_it_trains_and_resumes(tokenizer, workdir, monkeypatch):
  monkeypatch.setattr(run, "start_log", lambda path: None)
  whole = records(workdir)
  assert len(whole) == 4 and {"bit_accuracy", "dropped_share", "eval/loss"} <= whole[-1].keys()
  assert whole[0]["learning_rate"] == whole[-1]["learning_rate"] == pytest.approx(4e-5)
  shutil.rmtree(workdir / "generator" / "checkpoints" / "4")
  assert run.Run(make_config(tokenizer), workdir).train()
  assert records(workdir) == whole


def test_it_samples(workdir, tmp_path, capsys):
  flags = [f"--workdir={workdir}", f"--prompt={PROMPT}", "--num_samples=2"]
  command = [*flags, f"--out={tmp_path}", "--guidance_kind=cfg", "--image_temperature=0.5"]
  assert sample.main(command) == 0, capsys.readouterr().err
  assert len(list(tmp_path.glob("*.mp4"))) == 2
  for flag, text in (
    ("--guidance_kind=both", "--guidance_kind='both' must be in ('apg', 'cfg')"),
    ("--top_p=0.5", "but the run's family is infinity_star; remove it"),
    ("--guidance=ucf101", "--guidance=ucf101 is not a number"),
  ):
    assert sample.main([*flags, f"--out={tmp_path}", flag]) == 2
    assert text in capsys.readouterr().err


def test_a_loaded_model_continues_images(workdir):
  model = videoar_jax.load_model(workdir)
  image = np.full((32, 32, 3), 90, np.uint8)
  clip = model.sample([PROMPT], image=image, prompt_prefix="")
  assert clip.shape == (1, 9, 32, 32, 3) and clip.dtype == np.uint8
  scores = model.score([PROMPT], clip)
  assert set(scores) == {"loss", "bit_accuracy"}
  other = videoar_jax.load_model(workdir)
  again, compiled = compiled_by(lambda: other.sample([PROMPT], image=image, prompt_prefix=""))
  found, more = compiled_by(lambda: other.score([PROMPT], clip))
  np.testing.assert_array_equal(again, clip)
  assert found == scores and not compiled + more
  # The 10 signs around the user's words leave room for 13 of them.
  words = [f"word{i}" for i in range(16)]
  with pytest.raises(ValueError, match="has 26 words") as error:
    model.text_encoder.encode(" ".join(words))
  assert error.value.cut == " ".join(words[:13])


def test_what_does_not_fit_is_named(tokenizer):
  config = make_config(tokenizer)
  config.generator.image_repetitions = (3, 2, 1)
  with pytest.raises(ValueError, match=r"generator\.image_repetitions=\(3, 2, 1\) needs a number"):
    parse.finalize(config)
  config = make_config(tokenizer)
  config.stage.generator.loss.parts = "released"
  with pytest.raises(ValueError, match="parts='released' needs one or two clips"):
    parse.finalize(config)
  config = make_config(tokenizer)
  config.generator.semantic_bits = 16
  with pytest.raises(ValueError, match=r"generator\.num_channels=8 must be at least semantic_bits"):
    parse.finalize(config)
  settings = parse.finalize(make_config(tokenizer))
  mesh = make_mesh(MeshConfig(data=1, sequence=1, tensor=2), jax.devices()[:2])
  settings.family.check_mesh(settings, mesh)
  config = make_config(tokenizer)
  config.generator.update(num_heads=1)
  settings = parse.finalize(config)
  with pytest.raises(ShardingError, match=r"generator\.num_heads=1 does not divide over"):
    settings.family.check_mesh(settings, mesh)


def test_captions_have_the_duration_of_their_clip(tokenizer):
  """As prompts have in sampling; images have none."""
  config = make_config(tokenizer)
  config.stage.generator.loop.batch_size = 1
  config.stage.generator.mixture = {
    "videos": {"weight": 0.5},
    "images": {"weight": 0.5, "num_frames": 1},
  }
  settings = parse.finalize(config)
  (stage,), encoder = settings.stages, settings.text.encoder
  sources = [make_source(data, "train") for data in stage.source_data]
  batches = Batches(settings, make_mesh(settings.mesh))
  with contextlib.closing(batches.iterator(stage, sources, 0)) as iterator:
    found = [next(iterator) for _ in range(4)]
  assert {batch["video"].shape[1] for batch in found} == {1, 9}
  for batch in found:
    num_frames = batch["video"].shape[1]
    caption = sources[0].reshaped(num_frames, (32, 32))[int(batch["id"][0])]["caption"]
    prefix = "<<<t=2s>>>" if num_frames > 1 else ""
    np.testing.assert_array_equal(batch["text"][0], encoder.encode(prefix + caption))
  # Samples that are shown, too.
  shown = media_batch(stage.data, sources[0], stage_encoder(settings, stage, stage.data))
  caption = encoder.encode("<<<t=2s>>>" + sources[0][0]["caption"])
  np.testing.assert_array_equal(shown["text"][0], caption)
  data = dataclasses.replace(stage.data, source="folder", path="x", frame_rates=(4.0, 8.0))
  with pytest.raises(
    ValueError, match=r"frame_rates=.* set stage\.generator\.loss\.caption_prefix"
  ):
    stage_encoder(settings, stage, data)


def test_runs_that_began_with_plain_captions_keep_them():
  saved = {
    "family": "infinity_star",
    "stage": {"a": {"kind": "generator", "loss": {"parts": "all"}}},
  }
  assert with_new_names(saved)["stage"]["a"]["loss"] == {"caption_prefix": "", "parts": "all"}


def test_overlaps_are_checked_before_the_model_is_loaded(workdir, tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(sample, "load_model", None)
  flags = [f"--workdir={workdir}", "--prompt=a", f"--out={tmp_path}", "--num_frames=17"]
  for flag in ("--overlap_frames=3", "--overlap_frames=9"):
    assert sample.main([*flags, flag]) == 2
    assert f"{flag} must be 1 or 5: the first frame, or it and" in capsys.readouterr().err


def test_clips_of_public_models_have_the_nearest_public_size(tokenizer, caplog):
  config = make_config(tokenizer)
  config.data.update(num_frames=1, resolution=(192, 336))
  settings = parse.finalize(config)
  for wanted, size in (
    (None, (192, 336)),
    ((192, 192), (256, 256)),
    ((360, 640), (384, 688)),
    ((480, 800), (480, 848)),
    ((720, 1280), (720, 1280)),
  ):
    caplog.clear()
    assert sampled_resolution(settings, settings.stages[0], wanted) == size
    is_said = "the nearest public size" in caplog.text
    assert is_said == (wanted not in (None, size))
  # Those of others have any.
  settings = parse.finalize(make_config(tokenizer))
  assert sampled_resolution(settings, settings.stages[0], (48, 64)) == (48, 64)
  settings.family.make_task(settings, settings.stages[0], None, {})
  assert "no public table of scales for clips of 32x32 pixels" in caplog.text
