"""Complete configs: filled-in fields, fields that may be None, and fields of a family."""

import dataclasses

import pytest
from ml_collections import ConfigDict
from tiny_runs import make_config, make_mixed_config

from configs import ablation, quickstart, tokenizer_ucf101, videoar_t2v, videoar_ucf101
from videoar_jax.data.pipeline import DataConfig
from videoar_jax.experiment.defaults import complete, default_config, mixture_part
from videoar_jax.experiment.parse import finalize
from videoar_jax.models.base import Family
from videoar_jax.models.families import FAMILIES
from videoar_jax.tokenizers.task import AdversarialConfig
from videoar_jax.train.config import LoopConfig

STAGES = {"tokenizer": "tokenizer", "cache": "cache", "generator": "generator"}
SHIPPED = {
  "quickstart": lambda: quickstart.get_config(),
  "ablation": lambda: ablation.get_config("quick=1"),
  "tokenizer_ucf101": lambda: tokenizer_ucf101.get_config("data=clips"),
  "videoar_ucf101": lambda: videoar_ucf101.get_config("data=clips"),
  "videoar_t2v": lambda: videoar_t2v.get_config("data=clips,images=images"),
  "sprites": lambda: videoar_t2v.get_config("size=tiny,data=sprites"),
}


def runnable():
  """Returns the defaults with a run's required fields."""
  config = default_config(STAGES)
  config.stage.cache.num_clips = 1
  for stage in ("tokenizer", "generator"):
    config.stage[stage].loop.num_steps = config.stage[stage].loop.batch_size = 1
  config.generator.update(FAMILIES["videoar"].sizes["tiny"])
  return config


def test_defaults_are_those_of_the_dataclasses(without_type_checks):
  config = default_config(STAGES)
  assert finalize(runnable()).data == DataConfig()
  values = config.stage.tokenizer.loss.adversarial.to_dict()
  assert AdversarialConfig(**values | dict(discriminator=None, optimizer=None)) is not None
  assert values["optimizer"] == dataclasses.asdict(AdversarialConfig().optimizer)
  run = finalize(runnable())
  assert run.stages[0].loss.adversarial == AdversarialConfig()
  assert run.stages[0].loop == LoopConfig(1, 1, run.stages[0].loop.optimizer)
  assert config.stages == tuple(STAGES) and config.stage.cache.kind == "cache"
  for derived in FAMILIES["videoar"].derived:
    assert derived not in config.generator


def test_placeholders_have_types():
  config = default_config(STAGES)
  assert config.data.path is None and config.stage.generator.loop.num_steps is None
  assert config.stage.tokenizer.data.resolution is None
  for section, field, value in (
    (config.data, "path", 3),
    (config.stage.generator.loop, "num_steps", "3"),
    (config.stage.tokenizer.data, "resolution", 3),
    (config.stage.tokenizer.mesh, "fsdp", 0.5),
    (config.generator, "num_layers", "many"),
    (config.stage.generator.init, "from", 3),
  ):
    with pytest.raises(TypeError):
      section[field] = value
  config.data.num_objects = (1, 2)
  config.stage.generator.loop.spike = 3
  assert config.stage.generator.loop.spike == 3.0


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configs_have_every_field_and_stay_as_they_are(name):
  config = SHIPPED[name]()
  filled = complete(config)
  assert filled == config and complete(filled) == filled
  # What is None counts as not there.
  assert finalize(without_none(config.to_dict())) == finalize(config)


def without_none(values):
  return {
    name: without_none(value) if isinstance(value, dict) else value
    for name, value in values.items()
    if value is not None
  }


@pytest.mark.parametrize("make", [make_config, make_mixed_config])
def test_sparse_configs_are_filled_up(make):
  config = make()
  filled = complete(config)
  assert finalize(filled) == finalize(config)
  assert filled.stage.generator.loss.window is None and filled.data.frame_rates == ()


def test_a_stage_inherits_what_it_does_not_set():
  config = runnable()
  config.data.num_frames, config.data.seed, config.mesh.data = 9, 4, 2
  stage = config.stage.generator
  stage.data.seed = 5
  stage.mesh.fsdp = 3
  stage.mixture.one = mixture_part(weight=0.5, num_frames=(1, 5))
  stage.mixture.other = mixture_part(weight=0.5, seed=6)
  config.stages = ("tokenizer", "generator")
  run = finalize(config)
  tokenizer, generator = run.stages
  assert tokenizer.data == run.data and tokenizer.mesh == run.mesh
  assert (generator.data.num_frames, generator.data.seed) == (9, 5)
  assert (generator.mesh.data, generator.mesh.fsdp) == (2, 3)
  one, other = generator.mixture
  assert (one.num_frames, one.data.seed, one.batch_size) == ((1, 5), 5, None)
  assert (other.num_frames, other.data.seed) == ((9,), 6)


