"""The token cache: training from it equals training from clips; a stale cache is detected."""

import dataclasses
import functools
import json
import os
import shutil
import sys
import threading
import time

import jax
import numpy as np
import pytest
from tiny_runs import NUM_CLIPS, make_config, save_tokenizer

from videoar_jax import convert
from videoar_jax.data.sources import latents
from videoar_jax.data.synthetic.sprites import SpritesSource
from videoar_jax.experiment import parse, run, token_cache
from videoar_jax.experiment.inputs import Batches
from videoar_jax.experiment.stages import Stages
from videoar_jax.experiment.validate import check_cache
from videoar_jax.models.videoar.task import GeneratorTask
from videoar_jax.parallel.mesh import make_mesh
from videoar_jax.runtime.preemption import Preempted
from videoar_jax.runtime.watchdog import Watchdog
from videoar_jax.tokenizers.autoencoder import Encoder
from videoar_jax.tokenizers.families import TOKENIZERS
from videoar_jax.tokenizers.pixels import to_float

FAMILY = TOKENIZERS["bsq"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """A workdir with a finished tokenizer that learned nothing."""
  workdir = tmp_path_factory.mktemp("cached")
  save_tokenizer(make_config(), workdir, seed=0)
  return workdir


class FewSprites(SpritesSource):
  """As many sprites as in the cache, for a run that reads clips directly."""

  def __len__(self):
    return NUM_CLIPS


@pytest.fixture(scope="module")
def records(trained, tmp_path_factory):
  """The generator's metrics: from a cache; interrupted and resumed; from clips, equally rounded."""
  with pytest.MonkeyPatch.context() as patch:
    # Sampling would compile for longer than all else here.
    patch.setattr(GeneratorTask, "media", lambda *_: {})
    patch.setattr(run, "start_log", lambda path: None)
    run.Run(make_config(), trained).train()
    found = {"cached": read_metrics(trained)}
    shutil.rmtree(trained / "generator" / "checkpoints" / "4")
    assert run.Run(make_config(), trained).train()
    found["resumed"] = read_metrics(trained)

    live = tmp_path_factory.mktemp("live")
    shutil.copytree(trained / "tokenizer", live / "tokenizer")

    def few_sprites(data, split):
      clip = {"num_frames": data.num_frames, "resolution": data.resolution, "seed": data.seed}
      return FewSprites(split, frame_rate=data.frame_rate, version=data.version, **clip)

    call = Encoder.__call__
    patch.setattr(
      Encoder, "__call__", lambda self, x: jax.lax.reduce_precision(call(self, x), 8, 7)
    )
    patch.setattr(run, "make_source", few_sprites)
    # Nothing is rounded in the clips that a run with a cache is evaluated on.
    never = {"stage.generator.loop.eval_every": 0}
    run.Run(make_config(stages=("tokenizer", "generator"), **never), live).train()
    found["live"] = read_metrics(live)
  return found


def read_metrics(workdir):
  lines = (workdir / "generator" / "metrics.jsonl").read_text().splitlines()
  return [json.loads(line) | {"steps_per_s": 0, "tokens_per_s": 0} for line in lines]


def test_a_run_from_the_cache_is_the_run_without_it(records):
  assert [record["step"] for record in records["cached"]] == [1, 2, 3, 4]
  for ours, other in zip(records["cached"], records["live"], strict=True):
    for name, value in other.items():
      assert ours[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
  assert len({record["gradient_norm"] for record in records["cached"]}) == 4


def test_a_run_from_the_cache_goes_on_bit_for_bit(records):
  assert records["resumed"] == records["cached"]


def test_a_run_from_the_cache_is_evaluated_on_test_clips(records):
  found = [record for record in records["cached"] if "eval/loss" in record]
  assert [record["step"] for record in found] == [2, 4]
  assert found[0]["eval/bit_accuracy"] > 0.3 and found[0]["eval/loss"] != found[1]["eval/loss"]


def test_held_out_batches_are_the_same_test_clips_each_time(stages):
  """Held-out batches have one shape, are divided among processes, and cover all clips if few."""
  stage = stages.run.stages[-1]
  stage = dataclasses.replace(stage, loop=dataclasses.replace(stage.loop, grad_accum_steps=2))
  size, source = stage.loop.batch_size // 2, FewSprites("test", num_frames=5, resolution=(16, 16))
  batches = Batches(stages.run, stages.mesh)
  first, again = batches.held_out(stage, source), batches.held_out(stage, source)
  assert len(first) == min(stage.loop.eval_batches, -(-NUM_CLIPS // size))
  jax.tree.map(np.testing.assert_array_equal, first, again)
  clips = {source[i]["video"].tobytes() for i in range(NUM_CLIPS)}
  shown = [clip.tobytes() for batch in first for clip in batch["video"]]
  assert set(shown[:NUM_CLIPS]) <= clips and len(set(shown[:NUM_CLIPS])) == min(len(shown), 18)
  assert {batch["video"].shape for batch in first} == {(size, 5, 16, 16, 3)}
  never = dataclasses.replace(stage, loop=dataclasses.replace(stage.loop, eval_every=0))
  assert batches.held_out(never, source) == []


@pytest.fixture(scope="module")
def stages(trained):
  settings = parse.finalize(make_config())
  return Stages(settings, trained, make_mesh(settings.mesh))


@pytest.fixture(scope="module")
def encoding(stages):
  """Arguments of `token_cache.encode` after the folder and before the mesh."""
  (stage,) = stages.run.caches
  source = SpritesSource("train", num_frames=5, resolution=(16, 16), frame_rate=4.0, version=2)
  template, params, index = stages._encoder_of(stage, source)
  return index, source, template, params


def test_latents_are_those_of_the_averaged_encoder(records, trained, encoding):
  """On two devices, with an incomplete last batch."""
  _, source, template, params = encoding
  assert len(jax.devices()) == 2
  coded = latents.LatentsSource(trained / "cache", latents.read_index(trained / "cache"))
  video = to_float(np.stack([source[i]["video"] for i in range(NUM_CLIPS)]))
  wanted = np.asarray(jax.jit(lambda x: template.module(params).encoder(x))(video))
  found = np.stack([coded[i]["latents"] for i in range(NUM_CLIPS)]).astype(np.float32)
  np.testing.assert_allclose(found, wanted, rtol=2**-8, atol=1e-6)
  assert [coded[i]["caption"] for i in range(NUM_CLIPS)] == [
    source[i]["caption"] for i in range(NUM_CLIPS)
  ]


def test_a_batch_that_hangs_ends_the_process(encoding, stages, tmp_path, monkeypatch):
  index, source, template, params = encoding
  ended = threading.Event()
  monkeypatch.setattr(os, "_exit", lambda status: status == 134 and ended.set())
  monkeypatch.setattr(token_cache, "BATCH_TIMEOUT_S", 0.1)
  monkeypatch.setattr(
    token_cache, "Watchdog", functools.partial(Watchdog, floor_s=0.2, file=sys.__stderr__)
  )

  class Hanging:
    def __getitem__(self, clip):
      # Clips are read ahead of what is encoded.
      assert clip < index.num_clips - 1 or ended.wait(60)
      return source[clip]

  token_cache.encode(tmp_path / "cache", index, Hanging(), FAMILY, template, params, stages.mesh, 2)
  assert ended.is_set()


def test_an_encoding_that_was_killed_goes_on(encoding, stages, tmp_path):
  index, source, template, params = encoding
  rest = (FAMILY, template, params, stages.mesh, 4)
  token_cache.encode(tmp_path / "whole", index, source, *rest)

  class Failing:
    def __getitem__(self, clip):
      if clip == 9:
        raise KeyboardInterrupt
      return source[clip]

  with pytest.raises(KeyboardInterrupt):
    token_cache.encode(tmp_path / "cut", index, Failing(), *rest)
  assert index.missing(tmp_path / "cut") == [2, 3, 4]
  first = index.path(tmp_path / "cut", 0)
  written = first.stat().st_mtime_ns
  left = tmp_path / "cut" / f"{index.path(tmp_path, 2).name}.0000000a.partial"
  left.write_text("left by SIGKILL")
  token_cache.encode(tmp_path / "cut", index, source, *rest)
  assert first.stat().st_mtime_ns == written
  files = sorted(path.name for path in (tmp_path / "whole").iterdir())
  assert files == sorted(path.name for path in (tmp_path / "cut").iterdir())
  for name in files:
    assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_an_encoding_that_is_told_to_stop_keeps_whole_shards(
  encoding, stages, tmp_path, monkeypatch
):
  answers = iter([False, False, True])
  monkeypatch.setattr(token_cache.processes, "is_preemption_agreed", lambda: next(answers))
  index, source, template, params = encoding
  with pytest.raises(Preempted, match="SIGTERM") as stopped:
    token_cache.encode(tmp_path, index, source, FAMILY, template, params, stages.mesh, 4)
  assert stopped.value.status == 143 and 0 not in index.missing(tmp_path) != []


def test_the_index_is_written_by_one_process_before_any_goes_on(
  encoding, stages, tmp_path, monkeypatch
):
  """Process 1 of two sees an empty folder, while the first sees one shard missing."""
  index, source, template, params = encoding
  waited, listed = [], np.arange(index.num_shards) == 2
  monkeypatch.setattr(token_cache.processes, "is_first", lambda: False)
  monkeypatch.setattr(token_cache.processes, "wait_for_all", waited.append)
  monkeypatch.setattr(token_cache.processes, "broadcast", lambda is_missing: listed)
  token_cache.encode(tmp_path, index, source, FAMILY, template, params, stages.mesh, 4)
  assert len(waited) == 2 and waited[0] == f"the index of {tmp_path} is written"
  assert [path.name for path in tmp_path.iterdir()] == [index.path(tmp_path, 2).name]


def test_a_stale_cache_is_named_before_anything_is_written(records, trained, tmp_path):
  shared = {"stage.cache.path": str(trained / "cache")}
  for change, message in (
    ({"data.frame_rate": 8.0}, r"data\.frame_rate: 4\.0 -> 8\.0"),
    ({"tokenizer.base_channels": 8}, r"encoder\.base_channels: 4 -> 8"),
    ({"stage.cache.num_clips": 12}, r"num_clips: 18 -> 12"),
  ):
    with pytest.raises(ValueError, match=rf"stale.*there -> now(.|\n)*{message}(.|\n)*Remove that"):
      run.Run(make_config(**shared, **change), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_cache_from_before_a_field_was_there_fits(records, trained, tmp_path):
  """If the field has the default by which the cache was made."""
  shutil.copytree(trained / "cache", tmp_path / "cache")
  path = next(path for path in (tmp_path / "cache").iterdir() if path.suffix == ".json")
  facts = json.loads(path.read_text())
  assert facts["data"].pop("num_crops") == 1 and facts["encoder"].pop("num_mid_blocks") == 1
  path.write_text(json.dumps(facts))
  changes = {"stage.cache.path": str(tmp_path / "cache")}
  with pytest.raises(ValueError, match=r"there -> now(.|\n)*num_mid_blocks: 2 -> 1") as raised:
    run.Run(make_config(**changes), tmp_path / "run")
  assert "num_crops" not in str(raised.value)


def test_a_tokenizer_of_other_weights_is_found_out(records, trained, tmp_path):
  values = make_config(**{"stage.cache.path": str(trained / "cache")})
  save_tokenizer(values, tmp_path, seed=1)
  settings = parse.finalize(values)
  others = Stages(settings, tmp_path, make_mesh(settings.mesh))
  source = SpritesSource("train", num_frames=5, resolution=(16, 16), frame_rate=4.0, version=2)
  check_cache(others, settings.caches[0], source)  # As far as can be known before the training.
  with pytest.raises(ValueError, match=r"stale(.|\n)*fingerprint: '\w+' -> '\w+'"):
    others.encode(settings.caches[0], source)
  with pytest.raises(ValueError, match="fingerprint"):
    others.train(settings.stages[1], [source], source)


def test_the_encoder_alone_has_a_fingerprint(encoding):
  params = encoding[3]
  first = token_cache.encoder_fingerprint(params)
  decoder = jax.tree.map(lambda x: x + 1, params["decoder"])
  assert token_cache.encoder_fingerprint(params | {"decoder": decoder}) == first
  encoder = jax.tree.map(lambda x: x + 1e-6, params["encoder"])
  assert token_cache.encoder_fingerprint(params | {"encoder": encoder}) != first


def test_a_cache_that_is_read_up_is_not_made_again(stages, records):
  (made,) = stages.run.caches
  assert not stages.is_needed(made)
  assert stages.is_needed(dataclasses.replace(made, name="for_others"))


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"stages": ("cache", "tokenizer", "generator")}, r"stage\.cache encodes before any tokenizer"),
    ({"stage.cache": {"kind": "cache"}}, r"stage\.cache\.num_clips is missing: sprites are"),
    ({"stage.cache.num_epochs": 2}, r"stage\.cache\.num_epochs: sprites have no epochs"),
    ({"stage.cache.num_clips": 0}, r"stage\.cache: num_clips=0 must be at least 1"),
    ({"stage.cache.num_clip": 4}, r"stage\.cache\.num_clip is not a field; did you mean"),
    (
      {"stage.cache.data": {"num_frames": 9}},
      r"stage\.generator: data\.num_frames is 5, but 9 in stage\.cache",
    ),
    (
      {"stage.generator.data": {"frame_rate": 2.0}},
      r"stage\.generator: data\.frame_rate is 2\.0, but 4\.0 in stage\.cache",
    ),
    (
      {"data.source": "folder", "data.path": "/videos"},
      r"stage\.cache\.num_clips=18 is for sprites alone; set num_epochs",
    ),
  ],
)
def test_wrong_settings_are_named(changes, message):
  with pytest.raises(ValueError, match=message):
    parse.finalize(make_config(**changes))


def test_a_batch_that_does_not_divide_is_named(tmp_path):
  with pytest.raises(ValueError, match=r"stage\.cache\.batch_size=3 does not divide over the 2"):
    run.Run(make_config(**{"stage.cache.batch_size": 3}), tmp_path / "run")


def test_a_generator_reads_the_last_cache_after_the_last_tokenizer():
  values = make_config()
  values.stage.more = values.stage.tokenizer
  values.stage.last = values.stage.generator
  values.stages = ("tokenizer", "cache", "generator", "more", "last")
  stages = parse.finalize(values).stages
  assert [stage.cache and stage.cache.name for stage in stages] == [None, "cache", None, None]


@pytest.mark.parametrize("num", [1, 2, 3])
def test_batches_that_are_encoded_at_a_time_keep_their_order(num):
  running, most = set(), [0]

  def function(value):
    running.add(value)
    most[0] = max(most[0], len(running))
    time.sleep(0.02 if value % 2 else 0.0)
    running.remove(value)
    if value == 8:
      raise ValueError("the eighth")
    return value

  found = []
  with pytest.raises(ValueError, match="the eighth"):
    found.extend(token_cache._map_ahead(function, iter(range(20)), num))
  assert found == list(range(8)) and most[0] <= num
  assert list(token_cache._map_ahead(function, iter(range(8)), num)) == list(range(8))
  together = threading.Barrier(num)  # Breaks unless as many wait at a time.
  list(token_cache._map_ahead(lambda _: together.wait(timeout=20), iter(range(2 * num)), num))
  values = iter(range(8))
  some = token_cache._map_ahead(function, values, num)
  assert next(some) == 0
  some.close()
  assert next(values) == num  # No more are taken than are computed at a time.


def test_a_generator_reads_the_last_cache_of_its_clips():
  values = make_config()
  values.stage.images = {"kind": "cache", "num_clips": 4, "data": {"num_frames": 1}}
  values.stage.other = {"kind": "cache", "num_clips": 4}
  values.stage.first = values.stage.generator.copy_and_resolve_references()
  values.stage.first.data.num_frames = 1
  for names, read in (
    (("cache", "images", "first", "generator"), ["images", "cache"]),
    (("cache", "other", "images", "generator"), ["other"]),
    (("cache", "generator", "other"), ["cache"]),
  ):
    values.stages = ("tokenizer", *names)
    run = parse.finalize(values)
    assert [stage.cache.name for stage in run.stages[1:]] == read
  values.stages = ("tokenizer", "cache", "first")
  with pytest.raises(
    ValueError, match=r"stage\.first: data\.num_frames is 1, but 5 in stage\.cache"
  ):
    parse.finalize(values)


def test_weights_go_out_to_safetensors_and_start_another_run(stages, tmp_path, capsys):
  path, name = tmp_path / "weights.safetensors", stages.run.stages[0].name
  (stages.workdir / "config.json").write_text(json.dumps(make_config().to_dict()))
  command = ["weights", f"--workdir={stages.workdir}", f"--stage={name}", f"--out={path}"]
  assert convert.main(command) == 0, capsys.readouterr().err
  other = parse.finalize(make_config(**{f"stage.{name}.init": {"from": str(path)}}))
  other = Stages(other, tmp_path / "other", stages.mesh)
  params = other._first_params(other.run.stages[0], seed=3)
  jax.tree.map(np.testing.assert_array_equal, params, stages.load_params(stages.run.stages[0])[1])
  wider = make_config(**{f"stage.{name}.init": {"from": str(path)}, "tokenizer.base_channels": 8})
  wider = Stages(parse.finalize(wider), tmp_path / "wider", stages.mesh)
  with pytest.raises(ValueError, match=rf"stage\.{name}\.init\.from=.*shape: "):
    wider._first_params(wider.run.stages[0], seed=3)
