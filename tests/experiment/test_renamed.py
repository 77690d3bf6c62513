"""Renamed fields: old workdirs still load, and errors of config files name the new fields."""

import copy
import itertools
import json

import first_version
import pytest

from configs import ablation, quickstart, tokenizer_ucf101, videoar_t2v
from videoar_jax.experiment.defaults import complete
from videoar_jax.experiment.parse import finalize, load_config, save_config
from videoar_jax.experiment.renamed import RENAMED, check_renamed, new_name, with_new_names
from videoar_jax.experiment.workdir import check_same_config

# The first version's config of each recipe, and today's.
RECIPES = {
  "quickstart": (first_version.QUICKSTART, lambda: quickstart.get_config()),
  "tokenizer": (
    first_version.TOKENIZER_UCF101,
    lambda: tokenizer_ucf101.get_config("data=clips,init=image"),
  ),
  "t2v": (
    first_version.VIDEOAR_T2V,
    lambda: videoar_t2v.get_config("data=videos,images=images,init=image"),
  ),
  "ablation": (first_version.ABLATION, lambda: ablation.get_config()),
}
# Renamed as a section, since fields of it belong together.
TOGETHER = ("images.", "inflate.")


def nested(flat):
  """Returns sections from dotted names."""
  values = {}
  for name, value in flat.items():
    *sections, last = name.split(".")
    node = values
    for part in sections:
      node = node.setdefault(part, {})
    node[last] = value
  return values


def simple(stage):
  """Returns (old, new) for the renamed fields of a stage."""
  pairs = ((old.replace("*", stage), new.replace("*", stage)) for old, new in RENAMED.items())
  return [pair for pair in pairs if not any(part in pair[0] for part in TOGETHER)]


@pytest.mark.parametrize("stage", ["one", "I", "an-other"])
def test_each_old_name_becomes_the_new_one_alone_and_with_the_others(stage):
  pairs = [pair for pair in simple(stage) if not pair[0].endswith(".start")]
  assert len(pairs) > 15
  numbers = itertools.count(7)
  values = {old: next(numbers) for old, _ in pairs}
  for old, new in pairs:
    assert new_name(old) == new and new_name(new) is None
    assert with_new_names(nested({old: values[old]})) == {"stage": {}} | nested({new: values[old]})
  together = with_new_names(nested(values))
  assert together == nested({new: values[old] for old, new in pairs})
  assert with_new_names(together) == together  # Of what has today's names, nothing changes.


def test_every_new_name_is_a_field():
  stages = {"tokenizer": "tokenizer", "generator": "generator"}
  values = complete({"stages": tuple(stages), "stage": {name: {} for name in stages}}).to_dict()
  part = {"mixture": {"images": {"weight": 1.0}}}
  values["stage"]["tokenizer"] |= part
  values = complete(values).to_dict()
  for new in RENAMED.values():
    found = []
    for stage in stages:
      node = values
      for name in new.replace("*", stage).split("."):
        node = node.get(name) if isinstance(node, dict) and name in node else KeyError
      found.append(node is not KeyError)
    assert any(found), new


def test_sections_of_a_stage_become_parts_and_a_start():
  old = {"inflate": {"path": "image", "rest": "random"}, "images": {"share": 0.3, "batch_size": 8}}
  assert with_new_names({"stage": {"one": old}})["stage"]["one"] == {
    "init": {"from": "image", "temporal": "random"},
    "mixture": {
      "clips": {"weight": 0.7},
      "images": {"weight": 0.3, "num_frames": 1, "batch_size": 8},
    },
  }
  # Without a size of its own, a batch had one image.
  values = with_new_names({"stage": {"one": {"images": {"share": 0.3}}}})
  assert values["stage"]["one"]["mixture"]["images"]["batch_size"] == 1
  start = with_new_names({"stage": {"one": {"start": "file"}}})
  assert start["stage"]["one"] == {"init": {"from": "file"}}


def test_what_was_off_sets_nothing():
  off = {"num_frames": None, "start": None, "continues": False, "inflate": {"path": None}}
  off |= {"images": {"share": 0.0, "batch_size": 1}}
  old = {"schedule": "", "stage": {"one": off | {"kind": "tokenizer", "data": {"num_frames": 5}}}}
  new = {"stage": {"one": {"kind": "tokenizer", "data": {"num_frames": 5}}}}
  assert with_new_names(old) == new
  # What is zero on purpose stays so.
  loss = {"stage": {"one": {"loss": {"p_drop_text": 0.0, "absolute": 0.0}}}}
  assert with_new_names(loss) == {"stage": {"one": {"loss": {"text_dropout": 0.0, "l1": 0.0}}}}