def test_a_stage_unsets_text_that_the_run_sets():
  config = runnable()
  config.data.source, config.data.path = "folder", "clips"
  config.data.split_file = "list.txt"
  config.stages = ("tokenizer",)
  mixture = config.stage.tokenizer.mixture
  mixture.clips = mixture_part(weight=0.5)
  mixture.images = mixture_part(weight=0.5, path="images", split_file="", num_frames=1)
  (stage,) = finalize(config).stages
  assert [part.data.split_file for part in stage.mixture] == ["list.txt", None]
  assert [part.data.path for part in stage.mixture] == ["clips", "images"]


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("stage.generator.loop.num_steps", r"^stage\.generator\.loop\.num_steps is missing; set it"),
    ("stage.tokenizer.loop.batch_size", r"^stage\.tokenizer\.loop\.batch_size is missing; set it"),
    ("generator.d_model", r"^generator\.d_model is missing; set it"),
    ("stage.cache.num_clips", r"^stage\.cache\.num_clips is missing"),
  ],
)
def test_required_fields_that_are_not_set_are_named(name, message):
  config = runnable()
  config.update_from_flattened_dict({name: None})
  with pytest.raises(ValueError, match=message):
    finalize(config)


@pytest.mark.parametrize(
  ("values", "message"),
  [
    ({"dat": {}}, r"^config\.dat is not a field; did you mean 'data'\?"),
    ({"data": {"sed": 1}}, r"^data\.sed is not a field; did you mean 'seed'\?"),
    ({"data": 3}, r"^data=3 must be a section"),
    ({"data": {"seed": "1"}}, r"^data\.seed='1' must be of type int"),
    ({"data": {"num_objects": "1"}}, r"^data\.num_objects='1' must be of type int or tuple"),
    ({"seed": True}, r"^config\.seed=True must be of type int"),
    ({"generator": {"num_bits": 4}}, r"^generator\.num_bits follows from other fields; remove it"),
    (
      {"stage": {"a": {}}},
      r"^stage\.a\.kind='a' is unknown; kinds are tokenizer, generator, cache",
    ),
    ({"stage": {"tokenizer": 3}}, r"^stage\.tokenizer=3 must be a section"),
    ({"stage": {"cache": {"loop": {}}}}, r"^stage\.cache\.loop is not a field"),
    (
      {"stage": {"generator": {"mixture": {"clips": {"wait": 1}}}}},
      r"^stage\.generator\.mixture\.clips\.wait is not a field; did you mean 'weight'\?",
    ),
  ],
)
def test_fields_that_cannot_be_are_named(values, message):
  with pytest.raises(ValueError, match=message):
    complete(values)
  with pytest.raises(ValueError, match=message):
    finalize(ConfigDict(values))


def test_a_mixture_part_knows_its_fields():
  assert mixture_part(weight=1).weight == 1.0
  with pytest.raises(ValueError, match=r"^mixture\.wait is not a field; did you mean 'weight'\?"):
    mixture_part(wait=0.5)


@dataclasses.dataclass(frozen=True)
class OtherNetwork:
  """Another network.

  Attributes:
    num_layers: blocks.
    num_experts: of a block.
  """

  num_layers: int
  num_experts: int = 2


@dataclasses.dataclass(frozen=True)
class OtherLoss:
  """Another loss.

  Attributes:
    noise: in the inputs.
  """

  noise: float = 0.1


class Other(Family):
  """A family with what configs need."""

  tokenizer = "bsq"
  network = OtherNetwork
  loss = OtherLoss
  sampling = OtherLoss
  derived = ()


@pytest.fixture
def other(monkeypatch):
  monkeypatch.setitem(FAMILIES, "other", Other())


def test_each_family_has_its_own_fields(other):
  config = default_config({"generator": "generator"}, family="other")
  assert config.family == "other" and config.generator.to_dict() == {
    "num_layers": None,
    "num_experts": 2,
  }
  assert config.stage.generator.loss.noise == 0.1 and config.sampling.noise == 0.1
  assert config.tokenizer == default_config({}).tokenizer


@pytest.mark.parametrize(
  ("family", "values", "message"),
  [
    (
      "videoar",
      {"generator": {"num_experts": 4}},
      r"^generator\.num_experts is a setting of family 'other', but config\.family='videoar'; rem",
    ),
    (
      "other",
      {"sampling": {"temperature": 1.0}},
      r"^sampling\.temperature is a setting of family 'videoar', but config\.family='other'",
    ),
    (
      "videoar",
      {"stage": {"generator": {"loss": {"noise": 0.5}}}},
      r"^stage\.generator\.loss\.noise is a setting of family 'other'",
    ),
    # Of a generator's loss, which is not what a tokenizer trains on.
    (
      "videoar",
      {"stage": {"tokenizer": {"loss": {"noise": 0.5}}}},
      r"^stage\.tokenizer\.loss\.noise is not a field",
    ),
    ("third", {}, r"^config\.family='third' is unknown; families are videoar, .*other"),
  ],
)
def test_settings_of_another_family_are_named(other, family, values, message):
  with pytest.raises(ValueError, match=message):
    finalize({"family": family} | values)
