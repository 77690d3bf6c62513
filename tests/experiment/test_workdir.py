"""Comparing configs with a workdir's: equal settings are equal, however they are written."""

import json

import pytest
from tiny_runs import make_config, make_mixed_config

from configs import quickstart
from videoar_jax.experiment.defaults import complete, mixture_part
from videoar_jax.experiment.parse import finalize, load_config, save_config
from videoar_jax.experiment.workdir import check_same_config


@pytest.mark.parametrize("make", [make_config, make_mixed_config, quickstart.get_config])
def test_saved_configs_are_complete_and_load_as_they_were(make, tmp_path):
  config = make()
  save_config(config, tmp_path / "config.json")
  saved = json.loads((tmp_path / "config.json").read_text())
  assert saved == json.loads(json.dumps(complete(config).to_dict()))
  assert "spike" in saved["stage"]["generator"]["loop"] and saved["family"] == "videoar"
  assert load_config(tmp_path / "config.json") == complete(config).to_dict()
  assert finalize(load_config(tmp_path / "config.json")) == finalize(config)
  assert check_same_config(config, tmp_path) == []


def test_a_config_that_leaves_fields_out_is_the_same_as_one_that_sets_their_defaults(tmp_path):
  """Configs of versions that saved only the fields that a file set, or had fewer fields."""
  config = make_mixed_config().to_dict()
  (tmp_path / "config.json").write_text(json.dumps(config))
  assert check_same_config(complete(config), tmp_path) == []
  saved = complete(config).to_dict()
  del saved["stage"]["I"]["loop"]["log_every"], saved["stage"]["II"]["init"]
  (tmp_path / "config.json").write_text(json.dumps(saved))
  assert check_same_config(complete(config), tmp_path) == []
  config["stage"]["I"]["init"] = {"temporal": "random"}
  with pytest.raises(ValueError, match=r"config\.stage\.I\.init\.temporal: 'zeros' -> 'random'"):
    check_same_config(complete(config), tmp_path)


def test_a_stage_may_say_what_it_would_inherit(tmp_path):
  save_config(make_mixed_config(), tmp_path / "config.json")
  same = complete(make_mixed_config())
  same.stage.I.data.update({"seed": same.data.seed, "resolution": same.data.resolution})
  same.stage.II.mesh.fsdp = same.mesh.fsdp
  same.stage.I.mixture.images.frame_rate = same.data.frame_rate
  assert check_same_config(same, tmp_path) == []
  # Inherited or not: what the stage trains on is another.
  same.stage.I.data.seed = 8
  with pytest.raises(ValueError, match=r"\n  config\.stage\.I\.data\.seed: None -> 8\n"):
    check_same_config(same, tmp_path)


def test_a_stage_that_keeps_what_the_run_changes_differs(tmp_path):
  config = complete(make_config())
  config.stage.generator.data.num_threads = config.data.num_threads
  save_config(config, tmp_path / "config.json")
  config.data.num_threads += 1
  assert check_same_config(config, tmp_path) == [
    "config.data.num_threads: 4 -> 5",
    "config.stage.generator.data.num_threads: None -> 4",
  ]


def test_one_changed_field_is_one_difference(tmp_path):
  save_config(make_mixed_config(), tmp_path / "config.json")
  changed = complete(make_mixed_config())
  changed.data.frame_rate = 2.0
  changed.stage.I.mixture.more = mixture_part(weight=0.1)
  with pytest.raises(ValueError) as raised:
    check_same_config(changed, tmp_path)
  lines = [line.strip() for line in str(raised.value).splitlines() if "->" in line][1:]
  assert "config.data.frame_rate: 4.0 -> 2.0" in lines
  others = [line for line in lines if not line.startswith("config.stage.I.mixture.more.")]
  assert others == ["config.data.frame_rate: 4.0 -> 2.0"]


def test_a_damaged_config_names_its_file(tmp_path):
  path = tmp_path / "config.json"
  path.write_text('{"data": {"sed": 1}}')
  with pytest.raises(ValueError, match=rf"^{path}: data\.sed is not a field; did you mean 'seed'"):
    load_config(path)
  path.write_text('{"data"')
  with pytest.raises(ValueError, match=rf"^{path}: Expecting"):
    load_config(path)