def test_frames_of_a_stage_were_stronger_than_those_of_its_data():
  for fields in (("num_frames", "data"), ("data", "num_frames")):
    values = {"num_frames": 9, "data": {"num_frames": 5, "seed": 1}}
    stage = {name: values[name] for name in fields}
    new = with_new_names({"stage": {"one": stage}})["stage"]["one"]
    assert new == {"data": {"num_frames": 9, "seed": 1}}


def test_parts_of_todays_mixtures_stay():
  for parts in ({"images": {"weight": 1.0}}, {"videos": {"weight": 1.0}}, {}):
    values = {"stage": {"one": {"mixture": parts}}}
    assert with_new_names(values) == values


def test_a_discriminator_keeps_the_optimizer_that_it_had():
  old = copy.deepcopy(first_version.QUICKSTART)
  own = {"weight": 0.1, "optimizer": {"b1": 0.3}}
  old["stage"]["tokenizer"]["loss"] = old["stage"]["tokenizer"]["loss"] | {"adversarial": own}
  values = complete(with_new_names(old))
  assert values.stage.tokenizer.loss.adversarial.optimizer.b1 == 0.3
  assert values.stage.tokenizer.loss.adversarial.optimizer.b2 == 0.95
  assert values.stage.images.loss.adversarial.optimizer.b2 == 0.9  # There is none.


@pytest.mark.parametrize("name", ["quickstart", "ablation"])
def test_a_recipe_that_is_another_today_still_loads(name, tmp_path):
  """Its own settings count, not today's."""
  old, today = RECIPES[name]
  (tmp_path / "config.json").write_text(json.dumps(old))
  run = finalize(load_config(tmp_path / "config.json"))
  assert run == finalize(with_new_names(old)) != finalize(today())
  assert run.data.version == 1 and run.tokenizer.num_bits == 16
  assert run.generator.patch_sizes == (1,) and run.tokenizer.upsampling == "nearest"
  save_config(complete(with_new_names(old)), tmp_path / "config.json")
  assert finalize(load_config(tmp_path / "config.json")) == run


@pytest.mark.parametrize("name", ["tokenizer", "t2v"])
def test_a_config_of_the_first_version_is_todays(name, tmp_path):
  old, today = RECIPES[name]
  # What a report measures is no part of the recipe.
  old = old | {"report": today().report.to_dict()}
  assert finalize(with_new_names(old)) == finalize(today())
  (tmp_path / "config.json").write_text(json.dumps(old))
  assert finalize(load_config(tmp_path / "config.json")) == finalize(today())
  assert check_same_config(today(), tmp_path) == []
  save_config(today(), tmp_path / "config.json")
  assert finalize(load_config(tmp_path / "config.json")) == finalize(today())


@pytest.mark.parametrize("name", RECIPES)
def test_a_config_file_with_old_names_is_told_each_new_one_in_one_line(name):
  old, _ = RECIPES[name]
  with pytest.raises(ValueError) as raised:
    finalize(old)
  text = str(raised.value)
  assert "\n" not in text and text.startswith("fields were renamed: config.")
  assert "config.schedule is now config.tokenizer.schedule" in text
  flat = [name for name in RENAMED if "*" not in name and name.partition(".")[0] in old]
  for name in flat:
    node = old
    for part in name.split("."):
      node = node.get(part, {})
    assert (f"config.{name} is now config.{RENAMED[name]}" in text) == (node != {})
  for stage, section in old["stage"].items():
    for field in section.get("loss", {}):
      if f"stage.*.loss.{field}" in RENAMED:
        new = RENAMED[f"stage.*.loss.{field}"].replace("*", stage)
        assert f"config.stage.{stage}.loss.{field} is now config.{new}" in text


def test_old_values_are_told_their_new_names():
  values = {"generator": {"context": "final", "prev_frame_input": "all"}}
  with pytest.raises(ValueError, match=r"context='final' is now 'full_frame'; .*'all_scales'"):
    check_renamed(values)
  new = {"context": "full_frame", "prev_frame_input": "all_scales"}
  assert with_new_names(values)["generator"] == new
  old = {"generator": {"past": "final", "previous": "first"}}
  new = {"context": "full_frame", "prev_frame_input": "first_scale"}
  assert with_new_names(old)["generator"] == new


def test_none_unset_a_text_of_the_run_in_earlier_versions():
  """Today it means that a field is inherited, and "" unsets it."""
  old = {
    "data": {"source": "folder", "path": "/d", "split_file": "train.txt"},
    "stage": {
      "a": {"data": {"split_file": None, "num_frames": 5}},
      "b": {"mixture": {"shapes": {"source": "sprites", "path": None, "weight": 1.0}}},
    },
  }
  new = with_new_names(old)
  assert new["stage"]["a"]["data"] == {"split_file": "", "num_frames": 5}
  assert new["stage"]["b"]["mixture"]["shapes"]["path"] == ""
  assert with_new_names(old | {"family": "videoar"})["stage"]["a"]["data"]["split_file"] is None
