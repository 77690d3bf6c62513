"""NOVA's training runs: from a token cache as from clips, and resumed as undisturbed."""

import json
import shutil

import pytest
from tiny_nova import make_config
from tiny_runs import save_tokenizer

from videoar_jax.data.synthetic.sprites import SpritesSource
from videoar_jax.experiment import run
from videoar_jax.models.nova.task import NovaTask

NUM_CLIPS = 18  # More than four batches of four: a later epoch of sprites has other clips.
CACHE = {"kind": "cache", "num_clips": NUM_CLIPS, "batch_size": 4, "clips_per_shard": 4}
CACHE["posterior_dtype"] = "float32"  # Else a run without a cache would not round as it does.


def make_run(**changes):
  """Four steps with motion tokens, an average, and evaluations."""
  config = make_config(**{"stage.cache": CACHE, "generator.has_motion": True, **changes})
  config.stage.generator.loop.update(num_steps=4, batch_size=4, save_every=2, ema_decay=0.9)
  return config


class FewSprites(SpritesSource):
  """As many sprites as in the cache, for a run that reads clips directly."""

  def __len__(self):
    return NUM_CLIPS


def read_metrics(workdir):
  lines = (workdir / "generator" / "metrics.jsonl").read_text().splitlines()
  return [{k: v for k, v in json.loads(line).items() if "per_s" not in k} for line in lines]


@pytest.fixture(scope="module")
def records(tmp_path_factory):
  """The generator's metrics: from a cache; interrupted and resumed; from clips."""
  cached, live = (tmp_path_factory.mktemp("nova") / name for name in ("cached", "live"))
  stages = {"stages": ("tokenizer", "cache", "generator")}
  save_tokenizer(make_run(**stages), cached, seed=0)
  shutil.copytree(cached / "tokenizer", live / "tokenizer")
  evaluated = {"stage.generator.loop.eval_every": 2}
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(NovaTask, "media", lambda *_: {})
    patch.setattr(run, "start_log", lambda path: None)
    run.Run(make_run(**stages, **evaluated), cached).train()
    found = {"cached": read_metrics(cached)}
    shutil.rmtree(cached / "generator" / "checkpoints" / "4")
    assert run.Run(make_run(**stages, **evaluated), cached).train()
    found["resumed"] = read_metrics(cached)

    def few_sprites(data, split):
      clip = {"num_frames": data.num_frames, "resolution": data.resolution, "seed": data.seed}
      return FewSprites(split, frame_rate=data.frame_rate, version=data.version, **clip)

    patch.setattr(run, "make_source", few_sprites)
    run.Run(make_run(), live).train()
    found["live"] = read_metrics(live)
  return found


def test_a_resumed_run_equals_an_undisturbed_one_bit_for_bit(records):
  assert [record["step"] for record in records["cached"]] == [1, 2, 3, 4]
  assert len({record["gradient_norm"] for record in records["cached"]}) == 4
  assert {"loss_first", "eval/loss_later"} <= records["cached"][-1].keys()
  assert records["resumed"] == records["cached"]


def test_a_run_from_the_cache_is_the_run_without_it(records):
  for ours, other in zip(records["cached"], records["live"], strict=True):
    assert {"loss", "loss_later", "gradient_norm"} <= other.keys()
    for name, value in other.items():
      assert ours[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
