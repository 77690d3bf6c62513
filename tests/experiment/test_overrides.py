"""Setting fields on the command line: each with its type, and what is refused."""

import pytest

from configs import quickstart
from videoar_jax.experiment.defaults import complete, default_config
from videoar_jax.experiment.overrides import set_fields, split_overrides
from videoar_jax.experiment.parse import finalize

STAGES = {"images": "tokenizer", "cache": "cache", "generator": "generator"}


def fields(config, prefix=""):
  """Yields (name, type) of every field of a config, including subsections."""
  for name in config:
    if isinstance(config[name], type(config)):
      yield from fields(config[name], f"{prefix}{name}.")
    else:
      yield prefix + name, config.get_type(name)


def get(config, name):
  for part in name.split("."):
    config = config[part]
  return config


# By type: what is written, and what it is.
WRITTEN = {
  int: ("3", 3),
  float: ("0.25", 0.25),
  str: ("a b=c", "a b=c"),
  bool: ("true", True),
  tuple: ("(2, (3,))", (2, (3,))),
  object: ("(5, 9)", (5, 9)),
}


@pytest.mark.parametrize("is_apart", [False, True])
def test_every_field_takes_a_value_of_its_type(is_apart):
  names = list(fields(default_config(STAGES)))
  assert len(names) > 200 and {kind for _, kind in names} == set(WRITTEN)
  config, arguments = default_config(STAGES), []
  for name, kind in names:
    flag, text = f"--config.{name}", WRITTEN[kind][0]
    arguments += [flag, text] if is_apart else [f"{flag}={text}"]
  others, overrides = split_overrides(["main", "--config=x", *arguments, "--stage=one"])
  assert others == ["main", "--config=x", "--stage=one"]
  set_fields(config, overrides)
  for name, kind in names:
    assert get(config, name) == WRITTEN[kind][1], name
    assert type(get(config, name)) is type(WRITTEN[kind][1]), name


def test_fields_that_may_be_none_are_unset_by_none():
  config = complete(quickstart.get_config())
  for name in ("stage.generator.loop.spike", "stage.images.init.from", "data.path"):
    section, _, last = name.rpartition(".")
    get(config, section)[last] = {"spike": 2.0}.get(last, "x")
    set_fields(config, [f"--config.{name}=None"])
    assert get(config, name) is None
  spike = "--config.stage.generator.loop.spike"
  set_fields(config, [f"{spike}=3", f"{spike}=None"])
  assert get(config, "stage.generator.loop.spike") is None
  set_fields(config, [f"{spike}=None", f"{spike}=3"])
  assert get(config, "stage.generator.loop.spike") == 3.0
  with pytest.raises(ValueError, match=r"--config\.seed=None"):
    set_fields(config, ["--config.seed=None"])


def test_booleans_may_stand_alone_and_the_last_flag_of_a_field_holds():
  flags = ["--config.data.is_flipped", "--noconfig.generator.scan_layers", "--config.mesh.fsdp"]
  flags += ["-1", "--config.stages=(1, 2)", "--config.stages=(3,)", "-config.seed=4"]
  others, overrides = split_overrides(flags)
  config = default_config(STAGES)
  set_fields(config, overrides)
  assert others == [] and config.data.is_flipped and not config.generator.scan_layers
  assert config.mesh.fsdp == -1 and config.stages == (3,) and config.seed == 4


@pytest.mark.parametrize(
  ("flag", "message"),
  [
    (
      "generator.num_layer=3",
      r"^config\.generator\.num_layer is not a field; did you mean 'num_la",
    ),
    ("stage.imagse.kind=3", r"^config\.stage\.imagse is not a field; did you mean 'images'\?"),
    ("dat.seed=3", r"^config\.dat is not a field; did you mean 'data'\?"),
    ("stage.images.mixture.clips.weight=1", r"mixture\.clips is not a field; known are none"),
    ("seed.x=3", r"^config\.seed is a value and has no fields"),
    ("stage.images.init.from.x=3", r"^config\.stage\.images\.init\.from is a value"),
    ("data={'seed': 1}", r"^config\.data is a section; set its fields, config\.data\.FIELD"),
    ("seed=abc", r"^--config\.seed=abc: invalid literal"),
    ("seed", r"--config\.seed"),
    ("stage.images.loop.spike=x", r"^--config\.stage\.images\.loop\.spike=x: could not convert"),
    ("data.is_flipped=maybe", r"^--config\.data\.is_flipped=maybe: "),
    ("data.resolution=a b", r"^--config\.data\.resolution=a b: "),
    ("schedule=1 2", r"^config\.schedule is now config\.tokenizer\.schedule$"),
    ("generator.depth=1", r"^config\.generator\.depth is now config\.generator\.num_layers$"),
    ("stage.images.inflate.path=x", r"is now config\.stage\.images\.init\.from$"),
  ],
)
def test_flags_that_set_nothing_are_refused_by_name(flag, message):
  config = default_config(STAGES)
  with pytest.raises(ValueError, match=message):
    set_fields(config, [f"--config.{flag}"])
  assert config == default_config(STAGES)


def test_set_fields_reach_the_run():
  config = complete(quickstart.get_config("size=tiny"))
  flags = ["data.num_objects=(1, 2)", "stages=('images',)", "stage.images.data.seed=5"]
  flags += ["stage.images.mesh.fsdp=2"]
  set_fields(config, [f"--config.{flag}" for flag in flags])
  run = finalize(config)
  assert run.data.num_objects == (1, 2) and [stage.name for stage in run.stages] == ["images"]
  assert run.stages[0].data.seed == 5 and run.stages[0].mesh.fsdp == 2 and run.mesh.fsdp == 1
